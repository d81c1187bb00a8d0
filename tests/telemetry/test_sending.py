"""What the durable mode uses: a span for sending, and links by what was stored."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import NoOpTracerProvider, SpanKind
from telemetry_support import BrokenSampler, Sdk, plain

from microbatch import Telemetry
from microbatch._telemetry.observer import observer_of

pytestmark = pytest.mark.anyio


class BrokenProcessor(SpanProcessor):
    """Raises when a span ends."""

    def on_end(self, span: Any) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("when", ["begin", "end"])
async def test_broken_telemetry_stops_nobody_from_sending(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is stored is stored, and what failed fails with its own error."""
    for failing in (False, True):
        sdk = Sdk(BrokenSampler(("send" if when == "begin" else "no",)))
        if when == "end":
            sdk.tracer_provider.add_span_processor(BrokenProcessor())
        observer = observer_of("q", sdk.telemetry(), "jobs")
        assert observer is not None
        caplog.clear()
        if failing:
            with pytest.raises(OSError, match="full"), observer.sending(lambda: 1, 0.0):
                raise OSError("full")
        else:
            with observer.sending(lambda: 1, 0.0) as trace:
                assert (trace is None) == (when == "begin")
        (record,) = caplog.records
        assert "telemetry failed" in record.getMessage()
        with observer.sending(lambda: 1, 0.0) as trace:
            assert trace is None


async def test_sending_is_a_span_whose_context_is_given_to_be_stored() -> None:
    """A worker in another process links to it."""
    sdk = Sdk()
    observer = observer_of("q", sdk.telemetry(semconv_metrics=True), "jobs")
    assert observer is not None
    with sdk.tracer.start_as_current_span("request") as request:
        with observer.sending(lambda: 1, 0.0) as one:
            pass
        with pytest.raises(OSError, match="full"), observer.sending(lambda: 2, 0.0):
            raise OSError("full")
    good, bad = sdk.spans("send jobs")
    assert (
        one
        == f"00-{good.context.trace_id:032x}-{good.context.span_id:016x}-{good.context.trace_flags:02x}".encode()
    )
    assert good.kind is SpanKind.PRODUCER
    assert good.parent.span_id == request.get_span_context().span_id
    conventional = {
        "messaging.system": "microbatch",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "jobs",
    }
    assert plain(good.attributes) == conventional
    assert plain(bad.attributes) == {
        **conventional,
        "messaging.batch.message_count": 2,
        "error.type": "OSError",
    }
    assert sdk.counts("messaging.client.sent.messages") == {None: 1}


async def test_sending_is_nothing_where_nobody_listens() -> None:
    """No span, nothing to store."""
    quiet = Telemetry(tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider())
    observer = observer_of("q", quiet, "jobs")
    assert observer is not None
    with observer.sending(lambda: 1, 0.0) as trace:
        assert trace is None
    assert observer_of("q", False) is None


async def test_how_jobs_go_on_is_told_to_nobody_once_telemetry_is_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may fail while the file's thread has more of that on the way; the log says so once."""
    sdk = Sdk()
    observer = observer_of("q", sdk.telemetry(), "jobs")
    assert observer is not None
    observer.jobs_went_on({"failed": 1}, [])  # before anybody was found
    observer.observe(None, 0.0)
    observer.jobs_went_on({"succeeded": 3}, [("succeeded", 2.0)])
    assert observer.recorder is not None
    observer.jobs_went_on({"succeeded": 2}, [("failed", "no number")])  # type: ignore[list-item]
    observer.jobs_went_on({"succeeded": 9}, [])
    assert len(caplog.records) == 1
    assert [point.value for point in sdk.points("microbatch.job.items")] == [5]
    assert [point.sum for point in sdk.points("microbatch.job.duration")] == [2.0]
