"""Telemetry as a program meets it: providers that are global, an API without an SDK, none at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import metrics, trace
from support import Recorder, outcome, outcomes
from telemetry_support import Sdk

import microbatch
from microbatch import Batcher, Skipped
from microbatch._telemetry import instruments, names, recorder

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(microbatch.__file__).parents[1])}

BATCHES = """
import asyncio, sys

async def handler(items):
    return [item * 10 for item in items]

async def batches():
    async with microbatch.Batcher(handler) as batcher:
        assert await batcher.submit_many(range(250)) == [item * 10 for item in range(250)]
        assert await asyncio.gather(batcher.submit(1), batcher.submit(2)) == [10, 20]
"""


def output_of(code: str) -> str:
    """Run a program with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_program_without_opentelemetry_never_imports_it() -> None:
    """Its API takes longer to import than all of this package."""
    found = "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    assert output_of(f"import microbatch{BATCHES}\nasyncio.run(batches())\n{found}") == "[]"


def test_it_runs_where_opentelemetry_cannot_be_imported() -> None:
    """A broken installation of it is not this library's trouble."""
    block = "import sys\nsys.modules['opentelemetry'] = None\nimport microbatch"
    assert output_of(f"{block}{BATCHES}\nasyncio.run(batches())\nprint('fine')") == "fine"


def test_it_runs_with_the_api_alone() -> None:
    """A library that the program uses may import the API; without an SDK nothing is recorded."""
    code = f"import microbatch, opentelemetry.trace, opentelemetry.metrics{BATCHES}\nasyncio.run(batches())"
    found = "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    assert output_of(f"{code}\n{found}") == "[]"


def test_global_providers_are_found_even_if_they_are_set_later() -> None:
    """Batchers often stand in modules that are imported before the SDK is set up."""
    code = f"""import microbatch{BATCHES}
async def main():
    async with microbatch.Batcher(handler, name="b") as batcher:
        await batcher.submit(1)
        from opentelemetry import trace, metrics
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        exporter, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        metrics.set_meter_provider(MeterProvider([reader]))
        await asyncio.sleep({names.OBSERVE_INTERVAL})
        await batcher.submit(2)
        with trace.get_tracer("app").start_as_current_span("request"):
            await batcher.submit(3)
    print([(span.name, len(span.links)) for span in exporter.get_finished_spans()])
    print(len(reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics))
asyncio.run(main())
"""
    spans, count = output_of(code).splitlines()
    assert spans == "[('process b', 0), ('process b', 1), ('request', 0)]"
    assert int(count) >= 4


@pytest.mark.anyio
async def test_the_global_ones_are_looked_for_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not for every batch, and no more once both are found."""
    sdk = Sdk()
    looks = []
    providers: list[Any] = [trace.NoOpTracerProvider(), metrics.NoOpMeterProvider()]

    def tracer_provider() -> Any:
        looks.append(anyio.current_time())
        return providers[0]

    monkeypatch.setattr(recorder, "get_tracer_provider", tracer_provider)
    monkeypatch.setattr(recorder, "get_meter_provider", lambda: providers[1])
    async with Batcher(Recorder(), name="b") as batcher:
        for _ in range(10):  # half a second each
            await batcher.submit(1)
            await anyio.sleep(0.5)
        assert len(looks) == 5
        providers[1] = sdk.meter_provider
        for _ in range(3):
            await batcher.submit(1)
            await anyio.sleep(0.5)
        assert len(sdk.points("microbatch.batch.size")) == 1
        assert sdk.all_spans() == []
        providers[0] = sdk.tracer_provider
        for _ in range(10):
            await batcher.submit(1)
            await anyio.sleep(0.5)
        assert len(looks) <= 8
    assert len(sdk.spans("process b")) >= 9


@pytest.mark.anyio
async def test_metrics_alone_and_traces_alone() -> None:
    """Either may be wanted without the other: the API's NoOp providers say so."""
    sdk = Sdk()
    figures = microbatch.Telemetry(
        tracer_provider=trace.NoOpTracerProvider(),
        meter_provider=sdk.meter_provider,
        trace_items=True,
    )
    spans = microbatch.Telemetry(
        tracer_provider=sdk.tracer_provider,
        meter_provider=metrics.NoOpMeterProvider(),
        item_metrics=True,
    )
    async with Batcher(Recorder(), name="f", telemetry=figures) as batcher:
        await batcher.submit(1)
        await batcher.submit_many([1, 2])
    async with Batcher(Recorder(), name="s", telemetry=spans, max_pending=1) as batcher:
        await batcher.submit(1)
        await batcher.submit_many([1, 2])
    assert [span.name for span in sdk.all_spans()] == ["process s"] * 3
    assert sdk.points("microbatch.item.duration") == []
    assert {p.attributes["microbatch.batcher.name"] for p in sdk.points("microbatch.items")} == {
        "f"
    }


