"""The durable mode beside plain SQLite and other queues: rates, latency, fsyncs, backlog.

Items of 1,000 bytes; everything commits with `synchronous=FULL` where it can be set. A ratio is
taken from two samples of the same round, in wall time, for what counts here is the disk. `raw` is
the standard library's sqlite3 with one table and one partial index, `executemany` of as many rows
per transaction as there are callers. With a C compiler on Linux, fsyncs are counted and slowed
down by the shim of tests/durable/shim.c.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks import output, runner
from benchmarks.child import Subject
from benchmarks.durable_contenders import (
    PAYLOAD,
    CairnQ,
    Ours,
    asynchronous,
    each_put,
    peer_rates,
    raw,
    raw_put,
)
from microbatch.durable import DurableBatcher, DurableQueue
from microbatch.durable.clock import Clock
from microbatch.durable.file_store import FileStore
from microbatch.durable.limits import Limits
from microbatch.durable.records import Claim, NewItem, Settlement, State

SHIM = Path(__file__).parent.parent / "tests" / "durable" / "shim.c"
CALLERS = {1: 300, 10: 2_000, 100: 10_000, 1000: 20_000}
GOALS = {1: 0.45, 10: 0.55, 100: 0.65, 1000: 0.70}


def in_folder(function, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        return function(Path(folder), *arguments)


def enqueue_cells(rounds, callers, scale):
    ways = {"raw": raw_put, "one transaction each": each_put, "enqueue": asynchronous(Ours)}
    try:
        import cairnq as _  # noqa: F401
    except ImportError:
        pass
    else:
        ways["cairnq"] = asynchronous(CairnQ)
    cells = []
    for count in callers:
        total = max(count, int(CALLERS[count] * scale))
        found = runner.in_turns(
            {
                way: partial(
                    in_folder, put, count, max(count, total // 8) if way == "cairnq" else total
                )
                for way, put in ways.items()
            },
            rounds,
        )
        latencies = sorted(wait for _, waits in found["enqueue"] for wait in waits)
        rates = {way: [rate for rate, _ in rows] for way, rows in found.items()}
        cell = {
            "callers": count,
            "rates": {way: statistics.median(rows) for way, rows in rates.items()},
            "share of raw": runner.share(rates["enqueue"], rates["raw"]),
            "over one transaction each": runner.share(
                rates["enqueue"], rates["one transaction each"]
            ),
            "p50_ms": latencies[len(latencies) // 2] * 1e3,
            "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
        }
        if "cairnq" in rates:
            cell["over cairnq"] = runner.share(rates["enqueue"], rates["cairnq"])
        cells.append(cell)
    return cells


def show_enqueue(page, data):
    """Say one table for all cells, with what an fsync takes in the first column."""
    page.table(
        [
            "fsync", "callers", "enqueue/s", "of raw", "goal", "over one tx each", "over cairnq",
            "p50 ms", "p99 ms",
        ],
        [
            [
                "as it is" if name == "enqueue" else "2 ms more",
                cell["callers"],
                f"{cell['rates']['enqueue']:,.0f}",
                output.shown(cell["share of raw"]),
                f">= {GOALS[cell['callers']]:.2f}",
                output.shown(cell["over one transaction each"], 1),
                output.shown(cell["over cairnq"], 1) if "over cairnq" in cell else "-",
                f"{cell['p50_ms']:.2f}",
                f"{cell['p99_ms']:.2f}",
            ]
            for name, cells in data.items()
            if name.startswith("enqueue")
            for cell in cells
        ],
    )  # fmt: skip


def show_the_rest(page, data):
    work, claim = data["work"], data["claim"]
    rows = [
        (
            "claim, handle and settle, of raw claim and acknowledge",
            f"{output.shown(work['share of raw'])}, {work['items_per_second']:,.0f} items/s",
            ">= 0.35",
        ),
        (
            "a claim of 10 with a backlog, to one without",
            f"{output.shown(claim['ratio'])}, {claim['backlog']:,} ready, done and delayed each",
            "<= 1.5",
        ),
        ("bytes of an item over its payload of 100", f"{data['bytes']:.0f}", "-"),
        *[
            (f"fsyncs {what}", f"{count:.2f}", "-")
            for what, count in (data["fsyncs"] or {}).items()
        ],
        ("kill -9 to the next handler call", f"{output.shown(data['redelivery'])} s", "< 1 s"),
        *[
            (f"{name}, one item at a time", f"{put:,.0f} put/s, {take:,.0f} get and ack/s", "-")
            for name, (put, take) in data["peers"].items()
        ],
    ]
    page.table(["what", "reached (quartiles)", "goal"], rows)


def raw_work(folder, total, size):
    """Claim and acknowledge with a result, in two transactions for each batch."""
    connection = raw(folder / "raw.db")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO items (state, payload) VALUES (0, ?)", [(PAYLOAD,)] * total)
    connection.execute("COMMIT")
    began = time.perf_counter()
    while True:
        connection.execute("BEGIN IMMEDIATE")
        rows = connection.execute(
            "UPDATE items SET state = 1 WHERE id IN (SELECT id FROM items WHERE state = 0 ORDER BY id LIMIT ?) "
            "RETURNING id, payload",
            (size,),
        ).fetchall()
        connection.execute("COMMIT")
        if not rows:
            break
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "UPDATE items SET state = 2, result = ? WHERE id = ?",
            [(b"x" * 20, row[0]) for row in rows],
        )
        connection.execute("COMMIT")
    took = time.perf_counter() - began
    connection.close()
    return total / took


def our_work(folder, total, size):
    done = asyncio.Event()
    seen = 0

    async def handler(items):
        nonlocal seen
        seen += len(items)
        if seen == total:
            done.set()
        return [b"x" * 20] * len(items)

    async def main():
        path = folder / "ours.db"
        async with DurableQueue(path, item_type=bytes) as queue:
            await queue.enqueue_many([PAYLOAD] * total)
        began = time.perf_counter()
        async with DurableBatcher(path, handler, item_type=bytes, max_batch_size=size) as durable:
            await done.wait()
            while (await durable.stats()).done < total:  # noqa: ASYNC110 - another thread's work
                await asyncio.sleep(0)
            return total / (time.perf_counter() - began)

    return asyncio.run(main())


def work(rounds, total):
    ways = {"ours": partial(in_folder, our_work, total, 100)}
    ways["raw"] = partial(in_folder, raw_work, total, 100)
    rates = runner.in_turns(ways, rounds)
    return {
        "items_per_second": statistics.median(rates["ours"]),
        "share of raw": runner.share(rates["ours"], rates["raw"]),
    }


def claim_times(rounds, backlog):
    """Microseconds of a claim of 10 and its settle, with little and with much beside it."""

    async def fill(store, ready, done, late):
        for start in range(0, done, 1000):
            await store.enqueue([[NewItem(PAYLOAD)] * 1000], None)
            _, claimed = await store.settle_and_claim(1, [], Claim(1, start, 1000, True))
            await store.settle_and_claim(
                1, [Settlement(c.id, start, State.DONE) for c in claimed], None
            )
        for count, item in (
            (late, NewItem(PAYLOAD, priority=9, delay=9e6)),
            (ready, NewItem(PAYLOAD)),
        ):
            for _ in range(0, count, 1000):
                await store.enqueue([[item] * min(count, 1000)], None)

    async def main(folder):
        few = FileStore(folder / "few.db", "q", "normal", Limits(), Clock())
        many = FileStore(folder / "many.db", "q", "normal", Limits(), Clock())
        for store in (few, many):
            await store.open()
            await store.register(1, None, lambda number: 1)
        await fill(few, 200, 0, 0)
        await fill(many, backlog, backlog, backlog)
        times = {few: [], many: []}
        for number in range(rounds):
            for store, taken in times.items():
                began = time.perf_counter()
                _, claimed = await store.settle_and_claim(1, [], Claim(1, 10**6 + number, 10, True))
                taken.append(time.perf_counter() - began)
                back = [Settlement(c.id, c.claim, State.READY) for c in claimed]
                await store.settle_and_claim(1, back, None)
        for store in times:
            await store.close()
        return times[few], times[many]

    few, many = in_folder(lambda folder: asyncio.run(main(folder)))
    return {
        "backlog": backlog,
        "few_us": statistics.median(few) * 1e6,
        "many_us": statistics.median(many) * 1e6,
        "ratio": runner.share(many, few),
    }


def bytes_per_item(total):
    def main(folder):
        async def fill():
            async with DurableQueue(folder / "q.db", item_type=bytes) as queue:
                empty = (await queue.stats()).file_bytes
                await queue.enqueue_many([b"x" * 100] * total)
                return ((await queue.stats()).file_bytes - empty) / total

        return asyncio.run(fill())

    return in_folder(main)


def shimmed(function, *arguments, **settings):
    """Call a function of this file in a process under the shim; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "shim.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True
        )
        environment = {"LD_PRELOAD": str(library), "SHIM_MATCH": ".db"}
        environment |= {"SHIM_COUNT": f"{folder}/count"} | settings
        return Subject().call(function, *arguments, environment=environment)


