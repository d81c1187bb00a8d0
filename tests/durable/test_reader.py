"""Connections beside the writer's: what runs on them, and what the file may be like."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest
from durable_support import LOOPS, execute, locked, rows, until
from reader_support import Gate, count, insert, is_free, make_file, query

from microbatch.durable import QueueCorrupt, QueueUnavailable
from microbatch.durable._file import reader, transactions
from microbatch.durable._file.reader import AsyncConnection

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("backend_name", LOOPS, indirect=True),
]


@asynccontextmanager
async def opened(path, **settings):
    connection = await AsyncConnection.open(path, **settings)
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_transaction_sees_one_state_of_the_file(path):
    """Two statements of one look must not tell of two moments."""
    make_file(path)

    def twice():
        first = yield from count()
        execute(path, "INSERT INTO numbers VALUES (1)")
        return first, (yield from count())

    async with opened(path, read_only=True) as connection:
        assert await connection.run(twice()) == (0, 0)
        assert await connection.run(count()) == 1


async def test_what_is_written_is_committed_together(path):
    """And what raises writes nothing."""
    make_file(path)

    def broken():
        yield from insert(7)
        raise LookupError("no")

    async with opened(path, read_only=False) as connection:
        assert await connection.run(insert(1, 2)) == 2
        with pytest.raises(LookupError, match="no"):
            await connection.run(broken())
        assert await connection.run(count()) == 2
    assert rows(path, "SELECT number FROM numbers") == [(1,), (2,)]


async def test_a_reader_writes_nothing(path):
    """It would get in the writer's way."""
    make_file(path)
    async with opened(path, read_only=True) as connection:
        with pytest.raises(QueueUnavailable, match="readonly"):
            await connection.run(insert(1))
        assert connection.ended
        with pytest.raises(QueueUnavailable, match="ended meanwhile"):
            await connection.run(count())


async def test_its_settings_leave_the_log_to_the_writer(path):
    """Two that checkpoint at the same moment may damage the file, with old versions of SQLite."""
    make_file(path)
    names = ("wal_autocheckpoint", "query_only", "secure_delete", "synchronous")

    async def settings(connection):
        return [(await connection.run(query(f"PRAGMA {name}")))[0][0] for name in names]

    async with opened(path, read_only=True) as one:
        assert await settings(one) == [0, 1, 2, 2]
    async with opened(path, read_only=False, pragmas=["PRAGMA synchronous = NORMAL"]) as one:
        assert await settings(one) == [0, 0, 2, 1]


async def test_a_statement_that_fails_is_told_to_who_made_it(path):
    """A generator may go on without it; if it does not, the connection goes on without the generator."""
    make_file(path)

    def careful():
        try:
            yield "SELECT * FROM nowhere", (), False
        except sqlite3.OperationalError as error:
            return str(error)

    async with opened(path, read_only=True) as connection:
        assert await connection.run(careful()) == "no such table: nowhere"
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await connection.run(query("SELECT * FROM nowhere"))
        assert await connection.run(count()) == 0


async def test_one_transaction_is_under_way_at_a_time(path):
    """Two that begin on one connection would be one."""
    make_file(path)
    gate = Gate()
    async with opened(path, read_only=False) as connection:
        first = asyncio.ensure_future(connection.run(gate.steps(1)))
        assert await anyio.to_thread.run_sync(gate.reached.wait, 20)
        second = asyncio.ensure_future(connection.run(insert(2)))
        await asyncio.sleep(0)
        assert rows(path, "SELECT * FROM numbers") == []
        gate.open.set()
        assert await first == 1
        assert await second == 1
    assert rows(path, "SELECT number FROM numbers") == [(1,), (2,)]


@pytest.mark.parametrize("native", [False, True], ids=["scope", "task"])
async def test_a_cancelled_caller_leaves_no_transaction_open(path, native):
    """It is not waited for, goes on to its end, and the next one follows it."""
    make_file(path)
    gate = Gate()
    async with opened(path, read_only=False) as connection:
        if native:
            task = asyncio.ensure_future(connection.run(gate.steps(1)))
            assert await anyio.to_thread.run_sync(gate.reached.wait, 20)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connection.run, gate.steps(1))
                assert await anyio.to_thread.run_sync(gate.reached.wait, 20)
                tasks.cancel_scope.cancel()
        assert not gate.closed.is_set()
        gate.open.set()
        assert await connection.run(count()) == 1
    assert is_free(path)


