"""A durable job of a million items: how fast it comes in and is handled, what it holds up.

Items are ints, from a generator; a ratio is of two samples of one round, each from a process of its own. `raw`
is the standard library's sqlite3 with one table and one partial index: `executemany` with 1,000 rows in each
transaction. The write lock is watched by a second process that writes a row after another all the while: the
longest that it waited for `BEGIN IMMEDIATE` is told.

--items takes fewer of them, --only some of the parts.
"""

from __future__ import annotations

from functools import partial

from benchmarks import job_figures, runner
from benchmarks.child import Subject
from benchmarks.durable import Run, in_folder, show
from benchmarks.options import positive

PARTS = ("enqueue", "work", "lock", "looks", "memory")
OPTIONS = {
    "only": {"nargs": "+", "choices": PARTS, "default": PARTS, "help": "parts"},
    "items": {"type": positive, "default": 1_000_000, "help": "items of the job"},
}


def in_child(name, *arguments):
    """Call a function of `job_figures` by its name: what a `Subject` does."""
    return in_folder(getattr(job_figures, name), *arguments)


class Jobs(Run):
    """One run: its size, its lines."""

    def __init__(self, chosen, page):
        chosen.source = [None]
        super().__init__(chosen, page)
        self.rounds = chosen.rounds or (1 if chosen.tiny else 3)
        self.items = 2_000 if chosen.tiny else chosen.items

    def in_turns(self, ways):
        """Measure each way in processes of its own, in turns."""
        return runner.in_turns(
            {
                way: partial(Subject().call, in_child, name, *arguments)
                for way, (name, *arguments) in ways.items()
            },
            self.rounds,
        )

    def rates(self, what, costs, base, name, goal):
        """Note how much faster one way is than another, by CPU and by the wall clock."""
        pairs = list(zip(costs[base], costs[name], strict=True))
        for which, clock in enumerate(("CPU", "wall")):
            share = runner.spread([its[which] / mine[which] for its, mine in pairs])
            each = runner.spread([mine[which] / self.items * 1e6 for _, mine in pairs])["median"]
            note = f"{each:.2f} us of {clock} an item"
            self.add(
                f"{what}, {clock}", share, goal, least=True, group=f"{what}: CPU / wall", note=note
            )

    def enqueue(self):
        costs = self.in_turns(
            {
                "raw": ("raw_rows", self.items),
                "ids": ("bring", self.items, True),
                "job": ("bring", self.items, False),
            }
        )
        what = "enqueue_job of ints from a generator, of raw"
        self.rates(what, costs, "raw", "job", 1.5)
        self.rates(f"{what}, with item_id", costs, "raw", "ids", 0.5)

    def work(self):
        costs = self.in_turns(
            {"items": ("work", self.items, False), "job": ("work", self.items, True)}
        )
        what = "handling it in batches of 100, of the same items without a job"
        self.rates(what, costs, "items", "job", 0.9)

    def lock(self):
        for name, size in (("ints", 0), ("items of 1 KB", 1_000)):
            items = self.items if not size else self.items // 4
            found = [
                Subject().call(in_child, "longest_wait", items, size) for _ in range(self.rounds)
            ]
            group = "longest wait of another writer: ints / items of 1 KB"
            longest = runner.spread([one["longest"] for one in found])
            self.add(f"{group}, {name}", longest, 100, unit=" ms", digits=0, group=group)

    def looks(self):
        few, many = (
            Subject().call(in_child, "look_times", count, 20 if self.tiny else 300)
            for count in (min(1_000, self.items), self.items)
        )
        for name in few:
            share = runner.share(many[name], few[name])
            group = "status / first page / last page of 100: of all these items to 1,000"
            median = runner.spread([one * 1e6 for one in many[name]])["median"]
            self.add(f"{name}: {group}", share, 1.5, group=group, note=f"{name} {median:.0f} us")

    def memory(self):
        found = Subject().call(in_child, "memory", self.items)
        group = "memory above its start: who brings / watches / handles"
        for name, size in found.items():
            self.add(f"{name}, {group}", size, 60, unit=" MB", digits=0, group=group)


def run(chosen, page):
    one = Jobs(chosen, page)
    for part in chosen.only:
        getattr(one, part)()
    page.say(f"A job of {one.items:,} ints, or of a quarter as many items of 1 KB.")
    page.say()
    show(page, one.rows)
    return one.data
