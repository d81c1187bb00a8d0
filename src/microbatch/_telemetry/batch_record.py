"""What a function of the program's own is told of a batch."""

# No annotations in the future: who asks for the type hints of this class looks for names in `microbatch`.
from dataclasses import dataclass
from typing import Any

from microbatch._pure.reason import Reason


# Without slots: `record_of` can fill a dict at once.
@dataclass(frozen=True, kw_only=True)
class BatchRecord:
    """What became of one batch, for ``Telemetry(on_batch=...)``.

    ``size == succeeded + failed + skipped + retried + held`` always holds.

    Attributes:
        name: The batcher's name.
        size: Items in the handler call.
        reason: Why the batch left, as ``BatchInfo.reason``.
        seconds: How long the handler call took, layers and a worker thread's start included.
        oldest_wait: Seconds that its oldest item had waited until the batch left.
        succeeded: Items that have a result; their callers may have gone.
        failed: Items that failed for good.
        skipped: Items that ended with a ``Skipped``.
        retried: Items that failed and go again by ``retry``; in durable mode also those that a close cut
            short. They are counted anew in their next batch.
        held: Items that a backend refused for now (``RateLimited``, with ``retry``) and that go again, no
            attempt counted.
        errors: How many items failed or were skipped, by code, as ``BatchReport.errors``.
    """

    name: str
    size: int
    reason: Reason
    seconds: float
    oldest_wait: float
    succeeded: int
    failed: int
    skipped: int
    retried: int
    held: int
    errors: dict[str, int]


def record_of(**fields: Any) -> BatchRecord:
    """Make a record: the constructor of a frozen class takes four times as long, which is most of a call."""
    record = object.__new__(BatchRecord)
    vars(record).update(fields)
    return record
