"""Faults of the file: a clear error of ours, no hang, nothing acknowledged lost, and on it goes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import sqlite3
import stat
import tempfile
import time
from pathlib import Path

import anyio
import pytest
import time_machine
from durable_support import (
    Handler,
    batcher,
    check_counts,
    empty_log,
    execute,
    on_writer,
    rows,
    until,
    writer_of,
)

from microbatch import Backoff, Retry
from microbatch.durable import (
    DurableQueue,
    ItemFailed,
    QueueCorrupt,
    QueueUnavailable,
    SchemaTooNew,
    Ticket,
    UnknownTicket,
)

pytestmark = pytest.mark.anyio


@contextlib.contextmanager
def locked(path: Path):
    """Another program holds the write lock."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.close()


async def test_a_locked_file_is_waited_for(path):
    """Others may write too: that is no error."""
    results = []
    async with batcher(path, Handler()) as durable:

        async def submit():
            results.append(await durable.submit(1))

        async with anyio.create_task_group() as tasks:
            with locked(path):
                tasks.start_soon(submit)
                await until(lambda: durable._service.store.lock_waits)
                assert results == []
        assert results == [2]
        assert (await durable.stats()).lock_waits > 0


async def test_a_file_that_stays_locked_is_an_error_and_then_on_it_goes(path, monkeypatch):
    """Reads work meanwhile; settles wait, and nothing is handled twice."""
    monkeypatch.setattr("microbatch.durable._file.connection.LOCK_TIMEOUT", 0.2)
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        ticket = await durable.enqueue(1)
        await until(lambda: handler.batches)
        with locked(path):
            started = time.monotonic()
            with pytest.raises(
                QueueUnavailable,
                match=r"queue.db' cannot be used: another program has kept it locked for 0.2 s",
            ):
                await durable.enqueue(2)
            assert time.monotonic() - started >= 0.2
            handler.free.set()
            await anyio.sleep(0.4)
            assert (await durable.stats()).claimed == 1
        await until(lambda: _ended_if_readable(durable))
        assert await durable.result(ticket, 20) == 2
        assert await durable.submit(3) == 6
    assert handler.items == [1, 3]


@pytest.mark.soak
@pytest.mark.timeout(120)
async def test_a_file_locked_for_35_seconds(path):
    """As the other one, at the real timeout. A duty of the writer's own may wait for the lock before it."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        with locked(path):
            started = time.monotonic()
            with pytest.raises(QueueUnavailable, match="kept it locked for 30 s"):
                await durable.submit(1)
            assert time.monotonic() - started > 29.9
            await anyio.sleep(max(0, 35 - (time.monotonic() - started)))
        assert await durable.submit(2) == 4


@contextlib.contextmanager
def nobody():
    """Be a user whom permissions stop, in a folder that this user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="microbatch-"))
    folder.chmod(0o755)
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(os.name != "posix", reason="permissions")
async def test_a_read_only_file_and_a_read_only_folder():
    """Each names the file and says what is wrong."""
    with nobody() as folder:
        path = folder / "queue.db"
        async with DurableQueue(path, item_type=int) as queue:
            await queue.enqueue(1)
        path.chmod(0o444)
        with pytest.raises(
            QueueUnavailable,
            match=r"queue\.db' cannot be used: attempt to write a readonly database",
        ):
            async with DurableQueue(path, item_type=int) as queue:
                assert (await queue.stats()).ready == 1  # reading is allowed
                await queue.enqueue(1)
        path.chmod(0o600)
        async with DurableQueue(path, item_type=int) as queue:
            assert (await queue.stats()).ready == 1
        folder.chmod(0o555)
        with pytest.raises(QueueUnavailable, match="cannot be used"):
            await DurableQueue(path, item_type=int).enqueue(1)
        with pytest.raises(QueueUnavailable, match="cannot be used: Permission denied"):
            await DurableQueue(folder / "other.db", item_type=int).enqueue(1)
        folder.chmod(0o000)
        with pytest.raises(QueueUnavailable, match="cannot be used: Permission denied"):
            await DurableQueue(path, item_type=int).enqueue(1)


