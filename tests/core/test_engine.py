"""The engine's seams for the durable mode: what prepares a run, and what tells of it."""

from __future__ import annotations

import pytest
from opentelemetry.trace import SpanKind
from telemetry_support import Sdk, echo

from microbatch._core.engine import Engine
from microbatch._core.rules import Rules
from microbatch._telemetry import names
from microbatch._telemetry.observer import observer_of

pytestmark = pytest.mark.anyio


async def test_a_durable_batch_is_a_consumer_linked_by_what_was_stored() -> None:
    """By message, without a link for what cannot be read; nobody's in-memory caller is linked."""
    sdk = Sdk()
    observer = observer_of("b", sdk.telemetry(semconv_metrics=True), "jobs")
    assert observer is not None
    traces: list[bytes | None] = []
    for _ in range(130):
        with observer.sending(lambda: 1, 0.0) as trace:
            traces.append(trace)
    traces += [None, b"nonsense", traces[0]]
    engine = Engine(
        Rules(
            echo, max_batch_size=200, max_wait=0.0, max_concurrency=1, max_pending=None, name="b"
        ),
        prepare=lambda run: setattr(run, "origins", list(zip(traces, range(133), strict=True))),
        observer=observer_of("b", sdk.telemetry(semconv_metrics=True), "jobs"),
    )
    with sdk.tracer.start_as_current_span("in memory"):
        await engine.entrance.enter_many(list(range(133)), 0).waiter
    await engine.aclose(None)
    (span,) = sdk.spans("process jobs")
    assert span.kind is SpanKind.CONSUMER
    assert len(span.links) == 128
    assert span.attributes["microbatch.links.dropped"] == 2
    assert span.links[7].attributes["messaging.message.id"] == "7"
    assert span.links[7].context.is_remote
    assert span.attributes["messaging.operation.type"] == "process"
    assert span.attributes["messaging.batch.message_count"] == 133
    assert span.attributes["messaging.destination.name"] == "jobs"
    assert sdk.counts("messaging.client.consumed.messages") == {None: 133}
    (point,) = sdk.points("messaging.process.duration")
    assert point.count == 1
    assert tuple(point.explicit_bounds) == names.HISTOGRAMS["messaging.process.duration"][2]
