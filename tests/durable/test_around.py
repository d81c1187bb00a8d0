"""A write transaction that a coroutine of the user's takes part in: committed with it, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading

import anyio
import pytest
from durable_support import LOOPS, NewThreads, execute, locked, rows, until
from reader_support import Gate, count, insert, is_free, make_file, staying
from support import backend_options

from microbatch.durable import QueueUnavailable
from microbatch.durable._file import reader, transactions
from microbatch.durable._file.guarded import Guarded
from microbatch.durable._file.reader import AsyncConnection
from microbatch.durable._file.transactions import Guest, Transactions

in_a_loop = pytest.mark.anyio
on_both = pytest.mark.parametrize("backend_name", LOOPS, indirect=True)

ENDLESS = (
    "WITH RECURSIVE n(x) AS (SELECT begin() UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
)


OVER = "the settle transaction is over"


@pytest.fixture(autouse=True)
def long_grace(monkeypatch):
    """A thread that a busy machine does not let run is not taken for a disk that hangs."""
    monkeypatch.setattr(transactions, "GRACE", 60.0)
    monkeypatch.setattr(reader, "GRACE", 60.0)


@pytest.fixture
def short_bound(monkeypatch):
    """A caller is waited for no longer than a moment, and everything else for as long as ever."""

    def bounded(before, timeout):
        return Guest(before, 0.2 - transactions.GRACE)

    monkeypatch.setattr(reader, "Guest", bounded)


@contextlib.asynccontextmanager
async def opened(path):
    make_file(path)
    connection = await AsyncConnection.open(path, read_only=False)
    try:
        yield connection
    finally:
        await connection.close()


def numbers(path):
    return [number for (number,) in rows(path, "SELECT number FROM numbers ORDER BY number")]


@in_a_loop
@on_both
async def test_both_parts_are_committed_together(path):
    """Exactly once is worth what this holds."""
    seen = []

    async def inside(connection, result):
        seen.append((result, numbers(path)))
        await connection.execute("INSERT INTO numbers VALUES (3)")

    async with opened(path) as connection:
        assert await connection.around(insert(1, 2), inside, timeout=20) == 2
        assert await connection.run(count()) == 3
    assert seen == [(2, [])]
    assert numbers(path) == [1, 2, 3]


@in_a_loop
@on_both
async def test_what_the_coroutine_raises_comes_out_once_all_is_rolled_back(path):
    """Its items count as failed, and somebody else may write at once."""

    async def inside(connection, result):
        await connection.execute("INSERT INTO numbers VALUES (3)")
        raise LookupError("no")

    async with opened(path) as connection:
        with pytest.raises(LookupError, match="no"):
            await connection.around(insert(1), inside, timeout=20)
        assert is_free(path)
        assert await connection.run(count()) == 0
        assert not connection.ended


@pytest.mark.parametrize("how", ["scope", "task", "timeout"])
@in_a_loop
@on_both
async def test_a_coroutine_that_is_cut_short_leaves_nothing_behind(path, how):
    """Neither a transaction nor a lock, whoever cut it short."""
    inside_of_it = anyio.Event()

    async def inside(connection, result):
        await connection.execute("INSERT INTO numbers VALUES (3)")
        inside_of_it.set()
        await anyio.sleep(60)

    async with opened(path) as connection:
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await connection.around(insert(1), inside, timeout=0.01)
        elif how == "task":
            task = asyncio.ensure_future(connection.around(insert(1), inside, timeout=20))
            await inside_of_it.wait()
            assert not is_free(path)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            async with anyio.create_task_group() as tasks:

                async def around():
                    await connection.around(insert(1), inside, timeout=20)

                tasks.start_soon(around)
                await inside_of_it.wait()
                tasks.cancel_scope.cancel()
        assert is_free(path)
        assert await connection.run(count()) == 0


@in_a_loop
async def test_a_statement_that_would_go_on_is_interrupted(path):
    """The rollback stands behind it, in the same thread."""

    begun = threading.Event()

    def begin():
        begun.set()
        return 1

    async def inside(connection, result):
        await connection.create_function("begin", 0, begin)
        await connection.execute_fetchall(ENDLESS)

    async with opened(path) as connection:
        task = asyncio.ensure_future(connection.around(insert(1), inside, timeout=60))
        await until(begun.is_set)  # what has not begun goes on when it does
        task.cancel()
        await asyncio.wait([task], timeout=20)
        assert task.cancelled()
        assert is_free(path)
        assert await connection.run(count()) == 0


HIS_OWN = {
    "a statement": lambda connection: connection.execute("INSERT INTO numbers VALUES (3)"),
    "many": lambda connection: connection.executemany("INSERT INTO numbers VALUES (?)", [(3,)]),
    "a script": lambda connection: connection.executescript("INSERT INTO numbers VALUES (3)"),
}


@pytest.mark.parametrize("how", HIS_OWN)
@pytest.mark.parametrize("why", ["too long", "stopped"])
@in_a_loop
async def test_a_caller_that_does_not_stop_loses_the_connection(
    path, how, why, short_bound, monkeypatch
):
    """Its next statements would be outside of any transaction: from the rollback on none of them runs."""
    if why == "stopped":
        monkeypatch.setattr(reader, "Guest", Guest)
    threads = NewThreads()
    begun, end, tried = anyio.Event(), anyio.Event(), threading.Event()
    close = Transactions.close

    async def late(self):
        await until(tried.is_set)
        await close(self)

    async def inside(connection, result):
        begun.set()
        async with staying(end, tried):
            with pytest.raises(sqlite3.ProgrammingError, match=OVER):
                await HIS_OWN[how](connection)

    make_file(path)
    connection = await AsyncConnection.open(path, read_only=False)
    monkeypatch.setattr(Transactions, "close", late)
    task = asyncio.ensure_future(connection.around(insert(1), inside, timeout=60))
    await begun.wait()
    if why == "stopped":
        connection.stop()
    await until(lambda: connection.ended)
    await until(lambda: is_free(path))
    end.set()
    with pytest.raises(QueueUnavailable if why == "stopped" else TimeoutError):
        await task
    await until(lambda: threads.running() == [])
    assert numbers(path) == []


@in_a_loop
async def test_a_caller_that_does_not_stop_commits_nothing(path, short_bound, monkeypatch):
    """Not between its bound and the rollback either."""
    end, ended, tried = anyio.Event(), threading.Event(), threading.Event()
    undo = Transactions._undo

    async def late(self, error):
        self._guard(on=False)
        ended.set()
        await until(tried.is_set)
        await undo(self, error)

    async def inside(connection, result):
        async with staying(end, tried):
            for commits in (connection.execute("COMMIT"), connection.commit()):
                with pytest.raises(sqlite3.ProgrammingError, match=OVER):
                    await commits
            with pytest.raises(sqlite3.ProgrammingError, match=OVER):
                connection.isolation_level = None

    make_file(path)
    connection = await AsyncConnection.open(path, read_only=False)
    monkeypatch.setattr(Transactions, "_undo", late)
    task = asyncio.ensure_future(connection.around(insert(1), inside, timeout=60))
    await until(ended.is_set)
    end.set()
    with pytest.raises(TimeoutError):
        await task
    await connection.close()
    assert numbers(path) == []


@in_a_loop
async def test_statements_that_fail_never_get_to_the_coroutine(path):
    """Its caller gets their error, or the file's, and does not hang."""

    async def inside(connection, result):
        pytest.fail("it began")

    def broken():
        yield from insert(1)
        yield "SELECT * FROM nowhere", (), False

    async with opened(path) as connection:
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await connection.around(broken(), inside, timeout=20)
        assert await connection.run(count()) == 0
        path.rename(path.with_name("away"))
        with pytest.raises(QueueUnavailable, match="deleted or replaced"):
            await connection.around(insert(1), inside, timeout=20)
    with pytest.raises(QueueUnavailable, match="ended meanwhile"):
        await connection.around(insert(1), inside, timeout=20)


