"""What flushes wait for: marks on entries, and places in flat lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Mark:
    """What a ``flush()`` waits for: the items that were buffered when it was called.

    Attributes:
        left: How many of them have no end yet; those in a Fifo count as one.
        place: Up to where in the Fifo they stand.
        last: Who waits for the one at that place, once somebody watches.
    """

    __slots__ = ("last", "left", "on_zero", "place")

    def __init__(self, on_zero: Callable[[], None]) -> None:
        self.left: int = 0
        self.place: int = 0
        self.last: Any = None
        self.on_zero: Callable[[], None] = on_zero

    def release(self) -> None:
        """Count one of them as resolved; the last one wakes who waits."""
        self.left -= 1
        if self.left == 0:
            self.on_zero()


class Flushes:
    """The flushes that count items of a Fifo: each all that stands before a place.

    Attributes:
        due: The last of these places; 0 while there is none.
    """

    __slots__ = ("_marks", "due")

    def __init__(self) -> None:
        self._marks: list[Mark] = []
        self.due: int = 0

    def begin(self, mark: Mark, place: int) -> None:
        """Let a flush count what stands before a place."""
        mark.place = self.due = place
        mark.left += 1  # for all of it
        self._marks.append(mark)

    def counting(self, place: int) -> list[Mark]:
        """Return the flushes that count the item at this place."""
        return [mark for mark in self._marks if mark.place > place]

    def unwatched(self, waiters: list[Any], head: int) -> list[Any]:
        """Return the last caller whom each flush waits for, where it was another one before."""
        found = []
        for mark in self._marks:
            while mark.place > head and waiters[mark.place - 1].done():
                mark.place -= 1
            if mark.place > head and waiters[mark.place - 1] is not mark.last:
                mark.last = waiters[mark.place - 1]
                found.append(mark.last)
        self.end_before(head)
        return found

    def move(self, to: Callable[[int], int]) -> None:
        """Follow items that have moved to the front."""
        for mark in self._marks:
            mark.place = to(mark.place)
        self.due = max((mark.place for mark in self._marks), default=0)

    def end_before(self, head: float) -> None:
        """Let go of the flushes that count nothing from this place on."""
        over = [mark for mark in self._marks if mark.place <= head]
        self._marks = [mark for mark in self._marks if mark.place > head]
        self.due = max((mark.place for mark in self._marks), default=0)
        for mark in over:
            mark.release()
