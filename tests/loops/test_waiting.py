"""waiting: a blocked thread's waiter, and waiters that tell their end once."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.lowlevel
from support import Recorder, outcome, run, turns

from microbatch import Batcher
from microbatch._loops.current import current_loop
from microbatch._loops.waiting import ThreadWaiter

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


def test_a_threads_waiter_takes_the_first_outcome() -> None:
    """A second one, or one that comes after its thread has gone, changes nothing."""
    waiter = ThreadWaiter()
    assert not waiter.wait(0)
    assert not waiter.done()
    waiter.set_result(1)
    waiter.set_result(2)
    waiter.set_exception(KeyError())
    assert waiter.done()
    assert waiter.wait(0)
    assert waiter.result() == 1
    assert not waiter.cancel()
    assert not waiter.cancelled()

    failed = ThreadWaiter()
    failed.set_exception(KeyError("k"))
    failed.set_result(1)
    with pytest.raises(KeyError, match="k"):
        failed.result()

    gone = ThreadWaiter()
    assert gone.cancel()
    assert gone.cancelled()
    gone.set_result(1)
    gone.set_exception(KeyError())
    assert gone.done()
    assert gone.cancelled()


def test_a_threads_waiter_wakes_its_thread() -> None:
    """As soon as there is an answer, whatever it would have waited."""
    waiter = ThreadWaiter()
    threading.Timer(0.01, waiter.set_result, ["x"]).start()
    assert waiter.wait(10)
    assert waiter.result() == "x"


def test_nothing_leaves_a_system_task_of_trio(caplog: Any) -> None:
    """It would end the whole run: whatever it is, it is logged and the others go on."""

    async def main() -> str:
        loop = current_loop()

        async def fail(argument: Any) -> None:
            await loop.started()
            raise KeyError(argument)

        loop.spawn(fail, "lost", "orders")
        await turns()
        return "alive"

    with caplog.at_level(logging.ERROR, logger="microbatch"):
        assert run("trio", main) == "alive"
    assert [record.getMessage() for record in caplog.records] == [
        "a task of batcher 'orders' failed"
    ]
    assert "KeyError: 'lost'" in caplog.text


def test_a_callback_of_whoever_hosts_trio_is_served_as_trio() -> None:
    """A button's, where trio runs as the guest of a GUI: no task of trio's, and no loop of asyncio's."""
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ended: list[Any] = []

    async def guest() -> Any:
        batcher: Batcher[int, int] = Batcher(Recorder())
        pressed: list[Any] = []
        todo.put(lambda: pressed.append(batcher.submit_nowait(1)))
        while not pressed:
            await trio.lowlevel.checkpoint()
        return await pressed[0]

    trio.lowlevel.start_guest_run(
        guest, run_sync_soon_threadsafe=todo.put, done_callback=ended.append
    )
    while not ended:
        todo.get(timeout=10)()
    assert ended[0].unwrap() == 10


async def test_a_waiter_tells_its_end_once() -> None:
    """For a record of each item: cancelling what has ended is no second end."""
    ends: list[Any] = []
    for end in ("set_result", "set_exception", "cancel"):
        waiter = current_loop().item_waiter(None)
        waiter.on_end = lambda error, cancelled: ends.append((error, cancelled))
        argument = {"set_result": [1], "set_exception": [KeyError()], "cancel": []}[end]
        getattr(waiter, end)(*argument)
        assert not waiter.cancel()
        await outcome(waiter) if end != "cancel" else None
    assert [(type(error), cancelled) for error, cancelled in ends] == [
        (type(None), False),
        (KeyError, False),
        (type(None), True),
    ]


def test_on_trio_a_callback_that_raises_is_logged_and_ends_nothing(caplog: Any) -> None:
    """asyncio goes on too; out of a system task it would end the whole program."""

    def fail() -> None:
        raise LookupError("callback")

    async def main() -> None:
        loop = current_loop()
        loop.call_at(loop.now() + 1, fail)
        loop.call_from_thread(fail)
        await anyio.sleep(5)

    run("trio", main)
    assert caplog.text.count("a callback of a batcher failed") == 2


def test_a_trio_items_waiter_tells_of_its_end_once() -> None:
    """Its span is ended by the first outcome, as its caller is."""
    ended: list[Any] = []

    async def main() -> None:
        waiter = current_loop().item_waiter(None)
        waiter.on_end = lambda error, cancelled: ended.append(error)
        waiter.set_result(1)
        waiter.set_exception(LookupError())
        assert await waiter == 1

    run("trio", main)
    assert ended == [None]
