"""Who has given back what it had is gone, whoever looks before the rest of its closing has come."""

from __future__ import annotations

import asyncio

import pytest
from durable_support import Handler, batcher, ends_loops, looked, rows, writer_of

from microbatch.durable import DurableQueue

pytestmark = pytest.mark.anyio


async def test_who_has_left_is_not_taken_for_dead(path, caplog):
    """A look between the two would make a new consumer for who is gone, and leave it in the file."""
    async with batcher(path, Handler()) as leaving, batcher(path, Handler()) as staying:
        await leaving.submit(1)
        neighbours, client = writer_of(leaving).neighbours, leaving._service.store._client
        assert not await client.call(lambda transaction: neighbours.leave(transaction, client))
        writer_of(leaving).post(neighbours.look_soon)
        await looked(staying)
        assert rows(path, "SELECT id FROM microbatch_consumers") == [
            (staying._service.store._client.consumer,)
        ]
    assert "taken for dead" not in caplog.text
    assert rows(path, "SELECT * FROM microbatch_consumers") == []


@ends_loops
def test_queues_of_ended_loops_go_when_the_next_one_comes(path):
    """Those without a handler are looked after by nobody else: a thread or two for each, and all it holds."""

    async def forget():
        queue = DurableQueue(path, item_type=int)
        await queue.enqueue(1)
        await queue.stats()

    async def look():
        async with DurableQueue(path, item_type=int) as queue:
            return len(writer_of(queue).clients), len(writer_of(queue).users)

    for _ in range(3):
        asyncio.run(forget())
    assert asyncio.run(look()) == (1, 1)
