"""`max_wait`: items wait on the disk until they fill a handler call, or have waited so long."""

from __future__ import annotations

import asyncio

import pytest
from durable_support import Handler, an_hour_passes, batcher, looked, until

pytestmark = pytest.mark.anyio

HOUR = 3600.0


async def test_only_full_calls_go_before_the_time_is_over(path):
    """What is left of many waits on, however many handlers are free."""
    handler = Handler()
    settings = {"max_wait": HOUR, "max_batch_size": 10, "max_concurrency": 4}
    async with batcher(path, handler, **settings) as durable:
        tickets = await durable.enqueue_many(range(25))
        await until(lambda: len(handler.batches) == 2)
        await looked(durable)
        assert [len(batch) for batch in handler.batches] == [10, 10]
        await an_hour_passes(durable)  # once the time, and not twice
        await asyncio.gather(*(durable.result(ticket, 60) for ticket in tickets))
    assert [len(batch) for batch in handler.batches] == [10, 10, 5]


async def test_who_has_waited_behind_a_busy_handler_does_not_wait_again(path):
    """The time counts from when an item could have gone."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_wait=HOUR, max_batch_size=2) as durable:
        await durable.enqueue_many([1, 2])
        await until(lambda: handler.batches)
        ticket = await durable.enqueue(3)
        await an_hour_passes(durable)
        await looked(durable)
        assert handler.batches == [[1, 2]]
        handler.free.set()
        assert await durable.result(ticket, 60) == 6
