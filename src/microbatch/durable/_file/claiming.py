"""What a consumer gets next: the clock mended, overdue items made ready, lanes merged in strict order."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Any

from . import job_counts, job_lanes, job_sql, sql
from . import payloads as blobs
from .job_lanes import LaneOf
from .ranges import READY, change, claimed, cut, part, spans
from .records import Claim, Range, State
from .view import CLOCK_TOLERANCE, Row, place

if TYPE_CHECKING:
    from collections.abc import Generator

    from .records import Demand, Queue, Step
    from .view import Place, View

#: Delayed ranges that one claim makes ready at most: some milliseconds.
PROMOTE_STEP = 500

#: Ready ranges that are read at once: one is usual, lone items need many.
READ_STEPS = (2, 32, 256, 1024)


def repair(view: View, row: Row) -> Generator[Step, Any, None]:
    """Mend what was written in a wrong future: a delay counts from now, as if it began now."""
    if row.latest <= view.now + CLOCK_TOLERANCE:
        return
    for statement in sql.REPAIR:
        yield statement, (view.now, view.now, row.id, view.now + CLOCK_TOLERANCE), False
    # What lies within the tolerance was left, so that this is the latest reading that may be there.
    row.latest = view.now + CLOCK_TOLERANCE
    row.dirty = True
    view.unsettle(row, 0)
    for (lane,) in (yield sql.LANES, (row.id,), False):  # the closed ones too
        view.unsettle(row, lane)


def promote(view: View, row: Row) -> Generator[Step, Any, Place | None]:
    """Make overdue items ready, the most urgent first.

    Returns:
        The place of the first one that had to wait for the next claim; None if none had to.
    """
    if not row.counts[State.SCHEDULED]:
        return None
    rows = yield sql.OVERDUE, (row.id, view.now, PROMOTE_STEP + 1), False
    if not rows:
        return None
    bound: Place | None = None
    if len(rows) > PROMOTE_STEP:
        rows = yield from _most_urgent(view, row)
        last = Range(*rows[PROMOTE_STEP])
        bound = place(last.priority, last.due, last.first)
    due = [Range(*values) for values in rows[:PROMOTE_STEP]]
    ready = [one._replace(state=READY) for one in due]
    if any(one.lane for one in due):
        ready = yield from _in_lane_order(view, ready)
    yield from view.replace(row, due, ready)
    return bound


def _in_lane_order(view: View, ready: list[Range]) -> Generator[Step, Any, list[Range]]:
    """Let what comes out of a back-off stand where it was, in lanes that keep their items' order."""
    ordered: dict[int, bool] = {0: False}
    kept: list[Range] = []
    for one in ready:
        if one.lane not in ordered:
            ordered[one.lane] = yield from job_counts.is_ordered(one.queue, one.lane)
        if ordered[one.lane]:
            view.rearranged.add((one.queue, one.lane))
            kept.append(one._replace(due=one.enqueued))
        else:
            kept.append(one)
    return kept


def _most_urgent(view: View, row: Row) -> Generator[Step, Any, list[tuple[Any, ...]]]:
    """Return the first overdue ranges, one more than a claim makes ready: priority by priority."""
    found: list[tuple[Any, ...]] = []
    ((priority,),) = yield sql.TOP_PRIORITY, (row.id,), False
    while priority is not None and len(found) <= PROMOTE_STEP:
        room = PROMOTE_STEP + 1 - len(found)
        found += yield sql.OVERDUE_OF, (row.id, priority, view.now, room), False
        ((priority,),) = yield sql.NEXT_PRIORITY, (row.id, priority), False
    return found


