"""Which item comes next, however many there are."""

from __future__ import annotations

import asyncio
import time

import pytest
import time_machine
from durable_support import Handler, batcher, until

from microbatch.durable import DurableQueue

pytestmark = pytest.mark.anyio


async def test_among_overdue_items_the_urgent_one_goes_first(path):
    """Though a thousand others were due before it: they are more than one claim makes ready."""
    async with DurableQueue(path, item_type=int) as queue:
        waiting = (queue.enqueue(number, key=str(number), delay=0.01) for number in range(1_000))
        await asyncio.gather(*waiting)
        urgent = await queue.enqueue(-1, priority=1, delay=0.1)
        due = time.time() + 0.1
        await until(lambda: time.time() > due)
        assert (await queue.stats()).scheduled == 1_001
    handler = Handler()
    async with batcher(path, handler, max_batch_size=10) as durable:
        await durable.result(urgent, 20)
    assert handler.batches[0] == [-1, *range(9)]


async def test_the_oldest_age_is_that_of_the_longest_due(path):
    """It may have the lowest of a thousand and more priorities."""
    with time_machine.travel("2026-01-01 12:00Z") as traveller:
        async with DurableQueue(path, item_type=int) as queue:
            began = time.time()
            await queue.enqueue(0, priority=-1)
            traveller.shift(1_000)
            for priority in range(1_100):
                await queue.enqueue(0, priority=priority)
            assert 1_000 <= (await queue.stats()).oldest_age <= time.time() - began
