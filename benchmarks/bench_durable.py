"""The durable mode against plain SQLite and other queues on it: throughput, latency, fsyncs, backlog.

    python benchmarks/bench_durable.py

Everything commits with `synchronous=FULL` where it can be set. A ratio is taken from two samples of the same
round, in wall time, for what counts here is the disk. `raw` is the standard library's sqlite3 with one table
and one partial index, `executemany` of as many rows per transaction as there are callers. With a C
compiler on Linux, fsyncs are counted and slowed down by the shim of tests/durable/shim.c.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

from microbatch.durable import DurableBatcher, DurableQueue
from microbatch.durable.clock import Clock
from microbatch.durable.file_store import FileStore
from microbatch.durable.limits import Limits
from microbatch.durable.records import Claim, NewItem, Settlement, State

SHIM = Path(__file__).parent.parent / "tests" / "durable" / "shim.c"
PAYLOAD = os.urandom(1000)
CALLERS = {1: 300, 10: 2_000, 100: 10_000, 1000: 20_000}
GOALS = {1: 0.45, 10: 0.55, 100: 0.65, 1000: 0.70}


def raw(path):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, state INTEGER, payload BLOB, result BLOB)"
    )
    connection.execute("CREATE INDEX IF NOT EXISTS ready ON items (id) WHERE state = 0")
    return connection


def raw_put(folder, callers, total):
    connection = raw(folder / "raw.db")
    began = time.perf_counter()
    for _ in range(total // callers):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO items (state, payload) VALUES (0, ?)", [(PAYLOAD,) for _ in range(callers)]
        )
        connection.execute("COMMIT")
    took = time.perf_counter() - began
    connection.close()
    return total / took, []


def each_put(folder, callers, total):
    """One transaction for each item: more callers do not help, as SQLite has one writer."""
    return raw_put(folder, 1, min(total, 1_000))


def asynchronous(open_queue):
    def put(folder, callers, total):
        async def main():
            async with open_queue(folder) as enqueue:
                latencies = []
                left = iter(range(total))

                async def caller():
                    for _ in left:
                        began = time.perf_counter()
                        await enqueue(PAYLOAD)
                        latencies.append(time.perf_counter() - began)

                await enqueue(PAYLOAD)
                gc.collect()
                began = time.perf_counter()
                await asyncio.gather(*(caller() for _ in range(callers)))
                return total / (time.perf_counter() - began), latencies

        return asyncio.run(main())

    return put


class Ours:
    """DurableQueue.enqueue."""

    def __init__(self, folder):
        self.queue = DurableQueue(folder / "ours.db", item_type=bytes)

    async def __aenter__(self):
        await self.queue.__aenter__()
        return self.queue.enqueue

    async def __aexit__(self, *_):
        await self.queue.aclose()


class CairnQ:
    """The one peer that groups commits too."""

    def __init__(self, folder):
        import cairnq as library

        self.queue = library.CairnQ.sqlite(str(folder / "cairnq.db"))

    async def __aenter__(self):
        await self.queue.connect()

        async def put(payload):
            await self.queue.submit("work", {"payload": payload.hex()[:1000]})

        return put

    async def __aexit__(self, *_):
        await self.queue.close()


def _persist_queue(folder):
    from persistqueue import SQLiteAckQueue

    queue = SQLiteAckQueue(str(folder / "persist"), auto_commit=True, multithreading=False)
    return lambda: queue.put(PAYLOAD), lambda: queue.ack(queue.get())


def _huey(folder):
    from huey.storage import SqliteStorage

    storage = SqliteStorage(filename=str(folder / "huey.db"), fsync=True)
    return lambda: storage.enqueue(PAYLOAD), storage.dequeue


def _litequeue(folder):
    from litequeue import LiteQueue

    queue = LiteQueue(str(folder / "lite.db"))
    queue.conn.execute("PRAGMA synchronous = FULL")
    text = PAYLOAD.hex()[:1000]
    return lambda: queue.put(text), lambda: queue.done(queue.pop().message_id)


def _localqueue(folder):
    from localqueue import DurabilityMode, SimpleQueue

    queue = SimpleQueue(str(folder / "local.db"), durability=DurabilityMode.DURABLE)
    text = PAYLOAD.hex()[:1000]
    return lambda: queue.put(text), lambda: queue.ack(queue.get())


PEERS = {
    "persist-queue": _persist_queue,
    "huey (no ack)": _huey,
    "litequeue": _litequeue,
    "localqueue": _localqueue,
}


def peer_rates(folder, total):
    """One caller, one item at a time, as their interfaces have it: (puts, gets with ack) a second."""
    rates = {}
    for name, make in PEERS.items():
        try:
            put, take = make(folder)
        except ImportError:
            continue
        seconds = []
        for call in (put, take):
            began = time.perf_counter()
            for _ in range(total):
                call()
            seconds.append(total / (time.perf_counter() - began))
        rates[name] = seconds
    return rates


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
        rates = {way: [] for way in ways}
        latencies = []
        for turn in range(rounds):
            names = list(ways)
            shift = turn % len(names)
            for way in names[shift:] + names[:shift]:
                part = max(count, total // 8) if way == "cairnq" else total
                rate, waits = in_folder(ways[way], count, part)
                rates[way].append(rate)
                if way == "enqueue":
                    latencies += waits
        latencies.sort()
        cell = {
            "callers": count,
            "rates": {way: statistics.median(found) for way, found in rates.items()},
            "share of raw": pairs(rates["enqueue"], rates["raw"]),
            "over one transaction each": pairs(rates["enqueue"], rates["one transaction each"]),
            "p50_ms": latencies[len(latencies) // 2] * 1e3,
            "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
        }
        if "cairnq" in rates:
            cell["over cairnq"] = pairs(rates["enqueue"], rates["cairnq"])
        cells.append(cell)
    return cells


def pairs(mine, its):
    return measure.spread([a / b for a, b in zip(mine, its, strict=True)])


def show_enqueue(cells):
    measure.table(
        [
            "callers",
            "enqueue/s",
            "of raw",
            "goal",
            "over one tx each",
            "over cairnq",
            "p50 ms",
            "p99 ms",
        ],
        [
            [
                cell["callers"],
                f"{cell['rates']['enqueue']:,.0f}",
                measure.shown(cell["share of raw"]),
                f">= {GOALS[cell['callers']]}",
                measure.shown(cell["over one transaction each"], 1),
                measure.shown(cell["over cairnq"], 1) if "over cairnq" in cell else "-",
                f"{cell['p50_ms']:.2f}",
                f"{cell['p99_ms']:.2f}",
            ]
            for cell in cells
        ],
    )


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
    ratios, rates = [], []
    for _ in range(rounds):
        mine = in_folder(our_work, total, 100)
        ratios.append(mine / in_folder(raw_work, total, 100))
        rates.append(mine)
    return {"items_per_second": statistics.median(rates), "share of raw": measure.spread(ratios)}


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
        "few_us": statistics.median(few) * 1e6,
        "many_us": statistics.median(many) * 1e6,
        "ratio": measure.spread([b / a for a, b in zip(few, many, strict=True)]),
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


def shimmed(what, **settings):
    """Run a part of this script under the shim; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "shim.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True
        )
        environment = os.environ | {"LD_PRELOAD": str(library), "SHIM_MATCH": ".db"}
        environment |= {"SHIM_COUNT": f"{folder}/count"} | settings
        output = subprocess.run(
            [sys.executable, __file__, "--part", json.dumps(what)],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    return json.loads(output.splitlines()[-1])


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

    return measure.spread([in_folder(once) for _ in range(rounds)])


def main():
    chosen = measure.options(__doc__, part={"help": "for this script itself"})
    if chosen.part:
        name, *arguments = json.loads(chosen.part)
        print(json.dumps(globals()[name](*arguments)))
        return
    rounds = chosen.rounds or (1 if chosen.tiny else 9)
    scale = 0.02 if chosen.tiny else 1
    callers = [1, 10] if chosen.tiny else list(CALLERS)
    data = {"enqueue": enqueue_cells(rounds, callers, scale)}
    measure.say("Enqueue, items of 1,000 bytes, synchronous=FULL:\n")
    show_enqueue(data["enqueue"])
    slow = shimmed(
        ["enqueue_cells", max(1, rounds // 3), callers[1:3], 0.2 * scale], SHIM_DELAY="2000"
    )
    if slow is not None:
        data["enqueue with 2 ms more per fsync"] = slow
        measure.say("The same with 2 ms more per fsync:\n")
        show_enqueue(slow)
    data["work"] = work(rounds, 500 if chosen.tiny else 10_000)
    measure.say(
        "Claim, handle and settle with stored results, batches of 100: "
        f"{data['work']['items_per_second']:,.0f} items/s, "
        f"{measure.shown(data['work']['share of raw'])} of raw claim and acknowledge (goal >= 0.35)\n"
    )
    data["peers"] = in_folder(peer_rates, 20 if chosen.tiny else 500)
    measure.table(
        ["peer, one item at a time", "put/s", "get and ack/s"],
        [[name, *(f"{rate:,.0f}" for rate in rates)] for name, rates in data["peers"].items()],
    )
    backlog = 1_000 if chosen.tiny else 100_000
    data["claim"] = claim_times(20 if chosen.tiny else 200, backlog)
    measure.say(
        f"A claim of 10 with {backlog:,} ready, done and delayed each, against 200 ready: "
        f"{measure.shown(data['claim']['ratio'])} (goal <= 1.5)\n"
    )
    data["bytes per item over its payload"] = bytes_per_item(1_000 if chosen.tiny else 10_000) - 100
    measure.say(
        f"Bytes per item over its payload of 100: {data['bytes per item over its payload']:.0f}\n"
    )
    data["fsyncs"] = shimmed(["count_fsyncs"])
    if data["fsyncs"] is not None:
        measure.say(
            "fsyncs "
            + ", ".join(f"{what}: {count:.2f}" for what, count in data["fsyncs"].items())
            + "\n"
        )
    data["redelivery"] = redelivery(1 if chosen.tiny else 9)
    measure.say(
        f"kill -9 to the next handler call: {measure.shown(data['redelivery'])} s (goal < 1)"
    )
    measure.save(chosen.out, "bench_durable", data)


if __name__ == "__main__":
    main()