async def test_a_lock_file_that_cannot_be_made():
    """A worker needs it; a plain queue does not."""
    with nobody() as folder:
        path = folder / "queue.db"
        path.with_name("queue.db-alive").mkdir()
        async with DurableQueue(path, item_type=int) as queue:
            await queue.enqueue(1)
        worker = batcher(path, Handler())
        with pytest.raises(QueueUnavailable, match="Is a directory"):
            await worker.submit(1)
        await worker.aclose()  # its thread writes no more into the folder that goes


async def test_a_new_file_is_its_owners_alone(path):
    """Payloads are nobody else's business, whatever the umask."""
    before = os.umask(0)
    try:
        async with batcher(path, Handler()) as durable:
            await durable.submit(1)
            for name in ("", "-wal", "-shm", "-alive"):
                mode = stat.S_IMODE(path.with_name(path.name + name).stat().st_mode)
                assert mode == 0o600, name
    finally:
        os.umask(before)


async def test_a_directory_in_its_place(tmp_path):
    """A path that is not meant."""
    with pytest.raises(QueueUnavailable, match="it is a directory"):
        await DurableQueue(tmp_path, item_type=int).enqueue(1)


async def test_a_folder_that_is_not_there(tmp_path):
    """Not made silently: it is a typing error more often than not."""
    with pytest.raises(QueueUnavailable, match=r"its directory .*nowhere' does not exist"):
        await DurableQueue(tmp_path / "nowhere" / "queue.db", item_type=int).enqueue(1)


async def test_a_file_that_is_no_database(path):
    """It is left as it is."""
    path.write_bytes(b"not a database, " * 1000)
    with pytest.raises(QueueCorrupt, match="file is not a database"):
        await DurableQueue(path, item_type=int).enqueue(1)
    assert path.read_bytes() == b"not a database, " * 1000


async def fill(path):
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue_many(range(2000))


async def test_a_file_whose_header_was_zeroed(path):
    """As a broken file system leaves it."""
    await fill(path)
    with path.open("r+b") as file:
        file.write(b"\0" * 100)
    with pytest.raises(QueueCorrupt):
        await DurableQueue(path, item_type=int).stats()


