"""What a handler costs by a call and by an item, and what follows from it. Pure.

A call of n items takes F + m n seconds; the batcher takes o an item. One item costs F + m in a call of its
own, and F / n + m + o in a batch of n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

#: An item may cost so much more than in the largest batch: beyond, greater batches gain little.
_NEAR = 0.1


class Costs(NamedTuple):
    """Costs in seconds.

    Attributes:
        fixed: Of a call, whatever is in it: F.
        item: Of each item in it: m.
        overhead: Of the batcher, an item: o.
    """

    fixed: float
    item: float
    overhead: float

    def break_even(self, size: int) -> float:
        """Return the fixed cost of a call above which batches of this size pay."""
        return self.overhead * size / (size - 1)

    def gain(self, size: int) -> float:
        """Return how many times cheaper an item is in a batch of this size than in a call of its own."""
        batched = self.fixed / size + self.item + self.overhead
        return (self.fixed + self.item) / batched if batched else 1.0

    @property
    def knee(self) -> float:
        """The size at which half of the possible gain is reached."""
        rest = self.item + self.overhead
        return self.fixed / rest if rest else float("inf")

    def pays(self) -> bool:
        """Tell whether batches of whatever size cost less than calls of one."""
        return self.fixed > self.overhead


def fitted(points: Mapping[int, float], overhead: float) -> Costs:
    """Return the costs that fit measured calls best: a line by least squares.

    Each point counts by its relative error: else the largest calls, whose errors are the largest, would decide
    about the fixed cost, of which they know least.

    Args:
        points: Seconds of a call, by its items; at least two sizes.
        overhead: The batcher's own cost of an item.
    """
    weight = size = time = square = product = 0.0
    for n, seconds in points.items():
        w = 1.0 / max(seconds, 1e-9) ** 2
        weight += w
        size += w * n
        time += w * seconds
        square += w * n * n
        product += w * n * seconds
    item = (weight * product - size * time) / (weight * square - size * size)
    item = max(0.0, item)
    fixed = max(0.0, (time - item * size) / weight)
    return Costs(fixed, item if fixed else time / size, overhead)


def sizes_up_to(most: int) -> list[int]:
    """Return the batch sizes that are measured: 1, 2, 5, 10, 20 ... and the greatest itself."""
    sizes, step = [], 1
    while step < most:
        sizes += [step * by for by in (1, 2, 5) if step * by < most]
        step *= 10
    return [*sizes, most]


def best_size(costs: Costs, most: int) -> int:
    """Return the smallest of the usual sizes at which an item costs little more than it must.

    Args:
        costs: What was measured.
        most: The greatest size that was measured.
    """
    least = costs.item + costs.overhead
    for size in sizes_up_to(most):
        if costs.fixed / size <= _NEAR * least:
            return size
    return most
