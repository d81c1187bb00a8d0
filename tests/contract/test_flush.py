"""``flush()``: what is there leaves now, and its end is told; what comes later waits its own time."""

from __future__ import annotations

import asyncio
import sys

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, counted, outcome, outcomes, run, turns

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


async def test_flush_sends_what_is_buffered_and_returns_when_it_is_resolved() -> None:
    """The window is cut short, the handler awaited."""
    handler = Recorder(seconds=2)
    async with Batcher(handler, max_wait=1000) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(3)]
        start = anyio.current_time()
        await batcher.flush()
        assert anyio.current_time() - start == pytest.approx(2)
        assert all(pending.done() for pending in pendings)
    assert handler.reasons == ["flush"]


async def test_flush_on_an_empty_batcher_does_nothing() -> None:
    """No handler call for nothing, before the first item and after."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        await batcher.flush()
        assert handler.batches == []
        await batcher.submit(1)
        await batcher.flush()
    await Batcher(handler).flush()
    assert handler.batches == [[1]]


async def test_flush_does_not_wait_for_batches_in_flight() -> None:
    """They are on their way already."""
    handler = Recorder(seconds=20)
    async with Batcher(handler, max_concurrency=2, max_wait=1.0) as batcher:
        batcher.submit_nowait(1)
        await anyio.sleep(2)
        handler.seconds = 1
        start = anyio.current_time()
        await batcher.flush()
        assert anyio.current_time() == start
        batcher.submit_nowait(2)
        await batcher.flush()
        assert anyio.current_time() - start == pytest.approx(1)


async def test_flush_sends_more_than_a_batch() -> None:
    """Everything buffered at the call, in as many batches as it takes."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_batch_size=2, max_wait=1000) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(5)]
        await batcher.flush()
        assert all(pending.done() for pending in pendings)
    assert handler.sizes == [2, 2, 1]


async def test_items_that_come_after_a_flush_wait_their_own_time() -> None:
    """They may ride along; the flush does not wait for those that do not."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_wait=100) as batcher:
        batcher.submit_nowait(1)
        async with anyio.create_task_group() as tasks:
            start = anyio.current_time()
            tasks.start_soon(batcher.flush)
            await anyio.sleep(0.5)
            late = batcher.submit_nowait(2)
        assert anyio.current_time() - start == pytest.approx(1)
        assert not late.done()
        assert await late == 20
        assert handler.started[1] - start == pytest.approx(100.5)


async def test_a_flush_ends_when_its_items_are_withdrawn() -> None:
    """It waits for items, and a withdrawn one will never be handled."""
    handler = Gate()
    ended: list[bool] = []
    async with Batcher(handler) as batcher, anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(1)
        await turns()
        pending = batcher.submit_nowait(2)

        async def flush() -> None:
            await batcher.flush()
            ended.append(True)

        tasks.start_soon(flush)
        await turns()
        assert not ended
        pending.cancel()
        await turns()
        in_time = bool(ended)
        handler.opened.set()
        assert await first == 10
    assert in_time


async def test_two_flushes_at_once_both_end() -> None:
    """One by each of two requests is normal."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_wait=100) as batcher:
        batcher.submit_nowait(1)
        await outcomes(batcher.flush(), batcher.flush(), batcher.flush())
        assert counted(batcher).pending == 0
    assert handler.sizes == [1]


async def test_a_flush_ends_under_a_steady_stream_of_urgent_items() -> None:
    """It waits for what was there at the call, and that is not starved."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_batch_size=1) as batcher, anyio.create_task_group() as tasks:
        batcher.submit_nowait(-1)

        async def stream() -> None:
            while True:
                batcher.submit_nowait(1, priority=5)
                await anyio.sleep(1)

        tasks.start_soon(stream)
        await anyio.sleep(0.5)
        batcher.submit_nowait(-2)
        start = anyio.current_time()
        await batcher.flush()
        assert anyio.current_time() - start < 50
        tasks.cancel_scope.cancel()


async def test_a_failed_batch_does_not_fail_the_flush() -> None:
    """The error is its caller's."""

    async def handler(items: list[int]) -> list[int]:
        raise LookupError

    async with Batcher(handler, max_wait=100) as batcher:
        pending = batcher.submit_nowait(1)
        await batcher.flush()
        assert type(await outcome(pending)) is LookupError