@in_a_loop
async def test_one_that_waits_for_the_lock_can_be_stopped(path, monkeypatch):
    """By the writer, from its own thread."""

    async def inside(connection, result):
        pytest.fail("it began")

    make_file(path)
    connection = await AsyncConnection.open(path, read_only=False)
    with locked(path):
        task = asyncio.ensure_future(connection.around(insert(1), inside, timeout=20))
        await until(lambda: connection.lock_waits)
        threading.Thread(target=connection.stop).start()
        with pytest.raises(QueueUnavailable, match="ended meanwhile"):
            await task
    await connection.close()


@in_a_loop
async def test_one_that_was_cancelled_while_it_waited_begins_nothing(path):
    """Its coroutine never runs, and what it wrote goes."""
    gate = Gate()

    async def inside(connection, result):
        pytest.fail("it began")

    async with opened(path) as connection:
        first = asyncio.ensure_future(connection.run(gate.steps(1)))
        assert await anyio.to_thread.run_sync(gate.reached.wait, 20)
        second = asyncio.ensure_future(connection.around(insert(2), inside, timeout=20))
        await asyncio.sleep(0)
        second.cancel()
        gate.open.set()
        await asyncio.wait([second])
        assert second.cancelled()
        await first
        assert await connection.run(count()) == 1