class _Lane:
    """A lane's ready ranges, read in order as far as they are wanted."""

    __slots__ = ("_gone", "_offset", "_queue", "_step", "_waiting", "job", "number", "read")

    def __init__(self, queue: int, number: int, job: LaneOf | None) -> None:
        self.number = number
        self.job = job
        self.read: list[Range] = []
        self._queue = queue
        self._waiting: deque[Range] = deque()
        self._offset = 0
        self._step: int | None = 0
        self._gone: set[int] = set()

    def known_first(self) -> Range | None:
        """Return what goes first of what was read and not taken."""
        while self._waiting and self._waiting[0].apart in self._gone:
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def first(self) -> Generator[Step, Any, Range | None]:
        """Return what goes first of what was not taken."""
        while True:
            one = self.known_first()
            if one is not None or self._step is None:
                return one
            limit = READ_STEPS[self._step]
            if self.job is not None and self.job.bound is not None:
                # What is left of a batch goes first, and alone, whatever the clock was when it was written.
                left = (self.number, self.job.bound, limit, self._offset)
                found = yield job_sql.BATCH_LEFT, left, False
            else:
                found = yield sql.READY, (self._queue, self.number, limit, self._offset), False
            self._offset += limit
            ranges = [Range(*values) for values in found]
            more = len(found) == limit
            self.read += ranges
            self._waiting.extend(ranges)
            self._step = min(self._step + 1, len(READ_STEPS) - 1) if more else None

    def head(self) -> Place | None:
        """Return the place of what is left, as far as it is known."""
        if self.job is not None and self.job.bound is not None:
            return Row.UNKNOWN
        one = self.known_first()
        if one is not None:
            return place(one.priority, one.due, one.first)
        return None if self._step is None else Row.UNKNOWN

    def take(self, count: int) -> Range:
        """Take the first so many items of the first range."""
        one = self._waiting.popleft()
        if count < one.count:
            self._waiting.appendleft(part(one, one.first + count, one.count - count))
        return part(one, one.first, count)

    def take_apart(self, apart: int) -> None:
        """Take all ranges with that number."""
        self._gone.add(apart)

    def put_back(self, one: Range) -> None:
        """Undo the last `take`."""
        self._waiting.appendleft(one)


class _Picker:
    """The ready ranges of all open lanes of a queue, in order."""

    def __init__(self, row: Row, bound: Place | None, enough: int) -> None:
        self._row = row
        self._bound = bound
        self._enough = enough
        self._heap: list[tuple[Place, int]] = []
        self._lanes: dict[int, _Lane] = {}
        self._apart: list[Range] = []
        self._renamed: dict[int, int] = {}
        self.stopped = False

    def open(self, view: View, lanes: int) -> Generator[Step, Any, None]:
        """Find the lanes, at most so many of the jobs'."""
        row = self._row
        held = view.ids.held if view.ids is not None else ()
        if row.open and row.head is not None:
            self._heap.append((row.head, 0))
            self._lanes[0] = _Lane(row.id, 0, None)
        rows = yield sql.OTHER_LANES, (row.id, view.now, lanes + len(held)), False
        for priority, due, first, *values in rows:
            job = LaneOf(*values)
            if job.lane not in held:
                self._heap.append((place(priority, due, first), job.lane))
                self._lanes[job.lane] = _Lane(row.id, job.lane, job)
        heapify(self._heap)

    def choose(self, size: int) -> Generator[Step, Any, list[Range]]:
        """Take what one handler call may have: at most so many items."""
        chosen: list[Range] = []
        while size and self._heap and not self.stopped:
            here, number = self._heap[0]
            if self._bound is not None and here > self._bound:
                break
            lane = self._lanes[number]
            if lane.job is not None and lane.job.is_own and chosen:
                break  # the next call, then
            one = yield from lane.first()
            if one is None:
                heappop(self._heap)
                continue
            actual = place(one.priority, one.due, one.first)
            if actual != here:
                heapreplace(self._heap, (actual, number))
                continue
            if lane.job is not None and lane.job.is_own:
                return (yield from self._choose_own(lane, lane.job, size))
            if one.apart is not None:
                return chosen or (yield from self._choose_apart(lane, one.apart, size))
            taken = lane.take(min(size, one.count))
            size -= taken.count
            chosen.append(taken)
        return chosen

    def _choose_own(self, lane: _Lane, job: LaneOf, size: int) -> Generator[Step, Any, list[Range]]:
        """Take what a call may have that is for one job's items alone; the job's lane is the first."""
        if job.ordered:
            heappop(self._heap)  # one call at a time, and no more than that may have
            size = min(size, self._enough)
        size = min(size, job.size or size)
        chosen: list[Range] = []
        while size:
            one = yield from lane.first()
            if one is None:
                break
            if self._bound is not None and place(one.priority, one.due, one.first) > self._bound:
                break
            if one.apart is not None:
                return chosen or (yield from self._choose_apart(lane, one.apart, size))
            taken = lane.take(min(size, one.count))
            size -= taken.count
            chosen.append(taken)
        return chosen

    def _choose_apart(
        self, lane: _Lane, apart: int, size: int
    ) -> Generator[Step, Any, list[Range]]:
        """Take all items that must be handled together; if they are too many, the first ones."""
        rows = yield sql.APART, (self._row.id, apart, lane.number), False
        group = [Range(*values) for values in rows]
        group.sort(key=lambda one: place(one.priority, one.due, one.first))
        lane.take_apart(apart)
        self._apart += group
        chosen: list[Range] = []
        for one in group:
            taken = part(one, one.first, min(size, one.count))
            size -= taken.count
            if taken.count:
                chosen.append(taken)
            if taken.count < one.count:
                self._leave_apart(one, taken.count)
        return chosen

    def _leave_apart(self, one: Range, taken: int) -> None:
        # Those that are left form a group of their own, the next one: nothing may overtake it now.
        assert one.apart is not None  # noqa: S101 - it is one of a group
        self._renamed.setdefault(one.apart, one.first + taken)
        self.stopped = True

    def keep(self, chosen: list[Range], count: int) -> list[Range]:
        """Keep the first so many of chosen items, and put the others back."""
        kept: list[Range] = []
        for index, one in enumerate(chosen):
            if one.count <= count:
                kept.append(one)
                count -= one.count
                continue
            left = [part(one, one.first + count, one.count - count), *chosen[index + 1 :]]
            if count:
                kept.append(part(one, one.first, count))
            for rest in reversed(left):
                if rest.apart is not None:
                    self._renamed[rest.apart] = rest.first
                    self.stopped = True
                else:
                    lane = self._lanes[rest.lane]
                    lane.put_back(rest)
                    if lane.job is None or not lane.job.ordered:
                        here = place(rest.priority, rest.due, rest.first)
                        heappush(self._heap, (here, rest.lane))
            break
        return kept

    def settle(self, taken: list[Range]) -> tuple[list[Range], list[Range]]:
        """Return the ranges as they were, of which something was taken, and what is left of them."""
        read = {one.first: one for one in self._apart}
        for lane in self._lanes.values():
            read.update((one.first, one) for one in lane.read)
        wanted = spans(taken)
        old: list[Range] = []
        left: list[Range] = []
        for one in read.values():
            pieces = list(cut(one, wanted))
            new = None if one.apart is None else self._renamed.get(one.apart)
            if new is None and not any(inside for _, inside in pieces):
                continue
            old.append(one)
            rest = (piece for piece, inside in pieces if not inside)
            left += rest if new is None else [piece._replace(apart=new) for piece in rest]
        return old, left

    def leave(self, view: View) -> None:
        """Note what goes first now in the lanes that were read."""
        for number, lane in self._lanes.items():
            if self._apart:
                view.unsettle(self._row, number)
            elif lane.read:
                view.set_head(self._row, number, lane.head())

    def jobs(self) -> dict[int, LaneOf]:
        """Return the jobs' lanes that were found, by number."""
        return {number: lane.job for number, lane in self._lanes.items() if lane.job is not None}


