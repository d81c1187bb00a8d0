"""Latency: a lone caller, the oldest item's age at dispatch, latency against offered load.

A lone caller meets everybody at its own defaults. Time to dispatch is that of the oldest item of a
batch. In the last table a call costs 5 ms and 10 us an item, and time counts from when an item was
due.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import statistics
import time
from functools import partial

from benchmarks import contenders, output, runner
from microbatch import Batcher

# A lone caller

LONE = [contenders.FLOOR, "submit", "dloader", "aiodataloader", "strawberry"]
#: Their defaults have a window, so they take milliseconds.
LONE_WINDOWED = ["batchlet", "batched", "async_batcher"]


async def _lone(chosen, rounds, calls):
    """Return {name: [(p50, p99) of each round, in microseconds]}; one call at a time, in turns."""
    figures = {contender.name: [] for contender in chosen}
    async with contextlib.AsyncExitStack() as stack:
        ways = {}
        for contender in chosen:
            way = contender.way(contenders.echo)
            ways[contender.name] = await stack.enter_async_context(way)
            await ways[contender.name](0)
        for name in runner.turns(ways, rounds):
            submit, took = ways[name], []
            gc.collect()
            for i in range(calls):
                began = time.perf_counter()
                await submit(i)
                took.append((time.perf_counter() - began) * 1e6)
            figures[name].append((statistics.median(took), statistics.quantiles(took, n=100)[98]))
    return figures


def lone(*, rounds, calls, windowed=True):
    """Return each one's p50 in microseconds and, paired by round, as a ratio to floor (a)."""
    chosen = contenders.there(*LONE, *(LONE_WINDOWED if windowed else ()))
    figures = asyncio.run(_lone(chosen, rounds, calls))
    ratios = runner.ratios(figures, contenders.FLOOR)
    return {
        name: {
            "p50": runner.spread([p50 for p50, _ in rows]),
            "p99": runner.spread([p99 for _, p99 in rows]),
            "ratio": ratios[name],
        }
        for name, rows in figures.items()
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

    def beyond(name):
        return ages(windowed(name, wait), seconds=seconds)["p99"] - wait * 1e3

    ways = {name: partial(beyond, name) for name in names}
    ways["bare timer"] = lambda: asyncio.run(_lateness(wait, seconds))
    return runner.spreads(runner.in_turns(ways, rounds))


async def _lateness(wait, seconds):
    late = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await asyncio.sleep(wait)
        late.append((time.perf_counter() - began - wait) * 1e3)
    late.sort()
    return late[min(len(late) - 1, int(len(late) * 0.99))]


#: With a window, and where that can be said up to 64 batches of 100 in flight.
WINDOWED = ["submit", contenders.FLOOR, "batchlet", "batched", "async_batcher", "aiomisc"]


def windowed(name, wait):
    """Return, for a handler, one's way in with a window of so many seconds."""
    return partial(contenders.ALL[name].way, size=100, wait=wait)


# Idle


async def _idle(way, seconds):
    async with way as submit:
        await asyncio.gather(*[submit(i) for i in range(250)])
        await asyncio.sleep(0.1)
        began = time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - began) / seconds


def idle(name, seconds):
    """Return the CPU seconds per second of one that was used and now has nothing to do."""
    contender = contenders.ALL[name]
    return asyncio.run(_idle(contender.way(contenders.echo), seconds))


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
async def _one_batch(handler):
    """One batch at a time, as the Batcher's default has it."""
    async with Batcher(handler, max_pending=None) as batcher:
        yield batcher.submit


CURVES = {
    "no batching": _unbatched,
    "microbatch, max_wait 0": windowed("submit", 0.0),
    "microbatch, max_wait 2 ms": windowed("submit", 0.002),
    "microbatch, max_wait 10 ms": windowed("submit", 0.01),
    "microbatch, max_wait 0, one batch at a time": _one_batch,
    "dloader": windowed("dloader", 0.0),
    "batchlet, 2 ms": windowed("batchlet", 0.002),
    "batched, 5 ms": windowed("batched", 0.005),
    "aiomisc, 2 ms": windowed("aiomisc", 0.002),
    "async_batcher, 10 ms": windowed("async_batcher", 0.01),
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


def show(page, figures, age, waits):
    """Say what one caller at a time waits, and what the oldest item of a batch does."""

    def alone(name):
        row = figures.get(name)
        if row is None:
            return ["-"] * 3
        return [
            output.shown(row["p50"], 0), output.shown(row["p99"], 0), output.shown(row["ratio"])
        ]  # fmt: skip

    def oldest(name, wait):
        row = age.get(name)
        return (
            f"{row[wait]['p50']:.2f}, {row[wait]['p99']:.2f}, {row[wait]['max']:.2f}"
            if row
            else "-"
        )

    page.table(
        [
            "a lone caller at defaults",
            *("p50 us", "p99 us", "to floor (a)"),
            *[f"ms to dispatch, max_wait {wait * 1e3:g}: p50, p99, max" for wait in waits],
        ],
        [
            [name, *alone(name), *[oldest(name, wait) for wait in waits]]
            for name in [*figures, *(name for name in age if name not in figures)]
        ],
    )


def run(chosen, page):
    tiny = chosen.tiny
    figures = lone(
        rounds=chosen.rounds or (2 if tiny else 11), calls=20 if tiny else 300, windowed=not tiny
    )
    waits = [0.01] if tiny else [0.002, 0.01, 0.05]
    names = ["submit"] if tiny else [one.name for one in contenders.there(*WINDOWED)]
    age = {
        name: {wait: ages(windowed(name, wait), seconds=0.2 if tiny else 3) for wait in waits}
        for name in names
    }
    show(page, figures, age, waits)
    rates = [200] if tiny else [100, 300, 1_000, 3_000, 10_000, 20_000, 30_000, 40_000]
    found = curves(rates, 0.2 if tiny else 2.0, 5_000)
    page.table(
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
    return {"lone": figures, "age": age, "load": found}
