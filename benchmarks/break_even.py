"""When batching pays: the overhead of an item, and rows a second by batch size.

The overhead is CPU time per item with a handler that does nothing, by each way in, in batches of 100.
A call's fixed cost above which batching pays is the overhead times n / (n - 1). The curve writes rows
into a SQLite file (WAL, synchronous=FULL) through a Batcher, a transaction a batch, all sizes in every
round. What a transaction costs by itself, F, and a row beside it, c, is read off its two ends, for a
row in batches of n takes F / n + c: the knee is at F / c rows.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks import output, runner
from microbatch import Batcher

SIZE = 100
CREATE = "CREATE TABLE row_of_text (id INTEGER PRIMARY KEY, body TEXT NOT NULL)"
#: Batch size: rows in a measurement, so that each takes about as long.
ROWS = {1: 300, 10: 3_000, 100: 20_000, 1_000: 50_000, 10_000: 100_000}

# The overhead


async def nothing(items) -> None:
    """The handler that costs nothing."""


async def submit_nowait(batcher, n):
    for pending in [batcher.submit_nowait(item) for item in range(n)]:
        await pending


async def submit_many(batcher, n):
    await batcher.submit_many(range(n))


async def submit(batcher, n):
    await asyncio.gather(*[batcher.submit(item) for item in range(n)])


WAYS = {"submit_many": submit_many, "submit_nowait": submit_nowait, "submit, a task each": submit}


async def overhead(way, n):
    """Return the microseconds of CPU that an item costs."""
    async with Batcher(nothing, max_batch_size=SIZE, max_pending=None) as batcher:
        await WAYS[way](batcher, n // 10 + 1)
        gc.collect()
        began = time.process_time()
        await WAYS[way](batcher, n)
        return (time.process_time() - began) / n * 1e6


# The curve


async def rows_per_second(size, rows):
    """Write so many rows in batches of one size; return how many a second."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        connection = sqlite3.connect(Path(folder) / "rows.db", check_same_thread=False)
        connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {CREATE};")

        def insert(batch) -> None:
            with connection:
                connection.executemany("INSERT INTO row_of_text VALUES (?, ?)", batch)

        async with Batcher(insert, max_batch_size=size, max_pending=None) as batcher:
            gc.collect()
            began = time.perf_counter()
            await batcher.submit_many([(number, "x" * 100) for number in range(rows)])
            seconds = time.perf_counter() - began
        connection.close()
    return rows / seconds


def ends(curve):
    """Return F and c, in microseconds, from the rates of the smallest and the largest size."""
    (small, fast), (large, faster) = min(curve.items()), max(curve.items())
    fixed = (1e6 / fast - 1e6 / faster) / (1 / small - 1 / large)
    return fixed, 1e6 / faster - fixed / large


def pays_above(cost):
    """Return what a call must cost by itself, in microseconds, for a batch to pay."""
    return cost * SIZE / (SIZE - 1)


def by_model(curve):
    """Return F, c, and the rate of each batch size if a row took F / n + c."""
    fixed, each = ends(curve)
    return fixed, each, {size: 1e6 / (fixed / size + each) for size in curve}


def run(chosen, page):
    rounds = chosen.rounds or (1 if chosen.tiny else 7)
    n = 1_000 if chosen.tiny else 50_000
    sizes = {1: 20, 10: 200, 100: 2_000} if chosen.tiny else ROWS
    ways = {way: partial(overhead, way, n) for way in WAYS}
    ways |= {size: partial(rows_per_second, size, rows) for size, rows in sizes.items()}
    ways = {name: partial(_run, way) for name, way in ways.items()}
    figures = runner.spreads(runner.in_turns(ways, rounds))
    costs = {way: figures[way] for way in WAYS}
    rates = {size: figures[size] for size in sizes}
    page.table(
        ["way in", "us of CPU an item", "a batch of 100 pays above, us a call"],
        [
            (way, output.shown(cost), f"{pays_above(cost['median']):.2f}")
            for way, cost in costs.items()
        ],
    )
    fixed, each, model = by_model({size: rate["median"] for size, rate in rates.items()})
    page.table(
        ["batch size", "rows/s (quartiles)", "rows/s by F / n + c"],
        [
            (f"{size:,}", output.shown(rate, 0), f"{model[size]:.0f}")
            for size, rate in rates.items()
        ],
    )
    page.say(
        f"A transaction takes {fixed:.0f} us, a row beside it {each:.2f} us: "
        f"the knee is at {fixed / each:.0f} rows."
    )
    return {"overhead": costs, "curve": rates, "fixed_us": fixed, "row_us": each}


def _run(way):
    return asyncio.run(way())
