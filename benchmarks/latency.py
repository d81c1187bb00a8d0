"""Latency: a lone caller, the oldest item's age at dispatch, and latency against offered load.

python benchmarks/latency.py
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import random
import statistics
import time

import contenders
import floor
import measure

from microbatch import Batcher

# A lone caller


async def _lone(entries, rounds, calls):
    """Return {name: [p50 of each round, in microseconds]}; one call at a time, in turns."""
    figures = {name: [] for name in entries}
    p99 = {name: [] for name in entries}
    names = list(entries)
    async with contextlib.AsyncExitStack() as stack:
        ways = {name: await stack.enter_async_context(entries[name]()) for name in names}
        for way in ways.values():
            await way(0)
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                way, took = ways[name], []
                gc.collect()
                for i in range(calls):
                    began = time.perf_counter()
                    await way(i)
                    took.append((time.perf_counter() - began) * 1e6)
                figures[name].append(statistics.median(took))
                p99[name].append(statistics.quantiles(took, n=100)[98])
    return figures, p99


@contextlib.asynccontextmanager
async def _lone_submit():
    async with Batcher(contenders.echo) as batcher:  # default settings
        yield batcher.submit


@contextlib.asynccontextmanager
async def _plain(submit):
    yield submit


def _dataloader(module):
    loader = __import__(module, fromlist=["DataLoader"]).DataLoader
    return _plain(contenders.waited(loader(contenders.echo, cache=False).load))


@contextlib.asynccontextmanager
async def _lone_batchlet():
    from batchlet import AsyncBatcher

    async with AsyncBatcher(contenders.echo) as batcher:
        yield batcher.submit


@contextlib.asynccontextmanager
async def _lone_batched():
    from batched.aio.batch_processor import AsyncBatchProcessor

    processor = AsyncBatchProcessor(contenders.echo)
    yield processor.__call__
    processor._task.cancel()


@contextlib.asynccontextmanager
async def _lone_async_batcher():
    from async_batcher.batcher import AsyncBatcher

    class Echo(AsyncBatcher):
        async def process_batch(self, batch):
            return batch

    batcher = Echo()
    yield batcher.process
    await batcher.stop(force=True)


def lone_entries(*, windowed=True):
    """Everyone at default settings; floor (a) without a wait."""
    entries = {
        "floor (a)": lambda: _plain(floor.FloorBatcher(contenders.echo).submit),
        "submit": _lone_submit,
        "dloader": lambda: _dataloader("dloader"),
        "aiodataloader": lambda: _dataloader("aiodataloader"),
        "strawberry": lambda: _dataloader("strawberry.dataloader"),
    }
    if windowed:
        entries |= {
            "batchlet": _lone_batchlet,
            "batched": _lone_batched,
            "async_batcher": _lone_async_batcher,
        }
    return {
        name: way
        for name, way in entries.items()
        if name not in contenders.ALL or contenders.installed(contenders.ALL[name])
    }


def lone(*, rounds, calls, windowed=True):
    """Return each one's p50 in microseconds and, paired by round, as a ratio to floor (a)."""
    figures, p99 = asyncio.run(_lone(lone_entries(windowed=windowed), rounds, calls))
    base = figures["floor (a)"]
    return {
        name: {
            "p50": measure.spread(values),
            "p99": measure.spread(p99[name]),
            "ratio": measure.spread([mine / its for mine, its in zip(values, base, strict=True)]),
        }
        for name, values in figures.items()
    }


# The age of the oldest item at dispatch