def count_fsyncs():
    """In a process under the shim: syncs for each group of submits, and for each handled batch."""
    count = Path(os.environ["SHIM_COUNT"])

    def syncs():
        return count.stat().st_size if count.exists() else 0

    async def main(folder):
        groups = 50
        async with DurableQueue(folder / "put.db", item_type=bytes) as queue:
            await queue.enqueue(b"x")
            before = syncs()
            for _ in range(groups):
                await asyncio.gather(*(queue.enqueue(b"x" * 10) for _ in range(100)))
            put = (syncs() - before) / groups

        async def handler(items):
            return items

        async with DurableBatcher(folder / "work.db", handler, item_type=bytes) as durable:
            await durable.pause()
            await durable.enqueue_many([b"x" * 10] * 100 * groups)
            before = syncs()
            await durable.resume()
            while (await durable.stats()).depth:  # noqa: ASYNC110 - another thread's work
                await asyncio.sleep(0.01)
            handled = (syncs() - before) / groups
            before = syncs()
            for _ in range(groups):
                await asyncio.gather(*(durable.submit(b"x") for _ in range(100)))
            submitted = (syncs() - before) / groups
        return {
            "per group of enqueues": put,
            "per handled batch": handled,
            "per group of submits": submitted,
        }

    return in_folder(lambda folder: asyncio.run(main(folder)))


