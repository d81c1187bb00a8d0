"""Spans and figures of batches, by OpenTelemetry. Imported only where somebody may listen."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, attach, get_current
from opentelemetry.metrics import Counter, get_meter_provider
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    get_tracer_provider,
    set_span_in_context,
)

from microbatch._pure.exceptions import Skipped
from microbatch._pure.version import __version__

from . import names
from .figures import Figures
from .instruments import Instruments
from .kinds import CANCELLED, Kind, kind_of
from .traceparent import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from .observer import Observer
    from .seen import SeenRun

_NOBODY = Context()


_ERROR = Status(StatusCode.ERROR)  # without a description: messages may hold what was in the items


_parent_of = attrgetter("parent")


def listens(provider: Any) -> bool:
    """Tell whether a provider may record: the API's own stand-ins never do."""
    return not type(provider).__module__.startswith(
        ("opentelemetry.trace", "opentelemetry.metrics")
    )


class Record:
    """What belongs to one handler call.

    Attributes:
        span: Its span, or None.
        context: The context with that span, so that exemplars point to it.
        dropped: Submitters to whom there is no link.
    """

    __slots__ = ("context", "dropped", "span")

    def __init__(self) -> None:
        self.span: Span | None = None
        self.context: Context | None = None
        self.dropped = 0

    def close(self) -> None:
        """End its span with nothing more to say."""
        if self.span is not None:
            self.span.end()