@in_a_loop
async def test_the_transaction_may_not_be_ended_in_it(path):
    """In whatever way: the settled items would be on the disk without the rest, or the other way round."""
    tried = []

    async def inside(connection, result):
        cursor = await connection.cursor()
        for sql in (
            "COMMIT",
            "end",
            " ;  rollback",
            "-- well\nBEGIN",
            "/* so */ Commit Transaction",
            "/* ROLLBACK TO */ ROLLBACK",
        ):
            for execute_it in (connection.execute, connection.execute_fetchall, cursor.execute):
                tried.append(execute_it(sql))
            tried.append(connection.executemany(sql, []))
        tried.append(connection.executescript("SELECT 1"))
        tried.append(cursor.executescript("SELECT 1"))
        tried.append(connection.commit())
        tried.append(connection.rollback())
        for awaitable in tried:
            with pytest.raises(sqlite3.ProgrammingError, match="may not begin, commit or roll"):
                await awaitable
        with pytest.raises(sqlite3.ProgrammingError, match="may not begin, commit or roll"):
            connection.isolation_level = None
        assert connection.in_transaction
        await connection.execute("SAVEPOINT mine")
        await connection.execute("INSERT INTO numbers VALUES (7)")
        await connection.execute("ROLLBACK TO mine")
        await connection.execute("rollback transaction to savepoint mine")
        await connection.execute("RELEASE mine")
        await connection.execute("INSERT INTO numbers VALUES (2)")

    async with opened(path) as connection:
        await connection.around(insert(1), inside, timeout=20)
        assert numbers(path) == [1, 2]
        assert await connection.run(count()) == 2
    assert len(tried) == 28


def test_what_is_not_guarded_is_sqlites_own(path):
    """The guard is for one transaction; before and after it the connection is like any other."""
    with contextlib.closing(sqlite3.connect(path, factory=Guarded)) as raw:
        raw.executescript("BEGIN; CREATE TABLE numbers (number); COMMIT")
        raw.execute("INSERT INTO numbers VALUES (1)")
        raw.rollback()
        raw.execute("INSERT INTO numbers VALUES (2)")
        raw.commit()
        raw.isolation_level = None
        raw.execute("BEGIN")
        raw.execute("COMMIT")
    assert numbers(path) == [2]


@in_a_loop
async def test_a_transaction_that_sqlite_ended_is_not_committed(path):
    """Some of its errors roll everything back, and a coroutine may go on from there."""
    execute_later = "CREATE TRIGGER no BEFORE INSERT ON numbers WHEN new.number = 13 BEGIN SELECT raise(ROLLBACK, 'no'); END"

    async def inside(connection, result):
        with pytest.raises(sqlite3.IntegrityError):
            await connection.execute("INSERT INTO numbers VALUES (13)")
        await connection.execute("INSERT INTO numbers VALUES (2)")  # outside of any transaction

    async with opened(path) as connection:
        execute(path, execute_later)
        with pytest.raises(sqlite3.ProgrammingError, match="was ended in on_settle, or by SQLite"):
            await connection.around(insert(1), inside, timeout=20)
        assert await connection.run(insert(3)) == 1
    assert numbers(path) == [2, 3]


