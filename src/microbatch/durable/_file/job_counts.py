"""A job's row: every change of its life, and the counts that the transactions keep which change its items."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import job_sql
from .job_life import BUSY, STOPPED, Counts, Event, add_codes, before, job_outcome
from .ranges import CANCELLED, DEAD, DONE, READY, SCHEDULED, SKIPPED
from .records import State

if TYPE_CHECKING:
    from collections.abc import Generator

    from .records import Step
    from .view import Moves, View

_ENDS = (DONE, DEAD, SKIPPED, CANCELLED, int(State.EXPIRED))
_CAN_STOP = before(Event.STOPPED)
_CAN_END = before(Event.FINISHED)


def move(
    view: View, job: int, event: Event, **values: Any
) -> Generator[Step, Any, tuple[Any, ...] | None]:
    """Move a job on; return what the statement returns of it, None if it is where that does not happen."""
    rows = yield job_sql.MOVE[event], {"job": job, "now": view.now, **values}, False
    if not rows:
        return None
    row: tuple[Any, ...] = rows[0]
    view.changed.add(row[0])
    view.moved_life = True
    return row


def flush(view: View) -> Generator[Step, Any, None]:
    """Write down what the transaction did to items of jobs, and what follows: ends, stops, the next batch."""
    while view.moves:
        job, moves = view.moves.popitem()
        yield from _count_moves(view, job, moves)
    while view.rearranged:
        queue, lane = view.rearranged.pop()
        yield from _end_batch(view, queue, lane)


def _count_moves(view: View, job: int, moves: Moves) -> Generator[Step, Any, None]:
    moved = moves.moved
    ended = [max(0, moved[state]) for state in _ENDS]
    left = moves.left
    back = moved[READY] + moved[SCHEDULED] > 0
    if not (left or back or any(ended)):
        return  # from one way of waiting to another, or into a handler's hands
    values: dict[str, Any] = dict(
        zip(("succeeded", "failed", "skipped", "cancelled", "expired"), ended, strict=True)
    )
    values |= {"more": sum(ended), "now": view.now, "back": back, "job": job}
    rows = yield job_sql.COUNT, values, False
    if not rows:
        return  # a damaged file has lost it: its items go on
    uid, life, total, *counts, max_failures, ordered = rows[0]
    view.changed.add(uid)
    view.moved_life |= back
    if any(ended):
        view.news_of(moves.queue).count(Counts(*ended))
    if moves.codes:
        ((before_json,),) = yield job_sql.ERRORS, (job,), False
        codes = add_codes(json.loads(before_json), moves.codes)
        yield job_sql.SET_ERRORS, (json.dumps(codes), job), False
    tally = Counts(*counts)
    if sum(tally) == total and life in _CAN_END:
        yield from end(view, job, moves.queue, tally)
        return
    if max_failures is not None and tally.failed > max_failures and life in _CAN_STOP:
        yield from stop(view, job, CANCELLED)
    if ordered:  # also where an item that held the batch up was cancelled
        view.rearranged.add((moves.queue, job))


def end(view: View, job: int, queue: int, tally: Counts) -> Generator[Step, Any, None]:
    """End a job, all of whose items have: the one place where that is done."""
    outcome = job_outcome(tally)
    row = yield from move(view, job, Event.FINISHED, outcome=outcome)
    assert row is not None  # noqa: S101 - its life is one of those that end
    view.news_of(queue).ended.append((outcome, max(0.0, view.now - row[1])))
    yield job_sql.REMOVE_LANE, (queue, job), False
    view.forget_lane(queue, job)
    view.rearranged.discard((queue, job))


def stop(view: View, job: int, state: int) -> Generator[Step, Any, bool]:
    """Let nothing more of a job begin: what has not ends as cancelled or expired, step by step."""
    row = yield from move(view, job, Event.STOPPED, state=state)
    if row is None:
        return False
    yield job_sql.SHUT, {"why": STOPPED, "queue": row[1], "lane": job}, False
    return True


# One batch at a time


def _end_batch(view: View, queue: int, lane: int) -> Generator[Step, Any, None]:
    """Let the next batch of an ordered job go once this one's items have ended, or what is left of this."""
    if (yield job_sql.HAS_CLAIMED, (lane,), False):
        return
    rows = yield job_sql.LANE, (queue, lane), False
    if not rows or not rows[0][0]:
        return
    bound = rows[0][1]
    if bound is not None:
        if (yield job_sql.WAITS_UP_TO, (lane, SCHEDULED, bound), False):
            # In a back-off: it goes again before all that is behind it. What is due comes here once more.
            yield job_sql.SHUT, {"why": BUSY, "queue": queue, "lane": lane}, False
            return
        if not (yield job_sql.WAITS_UP_TO, (lane, READY, bound), False):
            bound = None
    yield job_sql.END_BATCH, {"bound": bound, "queue": queue, "lane": lane}, False
    view.opened.add(queue)


def is_ordered(queue: int, lane: int) -> Generator[Step, Any, bool]:
    """Tell whether a lane's items go one batch at a time."""
    rows = yield job_sql.LANE, (queue, lane), False
    return bool(rows and rows[0][0])


def stopped_among(jobs: set[int]) -> Generator[Step, Any, set[int]]:
    """Return which of some jobs are stopped: what fails in them does not go again."""
    rows = yield job_sql.STOPPED_AMONG, (json.dumps(sorted(jobs)),), False
    return {number for (number,) in rows}
