"""Reconcile: a job's outcomes held against the table that it wrote to; differences are found, and repaired.

The queue is in one file, the table in another: no transaction spans both. Then the table's owner restores a
backup and changes some rows by hand. `outcomes()` says what was acknowledged, so both can be walked side by
side, in order and in bounded memory. What is missing or differs goes again, as a job of its own.

    python reconcile.py
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from microbatch.durable import DurableBatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from microbatch.durable import Job

PAYMENTS = 5_000


class Payment(msgspec.Struct):
    """What is to be in the table."""

    id: str
    cents: int


def source() -> Iterator[Payment]:
    """Yield the payments, in the order of their ids."""
    for number in range(PAYMENTS):
        yield Payment(f"p{number:06}", number * 7 % 1_000 + 1)


class Ledger:
    """The target: a table of its own, in a file of its own."""

    def __init__(self, path: Path) -> None:
        self.table = sqlite3.connect(path, check_same_thread=False)
        self.table.execute(
            "CREATE TABLE payment (id TEXT PRIMARY KEY, cents INTEGER) WITHOUT ROWID"
        )

    def write(self, payments: list[Payment]) -> list[int]:
        """Write many; the same payment again changes nothing. The result is what the table has then."""
        with self.table:
            self.table.executemany(
                "INSERT OR REPLACE INTO payment VALUES (?, ?)",
                [(one.id, one.cents) for one in payments],
            )
        return [one.cents for one in payments]

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield what is there, in the order of the ids."""
        yield from self.table.execute("SELECT id, cents FROM payment ORDER BY id")


async def differences(
    job: Job[int], rows: Iterator[tuple[str, int]]
) -> AsyncIterator[tuple[str, str]]:
    """Walk outcomes and rows side by side; yield the id, and what is wrong with it."""
    row = next(rows, None)
    async for outcome in job.outcomes("succeeded"):
        name = str(outcome.id)
        while row is not None and row[0] < name:
            yield row[0], "unexpected"
            row = next(rows, None)
        if row is None or row[0] > name:
            yield name, "missing"
            continue
        if row[1] != outcome.value:
            yield name, "different"
        row = next(rows, None)
    while row is not None:
        yield row[0], "unexpected"
        row = next(rows, None)


async def found(job: Job[int], ledger: Ledger) -> dict[str, list[str]]:
    """Return the ids by what is wrong with them, and print how many there are."""
    wrong: dict[str, list[str]] = {"missing": [], "different": [], "unexpected": []}
    async for name, why in differences(job, ledger.rows()):
        wrong[why].append(name)
    print(", ".join(f"{len(names)} {why}" for why, names in wrong.items()))
    return wrong


async def main() -> None:
    """Write, damage, compare, repair, compare."""
    folder = Path(tempfile.mkdtemp())
    ledger = Ledger(folder / "ledger.db")
    queue = DurableBatcher(
        folder / "queue.db", ledger.write, item_type=Payment, result_type=int, max_batch_size=500
    )
    async with queue:
        job = await queue.enqueue_job(source(), item_id=lambda one: one.id, key="payments of May")
        status = await job.wait()
        print(f"{status.succeeded:,} payments written;", end=" ")
        await found(job, ledger)

        with ledger.table:  # a backup that lacks the last ones, and somebody's own ideas
            ledger.table.execute("DELETE FROM payment WHERE id >= 'p004960'")
            ledger.table.execute(
                "UPDATE payment SET cents = cents + 1 WHERE id IN ('p000007', 'p000100')"
            )
            ledger.table.execute("INSERT INTO payment VALUES ('p000007x', 5)")
        print("after the restore:", end=" ")
        wrong = await found(job, ledger)

        again = {*wrong["missing"], *wrong["different"]}
        repair = await queue.enqueue_job(
            (one for one in source() if one.id in again),
            item_id=lambda one: one.id,
            metadata={"repairs": job.id},
        )
        print(f"{(await repair.wait()).succeeded} written again;", end=" ")
        with ledger.table:
            ledger.table.executemany(
                "DELETE FROM payment WHERE id = ?", [(n,) for n in wrong["unexpected"]]
            )
        print(f"{len(wrong['unexpected'])} removed:", end=" ")
        await found(job, ledger)
    ledger.table.close()


if __name__ == "__main__":
    asyncio.run(main())
