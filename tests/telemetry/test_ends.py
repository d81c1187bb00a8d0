"""Every span that begins ends, whenever an SDK appears or breaks, and however a call ends."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import Counter
from opentelemetry.sdk.trace import SpanProcessor
from support import Gate, Recorder, outcomes, run, turns
from telemetry_support import Sdk

from microbatch import Batcher, Telemetry
from microbatch._telemetry import recorder

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


class Open(SpanProcessor):
    """The spans that have begun and not ended."""

    def __init__(self, sdk: Sdk) -> None:
        self.begun = 0
        self.names: list[str] = []
        sdk.tracer_provider.add_span_processor(self)

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.begun += 1
        self.names.append(span.name)

    def on_end(self, span: Any) -> None:
        self.names.remove(span.name)


@pytest.mark.parametrize("settings", [{}, {"max_wait": 0.5}, {"cancel_abandoned": True}], ids=str)
@pytest.mark.parametrize("fails", [(), (2,), (3,)])
async def test_spans_of_single_items_end_where_an_sdk_appears_under_way(
    settings: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of callers from before and after it ended all of them in the way of the first."""
    sdk = Sdk()
    spans = Open(sdk)
    found: list[Any] = [trace.NoOpTracerProvider()]
    monkeypatch.setattr(recorder, "get_tracer_provider", lambda: found[0])
    monkeypatch.setattr(recorder, "get_meter_provider", metrics.NoOpMeterProvider)
    handler = Recorder(seconds=5, fails=fails)
    traced = Telemetry(trace_items=True)
    async with Batcher(handler, max_batch_size=2, telemetry=traced, **settings) as batcher:
        await batcher.submit(9)
        found[0] = sdk.tracer_provider
        early = [batcher.submit_nowait(item) for item in range(3)]
        await anyio.sleep(1)  # the first two are in the handler, and the SDK has been found
        late = [batcher.submit_nowait(item) for item in range(3, 5)]
        await outcomes(*early, *late)
    assert handler.batches == [[9], [0, 1], [2, 3], [4]]
    assert spans.begun >= 4  # two items, and the batches since
    assert spans.names == []


@pytest.mark.parametrize("call", ["submit_many", "submit_many_report"])
async def test_a_call_without_items_leaves_no_span_open(call: str) -> None:
    """submit_many([]) is over before it has begun."""
    sdk = Sdk()
    spans = Open(sdk)
    telemetry = sdk.telemetry(trace_items=True, item_metrics=True)
    async with Batcher(Recorder(), name="b", telemetry=telemetry) as batcher:
        assert list(await getattr(batcher, call)([])) == []
        assert spans.names == []


@pytest.mark.parametrize("end", ["result", "error", "cancel", "close"])
async def test_a_span_of_each_way_in_ends_in_every_way(end: str) -> None:
    """One call, one span: however items come and go."""
    sdk = Sdk()
    spans = Open(sdk)
    handler = Recorder(seconds=1, fails=range(100) if end == "error" else ())
    telemetry = sdk.telemetry(trace_items=True)
    async with (
        Batcher(handler, max_batch_size=2, max_pending=4, telemetry=telemetry) as batcher,
        anyio.create_task_group() as tasks,
    ):
        pending = batcher.submit_nowait(0)
        tasks.start_soon(outcomes, batcher.submit(1), batcher.submit(2, priority=1))
        tasks.start_soon(outcomes, batcher.submit_many_report(range(3, 9)))
        tasks.start_soon(outcomes, batcher.submit_many([]))
        await anyio.sleep(0.5)
        assert len(spans.names) == 5  # four calls and a batch: one without items has none
        if end == "cancel":
            pending.cancel()
            tasks.cancel_scope.cancel()
        elif end == "close":
            await batcher.aclose(0)
            await outcomes(pending)
        else:
            await outcomes(pending)
    await turns()
    assert spans.names == []


async def test_a_batchs_span_ends_though_telemetry_fails_meanwhile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What one batch's figures break must not leave another's span open for ever."""
    sdk = Sdk()
    spans = Open(sdk)

    def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError

    async with Batcher(
        Recorder(seconds=1), max_batch_size=1, max_concurrency=2, telemetry=sdk.telemetry()
    ) as batcher:
        monkeypatch.setattr(Counter, "add", broken)
        assert await outcomes(batcher.submit(1), batcher.submit(2)) == [10, 20]
        await turns()
    assert "telemetry failed" in caplog.text
    assert spans.begun == 2
    assert spans.names == []


@pytest.mark.asyncio_logs
def test_a_batcher_whose_event_loop_has_ended_leaves_the_gauges(backend_name: str) -> None:
    """Nobody closed it: its last figures must not be told for ever."""
    sdk, gate = Sdk(), Gate()
    batcher = Batcher(gate, telemetry=sdk.telemetry())

    async def leave() -> None:
        batcher.submit_nowait(1)
        await turns()
        assert sdk.gauges()["microbatch.queue.size"] == 1

    run(backend_name, leave)
    assert sdk.gauges() == {}
