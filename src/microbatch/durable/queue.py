"""DurableQueue: enqueue, wait for results, administer. What a process holds that has no handler."""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar, Unpack, overload

import aiosqlite
import anyio

from microbatch._core.batcher import Batcher
from microbatch._pure import checks
from microbatch._telemetry.observer import observer_of

from .administration import Administered
from .clock import Clock
from .codec import Codec
from .counting import Counting
from .file_store import FileStore
from .intake import GROUP_MAX, Intake, Plain, Request, new_item, request_of
from .joining import Joining, enqueue_on, enqueue_on_aiosqlite
from .limits import Limits
from .records import Ticket, ticket_id
from .store import SYNCHRONOUS
from .waiters import Waiters
from .watching import Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from microbatch._telemetry.settings import Telemetry

    from .file_store import Store
    from .hands import Hands
    from .opening import OwnTask
    from .records import AnyTicket, Found, NewItem, Stored

T = TypeVar("T")
R = TypeVar("R")


class QueueSettings(TypedDict, total=False):
    """The settings that every queue has; ``DurableQueue`` says what each means."""

    queue: str
    max_depth: int
    max_file_bytes: int | None
    key_ttl: float
    result_ttl: float
    keep_dead: int | None
    keep_done: int | None
    poll_interval: float
    synchronous: str
    name: str | None
    telemetry: Telemetry | Literal[False] | None


