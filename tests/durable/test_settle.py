"""on_settle: effects that are in the file exactly once."""

from __future__ import annotations

import asyncio
import sqlite3

import anyio
import pytest
from durable_support import (
    Handler,
    batcher,
    check_counts,
    execute,
    rows,
    states,
    until,
)

from microbatch import Backoff, Retry, WouldDeadlock
from microbatch.durable import DurableQueue, ItemFailed

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
    monkeypatch.setattr("microbatch.durable._life.seat.ON_SETTLE_TIMEOUT", 0.05)

    async def slow(connection, items, results):
        await anyio.sleep(60)

    async with batcher(path, Handler(), on_settle=slow) as durable:
        with pytest.raises(ItemFailed, match="TimeoutError"):
            await durable.submit(1)
    check_counts(path)


async def commit_by_cursor(connection):
    async with connection.cursor() as cursor:
        await cursor.execute("COMMIT")


@pytest.mark.parametrize(
    "end",
    [
        lambda connection: connection.commit(),
        lambda connection: connection.rollback(),
        lambda connection: connection.execute(" COMMIT"),
        lambda connection: connection.execute("begin"),
        lambda connection: connection.executescript("SELECT 1"),
        commit_by_cursor,
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
    await until(lambda: durable._opening.state == "closed")
    connection = sqlite3.connect(path, timeout=30)  # its writer may still be on its way out
    connection.execute("BEGIN IMMEDIATE")
    connection.close()
    assert rows(path, "SELECT * FROM effects") == [(1, 2)]
    assert states(path) == {1: "done"}


async def test_only_items_that_are_still_ours_are_shown_to_it(path, effects):
    """Somebody purged or took the item: its effect belongs to them."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, on_settle=write) as durable:
        await durable.pause()
        await durable.enqueue(1, priority=1)
        await durable.enqueue(2)
        await durable.resume()
        await until(lambda: handler.batches == [[1, 2]])
        execute(path, "UPDATE microbatch_ranges SET consumer = 99 WHERE first_id = 1")
        handler.free.set()
        assert await durable.result(2, 20) == 4
    assert rows(path, "SELECT * FROM effects") == [(2, 4)]


async def test_it_is_not_called_for_items_that_are_nobodys(path, effects, caplog):
    """All of them were taken away."""
    handler = Handler()
    handler.hold()
    called = []

    async def on_settle(connection, items, results):
        called.append(items)

    async with batcher(path, handler, on_settle=on_settle) as durable:
        await durable.enqueue(1)
        await until(lambda: handler.batches)
        execute(path, "UPDATE microbatch_ranges SET consumer = 99")
        handler.free.set()
        await until(lambda: "1 outcomes dropped" in caplog.text)
    assert called == []


async def test_what_it_sets_on_the_connection_is_gone_the_next_time(path, effects):
    """A row factory of the application's must not turn up where we read rows, nor in its own next call."""
    found = []

    async def sets(connection, items, results):
        found.append((connection.row_factory, connection.text_factory))
        connection.row_factory = sqlite3.Row
        connection.text_factory = bytes
        await write(connection, items, results)

    async with batcher(path, Handler(), on_settle=sets) as durable:
        for number in (1, 2, 3):
            assert await durable.submit(number, key=str(number)) == number * 2
        assert (await durable.stats()).done == 3
        assert await durable.submit(1, key="1") == 2
    assert found == [(None, str)] * 3
    check_counts(path)


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.submit(5),
        lambda queue: queue.enqueue(5),
        lambda queue: queue.enqueue_many([5, 6]),
        lambda queue: queue.result(1),
        lambda queue: queue.cancel(1),
        lambda queue: queue.pause(),
        lambda queue: queue.requeue([1]),
        lambda queue: queue.purge([1]),
    ],
    ids=["submit", "enqueue", "enqueue_many", "result", "cancel", "pause", "requeue", "purge"],
)
@pytest.mark.parametrize("which", ["its own queue", "another queue"])
async def test_calls_that_wait_for_the_file_are_refused_in_it_at_once(path, call, which):
    """The file is locked until it ends: they would wait for each other, and everybody else for both."""
    refused = []

    async with DurableQueue(path, item_type=int, queue="other") as other:

        async def asks(connection, items, results):
            with pytest.raises(WouldDeadlock) as caught:
                await call(durable if which == "its own queue" else other)
            refused.append(caught.value)

        async with batcher(path, Handler(), on_settle=asks) as durable:
            assert await durable.submit(1) == 2
            assert len(refused) == 1
            assert await durable.enqueue(2)  # outside of it everything goes on
    check_counts(path)