@in_a_loop
async def test_a_connection_that_was_closed_in_it_is_replaced(path):
    """It is refused, but aiosqlite has ended its thread by then."""

    async def inside(connection, result):
        with pytest.raises(sqlite3.ProgrammingError, match="may not begin, commit or roll"):
            await connection.close()

    make_file(path)
    threads = NewThreads()
    connection = await AsyncConnection.open(path, read_only=False)
    with pytest.raises(ValueError, match="no active connection"):
        await connection.around(insert(1), inside, timeout=20)
    assert connection.ended
    await until(lambda: threads.running() == [])
    assert is_free(path)
    assert numbers(path) == []


@in_a_loop
async def test_what_is_set_in_it_is_set_back(path):
    """Rows of another kind made the next settle call the file damaged."""

    async def inside(connection, result):
        connection.row_factory = sqlite3.Row
        ((letter,),) = await connection.execute_fetchall("SELECT 'a' AS letter")
        rows_here = await connection.execute_fetchall("SELECT 'a' AS letter")
        assert rows_here[0]["letter"] == letter == "a"
        connection.text_factory = bytes

    def names():
        rows_of_it = yield "SELECT 'a', 1", (), False
        return rows_of_it

    async with opened(path) as connection:
        for _ in range(2):
            assert await connection.around(names(), inside, timeout=20) == [("a", 1)]
        assert await connection.run(names()) == [("a", 1)]


def run_in_a_loop_that_ends(name, main):
    options = backend_options(name, real_time=True)[1]
    loop = options.get("loop_factory", asyncio.new_event_loop)()
    task = loop.create_task(main())
    task._log_destroy_pending = False
    with contextlib.suppress(RuntimeError):  # stopped before its end
        loop.run_until_complete(task)
    loop.close()


@pytest.mark.parametrize("how", ["stopped", "bound"])
@pytest.mark.parametrize("loop", LOOPS)
def test_an_event_loop_that_ends_in_the_middle_leaves_no_lock(path, loop, how, request):
    """Whoever serves the file need not wait for long: it ends itself past its bound, or at a word."""
    if how == "bound":
        request.getfixturevalue("short_bound")
    make_file(path)
    threads = NewThreads()
    kept = []

    async def inside(connection, result):
        if how == "stopped":  # else that might take longer than the bound
            await connection.execute("INSERT INTO numbers VALUES (3)")
        asyncio.get_running_loop().stop()
        await asyncio.sleep(60)

    async def main():
        kept.append(await AsyncConnection.open(path, read_only=False))
        await kept[0].around(insert(1), inside, timeout=60)

    run_in_a_loop_that_ends(loop, main)
    if how == "stopped":
        assert not is_free(path)
        kept[0].stop()
    for thread in threads.running():
        thread.join(20)
    assert threads.running() == []
    assert kept[0].ended
    assert is_free(path)
    assert numbers(path) == []


@pytest.mark.parametrize("loop", LOOPS)
def test_an_event_loop_that_ends_under_a_statement_leaves_no_lock(path, loop, monkeypatch):
    """Its answer kills aiosqlite's thread: the connection is closed from elsewhere then."""
    monkeypatch.setattr(transactions, "GRACE", 0.1)  # nobody is there to answer
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    make_file(path)
    threads = NewThreads()
    begun, go_on = threading.Event(), threading.Event()
    kept = []

    def wait():
        begun.set()
        assert go_on.wait(20)
        return 1

    async def inside(connection, result):
        await connection.create_function("wait", 0, wait)
        kept.append(asyncio.ensure_future(connection.execute_fetchall("SELECT wait()")))
        kept[-1]._log_destroy_pending = False
        assert await asyncio.to_thread(begun.wait, 20)
        asyncio.get_running_loop().stop()
        await asyncio.sleep(60)

    async def main():
        kept.append(await AsyncConnection.open(path, read_only=False))
        await kept[0].around(insert(1), inside, timeout=60)

    run_in_a_loop_that_ends(loop, main)
    go_on.set()
    kept[0]._host.transactions.worker.join(20)  # it dies of its answer
    kept[0].stop()
    for thread in threads.running():
        if not thread.name.startswith("asyncio"):
            thread.join(20)
    assert is_free(path)
    assert numbers(path) == []
    assert [str(said.exc_value) for said in told] == ["Event loop is closed"]
