"""How a worker ends: what no handler has seen goes back, what runs is waited for, and not for ever."""

from __future__ import annotations

import time

import anyio
import pytest
from durable_support import Handler, batcher, rows, states, until

from microbatch import BatcherClosed

pytestmark = pytest.mark.anyio


async def _is(durable, **counts):
    stats = await durable.stats()
    return all(getattr(stats, name) == count for name, count in counts.items())


async def test_closing_gives_back_what_no_handler_has_seen(path):
    """At once, with the attempt not counted; what runs may finish."""
    handler = Handler()
    handler.hold()
    apart = {"partition": lambda item: item, "max_batch_size": 2}
    async with batcher(path, handler, **apart) as durable, anyio.create_task_group() as tasks:
        first, second = await durable.enqueue_many([1, 2])
        await until(lambda: _is(durable, claimed=2))
        await until(lambda: handler.batches == [[1]])
        tasks.start_soon(durable.aclose)
        await until(lambda: states(path) == {first.id: "claimed", second.id: "ready"})
        handler.free.set()
    assert handler.batches == [[1]]
    assert states(path) == {first.id: "done", second.id: "ready"}
    assert rows(path, "SELECT attempts FROM microbatch_items WHERE state = 'ready'") == [(0,)]
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    async with batcher(path, handler) as durable:
        assert await durable.result(second) == 4


async def test_closing_does_not_wait_for_company(path):
    """An item waits for its mates on the disk, ready for whichever process has them: closing leaves it there."""
    handler = Handler()
    async with batcher(path, handler, max_wait=3600, max_batch_size=10) as durable:
        ticket = await durable.enqueue(1)
        assert (await durable.stats()).ready == 1
    assert handler.batches == []
    assert rows(path, "SELECT state, attempts FROM microbatch_items") == [("ready", 0)]
    async with batcher(path, handler) as durable:
        assert await durable.result(ticket) == 2


async def test_closing_waits_for_running_batches(path):
    """Their outcomes reach the disk before the file closes."""
    handler = Handler(seconds=0.2)
    async with batcher(path, handler) as durable:
        await durable.enqueue(1)
        await until(lambda: handler.batches)
    assert states(path) == {1: "done"}
    assert handler.cancelled == 0


async def test_closing_cancels_what_takes_too_long_and_gives_it_back(path):
    """Within the time that was asked for; the attempt counts, for the handler has seen the item."""
    handler = Handler()
    handler.hold()
    durable = batcher(path, handler)
    async with anyio.create_task_group() as tasks:

        async def wait():
            with pytest.raises(BatcherClosed):
                await durable.submit(1)

        tasks.start_soon(wait)
        await until(lambda: handler.batches)
        started = time.monotonic()
        await durable.aclose(0.1)
        assert time.monotonic() - started < 20  # else the default of 30 s, or for ever
    assert handler.cancelled == 1
    assert rows(path, "SELECT state, attempts FROM microbatch_items") == [("ready", 1)]
    with pytest.raises(BatcherClosed):
        await durable.submit(2)
    await durable.aclose()


async def test_leaving_by_an_exception_closes_at_once(path):
    """As Batcher does."""
    handler = Handler()
    handler.hold()
    with pytest.raises(ZeroDivisionError):
        async with batcher(path, handler) as durable:
            await durable.enqueue(1)
            await until(lambda: handler.batches)
            1 / 0
    assert handler.cancelled == 1


async def test_closing_that_is_cancelled_closes_at_once_and_wholly(path):
    """No thread, no consumer and no transaction may be left behind."""
    handler = Handler()
    handler.hold()
    durable = batcher(path, handler)
    await durable.enqueue(1)
    await until(lambda: handler.batches)
    with anyio.move_on_after(0.05):
        await durable.aclose(None)
    await until(lambda: durable._opening.state == "closed")
    assert states(path) == {1: "ready"}
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
