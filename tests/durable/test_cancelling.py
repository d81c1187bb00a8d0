"""Cancelling a caller, and cancelling an item."""

from __future__ import annotations

import anyio
import pytest
from durable_support import Handler, batcher, check_counts, states, until

from microbatch import Outcome
from microbatch.durable import ItemCancelled, UnknownTicket

pytestmark = pytest.mark.anyio


async def test_cancelling_a_caller_stops_its_waiting_and_nothing_else(path):
    """A committed item is nobody's to take back by going away."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(durable.submit, 1)
            await until(lambda: handler.batches)
            tasks.cancel_scope.cancel()
        handler.free.set()
        await until(lambda: handler.batches == [[1]])
    assert states(path) == {1: "done"}


async def test_cancel_ends_an_item_that_nobody_has(path):
    """And tells those who wait for it."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        ticket = await durable.enqueue(1, delay=60)
        async with anyio.create_task_group() as tasks:

            async def wait():
                with pytest.raises(ItemCancelled, match="item 1 was cancelled"):
                    await durable.result(ticket)

            tasks.start_soon(wait)
            await anyio.sleep(0.05)
            assert await durable.cancel(ticket) is True
        assert await durable.cancel(ticket) is False
        with pytest.raises(ItemCancelled):
            await durable.result(ticket)
        with pytest.raises(UnknownTicket):
            await durable.cancel(99)
        assert (await durable.stats()).cancelled == 1
    assert handler.batches == []
    check_counts(path)


async def test_cancel_leaves_an_item_to_the_handler_that_has_it(path):
    """There is no way to know what it has done already."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        ticket = await durable.enqueue(1)
        await until(lambda: handler.batches)
        assert await durable.cancel(ticket) is False
        handler.free.set()
        assert await durable.result(ticket) == 2


def test_an_outcome_of_a_cancelled_item_is_neither_failed_nor_skipped() -> None:
    """Nobody did anything wrong with it."""
    assert Outcome(0, ok=False, error=ItemCancelled(1)).kind == "cancelled"