class Recorder:
    """Records what one batcher does.

    Attributes:
        tracer: Makes spans; None while nobody wants them.
        instruments: Take figures; None while nobody wants them.
        refused: Items that ended before a handler saw them, by kind, not told yet.
    """

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.tracer: Tracer | None = None
        self.instruments: Instruments | None = None
        self.refused: dict[Kind, int] = {}
        name, queue, settings = observer.name, observer.queue, observer.settings
        self._settings = settings
        self._title = f"{names.SPAN_PROCESS} {name if queue is None else queue}"
        self._submit_title = f"{names.SPAN_SUBMIT} {name}"
        self._kind = SpanKind.INTERNAL if queue is None else SpanKind.CONSUMER
        self._attributes: dict[str, str] = {names.NAME: name}
        self._messaging: dict[str, str] = {}
        self._sent: dict[str, str] = {}
        if queue is not None:
            self._messaging = {
                names.MESSAGING_SYSTEM: "microbatch",
                names.MESSAGING_OPERATION: names.SPAN_PROCESS,
                names.MESSAGING_DESTINATION: queue,
            }
            self._sent = {**self._messaging, names.MESSAGING_OPERATION: names.SPAN_SEND}

    def observe(self, batcher: Any) -> None:
        """Take up what providers there are by now."""
        settings = self._settings
        if self.tracer is None:
            spans = settings.tracer_provider or get_tracer_provider()
            if listens(spans):
                self.tracer = tracer_of(spans)
        if self.instruments is None:
            figures = settings.meter_provider or get_meter_provider()
            if listens(figures):
                self.instruments = Instruments.of(figures)
                if batcher is not None:
                    self.instruments.batchers.add(batcher)
                if self.observer.counted is not None:
                    self.instruments.queues.add(self.observer.counted)

    # Items

    def creator(self, make: Callable[[], Any]) -> Callable[[], Any]:
        """Return what makes waiters that know who submits: on the way of every item, so no more."""

        def create() -> Any:
            waiter = make()
            waiter.parent = get_current()
            return waiter

        return create

    def note_caller(self, waiter: Any) -> None:
        """Note who submits."""
        waiter.parent = get_current()

    def note_caller_timed(self, waiter: Any, clock: Callable[[], float]) -> None:
        """Note who submits, and begin what is recorded of this call."""
        span = None
        parent = get_current()
        if self.tracer is not None and self._settings.trace_items:
            span = self.tracer.start_span(self._submit_title, parent, attributes=self._attributes)
            parent = set_span_in_context(span, parent)
        waiter.parent = parent
        waiter.on_end = partial(self._item_ended, span, parent, (clock, clock()))

    def _item_ended(
        self,
        span: Span | None,
        context: Context,
        clock_since: tuple[Callable[[], float], float],
        error: Exception | None,
        cancelled: bool,
    ) -> None:
        try:
            self._record_item(span, context, clock_since, error, cancelled)
        except Exception as failure:  # noqa: BLE001 - an SDK's or an exporter's: the item has its outcome
            self.observer.stop(failure)

    def _record_item(
        self,
        span: Span | None,
        context: Context,
        clock_since: tuple[Callable[[], float], float],
        error: Exception | None,
        cancelled: bool,
    ) -> None:
        clock, since = clock_since
        attributes = self._attributes
        failed = cancelled or (error is not None and not issubclass(type(error), Skipped))
        if failed:
            kind = CANCELLED if error is None else kind_of(error)
            attributes = {**attributes, names.ERROR_TYPE: self.observer.type_of(kind)}
        if span is not None:
            if failed:
                span.set_attributes(attributes)
                span.set_status(_ERROR)
            span.end()
        if self.instruments is not None and self._settings.item_metrics:
            self.instruments.item_duration.record(max(0.0, clock() - since), attributes, context)

    def begin_sending(self, job: str | None = None) -> tuple[Span, bytes | None]:
        """Begin the span of storing items for a handler elsewhere; give what to store of it."""
        assert self.tracer is not None  # noqa: S101
        destination = self._messaging[names.MESSAGING_DESTINATION]
        attributes: dict[str, str | int] = {
            **self._sent,
            names.MESSAGING_OPERATION_TYPE: names.SPAN_SEND,
        }
        if job is not None:
            attributes[names.JOB_ID] = job
        title = f"{names.SPAN_SEND} {destination}"
        span = self.tracer.start_span(title, kind=SpanKind.PRODUCER, attributes=attributes)
        return span, encode(span.get_span_context())

    def end_sending(self, span: Span, count: int, error: BaseException | None) -> None:
        """Record how many are stored, or why none is; who was cancelled does not know."""
        if count > 1:  # not for a single one: so the conventions
            span.set_attribute(names.MESSAGING_COUNT, count)
        if isinstance(error, Exception):
            span.set_attribute(names.ERROR_TYPE, self.observer.type_of(kind_of(error)))
            span.set_status(_ERROR)
        elif error is None and self._settings.semconv_metrics and self.instruments is not None:
            self.instruments.sent.add(count, self._sent)
        span.end()

    # Batches

    def begin(self, run: SeenRun) -> None:
        """Begin the span of a handler call, and make it current in the batch's own context."""
        record = run.record = Record()
        if self.tracer is None:
            return
        submitters = list(_submitters(run)) if run.origins is None else []
        context, links = _NOBODY, []
        if self._settings.parent == "auto" and run.origins is None and len(submitters) == 1:
            context = set_span_in_context(submitters[0], _NOBODY)
        elif run.origins is None:
            record.dropped = max(0, len(submitters) - names.LINKS_MAX)
            links = [Link(s.get_span_context()) for s in submitters[: names.LINKS_MAX]]
        else:
            links = self._links(run, record)
        attributes: dict[str, str | int] = {
            **self._attributes,
            names.BATCH_SIZE: run.size,
            names.REASON: run.reason,
            names.ATTEMPT: max(run.attempts or [e.attempts for e in run.entries or ()] or [1]),
        }
        if self._messaging:
            attributes |= self._messaging
            attributes[names.MESSAGING_OPERATION_TYPE] = names.SPAN_PROCESS
            attributes[names.MESSAGING_COUNT] = run.size
        span = record.span = self.tracer.start_span(
            self._title, context, self._kind, attributes, links
        )
        record.context = set_span_in_context(span)
        attach(record.context)  # for good: the batch's context ends with it
        if self._settings.link_back and span.is_recording():
            for submitter in submitters:
                if submitter.is_recording():
                    submitter.add_link(span.get_span_context())

    def _links(self, run: SeenRun, record: Record) -> list[Link]:
        """Link a batch of a durable queue to what sent its items, be it in another process."""
        links: dict[tuple[int, int], Link] = {}
        for trace, number in run.origins or ():
            if trace is None or (sender := decode(trace)) is None:
                continue
            key = (sender.trace_id, sender.span_id)
            if key in links:
                continue
            if len(links) >= names.LINKS_MAX:
                record.dropped += 1
                continue
            links[key] = Link(sender, {names.MESSAGING_ID: str(number)})
        return list(links.values())

    def end(self, run: SeenRun, now: float) -> None:
        """Record what became of a batch."""
        figures = Figures(run, now, durable=self.observer.queue is not None)
        error = None if run.error is None else self.observer.type_of(run.error)
        record, run.record = run.record, None
        if record.span is not None:
            self._end_span(record.span, record, figures, error)
        if self.instruments is not None:
            self._measure(self.instruments, run, figures, error, record)

    def _end_span(self, span: Span, record: Record, figures: Figures, error: str | None) -> None:
        if span.is_recording():
            attributes: dict[str, float | str] = {
                names.FAILED_ITEMS: figures.failed,
                names.WAIT: figures.wait,
            }
            if record.dropped:
                attributes[names.LINKS_DROPPED] = record.dropped
            if error is not None:
                attributes[names.ERROR_TYPE] = error
                span.set_status(_ERROR)
            span.set_attributes(attributes)
        span.end()

    def _measure(
        self,
        instruments: Instruments,
        run: SeenRun,
        figures: Figures,
        error: str | None,
        record: Record,
    ) -> None:
        mine, context = self._attributes, record.context
        with_reason = {**mine, names.REASON: run.reason}
        instruments.batch_size.record(run.size, with_reason, context)
        instruments.wait_duration.record(figures.wait, with_reason, context)
        failing = {} if error is None else {names.ERROR_TYPE: error}
        instruments.batch_duration.record(figures.duration, {**mine, **failing}, context)
        if run.began_hold:
            instruments.holds.add(1, mine, context)
        if self.observer.queue is None:
            self.tell_ends(figures.succeeded, figures.skipped, run.errors, run.retried, context)
            self.tell_refused()
        if self._messaging and self._settings.semconv_metrics:
            instruments.consumed.add(run.size, self._messaging, context)
            instruments.process_duration.record(
                figures.duration, {**self._messaging, **failing}, context
            )

    def tell_ends(
        self,
        succeeded: int,
        skipped: int,
        failed: Mapping[Kind, int] | None,
        retried: Mapping[Kind, int] | None,
        context: Context | None,
    ) -> None:
        """Count what became of items; the kinds of failures may hold skipped ones, which are none."""
        instruments, mine = self.instruments, self._attributes
        assert instruments is not None  # noqa: S101 - else nobody counts
        if succeeded:
            instruments.items.add(succeeded, mine, context)
        if skipped:
            instruments.items.add(skipped, {**mine, names.SKIPPED: True}, context)
        self._count(instruments.items, failed, context)
        self._count(instruments.retries, retried, context)

    def tell_jobs(self, items: Mapping[str, int], ended: Iterable[tuple[str, float]]) -> None:
        """Count items of jobs, and jobs that have ended."""
        instruments, mine = self.instruments, self._attributes
        assert instruments is not None  # noqa: S101 - else nobody counts
        for outcome, count in items.items():
            instruments.job_items.add(count, {**mine, names.ITEM_OUTCOME: outcome})
        for outcome, seconds in ended:
            instruments.job_duration.record(seconds, {**mine, names.JOB_OUTCOME: outcome})

    def tell_refused(self) -> None:
        """Count what ended before a handler saw it: not at once, since each call costs 20 us."""
        refused, self.refused = self.refused, {}
        if self.instruments is not None:
            self._count(self.instruments.items, refused, None)

    def _count(
        self, counter: Counter, kinds: Mapping[Kind, int] | None, context: Context | None
    ) -> None:
        counts: dict[str, int] = {}
        for kind, number in (kinds or {}).items():
            if not issubclass(kind[0], Skipped):
                error_type = self.observer.type_of(kind)
                counts[error_type] = counts.get(error_type, 0) + number
        for error_type, number in counts.items():
            counter.add(number, {**self._attributes, names.ERROR_TYPE: error_type}, context)


