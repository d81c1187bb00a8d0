"""Rare ways through the durable mode, each provoked on purpose."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time

import aiosqlite
import anyio
import pytest
from durable_support import (
    Handler,
    an_hour_passes,
    batcher,
    check_counts,
    execute,
    locked,
    on_writer,
    rows,
    states,
    until,
)

from microbatch import BatcherClosed
from microbatch.durable import DurableQueue, QueueFull, QueueUnavailable
from microbatch.durable._file import place
from microbatch.durable._file.schema import wal_size
from microbatch.durable._file.writer import Writer
from microbatch.durable._life.lock_file import files
from microbatch.durable._life.opening import _close_in_child

pytestmark = pytest.mark.anyio


async def test_a_transaction_that_was_left_open_is_rolled_back(path):
    """Whatever left one, whoever comes next must not fail for it."""
    async with DurableQueue(path, item_type=int) as queue:
        await on_writer(queue, "BEGIN IMMEDIATE", "DELETE FROM microbatch_queues")
        await queue.enqueue(1)
        assert (await queue.stats()).ready == 1


async def test_a_disk_that_hangs(path, monkeypatch):
    """Who reads goes on after a while; the thread cannot be stopped."""
    answers = threading.Event()

    def steps():
        answers.wait(20)
        yield "SELECT 1", (), False

    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        await queue.stats()  # it is open
        monkeypatch.setattr("microbatch.durable._file.reader.ANSWER_TIMEOUT", 0.05)
        with pytest.raises(QueueUnavailable, match=r"the disk did not answer for 0\.05 s"):
            await queue._service.store._readers.read(steps)
        monkeypatch.undo()
        answers.set()
        assert (await queue.stats()).ready == 1


def test_two_processes_create_the_file_at_the_same_time(path, monkeypatch):
    """The second one finds it, between two looks."""
    make = os.open

    def exists(*arguments):
        os.close(make(*arguments))
        raise FileExistsError

    monkeypatch.setattr(os, "open", exists)
    found = place.create_and_check(path)
    assert found == (path.stat().st_dev, path.stat().st_ino)


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


async def crowd(queue):
    """Fill the inbox with the file locked; return who did so, and what is in a transaction already."""
    first = asyncio.create_task(queue.enqueue(1))  # the writer has it, and waits for the file
    await until(lambda: queue._service.store.lock_waits)
    rest = [asyncio.create_task(queue.enqueue(number)) for number in (2, 3)]
    await until(lambda: queue._service.intake.crowded)
    return [first, *rest]


async def standing(queue, count):
    await until(lambda: len(queue._service.intake._standing) == count)


async def test_callers_beyond_the_bound_wait_for_room(path, monkeypatch):
    """Every line has an end: beyond so many bytes in the inbox callers wait, first come, first served."""
    monkeypatch.setattr("microbatch.durable._life.seat.INBOX_BYTES", 1)
    async with DurableQueue(path, item_type=int) as queue:
        with locked(path):
            tasks = await crowd(queue)
            for number in (4, 5, 6):
                tasks.append(asyncio.create_task(queue.enqueue(number)))
                await standing(queue, number - 3)
            tasks.pop(4).cancel()
            await standing(queue, 2)
        tickets = await asyncio.gather(*tasks)
    assert [ticket.id for ticket in tickets] == [1, 2, 3, 4, 5]
    assert rows(path, "SELECT payload FROM microbatch_items WHERE id = 5") == [(b"\x06",)]


async def test_who_waited_for_room_goes_on_together(path, monkeypatch):
    """Not one by one, each with a sync of its own."""
    monkeypatch.setattr("microbatch.durable._life.seat.INBOX_BYTES", 1)
    transactions = []
    write = Writer._write
    monkeypatch.setattr(
        Writer, "_write", lambda writer, asks: transactions.append(asks) or write(writer, asks)
    )
    async with DurableQueue(path, item_type=int) as queue:
        with locked(path):
            tasks = await crowd(queue)
            tasks += [asyncio.create_task(queue.enqueue(number)) for number in range(200)]
            await standing(queue, 200)
            monkeypatch.setattr("microbatch.durable._life.seat.INBOX_BYTES", 100)
            transactions.clear()
        await asyncio.gather(*tasks)
    assert len(transactions) < 50


async def test_who_waits_for_room_hears_of_the_close(path, monkeypatch):
    """Nobody is left in a line that no longer moves."""
    monkeypatch.setattr("microbatch.durable._life.seat.INBOX_BYTES", 1)
    queue = DurableQueue(path, item_type=int)
    await queue.__aenter__()
    with locked(path):
        tasks = await crowd(queue)
        late = asyncio.create_task(queue.enqueue(4))
        await standing(queue, 1)
        closing = asyncio.create_task(queue.aclose())
        with pytest.raises(BatcherClosed):
            await late
    await closing
    assert [(await task).id for task in tasks] == [1, 2, 3]


async def test_another_process_is_refused(path):
    """As a forked child sees it."""
    async with DurableQueue(path, item_type=int) as queue:
        queue._opening._process = -1
        _close_in_child()  # the hook at a fork
        for call in (queue.stats, queue.aclose):
            with pytest.raises(RuntimeError, match="belongs to another process"):
                await call()
        queue._opening._process = os.getpid()


def test_a_forked_child_forgets_the_lock_files():
    """It has the descriptors and none of the locks; nor may it find the mutex held for ever."""
    before, mutex = files.open, files.mutex
    files.open = {"1:2": object()}
    try:
        files.forget()
        assert files.open == {}
        assert files.mutex is not mutex
    finally:
        files.open, files.mutex = before, mutex


#: What the writer does on its own account, and a statement of it that an application's trigger may refuse.
ON_ITS_OWN = {
    "claiming": "BEFORE INSERT ON microbatch_ranges WHEN new.state = 2",
    "retention": "BEFORE DELETE ON microbatch_ranges WHEN old.state = 3",
}


@pytest.mark.parametrize("what", ON_ITS_OWN)
async def test_what_the_writer_fails_in_on_its_own_account_does_not_end_it(path, caplog, what):
    """Callers of all queues are served meanwhile; it is tried again, said once, and works when it may."""
    handler = Handler()
    async with (
        batcher(path, handler, keep_done=0) as durable,
        batcher(path, Handler(), queue="other") as other,
    ):
        await durable.pause()
        await durable.enqueue_many([1, 2, 3], priority=1)
        execute(
            path,
            f"CREATE TRIGGER odd {ON_ITS_OWN[what]} AND "
            f"{'old' if 'DELETE' in ON_ITS_OWN[what] else 'new'}.queue = 1 "
            "BEGIN SELECT RAISE(ABORT, 'unlucky'); END",
        )
        await durable.resume()
        await until(lambda: "unlucky" in caplog.text)
        for number in range(5):
            assert await other.submit(number) == number * 2
            await durable.enqueue(number, delay=1000)
        await anyio.sleep(0.2)
        assert caplog.text.count("a statement failed, trying again") == 1
        execute(path, "DROP TRIGGER odd")
        await until(lambda: sorted(handler.items) == [1, 2, 3])

        async def pruned():
            return (await durable.stats()).done == 0

        await until(pruned)
    check_counts(path)


@pytest.mark.parametrize("what", ["a fault", "an odd statement"])
async def test_trouble_with_a_claim_does_not_keep_the_processor_busy(path, monkeypatch, what):
    """It is tried again after a pause, as everything else."""
    monkeypatch.undo()  # the pauses as in use
    tries = []
    transact = Writer.transact

    def counted(writer, function):
        tries.append(function)
        return transact(writer, function)

    monkeypatch.setattr(Writer, "transact", counted)
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        await durable.pause()
        await durable.enqueue(2)
        trigger = "BEFORE INSERT ON microbatch_ranges WHEN new.state = 2"
        execute(path, f"CREATE TRIGGER odd {trigger} BEGIN SELECT RAISE(ABORT, 'unlucky'); END")
        if what == "a fault":
            monkeypatch.setattr(
                "microbatch.durable._file.connection.FAULTS", {sqlite3.SQLITE_CONSTRAINT}
            )
        execute(path, "UPDATE microbatch_queues SET paused = 0")
        await until(lambda: tries)
        work, began = time.process_time(), time.monotonic()
        tries.clear()
        await anyio.sleep(1)
        found = len(tries)
        lasted = time.monotonic() - began
        assert found <= 8 * lasted
        assert time.process_time() - work < lasted / 2  # a loop that turns takes all of it
        await until(lambda: tries)
        execute(path, "DROP TRIGGER odd")
        handler.free.set()
        assert await durable.result(1, 20) == 4


async def test_who_waited_for_company_in_vain_does_not_keep_the_processor_busy(path):
    """Another process has taken what was there: the time that it waited is over, and nothing is to be done."""
    async with batcher(path, Handler(), max_wait=3600.0) as durable:
        await durable.enqueue(1)
        await until(lambda: durable._service.store._client.wanted_since)
        await durable.pause()
        await an_hour_passes(durable)
        work, began = time.process_time(), time.monotonic()
        await anyio.sleep(0.5)
        assert time.process_time() - work < (time.monotonic() - began) / 2
        await durable.resume()
        await an_hour_passes(durable)
        assert await durable.result(1, 20) == 2


async def test_a_writer_that_fails_refuses_everything(path, monkeypatch, caplog):
    """A bug of ours must not let anybody wait for ever; whoever opens the file anew gets a new one."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        monkeypatch.setattr(Writer, "_committed", lambda *_: 1 / 0)
        tasks = [asyncio.create_task(queue.enqueue(2)) for _ in range(2)]
        for task in tasks:
            with pytest.raises(QueueUnavailable, match="its writer failed; the log says why"):
                await task
        with pytest.raises(QueueUnavailable, match="its writer failed"):
            await queue.enqueue(2)
        with pytest.raises(QueueUnavailable, match="its writer failed"):
            await queue._service.store._client.turn(lambda: None)
        await queue._service.store.ask_for_nothing()
        monkeypatch.undo()
    assert "ZeroDivisionError" in caplog.text
    async with DurableQueue(path, item_type=int) as queue:
        assert (await queue.stats()).ready == 3  # the first two had reached the disk, once
    caplog.clear()


