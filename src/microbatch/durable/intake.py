"""What callers bring: checked one by one, stored together in one transaction for all of them."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from microbatch._core.batcher import Batcher
from microbatch._pure import checks
from microbatch._pure.exceptions import BatcherFull

from .codec import fingerprint
from .errors import QueueFull
from .records import NewItem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microbatch._telemetry.observer import Observer

    from .clock import Clock
    from .codec import Codec
    from .counting import Counting
    from .file_store import Store
    from .hands import Hands
    from .limits import Limits
    from .records import Take
    from .waiters import Waiters
    from .watching import Watch

T = TypeVar("T")

#: Items in one enqueueing transaction at most, unless a single `enqueue_many` brings more. From 1000 rows on
#: a transaction gets no cheaper per row, and this many take about 20 ms, for which the others wait.
GROUP_MAX = 1_000

#: Callers of enqueue and submit who may wait for the disk; more of them wait for room.
PENDING_MAX = 10_000

_INTEGER_MAX = 2**63 - 1
_NO_PRIORITY = 0  # compared by identity: False equals it, and is refused
_KEY_CHARACTERS_MAX = 1_000


class Request:
    """What one call wants stored: its items, and who waits for their results."""

    __slots__ = ("items", "values", "waiter")

    def __init__(self, items: list[NewItem], values: list[Any], waiter: Any = None) -> None:
        self.items: list[NewItem] = items
        self.values: list[Any] = values
        self.waiter: Any = waiter


class Plain(NamedTuple):
    """The usual request: one item with neither key nor priority nor delay."""

    payload: bytes
    value: Any
    waiter: Any = None


def request_of(
    items: Codec[Any], item: Any, key: str | None, priority: int, delay: float
) -> Plain | Request:
    """Return the request for one item, in the cheapest form that holds it."""
    if key is None and priority is _NO_PRIORITY and delay == 0:
        return Plain(*items.encode(item))
    new, value = new_item(items, item, key, priority, delay)
    return Request([new], [value])


def new_item(
    items: Codec[T], item: Any, key: str | None, priority: int, delay: float
) -> tuple[NewItem, T]:
    """Return an item for the disk, and its value as it will be read back.

    Raises:
        TypeError: If it cannot be encoded, or an argument has the wrong type.
        ValueError: If it does not fit its type, or an argument its range.
    """
    payload, value = items.encode(item)
    if key is None and priority is _NO_PRIORITY and delay == 0:
        return NewItem(payload), value
    if isinstance(priority, bool) or not isinstance(priority, int):
        message = f"priority must be an int, got {priority!r}"
        raise TypeError(message)
    if not -_INTEGER_MAX <= priority <= _INTEGER_MAX:
        message = f"priority must fit into 64 bits, got {priority}"
        raise ValueError(message)
    checks.number("delay", delay, minimum=0)
    mark = None
    if key is not None:
        if not isinstance(key, str):
            message = f"key must be a str or None, got {key!r}"
            raise TypeError(message)
        if not 1 <= len(key) <= _KEY_CHARACTERS_MAX or not key.isprintable():
            message = f"key must be 1 to {_KEY_CHARACTERS_MAX} printable characters, got {key!r}"
            raise ValueError(message)
        mark = fingerprint(payload)
    return NewItem(payload, key, mark, priority, float(delay)), value


def _whole(request: Plain | Request) -> Request:
    if isinstance(request, Request):
        return request
    return Request([NewItem(request.payload)], [request.value], request.waiter)


class Intake:
    """Stores what many callers bring at the same time, a group of them in one transaction.

    Args:
        name: The queue's name for logs and telemetry.
        queue: The queue's name in the file.
        store: Where to.
        limits: How much the queue may hold.
        waiters: Who waits for the items' results.
        hands: Whose handler may keep items as they are stored; None if there is no handler.
        more_to_do: Called when items were stored that nobody has kept.
        watch: Looks for results that are there already.
        counting: Counts what was not stored.
        observer: What tells whether somebody listens; None if nobody is to be told anything.
        clock: The queue's clock.
    """

    def __init__(
        self,
        *,
        name: str,
        queue: str,
        store: Store,
        limits: Limits,
        waiters: Waiters,
        hands: Hands | None,
        more_to_do: Callable[[], None],
        watch: Watch,
        counting: Counting,
        observer: Observer | None,
        clock: Clock,
    ) -> None:
        self._queue_name = queue
        self._store = store
        self._limits = limits
        self._waiters = waiters
        self._hands = hands
        self._more_to_do = more_to_do
        self._watch = watch
        self._counting = counting
        self._observer = observer
        self._clock = clock
        self._groups: Batcher[Any, Any] = Batcher(
            self._store_group,
            max_batch_size=GROUP_MAX,
            max_pending=PENDING_MAX,
            name=name,
            telemetry=False,
        )

    async def aclose(self, drain_timeout: float | None) -> None:
        """Let what is under way reach the disk."""
        await self._groups.aclose(drain_timeout)

    def hand_in(self, request: Plain | Request) -> Awaitable[Any]:
        """Put a request into the next transaction; await what comes of it.

        That is the item's id if the request is ``Plain``, else a list of ``Stored``.
        """
        observer = self._observer
        if observer is not None and observer.tracing:
            return self._send(request, observer)
        return self._hand_on(request)

    async def _send(self, request: Plain | Request, observer: Observer) -> Any:
        """Hand in a request within a span of its own, whose context goes to the disk."""
        whole = _whole(request)
        with observer.sending(len(whole.items), self._clock.now()) as trace:
            whole.items = [new._replace(trace=trace) for new in whole.items]
            stored = await self._hand_on(whole)
        return stored if whole is request else stored[0].id

    def _hand_on(self, request: Plain | Request) -> Awaitable[Any]:
        try:
            return self._groups.submit_nowait(request)
        except BatcherFull:
            return self._groups.submit(request)  # waits for room

    async def _store_group(self, requests: list[Any]) -> list[Any]:
        """Store what many callers brought: a Batcher's handler."""
        self._counting.see()  # for the next ones: once a group is often enough
        hands = self._hands
        take = None if hands is None else hands.take()
        try:
            if all(type(request) is Plain for request in requests):
                # If one of them is odd, the longer way finds out which.
                with contextlib.suppress(sqlite3.Error):
                    return await self._append(requests, take)
            return await self._enqueue(requests, take)
        finally:
            if hands is not None and take is not None:
                hands.took(take)

    async def _append(self, requests: list[Plain], take: Take | None) -> list[Any]:
        done = await self._store.append([request.payload for request in requests], take)
        first, accepted, taken, limit = done
        hands = self._hands
        for number, (payload, value, waiter) in enumerate(requests[:accepted], first):
            if waiter is not None:
                self._waiters.add(number, waiter)
            if hands is not None and take is not None and number < first + taken:
                hands.begin(take, number, NewItem(payload), value)
        if accepted > taken:
            self._more_to_do()
        answers: list[Any] = list(range(first, first + accepted))
        if accepted < len(requests):
            allowed = getattr(self._limits, limit)
            refused = [
                QueueFull(self._queue_name, limit, allowed) for _ in range(len(requests) - accepted)
            ]
            self._counting.refused(refused[0], len(refused))
            answers += refused
        return answers

    async def _enqueue(self, requests: list[Plain | Request], take: Take | None) -> list[Any]:
        hands = self._hands
        wholes = [_whole(request) for request in requests]
        answers = await self._store.enqueue([whole.items for whole in wholes], take)
        ready = False
        for whole, answer in zip(wholes, answers, strict=True):
            if isinstance(answer, Exception):
                self._counting.refused(answer, len(whole.items))
                continue
            if whole.waiter is not None:
                self._waiters.add(answer[0].id, whole.waiter)
                if answer[0].repeated:
                    self._watch.look_anew()  # it may have ended long ago
            for stored, item, value in zip(answer, whole.items, whole.values, strict=True):
                if hands is None:
                    ready = True
                elif take is not None and stored.taken:
                    hands.begin(take, stored.id, item, value)
                elif item.delay > 0 and not stored.repeated:
                    hands.due_in(item.delay)
                else:
                    ready = True
        if ready:
            self._more_to_do()
        return [
            answer[0].id if isinstance(request, Plain) and isinstance(answer, list) else answer
            for request, answer in zip(requests, answers, strict=True)
        ]
