"""Who waits for what: each is told once, and who has gone is no trouble."""

from __future__ import annotations

import asyncio
import logging

import pytest
from durable_support import Handler, batcher, locked_out, until

from microbatch.durable import DurableQueue, QueueCorrupt, QueueUnavailable, UnknownTicket
from microbatch.durable.codec import Codec
from microbatch.durable.opening import OwnTask
from microbatch.durable.waiters import Waiters

pytestmark = pytest.mark.anyio


def future():
    return asyncio.get_running_loop().create_future()


async def test_each_waiter_is_told_and_who_has_gone_is_left_alone():
    """A cancelled future must not be set."""
    waiters = Waiters(Codec(int, "result_type"), "default")
    stays, goes, late = future(), future(), future()
    for waiter in (stays, goes, late):
        waiters.add(1, waiter)
    goes.cancel()
    waiters.leave(1, late)
    assert list(waiters) == [1]
    waiters.succeed(1, 5)
    assert await stays == 5
    assert not waiters

    fails, gone = future(), future()
    for waiter in (fails, gone):
        waiters.add(2, waiter)
    gone.cancel()
    waiters.tell(2, None)
    with pytest.raises(UnknownTicket):
        await fails
    waiters.add(3, gone)  # done already
    assert not waiters
    waiters.leave(4, future())
    waiters.tell(4, None)


async def test_a_task_of_our_own_that_fails_says_so(monkeypatch):
    """Nobody awaits it, so it must not fail in silence."""
    said = []
    quiet = logging.getLogger("a test")
    monkeypatch.setattr(quiet, "error", lambda message, **more: said.append(message))
    monkeypatch.setattr("microbatch.durable.opening.logger", quiet)

    async def fails():
        raise ValueError

    task = OwnTask(asyncio.ensure_future(fails()), "it failed")
    await task.ended.wait()
    assert said == ["it failed"]


async def test_rows_that_make_no_sense_are_damage(path):
    """SQLite checks little of what it reads."""
    async with DurableQueue(path, item_type=int, name="orders") as queue:
        assert queue.name == "orders"
        with pytest.raises(QueueCorrupt, match="a row makes no sense: ValueError"):
            await queue._store._database.glance(lambda raw: int("x"))
        await queue.enqueue(1)


async def test_a_trouble_that_lasts_is_told_once(path, caplog, monkeypatch):
    """A log must not fill up over night."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(1)
        peek, failures = durable._store.peek, []

        async def counted(seen):
            try:
                return await peek(seen)
            except QueueUnavailable:
                failures.append(seen)
                raise

        monkeypatch.setattr(durable._store, "peek", counted)
        with locked_out(path):
            await until(lambda: len(failures) > 3)
        await until(lambda: "can be used again" in caplog.text)
    assert caplog.text.count("trying again") == 1
