"""CPU per item of every way in and of every peer, by batch size, on any event loop.

The handler returns at once, so all that is measured is the batcher and its callers. Within a cell
(event loop, callers, batch size) everybody runs interleaved in one process.
"""

from __future__ import annotations

from benchmarks import contenders, output, runner
from benchmarks.options import positive

OPTIONS = {
    "loops": {"nargs": "+", "default": ["asyncio"], "choices": runner.LOOPS},
    "callers": {"nargs": "+", "type": positive, "default": [10_000], "help": "callers at once"},
    "sizes": {"nargs": "+", "type": positive, "default": [1, 10, 100, 1000], "help": "batch sizes"},
}
# Ours are the same in every picture.
STYLES = {
    "submit": ("#c2185b", "o-", 2.6),
    "submit_nowait": ("#e57399", "o--", 2.0),
    "submit_many": ("#f3b4c8", "o:", 2.0),
    contenders.FLOOR: ("#222222", "s-", 1.6),
}
OTHERS = [
    *("#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22"),
    *("#00429d", "#006d2c", "#a63603", "#4a148c"),
]


def contenders_of(loop, n, size):
    """Return who takes part in a cell, the floor first."""
    return [
        c
        for c in contenders.ALL.values()
        if loop in c.loops
        and size >= c.min_size
        and (c.max_items is None or n <= c.max_items)
        and not (c.name == "batchlet" and n * 10 >= size * 10_000)  # quadratic: minutes
        and contenders.installed(c)
    ]


def cell(loop, n, size, rounds):
    """Measure one cell."""
    chosen = contenders_of(loop, n, size)
    figures = runner.interleaved(chosen, rounds=rounds, loop=loop, size=size, n=n)
    ratios = runner.ratios(figures, chosen[0].name)
    cpu = runner.per_item(figures, n)
    return {
        "loop": loop,
        "callers": n,
        "batch": size,
        "contenders": {
            name: {
                "ratio": ratios[name],
                "cpu_us": cpu[name],
                "items_per_s": runner.spread([n / wall for _, wall in rows]),
            }
            for name, rows in figures.items()
        },
    }


def show(page, cells):
    """Say one table: a row for each contender, a column for each batch size."""
    loop, n = cells[0]["loop"], cells[0]["callers"]
    names = {name: None for cell in cells for name in cell["contenders"]}
    floor = next(iter(names))
    rows = []
    for name in sorted(names, key=lambda name: medians(cells, name)[-1][1]):
        found = [cell["contenders"].get(name) for cell in cells]
        rows.append([name, *[output.shown(one["ratio"]) if one else "-" for one in found]])
    bases = [f"{cell['contenders'][floor]['cpu_us']['median']:.1f} us" for cell in cells]
    rows.append([f"an item of {floor}", *bases])
    page.table(
        [f"{loop}, {n:,} callers", *[f"batch {cell['batch']:,}" for cell in cells]],
        rows,
    )


def medians(cells, name):
    """Return one's [(batch size, ratio), ...], where it took part."""
    return [
        (cell["batch"], cell["contenders"][name]["ratio"]["median"])
        for cell in cells
        if name in cell["contenders"]
    ]


def draw(cells, path):
    """Draw each contender's ratio over the batch size; without matplotlib, say so and go on."""
    try:
        import matplotlib as mpl
    except ImportError:
        print(f"matplotlib is not installed: no {path.name}")
        return
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "microbatch", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5))
    axes.set(
        title=f"CPU per item, {cells[0]['callers']:,} callers, {cells[0]['loop']}",
        xlabel="items in a batch",
        ylabel="CPU, floor (a) = 1",
        xscale="log",
        yscale="log",
    )
    axes.grid(visible=True, which="both", alpha=0.25)
    others = iter(OTHERS)
    for name in contenders.ALL:
        points = medians(cells, name)
        if points and name != "submit_from_thread":
            color, mark, width = STYLES.get(name) or (next(others), ".-", 1.2)
            axes.plot(*zip(*points, strict=True), mark, color=color, linewidth=width, label=name)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.tight_layout()
    # Without a date, so that equal figures give equal files.
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def run(chosen, page):
    callers, sizes = ([50], [10]) if chosen.tiny else (chosen.callers, sorted(chosen.sizes))
    every = []
    for loop in chosen.loops:
        for n in callers:
            cells = []
            for size in sizes:
                print(f"{loop}, {n:,} callers, batch {size}", flush=True)
                # Fewer rounds where one takes longer.
                most = chosen.rounds or (1 if chosen.tiny else 9)
                rounds = min(most, max(3, most * 20_000 // n))
                cells.append(cell(loop, n, size, rounds))
                every.append(cells[-1])
                page.save({"cells": every})
            show(page, cells)
            if loop == "asyncio" and n == callers[0]:
                draw(cells, page.path("svg"))
    return {"cells": every}
