"""Traces through the file, of this process or one that is long dead; and gauges of what it holds."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path

import anyio
import pytest
from durable_support import Handler, batcher, ends_loops, execute, locked_out, until
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics.export import Gauge
from opentelemetry.trace import NoOpTracerProvider, SpanKind
from support import outcome
from telemetry_support import Sdk

import microbatch
from microbatch import Backoff, Retry, Skipped, Telemetry
from microbatch._telemetry import counted, instruments, names, observer, recorder
from microbatch.durable import DurableQueue, ItemFailed, QueueFull, QueueStats
from microbatch.durable._life import counting
from microbatch.durable._life.seat import Seat

pytestmark = pytest.mark.anyio

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(microbatch.__file__).parents[1])}


async def test_a_batch_is_linked_to_the_spans_that_sent_its_items(path):
    """One for the single ones, one for all of an `enqueue_many`, each child of its caller's."""
    sdk = Sdk()
    async with batcher(path, Handler(), name="b", telemetry=sdk.telemetry()) as durable:
        with sdk.tracer.start_as_current_span("request") as request:
            assert await durable.submit(1) == 2
            tickets = await durable.enqueue_many([2, 3])
            tickets.append(await durable.enqueue(4, key="k"))
            for ticket in tickets:
                await durable.result(ticket)
    sent = sdk.spans("send default")
    assert len(sent) == 3
    assert {s.parent.span_id for s in sent} == {request.get_span_context().span_id}
    assert {s.kind for s in sent} == {SpanKind.PRODUCER}
    batches = sdk.spans("process default")
    assert {s.kind for s in batches} == {SpanKind.CONSUMER}
    linked = {link.context.span_id for s in batches for link in s.links}
    assert linked == {s.context.span_id for s in sent}
    names = {s.name for s in sdk.all_spans()}
    assert names == {"request", "send default", "process default"}  # nothing of the machinery


async def test_without_a_sdk_nothing_is_stored_and_nothing_recorded(path):
    """NULL: no bytes, no time."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=False) as durable:
        await durable.pause()
        with sdk.tracer.start_as_current_span("request"):
            await durable.enqueue(1)
            await durable.enqueue(2, priority=1)
    with sqlite3.connect(path) as connection:
        stored = connection.execute("SELECT traces FROM microbatch_blobs").fetchall()
    connection.close()
    assert stored == [(None,), (None,)]
    assert [s.name for s in sdk.all_spans()] == ["request"]


async def test_enqueue_in_sends_too(path):
    """Inside the application's own transaction."""
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry()) as queue:
        await queue.stats()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        queue.enqueue_in(connection, 5)
        connection.execute("COMMIT")
        connection.close()
    worker = Sdk()
    async with batcher(path, Handler(), telemetry=worker.telemetry()):
        await until(lambda: len(sdk.spans("send default")) == len(worker.all_spans()))
    (send,), (process,) = sdk.spans("send default"), worker.spans("process default")
    assert [link.context.span_id for link in process.links] == [send.context.span_id]


ENQUEUE = """
import anyio, os, signal, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from microbatch import Telemetry
from microbatch.durable import DurableQueue

async def main():
    provider = TracerProvider(shutdown_on_exit=False)
    telemetry = Telemetry(tracer_provider=provider)
    async with DurableQueue(sys.argv[1], item_type=int, telemetry=telemetry) as queue:
        with provider.get_tracer("app").start_as_current_span("request") as span:
            await queue.enqueue(1)
            print(f"{span.get_span_context().trace_id:032x}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


async def test_a_killed_processs_trace_goes_on_in_the_next(path):
    """The link is in the row."""
    command = [sys.executable, "-c", ENQUEUE, str(path)]
    done = await anyio.run_process(command, env=ENVIRONMENT, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert await links(path) == [done.stdout.decode().strip()]


@pytest.mark.parametrize(
    "damage", ["x'fffe00'", "'nonsense'", "17", "'[17]'", "'[\"xy\"]'", "'[]'", "'{}'"]
)
async def test_a_stored_context_that_is_none_is_passed_over(path, damage):
    """Whoever damaged the row has cost a link, not the item."""
    async with DurableQueue(path, item_type=int, telemetry=Sdk().telemetry()) as queue:
        await queue.enqueue(1)
    execute(path, f"UPDATE microbatch_blobs SET traces = {damage}")
    assert await links(path) == []


async def links(path):
    """Handle the one item; return the traces that its batch is linked to."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=sdk.telemetry()):
        await until(lambda: sdk.spans("process default"))
    (process,) = sdk.spans("process default")
    return [f"{link.context.trace_id:032x}" for link in process.links]


# Gauges


