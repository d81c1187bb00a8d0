"""What `jobs` measures, each figure in a process of its own: a job that comes in, is handled and looked at."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.durable_contenders import raw
from benchmarks.output import ROOT
from microbatch.durable import DurableBatcher, DurableQueue

ROOM = {"max_depth": 4_000_000, "item_type": int}
#: Seconds between two looks at a process's memory.
GLANCE = 0.02


def _clocks():
    return time.process_time(), time.perf_counter()


def _since(began):
    """Return seconds of CPU and of the wall clock: JSON knows no tuple."""
    return [now - then for now, then in zip(_clocks(), began, strict=True)]


def raw_rows(folder, total):
    """Insert a row for each of so many ints, 1,000 in each transaction."""
    connection = raw(folder / "raw.db")
    encode = msgspec.msgpack.encode
    began = _clocks()
    for first in range(0, total, 1_000):
        rows = [(encode(number),) for number in range(first, min(total, first + 1_000))]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO items (state, payload) VALUES (0, ?)", rows)
        connection.execute("COMMIT")
    spent = _since(began)
    connection.close()
    return spent


def bring(folder, total, named):
    """Bring a job of so many ints."""

    async def main():
        async with DurableQueue(folder / "queue.db", **ROOM) as queue:
            began = _clocks()
            await queue.enqueue_job(
                (number for number in range(total)), item_id=str if named else None
            )
            return _since(began)

    return asyncio.run(main())


async def _double(numbers):
    return numbers


def _worker(path, **settings):
    return DurableBatcher(path, _double, result_type=int, max_batch_size=100, **ROOM, **settings)


async def _fill(path, total, as_job):
    async with DurableQueue(path, **ROOM) as queue:
        if as_job:
            return (await queue.enqueue_job(range(total))).id
        for first in range(0, total, 5_000):
            await queue.enqueue_many(range(first, min(total, first + 5_000)))
    return None


async def _drained(worker):
    while (await worker.stats()).depth:  # noqa: ASYNC110 - nobody tells of that
        await asyncio.sleep(0.05)


def work(folder, total, as_job):
    """Handle so many items that are there already, in batches of 100."""

    async def main():
        path = folder / "queue.db"
        await _fill(path, total, as_job)
        began = _clocks()
        async with _worker(path) as worker:
            await _drained(worker)
            return _since(began)

    return asyncio.run(main())


# The write lock


@contextmanager
def _beside(name, *arguments):
    """Run a function of this module in another process, until its standard input ends; yield it."""
    command = [sys.executable, "-m", "benchmarks.job_figures", name, json.dumps(arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.stdin.close()


def _answer(process):
    process.stdin.write("enough\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def write_all_the_while(path):
    """Write a row after another, until told otherwise; print how long the lock was waited for."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS beside (number INTEGER)")

    enough = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), enough.set()), daemon=True).start()
    print("ready", flush=True)
    waits = []
    while not enough.is_set():
        began = time.perf_counter()
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError:
                time.sleep(0.0002)
        waits.append(time.perf_counter() - began)
        connection.execute("INSERT INTO beside VALUES (1)")
        connection.execute("COMMIT")
        time.sleep(0.001)
    print(json.dumps(waits), flush=True)


def longest_wait(folder, total, size):
    """Bring a job and cancel it while another process writes; return how long that waited at most, in ms."""
    path = folder / "queue.db"
    filler = "x" * size

    async def main():
        settings = ROOM | {"item_type": str if size else int}
        async with DurableQueue(path, **settings) as queue:
            with _beside("write_all_the_while", str(path)) as other:
                source = (filler if size else number for number in range(total))
                job = await queue.enqueue_job(source)
                await asyncio.sleep(0.5)  # its items become ready meanwhile
                await job.cancel()
                await job.wait()
                return _answer(other)

    waits = asyncio.run(main())
    return {"longest": max(waits) * 1e3, "median": statistics.median(waits) * 1e3}


# Looks


def look_times(folder, total, times):
    """Return the seconds of a status, of the first page of 100 and of the last, of a job that has ended."""

    async def main():
        path = folder / "queue.db"
        uid = await _fill(path, total, True)
        async with _worker(path) as worker:
            job = worker.job(uid)
            await job.wait()
        async with DurableQueue(path, result_type=int, **ROOM) as queue:
            job = queue.job(uid)
            ways = {
                "status": job.status,
                "first page": job.results,
                "last page": lambda: job.results(max(0, total - 101)),
            }
            found = {name: [] for name in ways}
            for _ in range(times):
                for name, way in ways.items():
                    began = time.perf_counter()
                    await way()
                    found[name].append(time.perf_counter() - began)
            return found

    return asyncio.run(main())


# Memory


def _resident(pid="self"):
    """Return the bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4_096


async def _grown(task, before):
    """Wait for something; return by how many bytes this process had grown at most meanwhile."""
    most = 0
    while not task.done():
        await asyncio.sleep(GLANCE)
        most = max(most, _resident() - before)
    task.result()
    return most


async def _started(path):
    """Do once what is done for the first time only."""
    async with _worker(path) as worker:
        await (await worker.enqueue_job(range(1_000), item_id=str)).wait()


def handle_all(path):
    """Handle what is there; print by how much that made this process grow."""

    async def main():
        await _started(f"{path}.first")
        before = _resident()
        print("ready", flush=True)
        async with _worker(path) as worker:
            print(
                json.dumps(await _grown(asyncio.create_task(_drained(worker)), before)), flush=True
            )

    asyncio.run(main())


def memory(folder, total):
    """Return the MB by which each process grows: one that brings, one that watches, one that handles."""
    path = folder / "queue.db"

    async def main():
        await _started(folder / "first.db")
        before = _resident()
        async with DurableQueue(path, result_type=int, **ROOM) as queue:
            coming = queue.enqueue_job((number for number in range(total)), item_id=str)
            bringing = asyncio.create_task(coming)
            grown = {"bringing": await _grown(bringing, before)}
            job = bringing.result()

            async def watch():
                async for _ in job.progress():
                    pass
                async for _ in job.outcomes():
                    pass

            with _beside("handle_all", str(path)) as other:
                before = _resident()
                grown["watching"] = await _grown(asyncio.create_task(watch()), before)
                grown["handling"] = json.loads(await asyncio.to_thread(other.stdout.readline))
        return {name: size / 1e6 for name, size in grown.items()}

    return asyncio.run(main())


if __name__ == "__main__":
    globals()[sys.argv[1]](*json.loads(sys.argv[2]))