@pytest.mark.parametrize("delay", [0, 0.1])
async def test_what_is_enqueued_in_it_is_noticed(path, delay):
    """By its own worker, whose looks may be far apart: at once, or when it is due."""
    handler = Handler()

    async def follows(connection, items, results):
        if items == [1]:
            await durable.enqueue_in(connection, 2, delay=delay)

    async with batcher(path, handler, on_settle=follows, poll_interval=3600) as durable:
        assert await durable.submit(1) == 2
        await until(lambda: handler.items == [1, 2])
    check_counts(path)


async def test_outcomes_that_come_while_it_runs_go_together_in_its_next_call(path):
    """One transaction for all of them, and never two calls at a time."""
    calls, free = [], anyio.Event()

    async def on_settle(connection, items, results):
        calls.append(sorted(items))
        await free.wait()

    handled, ends = [], {number: anyio.Event() for number in (1, 2, 3)}
    ends[1].set()

    async def handler(items):
        handled.extend(items)
        await ends[items[0]].wait()
        return items

    settings = {"max_batch_size": 1, "max_concurrency": 3}
    async with batcher(path, handler, on_settle=on_settle, **settings) as durable:
        await durable.pause()
        tickets = await durable.enqueue_many([1, 2, 3])
        await durable.resume()
        await until(lambda: calls and len(handled) == 3)
        for number in (2, 3):  # not in the same turn of the loop
            ends[number].set()
            await until(lambda n=number: durable._service.consumer.settling.unsettled == n)
            await asyncio.sleep(0)
        free.set()
        assert [await durable.result(one, 20) for one in tickets] == [1, 2, 3]
    assert calls == [[1], [2, 3]]
    check_counts(path)


async def test_a_loop_that_ends_while_it_runs_is_no_failure_of_its_items(path, monkeypatch):
    """It cancels all tasks: nothing is recorded of the items, and they are handled again."""
    monkeypatch.setattr("microbatch.durable._flow.consumer.SETTLE_GRACE", 0.1)
    begun, ended = [], []

    async def on_settle(connection, items, results):
        begun.append(items)
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            ended.append(type(error))
            raise

    async with batcher(path, Handler(), on_settle=on_settle) as durable:
        await durable.enqueue(1)
        await until(lambda: begun)
        task = durable._service.consumer.settling._task
        task.task.cancel()  # as asyncio.run does at its end
        await task.ended.wait()
        await until(lambda: len(begun) == 2)
        assert rows(path, "SELECT * FROM microbatch_errors") == []
        await durable.aclose(0)
    assert ended == [asyncio.CancelledError] * 2
    assert states(path) == {1: "ready"}
    assert rows(path, "SELECT * FROM microbatch_errors") == []
    check_counts(path)


async def test_it_is_not_called_once_its_queue_is_closed(path, monkeypatch, caplog):
    """It waits for another queue's effects, longer than closing does: its items have gone back by then."""
    for grace in ("_flow.consumer.SETTLE_GRACE", "_flow.service.CLOSE_GRACE"):
        monkeypatch.setattr(f"microbatch.durable.{grace}", 0.1)
    called, free = [], anyio.Event()

    async def hold(connection, items, results):
        called.append("hold")
        await free.wait()

    async def note(connection, items, results):
        called.append("note")

    handler = Handler()
    handler.hold()
    other = batcher(path, Handler(), on_settle=hold, queue="other")
    async with other, batcher(path, handler, on_settle=note) as durable:
        await durable.enqueue(2)
        await until(lambda: handler.batches)
        held = asyncio.create_task(other.submit(1))
        await until(lambda: called)
        handler.free.set()
        await until(lambda: durable._service.consumer.settling.unsettled)
        settling = durable._service.consumer.settling
        await durable.aclose(0)
        free.set()
        assert await held == 2
        await until(lambda: not settling._effecting)
    assert called == ["hold"]
    assert states(path) == {1: "ready", 2: "done"}
    check_counts(path)
