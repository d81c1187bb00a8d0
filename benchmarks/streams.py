"""`map_batches` beside a loop by hand, and the file readers beside the plain libraries.

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
from functools import partial
from itertools import islice
from pathlib import Path

import anyio
import msgspec

from benchmarks import output, runner
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


JOBS = {
    "insert into SQLite": (None, 1, "wall"),
    "10 ms a call, four at a time": (network, 4, "wall"),
    "nothing (what is left is the stream)": (nothing, 4, "cpu"),
}


def job(name, contender, count, folder):
    """Return the nanoseconds an item of one way to do a job."""
    handler, concurrency, clock = JOBS[name]
    database = None
    if handler is None:
        database = Database(folder)
        handler = database.insert if contender == "stream" else database.insert_in_thread
    main = by_stream if contender == "stream" else by_hand
    cpu, wall, done = timed(main, rows(count), handler, concurrency)
    assert done == count, (name, contender, done)
    if database is not None:
        database.connection.close()
    return (cpu if clock == "cpu" else wall) / count * 1e9


def streams(count, rounds, folder):
    """Return each job's ratio of the stream to the loop by hand."""
    table = {}
    for name, (*_, clock) in JOBS.items():
        ways = {one: partial(job, name, one, count, folder) for one in ("hand", "stream")}
        table[name] = {"clock": clock, **beside(runner.in_turns(ways, rounds), "stream", "hand")}
    return table


def beside(found, mine, its):
    """Return the spreads of two in nanoseconds, and of the ratio of one to the other."""
    return {"ratio": runner.share(found[mine], found[its]), **runner.spreads(found)}


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


def read(main, path, type_, count):
    """Return the nanoseconds a row."""
    _, wall, done = timed(main, path, type_)
    assert done == count, (path.suffix, main, done)
    return wall / count * 1e9


def files(count, rounds, folder):
    """Return each reader's time for a row beside the plain library's."""
    plain = {"csv": by_dict_reader, "ndjson": by_json_lines, "json": by_json_load}
    table = {}
    for suffix, library in plain.items():
        path = folder / f"users.{suffix}"
        asyncio.run(write_rows(path, (User(*row) for row in rows(count))))
        for type_ in (None, User):
            ways = {
                "read_rows": partial(read, by_read_rows, path, type_, count),
                "library": partial(read, library, path, type_, count),
            }
            found = beside(runner.in_turns(ways, rounds), "read_rows", "library")
            table[f"{suffix}, {'typed' if type_ else 'plain'}"] = found
    few, some = folder / "few.ndjson", count // 20
    asyncio.run(write_rows(few, (User(*row) for row in rows(some))))
    hops = runner.spread([read(by_async_lines, few, None, some)])
    table["ndjson, a thread hop for each line"] = {"library": hops}
    return table


def run(chosen, page):
    count = 3_000 if chosen.tiny else 200_000
    rounds = chosen.rounds or (2 if chosen.tiny else 9)
    with tempfile.TemporaryDirectory() as name:
        jobs = streams(count, rounds, Path(name))
        readers = files(count, rounds, Path(name))
    page.say(f"{count:,} items, batches of {SIZE:,}:\n")
    page.table(
        ["handler", "clock", "loop by hand, ns an item", "map_batches", "ratio"],
        [
            (
                name, one["clock"], f"{one['hand']['median']:,.0f}",
                f"{one['stream']['median']:,.0f}", output.shown(one["ratio"]),
            )
            for name, one in jobs.items()
        ],
    )  # fmt: skip
    page.table(
        ["file", "plain library, ns a row", "read_rows", "ratio"],
        [
            (
                name, f"{one['library']['median']:,.0f}",
                f"{one['read_rows']['median']:,.0f}" if "ratio" in one else "-",
                output.shown(one["ratio"]) if "ratio" in one else "-",
            )
            for name, one in readers.items()
        ],
    )  # fmt: skip
    return {"items": count, "batch": SIZE, "streams": jobs, "files": readers}
