"""Who waits for an item learns of its end, whoever ended it and wherever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest
from durable_support import Handler, Process, batcher, execute, locked, rows, until, writer_of
from support import turns

from microbatch import Retry
from microbatch.durable import DurableQueue, ItemCancelled, ItemFailed, QueueUnavailable
from microbatch.durable._life.polling import Polling

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


def stand_still(condition) -> None:
    """Wait as an event loop does that is held up: nothing else runs in it meanwhile."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.002)


def cancel_elsewhere(path, looks) -> None:
    """Cancel the only item as another process does, and have that seen by this one's writer."""
    execute(
        path,
        "BEGIN IMMEDIATE",
        "UPDATE microbatch_ranges SET state = 5, ended = 1, ended_at = 1, keep_until = 1e12",
        "UPDATE microbatch_queues SET ready = 0, cancelled = 1, ended = 1 WHERE name = 'default'",
        "UPDATE microbatch_lanes SET priority = NULL, due = NULL, first_id = NULL",
        "COMMIT",
    )
    now = time.monotonic()
    stand_still(lambda: any(begun > now for begun in list(looks)))


def cancel_here(path, looks) -> None:
    """Cancel it in another event loop of this process."""
    del looks

    async def cancel() -> None:
        async with DurableQueue(path, item_type=int) as queue:
            assert await queue.cancel(1)

    thread = threading.Thread(target=lambda: asyncio.run(cancel()))
    thread.start()
    thread.join()


@pytest.mark.parametrize("cancel", [cancel_elsewhere, cancel_here])
@pytest.mark.parametrize("handles", [True, False])
async def test_who_hears_late_that_his_item_is_stored_hears_of_its_end(
    path, monkeypatch, cancel, handles
):
    """It has ended before he waits for it: others are told of such an end, and he must not be left out."""
    looks, do = [], Polling.do

    def looking(polling, now):
        begun = time.monotonic()
        do(polling, now)
        looks.append(begun)

    monkeypatch.setattr(Polling, "do", looking)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(batcher(path, Handler(), queue="beside"))
        one = batcher(path, Handler()) if handles else DurableQueue(path, item_type=int)
        await stack.enter_async_context(one)
        await one.pause()
        with locked(path):
            waiting = asyncio.ensure_future(one.submit(1))
            await turns()  # it is left with the writer
        stand_still(lambda: rows(path, "SELECT 1 FROM microbatch_ranges"))
        cancel(path, looks)
        with pytest.raises(ItemCancelled):
            await asyncio.wait_for(waiting, 20)


async def test_a_look_for_who_was_left_out_waits_while_looks_fail(path):
    """Else the writer would do nothing but fail, as fast as it can."""
    async with DurableQueue(path, item_type=int, poll_interval=3600) as queue:
        ticket = await queue.enqueue(1)
        waiting = asyncio.ensure_future(queue.result(ticket))
        await until(queue._service.is_waiting)
        writer, client = writer_of(queue), queue._service.store._client
        (polling,) = [duty for duty in writer._duties if isinstance(duty, Polling)]
        told: Future[tuple[float | None, ...]] = Future()

        def ask() -> None:
            client.seen_ended = -1
            polling.put_off(200.0)
            fails = polling.due(100.0)
            polling.put_off(0.0)
            told.set_result((fails, polling.due(100.0)))

        writer.post(ask)
        assert await asyncio.wrap_future(told) == (200.0, 100.0)
        assert await queue.cancel(ticket)
        with pytest.raises(ItemCancelled):
            await asyncio.wait_for(waiting, 20)
