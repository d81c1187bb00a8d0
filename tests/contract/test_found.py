"""What the fuzzer has found, each as a scenario of its own."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import Gate, Recorder, outcome, turns

from microbatch import Backoff, Batcher, BatcherClosed, Retry

pytestmark = pytest.mark.anyio


async def test_a_close_tells_that_a_handler_had_an_item_in_backoff() -> None:
    """``started`` decides whether the item may be given to another batcher without a second thought."""

    async def handler(items: list[int]) -> list[Any]:
        return [ConnectionError(item) for item in items]

    retry = Retry(on=ConnectionError, backoff=Backoff(jitter=0.0))
    batcher: Batcher[int, Any] = Batcher(handler, retry=retry)
    pending = batcher.submit_nowait(1)
    await turns()
    assert batcher.stats().in_backoff == 1
    await batcher.aclose(drain_timeout=0.0)
    error = await outcome(pending)
    assert isinstance(error, BatcherClosed)
    assert error.started


async def test_a_submit_many_whose_items_are_all_in_waits_for_room_no_more() -> None:
    """``stats().waiting`` is exact: it is what a health check or an alert looks at."""
    batcher: Batcher[int, int] = Batcher(Recorder(seconds=1.0), max_batch_size=1, max_pending=3)
    async with batcher, anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.submit_many, [1, 2, 3, 4])
        await turns()
        tasks.start_soon(batcher.submit, 5)
        await turns()
        assert batcher.stats().waiting == 2
        await anyio.sleep(1.1)
        assert batcher.stats().waiting == 1


async def test_a_partition_is_no_more_urgent_than_those_who_are_still_there() -> None:
    """An urgent caller that has gone must not carry its partition past others."""
    gate = Gate()
    async with Batcher(gate, partition=lambda item: item[0]) as batcher:
        batcher.submit_nowait("-")
        await turns()
        urgent = batcher.submit_nowait("a0", priority=2)
        batcher.submit_nowait("a1")
        batcher.submit_nowait("b0", priority=1)
        urgent.cancel()
        gate.opened.set()
    assert gate.batches == [["-"], ["b0"], ["a1"]]