async def test_claims_that_on_settle_has_ended_are_forgotten(path):
    """A worker that runs for a year must not remember each of its batches."""

    async def on_settle(connection, items, results):
        pass

    async with batcher(path, Handler(), on_settle=on_settle) as durable:
        for number in range(20):
            await durable.submit(number)
        assert len(durable._service.store._client.claims) <= 2
        assert len(durable._service.consumer.settling._finished) <= 2


def test_no_log_has_no_size(path):
    """After the last connection is closed there is none."""
    assert wal_size(path) == 0


async def test_closing_while_another_program_holds_the_file(path, monkeypatch, caplog):
    """It ends in a bounded time; the lock goes with the consumer, so its items are taken back later."""
    monkeypatch.setattr("microbatch.durable._file.connection.LOCK_TIMEOUT", 0.1)
    durable = batcher(path, Handler())
    await durable.submit(1)
    with locked(path):
        await durable.aclose()
    assert "its items go back once others look" in caplog.text
    async with batcher(path, Handler()) as other:
        await until(lambda: len(rows(path, "SELECT * FROM microbatch_consumers")) == 1)
        assert await other.submit(2) == 4


async def test_on_settle_waits_for_a_locked_file_too(path, monkeypatch, caplog):
    """The item is settled once, when the lock is gone, however often that was tried."""
    monkeypatch.setattr("microbatch.durable._file.connection.LOCK_TIMEOUT", 0.1)
    monkeypatch.setattr("microbatch.durable._file.transactions.LOCK_TIMEOUT", 0.1)
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
            await until(lambda: "outcomes wait for the disk" in caplog.text)
        await until(lambda: states(path) == {1: "done"})  # who waits hears of each time in vain
        assert await durable.result(ticket, 20) == 2
    assert rows(path, "SELECT * FROM effects") == [(1,)]


