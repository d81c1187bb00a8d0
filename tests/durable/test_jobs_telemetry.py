"""What telemetry tells of jobs: who sent one, how its items ended and how long it took, how many are open."""

from __future__ import annotations

from collections import Counter as Tally

import pytest
from durable_support import Handler, batcher, check_jobs, until
from opentelemetry.sdk.metrics import Counter, Histogram
from opentelemetry.trace import SpanKind
from telemetry_support import BrokenSampler, Sdk

from microbatch import ItemError, Skipped
from microbatch._telemetry.observer import Observer
from microbatch.durable import DurableQueue, QueueFull
from microbatch.durable._file import job_steps
from microbatch.durable._life import counting

pytestmark = pytest.mark.anyio


@pytest.fixture
def quick(monkeypatch):
    """Count all the time instead of every five seconds."""
    monkeypatch.setattr(counting, "COUNT_INTERVAL", 0.02)


def items_of(sdk: Sdk) -> dict[str, int]:
    points = sdk.points("microbatch.job.items")
    return {point.attributes["microbatch.item.outcome"]: point.value for point in points}


def ends_of(sdk: Sdk) -> dict[str, int]:
    points = sdk.points("microbatch.job.duration")
    return {point.attributes["microbatch.job.outcome"]: point.count for point in points}


def open_jobs(sdk: Sdk) -> dict[str, int]:
    points = sdk.points("microbatch.job.open")
    return {point.attributes["microbatch.job.life"]: point.value for point in points}


# Spans


async def test_the_batches_of_a_job_are_linked_to_the_call_that_brought_it(path):
    """One span for all its items, child of the caller's, with the job's id."""
    sdk = Sdk()
    async with batcher(path, Handler(), max_batch_size=4, telemetry=sdk.telemetry()) as durable:
        with sdk.tracer.start_as_current_span("request") as request:
            job = await durable.enqueue_job(range(10))
        await job.wait(20)
    (send,) = sdk.spans("send default")
    assert send.kind == SpanKind.PRODUCER
    assert send.parent.span_id == request.get_span_context().span_id
    assert send.attributes["microbatch.job.id"] == job.id
    assert send.attributes["messaging.batch.message_count"] == 10
    batches = sdk.spans("process default")
    assert sum(span.attributes["microbatch.batch.size"] for span in batches) == 10
    linked = [[link.context.span_id for link in span.links] for span in batches]
    assert linked == [[send.context.span_id]] * len(batches)


async def test_a_retried_job_is_sent_anew(path):
    """Its batches belong to who asked for them, not to who brought the first job."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=sdk.telemetry()) as durable:
        await durable.pause()
        job = await durable.enqueue_job([1, 2])
        await job.cancel()
        await job.wait(20)
        await durable.resume()
        again = await job.retry_failed()
        await again.wait(20)
    first, second = sdk.spans("send default")
    assert first.attributes["microbatch.job.id"] == job.id
    assert second.attributes["microbatch.job.id"] == again.id
    (process,) = sdk.spans("process default")
    assert [link.context.span_id for link in process.links] == [second.context.span_id]


async def test_a_repeated_key_and_a_refused_job_are_told_as_what_they_are(path):
    """The one sends nothing; the other says why nothing was stored."""
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry(), max_depth=2) as queue:
        await queue.enqueue_job([1], key="k")
        await queue.enqueue_job([2], key="k")
        with pytest.raises(QueueFull):
            await queue.enqueue_job([1, 2])
    sent, refused = sdk.spans("send default")
    assert "error.type" not in sent.attributes
    assert refused.attributes["error.type"] == "queue_full"


# Figures


def _mixed(number: int) -> object:
    return {1: ItemError("no", code="odd"), 2: Skipped("known")}.get(number % 5, number)


async def mixed(items):
    return [_mixed(item) for item in items]


async def test_items_and_ends_of_jobs_are_counted_once(path):
    """By how they ended; a duration for each job, by its outcome."""
    sdk = Sdk()
    async with (
        batcher(path, mixed, max_batch_size=7, name="b", telemetry=sdk.telemetry()) as durable,
        DurableQueue(path, item_type=int, name="q", telemetry=sdk.telemetry()) as queue,
    ):
        await (await durable.enqueue_job(range(50))).wait(20)
        await (await queue.enqueue_job(["x", 5], invalid="fail")).wait(20)
        await (await queue.enqueue_job([])).wait(20)
        await durable.pause()
        job = await durable.enqueue_job(range(4))
        await job.cancel()
        await job.wait(20)
        job = await queue.enqueue_job(range(3), deadline=0.01)
        await job.wait(20)
        wanted = {"succeeded": 31, "failed": 11, "skipped": 10, "cancelled": 4, "expired": 3}
        await until(lambda: items_of(sdk) == wanted)
        ends = {"partially_succeeded": 2, "succeeded": 1, "cancelled": 1, "expired": 1}
        await until(lambda: ends_of(sdk) == ends)
        batchers = {
            p.attributes["microbatch.batcher.name"] for p in sdk.points("microbatch.job.items")
        }
        assert batchers == {"b"}  # one of the two, the one with a handler
    assert all(p.sum >= 0 for p in sdk.points("microbatch.job.duration"))
    check_jobs(path)


async def test_items_of_no_job_are_not_counted_as_such(path):
    """They have their own counter."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=sdk.telemetry()) as durable:
        assert await durable.submit(1) == 2
    assert items_of(sdk) == {}
    assert sdk.counts("microbatch.items") == {None: 1}


