"""on_settle: effects that are in the file exactly once."""

from __future__ import annotations

import asyncio
import sqlite3

import anyio
import pytest
from durable_support import Handler, batcher, check_counts, execute, rows, until

from microbatch import Backoff, Retry
from microbatch.durable import ItemFailed

pytestmark = pytest.mark.anyio


@pytest.fixture
def effects(path):
    execute(path, "CREATE TABLE effects (item INTEGER, result INTEGER)")


async def write(connection, items, results):
    await connection.executemany(
        "INSERT INTO effects VALUES (?, ?)", list(zip(items, results, strict=True))
    )


async def test_its_writes_commit_with_the_settle(path, effects):
    """Exactly once, with the succeeded items only."""
    async with batcher(path, Handler(fails={3: ValueError()}), on_settle=write) as durable:
        results = await asyncio.gather(
            *(durable.submit(n) for n in range(6)), return_exceptions=True
        )
    assert isinstance(results[3], ItemFailed)
    assert sorted(rows(path, "SELECT * FROM effects")) == [(n, n * 2) for n in (0, 1, 2, 4, 5)]
    check_counts(path)


async def test_if_it_raises_its_items_failed(path, effects):
    """And nothing of what it wrote is there."""

    async def broken(connection, items, results):
        await write(connection, items, results)
        raise LookupError("no stock")

    async with batcher(path, Handler(), on_settle=broken) as durable:
        with pytest.raises(ItemFailed, match="LookupError: no stock"):
            await durable.submit(1)
        assert (await durable.stats()).dead == 1
    assert rows(path, "SELECT * FROM effects") == []
    check_counts(path)


async def test_what_it_raises_can_be_retried(path, effects):
    """Like what the handler raises."""
    calls = []

    async def flaky(connection, items, results):
        calls.append(items)
        await write(connection, items, results)
        if len(calls) < 3:
            raise OSError("busy")

    retry = Retry(on=OSError, backoff=Backoff(initial=0.01))
    async with batcher(path, Handler(), on_settle=flaky, retry=retry) as durable:
        assert await durable.submit(1) == 2
    assert rows(path, "SELECT * FROM effects") == [(1, 2)]


async def test_a_statement_of_its_that_fails(path, effects):
    """A constraint of the application's is the usual reason."""
    execute(path, "CREATE UNIQUE INDEX one ON effects (item)", "INSERT INTO effects VALUES (1, 0)")
    async with batcher(path, Handler(), on_settle=write) as durable:
        with pytest.raises(ItemFailed, match="IntegrityError: UNIQUE constraint failed"):
            await durable.submit(1)
        assert await durable.submit(2) == 4


async def test_it_is_bounded_by_a_timeout(path, monkeypatch):
    """It holds the file's write lock: nobody can write meanwhile."""
    monkeypatch.setattr("microbatch.durable.file_store.ON_SETTLE_TIMEOUT", 0.05)

    async def slow(connection, items, results):
        await anyio.sleep(60)

    async with batcher(path, Handler(), on_settle=slow) as durable:
        with pytest.raises(ItemFailed, match="TimeoutError"):
            await durable.submit(1)
    check_counts(path)


@pytest.mark.parametrize(
    "end",
    [
        lambda connection: connection.commit(),
        lambda connection: connection.rollback(),
        lambda connection: connection.execute(" COMMIT"),
        lambda connection: connection.execute("begin"),
        lambda connection: connection.executescript("SELECT 1"),
    ],
)
async def test_it_may_not_end_the_transaction(path, effects, end):
    """Its effect and the settle would no longer be one."""

    async def ends(connection, items, results):
        await write(connection, items, results)
        await end(connection)

    async with batcher(path, Handler(), on_settle=ends) as durable:
        with pytest.raises(
            ItemFailed, match="ProgrammingError: on_settle runs inside the settle transaction"
        ):
            await durable.submit(1)
    assert rows(path, "SELECT * FROM effects") == []


async def test_ending_it_behind_our_back_is_noticed(path, effects):
    """A cursor's COMMIT cannot be refused; the item is settled with it and must not be handled again."""
    handler = Handler()

    async def ends(connection, items, results):
        await write(connection, items, results)
        cursor = await connection.cursor()
        await cursor.execute("COMMIT")
        await cursor.close()

    async with batcher(path, handler, on_settle=ends) as durable:
        ticket = await durable.enqueue(1)
        assert await durable.result(ticket, 20) == 2
    assert rows(path, "SELECT * FROM effects") == [(1, 2)]
    assert handler.items == [1]
    check_counts(path)


async def test_nothing_else_uses_the_connection_meanwhile(path, effects):
    """What others write must not end up in this transaction, or be rolled back with it."""
    inside = anyio.Event()
    goes_on = anyio.Event()

    async def waits(connection, items, results):
        inside.set()
        await goes_on.wait()
        raise ValueError("rolled back")

    async with batcher(path, Handler(), on_settle=waits) as durable:
        first = await durable.enqueue(1)
        await inside.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(durable.enqueue, 2)
            await anyio.sleep(0.05)
            assert rows(path, "SELECT count(*) FROM microbatch_items") == [(1,)]
            goes_on.set()
        with pytest.raises(ItemFailed):
            await durable.result(first)
        assert rows(path, "SELECT count(*) FROM microbatch_items") == [(2,)]


async def test_closing_while_it_runs_leaves_no_transaction_open(path, effects):
    """Another process could not write for ever."""
    started = anyio.Event()

    async def slow(connection, items, results):
        await write(connection, items, results)
        started.set()
        await anyio.sleep(0.2)

    durable = batcher(path, Handler(), on_settle=slow)
    await durable.enqueue(1)
    await started.wait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await durable.aclose()
    await until(lambda: durable._state == "closed")
    connection = sqlite3.connect(path, timeout=0.1)
    connection.execute("BEGIN IMMEDIATE")
    connection.close()
    assert rows(path, "SELECT * FROM effects") == [(1, 2)]
    assert rows(path, "SELECT state FROM microbatch_items") == [(3,)]


async def test_only_items_that_are_still_ours_are_shown_to_it(path, effects):
    """Somebody purged or took the item: its effect belongs to them."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, on_settle=write) as durable:
        await durable.enqueue_many([1, 2])
        await until(lambda: handler.batches)
        execute(path, "UPDATE microbatch_items SET claim = claim + 1 WHERE id = 1")
        handler.free.set()
        assert await durable.result(2, 20) == 4
    assert rows(path, "SELECT * FROM effects") == [(2, 4)]


async def test_it_is_not_called_for_items_that_are_nobodys(path, effects):
    """All of them were taken away."""
    handler = Handler()
    handler.hold()
    called = []

    async def on_settle(connection, items, results):
        called.append(items)

    async with batcher(path, handler, on_settle=on_settle) as durable:
        await durable.enqueue(1)
        await until(lambda: handler.batches)
        execute(path, "UPDATE microbatch_items SET claim = claim + 1")
        handler.free.set()
        await until(lambda: not durable._hands.held)
    assert called == []