def redelivery(rounds):
    """Seconds from kill -9 of a process to the next handler call for its item, in a process that lives."""

    def once(folder):
        path = folder / "q.db"

        async def hold(items):
            os.write(1, b"x")
            await asyncio.sleep(60)

        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write, 1)

            async def victim():
                async with DurableBatcher(path, hold, item_type=int) as durable:
                    await durable.enqueue(1)
                    await asyncio.sleep(60)

            asyncio.run(victim())
        os.read(read, 1)

        async def survivor():
            handled = asyncio.Event()

            async def handler(items):
                handled.set()
                return items

            async with DurableBatcher(path, handler, item_type=int):
                await asyncio.sleep(0.1)
                os.kill(child, signal.SIGKILL)
                killed = time.perf_counter()
                await handled.wait()
                return time.perf_counter() - killed

        seconds = asyncio.run(survivor())
        os.waitpid(child, 0)
        return seconds

    return runner.spread([in_folder(once) for _ in range(rounds)])


def run(chosen, page):
    tiny = chosen.tiny
    rounds = chosen.rounds or (1 if tiny else 9)
    scale = 0.02 if tiny else 1
    callers = [1, 10] if tiny else list(CALLERS)
    data = {"enqueue": enqueue_cells(rounds, callers, scale)}
    slow = shimmed(enqueue_cells, max(1, rounds // 3), callers[1:3], 0.2 * scale, SHIM_DELAY="2000")
    if slow is not None:
        data["enqueue with 2 ms more per fsync"] = slow
    show_enqueue(page, data)
    data["work"] = work(rounds, 500 if tiny else 10_000)
    data["peers"] = in_folder(peer_rates, 20 if tiny else 500)
    data["claim"] = claim_times(20 if tiny else 200, 1_000 if tiny else 100_000)
    data["bytes"] = bytes_per_item(1_000 if tiny else 10_000) - 100
    data["fsyncs"] = shimmed(count_fsyncs)
    data["redelivery"] = redelivery(1 if tiny else 9)
    show_the_rest(page, data)
    return data
