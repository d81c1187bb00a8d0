"""Counters and histograms: each batch once, each item once, bounded attributes."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, outcome, outcomes, turns
from telemetry_support import Sdk, echo, plain

from microbatch import Batcher, BatcherClosed, BatcherFull, ItemError, Skipped, current_batch
from microbatch._telemetry import names

pytestmark = pytest.mark.anyio


async def test_every_batch_is_one_record_and_every_item_one_count() -> None:
    """Never a record for an item: each costs as much as three items."""
    sdk = Sdk()

    async def handler(items: list[Any]) -> list[Any]:
        return [
            ValueError(i) if i % 10 == 0 else Skipped("odd") if i % 10 == 1 else i for i in items
        ]

    async with Batcher(handler, max_batch_size=20, telemetry=sdk.telemetry()) as batcher:
        await batcher.submit_many_report(range(100))
    assert sum(p.count for p in sdk.points("microbatch.batch.size")) == 5
    assert sum(p.sum for p in sdk.points("microbatch.batch.size")) == 100
    assert sum(p.count for p in sdk.points("microbatch.batch.wait.duration")) == 5
    (duration,) = sdk.points("microbatch.batch.duration")
    assert duration.count == 5
    items = {
        (p.attributes.get("error.type"), p.attributes.get("microbatch.skipped")): p.value
        for p in sdk.points("microbatch.items")
    }
    assert items == {(None, None): 80, ("ValueError", None): 10, (None, True): 10}


async def test_flushing_an_empty_batcher_leaves_no_trace() -> None:
    """Flush after every request, and most of them find nothing: no call, no span, no figure."""
    sdk, handler = Sdk(), Recorder()
    async with Batcher(handler, telemetry=sdk.telemetry(trace_items=True)) as batcher:
        await batcher.flush()
        await batcher.submit(1)
        await batcher.flush()
    assert handler.batches == [[1]]
    assert sorted(span.name for span in sdk.all_spans()) == [
        f"process {batcher.name}",
        f"submit {batcher.name}",
    ]
    assert [point.count for point in sdk.points("microbatch.batch.size")] == [1]


async def test_the_oldest_items_wait_is_recorded_by_the_loops_clock() -> None:
    """Once a batch, for the size or the wait that made it leave."""
    sdk = Sdk()
    async with Batcher(echo, max_batch_size=3, max_wait=2.0, telemetry=sdk.telemetry()) as batcher:

        async def later(seconds: float) -> None:
            await anyio.sleep(seconds)
            await batcher.submit(seconds)

        await outcomes(later(0.0), later(0.5), later(1.0), later(5.0))
    waits = {
        p.attributes["microbatch.flush.reason"]: p.sum
        for p in sdk.points("microbatch.batch.wait.duration")
    }
    assert waits == {"size": pytest.approx(1.0), "wait": pytest.approx(2.0)}
    assert [s.attributes["microbatch.batch.wait"] for s in sdk.spans("process echo")] == [
        pytest.approx(1.0),
        pytest.approx(2.0),
    ]


@pytest.mark.parametrize("settings", [{}, {"partition": lambda _: 0}])
async def test_without_max_wait_items_wait_for_a_slot_and_that_is_seen(settings: Any) -> None:
    """The wait tells a slow handler from a quiet hour."""
    sdk = Sdk()
    handler = Recorder(seconds=4.0)
    async with Batcher(handler, telemetry=sdk.telemetry(), **settings) as batcher:

        async def later() -> None:
            await anyio.sleep(1.0)
            await batcher.submit(2)

        await outcomes(batcher.submit(1), later())
    first, second = (s.attributes["microbatch.batch.wait"] for s in sdk.all_spans())
    assert (first, second) == (0.0, pytest.approx(3.0))


async def test_a_thousand_keys_are_one_set_of_attributes() -> None:
    """Items, keys, partitions never become attributes: each would be a series for ever."""
    sdk = Sdk()
    async with Batcher(
        echo,
        max_batch_size=1,
        max_concurrency=8,
        partition=lambda item: item,
        coalesce=lambda item: item,
        telemetry=sdk.telemetry(),
    ) as batcher:
        await batcher.submit_many([f"secret {i}" for i in range(1000)])
        metrics = sdk.metrics()
    for name, metric in metrics.items():
        assert len(metric.data.data_points) == 1, name
    assert len(sdk.all_spans()) == 1000
    assert not any("secret" in f"{s.name} {plain(s.attributes)}" for s in sdk.all_spans())


async def test_error_types_are_bounded() -> None:
    """Classes made at run time, codes made of data: what is not listed is `_OTHER`."""
    sdk = Sdk()
    listed = sdk.telemetry(error_codes=["duplicate"])

    class OddError(Exception):
        pass

    async def handler(items: list[Any]) -> list[Any]:
        return [item() for item in items]

    async with Batcher(handler, max_batch_size=500, telemetry=listed) as batcher:
        makers: list[Any] = [
            partial(ItemError, "no", code="duplicate"),
            partial(ItemError, "no", code="row 17"),
            OddError,
        ]
        makers += [type(f"Error{i}", (ValueError,), {}) for i in range(200)]
        await batcher.submit_many_report(makers)
    counts = sdk.counts("microbatch.items")
    assert counts["duplicate"] == 1
    assert counts[f"{__name__}.{OddError.__qualname__}"] == 1
    assert len(counts) == names.ERROR_TYPES_MAX
    assert sum(counts.values()) == 203
    assert counts["_OTHER"] > 100


async def test_items_that_no_handler_saw_are_counted_too() -> None:
    """Refused, withdrawn, closed: told with the next batch, or at the end, not at 20 us each."""
    sdk = Sdk()
    handler = Gate()
    batcher = Batcher(
        handler, max_batch_size=1, max_pending=3, on_full="reject", telemetry=sdk.telemetry()
    )
    async with batcher:
        running = batcher.submit_nowait(1)
        await turns()
        goes, stays = [batcher.submit_nowait(i) for i in (2, 3)]
        for _ in range(4):
            with pytest.raises(BatcherFull):
                batcher.submit_nowait(9)
        goes.cancel()
        await turns()
        await batcher.aclose(0)
    assert isinstance(await outcome(running), BatcherClosed)
    assert isinstance(await outcome(stays), BatcherClosed)
    assert sdk.counts("microbatch.items") == {"queue_full": 4, "cancelled": 1, "closed": 2}


async def test_callers_in_line_are_counted_when_it_closes() -> None:
    """They wait for room and get BatcherClosed; so does what remains of a submit_many."""
    sdk = Sdk()
    handler = Gate()
    batcher = Batcher(handler, max_batch_size=1, max_pending=1, telemetry=sdk.telemetry())
    async with anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(1)
        tasks.start_soon(outcome, batcher.submit(2))
        await turns()
        tasks.start_soon(outcome, batcher.submit_many_report([3, 4, 5]))
        await turns()
        await batcher.aclose(0)
    await outcome(first)
    assert sdk.counts("microbatch.items") == {"closed": 5}


async def test_why_a_batch_was_small_stands_in_its_span_and_in_the_stats() -> None:
    """The question that every batcher gets: the reason, and how long the oldest waited."""
    sdk = Sdk()
    reasons = []

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        reasons.append(batch.reason)
        return items

    async with Batcher(
        handler, max_batch_size=2, max_wait=1.0, telemetry=sdk.telemetry()
    ) as batcher:
        await outcomes(batcher.submit(1), batcher.submit(2))
        await batcher.submit(3)
        assert batcher.stats().reasons == {"size": 1, "wait": 1}
    assert [s.attributes["microbatch.flush.reason"] for s in sdk.all_spans()] == reasons