def claim(
    view: View, queue: int, demand: Demand
) -> Generator[Step, Any, tuple[list[Claim], Queue]]:
    """Give a consumer the next items, in strict order."""
    row = yield from view.row(queue)
    yield from job_counts.flush(view)  # what ended before this may close lanes, and open others
    yield from repair(view, row)
    if row.paused or not (yield from view.knows(demand.consumer)):
        return [], row.queue()
    bound = yield from promote(view, row)
    if not row.counts[State.READY]:
        return [], row.queue()
    if view.rearranged:
        yield from job_counts.flush(view)
    yield from view.find_heads(row)
    picker = _Picker(row, bound, demand.enough or demand.size)
    yield from picker.open(view, demand.slots * demand.size)
    jobs = picker.jobs()
    reader = blobs.PayloadReader()
    claims: list[Claim] = []
    for number in range(demand.claim, demand.claim + demand.slots):
        chosen = yield from picker.choose(demand.size)
        if not chosen:
            break
        spans_of = [(one.first, one.count) for one in chosen]
        payloads, traces = yield from reader.take(spans_of, blobs.CLAIM_BYTES)
        chosen = picker.keep(chosen, len(payloads))
        ranges = [claimed(one, demand.consumer, number) for one in chosen]
        told = None
        if jobs and any(one.lane for one in chosen):
            told = yield from job_lanes.told(jobs, chosen)
        claims.append(Claim(number, ranges, payloads, traces, told))
    taken = [one for each in claims for one in each.ranges]
    if taken:
        old, left = picker.settle(taken)
        yield from view.write(row, change(old, taken + left))
        picker.leave(view)
        if jobs:
            yield from job_lanes.take(view, row, jobs.values(), taken)
    return claims, row.queue()
