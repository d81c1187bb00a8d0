"""How everything here is measured: interleaved in one process, repeated, in paired ratios.

In every round each contender runs once, in an order that rotates from round to round, and its
figure is divided by the floor's of the same round; what is shown is the median of those ratios
with its quartiles. So what slows the machine down for a while slows both sides of a ratio. Before
each run the garbage is collected; while it runs the collector is on, as it is in a program.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from functools import partial

import trio

LOOPS = ["asyncio", "uvloop", "trio"]


def run_on(loop, main, *args):
    """Run a coroutine function on one kind of event loop."""
    if loop == "trio":
        return trio.run(main, *args)
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main(*args))


def turns(names, rounds):
    """Yield each name once a round; who comes first finds other caches than who comes last."""
    names = list(names)
    for turn in range(rounds):
        shift = turn % len(names)
        yield from names[shift:] + names[:shift]


def in_turns(ways, rounds):
    """Call each way once a round; return {name: [what it returned, round by round]}."""
    found = {name: [] for name in ways}
    for name in turns(ways, rounds):
        found[name].append(ways[name]())
    return found


async def _cpu(contender, size, n, warm):
    async with contender.open(size) as run:
        await run(warm)
        gc.collect()
        began_cpu, began = time.process_time(), time.perf_counter()
        await run(n)
        return time.process_time() - began_cpu, time.perf_counter() - began


def cpu(contender, *, loop, size, n):
    """Return the CPU seconds and the wall seconds that a contender needs for n callers."""
    return run_on(loop, _cpu, contender, size, n, min(n, 200))


def interleaved(contenders, *, rounds, loop="asyncio", size, n):
    """Run all contenders in every round; return {name: [(CPU, wall), ...]}, round by round."""
    return in_turns(
        {c.name: partial(cpu, c, loop=loop, size=size, n=n) for c in contenders}, rounds
    )


def spread(values):
    """Return the median with its quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0], "rounds": len(values)}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "rounds": len(values)}


def spreads(found):
    """Return the spread of each list of a dictionary."""
    return {name: spread(values) for name, values in found.items()}


def share(mine, its):
    """Return the spread of one's figures as shares of another's, each of the same round."""
    return spread([a / b for a, b in zip(mine, its, strict=True)])


def ratios(figures, base):
    """Return each contender's CPU as a share of the base's in the same round."""
    cpus = {name: [row[0] for row in rows] for name, rows in figures.items()}
    return {name: share(mine, cpus[base]) for name, mine in cpus.items()}


def per_item(figures, n):
    """Return each contender's microseconds of CPU per item."""
    return {name: spread([row[0] / n * 1e6 for row in rows]) for name, rows in figures.items()}
