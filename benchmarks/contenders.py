"""Everybody who is measured, behind one shape, with the same handler.

A way is an async context manager `way(handler, size, wait)` that gives a function to submit an item
with. Without a size everything is at its own defaults. A contender drives its way with n callers.
Peers get the settings that cost them least: no cache, the shortest window that they take, up to 64
batches in flight where that can be said.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sniffio
import trio

from benchmarks import floor
from microbatch import Batcher

if TYPE_CHECKING:
    from collections.abc import Callable

#: How the Batcher runs here: as the floor does, which has no bound and many batches in flight.
SETTINGS = {"max_pending": None, "max_concurrency": 64}


async def echo(items):
    """The handler of all contenders."""
    return items


class Gate:
    """Its handler lets nothing through until it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()

    async def handler(self, items):
        await self.opened.wait()
        return items


# Driving: from what a way gives to `run(n)`


def tasks(submit):
    """Run a task for each caller."""
    if sniffio.current_async_library() == "trio":
        return trio_tasks(submit)

    async def run(n):
        return await asyncio.gather(*[submit(i) for i in range(n)])

    return run


def trio_tasks(submit):
    async def run(n):
        async with trio.open_nursery() as nursery:
            for i in range(n):
                nursery.start_soon(submit, i)

    return run


def pending(submit_nowait):
    """Run one task that hands in everything and then waits."""

    async def one_by_one(n):
        return [await one for one in [submit_nowait(i) for i in range(n)]]

    async def gathered(n):
        return await asyncio.gather(*[submit_nowait(i) for i in range(n)])

    return one_by_one if sniffio.current_async_library() == "trio" else gathered


def chunks(submit_many):
    """Run one task that hands in a hundred items at a time."""

    async def run(n):
        for start in range(0, n, 100):
            await submit_many(range(start, min(start + 100, n)))

    return run


