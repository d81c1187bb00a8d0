"""What one transaction knows: its queues' rows, read once and written once, and the ids that it may give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from microbatch.durable.errors import QueueUnavailable

from . import sql
from .job_records import JobNews
from .ranges import CLAIMED, DEAD, DONE, READY, SCHEDULED, SKIPPED, STAGED, change
from .records import Queue, State

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    from .ranges import Change
    from .records import Range, Step

    #: Where a range stands among the ready ones of its lane: those with smaller ones go first.
    Place = tuple[int, float, int]

STATES = len(State)

#: Ids reserved at once: a page less for each transaction but one in thousands.
RESERVED = 10_000

#: A range whose clock stood so many seconds after ours was written in a wrong future.
CLOCK_TOLERANCE = 1.0


class Ids:
    """Ids that this process may give to new items, and how far upkeep has come.

    What a transaction took counts once `commit` says that it is on the disk.
    """

    def __init__(self, held: set[int] | None = None) -> None:
        self._committed = (1, 0)
        self._next, self._last = self._committed
        #: Jobs that this process does not claim from yet.
        self.held: set[int] = set() if held is None else held
        #: By queue: up to where upkeep has looked through what ended (`keeping.tidy`).
        self.tidied: dict[int, int] = {}

    def take(self, count: int) -> int | None:
        """Return the first of so many ids; None if there are not so many left."""
        if self._last - self._next + 1 < count:
            return None
        first = self._next
        self._next += count
        return first

    def reserve(self, last: int, count: int) -> None:
        """Have so many more ids, up to this one."""
        if self._last != last - count:
            self._next = last - count + 1
        self._last = last

    def commit(self) -> None:
        """Keep what the transaction has reserved and taken."""
        self._committed = (self._next, self._last)

    def mark(self) -> tuple[int, int]:
        """Return where this stands, for `rollback`."""
        return self._next, self._last

    def rollback(self, mark: tuple[int, int] | None = None) -> None:
        """Give back what has been reserved and taken since a mark, or in the whole transaction."""
        self._next, self._last = mark or self._committed


class Row:
    """A queue's row in one transaction, as it will be written, and the head of its lane 0.

    Attributes:
        id: The queue's number.
        paused: Whether nothing may be claimed.
        counts: Its items by state.
        ended: How many transactions have ended items.
        removed: How many transactions have removed items.
        latest: The latest reading of the clock in its ranges.
        open: Whether lane 0 is open.
        head: The place of lane 0's first ready range, None if it has none; ``UNKNOWN`` until it is looked for.
        watched_done: How many of its done and skipped items are jobs'; ``watched_dead`` likewise.
    """

    UNKNOWN: Final = (0, 0.0, -1)

    __slots__ = (
        "_ends",
        "_removes",
        "counts",
        "dirty",
        "ended",
        "head",
        "id",
        "latest",
        "open",
        "paused",
        "removed",
        "stored_head",
        "watched_dead",
        "watched_done",
    )

    def __init__(self, number: int, values: Sequence[Any]) -> None:
        self.id = number
        self.paused = bool(values[0])
        self.ended, self.removed, self.latest = values[1:4]
        self.counts = list(values[4:13])
        self.open = bool(values[13])
        self.head: Place | None = place(*values[14:17]) if values[16] is not None else None
        self.stored_head = self.head
        self.watched_done, self.watched_dead = values[17:19]
        self.dirty = False
        self._ends = False
        self._removes = False

    @property
    def end_number(self) -> int:
        """The number of this transaction among those that end items of this queue, if it does."""
        return int(self.ended) if self._ends else self.ended + 1

    @property
    def depth(self) -> int:
        """How many items have not ended: `Queue.depth`, without making one."""
        counts = self.counts
        return int(counts[READY] + counts[SCHEDULED] + counts[CLAIMED] + counts[STAGED])

    def end(self) -> None:
        """Note that this transaction ends items of this queue."""
        if not self._ends:
            self._ends = self.dirty = True
            self.ended += 1

    def remove(self) -> None:
        """Note that this transaction removes items of this queue."""
        if not self._removes:
            self._removes = self.dirty = True
            self.removed += 1

    def move(self, moved: Sequence[int]) -> None:
        """Count items that changed their state."""
        if any(moved):
            self.counts = [count + more for count, more in zip(self.counts, moved, strict=True)]
            self.dirty = True

    def watch(self, moved: Sequence[int]) -> None:
        """Count items of a job that changed their state."""
        self.watched_done += moved[DONE] + moved[SKIPPED]
        self.watched_dead += moved[DEAD]

    def queue(self) -> Queue:
        """Return it as others see it."""
        return Queue(
            self.id, self.paused, tuple(self.counts), self.ended, self.removed, self.latest
        )


class Moves:
    """What a transaction did to a job's items.

    Attributes:
        queue: The job's queue.
        moved: How many more there are, by state.
        left: Whether some left a handler, even if as many others came into one.
        codes: How many failed or were skipped, by code.
    """

    __slots__ = ("codes", "left", "moved", "queue")

    def __init__(self, queue: int) -> None:
        self.queue = queue
        self.moved = [0] * STATES
        self.left = False
        self.codes: dict[str, int] = {}


class View:
    """What one transaction knows and will write down once, at its end.

    Args:
        path: The file, for messages.
        now: The time, in seconds since the epoch.
        ticket: The number for the tickets of new items.
        ids: Ids in reserve; without them each call takes its own from the file.
        wal_size: Tells the bytes of the write-ahead log.

    Attributes:
        moves: What was done to the items of jobs and does not stand in their rows yet, by job.
        rearranged: Lanes whose ordered batch may be over, by queue and lane.
        changed: The ids of jobs whose rows were changed.
        news: What was done to jobs, by queue, as it stands in their rows.
        opened: Queues in which a lane was opened: something may be ready.
        moved_life: Whether a job's life changed, or something is left to do for one.
        ended_unheard: Queues in which something ended of which nobody here has heard.
    """

    __slots__ = (
        "_consumers", "_lanes", "_rows", "changed", "ended_unheard", "ids", "moved_life", "moves", "news",
        "now", "opened", "path", "rearranged", "ticket", "wal_size",
    )  # fmt: skip

    def __init__(
        self,
        path: Path,
        now: float,
        ticket: int | None,
        ids: Ids | None,
        wal_size: Callable[[], int],
    ) -> None:
        self.path = path
        self.now = now
        self.ticket = ticket
        self.ids = ids
        self.wal_size = wal_size
        self._rows: dict[int, Row] = {}
        self._lanes: dict[tuple[int, int], Place | None] = {}
        self._consumers: set[int] = set()
        self.moves: dict[int, Moves] = {}
        self.rearranged: set[tuple[int, int]] = set()
        self.changed: set[str] = set()
        self.news: dict[int, JobNews] = {}
        self.opened: set[int] = set()
        self.moved_life = False
        self.ended_unheard: set[int] = set()

    def row(self, queue: int) -> Generator[Step, Any, Row]:
        """Return a queue's row; read once."""
        row = self._rows.get(queue)
        if row is None:
            found = yield sql.QUEUE, (queue,), False
            if not found:
                raise QueueUnavailable(str(self.path), f"it has no queue {queue}: was it replaced?")
            row = self._rows[queue] = Row(queue, found[0])
        return row

    def knows(self, consumer: int) -> Generator[Step, Any, bool]:
        """Tell whether a consumer stands in the file.

        If the file was replaced it may not: nobody would take back what it claims.
        """
        if consumer in self._consumers:
            return True
        if not (yield sql.IS_CONSUMER, (consumer,), False):
            return False
        self._consumers.add(consumer)
        return True

    def take_ids(self, count: int) -> Generator[Step, Any, int]:
        """Return the first of so many new ids."""
        if self.ids is None:
            ((last,),) = yield sql.RESERVE, (count,), False
            return int(last) - count + 1
        first = self.ids.take(count)
        if first is None:
            reserved = max(RESERVED, count)
            ((last,),) = yield sql.RESERVE, (reserved,), False
            self.ids.reserve(last, reserved)
            first = self.ids.take(count)
            assert first is not None  # noqa: S101 - so many were reserved
        return first

    def replace(
        self, row: Row, old: Sequence[Range], new: Sequence[Range]
    ) -> Generator[Step, Any, None]:
        """Put ranges in the place of others, and count what moved."""
        yield from self.write(row, change(old, new))
        for one in old:
            if one.state == READY:
                self.unsettle(row, one.lane)
        self._note_waiting(row, new)

    def write(
        self, row: Row, difference: Change, *, ends: bool = True
    ) -> Generator[Step, Any, None]:
        """Write what differs, and count what moved; heads of lanes are the caller's.

        Args:
            row: The queue's.
            difference: What differs.
            ends: Whether jobs count it: not what is removed after they have ended.
        """
        remove, write, moved, jobs = difference
        if len(remove) == 1:
            yield sql.REMOVE_RANGE, remove, False
        elif remove:
            yield sql.REMOVE_RANGE, [(first,) for first in remove], True
        if len(write) == 1:
            yield (*_without_nulls(write[0]), False)
        elif write:
            rows: dict[str, list[tuple[Any, ...]]] = {}
            for one in write:
                statement, values = _without_nulls(one)
                rows.setdefault(statement, []).append(values)
            for statement, found in rows.items():
                yield statement, found, True
        row.move(moved)
        if jobs is not None:
            for job, moved_of in jobs.items():
                row.watch(moved_of)
                if ends:
                    self._note_moves(row.id, job, moved_of)

    def _note_moves(self, queue: int, job: int, moved: Sequence[int]) -> None:
        mine = self.moves_of(queue, job)
        mine.moved = [count + more for count, more in zip(mine.moved, moved, strict=True)]
        mine.left |= moved[CLAIMED] < 0

    def moves_of(self, queue: int, job: int) -> Moves:
        """Return what was done to a job's items."""
        moves = self.moves.get(job)
        if moves is None:
            moves = self.moves[job] = Moves(queue)
        return moves

    def news_of(self, queue: int) -> JobNews:
        """Return what was done to jobs of a queue."""
        news = self.news.get(queue)
        if news is None:
            news = self.news[queue] = JobNews()
        return news

    def count_code(self, queue: int, job: int, code: str) -> None:
        """Count an item of a job that failed or was skipped."""
        codes = self.moves_of(queue, job).codes
        codes[code] = codes.get(code, 0) + 1

    def _note_waiting(self, row: Row, new: Iterable[Range]) -> None:
        for one in new:
            # Also of those that come back: what was claimed when a wrong clock was mended was left out.
            if one.since > row.latest and one.state in (READY, SCHEDULED):
                row.latest = one.since
                row.dirty = True
            if one.state != READY:
                continue
            if one.lane:
                self._note_head((row.id, one.lane), place(one.priority, one.due, one.first))
            elif row.head is not Row.UNKNOWN:
                here = place(one.priority, one.due, one.first)
                if row.head is None or here < row.head:
                    row.head = here

    def _note_head(self, lane: tuple[int, int], here: Place) -> None:
        before = self._lanes.get(lane, Row.UNKNOWN)
        if before is not Row.UNKNOWN and (before is None or here < before):
            before = here
        self._lanes[lane] = before

    def unsettle(self, row: Row, lane: int) -> None:
        """Note that something else may be first in a lane."""
        if lane:
            self._lanes[row.id, lane] = Row.UNKNOWN
        else:
            row.head = Row.UNKNOWN

    def set_head(self, row: Row, lane: int, head: Place | None) -> None:
        """Note what is first in a lane, None for nothing; ``UNKNOWN`` where that is to be looked for."""
        if lane:
            self._lanes[row.id, lane] = head
        else:
            row.head = head

    def forget_lane(self, queue: int, lane: int) -> None:
        """Note that a lane is no more."""
        self._lanes.pop((queue, lane), None)

    def find_heads(self, row: Row) -> Generator[Step, Any, None]:
        """Look for the heads of those lanes of a queue in which something changed."""
        if row.head is Row.UNKNOWN:
            found = yield sql.HEAD, (row.id, 0), False
            row.head = place(*found[0]) if found else None
        for lane in [one for one in self._lanes if one[0] == row.id]:
            head = self._lanes.pop(lane)
            if head is not Row.UNKNOWN:
                yield from _set_head(head and _values(head), lane)
            else:
                found = yield sql.HEAD, lane, False
                yield from _set_head(found[0] if found else None, lane)

    def finish(self) -> Generator[Step, Any, None]:
        """Write down what the transaction changed in its queues' rows and lanes: its last statements."""
        for row in self._rows.values():
            yield from self.find_heads(row)
            if row.head != row.stored_head:
                yield from _set_head(row.head and _values(row.head), (row.id, 0))
                row.stored_head = row.head
            if row.dirty:
                row.dirty = False
                values = (
                    int(row.paused), row.ended, row.removed, row.latest, *row.counts,
                    row.watched_done, row.watched_dead, row.id,
                )  # fmt: skip
                yield sql.SET_QUEUE, values, False


_NULLS = (None, None, None)


def _without_nulls(one: Range) -> tuple[str, tuple[Any, ...]]:
    """Return the statement that writes a range, and its parameters: see `sql.WRITE_RANGES`."""
    number = 0
    held: tuple[Any, ...] = ()
    special: tuple[Any, ...] = ()
    over: tuple[Any, ...] = ()
    if one[10:13] != _NULLS:
        number, held = 8, one[10:13]
    if one.job is not None or one.position is not None:
        number, special = number + 4, one[14:16]
    if one.key is not None:
        number, special = number + 2, (*special, one.key)
    if one[18:] != _NULLS:
        number, over = number + 1, one[18:]
    return sql.WRITE_RANGES[number], (*one[:10], *held, one[13], *special, one[17], *over)


def place(priority: int, due: float, first: int) -> Place:
    """Return where a range stands: smaller ones go first."""
    return -priority, due, first


def _set_head(
    head: tuple[int, float, int] | None, lane: tuple[int, int]
) -> Generator[Step, Any, None]:
    if head is None:
        yield sql.NO_HEAD, lane, False
    else:
        yield sql.SET_HEAD, (*head, *lane), False


def _values(head: Place) -> tuple[int, float, int]:
    return -head[0], head[1], head[2]
