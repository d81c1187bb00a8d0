"""What an item costs as more of them wait: everything should stay flat.

The slot is busy while items are handed in, so that all of them are buffered at the same time;
then the handler lets go and everything is handled, or every caller is cancelled.
"""

from __future__ import annotations

import asyncio
import gc
import time
from functools import partial

from benchmarks import floor, output, runner
from benchmarks.contenders import Gate
from microbatch import Batcher


async def _pending(n, *, cancel=False, task=False, priorities=1, **settings):
    """Hand in n items while the slot is busy, then let them through or cancel them all."""
    gate = Gate()
    async with Batcher(gate.handler, max_pending=None, **settings) as batcher:
        first = asyncio.ensure_future(batcher.submit(0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
        began = time.process_time()
        if task:
            waiting = [asyncio.create_task(batcher.submit(i)) for i in range(n)]
            await asyncio.sleep(0)
        elif priorities > 1:
            waiting = [batcher.submit_nowait(i, priority=i % priorities) for i in range(n)]
        else:
            waiting = [batcher.submit_nowait(i) for i in range(n)]
        if cancel:
            for one in waiting:
                one.cancel()
            await asyncio.sleep(0)
            assert batcher.stats().pending == 1
        gate.opened.set()
        await asyncio.gather(first, *waiting, return_exceptions=cancel)
        return (time.process_time() - began) / n * 1e6


async def _floor(n):
    gate = Gate()
    submit = floor.FloorBatcher(gate.handler).submit
    gc.collect()
    began = time.process_time()
    waiting = [asyncio.create_task(submit(i)) for i in range(n)]
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(*waiting)
    return (time.process_time() - began) / n * 1e6


CASES = {
    "floor (a), a task each": (_floor, {}),
    "submit, a task each": (_pending, {"task": True}),
    "submit_nowait": (_pending, {}),
    "submit_nowait, all cancelled": (_pending, {"cancel": True}),
    "tasks, all cancelled": (_pending, {"task": True, "cancel": True}),
    "ten priorities": (_pending, {"priorities": 10}),
    "ten priorities, all cancelled": (_pending, {"priorities": 10, "cancel": True}),
    "1,000 partitions": (_pending, {"partition": (1000).__rmod__}),
    "1,000 partitions, all cancelled": (_pending, {"partition": (1000).__rmod__, "cancel": True}),
    "a partition each": (_pending, {"partition": abs}),
    "weights": (_pending, {"weigh": float, "max_batch_weight": 1e12}),
    "10 items share a key": (_pending, {"coalesce": (10).__rfloordiv__}),
}

#: With a million each of the others takes a minute and more.
MILLION = list(CASES)[:5]


OPTIONS = {"million": {"action": "store_true", "help": "1,000,000 items too, in one round"}}


def run(chosen, page):
    numbers = [10, 100] if chosen.tiny else [1_000, 10_000, 100_000]
    rounds = chosen.rounds or (1 if chosen.tiny else 5)
    plan = [(n, list(CASES), rounds) for n in numbers]
    if chosen.million:
        plan.append((1_000_000, MILLION, 1))
    figures = {name: {} for name in CASES}
    for n, names, times in plan:
        ways = {name: partial(_case, name, n) for name in names}
        for name, spread in runner.spreads(runner.in_turns(ways, times)).items():
            figures[name][n] = spread
    page.table(
        ["CPU us per item", *[f"{n:,}" for n, *_ in plan], "last / first"],
        [
            (
                name,
                *[output.shown(row[n], 1) if n in row else "-" for n, *_ in plan],
                f"{row[max(row)]['median'] / row[min(row)]['median']:.2f}",
            )
            for name, row in figures.items()
        ],
    )
    return {"numbers": [n for n, *_ in plan], "cases": figures}


def _case(name, n):
    function, settings = CASES[name]
    return asyncio.run(function(n, **settings))
