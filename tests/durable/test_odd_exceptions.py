"""Whatever a user's type, the system or SQLite raises ends one item or one call, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3

import msgspec
import pytest
from durable_support import (
    Handler,
    batcher,
    check_counts,
    execute,
    looked,
    states,
    until,
    writer_of,
)

from microbatch import Retry
from microbatch.durable import DurableQueue, ItemFailed, QueueUnavailable

pytestmark = pytest.mark.anyio


class Plain(msgspec.Struct):
    number: int


class Picky(Plain):
    """Raises what no decoder raises, for one number."""

    def __post_init__(self) -> None:
        if self.number == 3:
            raise KeyError(self.number)


async def test_an_item_whose_type_raises_strands_nobody(path):
    """Twenty were stored by a program whose type was more patient: 19 are handled."""
    async with DurableQueue(path, item_type=Plain) as queue:
        tickets = await queue.enqueue_many([Plain(number) for number in range(20)])

    async def handler(items):
        return [item.number for item in items]

    async with batcher(path, handler, item_type=Picky) as durable:
        results = await asyncio.gather(
            *(durable.result(ticket, 20) for ticket in tickets), return_exceptions=True
        )
        assert [r for r in results if not isinstance(r, Exception)] == [
            *range(3),
            *range(4, 20),
        ]
        assert isinstance(results[3], ItemFailed)
        assert "stored bytes no longer decode as Picky" in str(results[3])
        assert (await durable.stats()).dead == 1
    check_counts(path)


async def test_a_result_whose_type_raises_strands_nobody(path):
    """The others who wait get theirs, in the worker's process and in any other."""

    async def handler(items):
        return [Plain(item) for item in items]

    async with (
        DurableQueue(path, item_type=int, result_type=Picky) as elsewhere,
        batcher(path, handler, result_type=Plain) as durable,
    ):
        async with asyncio.timeout(20):
            results = await asyncio.gather(
                *(elsewhere.submit(number) for number in range(5)), return_exceptions=True
            )
        assert [type(result) for result in results] == [Picky] * 3 + [ItemFailed, Picky]
        assert "stored bytes no longer decode as Picky" in str(results[3])
        assert await durable.result(4) == Plain(3)


async def test_a_result_that_cannot_be_encoded_is_its_items_failure(path):
    """A struct with an unset field, made without its constructor: the others of the batch are done."""

    unset = Plain(1)
    del unset.number

    async def handler(items):
        return [unset if item == 1 else Plain(item) for item in items]

    async with batcher(path, handler, result_type=Plain) as durable:
        tickets = await durable.enqueue_many([0, 1, 2])
        assert await durable.result(tickets[0], 20) == Plain(0)
        assert await durable.result(tickets[2], 20) == Plain(2)
        with pytest.raises(ItemFailed, match="TypeError: cannot encode Plain for the disk"):
            await durable.result(tickets[1], 20)
    assert states(path) == {1: "done", 2: "dead", 3: "done"}


async def test_items_whose_payloads_are_missing_are_dead_letters(path):
    """The file was damaged: their neighbours and the worker go on."""
    async with DurableQueue(path, item_type=int) as queue:
        lost = await queue.enqueue_many([1, 2])
        kept = await queue.enqueue_many([3, 4])
    execute(path, "DELETE FROM microbatch_blobs WHERE first_id = 1")
    async with batcher(path, Handler()) as durable:
        assert [await durable.result(ticket, 20) for ticket in kept] == [6, 8]
        for ticket in lost:
            with pytest.raises(ItemFailed, match="its payload is missing: the file was damaged"):
                await durable.result(ticket, 20)
        assert [letter.item for letter in await durable.dead_letters()] == [b"", b""]
    assert states(path) == {1: "dead", 2: "dead", 3: "done", 4: "done"}


async def test_an_outcome_that_sqlite_refuses_is_its_items_failure(path):
    """A value beyond SQLite's length, say: neighbours in the same transaction do not wait for it."""

    async def handler(items):
        return [bytes(200_000) if item == 1 else b"" for item in items]

    async with batcher(path, handler, result_type=bytes) as durable:
        await durable.stats()
        writer = writer_of(durable)
        writer.post(lambda: writer.connection._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 150_000))
        tickets = await durable.enqueue_many([0, 1, 2])
        assert await durable.result(tickets[0], 20) == b""
        assert await durable.result(tickets[2], 20) == b""
        with pytest.raises(ItemFailed, match="DataError: string or blob too big"):
            await durable.result(tickets[1], 20)
    assert states(path) == {1: "done", 2: "dead", 3: "done"}
    check_counts(path)


async def test_failures_beside_an_outcome_that_sqlite_refuses_are_recorded(path):
    """What was to be written with it is written without it, whatever became of those items."""

    async def handler(items):
        return [bytes(200_000), ValueError("no"), b""]

    async with batcher(path, handler, result_type=bytes) as durable:
        await durable.stats()
        writer = writer_of(durable)
        writer.post(lambda: writer.connection._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 150_000))
        tickets = await durable.enqueue_many([0, 1, 2])
        for ticket, reason in zip(tickets, ["DataError", "ValueError: no"], strict=False):
            with pytest.raises(ItemFailed, match=reason):
                await durable.result(ticket, 20)
        assert await durable.result(tickets[2], 20) == b""
    assert states(path) == {1: "dead", 2: "dead", 3: "done"}
    check_counts(path)


