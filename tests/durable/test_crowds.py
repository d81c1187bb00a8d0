"""Many queues, waiters, dead consumers or stuck handlers: what one of them does not need costs nobody else."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time

import pytest
from deaths_support import die_with, enqueue
from durable_support import Handler, batcher, check_counts, execute, looked, rows, states, until

from microbatch.durable import DurableQueue
from microbatch.durable._file.connection import Connection
from microbatch.durable._life.processes import birth_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def transactions(monkeypatch):
    """Count the writers' transactions, each of which is one sync."""
    counted = []
    write = Connection.write

    def writing(connection, work):
        counted.append(connection)
        return write(connection, work)

    monkeypatch.setattr(Connection, "write", writing)
    return counted


async def test_a_hundred_queues_in_one_file_go_together(path, transactions):
    """One writer for all of them: what waits goes in one transaction, and nobody finds the file locked."""
    queues = [batcher(path, Handler(), queue=f"queue {number}") for number in range(100)]
    await asyncio.gather(*(queue.__aenter__() for queue in queues))
    assert [t.name for t in threading.enumerate()].count(f"microbatch writer {path.name}") == 1
    transactions.clear()
    results = await asyncio.gather(
        *(queue.submit(number) for number in range(10) for queue in queues)
    )
    assert results == [number * 2 for number in range(10) for _ in queues]
    # Each queue for itself would need four at least: to store, to settle, to claim the rest, to settle that.
    assert len(transactions) < 300
    assert (await queues[0].stats()).lock_waits == 0
    await asyncio.gather(*(queue.aclose() for queue in queues))
    check_counts(path)


async def test_a_hundred_idle_queues_cost_next_to_nothing(path, monkeypatch):
    """One look for the file, not one for each queue: a look at each would be a hundred times as many."""
    looks = []
    version = Connection.version
    monkeypatch.setattr(Connection, "version", lambda self: looks.append(1) or version(self))
    queues = [batcher(path, Handler(), queue=f"queue {number}") for number in range(100)]
    await asyncio.gather(*(queue.__aenter__() for queue in queues))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    looks.clear()
    await asyncio.sleep(1)
    await until(lambda: looks)
    # One each 20 ms for what others commit, one each 50 ms for who lives: at the pace of these tests.
    assert len(looks) <= 2 * (50 + 20) * (time.monotonic() - began)
    await asyncio.gather(*(queue.aclose() for queue in queues))


async def test_a_backlog_after_a_kill_costs_as_much_as_without_one(path, transactions):
    """400 of 10,000 were in the hands of who died: they go again in tenths, and nobody waits for them."""
    await enqueue(path, 10_000)
    assert [len(claim) for claim in die_with(path, 100, slots=4)] == [100] * 4
    handler = Handler()
    transactions.clear()
    async with batcher(path, handler, max_batch_size=100, max_concurrency=4) as durable:
        await until(lambda: len(handler.items) == 10_000)
        await until(lambda: _empty(durable))
    assert sorted(handler.items) == list(range(1, 10_001))
    assert len(handler.batches) <= 96 + 4 * 10 + 5
    assert len(transactions) <= 1.5 * 200  # a claim and a settle for each hundred
    check_counts(path)


async def _empty(durable):
    return (await durable.stats()).depth == 0


async def test_waiters_are_not_looked_up_for_what_others_do(path):
    """10,000 callers wait beside a busy queue, and beside one of them that ends: only that one is looked up."""
    looked_up = []

    async with (
        DurableQueue(path, item_type=int, result_type=int) as queue,
        batcher(path, Handler(), queue="busy") as busy,
    ):
        tickets = await queue.enqueue_many(range(10_000))
        waiting = [asyncio.create_task(queue.result(ticket)) for ticket in tickets]
        await until(lambda: len(queue._service.callers._by_item) == 10_000)
        client = queue._service.store._client
        await until(lambda: client.seen_ended >= 0)  # it was told once that any may have ended
        await queue.requeue([])  # and has heard of that
        await until(lambda: queue._service._wanted.looking is None)
        store = queue._service.store

        async def looking(numbers, find=store.find):
            looked_up.extend(numbers)
            return await find(numbers)

        store.find = looking
        for number in range(20):
            await busy.submit(number)
        execute(path, "CREATE TABLE applications (x)")  # another connection commits, too
        await looked(busy)
        assert looked_up == []
        handler = Handler()
        async with batcher(path, handler, max_batch_size=1) as worker:
            await until(lambda: len(handler.items) >= 3)
            await worker.pause()
        await until(lambda: sum(task.done() for task in waiting) == len(handler.items))
        assert len(handler.items) <= len(looked_up) <= 2 * len(handler.items) + 2
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_many_dead_consumers_delay_nobody(path, transactions):
    """A program that runs `asyncio.run` for each task leaves one each time: they go in a few transactions."""
    async with DurableQueue(path, item_type=int):
        pass
    async with batcher(path, Handler()) as durable:
        await durable.submit(0)
    born = "/".join([*str(birth_of(os.getpid())).split("/")[:2], "1"])
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO microbatch_consumers (queue, lock_file, pid, born) VALUES (1, '1:1', ?, ?)",
            [(999_999_999, born)] * 300,
        )
    connection.close()
    transactions.clear()
    async with batcher(path, Handler()) as durable:
        assert await durable.submit(1) == 2
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_consumers") == [(1,)])
    assert len(transactions) < 20
    check_counts(path)


async def test_items_wait_untouched_while_handlers_are_stuck(path, monkeypatch):
    """Nothing is claimed for hands that are not there, so order is kept and nothing is written over and over."""
    monkeypatch.setattr("microbatch.durable._flow.consumer.STUCK_PAUSE", 0.05)
    free, handled = threading.Event(), []

    def handler(items):
        if items[0] < 100:
            free.wait(120)
        handled.extend(items)
        return items

    async with batcher(
        path, handler, max_batch_size=1, max_concurrency=10, handler_timeout=0.05, result_type=None
    ) as durable:
        stuck = 0
        while not durable._service.hands.engine.is_stuck():  # a thread that begins too late is not
            assert stuck < 100
            await durable.enqueue(stuck)
            stuck += 1
            await until(lambda count=stuck: _dead(durable, count))
        await durable.enqueue_many(range(100, 130))
        before = _versions(path)
        await asyncio.sleep(0.3)
        assert list(states(path).values())[stuck:] == ["ready"] * 30
        assert _versions(path) == before
        free.set()
        await until(lambda: _empty(durable))
    later = [item for item in handled if item >= 100]
    assert len(set(later)) == len(later)
    # A thread that a busy machine starts too late, or never, costs its item the time it had.
    ends = dict(zip(range(100, 130), list(states(path).values())[stuck:], strict=True))
    assert {item for item, end in ends.items() if end != "dead"} <= set(later) <= set(ends)
    assert set(ends.values()) <= {"done", "dead"}
    assert rows(path, "SELECT max(attempts) FROM microbatch_ranges") == [(1,)]
    check_counts(path)


async def _dead(durable, count):
    return (await durable.stats()).dead == count


def _versions(path):
    return path.with_name("queue.db-wal").stat().st_mtime_ns, path.stat().st_mtime_ns
