"""When a batch leaves: full, waited for long enough, together, alone; and never for nothing."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio
from support import Gate, Recorder, outcomes, run, turns

from microbatch import Batcher

if sys.version_info >= (3, 12):

    def test_an_eager_task_factory_changes_nothing() -> None:
        """Eager tasks run up to their first wait at once: calls made together must still travel together."""
        handler = Recorder()

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            async with Batcher(handler) as batcher, asyncio.TaskGroup() as tasks:
                started = [tasks.create_task(batcher.submit(item)) for item in range(50)]
            assert [task.result() for task in started] == [item * 10 for item in range(50)]

        run("asyncio", main)
        assert handler.sizes == [50]


pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


async def test_a_full_batch_goes_at_once() -> None:
    """The hundredth item sends it, without any time passing."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1000) as batcher:
        start = anyio.current_time()
        pendings = [batcher.submit_nowait(item) for item in range(100)]
        await turns()
        assert handler.sizes == [100]
        assert anyio.current_time() == start
        assert all(pending.done() for pending in pendings)
    assert handler.reasons == ["size"]


async def test_the_oldest_item_waits_max_wait_and_no_longer() -> None:
    """Measured from the first item: a later one does not restart the window."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        start = anyio.current_time()
        for _ in range(4):
            batcher.submit_nowait(1)
            await anyio.sleep(0.3)
        await anyio.sleep(0.1)
    assert [moment - start for moment in handler.started] == pytest.approx([1.0])
    assert handler.reasons == ["wait"]


async def test_a_stale_timer_does_not_cut_the_next_batch_early() -> None:
    """After a batch left by size, the next one has its whole window."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0, max_batch_size=2) as batcher:
        start = anyio.current_time()
        batcher.submit_nowait(1)
        await anyio.sleep(0.8)
        batcher.submit_nowait(2)
        batcher.submit_nowait(3)
        await anyio.sleep(0.5)
        assert handler.sizes == [2]
        await anyio.sleep(2)
    assert [moment - start for moment in handler.started] == pytest.approx([0.8, 1.8])


async def test_a_window_begins_anew_when_all_of_it_was_withdrawn() -> None:
    """The oldest item is the oldest that still waits."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        batcher.submit_nowait(1).cancel()
        await anyio.sleep(0.7)
        start = anyio.current_time()
        pending = batcher.submit_nowait(2)
        assert await pending == 20
        assert handler.started[0] - start <= 1.0 + 1e-6
    assert handler.batches == [[2]]


async def test_a_window_that_ends_while_all_slots_are_busy_is_up_when_one_is_free() -> None:
    """A batch is cut only when a slot is free, and then holds all that came meanwhile."""
    handler = Recorder(seconds=5)
    async with Batcher(handler, max_wait=1.0) as batcher:
        start = anyio.current_time()
        batcher.submit_nowait(1)
        await anyio.sleep(2)
        for item in (2, 3, 4):
            batcher.submit_nowait(item)
            await anyio.sleep(1)
    assert handler.batches == [[1], [2, 3, 4]]
    assert [moment - start for moment in handler.started] == pytest.approx([1, 6])


async def test_calls_made_together_travel_together() -> None:
    """max_wait=0 is not batches of one: every runnable task has its turn first."""
    handler = Recorder()
    async with Batcher(handler) as batcher:
        start = anyio.current_time()
        await outcomes(*map(batcher.submit, range(50)))
        assert anyio.current_time() == start
    assert handler.sizes == [50]
    assert handler.reasons == ["idle"]


async def test_callers_woken_together_travel_together() -> None:
    """A batch's callers go on at the same moment, and their next calls are one batch again."""
    handler = Recorder(seconds=1)
    async with Batcher(handler) as batcher:

        async def chain(item: int) -> None:
            for _ in range(5):
                await batcher.submit(item)

        async with anyio.create_task_group() as tasks:
            for item in range(20):
                tasks.start_soon(chain, item)
    assert handler.sizes == [20] * 5


