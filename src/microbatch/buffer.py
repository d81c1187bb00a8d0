"""Waiting items: order, priority, weight, partition, coalescing, withdrawal. Pure: no async, no clock.

Two buffers with the same verbs. `Fifo` (in `_fifo`) is what a batcher uses while nothing asks for more: two
parallel lists and a limit, so that taking an item in costs two appends and a comparison. `Lanes`, here, keeps
an `Entry` for each item and knows priorities, weights, partitions and keys; a batcher turns to it when one of
those, a flush or a full room first appears.

A waiter here is anything with ``done()``; it is done before its time when its caller was cancelled.
"""

from __future__ import annotations

import heapq
import math
import numbers
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .batch import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from contextvars import Context

    from .batch import Reason

#: One turn in so many goes by age instead of priority, so that a steady stream of urgent items delays the
#: others but cannot starve them. 10 leaves nine tenths of the throughput to the urgent ones (a choice).
FAIR_TURN = 10


class Scale:
    """Weights in whole units: their sums are exact, whatever comes and goes in between.

    A unit is so small that the smaller limit has 15 to 16 digits, which is what a float can tell apart. So
    weights count as they are written: ten times 0.1 is 1, and floats would say so only in some orders.

    Args:
        limits: The most that something may weigh; None for no limit.
    """

    __slots__ = ("_factor",)

    def __init__(self, *limits: float | None) -> None:
        least = min((limit for limit in limits if limit is not None), default=1)
        digits = 15 - math.floor(math.log10(least))
        self._factor: int = 10 ** min(max(0, digits), 300)  # so that a float bears it

    def units(self, weight: Any) -> int:
        """Return a weight in units."""
        if isinstance(weight, numbers.Integral):
            return int(weight) * self._factor
        return round(float(weight) * self._factor)

    def weight(self, units: int) -> float:
        """Return what so many units weigh."""
        return units / self._factor


class Mark:
    """What a ``flush()`` waits for: the items that were buffered when it was called."""

    __slots__ = ("left", "on_zero")

    def __init__(self, on_zero: Callable[[], None]) -> None:
        self.left: int = 0
        self.on_zero: Callable[[], None] = on_zero

    def release(self) -> None:
        """Count one of them as resolved; the last one wakes who waits."""
        self.left -= 1
        if self.left == 0:
            self.on_zero()


class Entry:
    """One item with all that a batcher may need to know of it."""

    __slots__ = (
        "attempts",
        "context",
        "hash",
        "item",
        "key",
        "lane",
        "marks",
        "partition",
        "priority",
        "queued",
        "run",
        "seq",
        "since",
        "state",
        "waiter",
        "weight",
    )

    def __init__(
        self,
        item: Any,
        waiter: Any,
        *,
        priority: float = 0,
        weight: int = 0,
        partition: Hashable = None,
        key: tuple[Hashable] | None = None,
        context: Context | None = None,
    ) -> None:
        self.item: Any = item
        self.waiter: Any = waiter
        self.priority: float = priority
        self.weight: int = weight  # in units, see Scale
        self.partition: Hashable = partition
        self.key: tuple[Hashable] | None = key  # of one: a key of None is a key too
        self.hash: int = 0  # the key's, from when it is placed
        self.context: Context | None = context
        self.attempts: int = 1
        self.seq: int = 0
        self.since: float = 0.0
        self.queued: bool = False
        self.state: str = ""
        self.lane: Any = None  # a Lane, from when it is buffered on
        self.run: Run | None = None
        self.marks: list[Mark] | None = None

    def release(self) -> None:
        """Let go of what would keep others alive; tell who flushed that this one is resolved.

        The item too: a Pending that somebody keeps leads here.
        """
        self.item = self.key = None
        self.waiter = self.run = self.lane = self.context = None
        self.state = ""
        marks, self.marks = self.marks, None
        for mark in marks or ():
            mark.release()


class Queued(Protocol):
    """What a Ranking can hold."""

    priority: float
    seq: int
    queued: bool


Q = TypeVar("Q", bound=Queued)
V = TypeVar("V")


class Ranking(Generic[Q]):
    """Higher priority first, first come first served within one, and one turn in FAIR_TURN by age.

    Stands on the order of arrival; a heap by priority comes only when a second priority appears.
    """

    __slots__ = ("_arrivals", "_heap", "_turns")

    def __init__(self) -> None:
        # Ordered by a linked list: a plain dict scans over what was deleted at its front.
        self._arrivals: OrderedDict[int, Q] = OrderedDict()
        self._heap: list[tuple[float, int, Q]] | None = None
        self._turns = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterator[Q]:
        return iter(self._arrivals.values())

    def push(self, element: Q) -> None:
        """Add an element; its seq is larger than those of all before."""
        oldest = self.oldest()
        if oldest is None:
            self._heap = None
        element.queued = True
        self._arrivals[element.seq] = element
        if self._heap is not None:
            heapq.heappush(self._heap, (-element.priority, element.seq, element))
        elif oldest is not None and oldest.priority != element.priority:
            self._rank()

    def promote(self, element: Q, priority: float) -> None:
        """Change the priority of an element; it keeps its age."""
        element.priority = priority
        if self._heap is None:
            self._rank()
        else:
            heapq.heappush(self._heap, (-priority, element.seq, element))

    def discard(self, element: Q) -> None:
        """Take an element out, wherever it stands."""
        element.queued = False
        del self._arrivals[element.seq]
        if self._heap is not None and len(self._heap) > 2 * len(self._arrivals) + 16:
            self._rank()

    def _rank(self) -> None:
        self._heap = [(-e.priority, e.seq, e) for e in self._arrivals.values()]
        heapq.heapify(self._heap)

    def oldest(self) -> Q | None:
        """Return the element that has been here the longest, without taking it."""
        return next(iter(self._arrivals.values()), None)

    def top(self) -> Q | None:
        """Return the element with the highest priority, the oldest of them, without taking it."""
        heap = self._heap
        if heap is None:
            return self.oldest()
        while heap:
            rank, seq, element = heap[0]
            if self._arrivals.get(seq) is element and element.priority == -rank:
                return element
            heapq.heappop(heap)  # taken, or promoted since
        return None

    def turn(self) -> Callable[[], Q | None]:
        """Return the way to look at whose turn it is, by priority or by age."""
        aged = self._heap is None or self._turns % FAIR_TURN == FAIR_TURN - 1
        return self.oldest if aged else self.top

    def turned(self) -> None:
        """Count a turn that was taken.

        Turns in which nobody could be taken do not count: those by age would all be among them.
        """
        if self._heap is not None:
            self._turns += 1


