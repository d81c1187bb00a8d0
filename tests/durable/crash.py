"""Kills real processes at random points of enqueue, claim, handling and settle, and counts what became of all.

Run by test_crash.py, or by hand for longer: ``python tests/durable/crash.py FOLDER ROUNDS SEED``. It prints one
line of JSON. Ten rounds make an episode with a file of its own, in which three queues stand. In a round one to
three processes work on it at full speed, each on some of the queues, as producers, workers or both. Some are
stopped for a while, some asked to end, and some killed; the survivors go on in the next round. After each
round the file must know every item that was acknowledged, and its counts must be right. After each episode
new processes handle what is left. The parent has no thread and opens no queue, so forking is safe and a
round costs no start of an interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import aiosqlite
from durable_support import check_counts, states

import microbatch.durable._file.job_steps
import microbatch.durable._flow.job_intake
import microbatch.durable._flow.many
import microbatch.durable._life.neighbours
from microbatch import Backoff, Retry
from microbatch.durable import DurableBatcher, DurableQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

QUEUES = ("a", "b", "c")
#: The one whose items have their effect in the application's own table: exactly once.
EXACT = "a"
PRODUCERS = 4
EPISODE = 10
RETRY = Retry(on=RuntimeError, attempts=1_000_000, backoff=Backoff(initial=0.01, maximum=0.02))


def small_steps() -> None:
    """Make many transactions of what is one otherwise, and many looks at who lives: in this process, for good."""
    # Groups of a hundred items are staged in parts, jobs come in and end in many.
    microbatch.durable._flow.many.HANDED_ITEMS = 50
    microbatch.durable._flow.job_intake.CHUNK_ITEMS = 40
    microbatch.durable._file.job_steps.STEP = 4
    microbatch.durable._life.neighbours.ALIVE_INTERVAL = 0.03


class Log:
    """Lines that survive the death of their process: one write each, appended."""

    def __init__(self, folder: Path) -> None:
        self.descriptor = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *parts: object) -> None:
        os.write(self.descriptor, (" ".join(map(str, parts)) + "\n").encode())


def worker(folder: Path, log: Log, chance: random.Random, queue: str) -> DurableBatcher[int, int]:
    """Make a worker that writes down what it does."""
    pid = os.getpid()
    reader = sqlite3.connect(folder / "queue.db")

    async def handler(numbers: list[int]) -> list[int | Exception]:
        for number in numbers:
            log.write("handled", number, pid)
            # Settled items have their effect; nobody may ever see one of them again.
            if reader.execute("SELECT 1 FROM effects WHERE number = ?", (number,)).fetchone():
                log.write("again", number, pid)
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))
        outcomes: list[int | Exception] = []
        for number in numbers:
            if chance.random() < 0.02:
                log.write("failed", number, pid)
                outcomes.append(RuntimeError("once more"))
            else:
                outcomes.append(number * 2)
        return outcomes

    pause = chance.choice(
        [0, 0, 0.002]
    )  # in the middle of the transaction, so that kills hit it often

    async def on_settle(connection, numbers, results):
        assert results == [number * 2 for number in numbers]
        rows = [(number, pid) for number in numbers]
        await connection.executemany("INSERT INTO effects (number, pid) VALUES (?, ?)", rows)
        if pause:
            await asyncio.sleep(pause)

    return DurableBatcher(
        folder / "queue.db",
        handler,
        item_type=int,
        result_type=int,
        queue=queue,
        max_batch_size=chance.choice([1, 5, 50]),
        max_wait=chance.choice([0, 0, 0.01]),
        max_concurrency=chance.choice([1, 3]),
        retry=RETRY,
        on_settle=on_settle if queue == EXACT else None,
    )


class Producer:
    """What one process brings, by all ways that there are."""

    def __init__(self, folder: Path, log: Log, chance: random.Random, first: int, round_: int):
        self.path = folder / "queue.db"
        self.log = log
        self.chance = chance
        self.numbers = iter(range(first, first + 1_000_000))
        self.round = round_

    def stored(self, queue: str, number: int, ticket: int) -> None:
        self.log.write("stored", number, ticket, queue)

    async def produce(self, name: str, queue: DurableQueue) -> None:
        chance, log = self.chance, self.log
        async with aiosqlite.connect(self.path, isolation_level=None, timeout=30) as application:
            await application.execute("PRAGMA synchronous = FULL")
            while True:
                number = next(self.numbers)
                way = chance.random()
                if way < 0.3:
                    ticket = await queue.enqueue(number, priority=chance.choice([0, 0, 1]))
                    self.stored(name, number, ticket.id)
                elif way < 0.4:
                    log.write("result", number, await queue.submit(number))
                elif way < 0.55:
                    # Several processes bring the same: it is stored once.
                    number = 900_000_000 + self.round * 10_000 + chance.randrange(200)
                    number += 1_000 * QUEUES.index(name)
                    ticket = await queue.enqueue(number, key=str(number))
                    log.write("keyed", f"{name}{number}", ticket.id)
                    if chance.random() < 0.3:
                        log.write("result", number, await queue.result(ticket))
                elif way < 0.7:
                    more = [number, *(next(self.numbers) for _ in range(chance.choice([5, 120])))]
                    log.write("group", *more)
                    tickets = await queue.enqueue_many(more, delay=chance.choice([0, 0.01]))
                    for one, ticket in zip(more, tickets, strict=True):
                        self.stored(name, one, ticket.id)
                elif way < 0.75:
                    await application.execute("BEGIN IMMEDIATE")
                    await application.execute("INSERT INTO orders (number) VALUES (?)", (number,))
                    await queue.enqueue_in(application, number)
                    await application.execute(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
                elif way < 0.8:
                    ticket = await queue.enqueue(number, delay=0.02)
                    self.stored(name, number, ticket.id)
                    log.write("cancelling", number)
                    if await queue.cancel(ticket):
                        log.write("cancelled", number)
                else:
                    await asyncio.sleep(0.002)


async def until_asked(tasks: list[asyncio.Task[None]], asked: asyncio.Event) -> None:
    """Let tasks that never end by themselves run until the process is asked to end, or one of them fails."""
    ending = asyncio.create_task(asked.wait())
    await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()  # it never ends but by an error
        task.cancel()
    await asyncio.wait(tasks)


async def work(folder: Path, first: int, seed: int, round_: int) -> None:
    """Produce and handle until killed, or asked to end."""
    log = Log(folder)
    chance = random.Random(seed)
    asked = asyncio.Event()
    if chance.random() < 0.5:  # else SIGTERM kills
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    producer = Producer(folder, log, chance, first, round_)
    async with AsyncExitStack() as stack:
        queues: dict[str, DurableQueue] = {}
        for name in chance.sample(QUEUES, chance.randint(1, 3)):
            if chance.random() < 0.8:
                queue = worker(folder, log, chance, name)
            else:
                queue = DurableQueue(
                    folder / "queue.db", item_type=int, result_type=int, queue=name
                )
            queues[name] = await stack.enter_async_context(queue)
        tasks = [
            asyncio.create_task(producer.produce(name, queue))
            for name, queue in queues.items()
            for _ in range(PRODUCERS)
        ]
        await until_asked(tasks, asked)


async def finish(folder: Path) -> None:
    """Handle what is left, dead letters too, and write down what remains."""
    log = Log(folder)
    stuck = dead = 0
    async with AsyncExitStack() as stack:
        for name in QUEUES:
            one = worker(folder, log, random.Random(0), name)
            await stack.enter_async_context(one)
            deadline = time.monotonic() + 60
            while True:
                stats = await one.stats()
                letters = await one.dead_letters()
                for letter in letters:
                    # Whoever was alone with a process twice when that was killed.
                    if letter.error.kind != "ProcessDied":
                        log.write("error", letter)
                    dead += await one.requeue([letter.id])
                if not stats.depth and not letters:
                    break
                if time.monotonic() > deadline:
                    stuck += stats.depth
                    break
                await asyncio.sleep(0.01)
        reader = sqlite3.connect(folder / "queue.db")
        while time.monotonic() < deadline:  # until everybody who died is forgotten
            ((consumers,),) = reader.execute("SELECT count(*) FROM microbatch_consumers")
            if consumers <= len(QUEUES):
                break
            await asyncio.sleep(0.01)
    log.write("end", stuck, dead)


def fork(folder: Path, function) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        small_steps()
        asyncio.run(function())
        status = 0
    except BaseException:
        Log(folder).write("error", traceback.format_exc().replace("\n", " | "))
    finally:
        os._exit(status)


class Episode:
    """Ten rounds on one file."""

    work = staticmethod(work)
    finish = staticmethod(finish)

    def __init__(self, folder: Path, chance: random.Random) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = folder / "queue.db"
        self.log = Log(folder)
        self.chance = chance
        self.living: list[int] = []
        self.killed: set[int] = set()
        self.stops = self.asked = 0
        self.counts: Counter[str] = Counter()
        with contextlib.closing(sqlite3.connect(self.path)) as application:
            application.execute("PRAGMA journal_mode = WAL")
            application.executescript(
                "CREATE TABLE effects (number INTEGER, pid INTEGER); CREATE TABLE orders (number INTEGER);"
            )

    def run(self, rounds: int) -> Counter[str]:
        for number in range(rounds):
            self.round(number)
            self.counts["missing_after_a_round"] += self.missing()
        for pid in list(self.living):
            self.end(pid, signal.SIGKILL)
        pid = fork(self.folder, partial(self.finish, self.folder))
        os.waitpid(pid, 0)
        self.count()
        return self.counts

    def round(self, number: int) -> None:
        chance = self.chance
        for _ in range(chance.choice([1, 2, 2]) if len(self.living) < 3 else 0):
            first = (number * 10 + len(self.living)) * 1_000_000
            function = partial(self.work, self.folder, first, chance.randrange(1 << 30), number)
            self.living.append(fork(self.folder, function))
        self.sleep()
        if chance.random() < 0.5:
            pid = chance.choice(self.living)
            self.counts["stops"] += 1
            os.kill(pid, signal.SIGSTOP)
            self.sleep()
            if chance.random() < 0.7:
                os.kill(pid, signal.SIGCONT)
                self.sleep()
            else:
                self.end(pid, signal.SIGKILL)
        for pid in chance.sample(self.living, chance.randint(0, (len(self.living) + 1) // 2)):
            self.end(pid, chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))

    def sleep(self) -> None:
        time.sleep(self.chance.choice([0.05, 0.2, 0.4]) * (0.5 + self.chance.random()))

    def end(self, pid: int, number: int) -> None:
        self.log.write("ending", pid)
        os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
        self.living.remove(pid)
        if os.WIFSIGNALED(status):
            self.killed.add(pid)
            self.counts["kills"] += 1
        else:
            self.counts["ended_when_asked"] += 1

    def lines(self):
        log = self.folder / "log"
        for line in log.read_text().splitlines() if log.exists() else ():
            yield line.split(" ")

    def missing(self) -> int:
        """How many acknowledged items the file does not know."""
        acknowledged = {int(rest[1]) for kind, *rest in self.lines() if kind in ("stored", "keyed")}
        if not acknowledged:
            return 0
        check_counts(self.path)
        return len(acknowledged - set(states(self.path)))

    def count(self) -> None:
        """Check what became of everything."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            effects = Counter(n for (n,) in connection.execute("SELECT number FROM effects"))
            orders = {n for (n,) in connection.execute("SELECT number FROM orders")}
            (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
            ((consumers,),) = connection.execute("SELECT count(*) FROM microbatch_consumers")
        check_counts(self.path)
        found = states(self.path)
        story, counts = Story(self.killed, self.counts), self.counts
        for kind, *rest in self.lines():
            getattr(story, kind)(*rest)
        unheard = story.may_be_cancelled - story.is_cancelled
        for number, (ticket, queue) in story.acknowledged.items():
            counts["acknowledged"] += 1
            if found.get(ticket) == "cancelled" and number in unheard:
                story.cancelled(str(number))  # whoever asked for that died before he heard of it
            cancelled = number in story.is_cancelled
            counts["lost"] += found.get(ticket) != ("cancelled" if cancelled else "done")
            counts["lost"] += queue == EXACT and (number in effects) == cancelled
        counts["lost"] += len(orders - story.seen)
        for tickets in story.keys.values():
            counts["keyed"] += 1
            counts["keys_with_two_items"] += len(tickets) > 1
            counts["lost"] += any(found.get(ticket) != "done" for ticket in tickets)
        counts["groups_in_parts"] += sum(
            len(story.seen.intersection(group)) not in (0, len(group)) for group in story.groups
        )
        counts["effects_more_than_once"] += sum(times > 1 for times in effects.values())
        ended = ("done", "cancelled")
        counts["left_over"] += consumers + sum(state not in ended for state in found.values())
        counts["damaged"] += integrity != "ok"


class Story:
    """What the log tells: a method for each kind of line."""

    def __init__(self, killed: set[int], counts: Counter[str]) -> None:
        self.killed = killed
        self.counts = counts
        self.gone: set[str] = set()
        self.had: dict[int, str] = {}  # who handled it last, if that has not failed
        self.seen: set[int] = set()
        self.acknowledged: dict[int, tuple[int, str]] = {}
        self.keys: dict[str, set[int]] = defaultdict(set)
        self.may_be_cancelled: set[int] = set()
        self.is_cancelled: set[int] = set()
        self.groups: list[list[int]] = []

    def handled(self, number: str, pid: str) -> None:
        before = self.had.get(int(number))
        if before is not None:
            self.counts["handled_more_than_once"] += 1
            # Right only if who had it had been killed by then.
            self.counts["handed_over_by_the_living"] += before not in self.gone
        self.counts["cancelled_and_handled"] += int(number) in self.is_cancelled
        self.had[int(number)] = pid
        self.seen.add(int(number))

    def ending(self, pid: str) -> None:
        if int(pid) in self.killed:
            self.gone.add(pid)

    def failed(self, number: str, _: str) -> None:
        del self.had[int(number)]

    def stored(self, number: str, ticket: str, queue: str) -> None:
        self.acknowledged[int(number)] = int(ticket), queue

    def keyed(self, key: str, ticket: str) -> None:
        self.keys[key].add(int(ticket))

    def group(self, *numbers: str) -> None:
        self.groups.append(list(map(int, numbers)))

    def cancelling(self, number: str) -> None:
        self.may_be_cancelled.add(int(number))

    def cancelled(self, number: str) -> None:
        self.is_cancelled.add(int(number))
        # Right only if nobody had it: it may have failed before, or who had it been killed.
        holder = self.had.get(int(number))
        self.counts["cancelled_and_handled"] += holder is not None and holder not in self.gone

    def result(self, number: str, result: str) -> None:
        self.counts["wrong_results"] += int(result) != 2 * int(number)

    def again(self, *_: str) -> None:
        self.counts["settled_and_handled_again"] += 1

    def error(self, *words: str) -> None:
        self.counts["errors"] += 1
        print(*words, file=sys.stderr)

    def end(self, stuck: str, dead: str) -> None:
        self.counts["stuck"] += int(stuck)
        self.counts["dead_letters"] += int(dead)


MUST_BE_NONE = (
    "missing_after_a_round",
    "lost",
    "stuck",
    "left_over",
    "damaged",
    "settled_and_handled_again",
    "effects_more_than_once",
    "keys_with_two_items",
    "groups_in_parts",
    "cancelled_and_handled",
    "handed_over_by_the_living",
    "wrong_results",
    "errors",
)


def run(
    folder: Path,
    rounds: int,
    seed: int,
    kind: type[Episode] = Episode,
    must_be_none: Sequence[str] = MUST_BE_NONE,
) -> dict[str, int]:
    total: Counter[str] = Counter()
    for number in range(0, rounds, EPISODE):
        episode = kind(folder / str(number), random.Random(f"{seed} {number}"))
        counts = episode.run(min(EPISODE, rounds - number))
        total.update(counts)
        bad = {name: count for name, count in counts.items() if name in must_be_none and count}
        print(number, bad or "good", dict(counts), file=sys.stderr, flush=True)
        if not bad:
            shutil.rmtree(episode.folder)
    return {"rounds": rounds} | {name: total[name] for name in must_be_none} | total


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
