"""Streams and files: `map_batches` beside a loop by hand, the readers beside the plain libraries.

    python benchmarks/bench_streams.py [--tiny] [--rounds N] [--out FOLDER]

The loop by hand has the same batches, the same number of calls in flight and the same order; it
looks at each result, and does nothing else: no outcome objects, no exceptions for items, no
progress, no clean end. Both run interleaved, in an order that rotates; the figures are medians of
each round's ratio, of wall time, since that is what a job takes, and for handlers that do nothing
of CPU time.
"""

from __future__ import annotations

import asyncio
import csv
import gc
import json
import sqlite3
import tempfile
import time
from collections import deque
from itertools import islice
from pathlib import Path

import anyio
import measure
import msgspec

from microbatch.files import read_rows, write_rows
from microbatch.streaming import map_batches

SIZE = 1_000
CREATE = (
    "CREATE TABLE IF NOT EXISTS user (id INTEGER PRIMARY KEY, name TEXT, email TEXT, age INTEGER)"
)


class User(msgspec.Struct):
    id: int
    name: str
    email: str
    age: int


def rows(count):
    return ((n, f"User {n}", f"user{n}@example.org", n % 90) for n in range(count))


# Streams


async def by_hand(source, handler, concurrency):
    """What one writes without a library: a window of tasks over batches."""
    iterator = iter(source)
    running = deque()
    succeeded = 0
    while True:
        while len(running) < concurrency and (batch := list(islice(iterator, SIZE))):
            running.append(asyncio.create_task(handler(batch)))
        if not running:
            return succeeded
        for result in await running.popleft():
            if not isinstance(result, Exception):
                succeeded += 1


async def by_stream(source, handler, concurrency):
    succeeded = 0
    async with map_batches(
        source, handler, max_batch_size=SIZE, max_concurrency=concurrency
    ) as outcomes:
        async for outcome in outcomes:
            if outcome.ok:
                succeeded += 1
    return succeeded


async def nothing(items):
    return items


async def network(items):
    """Stand for a bulk call over a network: 10 ms, whatever is sent."""
    await asyncio.sleep(0.01)
    return items


class Database:
    """Bulk inserts, each batch a transaction, in a thread."""

    def __init__(self, folder):
        self.connection = sqlite3.connect(folder / "stream.sqlite", check_same_thread=False)
        self.connection.executescript(f"PRAGMA journal_mode = WAL; {CREATE}; DELETE FROM user;")

    def insert(self, items):
        with self.connection:
            self.connection.executemany("INSERT INTO user VALUES (?, ?, ?, ?)", items)
        return [None] * len(items)

    async def insert_in_thread(self, items):
        return await asyncio.to_thread(self.insert, items)


def timed(main, *arguments):
    """Run in a fresh event loop; return CPU and wall seconds, and what came of it."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    result = (
        asyncio.run(main(*arguments)) if asyncio.iscoroutinefunction(main) else main(*arguments)
    )
    return time.process_time() - cpu, time.perf_counter() - wall, result


def streams(count, rounds, folder):
    """Return each job's ratio of the stream to the loop by hand."""
    jobs = {
        "insert into SQLite": ("insert", 1, "wall"),
        "10 ms a call, four at a time": (network, 4, "wall"),
        "nothing (what is left is the stream)": (nothing, 4, "cpu"),
    }
    table = {}
    for name, (handler, concurrency, clock) in jobs.items():
        ratios, ours_ns, hand_ns = [], [], []
        for turn in range(rounds):
            taken = {}
            for contender in ("hand", "stream")[:: 1 if turn % 2 else -1]:
                used = handler
                if handler == "insert":
                    database = Database(folder)
                    used = database.insert if contender == "stream" else database.insert_in_thread
                main = by_stream if contender == "stream" else by_hand
                cpu, wall, done = timed(main, rows(count), used, concurrency)
                assert done == count, (name, contender, done)
                taken[contender] = cpu if clock == "cpu" else wall
                if handler == "insert":
                    database.connection.close()
            ratios.append(taken["stream"] / taken["hand"])
            ours_ns.append(taken["stream"] / count * 1e9)
            hand_ns.append(taken["hand"] / count * 1e9)
        table[name] = {
            "clock": clock,
            "ratio": measure.spread(ratios),
            "stream_ns": measure.spread(ours_ns),
            "hand_ns": measure.spread(hand_ns),
        }
    return table


