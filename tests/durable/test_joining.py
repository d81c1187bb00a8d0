"""enqueue_in: an item that exists exactly if the application's own transaction commits."""

from __future__ import annotations

import sqlite3

import aiosqlite
import pytest
from durable_support import Handler, batcher, check_counts, rows, until

from microbatch.durable import (
    DurableQueue,
    IdempotencyConflict,
    QueueFull,
    QueueUnavailable,
    UnknownTicket,
)

pytestmark = pytest.mark.anyio


def connect(path, **settings):
    connection = sqlite3.connect(path, isolation_level=None, timeout=5, **settings)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@pytest.mark.parametrize("telemetry", [None, False])
async def test_it_commits_with_the_application(path, telemetry):
    """The outbox pattern without an outbox."""
    handler = Handler()
    async with batcher(path, handler, telemetry=telemetry) as durable:
        connection = connect(path)
        connection.execute("CREATE TABLE orders (number INTEGER)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO orders VALUES (7)")
        ticket = durable.enqueue_in(connection, 7, key="k")
        connection.execute("COMMIT")
        assert await durable.result(ticket, 20) == 14
        assert await durable.submit(7, key="k") == 14
        connection.close()
    assert handler.items == [7]
    check_counts(path)


async def test_a_rolled_back_ticket_is_unknown_even_if_its_id_is_given_again(path):
    """The counter of ids is rolled back too."""
    async with batcher(path, Handler()) as durable:
        connection = connect(path)
        connection.execute("BEGIN IMMEDIATE")
        gone = durable.enqueue_in(connection, 7)
        connection.execute("ROLLBACK")
        ticket = await durable.enqueue(8)
        assert ticket.id == gone.id
        assert await durable.result(ticket, 20) == 16
        for call in (durable.result, durable.cancel):
            with pytest.raises(UnknownTicket):
                await call(gone)
        connection.close()
    check_counts(path)


async def test_it_works_on_an_aiosqlite_connection(path):
    """Then the call is awaited."""
    async with (
        batcher(path, Handler()) as durable,
        aiosqlite.connect(path, isolation_level=None) as connection,
    ):
        await connection.execute("PRAGMA synchronous = FULL")
        await connection.execute("BEGIN IMMEDIATE")
        ticket = await durable.enqueue_in(connection, 7, priority=2, delay=0.01)
        await connection.commit()
        assert await durable.result(ticket, 20) == 14


async def test_it_does_not_mind_the_applications_row_factory(path):
    """Applications like dictionaries."""
    async with DurableQueue(path, item_type=int) as queue:
        connection = connect(path)
        connection.row_factory = lambda cursor, row: {
            c[0]: v for c, v in zip(cursor.description, row, strict=True)
        }
        connection.execute("BEGIN IMMEDIATE")
        assert queue.enqueue_in(connection, 7).id == 1
        connection.execute("COMMIT")
        connection.close()
        async with aiosqlite.connect(path, isolation_level=None) as other:
            other.row_factory = sqlite3.Row
            await other.execute("PRAGMA synchronous = FULL")
            await other.execute("BEGIN IMMEDIATE")
            assert (await queue.enqueue_in(other, 7)).id == 2
            await other.commit()
    check_counts(path)


async def test_a_worker_elsewhere_notices_it_soon(path):
    """Within poll_interval of the commit."""
    handler = Handler()
    async with batcher(path, handler):
        queue = DurableQueue(path, item_type=int)  # never opened: nothing has to be awaited
        connection = connect(path)
        connection.execute("BEGIN IMMEDIATE")
        queue.enqueue_in(connection, 7)
        connection.execute("COMMIT")
        connection.close()
        await until(lambda: handler.items == [7])


async def test_limits_and_keys_hold_inside_too(path):
    """And the application's transaction goes on."""
    async with DurableQueue(path, item_type=int, max_depth=2) as queue:
        connection = connect(path)
        connection.execute("BEGIN IMMEDIATE")
        first = queue.enqueue_in(connection, 1, key="k")
        assert queue.enqueue_in(connection, 1, key="k").id == first.id
        with pytest.raises(IdempotencyConflict):
            queue.enqueue_in(connection, 2, key="k")
        queue.enqueue_in(connection, 2)
        with pytest.raises(QueueFull, match="max_depth=2"):
            queue.enqueue_in(connection, 3)
        connection.execute("COMMIT")
        connection.close()
        assert (await queue.stats()).depth == 2
    check_counts(path)


async def test_it_needs_a_transaction_on_the_same_durable_file(path, tmp_path):
    """Anything less would promise what it cannot keep."""
    async with DurableQueue(path, item_type=int) as queue:
        connection = connect(path)
        with pytest.raises(
            RuntimeError, match="enqueue_in needs a connection with a write transaction open"
        ):
            queue.enqueue_in(connection, 1)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(ValueError, match="synchronous of at least 'full', got level 1"):
            queue.enqueue_in(connection, 1)
        connection.close()
        async with DurableQueue(tmp_path / "other.db", item_type=int):
            other = connect(tmp_path / "other.db")
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(ValueError, match="enqueue_in needs a connection to"):
                queue.enqueue_in(other, 1)
            other.close()
        memory = connect(":memory:")
        memory.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueUnavailable, match="it has no queue 'default' yet"):
            queue.enqueue_in(memory, 1)
        memory.close()
        with pytest.raises(
            TypeError, match="connection must be an sqlite3 or aiosqlite connection, got str"
        ):
            queue.enqueue_in("x", 1)  # type: ignore[call-overload]
        async with aiosqlite.connect(path, isolation_level=None) as asynchronous:
            with pytest.raises(RuntimeError, match="write transaction"):
                await queue.enqueue_in(asynchronous, 1)
            await asynchronous.execute("BEGIN IMMEDIATE")
            await asynchronous.execute(
                "CREATE TRIGGER no BEFORE INSERT ON microbatch_ranges BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
            with pytest.raises(QueueUnavailable, match="no"):
                await queue.enqueue_in(asynchronous, 1)


async def test_a_stale_snapshot_cannot_enqueue(path):
    """A deferred transaction that has read cannot write after somebody else has: SQLite refuses at once."""
    async with DurableQueue(path, item_type=int) as queue:
        connection = connect(path)
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM microbatch_queues").fetchall()
        await queue.enqueue(1)
        with pytest.raises(QueueUnavailable, match="locked"):
            queue.enqueue_in(connection, 2)
        connection.close()
    assert rows(path, "SELECT count(*) FROM microbatch_items") == [(1,)]