async def test_a_worker_follows_its_deleted_lock_file(path):
    """It writes down where its lock is now."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(1)
        lock_file = path.with_name("queue.db-alive")
        before = rows(path, "SELECT lock_file FROM microbatch_consumers")
        lock_file.unlink()
        await until(lock_file.exists)
        now = lock_file.stat()
        wanted = [(f"{now.st_dev}:{now.st_ino}",)]
        assert wanted != before
        await until(lambda: rows(path, "SELECT lock_file FROM microbatch_consumers") == wanted)


async def test_retention_goes_on_until_it_is_done(path, monkeypatch):
    """Step after step, with others in between."""
    monkeypatch.setattr("microbatch.durable._file.keeping.PRUNE_STEP", 3)
    async with batcher(path, Handler(), keep_done=1) as durable:
        await asyncio.gather(*(durable.submit(number) for number in range(20)))

        async def pruned():
            return (await durable.stats()).done == 1

        await until(pruned)
    check_counts(path)


async def test_what_the_engine_refuses_goes_back(path, monkeypatch):
    """It may close between a claim and its arrival; the items are not lost, and no attempt is counted."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        entrance, refusals = durable._service.hands.engine.entrance, [BatcherClosed("x")]
        enter = type(entrance).enter

        def refuse(self, *arguments, **settings):
            if self is entrance and refusals:
                raise refusals.pop()
            return enter(self, *arguments, **settings)

        monkeypatch.setattr(type(entrance), "enter", refuse)
        assert await durable.submit(3) == 6
        assert refusals == []
        assert handler.infos[0].attempts == (1,)
    check_counts(path)


