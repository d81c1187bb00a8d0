"""The durable mode beside plain SQLite and other queues: costs, bytes, fsyncs, deaths.

Items of 1,000 bytes, `synchronous=FULL` wherever it can be set. A ratio is of two samples of one round:
CPU is that of the whole process with all its threads, wall what the clock on the wall says. `raw` is
the standard library's sqlite3 with one table and one partial index: `executemany` with as many rows a
transaction as there are callers, claims and acknowledgements row by row.

--only enqueue work ... takes some of the parts. --source ../before/src src shows submit, many queues,
waiters and the backlog after a death for each source, and the first against the last. With a C compiler
on Linux, fsyncs are counted and slowed down by the shim of tests/durable/shim.c.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks import durable_contenders, durable_figures, output, runner
from benchmarks.child import Subject
from benchmarks.options import SUBJECTS

SHIM = Path(__file__).parent.parent / "tests" / "durable" / "shim.c"
CALLERS = {1: 300, 10: 2_000, 100: 6_000, 1000: 10_000}
#: Share of raw in CPU and by the wall clock, at least.
GOALS = {1: (0.55, 0.70), 10: (0.55, 0.60), 100: (0.70, 0.75), 1000: (0.60, 0.68)}
KEYED = 0.40
#: Kilobytes written for an item of one, at most.
WRITTEN = {1: 45, 10: 8, 100: 2.2, 1000: 2.2}
PARTS = (
    "enqueue", "slow", "many", "work", "submit", "queues", "bytes", "idle", "waiters", "claim",
    "fsyncs", "deaths", "peers",
)  # fmt: skip
OPTIONS = {
    "only": {"nargs": "+", "choices": PARTS, "default": PARTS, "help": "parts"},
    "source": SUBJECTS["source"],
}


def in_folder(function, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        return function(Path(folder), *arguments)


def called(module, name, *arguments):
    """Call it by its names: what a `Subject` does."""
    return in_folder(getattr(globals()[module], name), *arguments)


def shimmed(name, *arguments, **settings):
    """Call a function of `durable_figures` in a process under the shim; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "shim.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True
        )
        environment = {"LD_PRELOAD": str(library), "SHIM_MATCH": ".db-wal"}
        environment |= {"SHIM_COUNT": f"{folder}/count"} | settings
        return Subject().call(called, "durable_figures", name, *arguments, environment=environment)


def shares(costs, base, name):
    """Return how much less one way costs than another, in CPU and by the wall clock, round by round."""
    pairs = list(zip(costs[base], costs[name], strict=True))
    return {
        "cpu": runner.spread([its[0] / mine[0] for its, mine in pairs]),
        "wall": runner.spread([its[1] / mine[1] for its, mine in pairs]),
    }


