"""Kills real processes at random points of what jobs do, and counts what became of all of them.

Run by test_job_crash.py, or by hand for longer: ``python tests/durable/job_crash.py FOLDER ROUNDS SEED``. Rounds and
episodes are those of crash.py. A process brings jobs, whole or broken off in the middle, handles them, and cancels,
pauses, resumes, retries and deletes whatever jobs it finds, its own and others', while it looks all the time whether
the counts add up. What a job is made of follows from its number, which is its key, so that the file can be held
against it whoever has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crash import RETRY, Episode, Log, run, until_asked
from durable_support import check_jobs
from job_looks import ENDS, LIVING, check_open
from job_story import SIZE_MAX, STAYING, JobStory, Reckoning

from microbatch import ItemError, Skipped, current_batch
from microbatch.durable import DurableBatcher, DurableQueue, JobNotEnded, ResultsExpired, UnknownJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from microbatch.durable import Job, JobStatus

QUEUES = ("a", "b")
#: The one whose items have their effect in the application's own table: exactly once.
EXACT = "a"
#: Jobs that are open at once, at most, before somebody brings another one.
OPEN_MAX = 8


class Made(NamedTuple):
    """What a job is made of."""

    size: int
    settings: dict[str, Any]
    named: bool
    bad: set[int]


def made(number: int) -> Made:
    """Return what the job of a number is made of: the same in every process, and afterwards."""
    chance = random.Random(number)
    size = chance.choice([0, 1, 30, 150, 400, 900])
    settings: dict[str, Any] = {"priority": chance.choice([0, 0, 1])}
    if chance.random() < 0.3:
        settings["batch_size"] = chance.choice([1, 7, 20])
    if chance.random() < 0.25:
        settings["ordered"] = True
    if chance.random() < 0.2:
        settings["max_failures"] = chance.choice([0, 3])
    if chance.random() < 0.2:
        settings["deadline"] = chance.choice([0.05, 0.3])
    if chance.random() < 0.2:
        settings["delay"] = 0.05
    bad: set[int] = set()
    if chance.random() < 0.3:
        settings["invalid"] = "fail"
        bad = {place for place in range(size) if place % 60 == 13}
    named = chance.random() < 0.6
    if named:
        settings["item_id"] = lambda item: str(item).strip("x")
    return Made(size, settings, named, bad)


def fate(number: int) -> str:
    """Return what the handler makes of an item."""
    return {7: "failed", 8: "skipped"}.get(number * 7_919 % 20, "succeeded")


class Handling:
    """A handler that writes down what it does, and looks whether it should have been called."""

    def __init__(self, folder: Path, log: Log, chance: random.Random, queue: str) -> None:
        self.log = log
        self.chance = chance
        self.queue = queue
        self.pid = os.getpid()
        self.reader = sqlite3.connect(folder / "queue.db")

    async def __call__(self, numbers: list[int]) -> list[Any]:
        log, chance = self.log, self.chance
        for number in numbers:
            log.write("handled", number, self.pid)
            # Settled items have their effect; nobody may ever see one of them again.
            if self.reader.execute("SELECT 1 FROM effects WHERE number = ?", (number,)).fetchone():
                log.write("again", number, self.pid)
        uid = current_batch().job
        if uid is not None:
            self.check(uid, len(numbers))
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))
        outcomes: list[Any] = []
        for number in numbers:
            if chance.random() < 0.01:
                outcomes.append(RuntimeError("once more"))
            elif fate(number) == "failed":
                outcomes.append(ItemError("no", retryable=number % 2 == 0, code="bad"))
            elif fate(number) == "skipped":
                outcomes.append(Skipped("known"))
            else:
                outcomes.append(number * 2)
                continue
            log.write("failed", number, self.pid)
        return outcomes

    def check(self, uid: str, count: int) -> None:
        """Look at a batch's job: it can be seen, has not ended, and has no other batch if it is ordered."""
        execute = self.reader.execute
        self.reader.execute("BEGIN")
        ((job, life, ordered, size),) = execute(
            "SELECT id, life, ordered, batch_size FROM microbatch_jobs WHERE uid = ?", (uid,)
        )
        if life not in LIVING[1:]:
            self.log.write("error", f"handled in life {life}", uid)
        if size is not None and count > size:
            self.log.write("error", f"{count} items of {size}", uid)
        if ordered:
            ((claims,),) = execute(
                "SELECT count(DISTINCT consumer || '.' || claim) FROM microbatch_ranges WHERE job = ? AND state = 2",
                (job,),
            )
            if claims != 1:
                self.log.write("error", f"{claims} batches of an ordered job at once", uid)
        self.reader.execute("COMMIT")


