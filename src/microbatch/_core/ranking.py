"""Order: by priority, by arrival, and one turn in ten by age."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: One turn in so many goes by age instead of priority, so that a steady stream of urgent items delays the
#: others but cannot starve them. 10 leaves nine tenths of the throughput to the urgent ones (a choice).
FAIR_TURN = 10


class Queued(Protocol):
    """What a Ranking can hold."""

    priority: float
    seq: int
    queued: bool


Q = TypeVar("Q", bound=Queued)

_seq_of = itemgetter(0)


class Ranking(Generic[Q]):
    """Higher priority first, first come first served within one, and one turn in FAIR_TURN by age.

    Stands on the order of arrival; a heap by priority comes only when a second priority appears. What was
    taken out and comes back stands apart, since it belongs before others.
    """

    __slots__ = ("_arrivals", "_back", "_heap", "_returned", "_turns")

    def __init__(self) -> None:
        # Ordered by a linked list: a plain dict scans over what was deleted at its front.
        self._arrivals: OrderedDict[int, Q] = OrderedDict()
        self._heap: list[tuple[float, int, Q]] | None = None
        self._returned: dict[int, Q] = {}
        self._back: list[int] = []  # a heap of their seqs, and of some that have gone again
        self._turns = 0

    def __len__(self) -> int:
        return len(self._arrivals) + len(self._returned)

    def __iter__(self) -> Iterator[Q]:
        if not self._returned:
            return iter(self._arrivals.values())
        returned = sorted(self._returned.items())
        return iter([one for _, one in heapq.merge(returned, self._arrivals.items(), key=_seq_of)])

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

    def push_back(self, element: Q) -> None:
        """Add an element that was here before, with the seq that it had."""
        oldest = self.oldest()
        if oldest is None:
            self._heap = None
        element.queued = True
        self._returned[element.seq] = element
        heapq.heappush(self._back, element.seq)
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
        if self._returned.pop(element.seq, None) is None:
            del self._arrivals[element.seq]
        elif not self._returned:
            self._back.clear()
        if self._heap is not None and len(self._heap) > 2 * len(self) + 16:
            self._rank()

    def _rank(self) -> None:
        self._heap = [(-e.priority, e.seq, e) for e in self]
        heapq.heapify(self._heap)

    def oldest(self) -> Q | None:
        """Return the element that has been here the longest, without taking it."""
        first = next(iter(self._arrivals.values()), None)
        if self._returned:
            while self._back[0] not in self._returned:
                heapq.heappop(self._back)
            if first is None or self._back[0] < first.seq:
                return self._returned[self._back[0]]
        return first

    def top(self) -> Q | None:
        """Return the element with the highest priority, the oldest of them, without taking it."""
        heap = self._heap
        if heap is None:
            return self.oldest()
        while heap:
            rank, seq, element = heap[0]
            here = self._arrivals.get(seq) is element or self._returned.get(seq) is element
            if here and element.priority == -rank:
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