async def test_what_settles_with_on_settle_counts_too(path):
    """There another connection writes."""
    sdk = Sdk()

    async def book(connection, items, results):
        pass

    async with batcher(path, mixed, on_settle=book, telemetry=sdk.telemetry()) as durable:
        await (await durable.enqueue_job(range(20))).wait(20)
        await until(lambda: items_of(sdk) == {"succeeded": 12, "failed": 4, "skipped": 4})
        await until(lambda: ends_of(sdk) == {"partially_succeeded": 1})


async def test_a_long_cancel_is_counted_step_by_step(path, monkeypatch):
    """Each step is a transaction of its own; together they are all items, once."""
    monkeypatch.setattr(job_steps, "STEP", 3)
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry()) as queue:
        job = await queue.enqueue_job([1, "x"] * 20, invalid="fail")
        await job.cancel()
        await job.wait(20)
        await until(lambda: items_of(sdk) == {"failed": 20, "cancelled": 20})
        assert ends_of(sdk) == {"cancelled": 1}


async def test_open_jobs_are_a_gauge_by_life(path, quick):
    """What waits, what runs, what ends: an alert looks at those that stay."""
    sdk = Sdk()
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, telemetry=sdk.telemetry()) as durable:
        await until(lambda: open_jobs(sdk) == {"queued": 0, "running": 0, "cancelling": 0})
        running = await durable.enqueue_job([1])
        await until(lambda: handler.batches)
        await durable.enqueue_job([2], delay=1_000)
        await until(lambda: open_jobs(sdk) == {"queued": 1, "running": 1, "cancelling": 0})
        await running.cancel()
        await until(lambda: open_jobs(sdk) == {"queued": 1, "running": 0, "cancelling": 1})
        handler.free.set()
        await until(lambda: open_jobs(sdk) == {"queued": 1, "running": 0, "cancelling": 0})
    assert open_jobs(sdk) == {}


# Harmless


def broken(*_, **__):
    raise ZeroDivisionError


@pytest.mark.parametrize("instrument", [Counter, Histogram])
async def test_a_broken_instrument_harms_no_job(path, monkeypatch, caplog, instrument):
    """It is switched off, and the log says so."""
    sdk = Sdk()
    async with DurableQueue(path, item_type=int, telemetry=sdk.telemetry()) as queue:
        job = await queue.enqueue_job([1, 2])
        method = "add" if instrument is Counter else "record"
        monkeypatch.setattr(instrument, method, broken)
        await job.cancel()
        assert (await job.wait(20)).outcome == "cancelled"
        await until(lambda: "telemetry failed and is off from now on" in caplog.text)
        assert (await (await queue.enqueue_job([])).wait(20)).outcome == "succeeded"
    check_jobs(path)


async def test_a_broken_sampler_harms_no_job(path, caplog):
    """Nor the call that brings one."""
    sdk = Sdk(sampler=BrokenSampler(("send",)))
    async with batcher(path, Handler(), telemetry=sdk.telemetry()) as durable:
        assert (await (await durable.enqueue_job([1])).wait(20)).succeeded == 1
    assert "telemetry failed and is off from now on" in caplog.text


@pytest.mark.parametrize("telemetry", [None, False])
async def test_without_an_sdk_nothing_of_it_runs(path, telemetry, monkeypatch):
    """No call in the event loop for it, and nothing counted in the file."""
    called: Tally[str] = Tally()
    monkeypatch.setattr(Observer, "jobs_went_on", lambda *_: called.update(["told"]))
    async with batcher(path, Handler(), telemetry=telemetry) as durable:
        jobs = durable._service.store.jobs
        monkeypatch.setattr(jobs, "count_open", broken)
        assert (await (await durable.enqueue_job(range(10))).wait(20)).succeeded == 10
    assert not called