def worker(
    folder: Path, log: Log, chance: random.Random, queue: str, *, tells: bool = False
) -> DurableBatcher[Any, Any]:
    """Make a worker, which tells of jobs' ends most times."""
    pid = os.getpid()
    pause = chance.choice([0, 0, 0.002])  # in the middle of the transaction

    async def on_settle(connection, numbers, results):
        rows = [(number, pid) for number in numbers]
        await connection.executemany("INSERT INTO effects (number, pid) VALUES (?, ?)", rows)
        if pause:
            await asyncio.sleep(pause)

    async def on_job_end(status: JobStatus) -> None:
        ended(log, status)
        if chance.random() < 0.1:
            await asyncio.sleep(0.05)
        log.write("told", status.id)

    return DurableBatcher(
        folder / "queue.db",
        Handling(folder, log, chance, queue),
        item_type=int,
        result_type=int,
        queue=queue,
        max_batch_size=chance.choice([1, 5, 50]),
        max_concurrency=chance.choice([1, 3]),
        poll_interval=chance.choice([0.02, 0.25]),
        retry=RETRY,
        on_settle=on_settle if queue == EXACT else None,
        on_job_end=on_job_end if tells or chance.random() < 0.7 else None,
    )


def ended(log: Log, status: JobStatus) -> None:
    """Write down how a job ended: whenever that is seen, it must be the same."""
    counts = [getattr(status, name) for name in ENDS]
    log.write("ended", status.id, status.outcome, status.ended_at.timestamp(), *counts)


