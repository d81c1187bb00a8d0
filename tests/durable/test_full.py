"""The disk is full, or a limit is reached: new items are refused, old ones stay and are settled."""

from __future__ import annotations

import time

import anyio
import pytest
from durable_support import Handler, Shim, batcher, check_counts, on_writer, states, until

from microbatch.durable import DurableQueue, QueueFull, QueueUnavailable

pytestmark = pytest.mark.anyio


async def limit_pages(durable, pages: int) -> None:
    """A disk that is full, as SQLite sees it: this many pages and no more."""
    await on_writer(durable, f"PRAGMA max_page_count = {pages}")


async def test_a_full_disk_refuses_new_items_and_keeps_the_old_ones(path):
    """And takes new ones when there is room again."""
    handler = Handler()
    async with DurableQueue(path, item_type=bytes) as queue:
        await queue.enqueue(b"x")
        await limit_pages(queue, 1)
        acknowledged = 1
        with pytest.raises(QueueUnavailable, match="database or disk is full"):
            for _ in range(1000):
                await queue.enqueue(b"x" * 1000)
                acknowledged += 1
        assert (await queue.stats()).ready == acknowledged
        await limit_pages(queue, 1_000_000)
        await queue.enqueue(b"x")
    async with batcher(path, handler, item_type=bytes, result_type=bytes) as durable:
        await until(lambda: _ended(durable))
    assert len(handler.items) == acknowledged + 1
    check_counts(path)


async def _ended(durable):
    return (await durable.stats()).depth == 0


async def test_a_settle_that_finds_the_disk_full_is_tried_until_there_is_room(path, caplog):
    """Its caller is told at once; the item is not handled again."""
    handled = []

    async def handler(items):
        handled.extend(items)
        await limit_pages(durable, 1)
        return [b"x" * 100_000 for _ in items]

    async with batcher(path, handler, result_type=bytes) as durable:
        with pytest.raises(QueueUnavailable, match=r"the result could not be stored: .*full"):
            await durable.submit(1)
        await anyio.sleep(0.3)
        await limit_pages(durable, 1_000_000)
        assert await durable.result(1, 20) == b"x" * 100_000
    assert handled == [1]
    assert "outcomes wait for the disk" in caplog.text


async def test_closing_gives_up_what_cannot_be_settled(path, monkeypatch):
    """In a bounded time; the item goes back and is handled again."""
    monkeypatch.setattr("microbatch.durable._flow.consumer.SETTLE_GRACE", 0.2)

    async def handler(items):
        await limit_pages(durable, 1)
        return [b"x" * 100_000 for _ in items]

    async with batcher(path, handler, result_type=bytes, drain_timeout=0.2) as durable:
        ticket = await durable.enqueue(1)
        await until(lambda: durable._service.consumer.settling.unsettled)
        started = time.monotonic()
    assert time.monotonic() - started < 15  # else for ever
    assert set(states(path).values()) == {"ready"}
    async with batcher(path, Handler()) as durable:
        assert await durable.result(ticket, 20) == 2


@pytest.mark.skipif(not Shim.available(), reason="needs a C compiler and Linux")
async def test_no_space_left_on_the_device(path, tmp_path):
    """ENOSPC from the system itself, in the middle of everything."""
    flag = tmp_path / "full"
    program = tmp_path / "program.py"
    program.write_text(_NO_SPACE)
    process = Shim(tmp_path, match="queue.db", full=flag).start(program, path, flag)
    output = await anyio.to_thread.run_sync(process.communicate)
    assert process.returncode == 0
    assert output[0].split() == ["QueueUnavailable", "QueueUnavailable", "200", "11"]
    check_counts(path)


_NO_SPACE = """
import asyncio, os, sys
from microbatch.durable import DurableBatcher, QueueUnavailable
path, flag = sys.argv[1:]
handled = []
async def handler(items):
    handled.extend(items)
    if 100 in items:
        open(flag, "w").close()
    return [item * 2 for item in items]
async def main():
    async with DurableBatcher(path, handler, item_type=int) as durable:
        for n in range(10):
            await durable.submit(n)
        try:
            await durable.submit(100)
        except QueueUnavailable as error:
            print(type(error).__name__)
        try:
            await durable.enqueue(101)
        except QueueUnavailable as error:
            print(type(error).__name__)
        os.unlink(flag)
        while True:
            try:
                print(await durable.result(11, 20), len(handled))
                break
            except QueueUnavailable:  # of a time before
                pass
asyncio.run(main())
"""


async def test_max_depth_refuses_what_is_too_much(path):
    """All of a group or none."""
    async with DurableQueue(path, item_type=int, max_depth=3) as queue:
        await queue.enqueue_many([1, 2])
        with pytest.raises(QueueFull, match="queue 'default' is full: max_depth=3 is reached"):
            await queue.enqueue_many([3, 4])
        await queue.enqueue(3)
        with pytest.raises(QueueFull):
            await queue.enqueue(4)
    async with batcher(path, Handler(), max_depth=3) as durable:
        await until(lambda: _ended(durable))
        assert await durable.submit(5) == 10


async def test_max_file_bytes_refuses_new_items_while_old_ones_can_be_settled(path):
    """A queue that nobody can drain would stay full for ever."""
    async with DurableQueue(path, item_type=bytes, max_file_bytes=400_000) as queue:
        with pytest.raises(QueueFull, match="max_file_bytes=400000 is reached"):
            for _ in range(1000):
                await queue.enqueue(b"x" * 8000)
        stats = await queue.stats()
        assert 15 < stats.ready < 50
        assert stats.file_bytes + stats.wal_bytes < 600_000
    async with batcher(
        path, Handler(), item_type=bytes, result_type=bytes, max_file_bytes=400_000, keep_done=0
    ) as durable:
        await until(lambda: _ended(durable))
        await until(lambda: _done_is(durable, 0))
        await durable.enqueue(b"y")


async def _done_is(durable, count):
    return (await durable.stats()).done == count
