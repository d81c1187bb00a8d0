"""Items that are written in many transactions and seen in one: whole, or gone without a trace."""

from __future__ import annotations

import asyncio
import sys

import anyio
import pytest
from durable_support import Handler, batcher, check_counts, rows, until

from microbatch import BatcherClosed
from microbatch.durable import DurableQueue, QueueFull
from microbatch.durable._file.records import NewItem

pytestmark = pytest.mark.anyio


def _staged(path) -> int:
    return rows(path, "SELECT sum(staged) FROM microbatch_queues")[0][0]


async def test_closing_ends_who_brings_many_and_leaves_nothing_of_them(path):
    """They come in many turns: a close between two of them must not leave the caller without an answer."""
    queue = DurableQueue(path, item_type=int)
    await queue.enqueue(1)
    bringing = asyncio.ensure_future(queue.enqueue_many(range(200_000)))
    await until(lambda: _staged(path))
    await queue.aclose(0)
    with pytest.raises(BatcherClosed):
        await asyncio.wait_for(bringing, 60)
    assert _staged(path) == 0
    assert rows(path, "SELECT count(*) FROM microbatch_ranges WHERE state = 8") == [(0,)]
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    check_counts(path)


async def test_cancelling_who_brings_many_leaves_nothing_of_them(path):
    """Also in the very first transaction, which is committed all the same, without its caller."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        reached, store = asyncio.Event(), queue._service.store

        async def tell_and_stage(part, items, size, stage=store.stage):
            reached.set()
            await stage(part, items, size)

        store.stage = tell_and_stage
        bringing = asyncio.ensure_future(queue.enqueue_many(range(30_000)))
        await reached.wait()
        bringing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bringing
        await queue.enqueue(2)  # behind what was given up
        await until(lambda: not rows(path, "SELECT 1 FROM microbatch_ranges WHERE state = 8"))
        assert _staged(path) == 0
        tickets = await queue.enqueue_many(range(25_000))
        assert len(tickets) == 25_000
    check_counts(path)


async def test_many_are_not_shown_if_some_are_gone(path):
    """All or none: a process that was taken for dead meanwhile has lost what it had staged."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        store = queue._service.store

        async def lose_and_go_on(part, items, size, stage=store.stage):
            await stage(part, items, size)
            if part:
                await store.drop_staged(part)

        store.stage = lose_and_go_on
        with pytest.raises(Exception, match="enqueue them again"):
            await queue.enqueue_many(range(25_000))
        assert (await queue.stats()).ready == 1
    check_counts(path)


BRING_AND_DIE = """
import anyio, os, sys
from microbatch.durable import DurableQueue, QueueFull
from microbatch.durable._file.records import NewItem

async def main():
    queue = DurableQueue(sys.argv[1], item_type=int)
    await queue.enqueue_many(number if number < 25_000 else os._exit(9) for number in range(30_000))

anyio.run(main)
"""


async def test_what_a_dead_process_had_staged_goes_where_nobody_handles_items_too(path):
    """Else it would count towards `max_depth` until a worker comes."""
    done = await anyio.run_process([sys.executable, "-c", BRING_AND_DIE, str(path)], check=False)
    assert done.returncode == 9
    assert _staged(path) == 20_000
    async with DurableQueue(path, item_type=int, max_depth=10_000) as queue:
        await until(lambda: not _staged(path))
        await queue.enqueue(1)
        await until(lambda: not rows(path, "SELECT * FROM microbatch_consumers"))
    check_counts(path)


async def test_what_a_dead_process_had_staged_goes_step_by_step_where_items_are_handled(path):
    """Nobody is buried before all that he had is gone: nobody would look for the rest."""
    done = await anyio.run_process([sys.executable, "-c", BRING_AND_DIE, str(path)], check=False)
    assert done.returncode == 9
    async with batcher(path, Handler(), max_depth=10_000) as durable:
        await until(lambda: len(rows(path, "SELECT * FROM microbatch_consumers")) == 1)
        assert _staged(path) == 0
        assert await durable.submit(1) == 2
    check_counts(path)


async def test_closing_removes_all_that_is_staged_however_much_it_is(path):
    """Step by step, so that nobody waits long for the file."""
    queue = DurableQueue(path, item_type=int)
    await queue.stats()
    for part in (1, 2, 3):
        await queue._service.store.stage(part, [NewItem(b"1")] * 10_000, 10_000)
    assert _staged(path) == 30_000
    await queue.aclose()
    assert _staged(path) == 0
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    check_counts(path)


async def test_many_that_do_not_fit_leave_nothing_though_the_first_of_them_did(path):
    """All or none holds for a full queue too."""
    async with DurableQueue(path, item_type=int, max_depth=15_000) as queue:
        with pytest.raises(QueueFull):
            await queue.enqueue_many(range(25_000))
        await until(lambda: not _staged(path))
        assert len(await queue.enqueue_many(range(15_000))) == 15_000
    check_counts(path)
