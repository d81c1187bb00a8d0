"""Everything that is measured, behind one shape: open it with a batch size, run so many callers
through it.

A contender is an async context manager that takes the batch size and gives `run(n)`. All get the
same handler, which returns its argument at once. Peers get the settings that cost them least: no
cache, the shortest window that they take, up to 64 batches in flight where that can be said.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import floor
import trio

from microbatch import Batcher

if TYPE_CHECKING:
    from collections.abc import Callable

#: How the Batcher runs here: as the floor does, which has no bound and many batches in flight.
SETTINGS = {"max_pending": None, "max_concurrency": 64}


async def echo(items):
    """The handler of all contenders."""
    return items


@dataclass(frozen=True)
class Contender:
    name: str
    open: Callable[[int], Any]
    peer: bool = False
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    min_size: int = 1
    max_items: int | None = None  # beyond it the contender takes minutes


def tasks(submit):
    """Run a task for each caller."""

    async def run(n):
        return await asyncio.gather(*[submit(i) for i in range(n)])

    return run


def waited(load):
    """Make the coroutine function that a task needs of a function that returns a future."""

    async def submit(item):
        return await load(item)

    return submit


# Floors


@contextlib.asynccontextmanager
async def floor_a(size):
    yield tasks(floor.FloorBatcher(echo, max_batch_size=size).submit)


@contextlib.asynccontextmanager
async def floor_soon(size):
    yield tasks(floor.SoonBatcher(echo, max_batch_size=size).submit)


@contextlib.asynccontextmanager
async def bare(size):
    async def run(n):
        futures = []
        waiting = asyncio.gather(*[floor.bare(futures, i) for i in range(n)])
        await asyncio.sleep(0)
        for future in futures:
            future.set_result(None)
        await waiting

    yield run


@contextlib.asynccontextmanager
async def trio_floor(size):
    async with trio.open_nursery() as nursery:
        yield trio_tasks(floor.TrioFloorBatcher(echo, nursery, max_batch_size=size).submit)


def trio_tasks(submit):
    async def run(n):
        async with trio.open_nursery() as nursery:
            for i in range(n):
                nursery.start_soon(submit, i)

    return run


# microbatch, by each of its ways in


@contextlib.asynccontextmanager
async def submit(size):
    async with Batcher(echo, max_batch_size=size, **SETTINGS) as batcher:
        yield tasks(batcher.submit)


@contextlib.asynccontextmanager
async def submit_nowait(size):
    async with Batcher(echo, max_batch_size=size, **SETTINGS) as batcher:

        async def run(n):
            return await asyncio.gather(*[batcher.submit_nowait(i) for i in range(n)])

        yield run


@contextlib.asynccontextmanager
async def submit_many(size):
    async with Batcher(echo, max_batch_size=size, **SETTINGS) as batcher:

        async def run(n):
            for start in range(0, n, 100):
                await batcher.submit_many(range(start, min(start + 100, n)))

        yield run


@contextlib.asynccontextmanager
async def submit_from_thread(size):
    """Eight threads that each submit one item after the other."""
    async with Batcher(echo, max_batch_size=size, **SETTINGS) as batcher:
        await batcher.submit(0)
        loop = asyncio.get_running_loop()

        def work(n):
            for i in range(n):
                batcher.submit_from_thread(i)

        with ThreadPoolExecutor(8) as pool:

            async def run(n):
                shares = [n // 8 + (i < n % 8) for i in range(8)]
                await asyncio.gather(*[loop.run_in_executor(pool, work, s) for s in shares])

            yield run


@contextlib.asynccontextmanager
async def trio_submit(size):
    async with Batcher(echo, max_batch_size=size, **SETTINGS) as batcher:
        yield trio_tasks(batcher.submit)


# Peers


@contextlib.asynccontextmanager
async def aiodataloader(size):
    from aiodataloader import DataLoader

    yield tasks(waited(DataLoader(echo, max_batch_size=size, cache=False).load))


@contextlib.asynccontextmanager
async def strawberry(size):
    from strawberry.dataloader import DataLoader

    yield tasks(waited(DataLoader(echo, max_batch_size=size, cache=False).load))


@contextlib.asynccontextmanager
async def dloader(size):
    from dloader import DataLoader

    async with DataLoader(echo, max_batch_size=size, cache=False) as loader:
        yield tasks(waited(loader.load))


@contextlib.asynccontextmanager
async def batchlet(size):
    from batchlet import AsyncBatcher, BatchPolicy

    async with AsyncBatcher(
        echo,
        policy=BatchPolicy(max_items=size),
        max_wait_ms=0,
        max_pending_items=1 << 40,
        max_concurrent_batches=64,
    ) as batcher:
        yield tasks(batcher.submit)


@contextlib.asynccontextmanager
async def batched(size):
    from batched.aio.batch_processor import AsyncBatchProcessor

    processor = AsyncBatchProcessor(echo, batch_size=size, timeout_ms=1.0)
    yield tasks(processor.__call__)
    if processor._task is not None:
        processor._task.cancel()
        await asyncio.wait([processor._task])


@contextlib.asynccontextmanager
async def aiomisc(size):
    from aiomisc.aggregate import aggregate

    @aggregate(1, max_count=size)
    async def handler(*items):
        return await echo(items)

    yield tasks(handler)


@contextlib.asynccontextmanager
async def async_batcher(size):
    from async_batcher.batcher import AsyncBatcher

    class Echo(AsyncBatcher):
        async def process_batch(self, batch):
            return await echo(batch)

    batcher = Echo(max_batch_size=size, max_queue_time=0.001, concurrency=64)
    yield tasks(batcher.process)
    await batcher.stop(force=True)


FLOORS = [
    Contender("floor (a)", floor_a),
    Contender("floor, call_soon", floor_soon),
    Contender("bare task + future", bare),
]
TRIO_FLOOR = Contender("trio.Event floor", trio_floor, loops=("trio",))
OURS = [
    Contender("submit", submit),
    Contender("submit_nowait", submit_nowait),
    Contender("submit_many", submit_many),
]
FROM_THREAD = Contender("submit_from_thread", submit_from_thread, max_items=10_000)
TRIO_OURS = Contender("trio submit", trio_submit, loops=("trio",))
PEERS = [
    Contender("dloader", dloader, peer=True),
    Contender("aiodataloader", aiodataloader, peer=True),
    Contender("strawberry", strawberry, peer=True),
    Contender("batchlet", batchlet, peer=True, max_items=10_000),
    Contender("batched", batched, peer=True),
    Contender("aiomisc", aiomisc, peer=True),
    Contender("async_batcher", async_batcher, peer=True, min_size=2),
]
ALL = {c.name: c for c in [*FLOORS, *OURS, FROM_THREAD, *PEERS, TRIO_FLOOR, TRIO_OURS]}


def installed(contender):
    """Tell whether a peer is there; the others always are."""
    if not contender.peer:
        return True
    try:
        importlib.import_module(contender.name)
    except ImportError:
        return False
    return True