class Keyed(Generic[V]):
    """Values by users' keys, which are compared in `find` alone: elsewhere nothing of theirs can raise."""

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: dict[int, list[tuple[Hashable, V]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[V]:
        return (value for bucket in list(self._buckets.values()) for _, value in bucket)

    def find(self, key: Hashable, hashed: int) -> V | None:
        """Return the value of an equal key; raise what the comparison does, if that is this key's."""
        for known, value in self._buckets.get(hashed, ()):
            if key is known or _equal(key, known):
                return value
        return None

    def add(self, key: Hashable, hashed: int, value: V) -> None:
        """Keep a value, the last of those with an equal key."""
        self._buckets.setdefault(hashed, []).append((key, value))
        self._count += 1

    def remove(self, hashed: int, value: V) -> None:
        """Forget a value, which is there."""
        left = [pair for pair in self._buckets[hashed] if pair[1] is not value]
        self._count -= 1
        if left:
            self._buckets[hashed] = left
        else:
            del self._buckets[hashed]


def _equal(key: Any, known: Any) -> bool:
    """Compare a new key with a known one, whose faults are not the new one's."""
    try:
        return bool(key == known)
    except Exception:  # noqa: BLE001 - one of the two keys' own: if it was the new one's, it raises again
        kind: Any = type(key)
        own = kind.__eq__(key, known)
        return own is not NotImplemented and bool(own)


class Lane:
    """The items of one partition.

    Attributes:
        away: How many of its items are in back-off.
        hash: The partition's.
        home: The lanes that it is one of; None while it is of none.
    """

    __slots__ = (
        "away",
        "deadline",
        "due",
        "entries",
        "flying",
        "hash",
        "home",
        "keys",
        "partition",
        "priority",
        "queued",
        "seq",
        "weight",
    )

    def __init__(self, partition: Hashable, hashed: int) -> None:
        self.partition: Hashable = partition
        self.hash: int = hashed
        self.home: Any = None
        self.entries: Ranking[Entry] = Ranking()
        self.keys: Keyed[Entry] = Keyed()
        self.weight: int = 0
        self.flying: int = 0
        self.away: int = 0
        self.due: int = -1  # the seq up to which entries were asked for by a flush
        self.deadline: float | None = None
        self.priority: float = 0.0
        self.seq: int = 0
        self.queued: bool = False


class Lanes:
    """Items with priorities, weights, partitions and keys.

    Attributes:
        count: How many there are.
        pressed: True while no company can come, since the room is full: then all is due.
        weight: What they weigh together.
        withdrawn: Items that were dropped because their callers had gone, and not told of yet.
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
        entry.state = "buffered"
        self._put(lane, entry)
        if entry.marks:
            lane.due = entry.seq
        self._appraise(lane, now)

    def _put(self, lane: Lane, entry: Entry) -> None:
        lane.entries.push(entry)
        lane.weight += entry.weight
        self.weight += entry.weight
        self.count += 1
        if entry.key is not None:
            lane.keys.add(entry.key[0], entry.hash, entry)
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
        lane.entries.discard(entry)
        lane.weight -= entry.weight
        self.weight -= entry.weight
        self.count -= 1
        if entry.key is not None:
            lane.keys.remove(entry.hash, entry)
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
        if not (lane.entries or lane.flying or lane.away):
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
        return bool(oldest.seq <= lane.due or now >= oldest.since + self.max_wait)

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
        return lanes and max(lanes, self.count // self._size() if len(self._lanes) == 1 else 0)

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

    def deadline(self) -> float | None:
        """Return when a lane that is not ready may be, if time alone makes it so."""
        return self._deadlines[0][0] if self._deadlines else None

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
            entry.state = "flying"
            entry.run = run
        return run

    def _reason(self, lane: Lane, entries: list[Entry], since: float, now: float) -> Reason | None:
        """Tell why a batch leaves that is not full; None if it has time."""
        if self.closing:
            return "close"
        if any(entry.seq <= lane.due for entry in entries):
            return "flush"
        if self.max_wait > 0:
            if now >= since + self.max_wait:
                return "wait"
            if not self.pressed:
                return None
        return "idle"

    def landed(self, lane: Lane, now: float) -> None:
        """Tell that a batch of this lane has ended: its place is free."""
        lane.flying -= 1
        if lane.entries:
            self._appraise(lane, now)
        else:
            self._unlist_unused(lane)

    def send_away(self, entry: Entry) -> None:
        """Keep the lane of an entry that goes into back-off: on its way back nothing need be compared."""
        entry.lane.away += 1

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
                    entry.marks = [*(entry.marks or ()), mark]
                    mark.left += 1
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