def gauges(sdk: Sdk) -> dict[str, dict[str | None, float]]:
    """Return the values of a queue's gauges, by what tells their series apart."""
    return {
        name: {
            next(
                (v for k, v in p.attributes.items() if k != "microbatch.batcher.name"), None
            ): p.value
            for p in sdk.points(name)
        }
        for name in names.QUEUE_GAUGES
    }


@pytest.fixture
def quick(monkeypatch):
    """Count all the time instead of every five seconds."""
    monkeypatch.setattr(counting, "COUNT_INTERVAL", 0.02)


async def test_gauges_show_what_the_file_holds(path, quick):
    """Depth by state, dead letters, ages, sizes: what an alert looks at while nobody is awake."""
    sdk = Sdk()
    handler = Handler(fails={1: ValueError("no")})
    async with batcher(path, handler, max_batch_size=1, telemetry=sdk.telemetry()) as durable:
        with pytest.raises(ItemFailed):
            await durable.submit(1)
        handler.hold()
        await durable.enqueue(2, delay=1000)
        await durable.enqueue_many([3, 4, 5])

        def depth():
            return gauges(sdk)["microbatch.queue.depth"]

        await until(lambda: depth() == {"ready": 2, "scheduled": 1, "claimed": 1})
        await until(lambda: gauges(sdk)["microbatch.queue.oldest_age"][None] > 0.05)
        found = gauges(sdk)
        assert found["microbatch.queue.dead"] == {None: 1}
        assert found["microbatch.queue.file.size"]["pages"] >= 4096
        assert found["microbatch.queue.file.size"]["log"] > 0
        assert found["microbatch.queue.lock_waits"] == {None: 0}
        handler.free.set()
        await until(lambda: depth() == {"ready": 0, "scheduled": 1, "claimed": 0})
        assert sdk.names() == {durable.name}
    assert not any(gauges(sdk).values())
    assert sdk.names() == set()


async def test_a_queue_without_a_handler_has_gauges_too(path, quick):
    """Its process may be the only one that is left: nobody handles, and the depth grows."""
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry()) as queue:
        await until(lambda: gauges(sdk)["microbatch.queue.depth"])
        async with DurableQueue(path, item_type=int, telemetry=False) as other:
            await other.enqueue(1)
        await until(lambda: gauges(sdk)["microbatch.queue.depth"].get("ready") == 1)
        assert queue.name == "default"
    assert not any(gauges(sdk).values())


async def test_reading_gauges_asks_no_file(path, monkeypatch):
    """Readers have threads of their own, and a file may be locked: they are told what was counted last."""
    sdk = Sdk()
    asked = []
    stats = Seat.stats

    async def counted(store):
        asked.append(threading.current_thread())
        return await stats(store)

    monkeypatch.setattr(Seat, "stats", counted)
    monkeypatch.setattr(counting, "COUNT_INTERVAL", 1000.0)
    async with batcher(path, Handler(), telemetry=sdk.telemetry()) as durable:
        await until(lambda: gauges(sdk)["microbatch.queue.dead"])
        with locked_out(path):
            for _ in range(20):
                assert (await anyio.to_thread.run_sync(gauges, sdk))["microbatch.queue.dead"]
        await durable.submit(1)
    assert asked == [threading.main_thread()]  # once in COUNT_INTERVAL, by the queue's own task


async def test_gauges_keep_what_was_counted_last_while_the_file_is_away(path, quick, caplog):
    """An alert must not take that for an empty queue; and they go on once it is back."""
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry()) as queue:

        def ready():
            return gauges(sdk)["microbatch.queue.depth"].get("ready")

        await queue.enqueue(1)
        await until(lambda: ready() == 1)
        with locked_out(path):
            await until(lambda: "not counted: " in caplog.text)
            assert ready() == 1
        await queue.enqueue(2)
        await until(lambda: ready() == 2)


@pytest.mark.parametrize("wanted", ["nothing", "no provider", "traces"])
async def test_nothing_is_counted_where_nobody_takes_figures(path, wanted, quick, monkeypatch):
    """An idle queue must cost nothing for gauges that nobody reads."""

    async def counted(store):
        raise AssertionError

    monkeypatch.setattr(Seat, "stats", counted)
    traces = Telemetry(tracer_provider=Sdk().tracer_provider, meter_provider=NoOpMeterProvider())
    told = {"nothing": False, "no provider": None, "traces": traces}[wanted]
    async with batcher(path, Handler(), telemetry=told) as durable:
        assert await durable.submit(1) == 2
        await anyio.sleep(0.1)
    async with DurableQueue(path, item_type=int, telemetry=told, max_depth=1) as queue:
        await queue.enqueue(1)
        with pytest.raises(QueueFull):
            await queue.enqueue(2)


