"""What callers bring: gathered for one turn of the event loop, then left with the writer of the file."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import BatcherClosed
from microbatch._telemetry.kinds import kind_of
from microbatch.durable._file.records import Clash, Stored
from microbatch.durable.errors import IdempotencyConflict, QueueFull
from microbatch.durable.records import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._loops.protocol import Loop
    from microbatch._telemetry.observer import Observer
    from microbatch.durable._file.codec import Codec
    from microbatch.durable._file.limits import Limits
    from microbatch.durable._file.records import NewItem
    from microbatch.durable._file.store import Store

    from .callers import Callers

#: Items and bytes that are handed on at once: as many as one transaction takes.
HANDED_ITEMS = 10_000
HANDED_BYTES = 8 << 20


class Submitted:
    """Somebody who waits for an item's result, not only for its being stored.

    Attributes:
        waiter: Gets the result.
        number: The item's id, once it is stored; 0 before.
    """

    __slots__ = ("_stored", "number", "waiter")

    def __init__(self, waiter: Any) -> None:
        self.waiter = waiter
        self.number = 0
        self._stored: Any = None

    def store(self, number: int) -> None:
        """Note that the item is on the disk."""
        self.number = number
        if self._stored is not None and not self._stored.done():
            self._stored.set_result(None)

    async def stored(self, waiter: Any) -> None:
        """Wait until the item is on the disk.

        Raises:
            Exception: What it was refused with.
        """
        self._stored = waiter
        self.waiter.add_done_callback(lambda _: waiter.done() or waiter.set_result(None))
        await waiter
        if not self.number:
            await self.waiter  # it raises why


class Intake:
    """Brings new items to the disk.

    Args:
        name: The queue's name in the file.
        loop: The event loop.
        store: Where to.
        limits: How much the queue may hold, for errors.
        items: How items read back.
        callers: Who waits for results.
        observer: Counts what was refused.
        title: The queue's name for people.

    Attributes:
        crowded: Whether so much is under way that who comes now waits for `room`.
    """

    def __init__(
        self,
        name: str,
        loop: Loop,
        *,
        store: Store,
        limits: Limits,
        items: Codec[Any],
        callers: Callers,
        observer: Observer | None,
        title: str,
    ) -> None:
        self._name = name
        self._loop = loop
        self._store = store
        self._limits = limits
        self._items = items
        self._callers = callers
        self._observer = observer
        self._title = title
        self._payloads: list[bytes] = []
        self._values: list[Any] = []
        self._waiters: list[Any] = []
        self._traces: list[bytes | None] | None = None
        self._groups: list[list[NewItem]] = []
        self._group_items = 0
        self._group_waiters: list[Any] = []
        self._size = 0
        self._scheduled = False
        self._under_way: dict[int, list[Any]] = {}  # who waits for what the store has, by identity
        self._standing: deque[Any] = deque()  # who waits for room in the inbox
        self.crowded = False
        self._quiet: Any = None
        self._closed = False

    # In

    def check_open(self) -> None:
        """Refuse what comes in many turns, once it is closed.

        Raises:
            BatcherClosed: If it is.
        """
        if self._closed:
            raise BatcherClosed(self._title)

    async def room(self) -> None:
        """Wait until the writer has got on: first come, first served. To be called where it is ``crowded``.

        Raises:
            BatcherClosed: If it is closed.
        """
        self.check_open()
        waiter = self._loop.create_waiter()
        self._standing.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter in self._standing:
                self._standing.remove(waiter)
            else:
                self._let_in()  # it was our turn
            raise
        # Only now it encodes what it brings: nothing is kept in memory for who waits but his item. Whoever
        # stands behind it comes next, if there is room still.
        assert self._loop.native is not None  # noqa: S101 - asyncio
        self._loop.native.call_soon(self._let_in)

    def _let_in(self) -> None:
        while self._standing and not (self._store.is_full() and self._under_way):
            waiter = self._standing.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.crowded = bool(self._standing)

    def bring(self, new: NewItem, value: Any, waiter: Any, trace: bytes | None) -> None:
        """Take an item that is perhaps not of the usual kind; see `append` and `enqueue`.

        Raises:
            BatcherClosed: If the queue is closed.
        """
        if new.key is None and not new.priority and not new.delay:
            self.append(new.payload, value, waiter, trace)
        else:
            self.enqueue([new._replace(trace=trace)], len(new.payload), waiter)

    def append(self, payload: bytes, value: Any, waiter: Any, trace: bytes | None = None) -> None:
        """Take an item that has nothing but a payload.

        ``waiter`` gets its ticket; a `Submitted` one waits for its result instead.

        Raises:
            BatcherClosed: If the queue is closed.
        """
        if self._closed:
            raise BatcherClosed(self._title)
        if self._groups:
            self._hand_on()  # in the order in which they came
        self._payloads.append(payload)
        self._values.append(value)
        self._waiters.append(waiter)
        if trace is not None or self._traces is not None:
            if self._traces is None:
                self._traces = [None] * (len(self._payloads) - 1)
            self._traces.append(trace)
        self._size += len(payload)
        if not self._scheduled:
            self._schedule()
        elif self._size >= HANDED_BYTES or len(self._payloads) >= HANDED_ITEMS:
            self._hand_on()

    def enqueue(self, items: list[NewItem], size: int, waiter: Any) -> None:
        """Take items of so many bytes that are stored together or not at all.

        ``waiter`` gets their tickets in a list; a `Submitted` one waits for the one item's result instead.

        Raises:
            BatcherClosed: If the queue is closed.
        """
        if self._closed:
            raise BatcherClosed(self._title)
        if self._payloads:
            self._hand_on()
        self._groups.append(items)
        self._group_items += len(items)
        self._group_waiters.append(waiter)
        self._size += size
        if not self._scheduled:
            self._schedule()
        elif self._size >= HANDED_BYTES or self._group_items >= HANDED_ITEMS:
            self._hand_on()

    def _schedule(self) -> None:
        self._scheduled = True
        assert self._loop.native is not None  # noqa: S101 - asyncio
        self._loop.native.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._scheduled = False
        self._hand_on()

    # On

    def _hand_on(self) -> None:
        """Leave with the writer what has come together."""
        size, self._size = self._size, 0
        crowded = False
        observer = self._observer
        if observer is not None and (now := time.time()) >= observer.observe_at:
            observer.observe(None, now)  # for the next ones: once a turn is often enough
        if self._payloads:
            waiters, self._waiters = self._waiters, []
            payloads, self._payloads = self._payloads, []
            values, self._values = self._values, []
            traces, self._traces = self._traces, None
            self._under_way[id(waiters)] = waiters
            crowded = self._store.append(
                payloads,
                values,
                traces,
                size,
                told=lambda answer: self._appended(waiters, answer),
                failed=lambda error: self._failed(waiters, error),
            )
        if self._groups:
            groups, self._groups, self._group_items = self._groups, [], 0
            group_waiters, self._group_waiters = self._group_waiters, []
            self._under_way[id(group_waiters)] = group_waiters
            crowded = self._store.enqueue(
                groups,
                size,
                lambda answers: self._enqueued(groups, group_waiters, answers),
                lambda error: self._failed(group_waiters, error),
            )
        self.crowded = self.crowded or crowded

    def _appended(self, waiters: list[Any], answer: tuple[int, int, str, int | None]) -> None:
        first, accepted, limit, ticket = answer
        name, callers = self._name, self._callers
        for number, waiter in enumerate(waiters[:accepted], first):
            if type(waiter) is Submitted:
                waiter.store(number)
                callers.add(number, waiter.waiter)
            elif not waiter.done():
                waiter.set_result(Ticket(number, name, None, ticket))
        if accepted < len(waiters):
            allowed = getattr(self._limits, limit)
            for waiter in waiters[accepted:]:
                self._refuse(waiter, QueueFull(name, limit, allowed))
        self._arrived(waiters)

    def _enqueued(
        self,
        groups: list[list[NewItem]],
        waiters: list[Any],
        answers: list[list[Stored] | QueueFull | Clash],
    ) -> None:
        for items, waiter, answer in zip(groups, waiters, answers, strict=True):
            outcome = self._resolved(items, answer) if isinstance(answer, Clash) else answer
            if isinstance(outcome, Exception):
                self._refuse(waiter, outcome, len(items))
            elif type(waiter) is Submitted:
                waiter.store(outcome[0].id)
                self._callers.add(outcome[0].id, waiter.waiter)
                if outcome[0].repeated:
                    self._callers.look_up([outcome[0].id])  # it may have ended long ago
            elif not waiter.done():
                waiter.set_result(
                    [
                        Ticket(stored.id, self._name, item.key, stored.ticket)
                        for stored, item in zip(outcome, items, strict=True)
                    ]
                )
        self._arrived(waiters)

    def _resolved(self, items: list[NewItem], clash: Clash) -> list[Stored] | Exception:
        """Decide whether two payloads under one key mean the same."""
        mine = next(item for item in items if item.key == clash.key)
        if self._items.same(mine.payload, clash.payload):
            return [Stored(clash.id, clash.ticket, repeated=True)]
        return IdempotencyConflict(clash.key, clash.id)

    def _refuse(self, waiter: Any, error: Exception, items: int = 1) -> None:
        observer = self._observer
        if observer is not None and observer.measuring:
            observer.settled(0, 0, {kind_of(error): items}, None)
        if type(waiter) is Submitted:
            waiter = waiter.waiter
        if not waiter.done():
            waiter.set_exception(error)

    def _failed(self, waiters: list[Any], error: Exception) -> None:
        _fail(waiters, lambda: error)
        self._arrived(waiters)

    def _arrived(self, waiters: list[Any]) -> None:
        del self._under_way[id(waiters)]
        if self.crowded:
            self._let_in()
        if not self._under_way and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    # Closing

    def close(self) -> None:
        """Take nothing more; what has come goes its way."""
        self._closed = True
        self._hand_on()
        while self._standing:
            waiter = self._standing.popleft()
            if not waiter.done():
                waiter.set_exception(BatcherClosed(self._title))

    def give_up(self) -> None:
        """Let nobody wait any more for what has not been stored yet; it may be, all the same."""
        for waiters in self._under_way.values():
            _fail(waiters, lambda: BatcherClosed(self._title, started=True))

    async def drained(self) -> None:
        """Wait until all that came is on the disk, or was refused."""
        while self._under_way:
            self._quiet = self._loop.create_waiter()
            await self._quiet


def _fail(waiters: list[Any], make_error: Callable[[], Exception]) -> None:
    for waiter in waiters:
        future = waiter.waiter if type(waiter) is Submitted else waiter
        if not future.done():
            future.set_exception(make_error())
