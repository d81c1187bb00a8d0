"""What a batcher calls, twice a batch."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from typing import TYPE_CHECKING, Any, Literal

from microbatch._pure.exceptions import Full, ItemError, Skipped

from .hook import Hook
from .kinds import _KNOWN, Kind
from .log import LOG_INTERVAL, write
from .names import ERROR_TYPES_MAX, OBSERVE_INTERVAL, OTHER
from .settings import _DEFAULT, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .counted import Counted
    from .recorder import Recorder
    from .seen import SeenRun


class Observer:
    """Tells OpenTelemetry and the log what one batcher does.

    Attributes:
        name: The batcher's name.
        settings: What to tell.
        queue: The durable queue whose items the batches are, if they are.
        counted: What that queue counts for gauges, if it does.
        hook: The program's own function that is told of each batch, if there is one.
        per_item: True if a waiter has to tell of its end.
        recorder: What records, while somebody listens.
        tracing: True while spans are recorded, so that it matters who submits.
        observe_at: When to look again whether somebody listens, by the loop's clock.
    """

    __slots__ = (
        "_kinds",
        "_logged_at",
        "_muted",
        "_muted_items",
        "counted",
        "hook",
        "name",
        "observe_at",
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
        on_batch = self.settings.on_batch
        self.hook: Hook | None = (
            None if on_batch is None else Hook(on_batch, name, durable=queue is not None)
        )
        self.per_item: bool = self.settings.trace_items or self.settings.item_metrics
        self.recorder: Recorder | None = None
        self.tracing: bool = False
        self.observe_at: float = -math.inf
        self._kinds: dict[Kind, str] = {}
        self._logged_at = -math.inf
        self._muted = self._muted_items = 0

    @property
    def measuring(self) -> bool:
        """Tell whether somebody takes figures."""
        return self.recorder is not None and self.recorder.instruments is not None

    def observe(self, batcher: Any, now: float) -> None:
        """See whether anybody listens.

        An SDK may be set up after the batcher, so this is asked again until spans and metrics have
        both found somebody.
        """
        self.observe_at = now + OBSERVE_INTERVAL
        settings = self.settings
        given = settings.tracer_provider is not None or settings.meter_provider is not None
        if not given and "opentelemetry.trace" not in sys.modules:
            return
        from .recorder import Recorder  # noqa: PLC0415 - it imports OpenTelemetry

        recorder = self.recorder or Recorder(self)  # of a queue without batches: batcher is None
        try:
            recorder.observe(batcher)
        except Exception as error:  # noqa: BLE001 - a provider's: the items go their way
            self.stop(error)
            return
        if recorder.tracer is not None or recorder.instruments is not None:
            self.recorder = recorder
        if recorder.tracer is not None and recorder.instruments is not None:
            self.observe_at = math.inf
        self.tracing = recorder.tracer is not None

    def creator(self, loop: Any, clock: Callable[[], float]) -> Callable[[], Any]:
        """Return what makes the waiters of usual calls."""
        recorder = self.recorder
        if recorder is not None and self.per_item:
            return lambda: self.watched(loop, None, clock)
        if recorder is not None and self.tracing:
            return recorder.creator(loop.traced_waiter)
        return loop.create_waiter  # type: ignore[no-any-return]

    def watched(self, loop: Any, on_cancel: Any, clock: Callable[[], float]) -> Any:
        """Return a waiter that tells of its cancellation; call it in the caller's context."""
        make = loop.item_waiter if self.per_item else loop.watched_waiter
        waiter = make(on_cancel)
        self.note_caller(waiter, clock)
        return waiter

    def note_caller(self, waiter: Any, clock: Callable[[], float]) -> None:
        """Note on a waiter whose it is; call it in the caller's context."""
        recorder = self.recorder
        if recorder is None:
            return
        try:
            if self.per_item:
                recorder.note_caller_timed(waiter, clock)
            elif self.tracing:
                recorder.note_caller(waiter)
        except Exception as error:  # noqa: BLE001 - an SDK's or a sampler's: the item goes its way
            self.stop(error)

    def begin(self, run: SeenRun) -> None:
        """Tell that a handler is about to be called; call it in the batch's own context."""
        recorder = self.recorder
        assert recorder is not None  # noqa: S101 - else there is nobody to tell
        try:
            recorder.begin(run)
        except Exception as error:  # noqa: BLE001 - an SDK's or a sampler's: the batch goes its way
            self.stop(error)

    def end(self, run: SeenRun, now: float) -> None:
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
            self.stop(error)

    @contextlib.contextmanager
    def sending(
        self, count: Callable[[], int], now: float, job: str | None = None
    ) -> Iterator[bytes | None]:
        """Tell that items are being stored; give what to store with them: whose they are.

        How many is asked for at the end: they may come one by one. ``job`` is the id of theirs.
        """
        if now >= self.observe_at:
            self.observe(None, now)
        recorder, span, trace, failure = self.recorder, None, None, None
        if recorder is not None and self.tracing:
            try:
                span, trace = recorder.begin_sending(job)
            except Exception as error:  # noqa: BLE001 - an SDK's or a sampler's: the items go their way
                self.stop(error)
        try:
            yield trace
        except BaseException as error:
            failure = error
            raise
        finally:
            if recorder is not None and span is not None:
                try:
                    recorder.end_sending(span, count(), failure)
                except Exception as error:  # noqa: BLE001 - an SDK's or an exporter's
                    self.stop(error)
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
            self.stop(error)

    def jobs_went_on(self, items: Mapping[str, int], ended: Iterable[tuple[str, float]]) -> None:
        """Count items of jobs that ended, by how, and jobs that did, each with its outcome and seconds."""
        recorder = self.recorder
        if recorder is None or recorder.instruments is None:
            return  # nobody listens any more
        try:
            recorder.tell_jobs(items, ended)
        except Exception as error:  # noqa: BLE001 - an SDK's: the jobs go their way
            self.stop(error)

    def close(self, batcher: Any) -> None:
        """Tell what no further batch will, and let gauges forget the batcher."""
        recorder = self.recorder
        if recorder is not None and recorder.instruments is not None:
            recorder.instruments.batchers.discard(batcher)
        if self.recorder is not None and self.recorder.refused:
            try:
                self.recorder.tell_refused()
            except Exception as error:  # noqa: BLE001 - an SDK's or an exporter's
                self.stop(error)

    def stop(self, error: Exception) -> None:
        """Go on without: whatever telemetry does, batches go their way."""
        write(
            logging.WARNING,
            "batcher %r: telemetry failed and is off from now on",
            self.name,
            exc_info=error,
        )
        self.recorder = None
        self.tracing = False
        self.observe_at = math.inf

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

    def _log(self, run: SeenRun, now: float) -> None:
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
