"""Power cuts: what was written and not yet synced is gone, in whole or sector by sector.

The shim copies a file as it is whenever it is synced. After a kill, each file is put together from the last copy
and from what the process had written since: all of it lost, all of it kept, or any mixture of 512-byte sectors, as a
disk's cache would leave it. This is harsher than a disk that keeps the order of its writes. What it does not
simulate: a disk that lies about syncs, and directory entries that are lost.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import anyio
import pytest
from durable_support import Handler, Shim, batcher, check_counts, execute, rows, states, until
from support import scaled

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Shim.available(), reason="needs a C compiler and Linux"),
]

SECTOR = 512


def cut_power(folder, shadow, after, how: str, chance: random.Random) -> None:
    """Leave in ``after`` what a medium would have."""
    after.mkdir()
    for name in ("queue.db", "queue.db-wal"):
        old = (shadow / name).read_bytes() if (shadow / name).exists() else b""
        new = (folder / name).read_bytes() if (folder / name).exists() else b""
        if how == "lost":
            mixed = old
        elif how == "kept":
            mixed = new
        else:
            size = chance.choice([len(old), len(new)])
            old, new = old.ljust(size, b"\0")[:size], new.ljust(size, b"\0")[:size]
            mixed = b"".join(
                (old if chance.random() < 0.5 else new)[at : at + SECTOR]
                for at in range(0, size, SECTOR)
            )
        (after / name).write_bytes(mixed)


async def one_cut(tmp_path, seed: int) -> int:
    """Kill a process at a random moment, look at all that a medium might have then; return what was acknowledged."""
    chance = random.Random(seed)
    folder, shadow = (tmp_path / f"{name}-{seed}" for name in ("before", "shadow"))
    folder.mkdir()
    shadow.mkdir()
    execute(folder / "queue.db", "PRAGMA journal_mode = WAL", "CREATE TABLE effects (item INTEGER)")
    shutil.copy(folder / "queue.db", shadow / "queue.db")
    process = Shim(tmp_path, match="queue.db", shadow=shadow).start(
        "power.py", folder / "queue.db", seed
    )
    assert process.stdout is not None
    lines = [
        await anyio.to_thread.run_sync(process.stdout.readline)
        for _ in range(chance.randint(10, 300))
    ]
    await anyio.sleep(chance.uniform(0.0, 0.005))
    process.kill()
    lines += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    lines = [line for line in lines if line.endswith("\n")]
    stored = {int(line.split()[2]) for line in lines if line.startswith("stored")}
    done = {int(line.split()[1]) for line in lines if line.startswith("done")}
    for number, how in enumerate(("lost", "kept", "mixed", "mixed")):
        after = tmp_path / f"after-{seed}-{number}"
        cut_power(folder, shadow, after, how, chance)
        await check(after / "queue.db", stored, done)
    shutil.rmtree(folder)
    return len(stored) + len(done)


async def check(path, stored: set[int], done: set[int]) -> None:
    """``stored``: ids that were acknowledged; ``done``: items whose results were given out, which are their keys."""
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    found = states(path)
    effects = [item for (item,) in rows(path, "SELECT item FROM effects")]
    assert stored <= set(found), "acknowledged and lost"
    assert done <= set(effects), "a result was given out and is gone"
    assert len(set(effects)) == len(effects) == list(found.values()).count("done"), (
        "an effect without its settle"
    )
    check_counts(path)
    handler = Handler()
    async with batcher(path, handler, max_batch_size=1000) as durable:
        await until(lambda: _empty(durable))
        for item in sorted(done)[:5]:
            assert await durable.submit(item, key=str(item)) == item * 2
    assert set(handler.items).isdisjoint(effects), "settled and handled again"
    assert set(states(path).values()) <= {"done"}


async def _empty(durable):
    return (await durable.stats()).depth == 0


async def test_nothing_acknowledged_is_lost_in_a_power_cut(tmp_path):
    """Nor is anything settled handled again, nor an effect there without its settle."""
    for seed in range(2):
        assert await one_cut(tmp_path, seed) > 0


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_nothing_acknowledged_is_lost_in_many_power_cuts(tmp_path):
    """The same at length."""
    acknowledged = 0
    cuts = scaled(12)
    for seed in range(100, 100 + cuts):
        acknowledged += await one_cut(tmp_path, seed)
    assert acknowledged > 4 * cuts


async def test_the_simulation_can_lose_things(tmp_path):
    """If `synchronous` were off, a cut would lose what was acknowledged: the shim really drops it."""
    folder, shadow = tmp_path / "f", tmp_path / "s"
    folder.mkdir()
    shadow.mkdir()
    program = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA journal_mode = WAL'); c.execute('PRAGMA synchronous = OFF')\n"
        "c.execute('CREATE TABLE t (x)'); c.execute('INSERT INTO t VALUES (1)')\n"
        "import os; os._exit(0)\n"
    )
    (tmp_path / "unsafe.py").write_text(program)
    process = Shim(tmp_path, match="queue.db", shadow=shadow).start(
        tmp_path / "unsafe.py", folder / "queue.db"
    )
    process.wait()
    process.stdout.close()
    cut_power(folder, shadow, tmp_path / "after", "lost", random.Random(0))
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        rows(tmp_path / "after" / "queue.db", "SELECT * FROM t")


def main(cuts: int, first: int) -> None:
    """Cut the power so often: ``python tests/durable/test_power.py CUTS SEED``."""
    acknowledged = 0
    for seed in range(first, first + cuts):
        with tempfile.TemporaryDirectory() as folder:
            acknowledged += anyio.run(one_cut, Path(folder), seed)
        print(seed, acknowledged, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
