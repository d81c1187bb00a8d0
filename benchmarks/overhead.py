"""What batching costs: CPU per item and items per second, for every way in and every peer.

    python benchmarks/overhead.py [--loops asyncio uvloop trio] [--few | --full] [--add]

The handler returns at once, so all that is measured is the batcher and its callers. Within a cell
(event loop, callers, batch size) everybody runs interleaved in one process.
"""

from __future__ import annotations

import json

import contenders
import measure

CELLS = [(n, size) for n in (1_000, 10_000) for size in (1, 10, 100, 1000)] + [(100_000, 100)]
FEW = [(10_000, size) for size in (1, 10, 100, 1000)]
FULL = [(n, size) for n in (1_000, 10_000, 100_000) for size in (1, 10, 100, 1000)]


LOOPS = ["asyncio", "uvloop", "trio"]


def key(result):
    """Tell one cell from the others, in the order in which they are shown."""
    return LOOPS.index(result["loop"]), result["callers"], result["batch"]


def contenders_of(loop, n, size):
    """Return who takes part in a cell, the floor first."""
    if loop == "trio":
        return [contenders.TRIO_FLOOR, contenders.TRIO_OURS]
    everyone = [*contenders.FLOORS, *contenders.OURS, contenders.FROM_THREAD, *contenders.PEERS]
    return [
        c
        for c in everyone
        if loop in c.loops
        and size >= c.min_size
        and (c.max_items is None or n <= c.max_items)
        and not (c.name == "batchlet" and n * 10 >= size * 10_000)  # quadratic: minutes
        and contenders.installed(c)
    ]


def rounds_of(n, wanted):
    """Return fewer rounds where one takes longer."""
    return max(3, min(wanted, wanted * 20_000 // n))


def cell(loop, n, size, rounds):
    """Measure one cell."""
    chosen = contenders_of(loop, n, size)
    figures = measure.interleaved(chosen, rounds=rounds, loop=loop, size=size, n=n)
    ratios = measure.ratios(figures, chosen[0].name)
    cpu = measure.per_item(figures, n)
    rate = {name: measure.spread([n / row[1] for row in rows]) for name, rows in figures.items()}
    return {
        "loop": loop,
        "callers": n,
        "batch": size,
        "contenders": {
            name: {"ratio": ratios[name], "cpu_us": cpu[name], "items_per_s": rate[name]}
            for name in figures
        },
    }


def show(result):
    measure.say(f"**{result['loop']}, {result['callers']:,} callers, batch {result['batch']}**\n")
    measure.table(
        ["", "CPU to the floor (quartiles)", "CPU us/item", "items/s"],
        [
            (
                name,
                measure.shown(row["ratio"]),
                f"{row['cpu_us']['median']:.1f}",
                f"{row['items_per_s']['median']:,.0f}",
            )
            for name, row in sorted(
                result["contenders"].items(), key=lambda pair: pair[1]["ratio"]["median"]
            )
        ],
    )


def plot(results, path):
    """Draw each contender's ratio over the batch size, at 10,000 callers on asyncio."""
    chosen = [r for r in results if r["loop"] == "asyncio"]
    most = min(10_000, max(r["callers"] for r in chosen))
    chosen = sorted((r for r in chosen if r["callers"] == most), key=lambda r: r["batch"])

    def draw(axes):
        for name in contenders.ALL:
            points = [
                (r["batch"], r["contenders"][name]["ratio"]["median"])
                for r in chosen
                if name in r["contenders"] and name != "submit_from_thread"
            ]
            if points:
                measure.line(axes, *zip(*points, strict=True), name)

    measure.picture(
        path,
        draw,
        title=f"CPU per item, {most:,} callers, asyncio",
        x="items in a batch",
        y="CPU, floor (a) = 1",
    )


def main():
    chosen = measure.options(
        __doc__.splitlines()[0],
        loops={"nargs": "*", "default": LOOPS, "choices": LOOPS},
        few={"action": "store_true", "help": "10,000 callers only"},
        full={"action": "store_true", "help": "every batch size at 100,000 callers, on every loop"},
        add={
            "action": "store_true",
            "help": "only cells that the stored run lacks, put beside them",
        },
    )
    cells = FULL if chosen.full else FEW if chosen.few else CELLS
    if chosen.tiny:
        cells = [(50, 10)]
    stored = chosen.out / "overhead.json"
    results = json.loads(stored.read_text())["cells"] if chosen.add and stored.exists() else []
    there = {key(result) for result in results}
    for loop in chosen.loops:
        for n, size in cells:
            if loop != "asyncio" and n > 10_000 and not chosen.full:
                continue
            if (LOOPS.index(loop), n, size) in there:
                continue
            print(f"{loop}, {n:,} callers, batch {size}", flush=True)
            rounds = 1 if chosen.tiny else rounds_of(n, chosen.rounds or 9)
            results.append(cell(loop, n, size, rounds))
            results.sort(key=key)
            measure.save(chosen.out, "overhead", {"cells": results})
    for result in results:
        show(result)
    measure.save(chosen.out, "overhead", {"cells": results})
    if any(r["loop"] == "asyncio" for r in results):
        plot(results, chosen.out / "overhead.svg")


if __name__ == "__main__":
    main()
