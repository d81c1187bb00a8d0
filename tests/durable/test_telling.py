"""Who waits for an item learns of its end, whoever ended it and wherever."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from durable_support import Handler, Process, batcher, until

from microbatch import Retry
from microbatch.durable import DurableQueue, ItemCancelled, ItemFailed, QueueUnavailable

pytestmark = pytest.mark.anyio


async def test_who_waits_hears_of_a_cancel_by_another_queue_of_this_process(path):
    """Both share the writer, so no number moves that a look asks for."""
    async with DurableQueue(path, item_type=int) as one, DurableQueue(path, item_type=int) as other:
        ticket = await one.enqueue(1)
        waiting = asyncio.ensure_future(one.result(ticket))
        await until(one._service.is_waiting)
        await asyncio.sleep(0.2)
        assert await other.cancel(ticket)
        with pytest.raises(ItemCancelled):
            await asyncio.wait_for(waiting, 60)


async def test_who_waits_hears_of_a_death_that_is_found_in_this_process(path):
    """The worker that buries it here has no caller of its own for it."""
    handler = Handler()
    handler.hold()
    once = {"retry": Retry(on=OSError, attempts=1), "max_batch_size": 1}
    async with batcher(path, handler, **once) as worker, DurableQueue(path, item_type=int) as queue:
        await worker.enqueue(1)
        await until(lambda: handler.batches)
        waiting = asyncio.ensure_future(queue.submit(2))
        async with Process(path, "hold") as other:
            heard = [await other.hear(), await other.hear()]
            assert ["handling", "2"] in heard
            await asyncio.sleep(0.2)
            os.kill(other.pid, signal.SIGKILL)
            with pytest.raises(ItemFailed, match="ProcessDied"):
                await asyncio.wait_for(waiting, 60)
        handler.free.set()


@pytest.mark.parametrize("odd", [False, True])
async def test_who_waits_is_looked_up_again_after_an_error(path, monkeypatch, caplog, odd):
    """Whatever reading the file raises, it is no answer, and is asked again; if it is odd, it is told."""
    monkeypatch.setattr("microbatch.durable._flow.service.ODD_PAUSE", 0.05)
    reason = "a row that nobody foresaw"
    error = ArithmeticError(reason) if odd else QueueUnavailable(str(path), reason)
    async with DurableQueue(path, item_type=int) as queue:
        waiting = asyncio.ensure_future(queue.submit(1))
        await until(queue._service.is_waiting)
        store, failed = queue._service.store, []

        async def find(numbers, find=store.find):
            if not failed:
                failed.append(numbers)
                raise error
            return await find(numbers)

        store.find = find
        async with batcher(path, Handler()):
            assert await asyncio.wait_for(waiting, 60) == 2
    assert failed
    assert (reason in caplog.text) is odd