async def _ages(make, seconds, rate):
    """Return the age of the oldest item of each batch, in seconds; arrivals are random."""
    ages = []

    async def handler(items):
        ages.append(time.perf_counter() - items[0])
        return items

    rng = random.Random(1)
    tasks = set()
    async with make(handler) as submit:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            task = asyncio.create_task(submit(time.perf_counter()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(rng.expovariate(rate))
        await asyncio.gather(*tasks)
    return ages


def ages(make, *, seconds, rate=500.0):
    """Return the 50th and 99th percentile and the largest age at dispatch, in milliseconds."""
    values = sorted(age * 1e3 for age in asyncio.run(_ages(make, seconds, rate)))
    return {
        "batches": len(values),
        "p50": statistics.median(values),
        "p99": values[min(len(values) - 1, int(len(values) * 0.99))],
        "max": values[-1],
    }


def ages_in_turns(names, wait, *, rounds, seconds):
    """Return {name: spread of the 99th percentile beyond the wait, in ms}, taken in turns.

    "bare timer" is what `asyncio.sleep(wait)` alone is late by, meanwhile: the machine's share.
    """
    late = {name: [] for name in [*names, "bare timer"]}
    for _ in range(rounds):
        for name in names:
            late[name].append(ages(windowed(name, wait), seconds=seconds)["p99"] - wait * 1e3)
        late["bare timer"].append(asyncio.run(_lateness(wait, seconds)))
    return {name: measure.spread(values) for name, values in late.items()}


async def _lateness(wait, seconds):
    late = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await asyncio.sleep(wait)
        late.append((time.perf_counter() - began - wait) * 1e3)
    late.sort()
    return late[min(len(late) - 1, int(len(late) * 0.99))]


@contextlib.asynccontextmanager
async def windowed_submit(handler, *, wait):
    async with Batcher(handler, max_wait=wait, **contenders.SETTINGS) as batcher:
        yield batcher.submit


@contextlib.asynccontextmanager
async def windowed_floor(handler, *, wait):
    yield floor.FloorBatcher(handler, max_wait=wait).submit


@contextlib.asynccontextmanager
async def windowed_batchlet(handler, *, wait):
    from batchlet import AsyncBatcher, BatchPolicy

    async with AsyncBatcher(
        handler,
        policy=BatchPolicy(max_items=100),
        max_wait_ms=wait * 1e3,
        max_pending_items=1 << 40,
        max_concurrent_batches=64,
    ) as batcher:
        yield batcher.submit


@contextlib.asynccontextmanager
async def windowed_batched(handler, *, wait):
    from batched.aio.batch_processor import AsyncBatchProcessor

    processor = AsyncBatchProcessor(handler, batch_size=100, timeout_ms=wait * 1e3)
    yield processor.__call__
    processor._task.cancel()


@contextlib.asynccontextmanager
async def windowed_async_batcher(handler, *, wait):
    from async_batcher.batcher import AsyncBatcher

    class Echo(AsyncBatcher):
        async def process_batch(self, batch):
            return await handler(batch)

    batcher = Echo(max_batch_size=100, max_queue_time=wait, concurrency=64)
    yield batcher.process
    await batcher.stop(force=True)


@contextlib.asynccontextmanager
async def windowed_aiomisc(handler, *, wait):
    from aiomisc.aggregate import aggregate

    @aggregate(wait * 1e3, max_count=100)
    async def bulk(*items):
        return await handler(items)

    yield bulk


@contextlib.asynccontextmanager
async def windowed_dloader(handler, *, wait):
    from dloader import DataLoader

    async with DataLoader(handler, max_batch_size=100, cache=False) as loader:
        yield contenders.waited(loader.load)


WINDOWED = {
    "submit": windowed_submit,
    "floor (a)": windowed_floor,
    "batchlet": windowed_batchlet,
    "batched": windowed_batched,
    "async_batcher": windowed_async_batcher,
    "aiomisc": windowed_aiomisc,
}


def windowed(name, wait):
    """Return a way in with a window of so many seconds."""
    return functools.partial(WINDOWED[name], wait=wait)


# Idle


async def _idle(seconds):
    """Return the CPU seconds per second of a batcher that was used and now has nothing to do."""
    async with Batcher(contenders.echo, max_wait=0.01) as batcher:
        await asyncio.gather(*[batcher.submit(i) for i in range(250)])
        await asyncio.sleep(0.1)
        began = time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - began) / seconds


async def _idle_batched(seconds):
    from batched.aio.batch_processor import AsyncBatchProcessor

    processor = AsyncBatchProcessor(contenders.echo)
    await asyncio.gather(*[processor(i) for i in range(250)])
    await asyncio.sleep(0.1)
    began = time.process_time()
    await asyncio.sleep(seconds)
    took = (time.process_time() - began) / seconds
    processor._task.cancel()
    return took


def idle(*, seconds):
    return asyncio.run(_idle(seconds))


def idle_batched(*, seconds):
    return asyncio.run(_idle_batched(seconds))


# Latency against offered load


async def _backend(items):
    """What a call costs: 5 ms, and 10 us for each item."""
    await asyncio.sleep(0.005 + 10e-6 * len(items))
    return items


async def _load(make, rate, seconds, limit):
    """Offer Poisson arrivals for so long; return (items/s that came back, p50, p99) in ms.

    Time counts from when an item was due, so a generator that cannot keep up hides nothing. More
    callers than the limit at once end the run: the contender cannot carry that load.
    """
    took = []
    rng = random.Random(2)
    loop = asyncio.get_running_loop()
    waiting = 0

    async def call(submit, due):
        nonlocal waiting
        try:
            await submit(due)
            took.append(loop.time() - due)
        finally:
            waiting -= 1

    async with make(_backend) as submit:
        tasks = set()
        began = due = loop.time()
        while due < began + seconds and waiting < limit:
            due += rng.expovariate(rate)
            if (ahead := due - loop.time()) > 0:
                await asyncio.sleep(ahead)
            elif len(took) % 64 == 0:
                await asyncio.sleep(0)
            waiting += 1
            task = asyncio.create_task(call(submit, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        overload = waiting >= limit
        for task in tasks if overload else ():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        lasted = loop.time() - began
    if overload or len(took) < 3:
        return None
    cuts = statistics.quantiles([t * 1e3 for t in took], n=100)
    return {"rate": len(took) / lasted, "p50": statistics.median(took) * 1e3, "p99": cuts[98]}


@contextlib.asynccontextmanager
async def _unbatched(handler):
    async def submit(item):
        return (await handler([item]))[0]

    yield submit


@contextlib.asynccontextmanager
async def _one_batch(handler, *, wait):
    """One batch at a time, as the Batcher's default has it."""
    async with Batcher(handler, max_wait=wait, max_pending=None) as batcher:
        yield batcher.submit


CURVES = {
    "no batching": _unbatched,
    "microbatch, max_wait 0": functools.partial(windowed_submit, wait=0.0),
    "microbatch, max_wait 2 ms": functools.partial(windowed_submit, wait=0.002),
    "microbatch, max_wait 10 ms": functools.partial(windowed_submit, wait=0.01),
    "microbatch, max_wait 0, one batch at a time": functools.partial(_one_batch, wait=0.0),
    "dloader": functools.partial(windowed_dloader, wait=0.0),
    "batchlet, 2 ms": functools.partial(windowed_batchlet, wait=0.002),
    "batched, 5 ms": functools.partial(windowed_batched, wait=0.005),
    "aiomisc, 2 ms": functools.partial(windowed_aiomisc, wait=0.002),
    "async_batcher, 10 ms": functools.partial(windowed_async_batcher, wait=0.01),
}


def curves(rates, seconds, limit):
    """Return {contender: [one point for each rate]}; all contenders at one rate before the next."""
    found = {
        name: []
        for name in CURVES
        if (peer := name.partition(",")[0]) not in contenders.ALL
        or contenders.installed(contenders.ALL[peer])
    }
    given_up = set()
    for rate in rates:
        for name, points in found.items():
            if name in given_up:
                continue
            gc.collect()
            point = asyncio.run(_load(CURVES[name], rate, seconds, limit))
            if point is None:
                given_up.add(name)
                print(f"{name:45} {rate:8,.0f}/s offered: not carried", flush=True)
                continue
            points.append({"offered": rate, **point})
            print(
                f"{name:45} {rate:8,.0f}/s offered: {point['rate']:8,.0f}/s, "
                f"p50 {point['p50']:7.2f} ms, p99 {point['p99']:7.2f} ms",
                flush=True,
            )
    return found


def plot(found, path):
    def draw(axes):
        colors = ["#c2185b", "#e57399", "#f3b4c8", "#880e4f"]
        for name, points in found.items():
            if not points:
                continue
            rates = [p["rate"] for p in points]
            ours = name.startswith("microbatch")
            more = {"color": colors.pop(0), "linewidth": 2.4} if ours else {}
            measure.line(axes, rates, [p["p50"] for p in points], name, **more)
            color = axes.lines[-1].get_color()
            axes.plot(rates, [p["p99"] for p in points], ".", color=color, alpha=0.5)

    measure.picture(
        path,
        draw,
        title="Latency against throughput; a call costs 5 ms + 10 us an item",
        x="items/s that came back",
        y="ms; line: p50, dots: p99",
    )


def main():
    chosen = measure.options(__doc__.splitlines()[0])
    tiny = chosen.tiny
    figures = lone(
        rounds=chosen.rounds or (2 if tiny else 11), calls=20 if tiny else 300, windowed=not tiny
    )
    measure.table(
        ["a lone caller, defaults", "p50 us", "p99 us", "to floor (a)"],
        [
            (k, measure.shown(v["p50"], 0), measure.shown(v["p99"], 0), measure.shown(v["ratio"]))
            for k, v in figures.items()
        ],
    )
    waits = [0.01] if tiny else [0.002, 0.01, 0.05]
    names = [n for n in WINDOWED if n == "submit" or not tiny]
    names = [n for n in names if n not in contenders.ALL or contenders.installed(contenders.ALL[n])]
    age = {
        name: {wait: ages(windowed(name, wait), seconds=0.2 if tiny else 3) for wait in waits}
        for name in names
    }
    measure.table(
        [
            "age of the oldest item at dispatch, ms",
            *[f"max_wait {w * 1e3:g}: p50, p99, max" for w in waits],
        ],
        [
            (name, *[f"{a['p50']:.2f}, {a['p99']:.2f}, {a['max']:.2f}" for a in row.values()])
            for name, row in age.items()
        ],
    )
    resting = {"submit": idle(seconds=0.2 if tiny else 5)}
    if contenders.installed(contenders.ALL["batched"]):
        resting["batched"] = idle_batched(seconds=0.2 if tiny else 5)
    measure.table(["idle", "CPU s/s"], [(name, f"{value:.5f}") for name, value in resting.items()])
    rates = [200] if tiny else [100, 300, 1_000, 3_000, 10_000, 20_000, 30_000, 40_000]
    found = curves(rates, 0.2 if tiny else 2.0, 5_000)
    measure.table(
        ["items/s offered: p50, p99 ms", *[f"{rate:,}" for rate in rates]],
        [
            (
                name,
                *[f"{p['p50']:.1f}, {p['p99']:.1f}" for p in points],
                *["-"] * (len(rates) - len(points)),
            )
            for name, points in found.items()
        ],
    )
    plot(found, chosen.out / "latency.svg")
    measure.save(
        chosen.out, "latency", {"lone": figures, "age": age, "idle": resting, "load": found}
    )


if __name__ == "__main__":
    main()
