"""What is known of a job at one moment, and pages of jobs and of their outcomes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from ._file.job_life import VISIBLE, rate_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from microbatch._pure.report import Outcome

    from ._file.job_records import JobRow

R_co = TypeVar("R_co", covariant=True)

LifeName = Literal["queued", "running", "cancelling", "ended"]
OutcomeName = Literal["succeeded", "partially_succeeded", "failed", "cancelled", "expired"]

_NAMES = {int(life): name for name, life in VISIBLE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job at one moment; all its figures are of that one.

    ``total == succeeded + failed + skipped + cancelled + expired + pending`` always holds.

    Attributes:
        id: The job's id.
        queue: The name of its queue.
        owner: Whose it is; None for nobody's.
        key: The key that it was enqueued with.
        metadata: What it was given; None without any.
        retry_of: The id of the job whose items it took over; None for any other.
        life: ``"queued"``, ``"running"``, ``"cancelling"`` or ``"ended"``.
        outcome: None until it has ended, then ``"succeeded"``, ``"partially_succeeded"``, ``"failed"``,
            ``"cancelled"`` or ``"expired"``.
        paused: Whether nothing of it begins until ``resume()``.
        total: How many items it has.
        succeeded: How many have a result.
        failed: How many have failed for good: one that waits for its next attempt has not.
        skipped: How many their handler left out.
        cancelled: How many were cancelled.
        expired: How many had not begun when the deadline came.
        errors: How many failed or were skipped, by code: at most 100 codes, the rest under ``"other"``.
        created_at: When it could be seen first, in UTC, as all times here.
        started_at: When its first item was claimed; None before.
        ended_at: When its last item ended; None before.
        expires_at: When its row goes, by the ``job_ttl`` of the queue that was asked, and its ``key_ttl``
            if it has a key; None before its end.
        rate: Items per second of late; 0 before the first has ended, and once it has ended.
        eta: Seconds until its end at that rate; None where nothing can be said, and 0 at its end.
    """

    id: str
    queue: str
    owner: str | None
    key: str | None
    metadata: Mapping[str, Any] | None
    retry_of: str | None
    life: LifeName
    outcome: OutcomeName | None
    paused: bool
    total: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    expired: int
    errors: Mapping[str, int]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    rate: float
    eta: float | None

    @property
    def done(self) -> int:
        """Return how many items have ended, in whatever way."""
        return self.succeeded + self.failed + self.skipped + self.cancelled + self.expired

    @property
    def pending(self) -> int:
        """Return how many items have not ended."""
        return self.total - self.done

    @property
    def fraction(self) -> float:
        """Return which part of the items has ended, 0.0 to 1.0: exactly 1.0 at the end and without items."""
        return self.done / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True)
class JobPage(Generic[R_co]):
    """Some of a job's outcomes.

    Attributes:
        outcomes: Those that have ended, by their index.
        cursor: What gives the next page; None at the end of what has ended so far. A page of large
            results may be shorter than was asked for and have a cursor all the same.
    """

    outcomes: Sequence[Outcome[R_co]]
    cursor: int | None


@dataclass(frozen=True, slots=True)
class JobsPage:
    """Some of a queue's jobs.

    Attributes:
        jobs: The newest first.
        cursor: What gives the next page; None at the end.
    """

    jobs: Sequence[JobStatus]
    cursor: int | None


def status_of(row: JobRow, queue: str, job_ttl: float, now: float) -> JobStatus:
    """Return a job as its row has it.

    Args:
        row: The row.
        queue: The queue's name.
        job_ttl: Seconds for which the row is kept once it has ended.
        now: The time, in seconds since the epoch.
    """
    pending = row.total - sum(row.tally)
    running = not row.has_ended and row.started_at is not None
    rate = rate_of(row.pace, now) if running else 0.0
    eta: float | None = pending / rate if rate and not row.paused else None
    ended = row.ended_at
    return JobStatus(
        id=row.uid,
        queue=queue,
        owner=row.owner,
        key=row.key,
        metadata=None if row.metadata is None else json.loads(row.metadata),
        retry_of=row.retry_of,
        life=cast("LifeName", _NAMES[row.life]),
        outcome=cast("OutcomeName | None", row.outcome),
        paused=bool(row.paused),
        total=row.total,
        succeeded=row.succeeded,
        failed=row.failed,
        skipped=row.skipped,
        cancelled=row.cancelled,
        expired=row.expired,
        errors=row.codes(),
        created_at=_time(row.created_at),
        started_at=None if row.started_at is None else _time(row.started_at),
        ended_at=None if ended is None else _time(ended),
        expires_at=None if ended is None else _time(min(ended + job_ttl, _LATEST)),
        rate=rate,
        eta=0.0 if row.has_ended else eta,
    )


#: The last second of the year 9999: later times have no form.
_LATEST = 253_402_300_799.0


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
