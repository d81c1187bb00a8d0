"""What somebody sees who looks into a queue that is open here: the reading half of a page. Nothing is changed.

Everything is shown as built-in values, whatever the queue's own types are.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ._file import listing, recent
from ._file.codec import decode_error, decode_roughly
from ._file.job_records import JobRow
from ._file.listing import ID_END, READ_AT_ONCE, STATE_NAMES, StoredItem
from ._life.alive import Presence
from ._life.looks import look_at, seats
from .access import openers, recipes
from .errors import ResultsExpired, UnknownJob, UnknownTicket
from .job import ALL_STATES, STATES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Generator, Sequence
    from pathlib import Path

    from ._file.job_records import JobItem
    from ._file.records import Range, Step
    from ._file.session import Session
    from ._flow.service import Service
    from ._life.looks import ConsumerLook
    from .errors import ItemFailed
    from .queue import DurableQueue

__all__ = ["ID_END", "STATE_NAMES", "Insight", "StoredItem"]

#: Seconds of a slot of the rate; they lie on whole ones of the clock, so that a plot does not flicker.
RATE_SLOT = 10.0

#: Slots that are read: ten minutes.
RATE_SLOTS = 60

#: Seconds for which a rate that was read holds.
RATE_KEPT = 2.0


class SeenOutcome(NamedTuple):
    """What became of a job's item.

    Attributes:
        place: Its position in the source.
        number: Its id in the file.
        id: The client's id; None without one.
        kind: ``"succeeded"``, ``"failed"``, ``"skipped"``, ``"cancelled"`` or ``"expired"``.
        attempts: Handler calls that it was part of.
        value: Its result as built-in values.
        error: Its last error; None without one.
    """

    place: int
    number: int
    id: str | None
    kind: str
    attempts: int
    value: Any
    error: ItemFailed | None


class Rate(NamedTuple):
    """How many items ended of late.

    Attributes:
        well: How many ended well, in each slot of time, the oldest first.
        dead: How many became dead letters.
        slot: Seconds in each.
        per_second: Items per second over the last whole minute, dead letters included.
    """

    well: Sequence[float]
    dead: Sequence[float]
    slot: float
    per_second: float


class Insight:
    """Looks into a queue, through the queue's own connection; it opens it if need be.

    Every call may raise ``QueueUnavailable`` or ``BatcherClosed``.

    Args:
        queue: The queue.

    Attributes:
        queue: The same.
        name: Its name in the file.
        path: The file.
    """

    def __init__(self, queue: DurableQueue[Any, Any]) -> None:
        self.queue = queue
        self.name: str = recipes[queue]["queue"]
        self.path: Path = recipes[queue]["path"]
        self._eyes = Presence(self.path)
        self._rate: tuple[float, Rate] | None = None

    async def _opened(self, call: str) -> Service:
        opened = openers[self.queue]()
        assert opened is not None  # noqa: S101 - its queue is held
        return await opened(call)  # type: ignore[no-any-return]

    async def _look(self, steps: Callable[[Session, int], Generator[Step, Any, Any]]) -> Any:
        service = await self._opened("look")
        return await service.store.look(steps)

    async def consumers(self) -> list[ConsumerLook]:
        """Return who has a seat at the queue, living or dead."""
        return [look_at(self._eyes, *seat) for seat in await self._look(seats)]

    async def rate(self) -> Rate:
        """Return how many items ended in the last ten minutes; read at most every two seconds."""
        now = time.time()
        if self._rate is not None and abs(now - self._rate[0]) < RATE_KEPT:
            return self._rate[1]
        start = (now // RATE_SLOT + 1 - RATE_SLOTS) * RATE_SLOT
        well, dead = await self._look(
            lambda _, queue: recent.ended_lately(queue, start, RATE_SLOT, RATE_SLOTS)
        )
        lately = sum(well[-7:-1]) + sum(dead[-7:-1])  # six whole slots: the last one is not over
        rate = Rate(well, dead, RATE_SLOT, lately / (6 * RATE_SLOT))
        self._rate = now, rate
        return rate

    # Items

    async def items(self, states: Collection[str], before: int, limit: int) -> list[StoredItem]:
        """Return items in some states with smaller ids, the newest first.

        There may be fewer than asked for although there are more, where they are large; none at the end.
        """
        wanted = [STATE_NAMES[state] for state in states]

        def steps(_: Session, queue: int) -> Generator[Step, Any, Any]:
            found = yield from recent.ranges_before(queue, wanted, before, limit)
            return (yield from listing.items_of(_one_by_one(found)))

        return list(await self._look(steps))

    async def item(self, number: int) -> StoredItem:
        """Return an item, with its result and its job.

        Raises:
            UnknownTicket: If there is none with this id.
        """
        found: StoredItem | None = await self._look(lambda _, queue: listing.item_at(queue, number))
        if found is None:
            raise UnknownTicket(number, self.name)
        return found

    async def item_of_key(self, key: str) -> int | None:
        """Return the id of the item that a key stands for; None if it stands for none."""
        return await self._look(lambda _, queue: recent.item_of_key(queue, key))  # type: ignore[no-any-return]

    async def ids(self, state: str) -> AsyncIterator[range]:
        """Yield the ids of those items in a state that are no job's, as runs, the newest first."""
        before = ID_END
        while found := await self._ranges_before(STATE_NAMES[state], before):
            for one in found:
                if one.job is None:
                    yield range(one.first, one.first + one.count)
            before = found[-1].first

    async def _ranges_before(self, state: int, before: int) -> list[Range]:
        return await self._look(  # type: ignore[no-any-return]
            lambda _, queue: recent.ranges_before(queue, [state], before, READ_AT_ONCE)
        )

    # Jobs

    async def outcomes(
        self, uid: str, kind: str | None, after: int = -1, limit: int | None = None
    ) -> tuple[list[SeenOutcome], int | None]:
        """Return some outcomes of a job by their index, and the index after which the next ones come.

        As long as they are kept, whatever this queue's own ``result_ttl`` is.

        Raises:
            ResultsExpired: If they are no longer kept.
            UnknownJob: If there is no such job.
        """
        service = await self._opened("outcomes")
        states = ALL_STATES if kind is None else STATES[kind]
        page = await service.store.jobs.page(
            uid,
            None,
            states,
            after=after,
            limit=limit or READ_AT_ONCE,
            usable=lambda row: bool(row.kept),
        )
        if page is None:
            raise UnknownJob(uid, self.name)
        if isinstance(page, JobRow):
            raise ResultsExpired(uid, self.name)
        return [_seen_outcome(item) for item in page.items], page.after


_KINDS = {state: kind for kind, states in STATES.items() for state in states}


def _seen_outcome(item: JobItem) -> SeenOutcome:
    return SeenOutcome(
        item.position,
        item.number,
        item.id,
        _KINDS[item.state],
        item.attempts,
        None if item.result is None else decode_roughly(item.result),
        None if item.error is None else decode_error(item.error, item.number, item.attempts),
    )


def _one_by_one(found: Collection[Range]) -> list[Range]:
    """Return ranges of one item each, the newest first."""
    return [
        one._replace(first=number, count=1)
        for one in found
        for number in range(one.first + one.count - 1, one.first - 1, -1)
    ]
