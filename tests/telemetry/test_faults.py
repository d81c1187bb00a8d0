"""Telemetry that is off, set wrongly or broken: no batch is harmed."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics import Counter, Histogram
from support import Recorder, outcome
from telemetry_support import BrokenSampler, Sdk, echo, under

from microbatch import Batcher, BatcherFull, Telemetry

pytestmark = pytest.mark.anyio


async def test_false_tells_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    """Not a span, not a figure, not a line in the log."""
    sdk = Sdk()
    async with Batcher(Recorder(fails={1}), telemetry=False) as batcher:
        await outcome(under(sdk, "request", batcher.submit, 1))
    assert [s.name for s in sdk.all_spans()] == ["request"]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tracer_provider": 1}, TypeError, "tracer_provider must have get_tracer() or be None, got 1"),
        ({"meter_provider": 1}, TypeError, "meter_provider must have get_meter() or be None, got 1"),
        ({"trace_items": 1}, TypeError, "trace_items must be True or False, got 1"),
        ({"item_metrics": None}, TypeError, "item_metrics must be True or False, got None"),
        ({"link_back": 0}, TypeError, "link_back must be True or False, got 0"),
        ({"semconv_metrics": 0}, TypeError, "semconv_metrics must be True or False, got 0"),
        ({"parent": "all"}, ValueError, "parent must be 'link' or 'auto', got 'all'"),
        ({"error_codes": "a"}, TypeError, "error_codes must be a collection of str, got 'a'"),
        ({"error_codes": 3}, TypeError, "error_codes must be a collection of str, got 3"),
        ({"error_codes": [3]}, TypeError, "error_codes must hold str, got 3"),
    ],
)  # fmt: skip
async def test_wrong_settings_are_refused_by_name(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """At once, where they are written."""
    with pytest.raises(error) as caught:
        Telemetry(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize("wrong", [True, 0, "yes", Telemetry])
async def test_a_batcher_takes_telemetry_none_or_false(wrong: Any) -> None:
    """True would be a guess at what is wanted."""
    with pytest.raises(TypeError, match=r"^telemetry must be a Telemetry, None or False, got "):
        Batcher(echo, telemetry=wrong)


@pytest.mark.parametrize("name", ["process", "submit"])
async def test_broken_telemetry_breaks_no_batch(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is switched off, and the log says so once."""
    sdk = Sdk(sampler=BrokenSampler((name,)))
    telemetry_ = sdk.telemetry(trace_items=name == "submit")
    async with Batcher(echo, telemetry=telemetry_) as batcher:
        for item in range(3):
            assert await batcher.submit(item) == item
    (record,) = caplog.records
    assert record.getMessage() == "batcher 'echo': telemetry failed and is off from now on"


def broken(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError


async def test_a_broken_instrument_breaks_no_batch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same at a batch's end."""
    sdk = Sdk()
    async with Batcher(echo, telemetry=sdk.telemetry()) as batcher:
        await batcher.submit(1)
        monkeypatch.setattr(Histogram, "record", broken)
        assert await batcher.submit(2) == 2
        assert await batcher.submit(3) == 3
    (record,) = caplog.records
    assert "telemetry failed" in record.getMessage()


async def test_a_broken_instrument_breaks_no_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What no batch told of is told at the end, or not at all."""
    sdk = Sdk()
    async with Batcher(echo, max_pending=1, on_full="reject", telemetry=sdk.telemetry()) as batcher:
        assert await batcher.submit(1) == 1
        monkeypatch.setattr(Counter, "add", broken)
        pending = batcher.submit_nowait(2)
        with pytest.raises(BatcherFull):
            batcher.submit_nowait(3)
        assert pending.cancel()
        assert caplog.records == []
    (record,) = caplog.records
    assert "telemetry failed" in record.getMessage()
