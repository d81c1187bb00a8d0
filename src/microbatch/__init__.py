"""microbatch: await one item, call the backend in bulk."""

from .adaptive import AdaptiveSize
from .batch import BatchInfo, current_batch
from .batcher import Batcher, BatcherStats, Pending
from .decorator import batched
from .errors import (
    BatchAborted,
    BatcherClosed,
    BatcherFull,
    BatchFailed,
    Full,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ItemError,
    ItemNotFound,
    ItemTooHeavy,
    MicrobatchError,
    ResultCountError,
    Skipped,
    WouldDeadlock,
)
from .outcome import BatchReport, Outcome
from .retry import Backoff, Retry
from .telemetry import Telemetry

__version__ = "0.1.0"

__all__ = [
    "AdaptiveSize",
    "Backoff",
    "BatchAborted",
    "BatchFailed",
    "BatchInfo",
    "BatchReport",
    "Batcher",
    "BatcherClosed",
    "BatcherFull",
    "BatcherStats",
    "Full",
    "HandlerCrashed",
    "HandlerStuck",
    "HandlerTimeout",
    "ItemError",
    "ItemNotFound",
    "ItemTooHeavy",
    "MicrobatchError",
    "Outcome",
    "Pending",
    "ResultCountError",
    "Retry",
    "Skipped",
    "Telemetry",
    "WouldDeadlock",
    "batched",
    "current_batch",
]
