"""Count instructions per item with callgrind: steadier than any clock, so it shows a change of 3 %.

    python benchmarks/instructions.py [--only submit ...]

Each figure is the difference of two subprocesses that run the same waves of 1,000 callers, one of
them more of those, by the difference in callers: what starting Python and importing costs falls
out. Garbage is not collected meanwhile, because when it is depends on everything that came
before.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys

import contenders
import measure

WAVE = 1000


async def _waves(contender, size, waves, wave):
    async with contender.open(size) as run:
        for _ in range(waves):
            await run(wave)


def child(name, size, waves, wave):
    """Run in the subprocess."""
    gc.disable()
    contender = contenders.ALL[name]
    measure.run_on(contender.loops[0], _waves, contender, size, waves, wave)


def collected(name, size, waves, wave):
    """Return the instructions of a whole subprocess."""
    command = [
        "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
        sys.executable, __file__, "--child", name, str(size), str(waves), str(wave),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None:
        raise RuntimeError(done.stderr)
    return int(found[1])


def per_item(name, size, *, waves=4, wave=WAVE):
    """Return a contender's instructions per item."""
    few, many = (collected(name, size, count, wave) for count in (2, 2 + waves))
    return (many - few) / (waves * wave)


DEFAULT = [
    ("floor (a)", 100), ("floor, call_soon", 100), ("bare task + future", 100),
    ("submit", 100), ("submit_nowait", 100), ("submit_many", 100), ("dloader", 100),
    ("aiodataloader", 100),
    ("floor (a)", 10), ("submit", 10), ("floor (a)", 1), ("submit", 1),
    ("trio.Event floor", 100), ("trio submit", 100),
]  # fmt: skip


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        child(sys.argv[2], *map(int, sys.argv[3:]))
        return
    chosen = measure.options(
        __doc__.splitlines()[0],
        only={"nargs": "*", "help": "these contenders"},
        sizes={"nargs": "*", "type": int, "help": "these batch sizes"},
    )
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: nothing counted")
        measure.save(chosen.out, "instructions", {"rows": []})
        return
    plan = [
        (name, size)
        for name, size in DEFAULT
        if (not chosen.only or name in chosen.only) and (not chosen.sizes or size in chosen.sizes)
    ]
    if chosen.tiny:
        plan = [("submit", 10)]
    rows, floors = [], {}
    for name, size in plan:
        if not contenders.installed(contenders.ALL[name]):
            continue
        count = per_item(name, size, **({"waves": 1, "wave": 200} if chosen.tiny else {}))
        kind = (contenders.ALL[name].loops[0], size)
        floor = floors.setdefault(kind, count)  # the floor comes first
        rows.append({"name": name, "size": size, "instructions": count, "ratio": count / floor})
        print(f"{name:24} batch {size:4}  {count:10.0f}  {count / floor:.3f}", flush=True)
    measure.table(
        ["batch", "", "instructions per item", "to the floor"],
        [(r["size"], r["name"], f"{r['instructions']:,.0f}", f"{r['ratio']:.3f}") for r in rows],
    )
    measure.save(chosen.out, "instructions", {"rows": rows})


if __name__ == "__main__":
    main()