@pytest.mark.anyio
async def test_items_that_wait_while_an_sdk_is_set_up_are_handled_without_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody noted who submitted them; how long they waited is known all the same."""
    sdk = Sdk()
    providers: list[Any] = [trace.NoOpTracerProvider(), metrics.NoOpMeterProvider()]
    monkeypatch.setattr(recorder, "get_tracer_provider", lambda: providers[0])
    monkeypatch.setattr(recorder, "get_meter_provider", lambda: providers[1])
    async with Batcher(Recorder(seconds=5.0), name="b", partition=lambda _: 0) as batcher:
        with sdk.tracer.start_as_current_span("request"):
            first = batcher.submit_nowait(1)
            await anyio.sleep(1.0)
            second = batcher.submit_nowait(2)
            providers[0] = sdk.tracer_provider
            await first
            await second
            await batcher.submit(3)
    spans = sdk.spans("process b")
    assert [len(span.links) for span in spans] == [0, 1]
    providers[0] = trace.NoOpTracerProvider()
    async with Batcher(Recorder(), name="plain") as batcher:
        await batcher.submit(1)
        providers[0] = sdk.tracer_provider
        await anyio.sleep(2.0)
        await batcher.submit(2)
        await batcher.submit(3)
    waits = [s.attributes["microbatch.batch.wait"] for s in spans + sdk.spans("process plain")]
    assert waits == [pytest.approx(4.0), 0.0, 0.0, 0.0]


@pytest.mark.anyio
async def test_nothing_is_looked_for_where_opentelemetry_was_never_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody can have set up an SDK then."""
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    looked: list[Any] = []
    monkeypatch.setattr(recorder, "Recorder", looked.append)
    async with Batcher(Recorder(), max_pending=1) as batcher:
        pending = batcher.submit_nowait(1)
        with pytest.raises(microbatch.BatcherFull):
            batcher.submit_nowait(2)
        assert await pending == 10
    assert looked == []


@pytest.mark.anyio
async def test_what_was_refused_is_forgotten_where_only_traces_are_wanted() -> None:
    """And metrics alone need nothing of who submits."""
    sdk = Sdk()
    for tracer, meter in (
        (sdk.tracer_provider, metrics.NoOpMeterProvider()),
        (trace.NoOpTracerProvider(), sdk.meter_provider),
    ):
        settings = microbatch.Telemetry(tracer_provider=tracer, meter_provider=meter)
        async with Batcher(Recorder(), max_pending=1, telemetry=settings) as batcher:
            first = batcher.submit_nowait(1)
            with pytest.raises(microbatch.BatcherFull):
                batcher.submit_nowait(2)
            assert await first == 10
            await batcher.submit_many([1, 2])
    assert sdk.counts("microbatch.items") == {None: 3, "queue_full": 1}


def test_a_reader_is_not_disturbed_by_batchers_that_come_at_the_same_time() -> None:
    """A weak set refuses to be walked while another thread adds to it."""

    class Busy(list[int]):
        failures = 2

        def __iter__(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("Set changed size during iteration")
            return super().__iter__()

    assert instruments._members(Busy([1, 2])) == [1, 2]


# The log


@pytest.mark.anyio
async def test_a_failed_batch_is_logged_once_with_counts_by_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A hundred callers may each log their own; this one line says that it was one batch."""

    async def handler(items: list[Any]) -> list[Any]:
        return [item() for item in items]

    def skipped() -> Any:
        return Skipped("secret")

    def odd() -> Any:
        return microbatch.ItemError("secret", code="odd")

    def fine() -> Any:
        return 1

    def broken() -> Any:
        return ValueError("secret")

    async with Batcher(handler, name="b") as batcher:
        await batcher.submit_many_report([fine, broken, broken, odd, skipped])
        await batcher.submit_many_report([fine, skipped])
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("microbatch", "WARNING")
    message = record.getMessage()
    assert message == "batcher 'b': 3 of 5 items of a batch failed: ValueError 2, ItemError(odd) 1"


@pytest.mark.anyio
async def test_the_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    """A backend that is down fails a thousand batches a second; those not logged are counted."""
    async with Batcher(Recorder(fails={1}), name="b", max_batch_size=1) as batcher:
        for _ in range(4):
            await outcomes(batcher.submit(1), batcher.submit(1))
            await anyio.sleep(3)
        await outcome(batcher.submit(1))
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "batcher 'b': 1 of 1 items of a batch failed: ValueError 1"
    assert second == f"{first}; before that, 7 items of 7 batches not logged"


@pytest.mark.anyio
async def test_the_library_prints_nothing_of_its_own() -> None:
    """A library's logger has a null handler: the program decides."""
    code = f"import microbatch{BATCHES}\nasyncio.run(batches())"
    assert output_of(code) == ""
    import logging

    kinds = [type(handler) for handler in logging.getLogger("microbatch").handlers]
    assert logging.NullHandler in kinds
