"""The durable mode: the same ``submit``, on disk before it is acknowledged."""

from .batcher import DurableBatcher
from .errors import (
    IdempotencyConflict,
    ItemCancelled,
    ItemFailed,
    QueueCorrupt,
    QueueFull,
    QueueUnavailable,
    SchemaTooNew,
    UnknownTicket,
)
from .queue import DurableQueue
from .records import DeadLetter, QueueStats, Ticket

__all__ = [
    "DeadLetter",
    "DurableBatcher",
    "DurableQueue",
    "IdempotencyConflict",
    "ItemCancelled",
    "ItemFailed",
    "QueueCorrupt",
    "QueueFull",
    "QueueStats",
    "QueueUnavailable",
    "SchemaTooNew",
    "Ticket",
    "UnknownTicket",
]
