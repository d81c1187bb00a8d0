"""What batching gains and costs, by laws that no busy machine can break: counted syncs, virtual time."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import counted, outcomes

from microbatch import Batcher

sys.path.insert(0, str(Path(__file__).parents[1] / "durable"))  # for the shim

from durable_support import Shim

INSERTS = """
import asyncio, sqlite3, sys
from microbatch import Batcher

path, size = sys.argv[1], int(sys.argv[2])
database = sqlite3.connect(path, check_same_thread=False)
database.executescript(
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE row_of_text (id INTEGER PRIMARY KEY, body TEXT)"
)

def insert(ids: list[int]) -> None:
    with database:
        database.executemany("INSERT INTO row_of_text VALUES (?, 'x')", [(one,) for one in ids])

async def main() -> None:
    async with Batcher(insert, max_batch_size=size) as batcher:
        await asyncio.gather(*map(batcher.submit, range(1000)))

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Shim.available(), reason="needs a C compiler and Linux")
def test_a_thousand_batched_inserts_take_a_tenth_of_the_syncs_of_single_commits(
    tmp_path: Path,
) -> None:
    """The classic gain: on a plain disk a sync takes 5 ms, and all else next to nothing."""
    (tmp_path / "inserts.py").write_text(INSERTS)
    syncs = {}
    for size in (1, 100):
        count = tmp_path / f"syncs-{size}"
        shim = Shim(tmp_path, match=f"rows-{size}.db", count=count)
        process = shim.start(tmp_path / "inserts.py", tmp_path / f"rows-{size}.db", size)
        process.communicate()
        assert process.returncode == 0
        syncs[size] = count.stat().st_size
        rows = sqlite3.connect(tmp_path / f"rows-{size}.db")
        assert rows.execute("SELECT count(*) FROM row_of_text").fetchone() == (1000,)
        rows.close()
    assert syncs[1] >= 1000
    assert syncs[100] <= 1000 / 10


@pytest.mark.anyio
@pytest.mark.parametrize("load", [0.5, 0.9])
async def test_under_load_an_item_waits_for_the_window_and_one_handler_call_at_most(
    load: float,
) -> None:
    """Throughput must not be paid with latency: while the slots are busy the next batch fills and is the next to go."""
    chance, wait, call, size, slots = random.Random(7), 0.02, 0.1, 50, 2
    arrived: dict[int, float] = {}
    waits: list[float] = []

    async def handler(items: list[int]) -> list[int]:
        now = anyio.current_time()
        waits.extend(now - arrived[item] for item in items)
        await anyio.sleep(call)
        return items

    batcher = Batcher(handler, max_batch_size=size, max_wait=wait, max_concurrency=slots)
    async with batcher:
        pendings = []
        for item in range(4_000):
            await anyio.sleep(chance.expovariate(load * slots * size / call))
            arrived[item] = anyio.current_time()
            pendings.append(batcher.submit_nowait(item))
        assert await outcomes(*pendings) == list(range(4_000))
        assert counted(batcher).reasons["wait"] + counted(batcher).reasons["size"] > 50
    waits.sort()
    assert len(waits) == 4_000
    assert waits[len(waits) // 2] > 0  # the slots were busy
    assert waits[len(waits) * 99 // 100] <= wait + call + 1e-9


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["submit_many", "submit_nowait"])
async def test_a_batch_that_fails_leaves_the_rows_of_the_one_before(
    way: str, tmp_path: Path
) -> None:
    """A transaction is a batch: what was committed stays, what fails is rolled back whole."""
    database = sqlite3.connect(tmp_path / "rows.db", isolation_level=None)
    database.execute("CREATE TABLE row_of_text (id INTEGER PRIMARY KEY)")

    async def insert(ids: list[int]) -> None:
        database.execute("BEGIN")
        try:
            for one in ids:
                database.execute("INSERT INTO row_of_text VALUES (?)", (one,))
            database.execute("COMMIT")
        except sqlite3.IntegrityError:
            database.execute("ROLLBACK")
            raise

    ids = [1, 2, 3, 4, 5, 1]  # the second batch begins with two good rows
    async with Batcher(insert, max_batch_size=3) as batcher:
        if way == "submit_many":
            report: Any = await batcher.submit_many_report(ids)
            ended = [outcome.error for outcome in report]
        else:
            ended = await outcomes(*map(batcher.submit_nowait, ids))
    database.close()  # what was not committed is gone
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as again:
        assert again.execute("SELECT id FROM row_of_text").fetchall() == [(1,), (2,), (3,)]
    assert ended[:3] == [None] * 3
    assert [type(error) for error in ended[3:]] == [sqlite3.IntegrityError] * 3
