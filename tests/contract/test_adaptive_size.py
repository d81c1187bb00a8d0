"""A batch size that learns, under a batcher."""

from __future__ import annotations

import asyncio
import sys

import anyio
import anyio.lowlevel
import pytest
from support import Recorder, outcomes, run

from microbatch import AdaptiveSize, Batcher

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


async def test_an_adaptive_size_settles_near_the_knee() -> None:
    """Up to 30 items a call gets cheaper per item; beyond, dearer: the size finds it by itself, and stays."""
    sizes: list[int] = []

    async def handler(items: list[int]) -> list[int]:
        size = len(items)
        sizes.append(size)
        await anyio.sleep(0.03 + 0.001 * size + max(0, size - 30) * 0.01)
        return items

    size = AdaptiveSize(1, 200, target=1.0)
    async with Batcher(handler, max_batch_size=size, max_pending=None) as batcher:
        await batcher.submit_many(range(6_000))
    settled = sizes[len(sizes) // 2 : -1]
    assert len(settled) > 100
    assert all(20 <= size <= 36 for size in settled), settled


async def test_an_adaptive_size_halves_on_an_error_burst() -> None:
    """A failing backend is helped by smaller calls, not larger ones."""
    failing = False

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(0.1)
        if failing:
            raise ConnectionError
        return items

    size = AdaptiveSize(1, 1000, target=10.0)
    async with Batcher(handler, max_batch_size=size, max_pending=None) as batcher:
        await batcher.submit_many(range(2000))
        before = size.size
        assert before > 20
        failing = True
        await outcomes(batcher.submit_many(range(before)))
        assert size.size <= before / 2
        assert size.size >= 1


async def test_an_adaptive_size_stays_under_its_latency_target() -> None:
    """Throughput is not everything: a call slower than the target shrinks the next."""
    slowest = 0.0

    async def handler(items: list[int]) -> list[int]:
        nonlocal slowest
        seconds = 0.1 + 0.1 * len(items)
        slowest = max(slowest, seconds)
        await anyio.sleep(seconds)
        return items

    size = AdaptiveSize(1, 1_000, target=1.0)
    async with Batcher(handler, max_batch_size=size, max_pending=None) as batcher:
        await batcher.submit_many(range(2_000))
    assert slowest < 3.0
    assert size.size <= 30


async def test_batches_are_never_larger_than_the_adaptive_maximum() -> None:
    """maximum is a promise to the backend."""
    handler = Recorder()
    async with Batcher(handler, max_batch_size=AdaptiveSize(2, 8), max_pending=None) as batcher:
        await batcher.submit_many(range(500))
    assert max(handler.sizes) <= 8
    assert handler.sizes[0] == 2
