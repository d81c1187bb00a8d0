"""What a batcher tells, and whom: the settings."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from microbatch._pure import checks

from .hook import check_hook

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from .batch_record import BatchRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a batcher tells OpenTelemetry, or a function of your own, and whom.

    Args:
        on_batch: Called with a `BatchRecord` after each batch, once its items have their outcomes and
            before their callers go on, with an SDK or without one. In durable mode the outcomes are
            not on the disk yet. It runs in the event loop's thread and in a copy of the context that
            batches run in, so it must return soon. What it raises, and an awaitable that it returns,
            is logged, at most once in ten seconds, and changes nothing. ``KeyboardInterrupt`` and
            ``SystemExit`` then end the program, as they do from a handler.
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
        TypeError: If a setting has the wrong type, or ``on_batch`` is a coroutine function.
        ValueError: If ``parent`` is neither of the two.
    """

    on_batch: Callable[[BatchRecord], object] | None = None
    tracer_provider: TracerProvider | None = None
    meter_provider: MeterProvider | None = None
    trace_items: bool = False
    item_metrics: bool = False
    link_back: bool = False
    parent: Literal["link", "auto"] = "link"
    error_codes: Collection[str] = ()
    semconv_metrics: bool = False

    def __post_init__(self) -> None:
        check_hook(self.on_batch)
        for name, method in (("tracer_provider", "get_tracer"), ("meter_provider", "get_meter")):
            provider = getattr(self, name)
            if provider is not None and not callable(getattr(provider, method, None)):
                raise TypeError(f"{name} must have {method}() or be None, got {provider!r}")
        for name in ("trace_items", "item_metrics", "link_back", "semconv_metrics"):
            checks.flag(name, getattr(self, name))
        if self.parent not in ("link", "auto"):
            raise ValueError(f"parent must be 'link' or 'auto', got {self.parent!r}")
        codes = self.error_codes
        if isinstance(codes, str) or not isinstance(codes, Collection):
            raise TypeError(f"error_codes must be a collection of str, got {codes!r}")
        for code in codes:
            if not isinstance(code, str):
                raise TypeError(f"error_codes must hold str, got {code!r}")


_DEFAULT: Final = Telemetry()
