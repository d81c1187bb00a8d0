"""Telemetry(on_batch=...) of a durable queue: what became of a handler call's items, as the disk will have it."""

from __future__ import annotations

import anyio
import pytest
from durable_support import Handler, batcher, until
from support import outcome
from telemetry_support import Sdk

from microbatch import Backoff, BatchRecord, ItemError, RateLimited, Retry, Skipped, Telemetry
from microbatch.durable import DurableQueue

pytestmark = pytest.mark.anyio

NOW = Backoff(initial=0.0)


def ends(record: BatchRecord) -> tuple[int, int, int, int, int]:
    found = (record.succeeded, record.failed, record.skipped, record.retried, record.held)
    assert sum(found) == record.size
    assert sum(record.errors.values()) == record.failed + record.skipped
    return found


async def run_batch(path, handler, items, **settings):
    """Enqueue items while the queue is paused, so that they are one batch; return what was told of."""
    records: list[BatchRecord] = []
    telemetry = settings.pop("telemetry", None) or Telemetry(on_batch=records.append)
    async with batcher(path, handler, name="orders", telemetry=telemetry, **settings) as durable:
        await durable.pause()
        tickets = await durable.enqueue_many(items)
        await durable.resume()
        for ticket in tickets:
            await outcome(durable.result(ticket))
    return records


@pytest.mark.parametrize("partitioned", [False, True])
async def test_a_record_tells_what_became_of_a_batch(path, partitioned):
    """The same words as in memory: what goes again is not among what failed."""
    handler = Handler(
        fails={1: ItemError("no", code="bad"), 2: Skipped("seen"), 3: OSError("busy")}
    )
    settings = {"partition": lambda item: 0} if partitioned else {}
    records = await run_batch(
        path, handler, range(5), retry=Retry(on=OSError, attempts=2, backoff=NOW), **settings
    )
    first, second = records
    assert ends(first) == (2, 1, 1, 1, 0)
    assert first.errors == {"bad": 1, "skipped": 1}
    assert ends(second) == (0, 1, 0, 0, 0)
    assert second.errors == {"internal_error": 1}
    assert {record.name for record in records} == {"orders"}
    assert min(record.seconds for record in records) >= 0


async def test_a_whole_batch_that_fails_and_goes_again(path):
    """Errors of one kind, of items that end and of items that do not."""
    attempts = 0

    async def handler(items):
        nonlocal attempts
        attempts += 1
        raise OSError("down")

    records = await run_batch(
        path, handler, range(3), retry=Retry(on=OSError, attempts=2, backoff=NOW)
    )
    assert next(ends(record) for record in records if record.size == 3) == (0, 0, 0, 3, 0)
    total = [sum(column) for column in zip(*map(ends, records), strict=True)]
    assert total == [0, 3, 0, 3, 0]
    assert attempts == len(records)


@pytest.mark.parametrize("whole", [False, True])
async def test_items_that_a_backend_refused_are_held(path, whole):
    """They go again with no attempt counted, so they are neither failed nor tried again."""
    calls = 0

    async def handler(items):
        nonlocal calls
        calls += 1
        if calls > 1:
            return items
        if whole:
            raise RateLimited(retry_after=0.01)
        return [item if item == 0 else RateLimited(retry_after=0.01) for item in items]

    records = await run_batch(path, handler, range(3), retry=Retry(on=OSError, backoff=NOW))
    counts = [ends(record) for record in records]
    assert counts[0] == ((0, 0, 0, 0, 3) if whole else (1, 0, 0, 0, 2))
    assert sum(one[0] for one in counts) == 3
    assert all(record.errors == {} and not record.held for record in records[1:])
    assert {record.failed + record.retried for record in records} == {0}


async def test_a_result_that_cannot_be_stored_has_failed(path):
    """Its item is a dead letter, whatever the handler thinks."""

    async def handler(items):
        return [object() if item == 1 else item for item in items]

    (record,) = await run_batch(path, handler, range(3))
    assert ends(record) == (2, 1, 0, 0, 0)
    assert record.errors == {"internal_error": 1}


async def test_a_batch_that_a_close_cut_short_goes_again(path):
    """Nothing of it failed: it is on the disk, ready."""
    records: list[BatchRecord] = []
    handler = Handler()
    handler.hold()
    durable = batcher(path, handler, telemetry=Telemetry(on_batch=records.append))
    await durable.enqueue_many(range(3))
    await until(lambda: handler.batches)
    await durable.aclose(0)
    assert sum(record.retried for record in records) == sum(map(len, handler.batches))
    assert [record for record in records if record.failed or record.errors] == []


async def test_the_span_of_a_batch_tells_the_same_failures(path):
    """Those that go again are not among them there either."""
    sdk = Sdk()
    records: list[BatchRecord] = []
    await run_batch(
        path,
        Handler(fails={1: OSError("busy"), 2: ValueError("bad")}),
        range(4),
        retry=Retry(on=OSError, attempts=2, backoff=NOW),
        telemetry=sdk.telemetry(on_batch=records.append),
    )
    spans = sdk.spans("process default")
    assert [span.attributes["microbatch.batch.failed_items"] for span in spans] == [1, 1]
    assert [record.failed for record in records] == [1, 1]


async def test_what_it_raises_harms_no_item(path, caplog):
    """Not the batch, not the settle, not the next ones."""

    def on_batch(record: BatchRecord) -> None:
        raise BaseException("broken")

    async with batcher(path, Handler(), telemetry=Telemetry(on_batch=on_batch)) as durable:
        for item in range(3):
            assert await durable.submit(item) == item * 2
        assert (await durable.stats()).done == 3
    assert [r.name for r in caplog.records if "on_batch raised" in r.getMessage()] == ["microbatch"]


async def test_a_queue_without_a_handler_has_no_batches(path):
    """What its own machinery does in bulk is nobody's business."""
    records: list[BatchRecord] = []
    async with DurableQueue(
        path, item_type=int, telemetry=Telemetry(on_batch=records.append)
    ) as queue:
        tickets = [await queue.enqueue(item) for item in range(3)]
        with anyio.move_on_after(0.2):
            await queue.result(tickets[0])
        await queue.dead_letters()
    assert records == []
