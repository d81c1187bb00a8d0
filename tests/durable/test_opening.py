"""What comes between opening and open, and between closing and closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import threading
import time

import anyio
import pytest
from durable_support import (
    Handler,
    NewThreads,
    batcher,
    check_counts,
    ends_loops,
    execute,
    locked,
    on_writer,
    rows,
    states,
    until,
    writer_of,
)
from support import turns

from microbatch import BatcherClosed, Retry
from microbatch.durable import DurableQueue, QueueUnavailable
from microbatch.testing import virtual_time

in_a_loop = pytest.mark.anyio


async def make(path):
    """Make the file, so that opening it again needs no more than the consumer's row."""
    async with DurableQueue(path, item_type=int):
        pass


async def opening(durable):
    """Wait until somebody is opening it: for ever, as the caller holds the file's lock."""
    await until(lambda: (writer := writer_of(durable)) is not None and writer.lock_waits)


@in_a_loop
async def test_closing_while_it_opens(path):
    """The first call finds it closed; nothing is left open when `aclose` returns."""
    await make(path)
    threads = NewThreads()
    durable = batcher(path, Handler())
    closed = []

    async def submit():
        with pytest.raises(BatcherClosed):
            await durable.submit(1)

    async def close():
        await durable.aclose()
        closed.append(writer_of(durable).connection._raw)

    async with anyio.create_task_group() as tasks:
        with locked(path):
            tasks.start_soon(submit)
            await opening(durable)
            tasks.start_soon(close)
            tasks.start_soon(close)
            await until(lambda: durable._opening.state == "closed")
            assert not closed
    assert closed == [None, None]
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    assert rows(path, "SELECT * FROM microbatch_items") == []
    await until(lambda: not threads.running())


@pytest.mark.parametrize("native", [False, True], ids=["scope", "task"])
@in_a_loop
async def test_an_opening_that_is_cancelled_leaves_nothing_open(path, native):
    """`async with` has no end to close it at then; and it can be opened later."""
    await make(path)
    threads = NewThreads()
    durable = batcher(path, Handler())
    with locked(path):
        if native:
            task = asyncio.ensure_future(durable.__aenter__())
            await opening(durable)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(durable.__aenter__)
                await opening(durable)
                tasks.cancel_scope.cancel()
    await until(lambda: not threads.running())
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    assert await durable.submit(1) == 2
    await durable.aclose()
    check_counts(path)


@in_a_loop
async def test_an_opening_that_fails_halfway_leaves_nothing_open(path, monkeypatch):
    """The file was opened, but this consumer could not be written into it."""
    await make(path)
    threads = NewThreads()
    durable = batcher(path, Handler())
    monkeypatch.setattr("microbatch.durable._file.connection.LOCK_TIMEOUT", 0.1)
    with locked(path), pytest.raises(QueueUnavailable, match="kept it locked"):
        await durable.submit(1)
    await until(lambda: not threads.running())
    monkeypatch.undo()
    assert await durable.submit(1) == 2
    await durable.aclose()


@in_a_loop
async def test_closing_between_a_submit_and_its_commit(path):
    """The item reaches the disk; its caller hears that it closed, or the result if the handler was in time."""
    handler = Handler()
    durable = batcher(path, handler)
    await durable.stats()
    ends = []

    async def submit():
        try:
            ends.append(await durable.submit(1))
        except BatcherClosed as error:
            ends.append(error.started)

    async with anyio.create_task_group() as tasks:
        with locked(path):
            before = durable._service.store.lock_waits
            tasks.start_soon(submit)
            await until(lambda: durable._service.store.lock_waits > before)
            tasks.start_soon(durable.aclose)
            await until(lambda: durable._opening.state == "closing")
    assert ends in ([2], [True])
    assert states(path) == {1: "done" if ends == [2] else "ready"}
    check_counts(path)


@in_a_loop
async def test_closing_at_once_between_a_submit_and_its_commit(path, monkeypatch):
    """Callers hear that it closed, and closing ends, while somebody keeps the file locked.

    What the writer has begun it does once it can: the item is stored then, and in nobody's hand.
    """
    monkeypatch.setattr("microbatch.durable._flow.consumer.SETTLE_GRACE", 0.3)
    monkeypatch.setattr("microbatch.durable._flow.service.CLOSE_GRACE", 0.3)
    threads = NewThreads()
    handler = Handler()
    durable = batcher(path, handler)
    await durable.stats()
    ended = []

    async def bring(call):
        with pytest.raises(BatcherClosed) as caught:
            await call(1)
        assert str(caught.value).startswith(f"batcher {durable.name!r}")
        assert caught.value.started  # whether it was stored is open
        ended.append(call)

    async with anyio.create_task_group() as tasks:
        with locked(path):
            before = durable._service.store.lock_waits
            tasks.start_soon(bring, durable.submit)
            tasks.start_soon(bring, durable.enqueue)
            await (
                turns()
            )  # whatever the writer waits for by now, it has both before it hears of the close
            await until(lambda: durable._service.store.lock_waits > before)
            await durable.aclose(0)
            await until(lambda: len(ended) == 2)
            assert rows(path, "SELECT * FROM microbatch_items") == []
    await until(lambda: not threads.running())
    assert handler.batches == []
    assert states(path) == {1: "ready", 2: "ready"}
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    check_counts(path)


