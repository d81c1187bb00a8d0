"""Items that failed and wait for their next attempt."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Any

from .entry import BACKOFF

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .entry import Entry
    from .rules import Rules
    from .tally import Tally


class Backoffs:
    """A heap by the time at which each is due. Those whose callers have gone stay in it, ended.

    Attributes:
        open: False once no more may come: the batcher is closed.
    """

    __slots__ = ("_heap", "_items_max", "_numbers", "_tally", "_units_max", "open")

    def __init__(self, rules: Rules, tally: Tally) -> None:
        # Half the room: the other half stays for new items, however many of the old ones fail.
        most = rules.max_pending
        self._items_max = None if most is None else max(1, most // 2)
        units = rules.max_pending_units
        self._units_max = None if units is None else units / 2
        self._tally = tally
        self.open: bool = True
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone."""
        self._heap: list[tuple[float, int, Entry]] = []
        self._numbers = count()

    def __bool__(self) -> bool:
        return bool(self._heap)

    def takes(self, units: int) -> bool:
        """Tell whether one more item of this weight may come in."""
        tally = self._tally
        if not self.open or (self._items_max is not None and tally.backing_off >= self._items_max):
            return False
        return self._units_max is None or tally.backing_off_weight + units <= self._units_max

    def add(self, entry: Entry, due: float) -> None:
        """Let an item wait until it is due, by the loop's clock."""
        run: Any = entry.run
        if run.attempts is None:  # before they change: its handler may ask still
            run.attempts = [one.attempts for one in run.entries]
        entry.state = BACKOFF
        entry.attempts += 1
        entry.run = None
        entry.lane.away += 1  # it keeps its lane: on its way back nothing need be compared
        self._tally.backing_off += 1
        self._tally.backing_off_weight += entry.weight
        heapq.heappush(self._heap, (due, next(self._numbers), entry))

    def deadline(self) -> float | None:
        """Return when the first one is due."""
        return self._heap[0][0] if self._heap else None

    def leave(self, entry: Entry) -> None:
        """Count one out: it goes again, or its callers have gone."""
        self._tally.backing_off -= 1
        self._tally.backing_off_weight -= entry.weight

    def due(self, now: float) -> Iterator[Entry]:
        """Take out what is due; each is to be counted out still."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            entry = heapq.heappop(heap)[2]
            if entry.state is BACKOFF:
                yield entry

    def clear(self) -> list[Entry]:
        """Take out all; each is to be counted out still."""
        heap, self._heap = self._heap, []
        return [entry for _, _, entry in heap if entry.state is BACKOFF]
