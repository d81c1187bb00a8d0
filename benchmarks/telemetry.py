"""What telemetry costs: CPU per item against `telemetry=False`.

Every caller is a task of its own that awaits `submit`; the handler returns at once. Callers run in
contexts that were made before, with one span for all of them or one for each of a hundred, so that
what is measured is the batcher's share. Spans go through the SDK's batch processor to an exporter
that drops them, and figures into a reader that nobody reads. What `on_batch` costs is too little for a
clock, so it is counted: instructions an item, by callgrind, to those of `telemetry=False`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks import child, instructions, output, runner
from benchmarks.contenders import SETTINGS, echo
from microbatch import Batcher, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

PARENTS = 100


@dataclass(frozen=True)
class Contender:
    name: str
    open: Callable[[int], Any]  # with a batch size it gives `run(n)`
    goal: float | None = None  # at batch 100


class Nowhere(SpanExporter):
    """Takes spans and drops them."""

    def export(self, spans):
        return SpanExportResult.SUCCESS


def contexts_of(tracer, parents):
    """Make so many contexts, each with an open span of its own; without a tracer, empty ones."""
    made = [contextvars.Context() for _ in range(parents)]
    for context in made if tracer is not None else ():
        span = tracer.start_span("request")
        context.run(lambda span=span: attach(span))
    return made


def attach(span):
    from opentelemetry.context import attach as attach_context

    attach_context(trace.set_span_in_context(span))


def tasks(submit, contexts):
    """Run a task for each caller, each in the next of the contexts."""
    loop = asyncio.get_running_loop()
    many = len(contexts)

    async def run(n):
        return await asyncio.gather(
            *[loop.create_task(submit(i), context=contexts[i % many]) for i in range(n)]
        )

    return run


def without_sdk(name, goal, **settings):
    """A batcher where nobody has set up an SDK."""

    @contextlib.asynccontextmanager
    async def opened(size):
        async with Batcher(echo, max_batch_size=size, **SETTINGS, **settings) as batcher:
            yield tasks(batcher.submit, contexts_of(None, 1))

    return Contender(name, opened, goal)


def with_sdk(name, goal, *, parents=1, sampler=sampling.ALWAYS_ON, **settings):
    """A batcher whose spans and figures are recorded."""

    @contextlib.asynccontextmanager
    async def opened(size):
        tracer_provider = TracerProvider(sampler=sampler)
        tracer_provider.add_span_processor(BatchSpanProcessor(Nowhere()))
        meter_provider = MeterProvider([InMemoryMetricReader()])
        contexts = contexts_of(tracer_provider.get_tracer("benchmark"), parents)
        telemetry = Telemetry(
            tracer_provider=tracer_provider, meter_provider=meter_provider, **settings
        )
        async with Batcher(echo, max_batch_size=size, telemetry=telemetry, **SETTINGS) as batcher:
            yield tasks(batcher.submit, contexts)
        tracer_provider.shutdown()
        meter_provider.shutdown()

    return Contender(name, opened, goal)


@contextlib.asynccontextmanager
async def watched(size):
    """A batcher whose stats somebody reads a hundred times a second."""

    async def look():
        while True:
            batcher.stats()
            await asyncio.sleep(0.01)

    async with Batcher(echo, max_batch_size=size, telemetry=False, **SETTINGS) as batcher:
        looking = asyncio.create_task(look())
        yield tasks(batcher.submit, contexts_of(None, 1))
        looking.cancel()


class Monitor:
    """What a program does with a record: it counts."""

    def __init__(self):
        self.succeeded = self.failed = 0

    def on_batch(self, record):
        self.succeeded += record.succeeded
        self.failed += record.failed


OFF = "telemetry=False"
MONITOR = Monitor()
COUNTED = without_sdk("on_batch", 1.02, telemetry=Telemetry(on_batch=MONITOR.on_batch))
ALL = [
    without_sdk(OFF, None, telemetry=False),
    Contender("stats() 100 times a second", watched, 1.03),
    without_sdk("API, no SDK", 1.10),
    with_sdk("SDK, nothing sampled", None, sampler=sampling.ALWAYS_OFF),
    with_sdk("SDK recording, one parent", 2.0),
    with_sdk(f"SDK recording, {PARENTS} parents", 3.0, parents=PARENTS),
    with_sdk("SDK, item_metrics", None, item_metrics=True),
    with_sdk("SDK, trace_items", None, trace_items=True),
]


def cell(size, n, rounds):
    """Measure everybody at one batch size."""
    figures = runner.interleaved(ALL, rounds=rounds, size=size, n=n)
    return {
        "batch": size,
        "callers": n,
        "ratios": runner.ratios(figures, OFF),
        "cpu_us": runner.per_item(figures, n),
    }


def watched(named, waves, wave, counted=True):
    """Run in the process that callgrind watches."""
    loop, name, size = named
    contender = COUNTED if name == COUNTED.name else next(one for one in ALL if one.name == name)
    instructions.drive(contender, loop, size, waves, wave, counted)


def count(sizes, **few):
    """Return {batch size: the instructions of an item with on_batch, to those without telemetry}."""
    found = {}
    for size in sizes:
        off, on = (
            instructions.per_item(child.Subject(), "asyncio", name, size, function=watched, **few)
            for name in (OFF, COUNTED.name)
        )
        print(f"batch {size}: {off:,.0f} instructions an item, {on:,.0f} with on_batch", flush=True)
        found[size] = on / off
    return found


def counted_row(chosen, page, cells):
    """Count, and return the table's row for it."""
    if shutil.which("valgrind") is None:
        page.say("valgrind is not installed: on_batch not counted")
        return []
    few = {"waves": 1, "wave": 200} if chosen.tiny else {}
    counts = count([cell["batch"] for cell in cells], **few)
    for cell in cells:
        cell["counted"] = counts[cell["batch"]]
    page.save({"cells": cells})
    shown = [f"{cell['counted']:.4f}" for cell in cells]
    return [(f"{COUNTED.name}, by instructions", f"<= {COUNTED.goal:.2f}", *shown)]


def run(chosen, page):
    cells = []
    for size, n in [(10, 50)] if chosen.tiny else [(100, 10_000), (10, 5_000), (1, 2_000)]:
        cells.append(cell(size, n, 1 if chosen.tiny else chosen.rounds or 15))
        page.save({"cells": cells})
    counted = counted_row(chosen, page, cells)
    page.table(
        [
            f"asyncio, CPU to {OFF} (quartiles)",
            "goal, batch 100",
            *[f"batch {cell['batch']}, {cell['callers']:,} callers" for cell in cells],
        ],
        [
            (
                one.name,
                f"<= {one.goal:.2f}" if one.goal else "-",
                *[output.shown(cell["ratios"][one.name]) for cell in cells],
            )
            for one in ALL
        ]
        + counted,
    )
    return {"cells": cells}