async def test_a_file_that_was_cut_short(path):
    """Half of it is gone."""
    await fill(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(QueueCorrupt):
        async with batcher(path, Handler()) as durable:
            await durable.stats()
            await durable._service.store.find(range(2000))
            await durable.enqueue_many(range(500))


async def test_pages_overwritten_under_way(path, caplog):
    """The worker says so, goes on trying, and does not take garbage for items."""
    await fill(path)
    backup = path.with_name("backup.db")
    shutil.copy(path, backup)
    seen = []
    free = asyncio.Event()

    async def handler(items):
        seen.extend(items)
        await free.wait()  # else all might be handled by then, and nobody read any of it
        return items

    async with batcher(path, handler, max_batch_size=50) as durable:
        await until(lambda: seen)
        await on_writer(durable, "PRAGMA cache_size = 1")
        with path.open("r+b") as file:
            for page in range(path.stat().st_size // 4096):
                file.seek(page * 4096 + 8)
                file.write(os.urandom(4000))
        free.set()
        while (
            not caplog.records
        ):  # garbage in payloads is their items' fault; more writing meets the rest
            with contextlib.suppress(QueueUnavailable):
                await durable.enqueue_many(range(500))
        with pytest.raises(QueueUnavailable):
            await durable.stats()
        assert set(seen) <= set(range(2000))
        # The fault is over: the backup is put in its place.
        for name in ("queue.db-wal", "queue.db-shm"):
            path.with_name(name).unlink(missing_ok=True)
        backup.rename(path)
        await until(lambda: _all_done(durable))


async def test_a_backup_put_back_under_way_is_worked_on(path):
    """Nothing is claimed from it but by a consumer that has made itself known there."""
    await fill(path)
    backup = path.with_name("backup.db")
    shutil.copy(path, backup)
    handler = Handler()
    async with batcher(path, handler, max_batch_size=50) as durable:
        await until(lambda: _all_done(durable))
        writer = writer_of(durable)
        writer.neighbours.next = math.inf  # whatever writes first sees to it
        generation, before = writer.connection.generation, len(handler.items)
        await empty_log(durable)
        for name in ("queue.db-wal", "queue.db-shm"):
            path.with_name(name).unlink(missing_ok=True)
        backup.rename(path)
        await until(lambda: writer.connection.generation > generation)
        await until(lambda: _all_done(durable))
        known = rows(path, "SELECT id FROM microbatch_consumers")
        assert known == [(durable._service.store._client.consumer,)]
        assert len(handler.items) == before + 2000


async def _all_done(durable):
    try:
        return (await durable.stats()).done == 2000
    except QueueUnavailable:
        return False


async def test_a_file_deleted_under_way(path):
    """Nothing is acknowledged into a file that nobody will find again."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        await durable.submit(1)
        kept = path.with_name("kept.db")
        await empty_log(durable)
        path.rename(kept)
        for name in ("queue.db-wal", "queue.db-shm"):
            path.with_name(name).unlink(missing_ok=True)
        for _ in range(2):
            with pytest.raises(QueueUnavailable, match="deleted"):
                await durable.enqueue(2)
        assert not path.exists()  # an empty one in its place would hide the loss
        kept.rename(path)
        assert await durable.submit(3) == 6


async def test_another_file_put_in_its_place(path, caplog):
    """A restored backup: the worker starts over as a new consumer of it."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=1) as durable:
        await durable.enqueue_many([1, 2])
        await until(lambda: handler.batches)
        backup = path.with_name("backup.db")
        execute(path, f"VACUUM INTO '{backup}'")
        # The log goes first: whoever finds the backup would open it with that.
        for name in ("queue.db-wal", "queue.db-shm"):
            path.with_name(name).unlink(missing_ok=True)
        backup.rename(path)
        with contextlib.suppress(QueueUnavailable):
            await durable.stats()
            await durable.enqueue(9)
        handler.free.set()
        await until(lambda: _ended_if_readable(durable))
        await until(lambda: "was replaced: starting over" in caplog.text)
    assert set(handler.items) >= {1, 2}
    check_counts(path)


async def test_a_restored_backup_answers_no_old_ticket_with_another_items_result(path):
    """Its ids are given again, its tickets are not; a bare id means the item that has it now."""
    async with DurableQueue(path, item_type=int):
        pass
    backup = path.with_name("backup.db")
    shutil.copy(path, backup)
    async with batcher(path, Handler()) as durable:
        old = await durable.enqueue(1)
        assert await durable.result(old, 20) == 2
    backup.rename(path)
    async with batcher(path, Handler()) as durable:
        new = await durable.enqueue(7)
        assert new.id == old.id
        for call in (durable.result(old, 20), durable.cancel(old)):
            with pytest.raises(UnknownTicket):
                await call
        assert await durable.result(new, 20) == await durable.result(new.id, 20) == 14


async def _ended_if_readable(durable):
    try:
        return (await durable.stats()).depth == 0
    except QueueUnavailable:
        return False


async def test_a_newer_schema_is_left_alone(path):
    """This version cannot know what it would break."""
    await fill(path)
    execute(path, "UPDATE microbatch_schema SET version = 99")
    with pytest.raises(
        SchemaTooNew, match=r"its schema is version 99, this microbatch knows up to 4: upgrade it"
    ) as caught:
        await DurableQueue(path, item_type=int).stats()
    assert (caught.value.found, caught.value.known) == (99, 4)


async def test_settings_are_verified(path, monkeypatch):
    """A file system that refuses WAL must not go unnoticed, nor an SQLite that is too old."""
    monkeypatch.setattr(
        "microbatch.durable._file.schema.PRAGMAS", ("PRAGMA journal_mode = DELETE",)
    )
    with pytest.raises(
        QueueUnavailable, match="asked for WAL and synchronous=full, got delete and 2"
    ):
        await DurableQueue(path, item_type=int).stats()
    monkeypatch.setattr("microbatch.durable._file.schema.SQLITE_MINIMUM", (99, 0, 0))
    with pytest.raises(
        QueueUnavailable, match=r"microbatch needs SQLite 99\.0\.0, this Python has"
    ):
        await DurableQueue(path, item_type=int).stats()


@pytest.mark.parametrize(("synchronous", "level"), [("normal", 1), ("full", 2), ("extra", 3)])
async def test_synchronous_is_what_was_asked_for(path, synchronous, level):
    """And full by default."""
    async with DurableQueue(path, item_type=int, synchronous=synchronous) as queue:
        assert await on_writer(queue, "PRAGMA synchronous") == [[(level,)]]


async def test_the_wall_clock_set_back_and_forth(path):
    """An hour back makes no delay an hour longer, an hour forth makes what is due due."""
    handler = Handler()
    with time_machine.travel("2026-01-01 12:00Z") as traveller:
        async with batcher(path, handler) as durable:
            await durable.enqueue(1, delay=0.3)
            traveller.shift(-3600)
            await durable.enqueue(2, delay=0.3)
            await until(lambda: len(handler.items) == 2)
            await durable.enqueue(3, delay=1800)
            traveller.shift(2 * 3600)
            await until(lambda: len(handler.items) == 3)
            traveller.shift(-3600)
            assert await durable.submit(4) == 8


async def test_a_wrong_reading_of_the_clock_delays_nothing(path):
    """Nor a back-off after a restart: what was counted from the wrong future is counted anew."""
    handler = Handler(fails={2: ConnectionError("gone")})
    retry = Retry(
        on=ConnectionError, attempts=1_000, backoff=Backoff(initial=0.1, factor=1, maximum=0.1)
    )
    with time_machine.travel("2026-01-01 12:00Z") as traveller:
        async with batcher(path, handler, retry=retry) as durable:
            traveller.shift(10 * 365 * 86_400)
            await durable.enqueue_many([1, 2], delay=0.1)
            await until(lambda: 2 in handler.items)
            await durable.enqueue(3, delay=0.3)
            traveller.shift(-10 * 365 * 86_400)
            await until(lambda: 3 in handler.items)
            await durable.enqueue(4, delay=0.1)
            await until(lambda: 4 in handler.items)
        handler.fails.clear()
        async with batcher(path, handler, retry=retry) as durable:
            await until(lambda: _ended_if_readable(durable))
            assert (await durable.stats()).done == 4
    check_counts(path)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("how", ["ABORT", "ROLLBACK"])
async def test_what_fails_on_its_own_account_does_not_fail_its_neighbours(path, how, first):
    """A statement that fails in one queue: here by a trigger of the application's."""
    await fill(path)
    execute(
        path,
        "CREATE TRIGGER odd BEFORE INSERT ON microbatch_blobs WHEN new.queue = 2 "
        f"BEGIN SELECT RAISE({how}, 'unlucky'); END",
    )
    async with (
        DurableQueue(path, item_type=int, queue="unlucky") as unlucky,
        DurableQueue(path, item_type=int, queue="other") as other,
        DurableQueue(path, item_type=int) as default,
    ):
        with locked(path):  # so that all of it is one transaction
            blocker = asyncio.create_task(other.resume())
            await until(lambda: other._service.store.lock_waits)
            order = [unlucky, other, default] if first else [other, default, unlucky]
            tasks = [asyncio.create_task(queue.enqueue(n)) for queue in order for n in range(3)]
            others = [asyncio.create_task(one) for one in (default.cancel(1), unlucky.pause())]
            await anyio.sleep(0.05)
        await blocker
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert await asyncio.gather(*others) == [True, None]
        bad = [result for result in results if not isinstance(result, Ticket)]
        assert bad == (results[:3] if first else results[6:])
        assert [type(result) for result in bad] == [QueueUnavailable] * 3
        assert {result.reason for result in bad} == {"unlucky"}
        assert (await other.stats()).ready == 3
        assert (await default.stats()).ready == 2002
        stats = await unlucky.stats()
        assert (stats.ready, stats.paused) == (0, True)
        ids = {result.id for result in results if isinstance(result, Ticket)}
    # What the one that failed had reserved is not given to two.
    async with DurableQueue(path, item_type=int) as queue:
        assert (await queue.enqueue(1)).id > max(ids)
    check_counts(path)


async def test_a_broken_result_type_fails_who_asks_and_nobody_else(path):
    """Results of an older version of the program."""
    async with batcher(path, Handler()) as durable:
        ticket = await durable.enqueue(1)
        await durable.result(ticket)
    async with DurableQueue(path, item_type=int, result_type=str) as queue:
        with pytest.raises(ItemFailed, match="stored bytes no longer decode as str"):
            await queue.result(ticket)
