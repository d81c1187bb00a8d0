"""Gauges: what batchers hold at the moment in which somebody collects."""

from __future__ import annotations

import gc

import anyio
import anyio.lowlevel
import pytest
from support import Gate, turns
from telemetry_support import Sdk, echo

from microbatch import Batcher

pytestmark = pytest.mark.anyio


async def test_gauges_show_what_the_batcher_holds_at_that_moment() -> None:
    """Pending against capacity is what an alert on a full queue divides."""
    sdk = Sdk()
    handler = Gate()
    async with Batcher(
        handler,
        max_batch_size=2,
        max_pending=50,
        weigh=float,
        max_batch_weight=1000,
        telemetry=sdk.telemetry(),
    ) as batcher:
        pendings = [batcher.submit_nowait(i) for i in (10, 20, 30)]
        await turns()
        assert sdk.gauges() == {
            "microbatch.queue.size": 3,
            "microbatch.queue.capacity": 50,
            "microbatch.item.inflight": 2,
            "microbatch.queue.weight": 60.0,
        }
        handler.opened.set()
        for pending in pendings:
            await pending
        assert sdk.gauges()["microbatch.queue.weight"] == 0


async def test_a_gauge_is_left_out_where_there_is_no_such_thing() -> None:
    """No bound, no weight: no series that says 0."""
    sdk = Sdk()
    async with Batcher(echo, max_pending=None, telemetry=sdk.telemetry()) as batcher:
        await batcher.submit(1)
        assert set(sdk.gauges()) == {"microbatch.queue.size", "microbatch.item.inflight"}


async def test_closed_and_forgotten_batchers_leave_the_gauges() -> None:
    """Callbacks cannot be taken back: a weak set of batchers must shrink by itself."""
    sdk = Sdk()
    batcher = Batcher(echo, name="closed", telemetry=sdk.telemetry())
    async with batcher:
        await batcher.submit(1)
        assert sdk.names() == {"closed"}
    assert sdk.names() == set()
    forgotten = Batcher(echo, name="forgotten", telemetry=sdk.telemetry())
    await forgotten.submit(1)
    await turns()
    assert sdk.names() == {"forgotten"}
    del forgotten
    gc.collect()
    assert sdk.names() == set()


async def test_batchers_of_one_name_add_up() -> None:
    """One for each instance of a decorated method: two values for one series would lose one."""
    sdk = Sdk()
    one = Batcher(echo, name="same", max_pending=10, telemetry=sdk.telemetry())
    two = Batcher(echo, name="same", max_pending=7, telemetry=sdk.telemetry())
    async with one, two:
        await one.submit(1)
        await two.submit(1)
        assert sdk.gauges()["microbatch.queue.capacity"] == 17


@pytest.mark.real_time
async def test_a_reader_in_another_thread_may_collect_at_any_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Readers run in threads of their own, while batches come and go."""
    sdk = Sdk()
    async with (
        Batcher(echo, max_batch_size=7, telemetry=sdk.telemetry()) as batcher,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(batcher.submit_many, range(3000))
        for _ in range(20):
            await anyio.to_thread.run_sync(sdk.metrics)
    assert sdk.counts("microbatch.items") == {None: 3000}
    assert caplog.records == []  # the SDK logs what a callback raises


@pytest.mark.real_time
async def test_gauges_are_read_while_a_handler_runs_in_another_thread_than_the_loops() -> None:
    """The oldest call's age needs the loop's clock, which not every loop shows to other threads."""
    sdk = Sdk()
    handler = Gate()
    async with Batcher(handler, telemetry=sdk.telemetry()) as batcher:
        pending = batcher.submit_nowait(1)
        await turns()
        gauges = await anyio.to_thread.run_sync(sdk.gauges)
        stats = await anyio.to_thread.run_sync(batcher.stats)
        handler.opened.set()
        await pending
    assert gauges["microbatch.item.inflight"] == 1
    assert 0 <= stats.oldest_in_flight < 20
