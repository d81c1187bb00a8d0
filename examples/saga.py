"""A saga: three steps in three systems, undone in reverse where one fails, and consistent whatever is killed.

A trip is a job of three items in order: flight, hotel, payment. Where a step is refused, `on_job_end` makes
a second job of what had succeeded, in reverse. The worker is killed in the middle of that, and starts again.

    python saga.py
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from microbatch import Backoff, ItemError, Retry
from microbatch.durable import DurableBatcher, DurableQueue

if TYPE_CHECKING:
    from microbatch.durable import JobStatus

TRIPS = 24
STEPS = ("flight", "hotel", "payment")


class Step(msgspec.Struct):
    """One item: something to do, or to undo."""

    trip: int
    name: str
    undo: bool = False


class World:
    """Three other companies, each with a table: every call may come twice, as in all that is at least once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self.connect()) as tables:
            for name in STEPS:
                tables.execute(f"CREATE TABLE IF NOT EXISTS {name} (trip INTEGER PRIMARY KEY)")
            tables.execute("CREATE TABLE IF NOT EXISTS log (trip INTEGER, step TEXT)")

    def connect(self) -> sqlite3.Connection:
        """Open a connection: each thread needs one of its own."""
        return sqlite3.connect(self.path, timeout=30, isolation_level=None)

    def call(self, steps: list[Step]) -> list[str | Exception]:
        """Be the handler: a plain function, so it runs in a thread, and four of them at a time."""
        time.sleep(0.01)
        with closing(self.connect()) as tables:
            return [self.call_one(tables, step) for step in steps]

    def call_one(self, tables: sqlite3.Connection, step: Step) -> str | Exception:
        """Book or undo at one company; its trip's number makes the second call harmless."""
        if step.name == "payment" and step.trip % 3 == 0:
            return ItemError("the card was declined", code="declined", retryable=False)
        verb = (
            "DELETE FROM {} WHERE trip = ?" if step.undo else "INSERT OR IGNORE INTO {} VALUES (?)"
        )
        tables.execute(verb.format(step.name), (step.trip,))
        said = f"undo {step.name}" if step.undo else step.name
        tables.execute("INSERT INTO log VALUES (?, ?)", (step.trip, said))
        return step.name


async def work(path: Path) -> None:
    """Be the worker process: go on where the one before was killed."""

    async def compensate(ended: JobStatus) -> None:
        """Undo a trip that failed. Called at least once for each; the key makes it one job all the same."""
        trip = (ended.metadata or {}).get("trip")
        if trip is None or ended.outcome == "succeeded":
            return
        done = [outcome.unwrap() async for outcome in steps.job(ended.id).outcomes("succeeded")]
        undo = [Step(trip, name, undo=True) for name in reversed(done)]
        await steps.enqueue_job(
            undo, key=f"undo {trip}", metadata={"undoes": trip}, ordered=True, batch_size=1
        )

    # What is undone must be undone in the end: many attempts. A refusal is none of them.
    steps: DurableBatcher[Step, str] = DurableBatcher(
        path,
        World(path.with_name("world.db")).call,
        item_type=Step,
        result_type=str,
        max_concurrency=4,
        retry=Retry(on=sqlite3.OperationalError, attempts=1_000, backoff=Backoff(maximum=60)),
        on_job_end=compensate,
    )
    async with steps:
        while not await is_finished(steps):  # noqa: ASYNC110 - the queue has no event for it
            await asyncio.sleep(0.05)


async def is_finished(queue: DurableQueue[Step, str]) -> bool:
    """Tell whether all trips have ended, and those that failed were undone."""
    page = await queue.jobs(limit=1_000)
    undone = {(job.metadata or {}).get("undoes") for job in page.jobs if job.outcome == "succeeded"}
    trips = [job for job in page.jobs if "trip" in (job.metadata or {})]
    return all(
        job.life == "ended"
        and (job.outcome == "succeeded" or (job.metadata or {})["trip"] in undone)
        for job in trips
    )


async def book(path: Path) -> None:
    """Accept the trips: each is on the disk, whole, when `enqueue_job` returns."""
    queue: DurableQueue[Step, str] = DurableQueue(path, item_type=Step)
    async with queue:
        for trip in range(TRIPS):
            await queue.enqueue_job(
                (Step(trip, name) for name in STEPS),
                key=f"trip {trip}",
                metadata={"trip": trip},
                ordered=True,
                batch_size=1,
                max_failures=0,  # after a refusal no further step begins
            )


def main() -> None:
    """Book, kill, and look at what the companies have."""
    path = Path(tempfile.mkdtemp()) / "trips.db"
    asyncio.run(book(path))
    world = World(path.with_name("world.db")).connect()

    def undone() -> int:
        return int(world.execute("SELECT count(*) FROM log WHERE step LIKE 'undo%'").fetchone()[0])

    for kill in (True, False):
        worker = subprocess.Popen([sys.executable, __file__, str(path)], stderr=subprocess.DEVNULL)  # noqa: S603
        while kill and not undone() and worker.poll() is None:
            time.sleep(0.005)
        if kill:
            worker.kill()
            print("killed the worker: some trips are booked, one is being undone")
        worker.wait()

    booked = {
        name: {trip for (trip,) in world.execute(f"SELECT trip FROM {name}")} for name in STEPS
    }
    kept = set.intersection(*booked.values())
    print(f"{len(kept)} trips are booked, each with", ", ".join(STEPS))
    for trip in sorted(set(range(TRIPS)) - kept)[:1]:
        log = [step for (step,) in world.execute("SELECT step FROM log WHERE trip = ?", (trip,))]
        print(f"trip {trip} was refused:", ", ".join(dict.fromkeys(log)))
    refused = {trip for trip in range(TRIPS) if trip % 3 == 0}
    print(
        "all or nothing, for every trip:",
        all(b == set(range(TRIPS)) - refused for b in booked.values()),
    )
    world.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(work(Path(sys.argv[1])))
    else:
        main()
