"""Weights in whole units, so that their sums are exact."""

from __future__ import annotations

import math
import numbers
from typing import Any


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