async def test_a_failure_that_sqlite_refuses_is_tried_until_it_is_taken(path, caplog):
    """An application's trigger, say: the item is not lost, and not done either."""
    handler = Handler(fails={1: ValueError("no")})
    async with batcher(path, handler) as durable:
        await durable.stats()
        trigger = "BEFORE INSERT ON microbatch_errors BEGIN SELECT RAISE(ABORT, 'unlucky'); END"
        execute(path, f"CREATE TRIGGER odd {trigger}")
        ticket = await durable.enqueue(1)
        await until(lambda: "outcomes wait for the disk: " in caplog.text)
        assert states(path) == {1: "claimed"}
        execute(path, "DROP TRIGGER odd")
        with pytest.raises(ItemFailed, match="ValueError: no"):
            await durable.result(ticket, 20)
    assert handler.items == [1]
    check_counts(path)


async def test_a_failure_that_sqlite_refuses_for_good_is_told_by_its_refusal(path):
    """Its item ends as a dead letter that says so; nobody waits for what will never be taken."""
    handler = Handler(fails={1: ValueError("unlucky")})
    async with batcher(path, handler) as durable:
        await durable.stats()
        when = (
            "BEFORE INSERT ON microbatch_errors WHEN instr(CAST(new.error AS TEXT), 'ValueError')"
        )
        execute(path, f"CREATE TRIGGER odd {when} BEGIN SELECT RAISE(ABORT, 'not this'); END")
        tickets = await durable.enqueue_many([0, 1, 2])
        with pytest.raises(ItemFailed, match="IntegrityError: not this"):
            await durable.result(tickets[1], 20)
        assert [await durable.result(tickets[n], 20) for n in (0, 2)] == [0, 4]
    assert states(path) == {1: "done", 2: "dead", 3: "done"}
    check_counts(path)


async def test_an_item_that_sqlite_refuses_is_its_callers_error(path):
    """The others that came with it are stored."""
    async with DurableQueue(path, item_type=bytes) as queue:
        await queue.stats()
        writer = writer_of(queue)
        writer.post(lambda: writer.connection._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 150_000))
        outcomes = await asyncio.gather(
            queue.enqueue(b"a"),
            queue.enqueue(bytes(200_000)),
            queue.enqueue(b"b", priority=1),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], QueueUnavailable)
        assert "string or blob too big" in str(outcomes[1])
        assert await queue.enqueue(b"c")
    check_counts(path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
async def test_a_system_that_refuses_to_look_stops_no_worker(path, monkeypatch, code):
    """While it lasts nothing is claimed; then the worker goes on, though nobody calls it."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        await durable.submit(1)
        look, failed = os.stat, []

        def broken(place, *arguments, **settings):
            if str(place) == str(path):
                failed.append(place)
                raise OSError(code, os.strerror(code))
            return look(place, *arguments, **settings)

        monkeypatch.setattr(os, "stat", broken)
        await until(lambda: len(failed) > 3)
        monkeypatch.undo()
        async with DurableQueue(path, item_type=int, result_type=int) as queue:
            assert await queue.submit(2) == 4


class LiesOnce(sqlite3.Connection):
    """Reports a commit as failed that reached the disk, as a disk may that answers too late.

    The next one of a transaction that wrote to the table ``about``.
    """

    about: str | None = None
    wrote = False

    def _note(self, sql):
        about = LiesOnce.about
        self.wrote = not sql.startswith("BEGIN") and (
            self.wrote or (about is not None and f"INTO {about}" in sql)
        )

    def execute(self, sql, *arguments):
        self._note(sql)
        cursor = super().execute(sql, *arguments)
        if sql == "COMMIT" and self.wrote:
            LiesOnce.about, self.wrote = None, False
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return cursor

    def executemany(self, sql, *arguments):
        self._note(sql)
        return super().executemany(sql, *arguments)


@pytest.fixture
def liar(monkeypatch):
    """Every connection can lie about a commit; the next one of whoever arms it does."""
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{"factory": LiesOnce} | k))


async def test_a_claim_that_was_committed_after_all_is_given_back(path, liar):
    """The transaction counts as failed, so nobody has the items; the file says that this worker does."""
    handler = Handler()
    retry = Retry(on=OSError, attempts=1)  # uncounted: it has no other attempt
    async with batcher(path, handler, retry=retry) as durable:
        await durable.stats()
        LiesOnce.about = "microbatch_blobs"
        with pytest.raises(QueueUnavailable, match="disk I/O error"):
            await durable.enqueue(1)  # stored, and claimed for the free slot
        await until(lambda: handler.items == [1])
        assert await durable.result(1, 20) == 2
        await looked(durable)
    assert states(path) == {1: "done"}
    check_counts(path)


async def test_an_outcome_that_was_committed_after_all_is_found(path, liar):
    """It is tried again, and then is nobody's any more; the item is not handled twice."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        ticket = await durable.enqueue(1)
        await until(lambda: handler.batches)
        waiting = asyncio.create_task(durable.result(ticket, 20))
        await until(lambda: durable._service.lookups.stats().items)  # it has seen that it must wait
        LiesOnce.about = "microbatch_results"
        handler.free.set()
        with pytest.raises(QueueUnavailable, match="the result could not be stored"):
            await waiting
        assert await durable.result(ticket, 20) == 2
        await looked(durable)
    assert handler.items == [1]
    check_counts(path)


async def test_a_key_makes_it_safe_to_send_again_what_was_committed_after_all(path, liar):
    """Whether an item was stored that failed with QueueUnavailable is unknown."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        await durable.stats()
        LiesOnce.about = "microbatch_blobs"
        with pytest.raises(QueueUnavailable):
            await durable.enqueue(1, key="k")
        assert await durable.submit(1, key="k") == 2
        await looked(durable)
    assert handler.items == [1]
    check_counts(path)
