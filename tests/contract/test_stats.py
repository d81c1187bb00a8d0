"""``stats()``: exact at every moment."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, counted, outcomes, run, turns

from microbatch import Batcher, BatcherFull

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


async def test_stats_are_exact_at_every_moment() -> None:
    """Through the whole life of four items: buffered, in flight, early result, back-off, done."""
    from microbatch import Backoff, Retry

    gates = [anyio.Event() for _ in range(3)]
    calls = 0

    async def handler(items: list[str]) -> list[Any]:
        nonlocal calls
        gate = gates[calls]
        calls += 1
        await gate.wait()
        return [ConnectionError() if item == "flaky" and calls == 1 else item for item in items]

    def books() -> tuple[int, ...]:
        stats = counted(batcher)
        return (
            stats.buffered,
            stats.in_flight,
            stats.in_backoff,
            stats.batches,
            stats.items,
            stats.failed,
        )

    retry = Retry(on=ConnectionError, backoff=Backoff(initial=1.0, jitter=0.0))
    batcher: Batcher[str, str] = Batcher(handler, max_batch_size=2, retry=retry)
    async with batcher:
        assert books() == (0, 0, 0, 0, 0, 0)
        good, flaky = batcher.submit_nowait("good"), batcher.submit_nowait("flaky")
        third = batcher.submit_nowait("third")
        assert counted(batcher).pending == 3
        await turns()
        assert books() == (1, 2, 0, 0, 0, 0)
        gates[0].set()
        await turns()
        assert good.done()
        assert books() == (0, 1, 1, 1, 1, 0)
        gates[1].set()
        await turns()
        assert third.done()
        assert books() == (0, 0, 1, 2, 2, 0)
        await anyio.sleep(1.5)
        assert books() == (0, 1, 0, 2, 2, 0)
        gates[2].set()
        assert await flaky == "flaky"
        assert books() == (0, 0, 0, 3, 3, 0)
        assert batcher.stats().oldest_in_flight in (None, 0.0)


async def test_withdrawn_and_rejected_items_are_in_no_count() -> None:
    """They were never handled; each withdrawal is counted off once."""
    handler = Gate()
    async with Batcher(handler, max_pending=5) as batcher:
        held = batcher.submit_nowait(0)
        await turns()
        others = [batcher.submit_nowait(item) for item in range(1, 5)]
        with pytest.raises(BatcherFull):
            batcher.submit_nowait(9)
        for pending in others:
            pending.cancel()
            pending.cancel()
        assert counted(batcher).pending == 1
        handler.opened.set()
        await held
    stats = counted(batcher)
    assert (stats.batches, stats.items, stats.failed, stats.pending) == (1, 1, 0, 0)


async def test_items_that_share_a_crash_are_counted_as_failed() -> None:
    """failed counts items, batches counts calls."""

    async def handler(items: list[int]) -> list[int]:
        raise ValueError

    async with Batcher(handler, max_batch_size=3) as batcher:
        await outcomes(*map(batcher.submit, range(7)))
        stats = counted(batcher)
    assert (stats.batches, stats.items, stats.failed) == (3, 7, 7)


async def test_stats_are_a_snapshot() -> None:
    """What was read does not change afterwards."""
    async with Batcher(Recorder()) as batcher:
        before = batcher.stats()
        await batcher.submit(1)
        assert (before.items, dict(before.reasons).get("idle", 0)) == (0, 0)
        with pytest.raises(AttributeError):
            before.items = 5  # type: ignore[misc]
