"""Many items, and large ones: nobody else stands still for them, and memory is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading

import anyio
import msgspec
import pytest
from durable_support import Handler, batcher, check_counts, execute, locked, rows, until, writer_of

from microbatch.durable import DurableQueue, QueueUnavailable

pytestmark = pytest.mark.anyio


class OtherProgram:
    """Writes to the file all the time; remembers what it saw."""

    def __init__(self, path):
        self.seen = set()
        self.error = None
        self.looked = threading.Event()
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with contextlib.closing(
            sqlite3.connect(self._path, timeout=60, isolation_level=None)
        ) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            while not self._ended.wait(0.005):
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    ((ready,),) = connection.execute("SELECT ready FROM microbatch_queues")
                    connection.execute("ROLLBACK")
                except sqlite3.OperationalError as error:
                    self.error = error
                    return
                self.seen.add(ready)
                self.looked.set()

    def looks(self):
        """Wait until it has had the lock once more."""
        for _ in range(2):  # what it sees the first time may be what it asked for before
            self.looked.clear()
            assert self.looked.wait(60)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()


async def test_a_call_with_400_000_items_holds_up_nobody(path):
    """Neither this loop's other tasks nor other programs; and nobody sees a part of them."""
    taken = longest = 0
    commits = []

    def others_turn():
        nonlocal taken
        taken = 0

    def items():
        nonlocal taken, longest
        for number in range(400_000):
            if not taken:
                asyncio.get_running_loop().call_soon(others_turn)
            taken += 1
            longest = max(longest, taken)
            if number == 200_000:
                other.looks()
            yield number

    async with DurableQueue(path, item_type=int) as queue:
        await queue.stats()
        raw = writer_of(queue).connection._raw
        note = lambda sql: commits.append(sql) if sql == "COMMIT" else None  # noqa: E731
        writer_of(queue).post(lambda: raw.set_trace_callback(note))
        with OtherProgram(path) as other:
            tickets = await queue.enqueue_many(items())
        assert [ticket.id for ticket in tickets] == list(range(1, 400_001))
        assert (await queue.stats()).ready == 400_000
    assert longest <= 1_000  # items between two turns of the others
    assert len(commits) >= 41  # a transaction, and with it the file's lock, for 10,000 items
    assert other.error is None
    assert 0 in other.seen
    assert other.seen <= {0, 400_000}
    check_counts(path)


@pytest.fixture
def small_parts(monkeypatch):
    """A transaction takes a hundred items."""
    monkeypatch.setattr("microbatch.durable._flow.many.HANDED_ITEMS", 100)


def nothing_is_there(path):
    """Whether the file has no item, and nothing of one."""
    tables = ("ranges", "blobs", "results", "errors", "keys")
    return not any(rows(path, f"SELECT * FROM microbatch_{table}") for table in tables)


async def test_what_was_stored_of_a_call_that_fails_halfway_goes(path, small_parts):
    """All or none, though it took several transactions."""

    def items():
        yield from range(350)
        raise ZeroDivisionError

    async with DurableQueue(path, item_type=int) as queue:
        with pytest.raises(ZeroDivisionError):
            await queue.enqueue_many(items())
        await until(lambda: nothing_is_there(path))
        stats = await queue.stats()
        assert (stats.depth, stats.ready) == (0, 0)
    check_counts(path)


async def test_a_call_whose_parts_were_lost_is_no_success(path, small_parts):
    """This process was taken for dead meanwhile: nothing is acknowledged, and the queue goes on."""

    def items():
        yield from range(150)
        execute(
            path,
            "DELETE FROM microbatch_ranges",
            "DELETE FROM microbatch_blobs",
            "DELETE FROM microbatch_consumers",
            "UPDATE microbatch_queues SET staged = 0",
        )
        yield from range(100)

    async with DurableQueue(path, item_type=int) as queue:
        with pytest.raises(QueueUnavailable):
            await queue.enqueue_many(items())
        assert await queue.enqueue(1)

        tickets = []

        async def again():
            with contextlib.suppress(QueueUnavailable):
                tickets.extend(await queue.enqueue_many(range(250)))
            return tickets

        await until(again)
        assert (await queue.stats()).ready == 251
    check_counts(path)


