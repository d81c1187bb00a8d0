"""`max_wait`: items wait on the disk until they fill a handler call, or have waited so long."""

from __future__ import annotations

import asyncio
import time

import pytest
from durable_support import Handler, batcher, until

pytestmark = pytest.mark.anyio


async def test_only_full_calls_go_before_the_time_is_over(path):
    """What is left of many waits on, however many handlers are free."""
    handler = Handler()
    settings = {"max_wait": 0.5, "max_batch_size": 10, "max_concurrency": 4}
    async with batcher(path, handler, **settings) as durable:
        begun = time.monotonic()
        tickets = await durable.enqueue_many(range(25))
        await until(lambda: len(handler.batches) == 2)
        assert [len(batch) for batch in handler.batches] == [10, 10]
        assert time.monotonic() - begun < 0.4
        await asyncio.gather(*map(durable.result, tickets))
        assert 0.4 < time.monotonic() - begun < 0.9  # once the time, and not twice
    assert [len(batch) for batch in handler.batches] == [10, 10, 5]


async def test_who_has_waited_behind_a_busy_handler_does_not_wait_again(path):
    """The time counts from when an item could have gone."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_wait=0.5, max_batch_size=2) as durable:
        await durable.enqueue_many([1, 2])
        await until(lambda: handler.batches)
        ticket = await durable.enqueue(3)
        await asyncio.sleep(0.6)
        begun = time.monotonic()
        handler.free.set()
        assert await durable.result(ticket) == 6
        assert time.monotonic() - begun < 0.3