class DurableQueue(Administered[T], Generic[T, R]):
    """A queue of items on disk, without a handler.

    A process holds it that only enqueues, waits for the results of workers elsewhere, or administers.
    ``DurableBatcher`` is the same with a handler. Both work from the first call on; ``async with`` or
    ``aclose()`` closes the file.

    Args:
        path: The SQLite file; created, readable by its owner only, if there is none. It may be the
            application's own.
        item_type: What items are: any type that msgspec can decode.
        result_type: The same for results; by default they are read back as built-in values.
        queue: The queue's name in the file.
        max_depth: Items not yet ended in this queue, at least 1; beyond, ``QueueFull``.
        max_file_bytes: Pages in use plus the write-ahead log; beyond, ``QueueFull`` for new items, while
            what is there can still be finished. None for no bound.
        key_ttl: Seconds for which a key is remembered, at least 0. A day, as is usual for them.
        result_ttl: Seconds for which done and cancelled items are kept, at least 0.
        keep_dead: Dead letters kept at most, the newest; None for all.
        keep_done: Done items kept at most, the newest; None for all within ``result_ttl``. Beyond it a
            key still prevents a second run, but its result is gone.
        poll_interval: Seconds, more than 0: how soon a result or an item of another process is noticed.
        synchronous: ``"full"``: what is acknowledged survives a power cut. ``"extra"`` also syncs the
            directory; ``"normal"`` survives only the death of the process.
        name: For logs and telemetry; the queue's name by default.
        telemetry: As for ``Batcher``. What is stored carries the context of its ``send`` span, to which
            the batch that handles it is linked, in whatever process.

    Raises:
        TypeError: If a setting has the wrong type, or msgspec cannot decode ``item_type``.
        ValueError: If a setting is out of its range.
    """

    # Types that are no classes (unions, Annotated ...) tell type checkers nothing: annotate the queue then.
    @overload
    def __init__(
        self: DurableQueue[T, R],
        path: str | os.PathLike[str],
        *,
        item_type: type[T],
        result_type: type[R],
        **settings: Unpack[QueueSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: DurableQueue[T, Any],
        path: str | os.PathLike[str],
        *,
        item_type: type[T],
        result_type: Any = None,
        **settings: Unpack[QueueSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: DurableQueue[Any, R],
        path: str | os.PathLike[str],
        *,
        item_type: Any,
        result_type: type[R],
        **settings: Unpack[QueueSettings],
    ) -> None: ...
    @overload
    def __init__(
        self: DurableQueue[Any, Any],
        path: str | os.PathLike[str],
        *,
        item_type: Any,
        result_type: Any = None,
        **settings: Unpack[QueueSettings],
    ) -> None: ...
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        item_type: Any,
        result_type: Any = None,
        queue: str = "default",
        max_depth: int = 1_000_000,
        max_file_bytes: int | None = None,
        key_ttl: float = 86_400.0,
        result_ttl: float = 86_400.0,
        keep_dead: int | None = None,
        keep_done: int | None = None,
        poll_interval: float = 0.05,
        synchronous: str = "full",
        name: str | None = None,
        telemetry: Telemetry | Literal[False] | None = None,
    ) -> None:
        names: tuple[tuple[str, Any], ...] = (("queue", queue), ("name", name or queue))
        for setting, value in names:
            if not isinstance(value, str) or not value:
                message = f"{setting} must be a str that is not empty, got {value!r}"
                raise TypeError(message)
        if synchronous not in SYNCHRONOUS:
            message = f"synchronous must be 'full', 'extra' or 'normal', got {synchronous!r}"
            raise ValueError(message)
        # Absolute now: the working directory may change before the first call.
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() keeps "..", which SQLite does not
        self._name = name or queue
        self._queue_name = queue
        self._telemetry = telemetry
        self._observer = observer_of(self._name, telemetry, queue)
        self._items: Codec[T] = Codec(item_type, "item_type")
        self._results: Codec[R] = Codec(Any if result_type is None else result_type, "result_type")
        self._limits = Limits(
            max_depth=max_depth,
            max_file_bytes=max_file_bytes,
            key_ttl=key_ttl,
            result_ttl=result_ttl,
            keep_dead=keep_dead,
            keep_done=keep_done,
        )
        self._poll_interval = checks.number("poll_interval", poll_interval, above=0)
        self._synchronous = synchronous
        self._clock = Clock()
        self._store: Store = FileStore(self._path, queue, synchronous, self._limits, self._clock)
        self._counting = Counting(
            path=self._path,
            queue=queue,
            name=self._name,
            store=self._store,
            observer=self._observer,
            clock=self._clock,
        )
        super().__init__()

    def _forget(self) -> None:
        super()._forget()
        self._watch = Watch(self._name, self._look, self._pause_before_look, self._counting)
        self._waiters = Waiters(self._results, self._queue_name)
        self._lookups: Batcher[int, Found | None] = Batcher(
            self._look_up,
            max_batch_size=GROUP_MAX,
            max_pending=None,
            name=self._name,
            telemetry=False,
        )
        self._intake = Intake(
            name=self._name,
            queue=self._queue_name,
            store=self._store,
            limits=self._limits,
            waiters=self._waiters,
            hands=self._make_hands(),
            more_to_do=self._more_to_do,
            watch=self._watch,
            counting=self._counting,
            observer=self._observer,
            clock=self._clock,
        )

    def _make_hands(self) -> Hands | None:
        """Return what handles items; None without a handler."""
        return None

    @property
    def name(self) -> str:
        """Return the queue's name for logs and telemetry."""
        return self._name

    async def _start(self) -> None:
        await self._store.open()
        self._counting.see()
        self._watching: OwnTask = self._spawn(self._watch.run(), "watch")

    async def _stop_halfway(self) -> None:
        await self._store.close()

    def _lose_loop(self) -> None:
        self._store.forget()
        self._counting.forget()
        super()._lose_loop()

    async def _drain(self) -> None:
        """Finish what is under way, with all the time that the caller gives."""
        await self._intake.aclose(None)

    async def _shut(self) -> None:
        """Close at once: in a bounded time."""
        await self._intake.aclose(0)
        await self._stop_watching()
        await self._lookups.aclose(0)
        self._waiters.close(self._name)
        await self._store.close()

    async def _stop_watching(self) -> None:
        self._watching.task.cancel()
        await self._watching.ended.wait()
        self._counting.forget()

    # Enqueueing

    async def submit(
        self, item: T, *, key: str | None = None, priority: int = 0, delay: float = 0
    ) -> R:
        """Store an item, and wait until a handler has dealt with it and its result is stored too.

        Args:
            item: What the handler gets, as it reads back from the disk.
            key: Makes it safe to submit again: an equal key within ``key_ttl`` gets the first one's
                result, and no second run.
            priority: Higher goes first, strictly.
            delay: Seconds before it may be handled, at least 0.

        Returns:
            The handler's result, as it reads back from the disk.

        Raises:
            ItemFailed: If the item became a dead letter; the handler's exception is its cause if this
                process has it.
            ItemCancelled: If somebody cancelled it.
            QueueFull: If there is no room; nothing was stored.
            IdempotencyConflict: If the key belongs to another payload; nothing was stored.
            QueueUnavailable: If the file cannot be used; whether the item was stored is unknown.
            UnknownTicket: If the result is no longer kept.
            BatcherClosed: If the queue is closed. A stored item stays.
            TypeError: If the item cannot be encoded, or an argument has the wrong type.
            ValueError: If the item does not fit ``item_type``, or an argument its range.
            WouldDeadlock: Inside a running batch of this batcher.

        Cancellation stops the waiting, never a stored item.
        """
        request = request_of(self._items, item, key, priority, delay)
        loop = self._opened() or await self._open()
        self._guard("submit")
        waiter = loop.create_waiter()
        try:
            if isinstance(request, Plain):
                number = await self._intake.hand_in(request._replace(waiter=waiter))
            else:
                request.waiter = waiter
                ((number, *_),) = await self._intake.hand_in(request)
        except BaseException:
            waiter.cancel()  # the transaction may be under way: its outcome is for nobody then
            raise
        return await self._waiters.outcome(number, waiter)  # type: ignore[no-any-return]

    async def enqueue(
        self, item: T, *, key: str | None = None, priority: int = 0, delay: float = 0
    ) -> Ticket:
        """Store an item and return its ticket once it is on the disk.

        Takes and raises what ``submit`` does up to there. Cancellation before it returns leaves open
        whether the item was stored: use ``key``.
        """
        request = request_of(self._items, item, key, priority, delay)
        if self._opened() is None:
            await self._open()
        if type(request) is Plain:
            return Ticket(await self._intake.hand_in(request), self._queue_name)
        ((number, *_),) = await self._intake.hand_in(request)
        return Ticket(number, self._queue_name, key)

    async def enqueue_many(
        self, items: Iterable[T], *, priority: int = 0, delay: float = 0
    ) -> list[Ticket]:
        """Store many items in one transaction, all or none, and return their tickets in order.

        Takes and raises what ``enqueue`` does.
        """
        news, values = [], []
        for item in items:
            new, value = new_item(self._items, item, None, priority, delay)
            news.append(new)
            values.append(value)
        await self._open()
        stored = await self._intake.hand_in(Request(news, values)) if news else []
        return [Ticket(row.id, self._queue_name) for row in stored]

    @overload
    def enqueue_in(
        self,
        connection: sqlite3.Connection,
        item: T,
        *,
        key: str | None = ...,
        priority: int = ...,
        delay: float = ...,
    ) -> Ticket: ...
    @overload
    def enqueue_in(
        self,
        connection: aiosqlite.Connection,
        item: T,
        *,
        key: str | None = ...,
        priority: int = ...,
        delay: float = ...,
    ) -> Awaitable[Ticket]: ...
    def enqueue_in(
        self,
        connection: sqlite3.Connection | aiosqlite.Connection,
        item: T,
        *,
        key: str | None = None,
        priority: int = 0,
        delay: float = 0,
    ) -> Ticket | Awaitable[Ticket]:
        """Store an item inside a write transaction of the application's own, on the same file.

        The item is there exactly if that transaction commits; workers notice it within
        ``poll_interval`` of the commit. The ticket is provisional until then, and ``UnknownTicket`` if
        the transaction is rolled back. Needs no open queue, but tables that one has made.

        Args:
            connection: An ``sqlite3`` connection, whose call returns the ticket, or an ``aiosqlite``
                one, whose call is awaited.
            item: As for ``submit``.
            key: As for ``submit``.
            priority: As for ``submit``.
            delay: As for ``submit``.

        Raises:
            RuntimeError: If no transaction is open on the connection.
            ValueError: If it is open on another file, or is less durable than this queue.
            QueueUnavailable: If the file cannot be used, or has no queue yet.

        And what ``enqueue`` raises. After an error the transaction is still open, but for SQLite's own.
        """
        new, _ = new_item(self._items, item, key, priority, delay)
        # The id of an item that is rolled back is given again: the nonce tells the two apart.
        new = new._replace(nonce=secrets.randbits(62))
        if self._observer is not None:
            with self._observer.sending(1, self._clock.now()) as trace:
                new = new._replace(trace=trace)
        joining = Joining(
            self._path, self._queue_name, self._synchronous, self._limits, self._clock.now()
        )
        if isinstance(connection, sqlite3.Connection):
            stored = enqueue_on(connection, new, joining)
            return self._provisional(stored, new)
        if isinstance(connection, aiosqlite.Connection):
            return self._enqueue_in(connection, new, joining)
        message = f"connection must be an sqlite3 or aiosqlite connection, got {type(connection).__name__}"
        raise TypeError(message)

    async def _enqueue_in(
        self, connection: aiosqlite.Connection, new: NewItem, joining: Joining
    ) -> Ticket:
        return self._provisional(await enqueue_on_aiosqlite(connection, new, joining), new)

    def _provisional(self, stored: Stored, new: NewItem) -> Ticket:
        nonce = None if stored.repeated else new.nonce
        return Ticket(stored.id, self._queue_name, new.key, nonce)

    def _more_to_do(self) -> None:
        """Note that there are items to claim, or results to look for."""
        self._watch.ring()

    def _guard(self, call: str) -> None:
        """Refuse calls that wait for the very batch that makes them."""

    # Results

    async def result(self, ticket: AnyTicket, timeout: float | None = None) -> R:
        """Wait for an item's end and return its result.

        Args:
            ticket: A ticket, or an item's id.
            timeout: Seconds to wait, at least 0; None for no limit.

        Raises:
            TimeoutError: If the item has not ended in time.
            UnknownTicket: If there is no such item, or no longer.

        And what ``submit`` raises once the item is stored. Cancellation stops the waiting only.
        """
        number = ticket_id(ticket)
        if timeout is not None:
            checks.number("timeout", timeout, minimum=0)
        loop = await self._open()
        self._guard("result")
        waiter = loop.create_waiter()
        # Known before the look, so that an end that comes between the two is not missed.
        self._waiters.add(number, waiter)
        try:
            with anyio.fail_after(timeout):
                found = await self._lookups.submit(number)
                if isinstance(ticket, Ticket) and ticket.nonce is not None:
                    self._check_nonce(ticket, found)
                self._waiters.tell(number, found)
                self._watch.ring()
                return await self._waiters.outcome(number, waiter)  # type: ignore[no-any-return]
        finally:
            self._waiters.leave(number, waiter)

    async def _look_up(self, numbers: list[int]) -> list[Found | None]:
        """Read many items at once: the handler of a Batcher."""
        rows = {found.ended.id: found for found in await self._store.find(numbers)}
        return [rows.get(number) for number in numbers]

    # Watching

    def _pause_before_look(self) -> float | None:
        """Return the seconds until the next look; None to wait for the alarm."""
        return self._poll_interval if self._waiters else None

    async def _look(self) -> None:
        """See whether anything has changed, and tell those who wait."""
        peek = await self._store.peek(self._watch.seen)
        if peek is not None:
            await self._tell_ended(list(self._waiters))
            self._watch.seen = peek.version

    async def _tell_ended(self, numbers: Sequence[int]) -> None:
        """Look whether items have ended elsewhere, and tell those who wait for them."""
        for start in range(0, len(numbers), GROUP_MAX):
            part = numbers[start : start + GROUP_MAX]
            rows = {found.ended.id: found for found in await self._store.find(part)}
            for number in part:
                self._waiters.tell(number, rows.get(number))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} at {str(self._path)!r} {self._state}>"
