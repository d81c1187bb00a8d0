"""The connection's thread, whatever becomes of the task or the event loop that it works for."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import anyio
import pytest
from durable_support import LOOPS, NewThreads, ends_loops, until
from support import run

from microbatch.durable import DurableQueue, hop


class Watched(hop.Guarded):
    """A connection that opens when it is let, and says that it was closed, and in which thread."""

    may_open: threading.Event
    opening: threading.Event
    closed: list[bool]

    def __init__(self, *arguments, **settings):
        self.thread = threading.get_ident()
        self.opening.set()
        assert self.may_open.wait(20)
        super().__init__(*arguments, **settings)

    def close(self):
        self.closed.append(threading.get_ident() == self.thread)
        super().close()


@pytest.fixture
def watched(monkeypatch):
    connection = type(
        "Connection",
        (Watched,),
        {"may_open": threading.Event(), "opening": threading.Event(), "closed": []},
    )
    monkeypatch.setattr(hop, "Guarded", connection)
    return connection


@pytest.mark.anyio
async def test_an_opening_that_is_cancelled_leaves_no_connection(path, watched):
    """asyncio itself cancels the task: no scope shields it, and aiosqlite forgets what it was opening."""
    threads = NewThreads()
    queue = DurableQueue(path, item_type=int)
    opening = asyncio.ensure_future(queue.stats())
    assert await anyio.to_thread.run_sync(watched.opening.wait, 20)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    assert not watched.closed
    watched.may_open.set()
    await until(lambda: not threads.running(), 20)
    assert watched.closed == [True]
    await queue.aclose()


@pytest.mark.parametrize("loop", LOOPS)
@ends_loops
def test_a_thread_that_outlives_its_event_loop_ends_quietly(path, watched, loop):
    """The disk hung, say: its answer is for nobody, and no traceback of a thread's is worth reading."""
    watched.may_open.set()
    threads = NewThreads()
    begun, answers = threading.Event(), threading.Event()

    def work(raw):
        begun.set()
        assert answers.wait(20)

    async def main():
        queue = DurableQueue(path, item_type=int)
        await queue.stats()
        hanging = asyncio.ensure_future(queue._store._database.glance(work))
        assert await anyio.to_thread.run_sync(begun.wait, 20)
        assert not hanging.done()

    run(loop, main, real_time=True)
    (thread,) = threads.running()
    answers.set()
    thread.join(20)
    assert not thread.is_alive()
    assert watched.closed == [True]


def test_an_error_in_a_thread_whose_loop_lives_is_not_hidden(monkeypatch):
    """It would be a bug of somebody's."""
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def fail():
        raise RuntimeError("a bug")

    thread = threading.Thread(target=partial(hop._run, fail, [], lambda: False), daemon=True)
    thread.start()
    thread.join(20)
    assert [str(said.exc_value) for said in told] == ["a bug"]
