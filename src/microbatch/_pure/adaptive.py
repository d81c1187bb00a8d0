"""A batch size that learns. Pure: it is told sizes and seconds, and says the next size."""

from __future__ import annotations

from . import checks

#: Growing stops paying when one step more makes an item cheaper by less than this share: it is within
#: what a timing can tell.
_GAIN = 0.01


#: An item that got dearer by this share says that the batch has passed its best size.
_LOSS = 0.03


#: What is left of the size after a failed call, and after one that was slower than the target. A failure
#: may mean overload, so it halves (as TCP does); slowness is a matter of degree.
_AFTER_FAILURE = 0.5


_AFTER_SLOWNESS = 0.9


#: Held for so many full batches, the size tries one step more: backends change.
_PATIENCE = 20


class AdaptiveSize:
    """A ``max_batch_size`` that grows while growing pays, and backs off on errors or slowness.

    Additive increase, multiplicative decrease: a full batch that made items cheaper than the size
    goes on in the same direction by a step of 1/64 of the range (at least 1); one that made them dearer
    turns round; a call slower than ``target`` leaves nine tenths; a failed call leaves half. Batches that
    were not full teach nothing about size and count only if they failed or were slow.

    Args:
        minimum: The smallest size, and the first one; at least 1.
        maximum: The largest size, at least ``minimum``. Never exceeded.
        target: Seconds that a handler call should stay under, more than 0.

    Attributes:
        size: The current size, in items.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If it is not a number.
    """

    __slots__ = (
        "_base",
        "_cost",
        "_direction",
        "_held",
        "_size",
        "_step",
        "maximum",
        "minimum",
        "target",
    )

    def __init__(self, minimum: int, maximum: int, *, target: float = 1.0) -> None:
        self.minimum: int = checks.whole_number("minimum", minimum, 1)
        self.maximum: int = checks.whole_number("maximum", maximum, 1)
        if maximum < minimum:
            raise ValueError(f"maximum must be at least minimum={minimum}, got {maximum}")
        self.target: float = checks.number("target", target, above=0)
        self._step = max(1, (maximum - minimum) // 64)
        self._size = minimum
        self._cost: float | None = None  # what an item cost ...
        self._base = minimum  # ... at this size
        self._direction = 1
        self._held = 0

    @property
    def size(self) -> int:
        """Return the number of items that the next batch may have."""
        return self._size

    def record(self, size: int, seconds: float, *, failed: bool) -> None:
        """Learn from one handler call.

        Args:
            size: Items in the call.
            seconds: How long it took.
            failed: True if the call as a whole failed.
        """
        if failed:
            self._resize(self._size * _AFTER_FAILURE)
        elif seconds > self.target:
            self._resize(self._size * _AFTER_SLOWNESS)
        elif size >= self._size:
            self._climb(seconds / size)

    def _climb(self, cost: float) -> None:
        before = self._cost
        if before is None:
            self._direction = 1
        elif cost > before * (1 + _LOSS):
            self._direction = -self._direction
            if (
                self._direction < 0
            ):  # back to where it was known to be good, steps on trial included
                self._size = min(self._size, self._base)
        elif cost >= before * (1 - _GAIN):
            self._held += 1
            if self._held > _PATIENCE:  # the cost to compare with stays: small losses add up
                self._held = 0
                self._direction = 1
                self._size = min(self._size + self._step, self.maximum)
            return
        self._cost, self._base, self._held = cost, self._size, 0
        size = self._size + self._direction * self._step
        self._size = max(self.minimum, min(size, self.maximum))

    def _resize(self, size: float) -> None:
        self._size = max(self.minimum, int(size))
        self._cost = None
        self._held = 0
