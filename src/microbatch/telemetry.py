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

import contextlib
import logging
import math
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from . import _checks
from ._log import write
from .errors import (
    BatcherClosed,
    BatcherFull,
    Full,
    HandlerTimeout,
    ItemError,
    Skipped,
    code_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from ._recording import Recorder
    from .batch import Run

# Names. The conventions for messaging may still change: all of them stand here, under one version.

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
    "messaging.process.duration": ("s", "Duration of processing.", _CONVENTION_SECONDS),
}

#: Name: unit, description.
COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "microbatch.items": ("{item}", "Items that have their outcome."),
    "microbatch.retries": ("{item}", "Failed items that were sent again."),
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
}

# Bounds

#: Submitters that a batch is linked to: the SDK keeps no more by default.
LINKS_MAX: Final = 128

#: Different values of ``error.type`` for a batcher; each is a series in every backend (a choice).
ERROR_TYPES_MAX: Final = 100

#: Seconds between two looks for an SDK, while there is none.
LOOK_INTERVAL: Final = 1.0

#: Seconds between two counts of a durable queue's file, while somebody collects metrics: a third of what
#: readers usually let pass between two collections.
COUNT_INTERVAL: Final = 5.0

#: Seconds after which a count is no longer told, if no other follows: the file cannot be read.
COUNT_KEPT: Final = 60.0

#: Seconds between two records of a batcher's failed batches in the log; those between are counted.
LOG_INTERVAL: Final = 10.0


class _CancelledError(Exception):
    """Stands for callers who went before a handler saw their items."""


