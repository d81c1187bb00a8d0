"""Every in-memory goal in one run: what was aimed at, what was reached, the best peer.

Every CPU figure is a ratio to floor (a), the hand-written 20-line batcher of `floor.py`, taken in
the same round of one process. Instructions need valgrind.
"""

from __future__ import annotations

import shutil

from benchmarks import contenders, instructions, latency, memory, output, runner
from benchmarks.child import Subject
from benchmarks.contenders import FLOOR, TRIO_FLOOR

SECTIONS = ["task_each", "no_task", "waiting_time", "bytes", "trio", "million", "counted"]
OPTIONS = {"only": {"nargs": "+", "choices": SECTIONS, "default": SECTIONS, "help": "sections"}}


def best_peer(figures):
    """Name the peer with the lowest median."""
    peers = {k: v for k, v in figures.items() if k in contenders.ALL and contenders.ALL[k].module}
    if not peers:
        return "-"
    name = min(peers, key=lambda key: peers[key]["median"])
    return f"{name} {peers[name]['median']:.2f}"


class Goals:
    """The table in the making."""

    def __init__(self, chosen, page):
        self.tiny = chosen.tiny
        self.rounds = chosen.rounds or (2 if chosen.tiny else 15)
        self.page = page
        self.rows = []

    def add(self, what, goal, reached, *, peer="-", unit="", digits=2, **more):
        """Note one line; reached is a spread or a number, better the lower."""
        spread = reached if isinstance(reached, dict) else runner.spread([reached])
        met = spread["median"] <= goal
        row = {
            "what": what,
            "goal": goal,
            "unit": unit,
            "digits": digits,
            **spread,
            "met": met,
            "best_peer": peer,
            **more,
        }
        self.rows.append(row)
        print(
            f"{'met   ' if met else 'MISSED'} {what}: {output.shown(spread, digits)}{unit}, "
            f"goal {goal}{unit}; best peer {peer}",
            flush=True,
        )
        self.page.save({"rows": self.rows})

    def cpu(self, what, goal, name, names, *, size, n, loop="asyncio", rounds=None, digits=2):
        """Measure one line of CPU ratios; the first of names is the floor."""
        if self.tiny:
            n = min(n, 300)
        figures = runner.interleaved(
            contenders.there(*names),
            rounds=min(rounds or self.rounds, self.rounds),
            loop=loop,
            size=size,
            n=n,
        )
        ratios = runner.ratios(figures, names[0])
        self.add(
            what, goal, ratios[name], peer=best_peer(ratios), digits=digits,
            all=ratios, microseconds=runner.per_item(figures, n),
        )  # fmt: skip

    def task_each(self):
        peers = [c.name for c in contenders.PEERS[:3]]
        everyone = [FLOOR, "submit", *peers]
        self.cpu("a task each, batch 100", 1.00, "submit", everyone, size=100, n=10_000)
        self.cpu("a task each, batch 10", 1.00, "submit", everyone, size=10, n=10_000)
        self.cpu("a task each, batch 1", 0.90, "submit", everyone, size=1, n=10_000)
        # Fewer callers all fit in the processor's cache, where pace counts for little and work for all.
        for size, goal in ((100, 1.00), (10, 1.00), (1, 0.90)):
            what = f"1,000 callers, batch {size}"
            self.cpu(what, goal, "submit", everyone, size=size, n=1_000)
        self.cpu(
            "100,000 callers, batch 100", 1.05, "submit", [FLOOR, "submit", "dloader"],
            size=100, n=100_000, rounds=5,
        )  # fmt: skip

    def no_task(self):
        names = [FLOOR, "submit_nowait", "submit_many"]
        self.cpu("gather over submit_nowait", 0.38, "submit_nowait", names, size=100, n=10_000)
        self.cpu(
            "gather over submit_nowait, uvloop", 0.47, "submit_nowait", names,
            size=100, n=10_000, loop="uvloop",
        )  # fmt: skip
        self.cpu(
            "submit_many, 50,000 items in chunks of 100", 0.020, "submit_many",
            [FLOOR, "submit_many"], size=100, n=50_000, rounds=7, digits=3,
        )  # fmt: skip

    def million(self):
        self.cpu(
            "1,000,000 through submit_nowait", 1.05, "submit_nowait", [FLOOR, "submit_nowait"],
            size=100, n=1_000_000, rounds=2,
        )  # fmt: skip

    def counted(self):
        if shutil.which("valgrind") is None:
            print("valgrind is not installed: instructions not counted")
            return
        sizes = {"waves": 1, "wave": 20} if self.tiny else {}
        counts = {
            name: instructions.per_item(Subject(), "asyncio", name, 100, **sizes)
            for name in (FLOOR, "submit")
        }
        self.add(
            "instructions, batch 100", 0.98, counts["submit"] / counts[FLOOR], digits=3, all=counts
        )

    def waiting_time(self):
        figures = latency.lone(
            rounds=self.rounds, calls=20 if self.tiny else 500, windowed=not self.tiny
        )
        ratios = {name: figure["ratio"] for name, figure in figures.items()}
        self.add(
            "lone caller at default settings, p50", 1.2, ratios["submit"],
            peer=best_peer(ratios), all=figures,
        )  # fmt: skip
        names = [contender.name for contender in contenders.there("submit", FLOOR, "batchlet")]
        late = latency.ages_in_turns(
            names, 0.01, rounds=2 if self.tiny else 5, seconds=0.1 if self.tiny else 1
        )
        self.add(
            "age of the oldest item at dispatch beyond max_wait (p99)", 2.0, late["submit"],
            peer=best_peer(late), unit=" ms", all=late,
        )  # fmt: skip
        seconds = 0.2 if self.tiny else 5
        peer = "-"
        if contenders.there("batched"):
            peer = f"batched {latency.idle('batched', seconds):.3f}"
        self.add(
            "idle CPU", 0.001, latency.idle("submit", seconds), peer=peer, unit=" s/s", digits=5
        )

    def bytes(self):
        names = ["bare task + future", "submit"]
        if not self.tiny:
            names += [contender.name for contender in contenders.there("dloader", "aiodataloader")]
        figures = memory.waiting(
            Subject(), names, n=1000 if self.tiny else 20_000, rounds=1 if self.tiny else 3
        )
        bare = figures[names[0]]["median"]
        ratios = {
            name: {k: v / bare if k != "rounds" else v for k, v in figure.items()}
            for name, figure in figures.items()
        }
        self.add(
            "bytes per waiting caller, of a bare task and future", 1.07, ratios["submit"],
            peer=best_peer(ratios), all=figures,
        )  # fmt: skip
        n = 1000 if self.tiny else 1_000_000
        self.add(
            "bytes kept per item after 1,000,000 items", 1.0,
            Subject().call(memory.figure, "kept after so many items", n), unit=" B",
        )  # fmt: skip

    def trio(self):
        for size, goal in ((100, 0.85), (1, 1.2)):
            self.cpu(
                f"trio, batch {size}", goal, "submit", [TRIO_FLOOR, "submit"],
                size=size, n=5_000, loop="trio",
            )  # fmt: skip


def show(page, rows):
    page.table(
        ["what", "goal", "reached (quartiles)", "", "best peer"],
        [
            (
                row["what"], f"<= {row['goal']:g}{row['unit']}",
                output.shown(row, row["digits"]) + row["unit"],
                "met" if row["met"] else "missed", row["best_peer"],
            )
            for row in rows
        ],
    )  # fmt: skip


def run(chosen, page):
    goals = Goals(chosen, page)
    for section in chosen.only:
        getattr(goals, section)()
    show(page, goals.rows)
    return {"rows": goals.rows}
