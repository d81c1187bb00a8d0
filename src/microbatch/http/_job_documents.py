"""A job, and what became of its items, as clients get them."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Final

from microbatch._pure.exceptions import ItemError

from ._reply import HTTPReply, json_reply
from ._results import BatchSummary, ItemTelling

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._pure.report import Outcome
    from microbatch.durable import JobStatus

    from ._exchange import Exchange
    from ._results import ItemRecord

_STATUSES: Final = {"queued": "pending", "running": "processing", "cancelling": "processing"}
_DONE_WELL: Final = ("succeeded", "partially_succeeded")

#: Seconds that a client is told at most to wait before it asks again.
_POLL_SECONDS_MAX: Final = 30.0

#: What a job says when it is asked for: it is one client's, and different the next moment.
PRIVATE: Final = "private, no-cache"


class JobTelling(ItemTelling):
    """Makes records of a job's items. Errors that are no client's business stand where the job was handled."""

    def __init__(self, status_of: Callable[[str], int | None] | None, job: str) -> None:
        super().__init__(status_of, "a job")
        self._job = job

    def _id_of(self, error: Exception) -> str:
        del error  # the worker has logged it, and its dead letter has its text
        return f"in job {self._job}"

    def of_outcome(self, outcome: Outcome[Any]) -> ItemRecord:
        """Return the record of an item of a job."""
        return self.record(
            outcome.index,
            "create",
            id=outcome.id if isinstance(outcome.id, str) else None,
            result=outcome.value,
            error=outcome.error,
        )


def word_for(status: JobStatus) -> str:
    """Return the status of a job: ``"pending"``, ``"processing"``, ``"completed"`` or ``"failed"``."""
    if status.life != "ended":
        return _STATUSES[status.life]
    return "completed" if status.outcome in _DONE_WELL else "failed"


def job_document(exchange: Exchange, status: JobStatus) -> dict[str, Any]:
    """Return a job as JSON has it. Neither its owner, nor its key, nor its metadata is shown."""
    own = exchange.link(f"/jobs/{status.id}")
    return {
        "id": status.id,
        "status": word_for(status),
        "life": status.life,
        "outcome": status.outcome,
        "paused": status.paused,
        "total": status.total,
        "progress": {
            "fraction": status.fraction,
            # Not 100 before the end, however near that is.
            "percentage": math.floor(status.fraction * 1_000) / 10,
            "processed": status.done,
            "total": status.total,
            "succeeded": status.succeeded,
            "failed": status.failed,
            "skipped": status.skipped,
            "cancelled": status.cancelled,
            "expired": status.expired,
        },
        "errors": dict(status.errors),
        "rate": status.rate,
        "eta": status.eta,
        "created_at": status.created_at,
        "started_at": status.started_at,
        "ended_at": status.ended_at,
        "expires_at": status.expires_at,
        "retry_of": status.retry_of,
        "links": {
            "self": own,
            "results": f"{own}/results",
            "errors": f"{own}/errors",
            "cancel": f"{own}/cancel",
            "retry": f"{own}/retry",
            "events": f"{own}/events",
        },
    }


def tag_of(status: JobStatus) -> str:
    """Return what is another word whenever something has happened to a job; time alone is nothing."""
    state = (
        status.id, status.life, status.outcome, status.paused, status.total, status.succeeded, status.failed,
        status.skipped, status.cancelled, status.expired, sorted(status.errors.items()), status.started_at,
    )  # fmt: skip
    return hashlib.blake2b(repr(state).encode(), digest_size=12).hexdigest()


def summary_of_job(status: JobStatus) -> BatchSummary:
    """Return the summary of a batch that was a job."""
    return BatchSummary(
        total=status.total,
        succeeded=status.succeeded,
        failed=status.failed,
        skipped=status.skipped,
        cancelled=status.cancelled,
        expired=status.expired,
        errors=dict(status.errors),
    )


def poll_after(status: JobStatus) -> str:
    """Return in how many seconds it pays to ask again."""
    return str(math.ceil(min(max(status.eta or 0.0, 1.0), _POLL_SECONDS_MAX)))


def state_reply(exchange: Exchange, status: JobStatus, code: int = 200) -> HTTPReply:
    """Return the answer that shows a job."""
    headers = {"etag": f'W/"{tag_of(status)}"', "cache-control": PRIVATE}
    if status.life != "ended":
        headers["retry-after"] = poll_after(status)
    return json_reply(code, job_document(exchange, status), headers=headers)


def accepted_reply(exchange: Exchange, status: JobStatus, **more: Any) -> HTTPReply:
    """Return the answer for a job that is new: where it is seen, and when to look."""
    document = job_document(exchange, status)
    document["jobId"] = status.id
    document["statusUrl"] = document["links"]["self"]
    document["resultsUrl"] = document["links"]["results"]
    headers = {"location": document["statusUrl"], "retry-after": poll_after(status)}
    return json_reply(202, document, headers=headers, **more)


def refused_item(error: Exception) -> ItemError:
    """Return what stands in a job for an item that cannot be handled.

    Of errors that are no ItemError it says no more than that there was one.
    """
    if isinstance(error, ItemError):
        return error.with_traceback(None)
    return ItemError("it could not be checked", code="invalid_item", retryable=False)
