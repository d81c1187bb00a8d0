"""Import 28,000 airports as a job: watched, cancelled at a third, the rest done by another, failures in a file.

    python examples/import_job.py [airports.sqlite]

The queue and the table are in one file. A second process follows the same job. Five rows are broken on
purpose: four do not fit the item's type, one has a code that is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import airportsdata
from msgspec import Meta, Struct
from tqdm import tqdm

from microbatch import ItemError, batch_info
from microbatch.durable import DurableBatcher, DurableQueue
from microbatch.files import write_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from microbatch.durable import Job, JobStatus


class Airport(Struct):
    """A row as the queue takes it: whatever does not fit fails before any handler sees it."""

    line: int
    icao: str
    name: str
    country: Annotated[str, Meta(min_length=2)]
    elevation: float
    lat: Annotated[float, Meta(ge=-90, le=90)]
    lon: Annotated[float, Meta(ge=-180, le=180)]


SCHEMA = """CREATE TABLE IF NOT EXISTS airport (line INTEGER PRIMARY KEY, icao TEXT NOT NULL UNIQUE, name TEXT,
    country TEXT, elevation REAL, lat REAL, lon REAL, job TEXT)"""
# A row that goes again, because its process died before the outcome was on the disk, finds itself there.
INSERT = """INSERT INTO airport VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (line) DO UPDATE SET icao = excluded.icao"""
BROKEN = [  # changes to a copy of a real row; none: its code is taken
    {},
    {"icao": "XX01", "elevation": "unknown"},
    {"icao": "XX02", "lat": "91.5"},
    {"icao": "XX03", "lon": "-200"},
    {"icao": "XX04", "country": ""},
]


def source() -> Iterator[dict[str, Any]]:
    """Yield the rows of the file, and the broken ones, one by one: never all of them in memory."""
    with Path(airportsdata.__file__).with_name("airports.csv").open(encoding="utf-8") as file:
        line = 0
        for number, real in enumerate(csv.DictReader(file), 1):
            copies = (
                [BROKEN[number // 5_000 - 1]] if number % 5_000 == 0 and number <= 25_000 else []
            )
            for change in [{}, *copies]:
                line += 1
                row: dict[str, Any] = {**real, **change, "line": line}
                for column in ("elevation", "lat", "lon"):
                    with contextlib.suppress(ValueError):  # then it stays text, and does not fit
                        row[column] = float(row[column])
                yield row


class Import:
    """The table, and the handler that writes to it."""

    def __init__(self, path: Path, rows: int) -> None:
        self.third = rows / 3
        self.database = sqlite3.connect(path, timeout=30)
        self.database.execute(SCHEMA)
        self.written = 0
        self.pressed = asyncio.Event()

    async def insert(self, rows: list[Airport]) -> list[str | Exception]:
        """Write many rows in one transaction; each has its own answer."""
        if self.written >= self.third:  # else all is done before anybody can press "cancel"
            await self.pressed.wait()
        with self.database:
            answers = [self.insert_one(row, batch_info().job) for row in rows]
        self.written += len(rows)
        return answers

    def insert_one(self, row: Airport, job: str | None) -> str | Exception:
        """Write one row, stamped with its job, or say why not: SQLite undoes the statement alone."""
        values = (row.line, row.icao, row.name, row.country, row.elevation, row.lat, row.lon, job)
        try:
            self.database.execute(INSERT, values)
        except sqlite3.IntegrityError as error:
            return ItemError(str(error), code="code_taken", retryable=False)
        return row.icao


async def followed(job: Job[str]) -> AsyncIterator[JobStatus]:
    """Yield a job's status as it goes, and show a bar; on a terminal only."""
    with tqdm(total=(await job.status()).total, unit=" rows", disable=None, leave=False) as bar:
        async for status in job.progress(min_interval=0.05):
            bar.update(status.done - bar.n)
            yield status


def shown(title: str, status: JobStatus) -> None:
    """Print how a job ended."""
    print(
        f"{title}: {status.outcome}; of {status.total:,} {status.succeeded:,} succeeded,", end=" "
    )
    print(f"{status.failed} failed, {status.cancelled:,} cancelled; errors {dict(status.errors)}")


async def watch(path: str, job_id: str) -> None:
    """Be the second process: follow the job from outside, without a handler."""
    queue: DurableQueue[Any, str] = DurableQueue(path, item_type=dict, result_type=str)
    async with queue:
        done = []
        async for status in queue.job(job_id).progress(min_interval=0.05):
            print("sees it", status.life, flush=True)
            done.append(status.done)
        print("ordered" if done == sorted(done) else "went back", status.outcome, status.done)


async def main(path: Path) -> None:
    """Bring the job, watch it, cancel it, let the rest go as another one, and list what failed."""
    queue: DurableQueue[Any, str] = DurableQueue(path, item_type=Airport, result_type=str)
    async with queue:  # whoever brings a job needs no handler
        job = await queue.enqueue_job(
            source(),
            item_id=lambda row: f"line {row['line']}",
            invalid="fail",
            metadata={"file": "airports.csv"},
        )
        command = [sys.executable, __file__, str(path), job.id]
        watcher = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        if watcher.stdout is not None:
            await watcher.stdout.readline()  # it is there
        airports = Import(path, (await job.status()).total)

    worker = DurableBatcher(
        path, airports.insert, item_type=Airport, result_type=str, max_batch_size=500
    )
    async with worker:
        job = worker.job(job.id)
        async for status in followed(job):
            if status.fraction >= 1 / 3 and not airports.pressed.is_set():
                await job.cancel()
                airports.pressed.set()
        shown("the job", status)
        total = status.total
        *_, seen = (await watcher.communicate())[0].decode().splitlines()
        agrees = seen == f"ordered cancelled {status.done}"
        print("a second process saw the same, never going back:", agrees)

        rest = await job.retry_failed()
        async for status in followed(rest):
            last = status
        shown("the rest", last)

        failures = [
            {
                "id": outcome.id,
                "code": outcome.code,
                "reason": getattr(outcome.error, "message", ""),
            }
            for one in (job, rest)
            async for outcome in one.outcomes("failed")
        ]
    count = await write_rows(path.with_name("failed.csv"), failures)
    print(f"{count} rows failed; failed.csv has them:")
    for row in failures:
        print(f"  {row['id']:<11} {row['code']:<13} {row['reason']}")
    (stored,) = airports.database.execute("SELECT count(*) FROM airport").fetchone()
    stamped = dict(airports.database.execute("SELECT job, count(*) FROM airport GROUP BY job"))
    airports.database.close()
    print(f"stamped with their job: {stamped[job.id]:,} rows and {stamped[rest.id]:,}")
    print(f"{total:,} rows - {count} failed = {stored:,} in {path.name}")
    if stored != total - count or not agrees:
        sys.exit("the counts do not match")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        asyncio.run(watch(*sys.argv[1:]))
    else:
        asyncio.run(main(Path(*sys.argv[1:] or ["airports.sqlite"])))
