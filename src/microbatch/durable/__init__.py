"""The durable mode: the same ``submit``, on disk before it is acknowledged."""

from .batcher import DurableBatcher
from .errors import (
    IdempotencyConflict,
    ItemCancelled,
    ItemExpired,
    ItemFailed,
    JobNotEnded,
    JobRejected,
    QueueCorrupt,
    QueueFull,
    QueueUnavailable,
    ResultsExpired,
    SchemaTooNew,
    UnknownJob,
    UnknownTicket,
)
from .job import Job
from .job_status import JobPage, JobsPage, JobStatus
from .queue import DurableQueue
from .records import DeadLetter, QueueStats, Ticket

__all__ = [
    "DeadLetter",
    "DurableBatcher",
    "DurableQueue",
    "IdempotencyConflict",
    "ItemCancelled",
    "ItemExpired",
    "ItemFailed",
    "Job",
    "JobNotEnded",
    "JobPage",
    "JobRejected",
    "JobStatus",
    "JobsPage",
    "QueueCorrupt",
    "QueueFull",
    "QueueStats",
    "QueueUnavailable",
    "ResultsExpired",
    "SchemaTooNew",
    "Ticket",
    "UnknownJob",
    "UnknownTicket",
]