async def test_a_lock_is_asked_for_again_and_again(path):
    """Another process may be writing, for as long as its users' code may take."""
    make_file(path)
    async with opened(path, read_only=False) as connection:
        with locked(path):
            inserting = asyncio.ensure_future(connection.run(insert(1)))
            await until(lambda: connection.lock_waits > 1)
            assert not inserting.done()
        assert await inserting == 1


async def test_a_lock_is_not_asked_for_for_ever(path, monkeypatch):
    """Whoever asked can ask again, of the same connection."""
    make_file(path)
    monkeypatch.setattr(transactions, "LOCK_TIMEOUT", 0.1)
    async with opened(path, read_only=False) as connection:
        with locked(path), pytest.raises(QueueUnavailable, match=r"kept it locked for 0.1 s"):
            await connection.run(insert(1))
        assert await connection.run(insert(1)) == 1


async def test_a_reader_waits_for_whoever_has_the_file_for_himself(path):
    """Its BEGIN takes no lock: the first statement does."""
    make_file(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("INSERT INTO numbers VALUES (1)")
        async with opened(path, read_only=True) as connection:
            counting = asyncio.ensure_future(connection.run(count()))
            await until(lambda: connection.lock_waits > 1)
            assert not counting.done()
            other.close()
            assert await counting == 1


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_file_that_is_no_longer_there_is_not_read(path, how):
    """It could be, for ever; but nobody writes to it."""
    make_file(path)
    async with opened(path, read_only=True) as connection:
        path.rename(path.with_name("before"))
        if how == "replaced":
            make_file(path)
        with pytest.raises(QueueUnavailable, match="it was deleted or replaced under way"):
            await connection.run(count())
        assert connection.ended


async def test_a_file_that_is_moved_in_the_middle_gets_no_commit(path):
    """What is acknowledged must be where it is looked for."""
    make_file(path)

    def moving():
        yield from insert(1)
        path.rename(path.with_name("before"))

    async with opened(path, read_only=False) as connection:
        with pytest.raises(QueueUnavailable, match="it was deleted or replaced under way"):
            await connection.run(moving())
    assert rows(path.with_name("before"), "SELECT * FROM numbers") == []


async def test_damage_is_named(path):
    """Whether SQLite sees it, or only whoever reads the rows."""
    make_file(path)
    execute(path, "INSERT INTO numbers VALUES ('seven')")

    def senseless():
        ((number,),) = yield "SELECT number FROM numbers", (), False
        return int(number)

    async with opened(path, read_only=True) as connection:
        with pytest.raises(QueueCorrupt, match="a row makes no sense"):
            await connection.run(senseless())
        assert await connection.run(count()) == 1
    execute(path, "PRAGMA journal_mode = DELETE")
    path.write_bytes(b"no database at all" * 1_000)
    async with opened(path, read_only=True) as connection:
        with pytest.raises(QueueCorrupt, match="not a database"):
            await connection.run(count())
        assert connection.ended


async def test_a_disk_that_hangs_is_named(path, monkeypatch):
    """The caller does not wait for it, and the connection is used no more."""
    make_file(path)
    gate = Gate()
    connection = await AsyncConnection.open(path, read_only=True)
    monkeypatch.setattr(reader, "ANSWER_TIMEOUT", 0.05)
    with pytest.raises(QueueUnavailable, match=r"the disk did not answer for 0.05 s"):
        await connection.run(gate.steps())
    assert connection.ended
    gate.open.set()
    await connection.close()


async def test_what_cannot_be_opened_is_named(path, tmp_path):
    """By the file's name, and with nothing left behind."""
    with pytest.raises(QueueUnavailable, match="No such file") as caught:
        await AsyncConnection.open(path, read_only=True)
    assert caught.value.path == str(path)
    with pytest.raises(QueueUnavailable, match="unable to open"):
        await AsyncConnection.open(tmp_path, read_only=True)
    make_file(path)
    with pytest.raises(QueueUnavailable, match=r"it cannot be opened: .*syntax error"):
        await AsyncConnection.open(path, read_only=True, pragmas=["PRAGMA no such thing"])