async def test_a_lone_caller_pays_no_waiting_time() -> None:
    """The default adds no latency when nothing else is going on."""
    async with Batcher(Recorder()) as batcher:
        start = anyio.current_time()
        for item in range(10):
            await batcher.submit(item)
        assert anyio.current_time() == start


async def test_while_all_slots_are_busy_the_next_batch_keeps_filling() -> None:
    """Group commit: under load batches grow by themselves."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_batch_size=10) as batcher:
        await batcher.submit(0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batcher.submit, 1)
            for item in range(2, 7):
                await anyio.sleep(0.1)
                tasks.start_soon(batcher.submit, item)
    assert handler.sizes == [1, 1, 5]


async def test_an_item_submitted_while_the_handler_runs_is_in_the_next_batch() -> None:
    """The list that a handler works on is not added to."""
    handler = Gate()
    async with Batcher(handler) as batcher:
        first = batcher.submit_nowait(1)
        await turns()
        second = batcher.submit_nowait(2)
        await turns()
        handler.opened.set()
        assert [await first, await second] == [10, 20]
    assert handler.batches == [[1], [2]]


async def test_three_hundred_and_fifty_queued_items_go_in_full_batches() -> None:
    """100, 100, 100, 50: none dropped, order kept."""
    handler = Recorder(seconds=1)
    async with Batcher(handler) as batcher:
        for item in range(350):
            batcher.submit_nowait(item)
    assert handler.sizes == [100, 100, 100, 50]
    assert [item for batch in handler.batches for item in batch] == list(range(350))


async def test_an_idle_batcher_never_wakes() -> None:
    """Timers run only while something waits: no polling, no free-running interval."""

    class Count(trio.abc.Instrument):
        polls = 0

        def after_io_wait(self, timeout: float) -> None:
            self.polls += 1

    if sniffio.current_async_library() == "trio":
        loop: Any = Count()
        trio.lowlevel.add_instrument(loop)
    else:
        loop = asyncio.get_running_loop()  # support.py's count their own polls

    async def wakes_in_hours() -> int:
        before = loop.polls
        await anyio.sleep(20_000)
        return int(loop.polls - before)

    async with Batcher(Recorder(), max_wait=1.0) as batcher:
        await batcher.submit(1)
        await anyio.sleep(10)
        with_it = await wakes_in_hours()
    assert with_it <= await wakes_in_hours()


async def test_the_reason_of_each_batch_is_counted() -> None:
    """ "Why is my batch small?" is what users of every batcher ask."""
    handler = Recorder()
    async with Batcher(
        handler, max_batch_size=3, max_wait=1.0, max_batch_weight=10, weigh=int
    ) as batcher:
        for item in (1, 1, 1):
            batcher.submit_nowait(item)
        await turns()
        for item in (6, 5):
            batcher.submit_nowait(item)
        await turns()
        await anyio.sleep(2)
        batcher.submit_nowait(1)
        await batcher.flush()
        batcher.submit_nowait(1)
    assert handler.reasons == ["size", "weight", "wait", "flush", "close"]
    assert handler.batches == [[1, 1, 1], [6], [5], [1], [1]]
    assert dict(batcher.stats().reasons) == {
        "size": 1,
        "weight": 1,
        "wait": 1,
        "flush": 1,
        "close": 1,
    } | {reason: 0 for reason in batcher.stats().reasons if reason == "idle"}


async def test_a_handler_that_never_yields_leaves_the_loop_its_turns() -> None:
    """Batch after batch without an await: other tasks must run in between, for a health check's sake."""
    ticks = 0

    async def handler(items: list[int]) -> list[int]:
        return items

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    async with (
        Batcher(handler, max_batch_size=1, max_pending=None) as batcher,
        anyio.create_task_group() as tasks,
    ):
        pendings = [batcher.submit_nowait(item) for item in range(5000)]
        tasks.start_soon(tick)
        assert await pendings[-1] == 4999
        tasks.cancel_scope.cancel()
    assert ticks >= 10
