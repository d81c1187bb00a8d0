"""A load by key: Loader beside aiodataloader and Strawberry's DataLoader, instructions and CPU.

Each makes a loader for each request, ours over one Batcher for all of them or over a handler of its
own, and loads 1 key or 100: in a task each, as resolvers do, by `gather` over what `load` returns, or
by `load_many`. Cached: keys that have their value already, in one loader. The handler returns its keys
at once. Garbage is not collected while instructions are counted.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import shutil
import time
from functools import partial

from benchmarks import contenders, instructions, runner
from benchmarks.child import Subject
from microbatch import Batcher, Loader

OURS, OWN = "Loader", "Loader, own handler"
PEERS = {"aiodataloader": "aiodataloader", "Strawberry's": "strawberry.dataloader"}
NAMES = [OURS, OWN, *PEERS]

OPTIONS = {
    "loops": {"nargs": "+", "default": ["asyncio"], "choices": ["asyncio", "uvloop"]},
}


def maker(name):
    """Return a function that makes a loader."""
    if name == OURS:
        batcher = Batcher(contenders.echo)
        return lambda: Loader(batcher)
    if name == OWN:
        return lambda: Loader(contenders.echo)
    if name == "aiodataloader":
        from aiodataloader import DataLoader
    else:
        from strawberry.dataloader import DataLoader
    return lambda: DataLoader(contenders.echo)


# What a request does with its loader


async def one(loader):
    await loader.load(1)


async def tasks(loader):
    async def resolve(key):
        await loader.load(key)

    await asyncio.gather(*[resolve(key) for key in range(100)])


async def gathered(loader):
    await asyncio.gather(*[loader.load(key) for key in range(100)])


async def many(loader):
    await loader.load_many(range(100))


SHAPES = {
    "1 key": (one, 1),
    "100 keys, a task each": (tasks, 100),
    "100 keys, gather": (gathered, 100),
    "100 keys, load_many": (many, 100),
}


async def requests(way, number, between):
    """Make so many requests, one after the other; call what stands between the first and the others."""
    name, shape, cached = way
    use, _ = SHAPES[shape]
    make = maker(name)
    loader = make()
    for one_more in (loader, loader, make()):
        await use(one_more)  # so that all is there that is made once
    between()
    for _ in range(number):
        await use(loader if cached else make())


def watched(cell, number, _keys, counted=True):
    """Run in the process that callgrind watches."""
    gc.disable()
    loop, way, _ = cell

    async def main():
        await requests(way, number, lambda: instructions.begin(counted=counted))
        instructions.end()

    runner.run_on(loop, main)


def count(loop, way, number):
    """Return the instructions of one key."""
    keys = SHAPES[way[1]][1]
    return instructions.per_item(
        Subject(), loop, way, keys, waves=number, wave=keys, function=watched
    )


def cpu(loop, way, number):
    """Return the microseconds of CPU of one key."""
    began = []

    def begin():
        gc.collect()
        began.append(time.process_time())

    runner.run_on(loop, requests, way, number, begin)
    return (time.process_time() - began[0]) / (number * SHAPES[way[1]][1]) * 1e6


def run(chosen, page):
    names = [
        name
        for name in NAMES
        if name not in PEERS or importlib.util.find_spec(PEERS[name].partition(".")[0])
    ]
    counting = shutil.which("valgrind") is not None
    if not counting:
        page.say("valgrind is not installed: no instructions counted")
    rows = []
    for loop in chosen.loops:
        for shape, (_, keys) in SHAPES.items():
            for cached in (False, True):
                number, most = (2, 1) if chosen.tiny else (max(4, 100 // keys), 9)
                ways = {name: [name, shape, cached] for name in names}
                timed = {
                    name: partial(cpu, loop, way, number * most * 2) for name, way in ways.items()
                }
                figures = runner.in_turns(timed, min(chosen.rounds or most, most))
                counts = {}
                if counting and not (chosen.tiny and rows):
                    counts = {name: count(loop, way, number) for name, way in ways.items()}
                print(loop, shape, cached, {k: round(v) for k, v in counts.items()}, flush=True)
                row = {"loop": loop, "shape": shape, "cached": cached, "instructions": counts}
                rows.append(row | {"cpu": runner.spreads(figures)})
                page.save({"rows": rows})
    for loop in chosen.loops:
        show(page, loop, [row for row in rows if row["loop"] == loop], names)
    return {"rows": rows}


def show(page, loop, rows, names):
    """Say the table: instructions of a key and, in brackets, microseconds of CPU."""

    def cell(row, name):
        counted = f"{row['instructions'][name]:,.0f} " if row["instructions"] else ""
        return f"{counted}({row['cpu'][name]['median']:.1f})"

    page.table(
        [f"{loop}, a key", *[f"{r['shape']}{', cached' if r['cached'] else ''}" for r in rows]],
        [[name, *[cell(row, name) for row in rows]] for name in names],
    )
