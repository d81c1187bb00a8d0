"""Another file in the place of the one that is open: whoever has it open goes on in the new one, under its terms."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from durable_support import Handler, batcher, check_counts, execute, looked, rows, until, writer_of

from microbatch.durable import (
    DurableQueue,
    ItemCancelled,
    ItemFailed,
    QueueUnavailable,
    UnknownTicket,
)

pytestmark = pytest.mark.anyio


async def _other_file(path):
    """A file in which the queues have other numbers."""
    other = path.with_name("other.db")
    async with DurableQueue(other, item_type=int, queue="first") as queue:
        await queue.enqueue(0)
    async with DurableQueue(other, item_type=int):
        pass
    return other


def _put_in_place(other, path):
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(other, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


async def _enqueued(queue, item):
    """Enqueue, once the change has been noticed."""
    while True:
        try:
            return await queue.enqueue(item)
        except QueueUnavailable:
            await asyncio.sleep(0.01)


async def test_items_go_to_the_queue_of_their_name_and_their_tickets_are_good(path):
    """Its number in the new file is another queue's; a ticket carries what the new opening drew."""
    other = await _other_file(path)
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        _put_in_place(other, path)
        ticket = await _enqueued(queue, 2)
        assert (await queue.stats()).ready == 1
        assert await queue.cancel(ticket)
    assert rows(path, "SELECT queue FROM microbatch_items WHERE id = ?", ticket.id) == [
        ("default",)
    ]
    check_counts(path)


async def test_a_worker_goes_on_in_the_queue_of_its_name(path):
    """Claims, settles and figures are those of the new file."""
    other = await _other_file(path)
    handler = Handler()
    async with batcher(path, handler) as durable:
        assert await durable.submit(1) == 2
        _put_in_place(other, path)
        ticket = await _enqueued(durable, 2)
        assert await durable.result(ticket, 60) == 4
        await looked(durable)
    assert handler.items == [1, 2]
    check_counts(path)


async def test_who_waits_for_what_the_new_file_does_not_have_is_told(path):
    """Nothing will ever end it there."""
    other = await _other_file(path)
    async with DurableQueue(path, item_type=int) as queue:
        waiting = asyncio.ensure_future(queue.submit(1))
        await until(queue._service.is_waiting)
        await asyncio.sleep(0.1)
        _put_in_place(other, path)
        with pytest.raises((UnknownTicket, ItemFailed)):
            await asyncio.wait_for(waiting, 60)


async def test_who_was_taken_for_dead_misses_no_end(path):
    """It starts over as a new consumer: what ended between its last look and that must still be told."""
    async with batcher(path, Handler(), poll_interval=1.0) as durable:
        await durable.pause()
        waiting = asyncio.ensure_future(durable.submit(1))
        await until(durable._service.is_waiting)
        await looked(durable)
        execute(
            path,
            "BEGIN IMMEDIATE",
            "DELETE FROM microbatch_consumers",
            "UPDATE microbatch_ranges SET state = 5, ended = 1, ended_at = 1, keep_until = 1e12",
            "UPDATE microbatch_queues SET ready = 0, cancelled = 1, ended = 1",
            "UPDATE microbatch_lanes SET priority = NULL, due = NULL, first_id = NULL",
            "COMMIT",
        )
        with pytest.raises(ItemCancelled):
            await asyncio.wait_for(waiting, 60)
        check_counts(path)


async def test_a_queue_that_is_opened_afterwards_shares_the_writer(path):
    """There is one for each file and process: it went along to the new file."""
    other = await _other_file(path)
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        _put_in_place(other, path)
        await _enqueued(queue, 2)
        async with DurableQueue(path, item_type=int, queue="another") as later:
            assert writer_of(later) is writer_of(queue)
