"""A reading of the clock that was wrong for a moment delays nothing by more than that moment."""

from __future__ import annotations

import asyncio
import time

import pytest
from durable_support import Handler, batcher, check_counts, rows, until

from microbatch.durable import DurableQueue

pytestmark = pytest.mark.anyio

DAY = 86_400.0


@pytest.fixture
def clock(monkeypatch):
    """Sets the wall clock forward by so many seconds."""
    real = time.time

    def set_forward(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return set_forward


async def test_a_delay_that_was_counted_from_a_wrong_future_runs_from_now(path, clock):
    """In the process that wrote it, which knows when it is due by the wrong clock."""
    async with batcher(path, Handler()) as durable:
        clock(DAY)
        ticket = await durable.enqueue(1, delay=0.3)
        clock(0)
        assert await durable.result(ticket, 60) == 2


async def test_the_same_after_a_restart(path, clock):
    """And in another process: the reading stands in the file beside the time."""
    clock(DAY)
    async with DurableQueue(path, item_type=int) as queue:
        ticket = await queue.enqueue(1, delay=0.3)
    clock(0)
    async with batcher(path, Handler()) as durable:
        assert await durable.result(ticket, 60) == 2


async def test_a_clock_that_was_behind_and_is_set_right_wakes_what_is_due(path, clock):
    """Nothing else happens that would make anybody look."""
    async with batcher(path, Handler()) as durable:
        ticket = await durable.enqueue(1, delay=3600)
        await asyncio.sleep(0.1)
        clock(DAY)
        assert await durable.result(ticket, 60) == 2


async def test_what_ended_in_a_wrong_future_does_not_keep_what_ended_since(path, clock):
    """Items go in the order in which they ended: one that is to be kept for a day more would hold all."""
    async with batcher(path, Handler(), result_ttl=0.3) as durable:
        clock(DAY)
        await durable.submit(1)
        clock(0)
        for number in range(2, 6):
            await durable.submit(number)
        await until(lambda: not rows(path, "SELECT 1 FROM microbatch_ranges"))
        assert (await durable.stats()).done == 0
    check_counts(path)
