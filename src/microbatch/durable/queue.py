"""DurableQueue: enqueue, wait for results, administer. What a process holds that has no handler."""

from __future__ import annotations

import secrets
import sqlite3
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, TypeVar, Unpack, overload
from weakref import WeakMethod

import aiosqlite
import anyio
import anyio.lowlevel

from microbatch._loops.on_asyncio import running_loop
from microbatch._pure import checks

from ._file.codec import Codec
from ._file.joining import Joining, enqueue_on, enqueue_on_aiosqlite
from ._file.limits import Limits
from ._file.place import resolve, storable_name
from ._file.records import Clash, NewItem
from ._file.schema import SYNCHRONOUS
from ._flow.intake import Submitted
from ._flow.many import enqueue_all
from ._flow.requests import check_order, new_item
from ._flow.service import Service, Work
from ._flow.verdicts import attempts_max
from ._life.opening import Opening
from ._life.seat import Seat
from .access import QueueAccess, openers, recipes, tellers
from .admin import WithAdmin
from .errors import IdempotencyConflict, UnknownTicket
from .jobs import WithJobs
from .records import Ticket, ticket_id

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType

    from microbatch._telemetry.settings import Telemetry

    from ._file.records import Stored
    from .records import AnyTicket

T = TypeVar("T")
R = TypeVar("R")


_NO_PRIORITY = 0  # compared by identity: False equals it, and is refused


class QueueSettings(TypedDict, total=False):
    """The settings that every queue has; ``DurableQueue`` says what each means."""

    queue: str
    enc_hook: Callable[[Any], Any] | None
    dec_hook: Callable[[type, Any], Any] | None
    max_depth: int
    max_file_bytes: int | None
    key_ttl: float
    result_ttl: float
    keep_dead: int | None
    keep_done: int | None
    job_ttl: float
    poll_interval: float
    synchronous: str
    name: str | None
    telemetry: Telemetry | Literal[False] | None