@in_a_loop
async def test_closing_while_the_disk_hangs_beneath_what_reads_and_settles(
    path, monkeypatch, caplog
):
    """It hangs for longer than closing waits: once it goes on nothing stays open or in anybody's hands."""
    monkeypatch.setattr("microbatch.durable._flow.service.CLOSE_GRACE", 0.1)
    threads = NewThreads()

    async def on_settle(connection, items, results):
        pass

    durable = batcher(path, Handler(), on_settle=on_settle)
    assert await durable.submit(1) == 2
    await durable.stats()
    readers = durable._service.store._readers
    goes_on = threading.Event()
    for connection in (readers._reader, readers._settler):
        connection._host.tell(goes_on.wait)
    await durable.aclose(0)
    assert "closed while its file is locked" in caplog.text
    assert {thread.name for thread in threads.running()} >= {f"microbatch beside {path.name}"}
    goes_on.set()
    await until(lambda: not threads.running())
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    check_counts(path)


@in_a_loop
async def test_news_that_come_while_it_leaves_the_file_begin_no_task(path, monkeypatch):
    """An outcome may be dropped then, a job may end: nobody would end the task that cared for it."""

    async def on_job_end(status):
        raise AssertionError

    durable = batcher(path, Handler(), on_job_end=on_job_end)
    assert await durable.submit(1) == 2
    service = durable._service
    leave = service.store.close

    async def hears():
        service._wanted.ask([1])
        service.watching.wanted.ask(["a job"])
        service.tell_end(("a job", 0))
        await leave()

    monkeypatch.setattr(service.store, "close", hears)
    before = asyncio.all_tasks()
    await durable.aclose()
    assert asyncio.all_tasks() <= before


def end_without_cancelling(loop):
    """End an event loop as some frameworks do: nobody is told."""
    loop.close()
    gc.collect()


@ends_loops
@pytest.mark.asyncio_logs
def test_a_loop_that_ends_while_it_opens(path):
    """The next loop opens it: the lock that guards the opening has gone with its loop."""
    asyncio.run(make(path))
    durable = batcher(path, Handler())
    loop = asyncio.new_event_loop()
    submitted = []

    async def first():
        submitted.append(asyncio.ensure_future(durable.submit(1)))
        await opening(durable)

    with locked(path):
        loop.run_until_complete(first())
        end_without_cancelling(loop)

    async def second():
        assert await durable.submit(2) == 4
        await durable.aclose()

    asyncio.run(second())
    submitted.clear()
    gc.collect()  # asyncio says that the first call was never ended


@ends_loops
def test_a_loop_that_ends_while_it_closes(path, caplog):
    """It is closed then, and says so instead of waiting for a task that is gone."""
    handler = Handler()
    durable = batcher(path, handler)
    loop = asyncio.new_event_loop()
    closing = []

    async def first():
        handler.hold()
        await durable.enqueue(1)
        await until(lambda: handler.batches)
        closing.append(asyncio.ensure_future(durable.aclose(None)))
        await until(lambda: durable._opening.state == "closing")

    loop.run_until_complete(first())
    end_without_cancelling(loop)

    async def second():
        await durable.aclose()
        with pytest.raises(BatcherClosed):
            await durable.submit(2)
        async with batcher(path, Handler()) as other:  # nothing of it holds the item
            assert await other.result(1, 20) == 2

    asyncio.run(second())


def test_a_loop_that_ends_after_an_opening_failed(path):
    """The next one tries anew: there is nothing to forget."""
    path.mkdir()
    durable = batcher(path, Handler())

    async def first():
        with pytest.raises(QueueUnavailable, match="it is a directory"):
            await durable.submit(1)

    asyncio.run(first())
    path.rmdir()

    async def second():
        assert await durable.submit(1) == 2
        await durable.aclose()

    asyncio.run(second())


@in_a_loop
async def test_closing_while_a_claim_is_under_way(path, monkeypatch):
    """What it brings goes back at once, as if nobody had claimed it."""
    handler = Handler()
    durable = batcher(path, handler, poll_interval=3600)
    ticket = await durable.enqueue(1, delay=60)  # then it is claimed in a transaction of its own
    async with anyio.create_task_group() as tasks:
        with locked(path):
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + 61)
            await on_writer(durable)  # it looks anew when something is due
            waits = durable._service.store.lock_waits
            await until(lambda: durable._service.store.lock_waits > waits)
            tasks.start_soon(durable.aclose)
            await until(lambda: durable._opening.state == "closing")
    assert handler.batches == []
    assert rows(path, "SELECT state, attempts FROM microbatch_items") == [("ready", 0)]
    check_counts(path)
    async with batcher(path, handler) as other:
        assert await other.result(ticket, 20) == 2


