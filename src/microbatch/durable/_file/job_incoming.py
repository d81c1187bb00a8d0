"""A job that comes in: its row first, then its items in many transactions, then seen at once by everybody."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from microbatch.durable.errors import QueueUnavailable

from . import job_counts, job_sql, sql
from . import payloads as blobs
from .job_life import Counts, Event, JobLife
from .job_records import Begun
from .job_steps import step
from .ranges import ITEMS_MAX, STAGED
from .records import Range
from .storing import file_is_full, refusal

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from microbatch.durable._file.limits import Limits
    from microbatch.durable.errors import QueueFull

    from .job_records import Chunk, NewJob
    from .records import Step
    from .view import View

#: Ids of the client's in one row: a claim of a hundred items reads two of them at most.
IDS_TOGETHER = 250

#: Stands in the place of a staged item's delay if the item does not fit its type: it has failed already.
REFUSED = -1.0


def begin(
    view: View, queue: int, new: NewJob, consumer: int, key_ttl: float
) -> Generator[Step, Any, Begun]:
    """Make a job's row, which nobody sees yet, unless another job has its key."""
    if new.key is not None:
        values = {"queue": queue, "owner": new.owner or "", "key": new.key}
        for number, uid, life, ended_at, fingerprint in (yield job_sql.BY_KEY, values, False):
            if life == JobLife.STAGED:
                return Begun(number, uid, busy=True)
            if life != JobLife.ENDED or ended_at + key_ttl > view.now:
                differs = None not in (new.fingerprint, fingerprint)
                differs = differs and bytes(fingerprint) != new.fingerprint
                return Begun(number, uid, repeated=True, conflict=differs)
            yield job_sql.UNKEY, (number,), False
    values = new._asdict() | {"queue": queue, "consumer": consumer}
    del values["metadata"]
    ((number,),) = yield job_sql.MAKE, values, False
    yield job_sql.MAKE_DETAILS, (number, new.metadata), False
    return Begun(number, new.uid)


def stage_chunk(  # noqa: PLR0917
    view: View, queue: int, limits: Limits, job: int, chunk: Chunk, consumer: int | None
) -> Generator[Step, Any, QueueFull | None]:
    """Store items of a job, all of them or none; return why none.

    Raises:
        QueueUnavailable: If the job is not there any more, or is not this consumer's.
    """
    row = yield from view.row(queue)
    priority, delay = yield from _incoming(view, job, consumer)
    count = len(chunk.payloads)
    if (yield from file_is_full(view, limits)):
        return (yield from refusal(queue, "max_file_bytes", limits.max_file_bytes))
    if row.depth + count > limits.max_depth:
        return (yield from refusal(queue, "max_depth", limits.max_depth))
    first = yield from view.take_ids(count)
    traces = None if chunk.trace is None else [chunk.trace] * count
    yield from blobs.store(queue, first, chunk.payloads, traces)
    plain = Range(
        first, count, queue, job, STAGED, priority, delay, 0.0, 0, 0, None, None, None, view.ticket, job,
        chunk.position, None, view.now, None, None, None,
    )  # fmt: skip
    yield from view.replace(row, (), list(_pieces(plain, chunk)))
    if chunk.refused:
        errors = [(first + place, error) for place, error in chunk.refused.items()]
        yield sql.ERROR, errors, True
    if chunk.ids is not None:
        rows = [
            (job, chunk.position + at, len(some), json.dumps(some))
            for at in range(0, count, IDS_TOGETHER)
            if (some := chunk.ids[at : at + IDS_TOGETHER])
        ]
        yield job_sql.WRITE_IDS, rows, True
    return None


def _incoming(
    view: View, job: int, consumer: int | None
) -> Generator[Step, Any, tuple[int, float]]:
    rows = yield job_sql.INCOMING, (job,), False
    if not rows or rows[0][0] != JobLife.STAGED or rows[0][1] != consumer:
        reason = "what was written of this job is not there any more: enqueue it again"
        raise QueueUnavailable(str(view.path), reason)
    return rows[0][2], rows[0][3]


def _pieces(whole: Range, chunk: Chunk) -> Iterator[Range]:
    """Yield the chunk's ranges: items that do not fit stand alone."""
    at = 0
    for place in [*sorted(chunk.refused), whole.count]:
        while at < place:
            count = min(ITEMS_MAX, place - at)
            yield whole._replace(first=whole.first + at, count=count, position=chunk.position + at)
            at += count
        if place < whole.count:
            yield whole._replace(
                first=whole.first + place, count=1, position=chunk.position + place, due=REFUSED
            )
            at = place + 1


def show(
    view: View, queue: int, job: int, total: int, consumer: int | None
) -> Generator[Step, Any, bool]:
    """Let everybody see a job, and the first of its items become ready; return whether there are more.

    Raises:
        QueueUnavailable: If not all of it is there.
    """
    yield from _incoming(view, job, consumer)
    row = yield from job_counts.move(view, job, Event.SHOWN, total=total)
    assert row is not None  # noqa: S101 - it is coming in
    uid, _, _, size, ordered, named, deadline = row
    lane = (queue, job, size, ordered, deadline, uid, named)
    yield job_sql.MAKE_LANE, lane, False
    if not total:
        yield from job_counts.end(view, job, queue, Counts())
        return False
    return (yield from step(view, job))


def abandon(view: View, job: int) -> Generator[Step, Any, bool]:
    """Give up a job that is coming in: it is removed step by step."""
    return (yield from job_counts.move(view, job, Event.ABANDONED)) is not None


def abandon_all(view: View, consumer: int) -> Generator[Step, Any, list[int]]:
    """Give up all that a consumer brings, and what it was to tell; return the jobs that are to be removed."""
    yield job_sql.GIVE_BACK_TELLS, (consumer,), False
    view.moved_life = True  # somebody else may tell it now
    jobs = [job for (job,) in (yield job_sql.STAGED_BY, (consumer,), False)]
    for job in jobs:
        yield from abandon(view, job)
    return jobs
