"""Files as processes leave them that died with claims in hand."""

from __future__ import annotations

import os
import sqlite3
import time

from microbatch.durable import DurableQueue
from microbatch.durable._file.records import Demand
from microbatch.durable._file.session import Session, run
from microbatch.durable._life.processes import birth_of


def die_with(path, size: int, slots: int = 1) -> list[list[int]]:
    """Leave the file as a process does that died with claims of this size; return their items' ids."""
    born = "/".join([*str(birth_of(os.getpid())).split("/")[:2], "1"])
    connection = sqlite3.connect(path, isolation_level=None)
    session = Session(path=path, now=time.time(), ticket=None, ids=None, wal_size=lambda: 0)
    connection.execute("BEGIN IMMEDIATE")
    row = run(connection, session.queue("default"))
    consumer = run(connection, session.register(row.id, 999_999_999, born))
    run(connection, session.place(consumer, "1:1"))
    claims, _ = run(connection, session.claim(row.id, Demand(consumer, 1, slots, size)))
    run(connection, session.finish())
    connection.execute("COMMIT")
    connection.close()
    return [
        [number for one in claim.ranges for number in range(one.first, one.first + one.count)]
        for claim in claims
    ]


async def enqueue(path, count: int) -> None:
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue_many(range(1, count + 1))