def tracer_of(provider: Any) -> Tracer:
    """Return this library's tracer."""
    tracer: Tracer = provider.get_tracer(names.SCOPE, __version__, schema_url=names.SCHEMA_URL)
    return tracer


def _submitters(run: SeenRun) -> Iterable[Span]:
    """Return the distinct spans that submitted a batch's items, the first ones first."""
    group = run.group
    try:
        # All in C: callers of one span share one context object, so a hundred items are one entry.
        parents = [group.waiter] if group is not None else run.waiters
        contexts = list(map(_parent_of, parents))
    except AttributeError:
        contexts = list(_contexts(run.waiters))
    spans: dict[tuple[int, int], Span] = {}
    for context in dict(zip(map(id, contexts), contexts, strict=True)).values():
        span = get_current_span(context)
        identity = span.get_span_context()
        if identity.is_valid:
            spans.setdefault((identity.trace_id, identity.span_id), span)
    return spans.values()


def _contexts(waiters: Iterable[Any]) -> Iterator[Context]:
    """Return the contexts of waiters of any kind; some submitted before anybody listened."""
    for waiter in waiters:
        sharers = getattr(waiter, "waiters", None)
        if sharers is not None:
            yield from _contexts(sharers)
        else:
            one = waiter[0].waiter if isinstance(waiter, tuple) else waiter  # a group's member
            context = getattr(one, "parent", None)
            if context is not None:
                yield context
