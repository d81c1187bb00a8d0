"""How everything here is measured: interleaved in one process, repeated, as CPU time, in paired
ratios.

In every round each contender runs once, in an order that rotates from round to round, and its CPU
time is divided by the floor's of the same round; the figure is the median of those ratios with
its quartiles. So what slows the machine down for a while slows both sides of a ratio. Before each
run the garbage is collected; while it runs the collector is on, as it is in a program.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path

import trio

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def options(description, **more):
    """Parse the command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tiny", action="store_true", help="just see that it runs")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and pictures")
    for flag, settings in more.items():
        parser.add_argument(f"--{flag}", **settings)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    return chosen


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


async def _cpu(contender, size, n, warm):
    async with contender.open(size) as run:
        await run(warm)
        gc.collect()
        began_cpu, began = time.process_time(), time.perf_counter()
        await run(n)
        return time.process_time() - began_cpu, time.perf_counter() - began


def cpu(contender, *, loop="asyncio", size, n):
    """Return the CPU seconds and the wall seconds that a contender needs for n callers."""
    return run_on(loop, _cpu, contender, size, n, min(n, 200))


def interleaved(contenders, *, rounds, loop=None, size, n, measure=cpu):
    """Run all contenders in every round; return {name: [(CPU, wall), ...]}, round by round."""
    figures = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        shift = turn % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            figures[contender.name].append(
                measure(contender, loop=loop or contender.loops[0], size=size, n=n)
            )
    return figures


def spread(values):
    """Return the median with its quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0], "rounds": len(values)}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "rounds": len(values)}


def ratios(figures, base):
    """Return each contender's CPU as a share of the base's in the same round."""
    return {
        name: spread([mine[0] / its[0] for mine, its in zip(rows, figures[base], strict=True)])
        for name, rows in figures.items()
    }


def per_item(figures, n):
    """Return each contender's microseconds of CPU per item."""
    return {name: spread([row[0] / n * 1e6 for row in rows]) for name, rows in figures.items()}


def about():
    """Say what the figures were measured with."""
    packages = {}
    for name in [
        "microbatch",
        "anyio",
        "trio",
        "uvloop",
        "aiodataloader",
        "strawberry-graphql",
        "dloader",
        "batchlet",
        "batched",
        "aiomisc",
        "async-batcher",
        "asyncpg",
    ]:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "compiler": platform.python_compiler(),
        "load": os.getloadavg()[0],
        "packages": packages,
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


_said = []


def say(text=""):
    """Print what belongs to the result, and keep it for the Markdown beside the JSON."""
    print(text, flush=True)
    _said.append(text)


def table(header, rows):
    """Say a table in Markdown, with an empty line behind it."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        say("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
    say()


def save(folder, name, data):
    """Write a benchmark's JSON, and what was said as Markdown."""
    facts = about()
    (folder / f"{name}.json").write_text(json.dumps({"about": facts, **data}, indent=1) + "\n")
    with_what = (
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {facts['system']}, "
        f"CPython {facts['python']} ({facts['compiler']}), load {facts['load']:.1f} at the end; "
        + ", ".join(f"{package} {version}" for package, version in facts["packages"].items())
    )
    text = "\n".join([with_what, "", *_said]).rstrip()
    (folder / f"{name}.md").write_text(text + "\n")


def shown(figure, digits=2):
    """Write a median with its quartiles."""
    return f"{figure['median']:.{digits}f} ({figure['low']:.{digits}f}-{figure['high']:.{digits}f})"


# Pictures

STYLES = {
    "submit": ("#c2185b", "o-", 2.6),
    "submit_nowait": ("#e57399", "o--", 2.0),
    "submit_many": ("#f3b4c8", "o:", 2.0),
    "floor (a)": ("#222222", "s-", 1.6),
}
OTHERS = [
    *("#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22"),
    *("#00429d", "#006d2c", "#a63603", "#4a148c"),
]


def picture(path, draw, *, title, x, y):
    """Draw over two logarithmic axes and write it as SVG; without matplotlib, say so and go on."""
    try:
        import matplotlib as mpl
    except ImportError:
        print(f"matplotlib is not installed: no {path.name}")
        return
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "microbatch", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5))
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.25)
    draw(axes)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.tight_layout()
    # Without a date, so that equal figures give equal files.
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def _other(axes):
    """Return the next colour; dots without a name of their own do not count."""
    named = [one for one in axes.lines if not one.get_label().startswith("_")]
    return OTHERS[len(named) % len(OTHERS)]


def line(axes, x, y, name, **more):
    """Draw one contender's line, ours the same in every picture."""
    color, mark, width = STYLES.get(name, (_other(axes), ".-", 1.2))
    axes.plot(x, y, mark, **{"color": color, "linewidth": width, "label": name, **more})
