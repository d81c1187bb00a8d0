"""What takes jobs many steps, each of which is a transaction of bounded length, in whatever process."""

from __future__ import annotations

from enum import IntEnum
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from . import job_counts, job_sql
from . import payloads as blobs
from .job_life import Event
from .ranges import DEAD, ITEMS_MAX, READY, SCHEDULED, STAGED, change, ended, merge, spans
from .records import Range, State
from .view import CLOCK_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Generator

    from microbatch.durable._file.limits import Limits

    from .records import Step
    from .view import Row, View

#: Ranges in one step.
STEP = 500

#: Rows of ids in one step: some 50,000 ids.
IDS_STEP = 200

EXPIRED = int(State.EXPIRED)

#: The code of an item that does not fit its type.
INVALID = "invalid_item"


class Chore(IntEnum):
    """What is left to do for a job; the numbers stand in the file."""

    MAKE_READY = 1
    END_WAITING = 2
    REMOVE_OUTCOMES = 3
    REMOVE = 4


class Needs(NamedTuple):
    """What a queue's jobs need.

    Attributes:
        overdue: Whether a deadline has passed.
        deadline: When the next one comes.
        tell: When the next end is to be told that nobody tells now.
        stopped: The ids of jobs of which nothing more may begin.
    """

    overdue: bool
    deadline: float | None
    tell: float | None
    stopped: list[str]


def step(view: View, job: int) -> Generator[Step, Any, bool]:
    """Do some of what is left to do for a job; return whether there is more."""
    rows = yield job_sql.CHORE_OF, (job,), False
    if not rows or rows[0][0] is None:
        return False
    chore, queue, stop, created_at, delay = rows[0]
    if chore == Chore.MAKE_READY:
        more = yield from _make_ready(view, queue, job, created_at, delay)
    elif chore == Chore.END_WAITING:
        more = yield from _end_waiting(view, queue, job, stop)
    else:
        more = yield from _remove_step(view, queue, job)
        if not more and chore == Chore.REMOVE:
            yield job_sql.REMOVE_DETAILS, (job,), False
            yield job_sql.REMOVE, (job,), False
    if not more:
        yield job_sql.END_CHORE, (job, chore), False
    yield from job_counts.flush(view)
    return bool(more)


def _make_ready(
    view: View, queue: int, job: int, created_at: float, delay: float
) -> Generator[Step, Any, bool]:
    """Let some of a job's items begin: they count from when it was seen first."""
    row = yield from view.row(queue)
    rows = yield job_sql.STAGED_OF, (job, STEP + 1), False
    old = [Range(*values) for values in rows[:STEP]]
    due, came = created_at + delay, created_at
    # A clock that was mended meanwhile lets nobody go before those, now or when their delay is over.
    for state in (READY, SCHEDULED):
        for last_due, last_came in (yield job_sql.LAST_WAITING, (job, state), False):
            due, came = max(due, last_due), max(came, last_came)
    since = due - delay
    came = max(came, since)
    state = SCHEDULED if due > view.now else READY
    new = []
    for one in old:
        if one.due < 0:
            new.append(_refused(view, row, one))
        else:
            new.append(one._replace(state=state, due=due, since=since, enqueued=came))
    yield from view.replace(row, old, merge(new))
    return len(rows) > STEP


def _refused(view: View, row: Row, one: Range) -> Range:
    """Return an item that never fitted its type: it has failed without an attempt."""
    assert one.job is not None  # noqa: S101
    row.end()
    view.count_code(row.id, one.job, INVALID)
    return ended(one, DEAD, view.now, None, row.end_number)._replace(enqueued=view.now)


def _end_waiting(view: View, queue: int, job: int, state: int) -> Generator[Step, Any, bool]:
    """End some of what has not begun, as cancelled or expired."""
    row = yield from view.row(queue)
    rows = yield job_sql.NOT_BEGUN, (job, STEP + 1), False
    old = [Range(*values) for values in rows[:STEP]]
    if old:
        row.end()
        view.ended_unheard.add(queue)
    new = [
        _refused(view, row, one)
        if one.state == STAGED and one.due < 0
        else ended(one, state, view.now, None, row.end_number)
        for one in old
    ]
    yield from view.replace(row, old, merge(new))
    return len(rows) > STEP


def _remove_step(view: View, queue: int, job: int) -> Generator[Step, Any, bool]:
    """Remove some of a job's items, and then of their ids, with all that belongs to them."""
    row = yield from view.row(queue)
    rows = yield job_sql.ALL_OF, (job, STEP), False
    if not rows:
        ids = yield job_sql.SOME_IDS, (job, IDS_STEP), False
        yield job_sql.REMOVE_IDS, [(job, position) for (position,) in ids], True
        return len(ids) == IDS_STEP
    old: list[Range] = []
    total = 0
    for values in rows:
        old.append(Range(*values))
        total += old[-1].count
        if total >= ITEMS_MAX:
            break
    row.remove()
    yield from view.write(row, change(old, ()), ends=False)
    gone = spans(old)
    yield from blobs.remove_errors(gone)
    for first, last in gone:
        yield from blobs.remove_results(first, last)
        yield from blobs.release(first, last)
    return True


# Looks: what time asks for


def expire(view: View, queue: int) -> Generator[Step, Any, bool]:
    """Stop a job that is past its deadline; return whether there is to be looked once more.

    A deadline that was counted from a wrong future counts from now.
    """
    future = view.now + CLOCK_TOLERANCE
    values = {"queue": queue, "now": view.now, "future": future}
    mended = yield job_sql.MEND, values, False
    for number, deadline in mended:
        yield job_sql.MEND_LANE, (deadline, queue, number), False
    for (job,) in (yield job_sql.OVERDUE, (queue, view.now), False):
        return (yield from job_counts.stop(view, job, EXPIRED))
    return bool(mended)


def keep(view: View, queue: int, limits: Limits) -> Generator[Step, Any, bool]:
    """Let go of what is kept too long: outcomes of jobs first, then jobs; return whether there may be more."""
    values = {"queue": queue, "now": view.now, "future": view.now + CLOCK_TOLERANCE}
    yield job_sql.MEND_ENDED, values, False
    for keyed in (0, 1):
        past = (queue, 1, keyed, view.now - limits.result_ttl)
        for (job,) in (yield job_sql.PAST, past, False):
            for (uid,) in (yield job_sql.FORGET_OUTCOMES, (job,), False):
                view.changed.add(uid)
                view.moved_life = True
            return True
    for kept, keyed in product((0, 1), (0, 1)):
        # A key lives as long as it was promised, whatever becomes of the rest.
        ttl = max(limits.job_ttl, limits.key_ttl) if keyed else limits.job_ttl
        past = (queue, kept, keyed, view.now - ttl)
        for (job,) in (yield job_sql.PAST, past, False):
            yield from job_counts.move(view, job, Event.DELETED)
            return True
    return False


def needs(view: View, queue: int) -> Generator[Step, Any, Needs]:
    """Return what a queue's jobs need to have done, without changing anything."""
    ((deadline,),) = yield job_sql.NEXT_DEADLINE, (queue,), False
    mend = False
    if deadline is not None:
        mend = bool((yield job_sql.NEEDS_MEND, (queue, view.now + CLOCK_TOLERANCE), False))
    ((tell,),) = yield job_sql.NEXT_TELL, (queue,), False
    stopped = yield job_sql.STOPPED, (queue,), False
    return Needs(
        overdue=mend or (deadline is not None and deadline <= view.now),
        deadline=deadline,
        tell=tell,
        stopped=[uid for (uid,) in stopped],
    )
