"""Who stores items beside the durable mode: the standard library's sqlite3, and other queues on it.

A way takes a folder and numbers, and returns what an item cost it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sqlite3
import time
from typing import NamedTuple

from microbatch.durable import DurableBatcher, DurableQueue

PAYLOAD = os.urandom(1000)
RESULT = b"x" * 20


class Cost(NamedTuple):
    """Seconds of CPU, of all threads, and by the wall clock, for each item; how long each call took."""

    cpu: float
    wall: float
    waits: tuple[float, ...] = ()


class Meter:
    """Measures from here on."""

    def __init__(self):
        gc.collect()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def cost(self, items, waits=()):
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return Cost(cpu / items, wall / items, tuple(waits))


# The standard library


def raw(path):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_size_limit = 16777216")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, state INTEGER, payload BLOB, result BLOB)"
    )
    connection.execute("CREATE INDEX IF NOT EXISTS ready ON items (id) WHERE state = 0")
    return connection


def _raw_group(connection, items):
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO items (state, payload) VALUES (0, ?)", [(PAYLOAD,) for _ in range(items)]
    )
    connection.execute("COMMIT")


def raw_put(folder, group, total):
    """Insert so many items in each transaction."""
    connection = raw(folder / "raw.db")
    meter = Meter()
    for _ in range(total // group):
        _raw_group(connection, group)
    cost = meter.cost(total)
    connection.close()
    return cost


def each_put(folder, callers, total):
    """One transaction for each item: more callers do not help, as SQLite has one writer."""
    del callers
    return raw_put(folder, 1, min(total, 500))


def raw_work(folder, total, size):
    """Claim and acknowledge with a result, row by row, in two transactions for each batch."""
    connection = raw(folder / "raw.db")
    for _ in range(total // size):
        _raw_group(connection, size)
    meter = Meter()
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
            [(RESULT, row[0]) for row in rows],
        )
        connection.execute("COMMIT")
    connection.close()
    return meter.cost(total)


# The durable mode


async def _call(enqueue, callers, total):
    """Let so many callers enqueue one item after another, so many in all."""
    waits = []
    left = itertools.count(1)

    async def caller():
        while next(left) <= total:
            await enqueue()

    async def timed():  # one of them, so that this costs the others nothing
        while next(left) <= total:
            began = time.perf_counter()
            await enqueue()
            waits.append(time.perf_counter() - began)

    meter = Meter()
    await asyncio.gather(timed(), *(caller() for _ in range(callers - 1)))
    return meter.cost(total, waits)


def our_put(folder, callers, total, keyed=False):
    """DurableQueue.enqueue; with a key for each item, or without."""

    async def main():
        keys = itertools.count()
        async with DurableQueue(folder / "ours.db", item_type=bytes) as queue:
            await queue.enqueue(PAYLOAD)
            if keyed:
                return await _call(
                    lambda: queue.enqueue(PAYLOAD, key=f"k{next(keys)}"), callers, total
                )
            return await _call(lambda: queue.enqueue(PAYLOAD), callers, total)

    return asyncio.run(main())


def our_many(folder, group, total):
    """DurableQueue.enqueue_many of so many each."""

    async def main():
        async with DurableQueue(folder / "ours.db", item_type=bytes) as queue:
            await queue.enqueue(PAYLOAD)
            meter = Meter()
            for _ in range(total // group):
                await queue.enqueue_many([PAYLOAD for _ in range(group)])
            return meter.cost(total)

    return asyncio.run(main())


def our_queues(folder, queues, callers, total):
    """Enqueue in so many queues of one file, with so many callers each."""

    async def main():
        opened = [
            DurableQueue(folder / "ours.db", item_type=bytes, queue=f"q{number}")
            for number in range(queues)
        ]
        for queue in opened:
            await queue.enqueue(PAYLOAD)
        turn = itertools.cycle(opened)
        cost = await _call(lambda: next(turn).enqueue(PAYLOAD), queues * callers, total)
        for queue in opened:
            await queue.aclose()
        return cost

    return asyncio.run(main())


def our_submit(folder, callers, total):
    """DurableBatcher.submit to its result, with a handler that returns at once."""

    async def handler(items):
        return [RESULT] * len(items)

    async def main():
        path = folder / "ours.db"
        async with DurableBatcher(path, handler, item_type=bytes, max_batch_size=100) as durable:
            await durable.submit(PAYLOAD)
            return await _call(lambda: durable.submit(PAYLOAD), callers, total)

    return asyncio.run(main())[:2]


def our_work(folder, total, size):
    """Claim, handle at once, and settle with a result, in batches of so many."""
    handled = asyncio.Event()
    seen = 0

    async def handler(items):
        nonlocal seen
        seen += len(items)
        if seen == total:
            handled.set()
        return [RESULT] * len(items)

    async def main():
        path = folder / "ours.db"
        durable = DurableBatcher(path, handler, item_type=bytes, max_batch_size=size)
        await durable.pause()
        for _ in range(total // size):
            await durable.enqueue_many([PAYLOAD] * size)
        meter = Meter()
        await durable.resume()
        await handled.wait()
        await durable.aclose()  # which waits until all is on the disk
        return meter.cost(total)

    return asyncio.run(main())


# Other queues


def cairnq_put(folder, callers, total):
    """The one peer that groups commits too."""
    import cairnq

    async def main():
        queue = cairnq.CairnQ.sqlite(str(folder / "cairnq.db"))
        await queue.connect()

        async def put():
            await queue.submit("work", {"payload": PAYLOAD.hex()[:1000]})

        await put()
        cost = await _call(put, callers, total)
        await queue.close()
        return cost

    return asyncio.run(main())


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
