"""A rate as a small plot: points of an SVG, whose looks are the style sheet's. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import words

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The drawing's own units.
WIDTH, HEIGHT = 240, 48


class Plot(NamedTuple):
    """What the template draws.

    Attributes:
        well: The outline of all that ended, as points of a polygon.
        dead: The outline of what died, on the same scale; empty if nothing did.
        width: The drawing's width.
        height: Its height.
        text: The same in words.
    """

    well: str
    dead: str
    width: int
    height: int
    text: str


def plot(well: Sequence[float], dead: Sequence[float], slot: float) -> Plot:
    """Return the plot of how many items ended in each slot of time, the oldest first.

    Args:
        well: Those that ended well.
        dead: Those that became dead letters.
        slot: Seconds in each.
    """
    both = [one + other for one, other in zip(well, dead, strict=True)]
    top = max(both)
    minutes = len(both) * slot / 60
    text = (
        f"Items ended in the last {minutes:.0f} minutes: {words.count(sum(both))}, "
        f"of which {words.count(sum(dead))} died; at most {words.per_second(top / slot)}"
    )
    return Plot(_outline(both, top), _outline(dead, top) if any(dead) else "", WIDTH, HEIGHT, text)


def _outline(counts: Sequence[float], top: float) -> str:
    step = WIDTH / len(counts)
    points = [f"0,{HEIGHT}"]
    for place, count in enumerate(counts):
        height = HEIGHT - (count / top * (HEIGHT - 2) if top else 0)
        points += [f"{place * step:.1f},{height:.1f}", f"{(place + 1) * step:.1f},{height:.1f}"]
    return " ".join([*points, f"{WIDTH},{HEIGHT}"])