def threads(submit_from_thread):
    """Run eight threads that each submit one item after the other."""

    def work(n):
        for i in range(n):
            submit_from_thread(i)

    async def run(n):
        loop = asyncio.get_running_loop()
        shares = [n // 8 + (i < n % 8) for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            await asyncio.gather(*[loop.run_in_executor(pool, work, share) for share in shares])

    return run


def settled(submit):
    """Run the tasks of `floor.Bare`, which nobody answers but this."""
    futures = submit.__self__.futures

    async def run(n):
        waiting = asyncio.gather(*[submit(i) for i in range(n)])
        await asyncio.sleep(0)
        for future in futures:
            future.set_result(None)
        futures.clear()
        await waiting

    return run


# Ways


@contextlib.asynccontextmanager
async def by_hand(handler, size=None, wait=None):
    yield floor.FloorBatcher(handler, max_batch_size=size or 100, max_wait=wait or 0.0).submit


@contextlib.asynccontextmanager
async def trio_floor(handler, size=None, wait=None):
    async with trio.open_nursery() as nursery:
        yield floor.TrioFloorBatcher(
            handler, nursery, max_batch_size=size or 100, max_wait=wait or 0.0
        ).submit


@contextlib.asynccontextmanager
async def bare(_handler, _size=None, _wait=None):
    yield floor.Bare().submit


def ours(verb):
    @contextlib.asynccontextmanager
    async def way(handler, size=None, wait=None):
        settings = {} if size is None else {"max_batch_size": size, **SETTINGS}
        async with Batcher(handler, max_wait=wait or 0.0, **settings) as batcher:
            if verb == "submit_from_thread":
                await batcher.submit(0)  # it needs a batcher that serves a loop
            yield getattr(batcher, verb)

    return way


def waited(load):
    """Make the coroutine function that a task needs of a function that returns a future."""

    async def submit(item):
        return await load(item)

    return submit


def dataloader(module):
    @contextlib.asynccontextmanager
    async def way(handler, size=None, _wait=None):
        loader = importlib.import_module(module).DataLoader
        settings = {} if size is None else {"max_batch_size": size}
        yield waited(loader(handler, cache=False, **settings).load)

    return way


@contextlib.asynccontextmanager
async def dloader(handler, size=None, _wait=None):
    from dloader import DataLoader

    settings = {} if size is None else {"max_batch_size": size}
    async with DataLoader(handler, cache=False, **settings) as loader:
        yield waited(loader.load)


@contextlib.asynccontextmanager
async def batchlet(handler, size=None, wait=None):
    from batchlet import AsyncBatcher, BatchPolicy

    settings = {}
    if size is not None:
        settings = {
            "policy": BatchPolicy(max_items=size),
            "max_wait_ms": (wait or 0.0) * 1e3,
            "max_pending_items": 1 << 40,
            "max_concurrent_batches": 64,
        }
    async with AsyncBatcher(handler, **settings) as batcher:
        yield batcher.submit


@contextlib.asynccontextmanager
async def batched(handler, size=None, wait=None):
    from batched.aio.batch_processor import AsyncBatchProcessor

    settings = {} if size is None else {"batch_size": size, "timeout_ms": wait * 1e3}
    processor = AsyncBatchProcessor(handler, **settings)
    yield processor.__call__
    if processor._task is not None:
        processor._task.cancel()
        await asyncio.wait([processor._task])


@contextlib.asynccontextmanager
async def aiomisc(handler, size=None, wait=None):
    from aiomisc.aggregate import aggregate

    @aggregate(wait * 1e3, max_count=size)
    async def bulk(*items):
        return await handler(items)

    yield bulk


@contextlib.asynccontextmanager
async def async_batcher(handler, size=None, wait=None):
    from async_batcher.batcher import AsyncBatcher

    class Called(AsyncBatcher):
        async def process_batch(self, batch):
            return await handler(batch)

    settings = (
        {} if size is None else {"max_batch_size": size, "max_queue_time": wait, "concurrency": 64}
    )
    batcher = Called(**settings)
    yield batcher.process
    await batcher.stop(force=True)


@dataclass(frozen=True)
class Contender:
    name: str
    way: Callable[..., Any]
    drive: Callable[[Any], Any] = tasks
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    module: str | None = None  # a peer's, which may be missing
    shortest: float = 0.0  # seconds, the shortest window that it takes
    min_size: int = 1
    max_items: int | None = None  # beyond it the contender takes minutes

    @contextlib.asynccontextmanager
    async def open(self, size):
        """Give `run(n)`, which takes n items through."""
        async with self.way(echo, size, self.shortest) as submit:
            yield self.drive(submit)


EVERYWHERE = ("asyncio", "uvloop", "trio")
FLOOR = "floor (a)"
TRIO_FLOOR = "trio.Event floor"
FLOORS = [
    Contender(FLOOR, by_hand),
    Contender("bare task + future", bare, settled),
    Contender(TRIO_FLOOR, trio_floor, loops=("trio",)),
]
OURS = [
    Contender("submit", ours("submit"), loops=EVERYWHERE),
    Contender("submit_nowait", ours("submit_nowait"), pending, loops=EVERYWHERE),
    Contender("submit_many", ours("submit_many"), chunks, loops=EVERYWHERE),
    Contender("submit_from_thread", ours("submit_from_thread"), threads, max_items=10_000),
]
PEERS = [
    Contender("dloader", dloader, module="dloader"),
    Contender("aiodataloader", dataloader("aiodataloader"), module="aiodataloader"),
    Contender("strawberry", dataloader("strawberry.dataloader"), module="strawberry"),
    Contender("batchlet", batchlet, module="batchlet", max_items=10_000),
    Contender("batched", batched, module="batched", shortest=0.001),
    Contender("aiomisc", aiomisc, module="aiomisc", shortest=0.001),
    Contender("async_batcher", async_batcher, module="async_batcher", shortest=0.001, min_size=2),
]
ALL = {contender.name: contender for contender in [*FLOORS, *OURS, *PEERS]}


def installed(contender):
    """Tell whether a peer is there; the others always are."""
    if contender.module is None:
        return True
    try:
        importlib.import_module(contender.module)
    except ImportError:
        return False
    return True


def there(*names):
    """Return those of these contenders who are installed."""
    return [ALL[name] for name in names if installed(ALL[name])]