class Large(msgspec.Struct):
    """Counts how many have been made."""

    data: bytes
    made = 0

    def __post_init__(self) -> None:
        Large.made += 1


async def test_who_waits_for_room_is_bounded_by_bytes(path, monkeypatch):
    """Sixty callers with 5 MB each: what is encoded and copied is a few of them, while the disk is slow."""
    data = bytes(5_000_000)
    async with DurableQueue(path, item_type=Large) as queue:
        await queue.stats()
        items = [Large(data) for _ in range(60)]
        Large.made = 0
        async with anyio.create_task_group() as tasks:
            with locked(path):
                for item in items:
                    tasks.start_soon(queue.enqueue, item)
                await until(lambda: writer_of(queue).lock_waits)
                for _ in range(200):
                    await asyncio.sleep(0)
                # 64 MiB in the inbox, and what the transaction has that is under way.
                assert Large.made <= 17
                assert writer_of(queue).load < 80 << 20
        assert (await queue.stats()).ready == 60


async def test_those_who_wait_for_room_come_in_together(path, monkeypatch):
    """One for each transaction would be one for each sync of the disk."""
    monkeypatch.setattr("microbatch.durable._life.seat.INBOX_BYTES", 20_000)
    monkeypatch.setattr("microbatch.durable._flow.intake.HANDED_BYTES", 10_000)
    commits = []
    async with DurableQueue(path, item_type=bytes) as queue:
        await queue.stats()
        raw = writer_of(queue).connection._raw
        note = lambda sql: commits.append(sql) if sql == "COMMIT" else None  # noqa: E731
        writer_of(queue).post(lambda: raw.set_trace_callback(note))
        async with anyio.create_task_group() as tasks:
            with locked(path):
                for _ in range(1_000):
                    tasks.start_soon(queue.enqueue, bytes(200))
                await until(lambda: writer_of(queue).lock_waits)
        assert (await queue.stats()).ready == 1_000
    assert len(commits) <= 60  # a fifth of a megabyte through an inbox of 20 kB
    check_counts(path)


async def test_a_waiting_crowd_can_go_away(path, monkeypatch):
    """Each of them cancelled, wherever it stood in the line; the others come in."""
    monkeypatch.setattr("microbatch.durable._life.seat.INBOX_BYTES", 1_000)
    monkeypatch.setattr("microbatch.durable._flow.intake.HANDED_BYTES", 500)
    async with batcher(path, Handler(), item_type=bytes, result_type=bytes) as durable:
        await durable.stats()
        tasks = []
        with locked(path):
            for number in range(100):
                tasks.append(asyncio.ensure_future(durable.submit(bytes([number]) * 100)))
            await until(lambda: durable._service.intake.crowded)
            for task in tasks[1::2]:
                task.cancel()
        async with asyncio.timeout(20):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert ended[::2] == [bytes([number]) * 200 for number in range(0, 100, 2)]
    assert all(isinstance(one, asyncio.CancelledError) for one in ended[1::2])
    check_counts(path)


async def test_who_is_cancelled_when_its_turn_comes_passes_it_on(path, monkeypatch):
    """Nothing else is under way that could let in those behind it."""
    monkeypatch.setattr("microbatch.durable._life.seat.INBOX_BYTES", 1_000)
    async with DurableQueue(path, item_type=bytes) as queue:
        await queue.stats()

        async def first():
            await queue.enqueue(bytes(2_000))
            second.cancel()  # its turn has come just now, and it has not run yet

        with locked(path):
            filling = asyncio.ensure_future(first())
            await until(lambda: queue._service.intake.crowded)
            second = asyncio.ensure_future(queue.enqueue(b"2"))
            third = asyncio.ensure_future(queue.enqueue(b"3"))
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await filling
            assert (await third).id == 2
        assert second.cancelled()
