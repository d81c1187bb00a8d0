"""Who stores items beside the durable mode: the standard library's sqlite3, and other queues on it.

A way to put takes a folder, the number of callers and of items, and returns items a second and what
each call took.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import time

from microbatch.durable import DurableQueue

PAYLOAD = os.urandom(1000)


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
