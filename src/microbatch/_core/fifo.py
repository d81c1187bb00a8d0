"""The plain buffer: first come, first served, at the price of two appends. Pure: no async, no clock."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from .entry import FLYING, Entry
from .flushes import Flushes
from .run import Reason, Run
from .waiters import Group, dressed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .flushes import Mark

#: Items from which on those who were cancelled are looked for while nothing is cut: whenever there are
#: four times as many as the last time.
_SWEEP_MIN = 1_000


#: Seconds from one cut that tells since when later items wait to the next one, so that batches of one are
#: not dearer for it.
_NOTE_INTERVAL = 0.001


#: Items taken out from which on their places in the lists are given back.
_COMPACT_MIN = 1_000


class Fifo:
    """Items of one kind, first come first served: two parallel lists, flat, cut by slicing.

    Whoever puts an item in appends to both lists, as long as ``len(items) < limit``; before the first one
    and at the limit it calls `open`. Who was cancelled is found out when a batch is cut, when somebody
    asks, or when the items have become many more: that costs next to nothing per item.

    Attributes:
        items: The items; those before ``head`` are gone.
        waiters: Who waits for each.
        head: Where the next batch begins.
        limit: The length up to which items may be appended without asking.
        timed: Whether it matters since when exactly items wait.
        flushes: Which of the items they count, and make due.
        withdrawn: Items that were dropped because their callers had gone, and not told of yet.
    """

    __slots__ = (
        "_note_at",
        "_sweep_at",
        "_times",
        "closing",
        "flushes",
        "head",
        "items",
        "limit",
        "max_wait",
        "size",
        "timed",
        "waiters",
        "withdrawn",
    )

    def __init__(self, size: int, max_wait: float) -> None:
        self.timed: bool = max_wait > 0
        self.size: int = size
        self.max_wait: float = max_wait
        self.closing: bool = False
        self.items: list[Any] = []
        self.waiters: list[Any] = []
        self.head: int = 0
        self.limit: int = 0
        self.withdrawn: int = 0
        self.flushes: Flushes = Flushes()
        self._times: deque[tuple[int, float]] = deque()  # since when: from this place on
        self._note_at = -math.inf  # when a cut may tell the next time
        self._sweep_at = _SWEEP_MIN

    @property
    def count(self) -> int:
        """Return the number of items, those included whose callers have gone unnoticed."""
        return len(self.items) - self.head

    def open(self, room: int, now: float | None, more: int = 1) -> None:
        """Prepare for items to be appended, more of them at once; room is at least 1.

        Where it is not timed, now may be None: what comes is about to be cut.
        """
        if len(self.items) >= self._sweep_at:
            self.sweep()
        length = len(self.items)
        count = length - self.head
        self.limit = min(length + room, self._sweep_at)
        # A clock read for each batch, not for each item: where a full one may begin.
        if now is not None and (count % self.size == 0 or more > 1 or not self.timed):
            self._times.append((length, now))
        if self.timed:
            self.limit = min(self.limit, length + self.size - count % self.size)

    def _since(self, place: int) -> float:
        """Return a time at which the item at this place had not yet come, and which is not much older."""
        return self._times[bisect_right(self._times, (place, math.inf)) - 1][1]

    def ready(self, now: float) -> int:
        """Return how many batches may be cut now."""
        full, rest = divmod(len(self.items) - self.head, self.size)
        if not rest:
            return full
        if (
            self.max_wait == 0
            or self.closing
            or self.flushes.due > self.head + full * self.size
            or now >= self._since(self.head + full * self.size) + self.max_wait
        ):
            return full + 1
        return full

    def is_full(self) -> bool:
        """Tell whether the next batch can grow no more."""
        return len(self.items) - self.head >= self.size

    def deadline(self) -> float | None:
        """Return when the youngest batch will be ready, if time alone makes it so."""
        full, rest = divmod(len(self.items) - self.head, self.size)
        return self._since(self.head + full * self.size) + self.max_wait if rest else None

    def cut(self, now: float) -> Run | None:
        """Take out the next batch, if one is ready."""
        while (count := len(self.items) - self.head) and (
            not self.max_wait
            or count >= self.size
            or self.closing
            or self.flushes.due > self.head
            or now >= self._since(self.head) + self.max_wait
        ):
            since = now
            if times := self._times:
                while len(times) > 1 and times[1][0] <= self.head:
                    times.popleft()
                since = times[0][1]
            if self.flushes.due > self.head:
                if (run := self._cut_flushed(now, since)) is None:
                    continue
                return run
            full = self.max_wait and not self.closing and now < since + self.max_wait
            if full:  # it leaves for nothing else, so those who have gone do not count
                uniform = not _gone(self.waiters[self.head : self.head + self.size])
                if not (uniform or self._fills()):
                    self.sweep()
                    continue
            items, waiters = self._take(self.size, now)
            if not full:  # of one: what looks at many costs 0.5 % of all that a batch of one does
                uniform = not (waiters[0].done() if len(waiters) == 1 else _gone(waiters))
            if not uniform:
                items, waiters, _ = self._alive(items, waiters)
                while len(items) < self.size and self.head < len(self.items):
                    more = self._alive(*self._take(self.size - len(items), now))
                    items += more[0]
                    waiters += more[1]
                if not items:
                    continue
            reason: Reason = "close" if self.closing else "wait" if self.max_wait else "idle"
            run = Run(items, waiters, "size" if len(items) >= self.size else reason)
            run.uniform = uniform
            run.since = since
            if uniform and isinstance(group := waiters[0], Group):
                run.group, run.first = group, group.taken
                group.taken += run.size
            return run
        return None

    def _cut_flushed(self, now: float, since: float) -> Run | None:
        """Take out a batch that a flush makes due: with an entry for each item, which tells of its end."""
        flushes = self.flushes
        if all(waiter.done() for waiter in islice(self.waiters, self.head, flushes.due)):
            flushes.end_before(math.inf)
            return None
        entries: list[Entry] = []
        while len(entries) < self.size and self.items:
            marks = flushes.counting(self.head)
            (item,), waiters = self._take(1, now)
            (waiter,) = dressed(waiters)
            if waiter.done():
                self.withdrawn += 1
                continue
            entry = Entry(item, waiter)
            entry.state = FLYING
            entry.count(marks)
            entries.append(entry)
        flushes.end_before(self.head if self.items else math.inf)
        reason: Reason = "close" if self.closing else "flush"
        run = Run(
            [entry.item for entry in entries],
            [entry.waiter for entry in entries],
            "size" if len(entries) == self.size else reason,
        )
        run.entries, run.since = entries, since
        return run

    def flush(self, mark: Mark) -> None:
        """Make all that is there due; the mark counts it. Whoever calls asks next who is `unwatched`."""
        self.flushes.begin(mark, len(self.items))

    def unwatched(self) -> list[Any]:
        """Return the last caller whom each flush waits for here, where it was another one before.

        When that one goes, ask again: a flush of which nobody is left here waits for batches alone.
        """
        return self.flushes.unwatched(self.waiters, self.head)

    def _fills(self) -> bool:
        """Tell whether there are as many callers as make a full batch."""
        alive = (1 for waiter in islice(self.waiters, self.head, None) if not waiter.done())
        return sum(islice(alive, self.size)) == self.size

    def _take(self, size: int, now: float) -> tuple[list[Any], list[Any]]:
        """Take out the first items, whether their callers are there or not."""
        head, items, waiters = self.head, self.items, self.waiters
        end = head + size
        if end >= len(items):  # all of them
            self.items, self.waiters, self.head = [], [], 0
            self._times.clear()
            self._note_at = -math.inf
            self._sweep_at = _SWEEP_MIN
            if not head:
                return items, waiters
            return items[head:], waiters[head:]
        # Nothing may keep what is handled alive, but moving all that follow would be quadratic.
        if size == 1:  # 3 % of all that a batch of one costs
            taken = [items[head]], [waiters[head]]
            items[head] = waiters[head] = None
        else:
            part = slice(head, end)
            taken = items[part], waiters[part]
            items[part] = waiters[part] = [None] * size
        self.head = end
        if now >= self._note_at:
            self._note(len(items) if self._times else end, now)
        if end >= _COMPACT_MIN and 2 * end >= len(items):
            self._compact()
        return taken

    def _note(self, place: int, now: float) -> None:
        """Note that what stands from this place on came about now, or will come later."""
        if self._times and self._times[-1][0] == place:
            self._times.pop()
        self._times.append((place, now))
        self._note_at = now + _NOTE_INTERVAL

    def _compact(self) -> None:
        head, self.head = self.head, 0
        del self.items[:head], self.waiters[:head]
        self.limit -= head
        self._times = deque((max(0, start - head), since) for start, since in self._times)
        self.flushes.move(lambda place: place - head)

    def sweep(self) -> None:
        """Drop every item whose caller has gone. Who was about to append one asks again."""
        if self.head:
            self._compact()
        if self.waiters and _gone(self.waiters):
            self.limit = 0
            self.items, self.waiters, places = self._alive(self.items, self.waiters)
            moved = {bisect_left(places, start): since for start, since in self._times}
            self._times = deque(moved.items())
            self.flushes.move(lambda place: bisect_left(places, place))
            self.flushes.end_before(0)
        if not self.items:
            self._times.clear()
            self._note_at = -math.inf
        self._sweep_at = max(_SWEEP_MIN, 4 * len(self.items))

    def clear(self, now: float = 0.0) -> Iterator[tuple[Any, Any, float, list[Mark]]]:
        """Take everything out: item, waiter, since when (now, if nothing says so), what counts it; in order.

        Who was about to append one more asks again.
        """
        self.limit = 0
        head, items, waiters = self.head, self.items, dressed(self.waiters)
        times = deque(self._times)
        self.items, self.waiters, self.head = [], [], 0
        self._times.clear()
        self._note_at = -math.inf
        since = now
        for place in range(head, len(items)):
            while times and times[0][0] <= place:
                since = times.popleft()[1]
            if waiters[place].done():
                self.withdrawn += 1
            else:
                yield items[place], waiters[place], since, self.flushes.counting(place)
        self.flushes.end_before(math.inf)

    def _alive(
        self, items: list[Any], waiters: list[Any]
    ) -> tuple[list[Any], list[Any], list[int]]:
        """Return these without those whose callers have gone, and the places where they stood."""
        waiters = dressed(waiters)
        places = [place for place, waiter in enumerate(waiters) if not waiter.done()]
        self.withdrawn += len(waiters) - len(places)
        return [items[place] for place in places], [waiters[place] for place in places], places


def _gone(waiters: list[Any]) -> bool:
    """Tell whether some callers may have gone, or are of several kinds: then each must be looked at."""
    first = waiters[0]
    if isinstance(first, Group):  # its items stand in a row
        return first is not waiters[-1] or first.done()
    try:
        # For futures this is one C call each: a fifth of a method call by name.
        return any(map(type(first).done, waiters))
    except (AttributeError, TypeError):  # another type among them
        return True
