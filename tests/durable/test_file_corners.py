"""Rare ways through the parts that know the file, each alone: what an error means, who is gone when an answer comes."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time

import anyio
import anyio.lowlevel
import pytest
from durable_support import Handler, batcher, execute, rows, until, writer_of

from microbatch._loops.current import current_loop
from microbatch.durable import DurableQueue, QueueCorrupt, QueueFull, QueueUnavailable
from microbatch.durable._file import asks, registry
from microbatch.durable._file.appending import Append
from microbatch.durable._file.connection import Connection
from microbatch.durable._file.port import Port
from microbatch.durable._file.session import Session, run
from microbatch.durable._file.transaction import WriteTransaction

pytestmark = pytest.mark.anyio


def connection(path):
    return Connection(path, lambda _: False, "full")


def error_with(code):
    error = sqlite3.OperationalError("odd")
    error.sqlite_errorcode = code
    return error


def session(path):
    return Session(path=path, now=time.time(), ticket=1, wal_size=lambda: 0)


@pytest.mark.parametrize(
    ("error", "reading", "kind", "closes"),
    [
        (error_with(sqlite3.SQLITE_BUSY), False, QueueUnavailable, False),
        (error_with(sqlite3.SQLITE_FULL), False, QueueUnavailable, False),
        (error_with(sqlite3.SQLITE_IOERR), False, QueueUnavailable, True),
        (error_with(sqlite3.SQLITE_CORRUPT), False, QueueCorrupt, True),
        (PermissionError(13, "Permission denied"), False, QueueUnavailable, True),
        (ValueError("garbage"), True, QueueCorrupt, True),
    ],
)
async def test_an_error_says_what_is_wrong_with_the_file(path, error, reading, kind, closes):
    """What may have left damage in the cache opens the file anew; what will pass does not."""
    subject = connection(path)
    subject.write(lambda raw: raw.execute("SELECT 1"))
    raw = subject._raw
    fault = subject.fault_of(error, reading=reading)
    assert type(fault.error()) is kind
    assert (subject._raw is None) is closes
    subject.close()
    with pytest.raises(sqlite3.ProgrammingError):
        raw.execute("SELECT 1")


async def test_an_error_of_one_statement_is_no_fault_of_the_file(path):
    """Its own caller is told; rows that make no sense are damage, and errors of ours stay what they are."""
    subject = connection(path)
    assert subject.fault_of(error_with(sqlite3.SQLITE_CONSTRAINT), reading=False) is None
    assert subject.fault_of(ValueError("a caller's"), reading=False) is None
    refused = QueueFull("default", "max_depth", 1)
    assert subject.unusable(refused) is refused
    senseless = subject.unusable(ValueError("garbage"))
    assert type(senseless) is QueueCorrupt
    assert "a row makes no sense: ValueError('garbage')" in str(senseless)


async def test_a_transaction_that_cannot_begin_for_another_reason_than_a_lock(path):
    """It is not asked again for half a minute."""
    subject = connection(path)
    subject.write(lambda raw: raw.execute("SELECT 1"))

    class Broken:
        in_transaction = False

        def execute(self, _):
            raise error_with(sqlite3.SQLITE_IOERR)

        def close(self):
            raise sqlite3.OperationalError("unable to close")

    subject._raw.close()
    subject._raw = Broken()
    with pytest.raises(Exception, match="odd") as raised:
        subject.write(lambda raw: raw)
    assert type(raised.value.error()) is QueueUnavailable
    assert subject._raw is None  # whatever closing it said
    assert subject.lock_waits == 0
    assert subject.write(lambda raw: raw.execute("SELECT 1").fetchone()) == (1,)
    subject.close()


@pytest.mark.parametrize(("other", "level"), [("normal", 2), ("extra", 3)])
async def test_the_strictest_of_a_files_queues_decides_what_the_disk_is_asked_for(
    path, other, level
):
    """What one is promised must not depend on who opened the file first."""
    async with (
        DurableQueue(path, item_type=int, synchronous="full") as queue,
        DurableQueue(path, item_type=int, synchronous=other, queue="other") as second,
    ):
        await second.enqueue(1)
        raw = writer_of(queue).connection._raw
        asked = []
        writer_of(queue).post(lambda: asked.append(raw.execute("PRAGMA synchronous").fetchone()))
        await until(lambda: asked)
        assert asked == [(level,)]


async def test_an_answer_that_cannot_be_taken_in_costs_the_others_nothing(caplog):
    """A fault in one queue must not hang the callers of another."""
    told = []

    def odd(_):
        raise ZeroDivisionError

    logger = logging.getLogger("microbatch.durable")
    disabled, logger.disabled = logger.disabled, True
    try:
        Port(current_loop()).deliver([(odd, None), (told.append, 1)])
        await until(lambda: told)
    finally:
        logger.disabled = disabled
    assert told == [1]


async def test_a_loop_that_refuses_and_lives_is_a_fault_of_ours():
    """Only one that has ended may be passed over in silence."""

    class Refusing:
        ended = False

        def call_from_thread(self, _):
            raise RuntimeError("no")

        def has_ended(self):
            return self.ended

    loop = Refusing()
    with pytest.raises(RuntimeError, match="no"):
        Port(loop).deliver([])
    loop.ended = True
    Port(loop).deliver([])


async def test_who_has_gone_is_not_answered():
    """A future that is done raises if it is answered once more."""
    waiter = asyncio.get_running_loop().create_future()
    waiter.cancel()
    call = asks.Awaited(None, lambda _: iter(()), waiter)
    call.done(1)
    call.fail(ValueError())
    turn = asks.Turn(None, waiter, lambda: None)
    turn.refuse(ValueError())
    assert not turn.over.is_set()
    turn.grant(None)
    assert turn.over.is_set()
    assert waiter.cancelled()


async def test_groups_that_are_traced_stay_with_their_contexts_when_they_go_together():
    """Each item's context must be its own, whoever's group was first."""
    answers = []

    def group(payload, trace):
        return Append(
            "client", [payload], [payload], trace, 1, told=answers.append, failed=answers.append
        )

    first = group(b"a", [b"1"])
    assert first.absorb(group(b"b", [None]))
    assert not first.absorb(group(b"c", None))
    assert (first.payloads, first.traces) == ([b"a", b"b"], [b"1", None])


async def test_readers_that_open_at_the_same_time_are_one(path):
    """Each connection has two threads."""
    async with DurableQueue(path, item_type=int) as queue:
        reading = [asyncio.ensure_future(queue.stats()) for _ in range(5)]
        found = await asyncio.gather(*reading)
        assert [stats.depth for stats in found] == [0] * 5
        readers = queue._service.store._readers
        before = readers._reader
        await queue.stats()
        assert readers._reader is before


async def test_a_forked_child_has_no_writers(path):
    """Their threads are not there, and what they have open is not to be touched."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        kept, mutex = dict(registry._writers), registry._mutex
        assert kept
        try:
            registry._forget_writers()  # as the child calls it
            assert registry._writers == {}
            assert registry._mutex is not mutex
        finally:
            registry._writers.update(kept)


