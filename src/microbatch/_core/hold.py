"""How a partition waits for a backend that takes nothing now. Pure: no async, no clock."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any


class Hold:
    """Where a partition stands after its backend refused a call.

    For a time nothing goes. Then one batch does, the probe. The others go once it has come back without a
    refusal.

    Attributes:
        until: When the time is over, by the loop's clock; None if it is.
        awaited: True from a refusal until a probe comes back without one.
        probe: What goes first, while it is under way.
        refusals: Refused calls in a row, without a success in or between them.
        era: How many holds there were. A call that began in an earlier one is late: what it says of the
            backend is old.
        front: The seq of the first item of the last probe that was refused with its first item.
        passed: How many of those in a row began with that one.
    """

    __slots__ = ("awaited", "era", "front", "passed", "probe", "refusals", "until")

    def __init__(self) -> None:
        self.until: float | None = None
        self.awaited: bool = False
        self.probe: Any = None
        self.refusals: int = 0
        self.era: int = 0
        self.front: int = -1
        self.passed: int = 0

    @property
    def closed(self) -> bool:
        """Tell whether no batch may begin: the time is not over, or the probe is under way."""
        return self.until is not None or self.probe is not None

    def pass_over(self, front: int) -> int:
        """Count a refusal of the first item of a probe; return how many in a row it had."""
        self.passed = self.passed + 1 if front == self.front else 1
        self.front = front
        return self.passed

    def begin(self, until: float) -> None:
        """Let nothing go until then: a new hold, whatever there was before."""
        self.awaited = True
        self.until = until
        self.probe = None
        self.era += 1

    def extend(self, until: float) -> bool:
        """Let nothing go until then, if that is later; tell whether it is."""
        if self.until is not None and until <= self.until:
            return False
        self.until = until
        self.probe = None
        return True

    def pass_time(self, now: float) -> bool:
        """See whether the time is over, and tell whether it is now."""
        if self.until is None or self.until > now:
            return False
        self.until = None
        return True

    def leave(self, batch: Any) -> None:
        """Tell that a batch begins: it is the probe, if one is awaited."""
        if self.awaited:
            self.probe = batch

    def come_back(self, batch: Any) -> None:
        """Tell that a batch has ended: if it was the probe, and was not refused, the others may go."""
        if self.probe is not None and self.probe is batch:
            self.awaited = False
            self.probe = None


class Holds:
    """The holds whose time is not over, each of what ``hold`` of an owner is: a heap by time."""

    __slots__ = ("_heap", "_numbers")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any]] = []
        self._numbers = count()

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, owner: Any) -> None:
        """Note that an owner's hold has a time."""
        heapq.heappush(self._heap, (owner.hold.until, next(self._numbers), owner))

    def over(self, now: float) -> list[Any]:
        """Take out the owners whose time is over."""
        heap, owners = self._heap, []
        while heap and heap[0][0] <= now:
            owner = heapq.heappop(heap)[2]
            if owner.hold.pass_time(now):  # else it was made longer
                owners.append(owner)
        return owners

    def deadline(self) -> float | None:
        """Return when the first one is over."""
        heap = self._heap
        while heap and heap[0][2].hold.until != heap[0][0]:  # it was made longer
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def last(self) -> float | None:
        """Return when the last one is over. From any thread."""
        times = [owner.hold.until for _, _, owner in list(self._heap)]
        return max((time for time in times if time is not None), default=None)

    def clear(self) -> None:
        """Forget all: nothing will go any more."""
        self._heap.clear()
