"""What comes between opening and open, and between closing and closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3

import anyio
import pytest
from durable_support import (
    Handler,
    NewThreads,
    batcher,
    check_counts,
    ends_loops,
    locked,
    rows,
    until,
)

from microbatch import BatcherClosed, Retry
from microbatch.durable import DurableQueue, QueueUnavailable

in_a_loop = pytest.mark.anyio


async def make(path):
    """Make the file, so that opening it again needs no more than the consumer's row."""
    async with DurableQueue(path, item_type=int):
        pass


async def opening(durable):
    """Wait until somebody is opening it: for ever, as the caller holds the file's lock."""
    await until(
        lambda: durable._opening.locked() and durable._store._database._connection is not None
    )


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
        closed.append(durable._store._database._connection)

    async with anyio.create_task_group() as tasks:
        with locked(path):
            tasks.start_soon(submit)
            await opening(durable)
            tasks.start_soon(close)
            tasks.start_soon(close)
            await until(lambda: durable._state == "closed")
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
    assert await durable.submit(1) == 2
    await durable.aclose()
    check_counts(path)


@in_a_loop
async def test_an_opening_that_fails_halfway_leaves_nothing_open(path, monkeypatch):
    """The file was opened, but this consumer could not be written into it."""
    await make(path)
    threads = NewThreads()
    durable = batcher(path, Handler())
    monkeypatch.setattr("microbatch.durable.connection.LOCK_TIMEOUT", 0.1)
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
            before = durable._store._database.lock_waits
            tasks.start_soon(submit)
            await until(lambda: durable._store._database.lock_waits > before)
            tasks.start_soon(durable.aclose)
            await until(lambda: durable._state == "closing")
    assert ends in ([2], [True])
    assert rows(path, "SELECT state FROM microbatch_items") == [(3,) if ends == [2] else (0,)]
    check_counts(path)


@in_a_loop
async def test_closing_at_once_between_a_submit_and_its_commit(path):
    """A transaction that has not begun by then never does."""
    durable = batcher(path, Handler())
    await durable.stats()
    ended = []

    async def submit():
        with pytest.raises(BatcherClosed) as caught:
            await durable.submit(1)
        assert str(caught.value).startswith(f"batcher {durable.name!r}")
        ended.append(True)

    async with anyio.create_task_group() as tasks:
        with locked(path):
            before = durable._store._database.lock_waits
            tasks.start_soon(submit)
            await until(lambda: durable._store._database.lock_waits > before)
            tasks.start_soon(durable.aclose, 0)
            await until(lambda: ended)
            waits = durable._store._database.lock_waits  # the attempt under way ends with the first
            await until(lambda: durable._store._database.lock_waits >= waits + 2)
    assert rows(path, "SELECT state FROM microbatch_items") == []


def end_without_cancelling(loop):
    """End an event loop as some frameworks do: nobody is told."""
    loop.close()
    gc.collect()


@ends_loops
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
        await until(lambda: durable._state == "closing")

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
async def test_closing_while_a_claim_is_under_way(path):
    """What it brings goes back at once, as if nobody had claimed it."""
    handler = Handler()
    durable = batcher(path, handler)
    await durable.stats()
    hands = durable._hands
    hands.taking = False
    ticket = await durable.enqueue(1)
    async with anyio.create_task_group() as tasks:
        with locked(path):
            hands.taking = True
            hands.more_to_do()
            assert hands.claiming
            waits = durable._store._database.lock_waits
            await until(lambda: durable._store._database.lock_waits > waits)
            tasks.start_soon(durable.aclose)
            await until(lambda: durable._state == "closing")
    assert handler.batches == []
    assert rows(path, "SELECT state, attempts, suspect FROM microbatch_items") == [(0, 0, 0)]
    check_counts(path)
    async with batcher(path, handler) as other:
        assert await other.result(ticket, 20) == 2


@in_a_loop
async def test_a_close_in_the_middle_of_a_commit_buries_nothing(path, monkeypatch):
    """The item was claimed as it was stored, and its only attempt counted; but no handler has seen it."""
    handler = Handler()
    durable = batcher(path, handler, retry=Retry(on=OSError, attempts=1))
    await durable.stats()
    append, stored = durable._store.append, anyio.Event()

    async def late(payloads, take):
        answer = await append(payloads, take)
        stored.set()
        await anyio.sleep_forever()
        return answer

    monkeypatch.setattr(durable._store, "append", late)
    async with anyio.create_task_group() as tasks:

        async def enqueue():
            with pytest.raises(BatcherClosed):
                await durable.enqueue(1)

        tasks.start_soon(enqueue)
        await stored.wait()
        assert rows(path, "SELECT state, attempts FROM microbatch_items") == [(2, 1)]
        await durable.aclose(0)
    assert rows(path, "SELECT state FROM microbatch_items") == [(0,)]
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