class Busybody:
    """What one process does to jobs, on one queue."""

    def __init__(self, log: Log, chance: random.Random, name: str, queue: DurableQueue, first: int):
        self.log = log
        self.chance = chance
        self.name = name
        self.queue = queue
        self.numbers = iter(range(first, first + 1_000))
        self.shared = first // 10_000 * 10_000 + 9_000 + 100 * QUEUES.index(name)

    async def source(self, number: int, breaks: bool) -> AsyncIterator[Any]:
        """Yield a job's items, slowly now and then; or break off."""
        recipe, chance = made(number), self.chance
        breaks_at = chance.randrange(recipe.size + 1) if breaks else None
        for place in range(recipe.size):
            if place == breaks_at:
                raise OSError("the source broke off")
            if place % 40 == 39 and chance.random() < 0.2:
                await asyncio.sleep(0.01)
            item = number * SIZE_MAX + place
            yield f"x{item}" if place in recipe.bad else item
        if breaks:
            raise OSError("the source broke off")

    async def bring(self) -> None:
        """Bring a job after another, so that a few are always open."""
        chance, log = self.chance, self.log
        while True:
            page = await self.queue.jobs(limit=2 * OPEN_MAX)
            if sum(status.life != "ended" for status in page.jobs) >= OPEN_MAX:
                await asyncio.sleep(0.02)
                continue
            shares = chance.random() < 0.3  # several processes bring the same: it is stored once
            number = self.shared + chance.randrange(20) if shares else next(self.numbers)
            breaks = not shares and chance.random() < 0.2
            log.write("broken" if breaks else "bringing", number)
            coming = self.queue.enqueue_job(
                self.source(number, breaks), key=str(number), **made(number).settings
            )
            try:
                if chance.random() < 0.1:
                    async with asyncio.timeout(0.01):
                        job = await coming
                else:
                    job = await coming
            except (OSError, TimeoutError):
                continue
            log.write("brought", number, job.id)
            if breaks:
                log.write("error", "a broken source made a job", number)

    async def meddle(self) -> None:
        """Do something to some job again and again."""
        while True:
            await asyncio.sleep(self.chance.choice([0, 0.002, 0.01]))
            page = await self.queue.jobs(limit=20)
            if not page.jobs:
                continue
            status = self.chance.choice(page.jobs)
            with contextlib.suppress(UnknownJob, ResultsExpired):  # somebody has deleted it
                await self.act(self.queue.job(status.id), status)

    async def act(self, job: Job[Any], status: JobStatus) -> None:
        chance, log = self.chance, self.log
        way = chance.random()
        if way < 0.06:
            log.write("cancelling", job.id)
            await job.cancel()
        elif way < 0.14:
            await job.pause()
            await asyncio.sleep(0.02)
        elif way < 0.34:
            await job.resume()
        elif way < 0.6:
            with contextlib.suppress(JobNotEnded):
                only = int(job.id[-1], 16) % 2 == 0
                again = await job.retry_failed(only, f"again {job.id}")  # once, whoever comes
                log.write("retried", job.id, again.id, only)
        elif way < 0.63 and status.retry_of is None:
            log.write("deleting", job.id)
            with contextlib.suppress(JobNotEnded):
                await self.queue.delete_job(job.id)
        elif way < 0.7:
            outcomes = [outcome async for outcome in job.outcomes()]
            indices = [outcome.index for outcome in outcomes]
            if indices != sorted(set(indices)):
                log.write("error", "outcomes out of order", job.id)
        elif way < 0.75:
            letters = await self.queue.dead_letters()
            numbers = [letter.id for letter in letters]
            if await self.queue.requeue(numbers) or await self.queue.purge(numbers):
                log.write("error", "a job's dead letters went", *numbers)
        elif way < 0.8:
            with contextlib.suppress(TimeoutError):
                ended(log, await job.wait(0.05))
        else:
            await self.watch(job)

    async def watch(self, job: Job[Any]) -> None:
        """Follow a job for a while: nothing may go back, and it adds up at every look."""
        last: JobStatus | None = None
        async with contextlib.aclosing(job.progress(0)) as looks:
            async for status in looks:
                if status.total != status.done + status.pending or status.pending < 0:
                    self.log.write("error", "it does not add up", status)
                if last is not None and any(
                    getattr(status, name) < getattr(last, name) for name in ENDS
                ):
                    self.log.write("error", "it went back", status, last)
                if status.life == "ended":
                    ended(self.log, status)
                if self.chance.random() < 0.2:
                    return
                last = status

    async def look(self, path: Path) -> None:
        """Count the items of all jobs, again and again."""
        connection = sqlite3.connect(path)
        while True:
            await asyncio.sleep(0.03)
            for fault in check_open(connection):
                self.log.write("error", fault)


async def work(folder: Path, first: int, seed: int, round_: int) -> None:
    """Bring, handle and meddle until killed, or asked to end."""
    first = round_ * 10_000 + first % 10_000_000 // 1_000_000 * 2_000
    log = Log(folder)
    chance = random.Random(seed)
    asked = asyncio.Event()
    if chance.random() < 0.5:  # else SIGTERM kills
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with AsyncExitStack() as stack:
        tasks = []
        for place, name in enumerate(chance.sample(QUEUES, chance.randint(1, 2))):
            if chance.random() < 0.75:
                queue = worker(folder, log, chance, name)
            else:
                queue = DurableQueue(
                    folder / "queue.db", item_type=int, result_type=int, queue=name
                )
            await stack.enter_async_context(queue)
            one = Busybody(log, chance, name, queue, first + place * 1_000)
            tasks += [
                asyncio.create_task(way)
                for way in (
                    one.bring(),
                    one.bring(),
                    one.meddle(),
                    one.meddle(),
                    one.look(folder / "queue.db"),
                )
            ]
        await until_asked(tasks, asked)


