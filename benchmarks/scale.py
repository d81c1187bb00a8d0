"""Scale: what an item costs as more of them wait. Everything should stay flat: nothing quadratic.

    python benchmarks/scale.py [--million]

The slot is busy while items are handed in, so that all of them are buffered at the same time;
then the handler lets go and everything is handled, or every caller is cancelled.
"""

from __future__ import annotations

import asyncio
import gc
import time

import floor
import measure

from microbatch import Batcher


class Gate:
    """A handler that lets nothing through until it is opened."""

    def __init__(self):
        self.open = asyncio.Event()

    async def __call__(self, items):
        await self.open.wait()
        return items


async def _pending(n, *, cancel=False, task=False, priorities=1, **settings):
    """Hand in n items while the slot is busy, then let them through or cancel them all."""
    gate = Gate()
    async with Batcher(gate, max_pending=None, **settings) as batcher:
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
        gate.open.set()
        await asyncio.gather(first, *waiting, return_exceptions=cancel)
        return (time.process_time() - began) / n * 1e6


async def _floor(n):
    gate = Gate()
    submit = floor.FloorBatcher(gate).submit
    gc.collect()
    began = time.process_time()
    waiting = [asyncio.create_task(submit(i)) for i in range(n)]
    await asyncio.sleep(0)
    gate.open.set()
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


def main():
    chosen = measure.options(
        __doc__.splitlines()[0], million={"action": "store_true", "help": "1,000,000 items too"}
    )
    numbers = [10, 100] if chosen.tiny else [1_000, 10_000, 100_000]
    if chosen.million:
        numbers.append(1_000_000)
    rounds = chosen.rounds or (1 if chosen.tiny else 5)
    results = {name: {n: [] for n in numbers if n < 1_000_000 or name in MILLION} for name in CASES}
    for _ in range(rounds):
        for n in numbers:
            for name, (function, settings) in CASES.items():
                if n in results[name] and (n < 1_000_000 or not results[name][n]):
                    results[name][n].append(asyncio.run(function(n, **settings)))
    figures = {
        name: {n: measure.spread(values) for n, values in rows.items()}
        for name, rows in results.items()
    }
    measure.table(
        ["CPU us per item", *[f"{n:,}" for n in numbers], "last / first"],
        [
            (
                name,
                *[measure.shown(row[n], 1) if n in row else "-" for n in numbers],
                f"{row[max(row)]['median'] / row[numbers[0]]['median']:.2f}",
            )
            for name, row in figures.items()
        ],
    )
    measure.save(chosen.out, "scale", {"numbers": numbers, "cases": figures})

    def draw(axes):
        for name, row in figures.items():
            measure.line(axes, list(row), [one["median"] for one in row.values()], name)

    measure.picture(
        chosen.out / "scale.svg",
        draw,
        title="CPU per item as more of them wait",
        x="items waiting",
        y="microseconds of CPU per item",
    )


if __name__ == "__main__":
    main()