class DurableQueue(WithJobs[T, R], WithAdmin[T]):
    """A queue of items on disk, without a handler.

    A process holds it that only enqueues, waits for the results of workers elsewhere, or administers.
    ``DurableBatcher`` is the same with a handler. Both work from the first call on; ``async with`` or
    ``aclose()`` closes the file.

    Args:
        path: The SQLite file; created, readable by its owner only, if there is none. It may be the
            application's own.
        item_type: What items are: any type that msgspec can decode. Pydantic models, and any class with
            ``model_validate`` and ``model_dump``, are among them, also within others.
        result_type: The same for results; by default they are read back as built-in values.
        queue: The queue's name in the file.
        enc_hook: For classes that msgspec does not know: turns a value into one that it does, as msgspec's
            own ``enc_hook``; raises ``NotImplementedError`` for a class that is not its own. It is not
            asked about models.
        dec_hook: The way back, as msgspec's own: ``dec_hook(class, value)``; it raises the same for
            a class that is not its own.
        max_depth: Items not yet ended in this queue, at least 1; beyond, ``QueueFull``.
        max_file_bytes: Pages in use plus the write-ahead log; beyond, ``QueueFull`` for new items, while
            what is there can still be finished. None for no bound.
        key_ttl: Seconds for which a key is remembered, at least 0. A day, as is usual for them.
        result_ttl: Seconds for which done and cancelled items are kept, at least 0.
        keep_dead: Dead letters kept at most, the newest; None for all.
        keep_done: Done items kept at most, the newest; None for all within ``result_ttl``. Those
            whose key still counts stay, so that it gives their result.
        job_ttl: Seconds for which the row of an ended job is kept, at least 0: a week. Its outcomes are
            kept for ``result_ttl`` from its end.
        poll_interval: Seconds, more than 0: how soon a result or an item of another process is noticed.
        synchronous: ``"full"``: what is acknowledged survives a power cut. ``"extra"`` also syncs the
            directory; ``"normal"`` survives only the death of the process.
        name: For logs and telemetry; the queue's name by default.
        telemetry: As for ``Batcher``. What is stored carries the context of its ``send`` span, to which
            the batch that handles it is linked, in whatever process.

    Raises:
        TypeError: If a setting has the wrong type, or ``item_type`` or ``result_type`` cannot be read back:
            msgspec does not take it, or it holds a class that neither is a model nor has a ``dec_hook``.
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
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[type, Any], Any] | None = None,
        max_depth: int = 1_000_000,
        max_file_bytes: int | None = None,
        key_ttl: float = 86_400.0,
        result_ttl: float = 86_400.0,
        keep_dead: int | None = None,
        keep_done: int | None = None,
        job_ttl: float = 604_800.0,
        poll_interval: float = 0.05,
        synchronous: str = "full",
        name: str | None = None,
        telemetry: Telemetry | Literal[False] | None = None,
    ) -> None:
        self._make(
            path,
            item_type,
            result_type,
            queue=queue,
            hooks=(enc_hook, dec_hook),
            limits=Limits(
                max_depth=max_depth,
                max_file_bytes=max_file_bytes,
                key_ttl=key_ttl,
                result_ttl=result_ttl,
                keep_dead=keep_dead,
                keep_done=keep_done,
                job_ttl=job_ttl,
            ),
            poll_interval=poll_interval,
            synchronous=synchronous,
            name=name,
            telemetry=telemetry,
            work=None,
        )

    def _make(
        self,
        path: str | os.PathLike[str],
        item_type: Any,
        result_type: Any,
        *,
        queue: str,
        hooks: tuple[Callable[[Any], Any] | None, Callable[[type, Any], Any] | None],
        limits: Limits,
        poll_interval: float,
        synchronous: str,
        name: str | None,
        telemetry: Telemetry | Literal[False] | None,
        work: Work | None,
    ) -> None:
        """Check what a queue is made of, and wire it."""
        storable_name("queue", queue)
        self._name: str = storable_name("name", queue if name is None else name)
        if synchronous not in tuple(SYNCHRONOUS):
            message = f"synchronous must be 'full', 'extra' or 'normal', got {synchronous!r}"
            raise ValueError(message)
        # Resolved now: the working directory, and what a link leads to, may change before the first call.
        self._path = resolve(path)
        self._queue_name = queue
        for setting, hook in zip(("enc_hook", "dec_hook"), hooks, strict=True):
            checks.function(setting, hook)
        self._items: Codec[T] = Codec(item_type, "item_type", *hooks)
        results: Codec[R] = Codec(
            Any if result_type is None else result_type, "result_type", *hooks
        )
        self._limits = limits
        recipes[self] = {
            "path": self._path,
            "item_type": item_type,
            "result_type": result_type,
            "queue": queue,
            "enc_hook": hooks[0],
            "dec_hook": hooks[1],
            "max_depth": limits.max_depth,
            "max_file_bytes": limits.max_file_bytes,
            "key_ttl": limits.key_ttl,
            "result_ttl": limits.result_ttl,
            "keep_dead": limits.keep_dead,
            "keep_done": limits.keep_done,
            "job_ttl": limits.job_ttl,
            "poll_interval": poll_interval,
            "synchronous": synchronous,
            "name": self._name,
            "telemetry": telemetry,
        }
        if work is not None and work.on_job_end is not None:
            tellers.add(self)
        self._synchronous = synchronous
        self._access = QueueAccess(queue, self._items, results, limits, self._opened)
        openers[self] = WeakMethod(self._opened)
        interval = checks.number("poll_interval", poll_interval, above=0)
        self._service = Service(
            title=self._name,
            queue=queue,
            path=self._path,
            store=Seat(
                self._path,
                queue,
                limits=limits,
                poll_interval=interval,
                synchronous=synchronous,
                attempts_max=None if work is None else attempts_max(work.retry),
                max_wait=0.0 if work is None else work.max_wait,
                tells=work is not None and work.on_job_end is not None,
            ),
            items=self._items,
            results=results,
            limits=limits,
            poll_interval=interval,
            telemetry=telemetry,
            work=work,
        )
        self._opening = Opening(self._name, self._service)
        self._service.spawn = self._opening.spawn
        self._service.status_of = self._access.status_of

    @property
    def name(self) -> str:
        """Return the queue's name for logs and telemetry."""
        return self._name

    # Opening and closing

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            QueueUnavailable: If the file cannot be used; a narrower class where the reason is known.
            BatcherClosed: If the queue was closed before.
            RuntimeError: Under trio, in a forked child, or if it serves another event loop.
        """
        await self._opening.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; at once when the block is left by an exception or a cancellation."""
        await (self.aclose() if exc_type is None else self.aclose(0))

    async def aclose(self, drain_timeout: float | None = 30.0) -> None:
        """Stop taking items, let what is being written reach the disk, and close the file.

        Who still waits for a result gets ``BatcherClosed``; the items stay. May be called more than
        once. Cancelling it closes at once.

        Args:
            drain_timeout: Seconds to wait for the disk, at least 0; None for no limit.

        Raises:
            WouldDeadlock: Inside ``on_settle`` of a queue in this file.
        """
        self._service.guard("aclose", handled=False)
        await self._opening.close(drain_timeout)

    def _open_here(self, call: str, *, handled: bool = False) -> Service | None:
        """Return the parts if they are open in this event loop: `_opened` without a coroutine for each item.

        Raises:
            WouldDeadlock: As there.
        """
        native = self._opening.native
        if native is None or running_loop() is not native:
            return None
        service = self._service
        service.guard(call, handled=handled)
        return service

    async def _opened(self, call: str, *, handled: bool = False) -> Service:
        """Return the parts, open, for a call that waits for the file, or until something is ``handled``.

        Raises:
            WouldDeadlock: If that waits for this very call.
        """
        opening = self._opening
        if opening.native is None or running_loop() is not opening.native:
            await opening.open()
        service = self._service
        service.guard(call, handled=handled)
        return service

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
        service = self._open_here("submit", handled=True) or await self._opened(
            "submit", handled=True
        )
        intake = service.intake
        if intake.crowded:
            await intake.room()
        if key is None and priority is _NO_PRIORITY and delay == 0:
            payload, value = self._items.encode(item)
            new = None
        else:
            new, value = new_item(self._items, item, key, priority, delay)
        submitted = Submitted(service.create_waiter())
        try:
            if service.observer is not None and service.tracing:
                with service.sending() as trace:
                    intake.bring(new or NewItem(payload), value, submitted, trace)
                    await submitted.stored(service.create_waiter())
            elif new is not None:
                intake.bring(new, value, submitted, None)
            else:
                intake.append(payload, value, submitted)
            return await submitted.waiter  # type: ignore[no-any-return]
        except BaseException:
            service.callers.leave(submitted.number, submitted.waiter)
            raise

    async def enqueue(
        self, item: T, *, key: str | None = None, priority: int = 0, delay: float = 0
    ) -> Ticket:
        """Store an item and return its ticket once it is on the disk.

        Takes and raises what ``submit`` does up to there. Cancellation before it returns leaves open
        whether the item was stored: use ``key``.
        """
        service = self._open_here("enqueue") or await self._opened("enqueue")
        intake = service.intake
        if intake.crowded:
            await intake.room()
        if key is None and priority is _NO_PRIORITY and delay == 0:
            payload, value = self._items.encode(item)
            new = None
        else:
            new, value = new_item(self._items, item, key, priority, delay)
        waiter = service.create_waiter()
        if service.tracing:
            with service.sending() as trace:
                intake.bring(new or NewItem(payload), value, waiter, trace)
                stored = await waiter
        elif new is None:
            intake.append(payload, value, waiter)
            return await waiter  # type: ignore[no-any-return]
        else:
            intake.bring(new, value, waiter, None)
            stored = await waiter
        return stored if isinstance(stored, Ticket) else stored[0]

    async def enqueue_many(
        self, items: Iterable[T], *, priority: int = 0, delay: float = 0
    ) -> list[Ticket]:
        """Store many items in one transaction, all or none, and return their tickets in order.

        Takes and raises what ``enqueue`` does.
        """
        checks.source("items", items)
        service = await self._opened("enqueue_many")
        check_order(priority, delay)
        return await enqueue_all(
            service, self._items, self._queue_name, items, priority=priority, delay=delay
        )

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
        observer = self._service.observer
        if observer is not None:
            with observer.sending(lambda: 1, self._service.now()) as trace:
                new = new._replace(trace=trace)
        joining = Joining(
            path=self._path,
            queue=self._queue_name,
            synchronous=self._synchronous,
            limits=self._limits,
            now=self._service.now(),
            # The id of an item that is rolled back is given again: this tells the two apart.
            ticket=secrets.randbits(62),
        )
        if isinstance(connection, sqlite3.Connection):
            return self._provisional(enqueue_on(connection, new, joining), new)
        if isinstance(connection, aiosqlite.Connection):
            return self._enqueue_in(connection, new, joining)
        message = f"connection must be an sqlite3 or aiosqlite connection, got {type(connection).__name__}"
        raise TypeError(message)

    async def _enqueue_in(
        self, connection: aiosqlite.Connection, new: NewItem, joining: Joining
    ) -> Ticket:
        return self._provisional(await enqueue_on_aiosqlite(connection, new, joining), new)

    def _provisional(self, stored: Stored | Clash, new: NewItem) -> Ticket:
        if isinstance(stored, Clash) and not self._items.same(new.payload, stored.payload):
            raise IdempotencyConflict(stored.key, stored.id)
        return Ticket(stored.id, self._queue_name, new.key, stored.ticket)

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
        service = await self._opened("result", handled=True)
        waiter = service.create_waiter()
        # Known before the look, so that an end that comes between the two is not missed.
        service.callers.add(number, waiter)
        try:
            # With 0 a look is all there is, and it takes what it takes.
            with anyio.move_on_after(timeout or None) as waiting:
                found = await service.lookups.submit(number)
                if found is None or not _is_its(ticket, found.ticket):
                    raise UnknownTicket(number, self._queue_name)
                service.callers.tell(number, found)
                if timeout == 0:
                    waiting.cancel()
                return await waiter  # type: ignore[no-any-return]
            message = f"item {number} has not ended within {timeout:g} s"
            raise TimeoutError(message)
        finally:
            service.callers.leave(number, waiter)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self._name!r} at {str(self._path)!r} {self._opening.state}>"
        )


def _is_its(ticket: AnyTicket, number: int | None) -> bool:
    """Tell whether a ticket is that of the item with this number; a bare id is that of whoever has it now."""
    return not isinstance(ticket, Ticket) or ticket.nonce == number