# Files


async def by_read_rows(path, type_):
    return sum([outcome.ok async for outcome in read_rows(path, type_)])


def by_dict_reader(path, type_):
    with path.open(newline="", encoding="utf-8") as file:
        if type_ is None:
            return sum(1 for _ in csv.DictReader(file))
        return sum(1 for r in csv.DictReader(file) if msgspec.convert(r, type_, strict=False))


def by_json_lines(path, type_):
    with path.open("rb") as file:
        if type_ is None:
            return sum(1 for line in file if json.loads(line))
        return sum(1 for line in file if msgspec.json.decode(line, type=type_))


def by_json_load(path, type_):
    if type_ is None:
        with path.open("rb") as file:
            return len(json.load(file))
    return len(msgspec.json.decode(path.read_bytes(), type=list[type_]))


async def by_async_lines(path, _):
    """Off the loop too, but a hop to a thread for each line."""
    found = 0
    async with await anyio.open_file(path, "rb") as file:
        async for line in file:
            json.loads(line)
            found += 1
    return found


def files(count, rounds, folder):
    """Return each reader's time for a row beside the plain library's."""
    plain = {"csv": by_dict_reader, "ndjson": by_json_lines, "json": by_json_load}
    table = {}
    for suffix, library in plain.items():
        path = folder / f"users.{suffix}"
        asyncio.run(write_rows(path, (User(*row) for row in rows(count))))
        for type_ in (None, User):
            mine, its = [], []
            for turn in range(rounds):
                for main in (by_read_rows, library)[:: 1 if turn % 2 else -1]:
                    _, wall, done = timed(main, path, type_)
                    assert done == count, (suffix, main, done)
                    (mine if main is by_read_rows else its).append(wall / count * 1e9)
            table[f"{suffix}, {'typed' if type_ else 'plain'}"] = {
                "read_rows_ns": measure.spread(mine),
                "library_ns": measure.spread(its),
                "ratio": measure.spread([a / b for a, b in zip(mine, its, strict=True)]),
            }
    few = folder / "few.ndjson"
    asyncio.run(write_rows(few, (User(*row) for row in rows(count // 20))))
    _, wall, done = timed(by_async_lines, few, None)
    table["ndjson, a thread hop for each line"] = {
        "library_ns": measure.spread([wall / done * 1e9])
    }
    return table


def main():
    chosen = measure.options(__doc__.partition("\n")[0])
    count = 3_000 if chosen.tiny else 200_000
    rounds = chosen.rounds or (2 if chosen.tiny else 9)
    with tempfile.TemporaryDirectory() as name:
        result = {
            "about": measure.about(),
            "items": count,
            "batch": SIZE,
            "streams": streams(count, rounds, Path(name)),
            "files": files(count, rounds, Path(name)),
        }
    (chosen.out / "bench_streams.json").write_text(json.dumps(result, indent=1) + "\n")
    measure.say(f"{count:,} items, batches of {SIZE}; medians of {rounds} rounds\n")
    measure.say("| handler | loop by hand | map_batches | ratio |")
    measure.say("|---|---|---|---|")
    for job, cell in result["streams"].items():
        hand, ours, ratio = (cell[key]["median"] for key in ("hand_ns", "stream_ns", "ratio"))
        spread = f"{cell['ratio']['low']:.2f} to {cell['ratio']['high']:.2f}"
        measure.say(
            f"| {job} | {hand:,.0f} ns {cell['clock']} an item | {ours:,.0f} ns | "
            f"{ratio:.2f} ({spread}) |"
        )
    measure.say("\n| file | plain library | read_rows | ratio |")
    measure.say("|---|---|---|---|")
    for job, cell in result["files"].items():
        library = f"{cell['library_ns']['median']:,.0f} ns a row"
        if "ratio" in cell:
            ours, ratio = cell["read_rows_ns"]["median"], cell["ratio"]["median"]
            measure.say(f"| {job} | {library} | {ours:,.0f} ns | {ratio:.2f} |")
        else:
            measure.say(f"| {job} | {library} | | |")


if __name__ == "__main__":
    main()
