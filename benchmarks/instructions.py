"""Instructions an item, counted by callgrind: steady beside other work, so 1 % shows.

Each figure is of one process that runs one wave of callers unwatched, so that everything is there
that is made once, and then the waves that count. Garbage is not collected meanwhile, because when
it is depends on everything that came before. Counts leave out what memory costs, which clocks see.

Two runs of the same differ by 0.1 to 0.5 %; --rounds 3 takes the median. Before and after a change:
--source ../before/src src. Other interpreters: --python python3.13 ...
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from benchmarks import child, contenders, runner
from benchmarks.contenders import EVERYWHERE, FLOOR, TRIO_FLOOR
from benchmarks.options import SUBJECTS

WAVE = 1000
#: Who is counted, on which loops, at which batch sizes.
PLAN = [
    (FLOOR, ("asyncio", "uvloop"), (1, 10, 100)),
    (TRIO_FLOOR, ("trio",), (1, 10, 100)),
    ("submit", EVERYWHERE, (1, 10, 100)),
    ("submit_nowait", EVERYWHERE, (100,)),
    ("submit_many", EVERYWHERE, (100,)),
    ("bare task + future", ("asyncio",), (100,)),
    ("dloader", ("asyncio",), (100,)),
    ("aiodataloader", ("asyncio",), (100,)),
]
OPTIONS = {
    **SUBJECTS,
    "loops": {"nargs": "+", "default": runner.LOOPS, "choices": runner.LOOPS},
    "ways": {
        "nargs": "+",
        "default": [name for name, *_ in PLAN],
        "choices": [name for name, *_ in PLAN],
        "metavar": "WAY",
        "help": f"any of: {', '.join(name for name, *_ in PLAN)}",
    },
    "sizes": {
        "nargs": "+",
        "type": int,
        "default": [1, 10, 100],
        "choices": [1, 10, 100],
        "help": "batch sizes; all but floors and submit have 100 alone",
    },
}


async def waves_of(contender, size, waves, wave, counted):
    async with contender.open(size) as run:
        await run(wave)
        begin(counted=counted)
        for _ in range(waves):
            await run(wave)
        end()


def begin(*, counted=True):
    """Let callgrind count from here: until then it runs the program five times as fast."""
    if counted:
        command = ["callgrind_control", "--instr=on", str(os.getpid())]
        subprocess.run(command, check=True, capture_output=True)
    os.getppid()  # the counts begin at 0 when this is called,


def end():
    """Let it write what it has counted."""
    os.getsid(0)  # and are written when this is


def watched(cell, waves, wave, counted=True):
    """Run in the process that callgrind watches."""
    loop, name, size = cell
    drive(contenders.ALL[name], loop, size, waves, wave, counted)


def drive(contender, loop, size, *rest):
    """Run a contender, watched from its second wave on."""
    gc.disable()
    runner.run_on(loop, waves_of, contender, size, *rest)


def per_item(subject, loop, name, size, *, waves=3, wave=WAVE, function=watched):
    """Return a contender's instructions an item, run by a function like `watched`."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        under = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
        under += ["--zero-before=getppid", "--dump-before=getsid"]
        under.append(f"--callgrind-out-file={counts}")
        fixed = {"PYTHONHASHSEED": "0"}
        subject.call(function, (loop, name, size), waves, wave, under=under, environment=fixed)
        first = counts.with_name("counts.1").read_text()  # a second one has the end of the process
    return int(re.search(r"^summary: (\d+)", first, re.MULTILINE)[1]) / (waves * wave)


def planned(chosen):
    """Return the cells that are wanted, those of one loop and size together, its floor first."""
    cells = [
        (loop, size, name)
        for name, loops, sizes in PLAN
        for loop in loops
        for size in sizes
        if name in chosen.ways and loop in chosen.loops and size in chosen.sizes
    ]
    return sorted(cells, key=lambda cell: (runner.LOOPS.index(cell[0]), cell[1]))


def run(chosen, page):
    if shutil.which("valgrind") is None:
        page.say("valgrind is not installed: nothing counted")
        return {"rows": []}
    subjects = child.subjects(chosen)
    cells = [("asyncio", 10, "submit")] if chosen.tiny else planned(chosen)
    few = {"waves": 1, "wave": 200} if chosen.tiny else {}
    rows = []
    firsts = child.firsts(subjects)
    for loop, size, name in cells:
        counts = {}
        for heading, subject in subjects.items():
            if name not in subject.contenders:
                continue
            if firsts[heading] != heading and contenders.ALL[name] not in contenders.OURS:
                counts[heading] = counts[firsts[heading]]  # it runs nothing of the source
            else:
                found = [
                    per_item(subject, loop, name, size, **few) for _ in range(chosen.rounds or 1)
                ]
                counts[heading] = statistics.median(found)
        if not counts:
            continue  # it is not installed
        print(loop, size, name, {k: round(v) for k, v in counts.items()}, flush=True)
        rows.append({"loop": loop, "size": size, "name": name, "instructions": counts})
        page.save({"rows": rows})
    if not rows:
        raise SystemExit(
            "nothing to count: none of these ways is installed and has these sizes on these loops"
        )
    show(page, rows, firsts)
    return {"rows": rows}


def show(page, rows, firsts):
    """Say the table: beside a count its ratio to the floor, or its change from the first source."""
    counts = {(r["loop"], r["name"], r["size"]): r["instructions"] for r in rows}
    sizes = sorted({row["size"] for row in rows})
    columns = [(heading, size) for heading in firsts for size in sizes]

    def cell(loop, name, heading, size):
        found = counts.get((loop, name, size), {})
        if heading not in found:
            return "-"
        floor = counts.get((loop, TRIO_FLOOR if loop == "trio" else FLOOR, size), {})
        if heading != firsts[heading]:
            return f"{found[heading]:,.0f} ({found[heading] / found[firsts[heading]] - 1:+.2%})"
        if heading in floor:
            return f"{found[heading]:,.0f} ({found[heading] / floor[heading]:.3f})"
        return f"{found[heading]:,.0f}"

    ways = {name: None for name, *_ in PLAN}
    page.table(
        ["loop", "way in", *[f"{heading}, batch {size}" for heading, size in columns]],
        [
            [loop, name, *[cell(loop, name, heading, size) for heading, size in columns]]
            for loop in runner.LOOPS
            for name in ways
            if any((loop, name, size) in counts for size in sizes)
        ],
    )