async def test_a_group_that_is_being_brought_goes_with_its_queue(path, monkeypatch):
    """Closing leaves nothing of it in the file, and whoever brings it is told so, and not left to wait."""
    monkeypatch.setattr("microbatch.durable._flow.many.HANDED_ITEMS", 10)
    queue = DurableQueue(path, item_type=int)

    def items():
        yield from range(25)
        closing.append(asyncio.create_task(queue.aclose()))
        yield from range(25, 100_000)

    closing = []
    with pytest.raises(BatcherClosed):
        await queue.enqueue_many(items())
    await closing[0]
    assert states(path) == {}
    assert rows(path, "SELECT count(*) FROM microbatch_blobs") == [(0,)]
    assert rows(path, "SELECT count(*) FROM microbatch_consumers") == [(0,)]
    check_counts(path)


async def test_a_group_whose_bringer_goes_while_the_queue_closes_leaves_nothing(path, monkeypatch):
    """Both clean up; neither waits for the other."""
    monkeypatch.setattr("microbatch.durable._flow.many.HANDED_ITEMS", 10)
    async with DurableQueue(path, item_type=int) as queue:
        bringing = asyncio.create_task(queue.enqueue_many(range(100_000)))
        await until(lambda: rows(path, "SELECT sum(staged) FROM microbatch_queues") > [(30,)])
        bringing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bringing
    assert states(path) == {}
    assert rows(path, "SELECT count(*) FROM microbatch_consumers") == [(0,)]
    check_counts(path)


@pytest.mark.parametrize("size", [2**63 - 1, 10**24])
async def test_a_batch_size_beyond_sqlites_numbers_is_no_limit(path, size):
    """Over three slots at that: it claimed nothing then, and said nothing."""
    async with batcher(path, Handler(), max_batch_size=size, max_concurrency=3) as worker:
        job = await worker.enqueue_job([1, 2])
        assert (await job.wait(10)).succeeded == 2
