"""What every batch did, and for whom: the settings, every name, and what a batcher calls.

A batcher calls twice a batch, ``begin`` and ``end``, and never for an item unless asked for. What
needs OpenTelemetry stands in ``_recording`` and is imported only once the program itself has
imported OpenTelemetry or passed a provider: where nobody set up an SDK there is nothing to record,
and importing its API takes longer than importing all of this package.

The names follow OpenTelemetry's semantic conventions where those fit. An in-memory batcher is no
messaging system, since its callers wait for the outcome; so all is ``microbatch.*`` but for what a
durable queue adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SCOPE: Final = "microbatch"


SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"


SPAN_PROCESS: Final = "process"


SPAN_SUBMIT: Final = "submit"


SPAN_SEND: Final = "send"


NAME: Final = "microbatch.batcher.name"


BATCH_SIZE: Final = "microbatch.batch.size"  # an attribute and a metric


REASON: Final = "microbatch.flush.reason"


ATTEMPT: Final = "microbatch.attempt"


FAILED_ITEMS: Final = "microbatch.batch.failed_items"


WAIT: Final = "microbatch.batch.wait"


LINKS_DROPPED: Final = "microbatch.links.dropped"


SKIPPED: Final = "microbatch.skipped"


STATE: Final = "microbatch.item.state"


FILE_PART: Final = "microbatch.file.part"


JOB_ID: Final = "microbatch.job.id"


JOB_LIFE: Final = "microbatch.job.life"


JOB_OUTCOME: Final = "microbatch.job.outcome"


ITEM_OUTCOME: Final = "microbatch.item.outcome"


ERROR_TYPE: Final = "error.type"


OTHER: Final = "_OTHER"


MESSAGING_SYSTEM: Final = "messaging.system"


MESSAGING_OPERATION: Final = "messaging.operation.name"


MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"


MESSAGING_DESTINATION: Final = "messaging.destination.name"


MESSAGING_COUNT: Final = "messaging.batch.message_count"


MESSAGING_ID: Final = "messaging.message.id"


_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


_SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


_CONVENTION_SECONDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip


#: A job takes seconds, or days.
_LONG_SECONDS: Final = (
    0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0,
)  # fmt: skip


#: Name: unit, description, bucket bounds.
HISTOGRAMS: Final[Mapping[str, tuple[str, str, tuple[float, ...]]]] = {
    BATCH_SIZE: ("{item}", "Items in a handler call.", _SIZES),
    "microbatch.batch.duration": ("s", "How long handler calls took.", _SECONDS),
    "microbatch.batch.wait.duration": (
        "s",
        "How long the oldest item of a batch waited.",
        _SECONDS,
    ),
    "microbatch.item.duration": ("s", "From submit to the result.", _SECONDS),
    "microbatch.job.duration": ("s", "How long jobs took.", _LONG_SECONDS),
    "messaging.process.duration": ("s", "Duration of processing.", _CONVENTION_SECONDS),
}


#: Name: unit, description.
COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "microbatch.items": ("{item}", "Items that have their outcome."),
    "microbatch.retries": ("{item}", "Failed items that were sent again."),
    "microbatch.holds": ("{hold}", "How often a backend that took nothing was left in peace."),
    "microbatch.job.items": ("{item}", "Items of jobs that have their outcome."),
    "messaging.client.sent.messages": ("{message}", "Messages that were committed."),
    "messaging.client.consumed.messages": (
        "{message}",
        "Messages that were handed to the handler.",
    ),
}


#: Name: unit, description. Observed when a reader collects: they cost nothing in between.
GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "microbatch.queue.size": ("{item}", "Items accepted and not yet resolved."),
    "microbatch.queue.capacity": ("{item}", "The most that may be: max_pending."),
    "microbatch.item.inflight": ("{item}", "Items in handler calls."),
    "microbatch.queue.weight": ("By", "What the items not yet resolved weigh."),
}


#: Name: kind of observable instrument, unit, description. What a durable queue last counted in its file.
QUEUE_GAUGES: Final[Mapping[str, tuple[str, str, str]]] = {
    "microbatch.queue.depth": ("up_down_counter", "{item}", "Items that have not ended."),
    "microbatch.queue.dead": ("up_down_counter", "{item}", "Dead letters."),
    "microbatch.queue.oldest_age": ("gauge", "s", "How long the oldest item has been due."),
    "microbatch.queue.file.size": (
        "up_down_counter",
        "By",
        "The file's pages in use, and its log.",
    ),
    "microbatch.queue.lock_waits": ("counter", "{wait}", "How often the file was found locked."),
    "microbatch.job.open": ("up_down_counter", "{job}", "Jobs that have not ended."),
}


#: Submitters that a batch is linked to: the SDK keeps no more by default.
LINKS_MAX: Final = 128


#: Different values of ``error.type`` for a batcher; each is a series in every backend (a choice).
ERROR_TYPES_MAX: Final = 100


#: Seconds between two looks for an SDK, while there is none.
OBSERVE_INTERVAL: Final = 1.0


#: Seconds between two counts of a durable queue's file, while somebody collects metrics: a third of what
#: readers usually let pass between two collections.
COUNT_INTERVAL: Final = 5.0


#: Seconds after which a count is no longer told, if no other follows: the file cannot be read.
COUNT_KEPT: Final = 60.0


_BY_IDENTITY: Final[tuple[Any, Any]] = (type.__hash__, type.__eq__)