@in_a_loop
async def test_a_close_in_the_middle_of_a_commit_buries_nothing(path):
    """The item is claimed as it is stored, and it has one attempt; but no handler has seen it."""
    handler = Handler()
    durable = batcher(path, handler, retry=Retry(on=OSError, attempts=1))
    await durable.stats()
    async with anyio.create_task_group() as tasks:

        async def submit():
            with pytest.raises(BatcherClosed):
                await durable.submit(1)

        with locked(path):
            waits = durable._service.store.lock_waits
            tasks.start_soon(submit)
            await until(lambda: durable._service.store.lock_waits > waits)
            tasks.start_soon(durable.aclose, 0)
            await until(lambda: durable._opening.state == "closing")
    assert handler.batches == []
    assert rows(path, "SELECT state, attempts FROM microbatch_items") == [("ready", 0)]
    async with batcher(path, handler) as other:
        assert await other.result(1, 20) == 2


@in_a_loop
async def test_a_file_whose_tables_are_not_ours_is_refused_by_name(path):
    """A statement of ours that the file refuses is the file's fault, not the caller's: who waits can go on."""
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE microbatch_items (id INTEGER)")
    durable = batcher(path, Handler())
    with pytest.raises(QueueUnavailable, match=r"tables cannot be made or read.*already exists"):
        await durable.submit(1)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("DROP TABLE microbatch_items")
    assert await durable.submit(1) == 2
    await durable.aclose()


@in_a_loop
async def test_an_opening_that_is_cancelled_and_cannot_be_undone_is_left_to_others(
    path, monkeypatch, caplog
):
    """The file cannot be written just then: its consumer is in nobody's way, and is taken for dead."""
    monkeypatch.setattr("microbatch.durable._file.connection.FAULTS", {sqlite3.SQLITE_CONSTRAINT})
    trigger = "BEFORE DELETE ON microbatch_consumers BEGIN SELECT RAISE(ABORT, 'unlucky'); END"
    async with DurableQueue(path, item_type=int) as queue:
        execute(path, f"CREATE TRIGGER odd {trigger}")
        given_up = batcher(path, Handler())
        with locked(path):
            entering = asyncio.create_task(given_up.__aenter__())
            await opening(given_up)
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
        await until(lambda: "cannot be used: unlucky" in caplog.text)
        assert len(rows(path, "SELECT * FROM microbatch_consumers")) == 1
        execute(path, "DROP TRIGGER odd")
        async with batcher(path, Handler()) as other:
            assert await other.submit(2) == 4
            await until(lambda: len(rows(path, "SELECT * FROM microbatch_consumers")) == 1)
        assert await queue.enqueue(1)
    check_counts(path)


@in_a_loop
async def test_what_a_task_of_the_queues_own_fails_in_is_logged(path, caplog):
    """Nobody awaits it, so nobody else would say so; whoever waits for its end goes on."""

    async def fail():
        raise LookupError("no tea")

    async with DurableQueue(path, item_type=int) as queue:
        await queue.stats()
        await queue._opening.spawn(fail(), "brewing").ended.wait()
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert record.getMessage() == "queue 'default': its brewing failed"
    assert isinstance(record.exc_info[1], LookupError)
    caplog.clear()


def test_virtual_time_does_not_jump_while_a_queue_is_open(path):
    """What its thread and its file have under way would be overtaken by every timeout."""
    month = 30 * 86_400.0

    async def main():
        loop = asyncio.get_running_loop()
        async with batcher(path, Handler()) as durable:
            ticket = await durable.enqueue(1)
            assert await durable.result(ticket, timeout=month) == 2
            assert loop.time() < month
        await asyncio.sleep(month)  # in real time this test would be ended by its limit
        missing = DurableQueue(path.parent / "missing" / "queue.db", item_type=int)
        with pytest.raises(QueueUnavailable):
            await missing.enqueue(1)
        await asyncio.sleep(month)
        return loop.time()

    with asyncio.Runner(**virtual_time()) as runner:
        assert runner.run(main()) >= 2 * month


@in_a_loop
async def test_a_new_file_that_another_program_holds_is_waited_for(path):
    """Its tables cannot be made before that: two processes may make them at once, and one be stopped meanwhile."""
    execute(path, "PRAGMA journal_mode = WAL", "CREATE TABLE application (id)")
    async with asyncio.timeout(20):
        with locked(path):
            durable = batcher(path, Handler())
            submitting = asyncio.create_task(durable.submit(1))
            await until(lambda: (writer := writer_of(durable)) is not None and writer.lock_waits)
            assert not submitting.done()
        assert await submitting == 2
        await durable.aclose()
