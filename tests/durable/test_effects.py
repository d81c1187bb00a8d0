"""What `on_settle` raises ends its own items, and nothing else."""

from __future__ import annotations

import asyncio

import pytest
from durable_support import Handler, batcher, locked, states, until

from microbatch.durable import ItemFailed, QueueUnavailable
from microbatch.durable._file.asks import Turn
from microbatch.durable._file.writer import TURN_TIMEOUT

pytestmark = pytest.mark.anyio


async def _submits_good_and_bad(path, on_settle) -> ItemFailed:
    """One item whose effects fail, one after it whose effects do not; return the first one's error."""
    async with batcher(path, Handler(), on_settle=on_settle, max_batch_size=1) as durable:
        with pytest.raises(ItemFailed) as failed:
            await asyncio.wait_for(durable.submit(13), 60)
        assert await asyncio.wait_for(durable.submit(1), 60) == 2
        stats = await durable.stats()
    assert (stats.dead, stats.done, stats.claimed) == (1, 1, 0)
    return failed.value


async def test_a_cancellation_that_nobody_asked_for_fails_its_items(path):
    """It came out of a task that was waited for; who takes it for his own end leaves the items claimed."""

    async def on_settle(connection, items, results):
        if 13 in items:
            other = asyncio.ensure_future(asyncio.sleep(3600))
            other.cancel()
            await other

    assert (await _submits_good_and_bad(path, on_settle)).kind == "HandlerCrashed"


async def test_another_queues_trouble_fails_its_items(path):
    """That file may be gone for good: trying again for ever would keep the items and their neighbours."""

    async def on_settle(connection, items, results):
        if 13 in items:
            raise QueueUnavailable("another.db", "it was deleted")

    assert (await _submits_good_and_bad(path, on_settle)).kind == "QueueUnavailable"


async def test_retention_keeps_up_with_effects(path):
    """They are settled on another connection, and what has ended is to be removed as soon as otherwise."""

    async def on_settle(connection, items, results):
        pass

    async with batcher(path, Handler(), on_settle=on_settle, keep_done=3) as durable:
        await asyncio.sleep(0.3)  # nothing to do: the next look is far away
        for number in range(10):
            await durable.submit(number)
        await until(lambda: _done_is(durable, 3))


async def _done_is(durable, count):
    return (await durable.stats()).done == count


async def test_another_programs_lock_takes_nothing_from_the_time_for_effects(path, monkeypatch):
    """Whoever wants the lock waits for it; the bound is for what holds it."""
    turns, calls, handler = [], [], Handler()
    extend = Turn.extend

    def extended(turn, seconds):
        extend(turn, seconds)
        turns.append(turn)

    async def on_settle(connection, items, results):
        calls.append(items)

    monkeypatch.setattr(Turn, "extend", extended)
    handler.hold()
    async with batcher(path, handler, on_settle=on_settle) as durable:
        result = asyncio.ensure_future(durable.submit(1))
        await until(lambda: handler.batches)
        with locked(path):
            handler.free.set()
            await until(lambda: len(turns) == 2)  # it was granted and taken, and waits for the lock
            turns[0].until -= 2 * TURN_TIMEOUT  # so long ago
            await asyncio.sleep(0.2)  # the writer looks at that every 50 ms
        assert await asyncio.wait_for(result, 60) == 2
    assert calls == [[1]]


async def test_nothing_new_is_claimed_while_the_effects_of_a_lone_item_are_pending(path):
    """Its process may die of the next one, and a death is charged to whoever is alone in a claim."""
    in_hand = []

    async def handler(items):
        in_hand.append([number for number, state in states(path).items() if state == "claimed"])
        return items

    async def on_settle(connection, items, results):
        await asyncio.sleep(0.01)

    async with batcher(path, handler, on_settle=on_settle, max_batch_size=1) as durable:
        tickets = await durable.enqueue_many(range(1, 11))
        await asyncio.gather(*(durable.result(ticket, 20) for ticket in tickets))
    assert in_hand == [[number] for number in range(1, 11)]
