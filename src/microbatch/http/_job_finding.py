"""Which job a request means, among those of its principal; and what queues' errors mean over HTTP."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import BatcherClosed
from microbatch.durable.access import recipes
from microbatch.durable.errors import (
    IdempotencyConflict,
    JobNotEnded,
    QueueFull,
    QueueUnavailable,
    ResultsExpired,
    UnknownJob,
)

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from microbatch.durable import DurableQueue, Job, JobStatus

    from ._collection import Collection
    from ._exchange import Exchange

    Queue = DurableQueue[Any, Any]

#: Seconds after which a queue that is full, or cannot be used, may be asked again.
QUEUE_RETRY_AFTER = 5.0

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def queues_of(collections: Iterable[Collection]) -> list[Queue]:
    """Return the queues of collections, each once, in their order."""
    found: dict[tuple[str, str], Queue] = {}
    for collection in collections:
        queue = collection.settings.queue
        if queue is not None:
            recipe = recipes[queue]
            found.setdefault((str(recipe["path"]), recipe["queue"]), queue)
    return list(found.values())


def queue_of(collection: Collection) -> Queue:
    """Return the queue of a collection that has one."""
    queue = collection.settings.queue
    assert queue is not None  # noqa: S101 - else nothing of it becomes a job
    return queue


def unknown_job() -> Problem:
    """Return the one answer for a job that never was, is gone, or is somebody else's."""
    return Problem(404, "there is no such job", type="unknown-job")


@contextlib.contextmanager
def queue_problems() -> Iterator[None]:
    """Tell errors of queues in the words of HTTP. None of their texts leaves: they name files.

    Raises:
        Problem: In their place.
    """
    try:
        yield
    except UnknownJob:
        raise unknown_job() from None
    except ResultsExpired:
        detail = "the results of this job are no longer kept"
        raise Problem(410, detail, type="results-expired") from None
    except JobNotEnded:
        raise Problem(409, "this job has not ended", type="job-not-ended") from None
    except IdempotencyConflict:
        raise Problem(
            422,
            "this Idempotency-Key came with another request before: use a new one for each",
            type="idempotency-key-reused",
        ) from None
    except QueueFull as error:
        raise Problem(
            503, "the queue is full", type="queue-full", retry_after=QUEUE_RETRY_AFTER
        ) from error
    except (QueueUnavailable, BatcherClosed) as error:
        raise Problem(503, "the queue cannot be used now", retry_after=QUEUE_RETRY_AFTER) from error


async def find_job(exchange: Exchange) -> tuple[Queue, Job[Any], JobStatus]:
    """Return the job that a path names, the queue that it is in, and how it is.

    Raises:
        Problem: 404 if the principal has no such job.
    """
    identifier, owner = exchange.parameters["id"], exchange.principal.id
    if _ID.fullmatch(identifier):
        for queue in queues_of(exchange.parts.collections.values()):
            job = queue.job(identifier, owner)
            with contextlib.suppress(UnknownJob):
                return queue, job, await job.status()
    raise unknown_job()