async def test_a_queue_that_a_file_does_not_have_is_named(path):
    """Another file may have been put in its place."""
    async with DurableQueue(path, item_type=int):
        pass
    raw = sqlite3.connect(path)
    with pytest.raises(QueueUnavailable, match="it has no queue 'other' any more"):
        run(raw, session(path).number_of("other"))
    assert run(raw, session(path).number_of("default")) == 1
    raw.close()


async def test_many_items_that_do_not_fit_are_refused_whole(path, monkeypatch):
    """Also where the first parts of them had room."""
    monkeypatch.setattr("microbatch.durable._flow.many.HANDED_ITEMS", 10)
    async with DurableQueue(path, item_type=int, max_depth=15) as queue:
        with pytest.raises(QueueFull, match="max_depth=15"):
            await queue.enqueue_many(range(30))
        await until(lambda: rows(path, "SELECT staged FROM microbatch_queues") == [(0,)])
        assert len(await queue.enqueue_many(range(15))) == 15


async def test_outcomes_of_a_consumer_that_is_none_any_more_are_nobodys(path):
    """Between being taken for dead and starting over nothing may be settled."""

    class Client:
        consumer = None

    transaction = WriteTransaction(session(path), set())
    ask = asks.Settle(Client(), [], [7], told=None, failed=None, refused=None)
    with pytest.raises(StopIteration) as end:
        next(transaction.settle(ask))
    assert end.value.value == set()
    assert transaction.finished == [(ask.client, 7)]


async def test_a_turn_that_nobody_gives_back_is_ended(path, monkeypatch):
    """Else the writer, and with it every queue of the file, would stand aside for ever."""
    monkeypatch.setattr("microbatch.durable._file.writer.TURN_TIMEOUT", 0.1)
    stopped = []
    async with batcher(path, Handler()) as durable:
        turn = await durable._service.store._client.turn(lambda: stopped.append(1))
        assert await durable.submit(1) == 2
    assert stopped == [1]
    assert not turn.over.is_set()


async def test_a_disk_that_fails_while_each_is_tried_alone_fails_them_all(path, monkeypatch):
    """Then it is not one caller's statement any more."""
    async with DurableQueue(path, item_type=int) as queue:
        trigger = "BEFORE INSERT ON microbatch_blobs BEGIN SELECT RAISE(ABORT, 'unlucky'); END"
        execute(path, f"CREATE TRIGGER odd {trigger}")
        with pytest.raises(QueueUnavailable, match="unlucky"):
            await queue.enqueue(1)

        def fails(*_):
            raise error_with(sqlite3.SQLITE_IOERR)

        monkeypatch.setattr(Connection, "attempt", fails)
        with pytest.raises(QueueUnavailable, match="odd"):
            await queue.enqueue(2)
        execute(path, "DROP TRIGGER odd")
        assert (await queue.enqueue(3)).id > 0


async def test_a_client_lives_as_long_as_its_loop(path):
    """Others of this process ask that, since a record lock does not tell them apart."""
    async with batcher(path, Handler()) as durable:
        (client,) = writer_of(durable).clients
        assert client.lives()
        assert client.presence.lives()


async def test_a_view_of_our_name_that_is_not_ours(path):
    """The reason is told, and nothing of the tables is left."""
    execute(path, "CREATE VIEW microbatch_items AS SELECT 1 AS id")
    with pytest.raises(QueueUnavailable, match="tables cannot be made or read"):
        async with DurableQueue(path, item_type=int):
            await anyio.lowlevel.checkpoint()
