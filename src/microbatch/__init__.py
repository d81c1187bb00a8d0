"""microbatch: await one item, call the backend in bulk."""

from . import errors as _errors
from ._core.batcher import Batcher
from ._core.decorator import batched
from ._core.info import BatchInfo, batch_info, current_batch
from ._core.pending import Pending
from ._core.retry_after import retry_after
from ._core.stats import BatcherStats
from ._pure.adaptive import AdaptiveSize
from ._pure.exceptions import (
    BatchAborted,
    BatcherClosed,
    BatcherFull,
    Full,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ItemError,
    ItemNotFound,
    ItemTooHeavy,
    MicrobatchError,
    RateLimited,
    ResultCountError,
    Skipped,
    WouldDeadlock,
)
from ._pure.report import BatchFailed, BatchReport, Outcome
from ._pure.retry import Backoff, Retry
from ._pure.version import __version__ as __version__
from ._telemetry.batch_record import BatchRecord
from ._telemetry.settings import Telemetry
from .loader import Loader

__all__ = [
    "AdaptiveSize",
    "Backoff",
    "BatchAborted",
    "BatchFailed",
    "BatchInfo",
    "BatchRecord",
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
    "Loader",
    "MicrobatchError",
    "Outcome",
    "Pending",
    "RateLimited",
    "ResultCountError",
    "Retry",
    "Skipped",
    "Telemetry",
    "WouldDeadlock",
    "batch_info",
    "batched",
    "current_batch",
    "retry_after",
]

for _name in __all__:  # tracebacks, reprs and pickles name the module where users find them
    if not hasattr(_errors, _name):
        globals()[_name].__module__ = __name__