_KNOWN: Final[Mapping[type[BaseException], str]] = {
    BatcherClosed: "closed",
    HandlerTimeout: "timeout",
    _CancelledError: "cancelled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a batcher tells OpenTelemetry, and whom.

    Args:
        tracer_provider: Where spans go; the global one by default, whenever it is set.
        meter_provider: Where metrics go; the global one by default, whenever it is set.
        trace_items: Make a span ``submit {name}`` for each call, from the call to its result. With
            an SDK that costs some 40 us each. A ``submit_many`` is one call.
        item_metrics: Record ``microbatch.item.duration`` for each call: some 20 us each.
        link_back: Link each submitter's span, if it is still open, to the batch's span.
        parent: ``"link"``: batch spans are roots, linked to the submitters'. ``"auto"``: a batch
            all of whose items come from one span becomes its child instead.
        error_codes: Codes of ``ItemError`` that may stand as ``error.type``; each makes a series.
        semconv_metrics: In durable mode, the ``messaging.*`` metrics too.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If ``parent`` is neither of the two.
    """

    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    trace_items: bool = False
    item_metrics: bool = False
    link_back: bool = False
    parent: Literal["link", "auto"] = "link"
    error_codes: Collection[str] = ()
    semconv_metrics: bool = False

    def __post_init__(self) -> None:
        for name, method in (("tracer_provider", "get_tracer"), ("meter_provider", "get_meter")):
            provider = getattr(self, name)
            if provider is not None and not callable(getattr(provider, method, None)):
                raise TypeError(f"{name} must have {method}() or be None, got {provider!r}")
        for name in ("trace_items", "item_metrics", "link_back", "semconv_metrics"):
            _checks.flag(name, getattr(self, name))
        if self.parent not in ("link", "auto"):
            raise ValueError(f"parent must be 'link' or 'auto', got {self.parent!r}")
        codes = self.error_codes
        if isinstance(codes, str) or not isinstance(codes, Collection):
            raise TypeError(f"error_codes must be a collection of str, got {codes!r}")
        for code in codes:
            if not isinstance(code, str):
                raise TypeError(f"error_codes must hold str, got {code!r}")


_DEFAULT: Final = Telemetry()


class Counted:
    """What a durable queue last counted in its file, for readers of gauges in whatever thread.

    Args:
        name: The queue's name for telemetry.
        place: The file, and the queue in it: who counts the same place counts the same items.

    Attributes:
        stats: The counts, a ``QueueStats``; None while there are none.
    """

    __slots__ = ("__weakref__", "_kept", "name", "place")

    def __init__(self, name: str, place: object) -> None:
        self.name: str = name
        self.place: object = place
        self._kept: tuple[float, Any] = (0.0, None)

    def keep(self, stats: Any) -> None:
        """Take in what was counted just now; None forgets what was before."""
        self._kept = (time.monotonic(), stats)

    @property
    def stats(self) -> Any:
        """Return the counts, unless they are too old."""
        at, stats = self._kept
        return stats if time.monotonic() - at < COUNT_KEPT else None


#: What an error counts as: its class, and the code of an ItemError.
Kind = tuple[type[BaseException], str | None]

CANCELLED: Final[Kind] = (_CancelledError, None)
CLOSED: Final[Kind] = (BatcherClosed, None)
FULL: Final[Kind] = (BatcherFull, None)


_BY_IDENTITY: Final[tuple[Any, Any]] = (type.__hash__, type.__eq__)


def kind_of(error: BaseException) -> Kind:
    """Return what an error counts as; unlike the error it keeps nothing alive, and it can be hashed.

    A class whose own class compares and hashes as it likes counts as the base that does not.
    """
    cls = type(error)
    code = code_of(error) if issubclass(cls, ItemError) else None  # type: ignore[arg-type]
    while (type(cls).__hash__, type(cls).__eq__) != _BY_IDENTITY:
        cls = cls.__bases__[0]
    return cls, code


def counted(counts: dict[Kind, int] | None, error: BaseException) -> dict[Kind, int]:
    """Count one more error, in a dict that is made for the first one."""
    counts = {} if counts is None else counts
    kind = kind_of(error)
    counts[kind] = counts.get(kind, 0) + 1
    return counts


class Observer:
    """Tells OpenTelemetry and the log what one batcher does.

    Attributes:
        name: The batcher's name.
        settings: What to tell.
        queue: The durable queue whose items the batches are, if they are.
        counted: What that queue counts for gauges, if it does.
        per_item: True if a waiter has to tell of its end.
        recorder: What records, while somebody listens.
        tracing: True while spans are recorded, so that it matters who submits.
        look_at: When to look again whether somebody listens, by the loop's clock.
    """

    __slots__ = (
        "_kinds",
        "_logged_at",
        "_muted",
        "_muted_items",
        "counted",
        "look_at",
        "name",
        "per_item",
        "queue",
        "recorder",
        "settings",
        "tracing",
    )

    def __init__(
        self, name: str, settings: Telemetry | None = None, queue: str | None = None
    ) -> None:
        self.name: str = name
        self.settings: Telemetry = _DEFAULT if settings is None else settings
        self.queue: str | None = queue
        self.counted: Counted | None = None
        self.per_item: bool = self.settings.trace_items or self.settings.item_metrics
        self.recorder: Recorder | None = None
        self.tracing: bool = False
        self.look_at: float = -math.inf
        self._kinds: dict[Kind, str] = {}
        self._logged_at = -math.inf
        self._muted = self._muted_items = 0

    @property
    def measuring(self) -> bool:
        """Tell whether somebody takes figures."""
        return self.recorder is not None and self.recorder.instruments is not None

    def look(self, batcher: Any, now: float) -> None:
        """See whether anybody listens.

        An SDK may be set up after the batcher, so this is asked again until spans and metrics have
        both found somebody.
        """
        self.look_at = now + LOOK_INTERVAL
        settings = self.settings
        given = settings.tracer_provider is not None or settings.meter_provider is not None
        if not given and "opentelemetry.trace" not in sys.modules:
            return
        from ._recording import Recorder  # noqa: PLC0415 - it imports OpenTelemetry

        recorder = self.recorder or Recorder(self)  # of a queue without batches: batcher is None
        try:
            recorder.look(batcher)
        except Exception as error:  # noqa: BLE001 - a provider's: the items go their way
            self._stop(error)
            return
        if recorder.tracer is not None or recorder.instruments is not None:
            self.recorder = recorder
        if recorder.tracer is not None and recorder.instruments is not None:
            self.look_at = math.inf
        self.tracing = recorder.tracer is not None

    def creator(self, runtime: Any, clock: Callable[[], float]) -> Callable[[], Any]:
        """Return what makes the waiters of usual calls."""
        recorder = self.recorder
        if recorder is not None and self.per_item:
            return lambda: self.watched(runtime, None, clock)
        if recorder is not None and self.tracing:
            return recorder.creator(runtime.traced_waiter)
        return runtime.create_waiter  # type: ignore[no-any-return]

    def watched(self, runtime: Any, on_cancel: Any, clock: Callable[[], float]) -> Any:
        """Return a waiter that tells of its cancellation; call it in the caller's context."""
        make = runtime.item_waiter if self.per_item else runtime.watched_waiter
        waiter = make(on_cancel)
        self.mark(waiter, clock)
        return waiter

    def mark(self, waiter: Any, clock: Callable[[], float]) -> None:
        """Note on a waiter whose it is; call it in the caller's context."""
        recorder = self.recorder
        if recorder is None:
            return
        try:
            if self.per_item:
                recorder.mark_item(waiter, clock)
            elif self.tracing:
                recorder.mark(waiter)
        except Exception as error:  # noqa: BLE001 - an SDK's or a sampler's: the item goes its way
            self._stop(error)

    def begin(self, run: Run) -> None:
        """Tell that a handler is about to be called; call it in the batch's own context."""
        recorder = self.recorder
        assert recorder is not None  # noqa: S101 - else there is nobody to tell
        try:
            recorder.begin(run)
        except Exception as error:  # noqa: BLE001 - an SDK's or a sampler's: the batch goes its way
            self._stop(error)

    def end(self, run: Run, now: float) -> None:
        """Tell that all items of a batch have their outcome, or are sent again."""
        if run.errors:
            self._log(run, now)
        if run.record is None:
            return
        try:
            if (
                self.recorder is None
            ):  # it failed meanwhile; what it has begun is ended all the same
                run.record.close()
                return
            self.recorder.end(run, now)
        except Exception as error:  # noqa: BLE001 - an SDK's or an exporter's
            self._stop(error)

    @contextlib.contextmanager
    def sending(self, count: int, now: float) -> Iterator[bytes | None]:
        """Tell that items are being stored; give what to store with them: whose they are."""
        if now >= self.look_at:
            self.look(None, now)
        recorder, span, trace, failure = self.recorder, None, None, None
        if recorder is not None and self.tracing:
            try:
                span, trace = recorder.begin_sending(count)
            except Exception as error:  # noqa: BLE001 - an SDK's or a sampler's: the items go their way
                self._stop(error)
        try:
            yield trace
        except BaseException as error:
            failure = error
            raise
        finally:
            if recorder is not None and span is not None:
                try:
                    recorder.end_sending(span, count, failure)
                except Exception as error:  # noqa: BLE001 - an SDK's or an exporter's
                    self._stop(error)
            # In a traceback it would keep the exception alive, and that the traceback.
            failure = None

    def refused(self, kind: Kind, count: int = 1) -> None:
        """Count items that ended before any handler saw them; told with the next batch.

        Not those of a durable queue: they are on the disk still.
        """
        recorder = self.recorder
        if recorder is not None and self.queue is None:
            recorder.refused[kind] = recorder.refused.get(kind, 0) + count

    def settled(
        self,
        succeeded: int,
        skipped: int,
        failed: dict[Kind, int] | None,
        retried: dict[Kind, int] | None,
    ) -> None:
        """Count what became of a durable queue's items, now that it is on the disk."""
        assert self.recorder is not None  # noqa: S101 - else there is nobody to tell
        try:
            self.recorder.tell_ends(succeeded, skipped, failed, retried, None)
        except Exception as error:  # noqa: BLE001 - an SDK's: the outcomes go their way
            self._stop(error)

    def close(self) -> None:
        """Tell what no further batch will."""
        if self.recorder is not None and self.recorder.refused:
            try:
                self.recorder.tell_refused()
            except Exception as error:  # noqa: BLE001 - an SDK's or an exporter's
                self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Go on without: whatever telemetry does, batches go their way."""
        write(
            logging.WARNING,
            "batcher %r: telemetry failed and is off from now on",
            self.name,
            exc_info=error,
        )
        self.recorder = None
        self.tracing = False
        self.look_at = math.inf

    def type_of(self, kind: Kind) -> str:
        """Return the ``error.type`` of a kind of error."""
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= ERROR_TYPES_MAX:
                return OTHER
            known = self._kinds[kind] = self._name_of(kind)
        return known

    def _name_of(self, kind: Kind) -> str:
        cls, code = kind
        if cls in _KNOWN:
            return _KNOWN[cls]
        if issubclass(cls, Full):  # whatever was full: a batcher's room, or a queue's file
            return "queue_full"
        if code is not None and code in self.settings.error_codes:
            return code
        if cls is ItemError:
            return OTHER
        name = cls.__qualname__
        return name if cls.__module__ == "builtins" else f"{cls.__module__}.{name}"

    def _log(self, run: Run, now: float) -> None:
        """Log a failed batch once, at most one in LOG_INTERVAL; never what items and errors hold."""
        counts: dict[str, int] = {}
        for (cls, code), number in (run.errors or {}).items():
            if not issubclass(cls, Skipped):
                name = cls.__qualname__ if code is None else f"{cls.__qualname__}({code})"
                counts[name] = counts.get(name, 0) + number
        failed = sum(counts.values())
        if not failed:
            return
        if now < self._logged_at + LOG_INTERVAL:
            self._muted += 1
            self._muted_items += failed
            return
        self._logged_at = now
        muted, self._muted = self._muted, 0
        items, self._muted_items = self._muted_items, 0
        write(
            logging.WARNING,
            "batcher %r: %d of %d items of a batch failed: %s%s",
            self.name,
            failed,
            run.size,
            ", ".join(f"{name} {number}" for name, number in counts.items()),
            f"; before that, {items} items of {muted} batches not logged" if muted else "",
        )


def observer_of(
    name: str, telemetry: Telemetry | Literal[False] | None, queue: str | None = None
) -> Observer | None:
    """Return what tells of a batcher, or of a durable queue, what its setting asks for.

    Raises:
        TypeError: If the setting is none of the three.
    """
    if telemetry is False:
        return None
    if telemetry is not None and not isinstance(telemetry, Telemetry):
        raise TypeError(f"telemetry must be a Telemetry, None or False, got {telemetry!r}")
    return Observer(name, telemetry, queue)