async def test_an_sdk_that_is_set_up_later_gets_gauges_too(path, quick, monkeypatch):
    """Within a second, as for all else; a queue that sleeps finds it when it is used."""
    sdk = Sdk()
    providers = [NoOpMeterProvider()]
    monkeypatch.setattr(recorder, "get_meter_provider", lambda: providers[0])
    monkeypatch.setattr(observer, "OBSERVE_INTERVAL", 0.02)
    async with (
        batcher(path, Handler(), name="worker") as durable,
        DurableQueue(path, item_type=int) as queue,
    ):
        await queue.enqueue(1)
        assert not any(gauges(sdk).values())
        providers[0] = sdk.meter_provider
        await anyio.sleep(0.03)
        await queue.enqueue(2)
        await until(lambda: len(sdk.points("microbatch.queue.dead")) == 2)
        assert durable.name == "worker"


@ends_loops
async def test_gauges_end_with_the_event_loop(tmp_path, quick):
    """A queue that was never closed must not tell for ever what was there once."""
    sdk = Sdk()

    def serve():
        queue = DurableQueue(tmp_path / "other.db", item_type=int, telemetry=sdk.telemetry())

        async def main():
            await queue.enqueue(1)
            await until(lambda: gauges(sdk)["microbatch.queue.dead"])

        anyio.run(main)
        return queue

    queue = await anyio.to_thread.run_sync(serve)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counted, "COUNT_KEPT", 0.0)  # a minute later
        assert not any(gauges(sdk).values())
    assert any(gauges(sdk).values())
    await queue.enqueue(2)  # in this loop, where it begins anew
    await until(lambda: gauges(sdk)["microbatch.queue.depth"].get("ready") == 2)
    await queue.aclose()
    assert not any(gauges(sdk).values())


async def test_one_file_counts_once_and_files_of_one_name_add_up(path):
    """Two objects may look at the same queue; what both see is there once."""
    sdk = Sdk()
    shared = instruments.Instruments.of(sdk.meter_provider)
    kept = []
    for place, number in (("a", 1), ("a", 1), ("b", 10), ("c", None)):
        one = counted.Counted("same", place)
        kept.append(one)
        shared.queues.add(one)
        if number is not None:
            one.keep(
                QueueStats(
                    ready=number,
                    scheduled=0,
                    claimed=0,
                    done=0,
                    dead=number,
                    cancelled=0,
                    oldest_age=float(number),
                    file_bytes=number,
                    wal_bytes=2,
                    lock_waits=number,
                    paused=False,
                ),
                {"queued": number, "running": 0},
            )
    assert gauges(sdk) == {
        "microbatch.queue.depth": {"ready": 11, "scheduled": 0, "claimed": 0},
        "microbatch.queue.dead": {None: 11},
        "microbatch.queue.oldest_age": {None: 10.0},
        "microbatch.queue.file.size": {"pages": 11, "log": 4},
        "microbatch.queue.lock_waits": {None: 12},
        "microbatch.job.open": {"queued": 11, "running": 0},
    }


async def test_units_and_kinds_of_a_queues_gauges_are_as_documented(path, quick):
    """Rates of a counter, sums of up-down counters, the last value of a gauge: backends go by these."""
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry()):
        await until(lambda: gauges(sdk)["microbatch.queue.dead"])
        metrics = sdk.metrics()
    kinds = {
        name: (
            "gauge"
            if isinstance(metric.data, Gauge)
            else "counter"
            if metric.data.is_monotonic
            else "up_down_counter",
            metric.unit,
        )
        for name, metric in metrics.items()
    }
    assert kinds == {name: row[:2] for name, row in names.QUEUE_GAUGES.items()}


# Outcomes


async def test_items_are_counted_by_what_the_disk_says_of_them(path):
    """One that goes again has no outcome yet; what cannot be stored counts as failed, though its handler did not."""
    sdk = Sdk()
    calls: list[int] = []

    async def handler(items: list[int]) -> list[object]:
        calls.extend(items)
        results: dict[int, object] = {
            2: ConnectionError("again") if calls.count(2) < 3 else 4,
            3: ValueError("no"),
            4: Skipped("seen before"),
            5: object(),  # nothing that a file can hold
        }
        return [results.get(item, item * 2) for item in items]

    retry = Retry(on=ConnectionError, attempts=3, backoff=Backoff(initial=0.001))
    async with batcher(
        path, handler, name="b", retry=retry, result_type=None, telemetry=sdk.telemetry()
    ) as durable:
        outcomes = [await outcome(durable.submit(item)) for item in range(1, 7)]
    assert outcomes[:2] == [2, 4]
    assert [type(one) for one in outcomes[2:5]] == [ItemFailed] * 3
    items = {
        (p.attributes.get("error.type"), p.attributes.get("microbatch.skipped")): p.value
        for p in sdk.points("microbatch.items")
    }
    assert items == {
        (None, None): 3,
        (None, True): 1,
        ("ValueError", None): 1,
        ("TypeError", None): 1,
    }
    assert sdk.counts("microbatch.retries") == {"ConnectionError": 2}
    assert {p.attributes["microbatch.batcher.name"] for p in sdk.points("microbatch.items")} == {
        "b"
    }
    assert [s.attributes["microbatch.attempt"] for s in sdk.spans("process default")].count(3) == 1


