"""Spans and figures of single items, where they are asked for."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from support import Gate, Recorder, outcome, outcomes, turns
from telemetry_support import Sdk

from microbatch import Batcher, Skipped

pytestmark = pytest.mark.anyio


async def test_trace_items_makes_a_span_of_each_call_until_its_result() -> None:
    """Opt-in: a caller's own waiting time, seen from outside."""
    sdk = Sdk()
    handler = Recorder(fails={2})
    async with Batcher(handler, name="b", telemetry=sdk.telemetry(trace_items=True)) as batcher:
        with sdk.tracer.start_as_current_span("request") as request:
            await outcomes(batcher.submit(1), batcher.submit(2))
            await batcher.submit_many([3, 4])
    *two, many = sdk.spans("submit b")  # trio starts tasks in any order
    good, bad = sorted(two, key=lambda span: "error.type" in span.attributes)
    first, second = sdk.spans("process b")
    assert {s.parent.span_id for s in (good, bad, many)} == {request.get_span_context().span_id}
    assert {link.context.span_id for link in first.links} == {
        good.context.span_id,
        bad.context.span_id,
    }
    assert [link.context.span_id for link in second.links] == [many.context.span_id]
    assert bad.attributes["error.type"] == "ValueError"
    assert bad.status.status_code is StatusCode.ERROR
    assert good.status.status_code is StatusCode.UNSET
    assert good.kind is SpanKind.INTERNAL


async def test_a_cancelled_callers_span_ends_with_it() -> None:
    """No span may stay open because its item was withdrawn, or its caller left in flight."""
    sdk = Sdk()
    handler = Gate()
    telemetry_ = sdk.telemetry(trace_items=True, item_metrics=True)
    async with Batcher(handler, name="b", telemetry=telemetry_) as batcher:
        first = batcher.submit_nowait(1)
        await turns()
        second = batcher.submit_nowait(2)
        assert first.cancel()
        assert second.cancel()
        handler.opened.set()
    assert [s.attributes["error.type"] for s in sdk.spans("submit b")] == ["cancelled"] * 2
    (point,) = sdk.points("microbatch.item.duration")
    assert point.attributes["error.type"] == "cancelled"
    assert point.count == 2


@pytest.mark.parametrize("settings", [{}, {"partition": lambda _: 0}])
async def test_item_metrics_measure_from_submit_to_result(settings: dict[str, Any]) -> None:
    """Waiting, the handler, retries: what the caller felt."""
    sdk = Sdk()
    handler = Recorder(seconds=3.0)
    telemetry_ = sdk.telemetry(item_metrics=True)
    async with Batcher(handler, max_wait=1.0, telemetry=telemetry_, **settings) as batcher:
        await outcomes(batcher.submit(1), batcher.submit(2))
    (point,) = sdk.points("microbatch.item.duration")
    assert (point.count, point.sum) == (2, pytest.approx(8.0))
    assert sdk.spans("submit Recorder") == []


@pytest.mark.real_time
async def test_item_metrics_of_a_thread() -> None:
    """Its clock is the loop's all the same, and a skipped item is no failure."""
    sdk = Sdk()

    async def handler(items: list[Any]) -> list[Any]:
        return [Skipped("seen before") if item == 2 else item for item in items]

    async with Batcher(handler, telemetry=sdk.telemetry(item_metrics=True)) as batcher:
        await batcher.submit(0)
        await anyio.to_thread.run_sync(batcher.submit_from_thread, 1)
        await outcome(anyio.to_thread.run_sync(batcher.submit_from_thread, 2))
    (point,) = sdk.points("microbatch.item.duration")
    assert point.count == 3
    assert "error.type" not in point.attributes
