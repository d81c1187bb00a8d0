"""A batch size that learns. Pure: it is told sizes and seconds, and says the next size."""

from __future__ import annotations

from . import _checks

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
    before adds a step of 1/64 of the range (at least 1); one that made them dearer takes a step back; a
    call slower than ``target`` leaves nine tenths; a failed call leaves half. Batches that were not full
    teach nothing about size and count only if they failed or were slow.

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

    __slots__ = ("_cost", "_held", "_size", "_step", "maximum", "minimum", "target")

    def __init__(self, minimum: int, maximum: int, *, target: float = 1.0) -> None:
        self.minimum: int = _checks.whole_number("minimum", minimum, 1)
        self.maximum: int = _checks.whole_number("maximum", maximum, 1)
        if maximum < minimum:
            raise ValueError(f"maximum must be at least minimum={minimum}, got {maximum}")
        self.target: float = _checks.number("target", target, above=0)
        self._step = max(1, (maximum - minimum) // 64)
        self._size = minimum
        self._cost: float | None = None
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
        before, self._cost = self._cost, cost
        if before is None or cost < before * (1 - _GAIN) or self._held >= _PATIENCE:
            self._held = 0
            self._size = min(self._size + self._step, self.maximum)
        elif cost > before * (1 + _LOSS):
            self._held = 0
            self._size = max(self._size - self._step, self.minimum)
        else:
            self._held += 1

    def _resize(self, size: float) -> None:
        self._size = max(self.minimum, int(size))
        self._cost = None
        self._held = 0
