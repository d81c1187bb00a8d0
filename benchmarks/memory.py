"""Memory: bytes per waiting caller, what stays after a million items, growth with partitions and
cancelled callers.

    python benchmarks/memory.py

Every figure is taken in a process of its own, as growth of its resident set, the caller's own
task included.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import contenders
import floor
import measure

from microbatch import Batcher


def resident():
    """Return this process's resident bytes, garbage collected first."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def _waiting(submit, n):
    """Return the bytes per caller while n of them wait."""
    asyncio.get_running_loop().slow_callback_duration = 60
    warm = [asyncio.create_task(submit(-i)) for i in range(200)]
    await _settle()
    tasks = [None] * n
    before = resident()
    for i in range(n):
        tasks[i] = asyncio.create_task(submit(i))
    await _settle()
    after = resident()
    for task in [*warm, *tasks]:
        task.cancel()
    await asyncio.gather(*warm, *tasks, return_exceptions=True)
    return (after - before) / n


async def hang(items):
    """The handler of those who wait."""
    await asyncio.Event().wait()
    return items


async def waiting_bare(n):
    futures = []
    return await _waiting(lambda item: floor.bare(futures, item), n)


async def waiting_floor(n):
    return await _waiting(floor.FloorBatcher(hang).submit, n)


async def waiting_submit(n):
    batcher = Batcher(hang, **contenders.SETTINGS)
    try:
        return await _waiting(batcher.submit, n)
    finally:
        await batcher.aclose(drain_timeout=0)


def waiting_dataloader(module):
    async def waiting(n):
        loader = __import__(module, fromlist=["DataLoader"]).DataLoader
        return await _waiting(
            contenders.waited(loader(hang, max_batch_size=100, cache=False).load), n
        )

    return waiting


async def waiting_batchlet(n):
    from batchlet import AsyncBatcher, BatchPolicy

    batcher = AsyncBatcher(
        hang, policy=BatchPolicy(max_items=100), max_wait_ms=0, max_pending_items=1 << 40
    )
    return await _waiting(batcher.submit, n)


async def waiting_batched(n):
    from batched.aio.batch_processor import AsyncBatchProcessor

    return await _waiting(AsyncBatchProcessor(hang, batch_size=100, timeout_ms=5.0).__call__, n)


async def waiting_aiomisc(n):
    from aiomisc.aggregate import aggregate

    @aggregate(10_000, max_count=100)
    async def handler(*items):
        return await hang(items)

    return await _waiting(handler, n)


async def kept(n):
    """Return the bytes per item that stay after n items in waves of 1,000."""
    async with Batcher(contenders.echo, **contenders.SETTINGS) as batcher:

        async def waves(count):
            for _ in range(count):
                await asyncio.gather(*[batcher.submit(i) for i in range(1000)])

        await waves(20)
        before = resident()
        await waves(n // 1000)
        return (resident() - before) / n


async def kept_partitions(n):
    """Return the bytes per partition that stay after n partitions of one item each."""
    async with Batcher(contenders.echo, partition=abs, **contenders.SETTINGS) as batcher:
        await asyncio.gather(*[batcher.submit(i) for i in range(1000)])
        before = resident()
        for start in range(0, n, 1000):
            await asyncio.gather(*[batcher.submit(i) for i in range(start, start + 1000)])
        return (resident() - before) / n


async def live_partitions(n):
    """Return the bytes per caller while n of them wait, each in a partition of its own."""
    batcher = Batcher(hang, partition=abs, **contenders.SETTINGS)
    try:
        return await _waiting(batcher.submit, n)
    finally:
        await batcher.aclose(drain_timeout=0)


async def kept_cancelled(n):
    """Return the bytes per cancelled caller that stay while the batcher's only slot is busy."""
    batcher = Batcher(hang, max_pending=None)
    first = asyncio.create_task(batcher.submit(0))
    await _settle()

    async def wave():
        tasks = [asyncio.create_task(batcher.submit(i)) for i in range(1000)]
        await _settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        for _ in range(5):
            await wave()
        before = resident()
        for _ in range(n // 1000):
            await wave()
        return (resident() - before) / n
    finally:
        await batcher.aclose(drain_timeout=0)
        await asyncio.wait([first])


WAITING = {
    "bare task + future": waiting_bare,
    "floor (a)": waiting_floor,
    "submit": waiting_submit,
    "dloader": waiting_dataloader("dloader"),
    "aiodataloader": waiting_dataloader("aiodataloader"),
    "strawberry": waiting_dataloader("strawberry.dataloader"),
    "batchlet": waiting_batchlet,
    "batched": waiting_batched,
    "aiomisc": waiting_aiomisc,
}
KEPT = {
    "after so many items": kept,
    "after so many partitions": kept_partitions,
    "with so many live partitions": live_partitions,
    "after so many cancelled callers": kept_cancelled,
}


def child(kind, name, n):
    """Run in the subprocess; print the figure and leave at once."""
    figure = asyncio.Runner().run({"waiting": WAITING, "kept": KEPT}[kind][name](n))
    print(json.dumps(figure), flush=True)
    os._exit(0)


def in_subprocess(kind, name, n):
    """Return a figure taken in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, name, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def waiting(names, *, n, rounds):
    """Return {name: spread of bytes per waiting caller}, interleaved."""
    rows = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            rows[name].append(in_subprocess("waiting", name, n))
    return {name: measure.spread(values) for name, values in rows.items()}


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    chosen = measure.options(__doc__.splitlines()[0])
    n = 1000 if chosen.tiny else 20_000
    rounds = chosen.rounds or (1 if chosen.tiny else 5)
    names = [
        name
        for name in WAITING
        if name not in contenders.ALL or contenders.installed(contenders.ALL[name])
    ]
    figures = waiting(
        ["bare task + future", "submit"] if chosen.tiny else names, n=n, rounds=rounds
    )
    bare = figures["bare task + future"]["median"]
    measure.table(
        [f"{n:,} callers waiting", "bytes each", "of a bare task + future"],
        [(k, measure.shown(v, 0), f"{v['median'] / bare:.2f}") for k, v in figures.items()],
    )
    counts = dict.fromkeys(KEPT, 1000 if chosen.tiny else 100_000)
    counts["after so many items"] = 1000 if chosen.tiny else 1_000_000
    left = {name: in_subprocess("kept", name, count) for name, count in counts.items()}
    measure.table(
        ["bytes each", "number", "bytes"],
        [(name, f"{counts[name]:,}", f"{value:.2f}") for name, value in left.items()],
    )
    measure.save(chosen.out, "memory", {"n": n, "waiting": figures, "counts": counts, "kept": left})


if __name__ == "__main__":
    main()