async def test_what_goes_back_to_the_file_is_not_counted(path):
    """Its outcome comes later, here or elsewhere: neither cancelled nor closed is true of it."""
    sdk = Sdk()
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=2, telemetry=sdk.telemetry()) as durable:
        await durable.enqueue_many(range(4))
        await until(lambda: handler.batches)
        await durable.aclose(0)
    assert sdk.points("microbatch.items") == []
    async with batcher(path, Handler(), telemetry=sdk.telemetry()) as durable:
        await until(lambda: sdk.counts("microbatch.items") == {None: 4})


async def test_an_outcome_that_came_too_late_is_not_counted(path, caplog):
    """Others have the item by then, and will count it."""
    sdk, handler = Sdk(), Handler(fails={2: ValueError("no")})
    handler.hold()
    async with batcher(path, handler, telemetry=sdk.telemetry()) as durable:
        await durable.enqueue_many([1, 2])
        await until(lambda: handler.batches)
        # As a worker does that takes this one for dead.
        execute(path, "UPDATE microbatch_ranges SET consumer = consumer + 1")
        handler.free.set()
        await until(lambda: "2 outcomes dropped" in caplog.text)
        assert sdk.counts("microbatch.items") == {}


async def test_refused_items_are_counted(path):
    """An alert on refusals must see those of a full queue as those of a full batcher."""
    sdk = Sdk()
    settings = Telemetry(tracer_provider=NoOpTracerProvider(), meter_provider=sdk.meter_provider)
    async with DurableQueue(path, item_type=int, max_depth=3, telemetry=settings) as queue:
        await until(lambda: sdk.points("microbatch.queue.dead"))
        await queue.enqueue_many([1, 2])
        for refused in (queue.enqueue_many([3, 4]), queue.enqueue(5, key="k")):
            await outcome(refused)
        for last in (queue.enqueue(6), queue.enqueue(7), queue.enqueue(5, key="k")):
            await outcome(last)
    assert sdk.counts("microbatch.items") == {"queue_full": 4}


async def test_a_broken_instrument_loses_no_outcome(path, caplog):
    """Telemetry is switched off, and the log says so; the items are settled all the same."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=sdk.telemetry()) as durable:
        assert await durable.submit(1) == 2
        durable._service.observer.recorder.instruments.items = None
        assert await durable.submit(2) == 4
        assert await durable.submit(3) == 6
    assert "telemetry failed and is off from now on" in caplog.text


async def test_closing_ends_the_counting_that_a_disk_holds_up(path, monkeypatch):
    """And there is never more than one of it at a time."""
    monkeypatch.setattr(counting, "COUNT_INTERVAL", 0.005)
    durable = DurableQueue(path, item_type=int, telemetry=Sdk().telemetry())
    store, calls = durable._service.store, []

    async def stats():
        calls.append(asyncio.current_task())
        await asyncio.sleep(60)

    monkeypatch.setattr(store, "stats", stats)
    await durable.enqueue(1)
    await until(lambda: calls)
    await asyncio.sleep(0.05)  # time for many
    assert len(calls) == 1
    await durable.aclose()
    assert calls[0].done()


def test_counting_goes_on_in_the_next_event_loop(path, monkeypatch, ended_loops):
    """That of the loop before never came to its end."""
    monkeypatch.setattr(counting, "COUNT_INTERVAL", 0.005)
    durable = DurableQueue(path, item_type=int, telemetry=Sdk().telemetry())
    calls = []

    async def stats():
        calls.append(asyncio.get_running_loop())
        await asyncio.Event().wait()

    monkeypatch.setattr(durable._service.store, "stats", stats)

    async def use(times):
        await durable.enqueue(1)
        await until(lambda: len(calls) == times)

    for times in (1, 2):
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # a task of the first one never ends
        try:
            loop.run_until_complete(use(times))
            if times == 2:
                loop.run_until_complete(durable.aclose())
        finally:
            loop.close()
    assert len(set(calls)) == 2
