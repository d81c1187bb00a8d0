"""Waiting items: order, priority, weight, partition, coalescing, withdrawal. Pure: no async, no clock.

Two buffers with the same verbs. `Fifo` (in `fifo`) is what a batcher uses while nothing asks for more: two
parallel lists and a limit, so that taking an item in costs two appends and a comparison. `Lanes`, here, keeps
an `Entry` for each item and knows priorities, weights, partitions and keys; a batcher turns to it when one of
those or a full room first appears.

A waiter here is anything with ``done()``; it is done before its time when its caller was cancelled.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any

from .entry import BUFFERED, FLYING
from .hold import Holds
from .keyed import Keyed
from .lane import Lane
from .ranking import Ranking
from .run import Reason, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .entry import Entry
    from .flushes import Mark


class Lanes:
    """Items with priorities, weights, partitions and keys.

    Attributes:
        count: How many there are.
        pressed: True while no company can come, since the room is full: then all is due.
        weight: What they weigh together.
        withdrawn: Items that were dropped because their callers had gone, and not told of yet.
        holds: Those of lanes that wait for their backend.
    """

    def __init__(
        self,
        size: Callable[[], int],
        max_wait: float,
        *,
        max_weight: int | None = None,
        lane_limit: int | None = None,
    ) -> None:
        self._size = size
        self.max_wait: float = max_wait
        self._max_weight = max_weight
        self._lane_limit = lane_limit
        self.closing: bool = False
        self.pressed: bool = False
        self.count: int = 0
        self.weight: int = 0
        self.withdrawn: int = 0
        self._seq = 0
        self._latest = -math.inf  # what time it was at the last look: timers ring early
        self._changes = 0  # of what a search for a lane or a key may find
        self._lanes: Keyed[Lane] = Keyed()
        self._idle: dict[Lane, None] = {}  # lanes with items that nothing has made ready
        self._ready: Ranking[Lane] = Ranking()
        self._deadlines: list[tuple[float, int, Lane]] = []
        self.holds: Holds = Holds()

    def place(self, entry: Entry) -> tuple[Lane, Entry | None]:
        """Find an entry's lane and the buffered entry of its key, if there is one, right before adding it.

        Here alone users' keys are hashed and compared. What that raises is the caller's, and nothing has
        changed yet. What it calls may change anything: then the search begins anew.
        """
        while True:
            changes, sharer = self._changes, None
            hashed = hash(entry.partition)
            lane = self._lanes.find(entry.partition, hashed)
            if lane is None:
                lane = Lane(entry.partition, hashed)
            if entry.key is not None:
                (key,) = entry.key
                entry.hash = hash(key)
                sharer = lane.keys.find(key, entry.hash)
            if changes == self._changes:
                return lane, sharer

    def add(self, entry: Entry, now: float, lane: Lane | None = None) -> None:
        """Put an entry in its lane, as the youngest there; in the one that `place` has found."""
        if lane is None:
            lane, _ = self.place(entry)
        if lane.home is None:
            lane.home = self._lanes
            lane.home.add(lane.partition, lane.hash, lane)
            self._changes += 1
        self._seq += 1
        entry.seq = self._seq
        entry.since = now
        entry.lane = lane
        entry.state = BUFFERED
        self._put(lane, entry)
        if entry.marks:
            lane.due = entry.seq
        self._appraise(lane, now)

    def _put(self, lane: Lane, entry: Entry) -> None:
        lane.put(entry)
        self._count(entry)

    def _count(self, entry: Entry) -> None:
        self.weight += entry.weight
        self.count += 1
        if entry.key is not None:
            self._changes += 1

    def promote(self, entry: Entry, priority: float) -> None:
        """Raise a buffered entry's priority."""
        if priority > entry.priority:
            entry.lane.entries.promote(entry, priority)
            self._rank(entry.lane)

    def withdraw(self, entry: Entry) -> None:
        """Take a buffered entry out: no handler will ever see it."""
        lane: Lane = entry.lane
        self._take(lane, entry)
        if lane.entries:
            self._rank(lane)
        else:
            self._leave(lane)

    def _take(self, lane: Lane, entry: Entry) -> None:
        lane.take(entry)
        self.weight -= entry.weight
        self.count -= 1
        if entry.key is not None:
            self._changes += 1

    def _leave(self, lane: Lane) -> None:
        """Forget an empty lane."""
        if lane.queued:
            self._ready.discard(lane)
        self._idle.pop(lane, None)
        self._unlist_unused(lane)
        if not self.count:
            for _, _, late in self._deadlines:
                late.deadline = None
            self._deadlines.clear()

    def _unlist_unused(self, lane: Lane) -> None:
        if not lane.is_used:
            lane.home.remove(lane.hash, lane)
            lane.home = None
            self._changes += 1

    def _appraise(self, lane: Lane, now: float) -> None:
        """Put a lane where it belongs: ready, or idle until its deadline."""
        if lane.queued:
            self._rank(lane)
        elif not self._is_free(lane):
            return
        elif self._is_due(lane, now):
            self._make_ready(lane)
        else:
            self._idle[lane] = None
            if lane.deadline is None:
                oldest: Any = lane.entries.oldest()
                lane.deadline = oldest.since + self.max_wait
                heapq.heappush(self._deadlines, (lane.deadline, oldest.seq, lane))

    def _is_free(self, lane: Lane) -> bool:
        if lane.hold is not None and lane.hold.closed:
            return False
        return self._lane_limit is None or lane.flying < self._lane_limit

    def _is_due(self, lane: Lane, now: float) -> bool:
        if (
            self.max_wait == 0
            or self.closing
            or self.pressed
            or len(lane.entries) >= self._size()
            or (self._max_weight is not None and lane.weight >= self._max_weight)
        ):
            return True
        oldest: Any = lane.entries.oldest()
        return bool(
            oldest.seq <= lane.due
            or oldest.seq <= lane.again
            or now >= oldest.since + self.max_wait
        )

    def _make_ready(self, lane: Lane) -> None:
        self._idle.pop(lane, None)
        self._seq += 1
        lane.seq = self._seq
        top: Any = lane.entries.top()
        lane.priority = top.priority
        self._ready.push(lane)

    def _rank(self, lane: Lane) -> None:
        """Let a ready lane rise and fall with its most urgent item."""
        top: Any = lane.entries.top()
        if lane.queued and top.priority != lane.priority:
            self._ready.promote(lane, top.priority)

    def press(self, full: bool = True) -> None:
        """Tell whether the room is full, so that no company can come: then everything is due."""
        self.pressed = full
        if full:
            for lane in list(self._idle):
                self._make_ready(lane)

    def ready(self, now: float) -> int:
        """Return how many batches may be cut now, at least."""
        self._expire(now)
        lanes = len(self._ready)
        if lanes != 1 or len(self._lanes) != 1:
            return lanes
        lane: Any = self._ready.top()
        if lane.hold is not None and lane.hold.awaited:
            return 1
        return max(1, self.count // self._size())

    def is_full(self) -> bool:
        """Tell whether the next batch can hardly grow: if it can, letting the loop turn is cheap."""
        top = self._ready.top()
        return top is not None and len(top.entries) >= self._size()

    def _expire(self, now: float) -> None:
        self._latest = max(self._latest, now)
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            lane = heapq.heappop(deadlines)[2]
            lane.deadline = None
            if lane.entries and not lane.queued:
                self._appraise(lane, now)
        if self.holds:
            for lane in self.holds.over(now):
                if lane.entries:
                    self._appraise(lane, now)
                else:
                    self._unlist_unused(lane)

    def deadline(self) -> float | None:
        """Return when a lane that is not ready may be, if time alone makes it so."""
        when = self._deadlines[0][0] if self._deadlines else None
        if self.holds and (over := self.holds.deadline()) is not None:
            return over if when is None else min(when, over)
        return when

    def cut(self, now: float) -> Run | None:
        """Take out the next batch: of the lane whose most urgent item is the most urgent of all."""
        self._expire(now)
        now = self._latest
        while (lane := self._ready.turn()()) is not None:
            self._ready.discard(lane)
            # It was due; meanwhile some may have gone, and the others have time.
            run = self._cut(lane, now) if self._is_due(lane, now) else None
            if run is None:
                if lane.entries:
                    self._appraise(lane, now)
                else:
                    self._leave(lane)
                continue
            self._ready.turned()
            lane.flying += 1
            if lane.hold is not None:
                run.era, run.probing = lane.hold.era, lane.hold.awaited
                lane.hold.leave(run)
            if lane.entries:
                self._appraise(lane, now)
            else:
                self._leave(lane)
            return run
        return None

    def _cut(self, lane: Lane, now: float) -> Run | None:
        size, heaviest = self._size(), self._max_weight
        entries: list[Entry] = []
        weight = 0
        reason: Reason | None = None
        following = lane.entries.turn()
        withdrawn = self.withdrawn
        while len(entries) < size and (entry := following()) is not None:
            if entry.waiter.done():  # cancelled, and its notice is still on the way
                self._take(lane, entry)
                entry.release()
                self.withdrawn += 1
                continue
            if heaviest is not None and entries and weight + entry.weight > heaviest:
                reason = "weight"
                break
            self._take(lane, entry)
            entries.append(entry)
            weight += entry.weight
        if not entries:
            return None
        # The first one is the oldest, unless the others were chosen by priority.
        by_age = following == lane.entries.oldest
        since = entries[0].since if by_age else min([entry.since for entry in entries])
        if len(entries) >= size:
            reason = "size"
        elif reason is None and heaviest is not None and weight >= heaviest:
            reason = "weight"
        elif reason is None:
            if self.withdrawn > withdrawn:
                self.pressed = False  # they have left room
            reason = self._reason(lane, entries, since, now)
        if reason is None:
            for entry in sorted(entries, key=lambda entry: entry.seq):
                self._put(lane, entry)
            return None
        lane.entries.turned()
        run = self._run(lane, entries, weight, reason)
        run.since = since
        return run

    def _run(self, lane: Lane, entries: list[Entry], weight: int, reason: Reason) -> Run:
        run = Run(
            [entry.item for entry in entries],
            [entry.waiter for entry in entries],
            reason,
        )
        run.entries, run.lane, run.weight = entries, lane, weight
        if entries[0].context is not None:
            run.contexts = [entry.context for entry in entries]
        for entry in entries:
            entry.state = FLYING
            entry.run = run
        return run

    def _reason(self, lane: Lane, entries: list[Entry], since: float, now: float) -> Reason | None:
        """Tell why a batch leaves that is not full; None if it has time."""
        if self.closing:
            return "close"
        if any(entry.seq <= lane.due for entry in entries):
            return "flush"
        if self.max_wait > 0:
            if now >= since + self.max_wait or any(entry.seq <= lane.again for entry in entries):
                return "wait"
            if not self.pressed:
                return None
        return "idle"

    def landed(self, lane: Lane, now: float, run: Run) -> None:
        """Tell that a batch of this lane has ended: its place is free."""
        lane.flying -= 1
        if lane.hold is not None:
            lane.hold.come_back(run)
        if lane.entries:
            self._appraise(lane, now)
        else:
            self._unlist_unused(lane)

    def put_back(self, entry: Entry, now: float) -> None:
        """Put an entry that was cut back in its lane, in the place that it had. It has waited enough."""
        lane: Lane = entry.lane
        entry.state = BUFFERED
        entry.run = None
        lane.put_back(entry)
        self._count(entry)
        lane.again = max(lane.again, entry.seq)
        if entry.marks:
            lane.due = max(lane.due, entry.seq)
        self._appraise(lane, now)

    def hold(self, lane: Lane) -> None:
        """Let no batch of a lane begin before the time of its hold is over."""
        if lane.queued:
            self._ready.discard(lane)
        self._idle.pop(lane, None)
        self.holds.add(lane)

    def call_back(self, entry: Entry) -> Lane:
        """Tell that an entry is in back-off no longer; return its lane."""
        lane: Lane = entry.lane
        lane.away -= 1
        self._unlist_unused(lane)
        return lane

    def flush(self, mark: Mark | None, now: float) -> None:
        """Make everything due; mark, if any, counts it."""
        for lane in list(self._lanes):
            for entry in lane.entries:
                lane.due = entry.seq
                if mark is not None:
                    entry.count([mark])
            if lane.entries:
                self._appraise(lane, now)

    def sweep(self) -> None:
        """Drop every entry whose caller has gone without notice yet."""
        for entry in [e for e in self.entries() if e.waiter.done()]:
            self.withdraw(entry)
            entry.release()
            self.withdrawn += 1

    def entries(self) -> Iterator[Entry]:
        """Return all entries, lane by lane."""
        return (entry for lane in list(self._lanes) for entry in lane.entries)