class Run:
    """One run: its size, its lines."""

    def __init__(self, chosen, page):
        self.tiny = chosen.tiny
        self.rounds = chosen.rounds or (1 if chosen.tiny else 9)
        self.page = page
        self.subjects = {str(source or "here"): Subject(source=source) for source in chosen.source}
        self.rows = []
        self.data = {"rows": self.rows}

    def few(self, number, tiny):
        return tiny if self.tiny else number

    def add(
        self, what, reached, goal=None, *, group=None, unit="", digits=2, least=False, note="",
        first=False,
    ):  # fmt: skip
        """Note a figure, a spread or a number; what is of one group stands in one line."""
        spread = reached if isinstance(reached, dict) else runner.spread([reached])
        met = None
        if goal is not None:
            met = spread["median"] >= goal if least else spread["median"] <= goal
        self.rows.append(
            {
                "what": what, "goal": goal, "least": least, "unit": unit, "digits": digits,
                "note": note, "met": met, "group": group or what, "first": first, **spread,
            }
        )  # fmt: skip
        print(what, output.shown(spread, digits) + unit, note, "goal:", goal, flush=True)
        self.page.save(self.data)

    def costs(self, ways, rounds=None):
        return runner.in_turns(ways, rounds or self.rounds)

    def of_each_source(self, name, *arguments, module="durable_contenders"):
        """Measure in processes over every source, in turns; return what each gives, round by round."""
        return runner.in_turns(
            {
                heading: partial(subject.call, called, module, name, *arguments)
                for heading, subject in self.subjects.items()
            },
            self.rounds,
        )

    # Parts

    def enqueue(self):
        callers = [1, 10] if self.tiny else list(CALLERS)
        cells = self.data["enqueue"] = []
        for count in callers:
            total = max(count, self.few(CALLERS[count], 20))
            put = durable_contenders.our_put
            ways = {
                "raw": partial(in_folder, durable_contenders.raw_put, count, total),
                "one transaction each": partial(
                    in_folder, durable_contenders.each_put, count, total
                ),
                "enqueue": partial(in_folder, put, count, total),
                "with keys": partial(in_folder, put, count, total, True),
            }
            if importlib.util.find_spec("cairnq") is not None:
                less = max(count, total // 8)
                ways["cairnq"] = partial(in_folder, durable_contenders.cairnq_put, count, less)
            costs = self.costs(ways)
            cell = {
                "callers": count,
                "us": {
                    way: [statistics.median(one[which] for one in rows) * 1e6 for which in (0, 1)]
                    for way, rows in costs.items()
                },
                "of": {way: shares(costs, way, "enqueue") for way in costs if way != "enqueue"},
                "keyed": shares(costs, "raw", "with keys"),
            }
            waits = sorted(wait for one in costs["enqueue"] for wait in one.waits)
            cell["p50_ms"], cell["p99_ms"] = (
                waits[int(len(waits) * part)] * 1e3 for part in (0.5, 0.99)
            )
            cells.append(cell)
            print(cell, flush=True)
            self.page.save(self.data)

    def slow(self):
        """With 2 ms more in each fsync, as on a slower disk: what is written together counts for more."""
        for count in (10, 100):
            total = self.few(20 * count, count)
            arguments = (count, total, False)
            slow = shimmed("slow_put", *arguments, SHIM_DELAY="2000")
            if slow is not None:
                self.add(
                    f"enqueues in 2 ms where an fsync takes 2 ms more, {count} callers",
                    0.002 / slow[1],
                    digits=1,
                    group="enqueues in 2 ms where an fsync takes 2 ms more: 10 / 100 callers",
                )

    def many(self):
        group = 1_000
        total = self.few(20_000, group)
        costs = self.costs(
            {
                "raw": partial(in_folder, durable_contenders.raw_put, group, total),
                "ours": partial(in_folder, durable_contenders.our_many, group, total),
            }
        )
        self.both("enqueue_many of 1,000, of raw", shares(costs, "raw", "ours"), 2.0)

    def both(self, what, share, goal=None, **more):
        for clock, spread in share.items():
            self.add(
                f"{what}, {clock}", spread, goal, least=True, group=f"{what}: CPU / wall", **more
            )

    def work(self):
        total = self.few(10_000, 500)
        costs = self.costs(
            {
                "raw": partial(in_folder, durable_contenders.raw_work, total, 100),
                "ours": partial(in_folder, durable_contenders.our_work, total, 100),
            }
        )
        what = "claim, handle and settle, batches of 100, of raw claim and acknowledge"
        self.both(what, shares(costs, "raw", "ours"), 1.5)

    def submit(self):
        costs = self.of_each_source("our_submit", 100, self.few(5_000, 200))
        first, last = next(iter(costs)), list(costs)[-1]
        what = "submit to its result, 100 callers"
        group = f"{what}, of the first source: CPU / wall"
        shared = shares(costs, first, last)
        for which, clock in enumerate(("cpu", "wall")):
            spread = runner.spread([one[which] * 1e6 for one in costs[last]])
            if first == last:
                self.add(f"{what}, us an item, {clock}", spread, unit=" us", digits=0, group=group)
            else:
                note = f"{spread['median']:.0f} us of {clock}"
                self.add(
                    f"{what}, of the first source, {clock}", shared[clock], 3.0, least=True,
                    group=group, note=note,
                )  # fmt: skip

    def queues(self):
        total = self.few(10_000, 1_000)
        many = self.of_each_source("our_queues", 100, 10, total)
        one = self.of_each_source("our_queues", 1, 1_000, total)
        last = list(many)[-1]
        costs = {"one": one[last], "many": many[last]}
        what = "100 queues with 10 callers each in one file, of one with 1,000"
        self.both(what, shares(costs, "one", "many"), 0.8)

    def bytes(self):
        if not Path("/proc/self/io").exists():
            return
        for callers, goal in WRITTEN.items():
            if self.tiny and callers > 10:
                continue
            total = max(callers, self.few(CALLERS[callers], 20))
            given, written = in_folder(durable_figures.bytes_written, callers, total)
            self.add(
                f"KB given to write for an item, enqueue to done, {callers:,} callers",
                given / 1e3,
                goal,
                group="KB written for an item, enqueue to done: 1 / 10 / 100 / 1,000 callers",
                digits=1,
            )
            self.rows[-1]["system_pages"] = written / 1e3
        found = in_folder(durable_figures.file_bytes, self.few(10_000, 1_000)) - 100
        self.rows[-1]["note"] = (
            f"{found:.0f} bytes more than its payload in the file while it waits"
        )

    def idle(self):
        seconds = self.few(5, 0.2)
        for queues, goal in ((1, 0.002), (100, 0.01)):
            found = Subject().call(called, "durable_figures", "idle_cpu", queues, seconds)
            what = "idle CPU of a worker" if queues == 1 else f"idle CPU of {queues} in one file"
            group = "idle CPU: a worker / 100 queues' in one file"
            self.add(what, found, goal, unit=" s/s", digits=4, group=group)

    def waiters(self):
        found = self.of_each_source(
            "waiting_cpu", self.few(1_000, 20), self.few(5, 0.2), module="durable_figures"
        )
        for heading, figures in found.items():
            what = "1,000 waiters beside another process's busy queue"
            first = heading != list(found)[-1]
            self.add(
                what, runner.spread(figures), 0.02, unit=" s/s", digits=4, group=what, first=first
            )

    def claim(self):
        rounds, backlog = self.few(200, 10), self.few(100_000, 1_000)
        few, many = in_folder(durable_figures.claim_times, rounds, backlog)
        self.add(
            "a claim of 10 beside 100,000 ready, done and delayed, to one beside 200",
            runner.share(many, few), 1.5, note=f"{statistics.median(few) * 1e6:.0f} us",
        )  # fmt: skip

    def fsyncs(self):
        found = self.data["fsyncs"] = shimmed("count_fsyncs", self.few(30, 5))
        for (what, count), goal in zip((found or {}).items(), (1, 1, 2, 3), strict=False):
            group = (
                "fsyncs: 100 enqueues / one in each of 100 queues / 100 submits / with on_settle"
            )
            self.add(f"fsyncs of {what}", count, goal, group=group)

    def deaths(self):
        total = self.few(10_000, 500)
        ways = ("backlog_after", total, 400), ("backlog_after", total, 0)
        held, without = (self.of_each_source(*way, module="durable_figures") for way in ways)
        for heading in held:
            costs = {"held": held[heading], "without": without[heading]}
            slower = shares(costs, "held", "without")
            what = "a backlog of 10,000 after kill -9 with 400 claimed, to one without"
            first = heading != list(held)[-1]
            for clock, spread in slower.items():
                group = f"{what}: CPU / wall"
                self.add(f"{what}, {clock}", spread, 1.5, group=group, first=first)
        seconds = [
            in_folder(durable_figures.redelivery) for _ in range(min(self.rounds, self.few(9, 1)))
        ]
        self.add("kill -9 to the next handler call", runner.spread(seconds), 1, unit=" s")

    def peers(self):
        rates = self.data["peers"] = in_folder(durable_contenders.peer_rates, self.few(500, 20))
        group = "other queues, one item at a time, put/s"
        for name, (put, take) in rates.items():
            note = f"{name}: get and ack {take:,.0f}"
            self.add(f"{name}, one item at a time", put, digits=0, note=note, group=group)


def show_enqueue(page, cells):
    def share(spread, goal):
        return f"{output.shown(spread)} {'met' if spread['median'] >= goal else 'MISSED'}"

    rows = []
    for cell in cells:
        cpu, wall = GOALS[cell["callers"]]
        raw, cairnq = cell["of"]["raw"], cell["of"].get("cairnq")
        rows.append(
            [
                cell["callers"],
                "{:.1f}, {:.1f}".format(*cell["us"]["enqueue"]),
                "{:.1f}, {:.1f}".format(*cell["us"]["raw"]),
                f"{share(raw['cpu'], cpu)} (>= {cpu:.2f})",
                f"{share(raw['wall'], wall)} (>= {wall:.2f})",
                f"{share(cell['keyed']['cpu'], KEYED)}, {share(cell['keyed']['wall'], KEYED)}",
                output.shown(cell["of"]["one transaction each"]["wall"], 1),
                output.shown(cairnq["wall"], 1) if cairnq else "-",
                f"{cell['p50_ms']:.2f}, {cell['p99_ms']:.2f}",
            ]
        )
    page.table(
        [
            "callers", "us an item: CPU, wall", "raw: CPU, wall", "CPU, of raw (goal)", "wall, of raw (goal)",
            "keyed, of raw: CPU, wall (>= 0.40)", "over one tx each", "over cairnq", "ms: p50, p99",
        ],
        rows,
    )  # fmt: skip


def show(page, rows):
    """Say a line for each thing that was measured, with its figures side by side."""
    lines = {}
    for row in rows:
        line = lines.setdefault(row["group"], {"reached": [], "goal": [], "met": [], "note": []})
        reached = output.shown(row, row["digits"])
        if row["rounds"] == 1:
            reached = f"{row['median']:.{row['digits']}f}"
        reached += row["unit"]
        if row["first"]:
            line["note"].append(f"the first source: {reached}")
            continue
        line["reached"].append(reached)
        if row["note"]:
            line["note"].append(row["note"])
        if row["goal"] is not None:
            line["goal"].append(f"{'>=' if row['least'] else '<='} {row['goal']:g}{row['unit']}")
            line["met"].append("met" if row["met"] else "missed")

    def joined(values):
        return " / ".join(values if len(set(values)) > 1 else values[:1]) or "-"

    table = [
        (
            group, " / ".join(line["reached"]), ", ".join(line["note"]) or "-",
            joined(line["goal"]), joined(line["met"]),
        )
        for group, line in lines.items()
    ]  # fmt: skip
    page.table(["what", "reached (quartiles)", "beside it", "goal", ""], table)


def run(chosen, page):
    one = Run(chosen, page)
    for part in chosen.only:
        getattr(one, part)()
    if one.data.get("enqueue"):
        show_enqueue(page, one.data["enqueue"])
    show(page, one.rows)
    return one.data