async def finish(folder: Path) -> None:
    """See what the dead have left go, handle what is left, and write down what remains."""
    log = Log(folder)
    path = folder / "queue.db"
    reader = sqlite3.connect(path)

    def count(condition: str) -> int:
        ((found,),) = reader.execute(f"SELECT count(*) FROM {condition}")
        return int(found)

    began = time.monotonic()
    async with AsyncExitStack() as stack:
        for name in QUEUES:
            await stack.enter_async_context(DurableQueue(path, item_type=int, queue=name))
        while count("microbatch_jobs WHERE life IN (0, 5)") and time.monotonic() < began + STAYING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        log.write("leftovers", time.monotonic() - began)
    deadline = time.monotonic() + 90
    async with AsyncExitStack() as stack:
        for name in QUEUES:
            one = worker(folder, log, random.Random(0), name, tells=True)
            await stack.enter_async_context(one)
            for status in (await one.jobs(limit=10_000)).jobs:
                await one.job(status.id).resume()
        busy = "microbatch_jobs WHERE life <> 4 OR tell_at IS NOT NULL OR chore IS NOT NULL"
        while time.monotonic() < deadline:
            if not count(busy) and count("microbatch_consumers") <= len(QUEUES):
                break
            await asyncio.sleep(0.01)
        log.write("end", count(busy), 0)
    for name in QUEUES:
        async with DurableQueue(path, item_type=int, result_type=int, queue=name) as queue:
            for status in (await queue.jobs(limit=10_000)).jobs:
                await check_outcomes(log, queue.job(status.id), status)


async def check_outcomes(log: Log, job: Job[Any], status: JobStatus) -> None:
    """Read all that a job came to: as many as it counts, each with its own result."""
    found = [outcome async for outcome in job.outcomes()]
    kinds = [outcome.kind for outcome in found]
    if [kinds.count(name) for name in ENDS] != [getattr(status, name) for name in ENDS]:
        log.write("error", "its outcomes are not what it counts", status)
    if [outcome.index for outcome in found] != list(range(status.total)):
        log.write("error", "its outcomes are not one for each place", status)
    named = found and not isinstance(found[0].id, int)
    for outcome in found:
        if named:
            number = int(str(outcome.id))
        elif status.retry_of is None:
            number = int(status.key or "") * SIZE_MAX + outcome.index
        else:
            continue
        if outcome.ok and outcome.value != 2 * number:
            log.write("error", "the result of another", outcome)


class JobEpisode(Episode):
    """Ten rounds on one file, with jobs."""

    work = staticmethod(work)
    finish = staticmethod(finish)

    def missing(self) -> int:
        """How many jobs that were acknowledged the file does not know."""
        acknowledged, gone = set(), set()
        for kind, *rest in self.lines():
            if kind in ("brought", "retried"):
                acknowledged.add(rest[1])
            elif kind == "deleting":
                gone.add(rest[0])
        if not acknowledged:
            return 0
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            there = {uid for (uid,) in connection.execute("SELECT uid FROM microbatch_jobs")}
            for fault in check_open(connection):
                self.log.write("error", fault)
        return len(acknowledged - gone - there)

    def count(self) -> None:
        """Check what became of everything."""
        check_jobs(self.path)
        story = JobStory(self.killed, self.counts, made)
        for kind, *rest in self.lines():
            getattr(story, kind)(*rest)
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            for fault in check_open(connection):
                story.error(fault)
            (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
            self.counts["damaged"] += integrity != "ok"
            Reckoning(connection, story, self.counts, made, fate).do()


MUST_BE_NONE = (
    "missing_after_a_round",
    "lost",
    "stuck",
    "left_over",
    "damaged",
    "leftovers_stay",
    "begun_out_of_order",
    "jobs_in_parts",
    "keys_with_two_jobs",
    "ended_differently",
    "untold",
    "cancelled_by_nobody",
    "expired_without_deadline",
    "wrong_ends",
    "wrong_copies",
    "ended_unseen",
    "done_more_than_once",
    "settled_and_handled_again",
    "effects_more_than_once",
    "handed_over_by_the_living",
    "errors",
)


if __name__ == "__main__":
    found = run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), JobEpisode, MUST_BE_NONE)
    print(json.dumps(found))
