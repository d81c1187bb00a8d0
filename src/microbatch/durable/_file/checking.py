"""Whether what stands in the file agrees with itself: counts, heads, keys and payloads with the items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import look_sql, sql
from .records import State

if TYPE_CHECKING:
    from collections.abc import Generator

    from .records import Step

_WAITING = (State.READY, State.SCHEDULED, State.CLAIMED, State.STAGED)
_ENDED_AS = (State.DONE, State.DEAD, State.SKIPPED, State.CANCELLED, State.EXPIRED)


def page_faults() -> Generator[Step, Any, list[str]]:
    """Return what SQLite finds wrong with the file's pages. It reads all of them."""
    rows = yield look_sql.PAGES, (), False
    return [str(row[0]) for row in rows if row[0] != "ok"]


def count_faults(queue: int) -> Generator[Step, Any, list[tuple[str, int, int]]]:
    """Return the states whose counts are wrong: name, what the queue's row says, what there is."""
    (row,) = yield sql.QUEUE, (queue,), False
    there = dict((yield look_sql.COUNTED, (queue,), False))
    return [
        (state.name.lower(), row[4 + state], there.get(int(state), 0))
        for state in State
        if row[4 + state] != there.get(int(state), 0)
    ]


def job_faults(queue: int) -> Generator[Step, Any, list[str]]:
    """Return the ids of jobs whose counts are wrong."""
    jobs = yield look_sql.JOBS, (queue,), False
    there: dict[int, dict[int, int]] = {}
    for job, state, count in (yield look_sql.COUNTED_OF_JOBS, (queue,), False):
        there.setdefault(job, {})[state] = count
    wrong = []
    for number, uid, total, *ended in jobs:
        found = there.get(number, {})
        counts = [found.get(int(state), 0) for state in _ENDED_AS]
        waiting = sum(found.get(int(state), 0) for state in _WAITING)
        if counts != ended or sum(counts) + waiting != total:
            wrong.append(str(uid))
    return wrong


def head_faults(queue: int) -> Generator[Step, Any, int]:
    """Return how many lanes do not know which of their items is first."""
    wrong = 0
    for lane, *stored in (yield look_sql.LANES, (queue,), False):
        heads = yield sql.HEAD, (queue, lane), False
        wrong += (list(heads[0]) if heads else [None, None, None]) != stored
    return wrong


def lost_keys(queue: int) -> Generator[Step, Any, int]:
    """Return how many keys stand for no item."""
    ((count,),) = yield look_sql.LOST_KEYS, (queue,), False
    return int(count)


def lost_payloads(queue: int) -> Generator[Step, Any, int]:
    """Return how many items that may be handled yet have no payload."""
    ((needed,),) = yield look_sql.NEEDED, (queue,), False
    ((there,),) = yield look_sql.THERE, (queue,), False
    return max(0, (needed or 0) - (there or 0))


def latest_reading(queue: int) -> Generator[Step, Any, float]:
    """Return the latest reading of a clock that stands in the queue, in seconds since the epoch."""
    ((latest,),) = yield look_sql.LATEST, (queue,), False
    return float(latest or 0.0)
