"""What is asked of the file by those who look at what is newest: items before an id, what ended lately."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import recent_sql, sql
from .ranges import DEAD, DONE, SKIPPED, part
from .records import Range

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

    from .records import Step

#: Ranges of each kind that are looked at for what ended lately: some 50 ms at most.
ENDED_LOOKED_AT = 50_000

#: Items without a key, with one, and of jobs: `job_schema.ENDED_CLASS`.
_CLASSES = (0, 1, 2)


def ranges_before(
    queue: int, states: Collection[int], before: int, limit: int
) -> Generator[Step, Any, list[Range]]:
    """Return ranges of the last so many items in some states, before an id, the newest first.

    Each range is cut to the items that are meant: its last ones.
    """
    only_dead = tuple(states) == (DEAD,)
    statement = recent_sql.DEAD_BACK if only_dead else recent_sql.LISTED_BACK
    values: dict[str, Any] = {"queue": queue, "before": before, "limit": limit}
    if not only_dead:
        values["states"] = json.dumps(list(states))
    found: list[Range] = []
    for row in (yield statement, values, False):
        one = Range(*row)
        count = min(one.count, before - one.first)
        taken = min(count, limit)
        found.append(part(one, one.first + count - taken, taken))
        limit -= taken
        if not limit:
            break
    return found


def ended_lately(
    queue: int, start: float, slot: float, slots: int
) -> Generator[Step, Any, tuple[list[float], list[float]]]:
    """Return how many items ended well, and how many died, in each slot of time.

    Items that ended near to each other are kept as one range, and are spread evenly over its time.

    Args:
        queue: The queue's number.
        start: When the first slot begins, in seconds since the epoch.
        slot: Seconds in each.
        slots: How many there are. What ended after the last one (by a clock that is ahead) counts in it.
    """
    well, dead = [0.0] * slots, [0.0] * slots
    for state in (DONE, SKIPPED, DEAD):
        for kind in _CLASSES:
            values = {
                "queue": queue, "state": state, "class": kind, "start": start, "slot": slot,
                "limit": ENDED_LOOKED_AT,
            }  # fmt: skip
            for begun, over, count in (yield recent_sql.ENDED_LATELY, values, False):
                _spread(dead if state == DEAD else well, begun, over, count)
    return well, dead


def _spread(counts: list[float], begun: int, over: int, count: int) -> None:
    last = len(counts) - 1
    begun, over = min(begun, last), min(over, last)
    share = count / (over - begun + 1)
    for slot in range(max(begun, 0), over + 1):
        counts[slot] += share


def item_of_key(queue: int, key: str) -> Generator[Step, Any, int | None]:
    """Return the id of the item that a key stands for."""
    rows = yield sql.KEY, (queue, key), False
    return int(rows[0][0]) if rows else None
