"""What the writer of a file does besides writing, while callers leave it no rest."""

from __future__ import annotations

import time

import anyio
import pytest
from durable_support import Handler, batcher, looked, until, writer_of

pytestmark = pytest.mark.anyio


async def test_a_writer_that_callers_keep_busy_looks_at_who_lives_all_the_same(path):
    """Else the items of a dead process would wait until the load goes down."""
    async with batcher(path, Handler()) as durable:

        async def caller() -> None:
            while True:
                await durable.enqueue(1)

        async with anyio.create_task_group() as callers:
            for _ in range(5):
                callers.start_soon(caller)
            with anyio.fail_after(60):
                await looked(durable)
            callers.cancel_scope.cancel()


async def test_an_idle_writer_looks_at_its_duties_only_when_one_is_due(path):
    """What is cheap for a busy one, a look every 5 ms, would be a program's whole CPU at rest."""
    async with batcher(path, Handler(), poll_interval=5) as durable:
        await durable.submit(1)
        writer = writer_of(durable)
        looks = 0
        pause = writer._pause

        def counted(dues) -> float | None:
            nonlocal looks
            looks += 1
            return pause(dues)

        began = time.monotonic()
        writer._pause = counted
        before = writer.neighbours.next
        await until(lambda: writer.neighbours.next > before + 0.5)
        assert looks < 100 * (time.monotonic() - began)
