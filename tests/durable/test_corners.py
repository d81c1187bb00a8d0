"""Rare ways through the durable mode, each provoked on purpose."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading

import aiosqlite
import anyio
import pytest
from durable_support import Handler, batcher, check_counts, execute, rows, until
from test_faults import locked

from microbatch import BatcherClosed
from microbatch.durable import DurableQueue, QueueFull, QueueUnavailable, SchemaTooNew, alive
from microbatch.durable.hop import create
from microbatch.durable.store import wal_size

pytestmark = pytest.mark.anyio


def database(durable):
    return durable._store._database


async def test_a_transaction_that_was_left_open_is_rolled_back(path):
    """A cancellation by force may leave one; whoever comes next must not fail for it."""
    async with DurableQueue(path, item_type=int) as queue:
        for call in (queue.stats, lambda: queue.enqueue(1)):
            await database(queue).glance(lambda raw: raw.execute("BEGIN IMMEDIATE"))
            await call()
        await database(queue).glance(
            lambda raw: [raw.executescript("SELECT 1"), raw.commit(), raw.rollback()]
        )
        assert (await queue.stats()).ready == 1


async def test_a_disk_that_hangs(path, monkeypatch):
    """The caller goes on after a while; the thread cannot be stopped."""
    answers = threading.Event()
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        monkeypatch.setattr("microbatch.durable.connection.HOP_TIMEOUT", 0.05)
        with pytest.raises(QueueUnavailable, match=r"the disk did not answer for 0\.05 s"):
            await database(queue).glance(lambda raw: answers.wait(20))
        monkeypatch.undo()
        answers.set()
        assert (await queue.stats()).ready == 1


def test_two_processes_create_the_file_at_the_same_time(path, monkeypatch):
    """The second one finds it, between two looks."""

    def exists(*arguments):
        raise FileExistsError

    monkeypatch.setattr(os, "open", exists)
    create(path, allowed=True)


async def test_a_full_file_is_full_for_items_with_keys_and_priorities_too(path):
    """They take the longer way into the file."""
    async with DurableQueue(path, item_type=bytes, max_file_bytes=200_000) as queue:
        with pytest.raises(QueueFull, match="max_file_bytes"):
            for number in range(1000):
                await queue.enqueue(b"x" * 2000, key=str(number), priority=1)
    check_counts(path)


async def test_a_key_on_an_aiosqlite_connection(path):
    """Keys are written there as well."""
    async with DurableQueue(path, item_type=int) as queue:
        async with aiosqlite.connect(path, isolation_level=None) as connection:
            await connection.execute("PRAGMA synchronous = FULL")
            await connection.execute("BEGIN IMMEDIATE")
            first = await queue.enqueue_in(connection, 1, key="k")
            again = await queue.enqueue_in(connection, 1, key="k")
            await connection.commit()
        assert again.id == first.id
        assert (await queue.enqueue(1, key="k")).id == first.id


async def test_a_connection_whose_file_is_gone(path, tmp_path):
    """It is another file than the queue's, whatever it was."""
    async with DurableQueue(path, item_type=int) as queue:
        other = tmp_path / "other.db"
        async with DurableQueue(other, item_type=int):
            pass
        connection = sqlite3.connect(other, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        other.unlink()
        with pytest.raises(ValueError, match="enqueue_in needs a connection to"):
            queue.enqueue_in(connection, 1)
        connection.close()


async def test_callers_beyond_the_bound_wait_for_room(path, monkeypatch):
    """Every line has an end; this one lets callers wait."""
    monkeypatch.setattr("microbatch.durable.intake.PENDING_MAX", 2)
    async with batcher(path, Handler()) as durable:
        results = await asyncio.gather(*(durable.submit(number) for number in range(9)))
    assert results == [number * 2 for number in range(9)]


async def test_another_process_is_refused(path):
    """As a forked child sees it."""
    async with DurableQueue(path, item_type=int) as queue:
        queue._process = -1
        for call in (queue.stats, queue.aclose):
            with pytest.raises(RuntimeError, match="belongs to another process"):
                await call()
        queue._process = os.getpid()


def test_a_forked_child_forgets_the_lock_files(monkeypatch):
    """It has the descriptors and none of the locks."""
    monkeypatch.setattr(alive, "_open_files", {1: None})
    monkeypatch.setattr(alive, "_mutex", None)
    alive._forget_in_child()
    assert alive._open_files == {}


async def test_a_statement_that_fails_in_the_watch_does_not_end_it(path, monkeypatch, caplog):
    """Whatever it was, items must still be found."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(1)
        peek, failures = durable._store.peek, [sqlite3.ProgrammingError("odd")]

        async def odd(seen):
            if failures:
                raise failures.pop()
            return await peek(seen)

        monkeypatch.setattr(durable._store, "peek", odd)
        await until(lambda: "a statement failed" in caplog.text)
        async with DurableQueue(path, item_type=int) as queue:
            assert await queue.submit(2) == 4


async def test_an_older_schema_is_migrated_in_one_transaction(path, monkeypatch):
    """And then belongs to the newer version."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
    monkeypatch.setattr("microbatch.durable.store.SCHEMA_VERSION", 2)
    monkeypatch.setattr(
        "microbatch.durable.store.MIGRATIONS", {1: ("CREATE TABLE microbatch_new (x)",)}
    )
    async with DurableQueue(path, item_type=int) as queue:
        assert (await queue.stats()).ready == 1
    assert rows(path, "SELECT version FROM microbatch_schema") == [(2,)]
    monkeypatch.undo()
    with pytest.raises(SchemaTooNew):
        await DurableQueue(path, item_type=int).stats()


def test_no_log_has_no_size(path):
    """After the last connection is closed there is none."""
    assert wal_size(path) == 0


async def test_closing_while_another_program_holds_the_file(path, monkeypatch, caplog):
    """It ends in a bounded time; the lock goes with the consumer, so its items are taken back later."""
    monkeypatch.setattr("microbatch.durable.connection.LOCK_TIMEOUT", 0.1)
    durable = batcher(path, Handler())
    await durable.submit(1)
    with locked(path):
        await durable.aclose()
    assert "its items go back when this process ends" in caplog.text
    async with batcher(path, Handler()) as other:
        await until(lambda: len(rows(path, "SELECT * FROM microbatch_consumers")) == 1)
        assert await other.submit(2) == 4


async def test_on_settle_waits_for_a_locked_file_too(path, monkeypatch):
    """The item is settled once, when the lock is gone."""
    monkeypatch.setattr("microbatch.durable.connection.LOCK_TIMEOUT", 0.1)
    execute(path, "CREATE TABLE effects (item)")
    handler = Handler()
    handler.hold()

    async def on_settle(connection, items, results):
        await connection.executemany("INSERT INTO effects VALUES (?)", [(item,) for item in items])

    async with batcher(path, handler, on_settle=on_settle) as durable:
        ticket = await durable.enqueue(1)
        await until(lambda: handler.batches)
        with locked(path):
            handler.free.set()
            await anyio.sleep(0.4)
        assert await durable.result(ticket, 20) == 2
    assert rows(path, "SELECT * FROM effects") == [(1,)]


async def test_a_worker_follows_its_deleted_lock_file(path):
    """It writes down where its lock is now."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(1)
        lock_file = path.with_name("queue.db-alive")
        held = os.open(lock_file, os.O_RDONLY)
        lock_file.unlink()
        await until(lock_file.exists)
        now = lock_file.stat().st_ino
        await until(lambda: rows(path, "SELECT lock_file FROM microbatch_consumers") == [(now,)])
        os.close(held)


async def test_retention_goes_on_until_it_is_done(path, monkeypatch):
    """Step after step, with others in between."""
    monkeypatch.setattr("microbatch.durable.store.PRUNE_STEP", 3)
    async with batcher(path, Handler(), keep_done=1) as durable:
        await asyncio.gather(*(durable.submit(number) for number in range(20)))

        async def pruned():
            return (await durable.stats()).done == 1

        await until(pruned)
    check_counts(path)


async def test_an_inner_batcher_that_closes_gives_items_back(path, monkeypatch):
    """Whatever closed it, they are not lost."""
    async with batcher(path, Handler(), max_wait=10) as durable:
        first = await durable.enqueue(1)
        await until(lambda: durable._hands._unstarted == 1)
        await durable.pause()
        await durable._hands.engine.aclose(0)
        await until(lambda: rows(path, "SELECT state, attempts FROM microbatch_items") == [(0, 0)])
    async with batcher(path, Handler()) as durable:
        await durable.resume()
        assert await durable.result(first, 20) == 2

        engine, refusals = durable._hands.engine, [BatcherClosed("x")]
        entrance = engine.entrance
        enter = entrance.enter

        def refuse(self, *arguments, **settings):
            if self is entrance and refusals:
                raise refusals.pop()
            return enter.__func__(self, *arguments, **settings)

        monkeypatch.setattr(type(entrance), "enter", refuse)
        assert await durable.submit(3) == 6
    check_counts(path)
