"""Kills real processes at random points of enqueue, claim, handling and settle, and counts what became of all.

Run by test_crash.py, or by hand for longer: ``python tests/durable/crash.py FOLDER ROUNDS SEED``. It prints one line
of JSON. Every round forks one to three processes that work on one file at full speed and kills some of them
after a random time; the survivors are killed in a later round or finish in the end. The parent has
no thread and opens no queue, so forking is safe and a round costs no start of an interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter, defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path

from microbatch import Backoff, Retry, current_batch
from microbatch.durable import DurableBatcher

PRODUCERS = 4
#: Nobody dies of being killed too often here: that is another test.
RETRY = Retry(on=RuntimeError, attempts=1_000_000, backoff=Backoff(initial=0.01, maximum=0.02))


class Log:
    """Lines that survive the death of their process: one write each, appended."""

    def __init__(self, folder: Path) -> None:
        self.descriptor = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *parts: object) -> None:
        os.write(self.descriptor, (" ".join(map(str, parts)) + "\n").encode())


def make_batcher(folder: Path, log: Log, chance: random.Random) -> DurableBatcher[int, int]:
    path = folder / "queue.db"
    pid = os.getpid()
    reader = sqlite3.connect(path)

    async def handler(numbers: list[int]) -> list[int | Exception]:
        for number in numbers:
            log.write("handled", number, pid)
            # Settled items have their effect; nobody may ever see one of them again.
            if reader.execute("SELECT 1 FROM effects WHERE number = ?", (number,)).fetchone():
                log.write("again", number, pid)
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.005]))
        info = current_batch()
        assert info is not None
        return [
            RuntimeError("once more") if chance.random() < 0.02 else number * 2
            for number in numbers
        ]

    async def on_settle(connection, numbers, results):
        assert results == [number * 2 for number in numbers]
        rows = [(number, pid) for number in numbers]
        await connection.executemany("INSERT INTO effects (number, pid) VALUES (?, ?)", rows)

    return DurableBatcher(
        path,
        handler,
        item_type=int,
        result_type=int,
        max_batch_size=chance.choice([1, 5, 50]),
        max_concurrency=chance.choice([1, 3]),
        retry=RETRY,
        on_settle=on_settle if chance.random() < 0.8 else plain_settle(log, pid, on_settle),
    )


def plain_settle(log: Log, pid: int, on_settle):
    """The same with a pause in the middle of the transaction, so that kills hit it often."""

    async def slow(connection, numbers, results):
        await on_settle(connection, numbers, results)
        await asyncio.sleep(0.002)

    return slow


async def work(folder: Path, first: int, seed: int) -> None:
    """Produce and handle until killed."""
    log = Log(folder)
    chance = random.Random(seed)
    numbers = iter(range(first, first + 1_000_000))

    async with make_batcher(folder, log, chance) as batcher:

        async def produce() -> None:
            application = sqlite3.connect(folder / "queue.db", isolation_level=None, timeout=10)
            application.execute("PRAGMA synchronous = FULL")
            while True:
                number = next(numbers)
                way = chance.random()
                if way < 0.4:
                    await batcher.enqueue(number, priority=chance.choice([0, 0, 1]))
                    log.write("stored", number)
                elif way < 0.6:
                    result = await batcher.submit(number, key=str(number))
                    log.write("stored", number)
                    log.write("result", number, result)
                elif way < 0.75:
                    more = [number, *(next(numbers) for _ in range(5))]
                    await batcher.enqueue_many(more, delay=chance.choice([0, 0.01]))
                    for one in more:
                        log.write("stored", one)
                elif way < 0.8:
                    application.execute("BEGIN IMMEDIATE")
                    application.execute("INSERT INTO orders (number) VALUES (?)", (number,))
                    batcher.enqueue_in(application, number)
                    application.execute(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
                else:
                    await asyncio.sleep(0.002)

        await asyncio.gather(*(produce() for _ in range(PRODUCERS)))


async def finish(folder: Path) -> dict[str, int]:
    """Handle what is left, and return the counts."""
    log = Log(folder)
    async with make_batcher(folder, log, random.Random(0)) as batcher:
        deadline = time.monotonic() + 60
        while True:
            stats = await batcher.stats()
            if not stats.depth or time.monotonic() > deadline:
                return {"stuck": stats.depth, "dead": stats.dead, "done": stats.done}
            await asyncio.sleep(0.02)


def fork(folder: Path, function) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        asyncio.run(function())
        status = 0
    except BaseException:
        Log(folder).write("error", traceback.format_exc().replace("\n", " | "))
    finally:
        os._exit(status)


def run(folder: Path, rounds: int, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    application = sqlite3.connect(folder / "queue.db")
    application.execute("PRAGMA journal_mode = WAL")
    application.executescript(
        "CREATE TABLE effects (number INTEGER, pid INTEGER); CREATE TABLE orders (number INTEGER);"
    )
    application.close()
    living: list[int] = []
    killed: set[int] = set()
    for number in range(rounds):
        for _ in range(chance.choice([1, 1, 2]) if len(living) < 3 else 0):
            first = (number * 10 + len(living)) * 1_000_000
            living.append(fork(folder, partial(work, folder, first, chance.randrange(1 << 30))))
        time.sleep(chance.choice([0.05, 0.1, 0.2, 0.4]) * (0.5 + chance.random()))
        for pid in chance.sample(living, chance.randint(1, len(living))):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            living.remove(pid)
            killed.add(pid)
    for pid in living:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        killed.add(pid)
    end = asyncio.run(finish(folder))
    return count(folder, killed) | end | {"rounds": rounds, "kills": len(killed)}


def count(folder: Path, killed: set[int]) -> dict[str, int]:
    connection = sqlite3.connect(folder / "queue.db")
    effects = Counter(number for (number,) in connection.execute("SELECT number FROM effects"))
    orders = {number for (number,) in connection.execute("SELECT number FROM orders")}
    stored: set[int] = set()
    handled: dict[int, list[int]] = defaultdict(list)
    wrong = again = errors = 0
    for line in (folder / "log").read_text().splitlines():
        kind, *rest = line.split(" ", 2)
        if kind == "stored":
            stored.add(int(rest[0]))
        elif kind == "handled":
            handled[int(rest[0])].append(int(rest[1]))
        elif kind == "result":
            wrong += int(rest[1]) != 2 * int(rest[0])
        elif kind == "again":
            again += 1
        elif kind == "error":
            errors += 1
            print(line, file=sys.stderr)
    return {
        "acknowledged": len(stored),
        "handled": len(handled),
        "handled_more_than_once": sum(len(pids) > 1 for pids in handled.values()),
        # Twice in different processes is right only if all but the last of them were killed.
        "handed_over_by_the_living": sum(
            any(a != b and a not in killed for a, b in pairwise(pids)) for pids in handled.values()
        ),
        "lost": len(stored - set(effects)) + len(orders - set(effects)),
        "effects_more_than_once": sum(times > 1 for times in effects.values()),
        "settled_and_handled_again": again,
        "wrong_results": wrong,
        "errors": errors,
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
