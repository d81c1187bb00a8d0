"""A worker that has nothing to do does nothing: whatever waits, is paused, or has gone again."""

from __future__ import annotations

import time

import anyio
import pytest
from durable_support import Handler, batcher, until

pytestmark = pytest.mark.anyio


async def _rests() -> bool:
    """Tell whether this process leaves the processor alone for half a second, or as long as that takes here.

    A loop that turns takes all of that time, or its share on a busy machine; looking about takes a hundredth.
    """
    work, began = time.process_time(), time.monotonic()
    await anyio.sleep(0.5)
    return time.process_time() - work < (time.monotonic() - began) / 2


async def test_a_paused_queue_with_overdue_items_rests(path):
    """What is due and may not go must not be looked at for ever."""
    async with batcher(path, Handler()) as durable:
        await durable.pause()
        ticket = await durable.enqueue(1, delay=0.05)
        await anyio.sleep(0.2)
        assert await _rests()
        await durable.resume()
        assert await durable.result(ticket, 60) == 2


async def test_an_overdue_item_beside_a_busy_handler_rests(path):
    """It goes once there is room; until then nothing turns."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=1) as durable:
        await durable.enqueue(1)
        await until(lambda: handler.batches)
        ticket = await durable.enqueue(2, delay=0.05)
        await anyio.sleep(0.2)
        assert await _rests()
        handler.free.set()
        assert await durable.result(ticket, 60) == 4


async def test_company_that_was_waited_for_in_vain_is_forgotten(path):
    """An item that is cancelled while it waits for mates leaves no time behind that is past for ever."""
    async with batcher(path, Handler(), max_wait=0.2) as durable:
        while not await durable.cancel(await durable.enqueue(1)):
            pass  # it was handled before: this machine took longer than the item waited
        await anyio.sleep(0.3)
        assert await _rests()


async def test_a_later_item_is_found_behind_an_overdue_one_that_was_cancelled(path):
    """When the next one is due must be known again, though nothing came of the one before."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=1) as durable:
        await durable.enqueue(1)
        await until(lambda: handler.batches)
        overdue = await durable.enqueue(2, delay=0.05)
        later = await durable.enqueue(3, delay=0.6)
        await anyio.sleep(0.2)
        assert await durable.cancel(overdue)
        handler.free.set()
        assert await durable.result(later, 60) == 6
