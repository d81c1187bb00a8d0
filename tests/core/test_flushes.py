"""What flush() waits for while items stand in the flat lists: each of those, once, and nobody else."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import Gate, counted, outcome, outcomes, turns

from microbatch import Batcher, BatcherClosed, current_batch

pytestmark = pytest.mark.anyio


class Flushing:
    """A flush in a task of its own."""

    def __init__(self, batcher: Batcher[Any, Any], tasks: Any) -> None:
        self.ended = False
        self._batcher = batcher
        tasks.start_soon(self._run)

    async def _run(self) -> None:
        await self._batcher.flush()
        self.ended = True


async def test_a_flush_keeps_the_flat_lists() -> None:
    """A program that flushes every second must not pay for entries with each of its items."""
    gate = Gate()
    async with Batcher(gate) as batcher, anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(1)
        await turns()
        second = batcher.submit_nowait(2)
        Flushing(batcher, tasks)
        await turns()
        assert batcher._engine.room.fifo is not None
        gate.opened.set()
        assert await outcomes(first, second) == [10, 20]


async def test_a_flush_ends_when_the_callers_of_its_items_go_in_any_order() -> None:
    """Only one of them is watched at a time: the last that is there."""
    gate = Gate()
    async with Batcher(gate) as batcher, anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(0)
        await turns()
        pendings = [batcher.submit_nowait(item) for item in range(1, 5)]
        early = Flushing(batcher, tasks)
        await turns()
        late = [batcher.submit_nowait(9)]
        both = Flushing(batcher, tasks), Flushing(batcher, tasks)
        for index in (3, 0, 2):
            await turns()
            pendings[index].cancel()
        await turns()
        assert not early.ended
        pendings[1].cancel()
        await turns()
        assert early.ended
        assert [flush.ended for flush in both] == [False, False]
        late[0].cancel()
        await turns()
        assert [flush.ended for flush in both] == [True, True]
        gate.opened.set()
        assert await first == 0
    assert gate.batches == [[0]]


@pytest.mark.parametrize("looked", [False, True])
async def test_a_flush_ends_when_the_caller_of_many_goes(looked: bool) -> None:
    """It is one caller for many items, and tells of its going by itself; also once somebody looked at each."""
    gate = Gate()
    async with Batcher(gate) as batcher, anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(1)
        await turns()
        gone = batcher.submit_nowait(2)
        scope = anyio.CancelScope()
        tasks.start_soon(many, batcher, scope)
        await turns()
        gone.cancel()
        if looked:
            assert counted(batcher).buffered == 2
        flush = Flushing(batcher, tasks)
        await turns()
        assert not flush.ended
        scope.cancel()
        await turns()
        assert flush.ended
        gate.opened.set()
        assert await first == 10
    assert gate.batches == [[1]]


async def many(batcher: Batcher[Any, Any], scope: anyio.CancelScope) -> None:
    with scope:
        await batcher.submit_many([3, 4])


async def test_a_flush_goes_on_waiting_when_a_priority_comes() -> None:
    """Then what stood in the flat lists gets entries, and the flush has counted it."""
    gate = Gate()
    async with Batcher(gate, max_batch_size=1) as batcher, anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(1)
        await turns()
        second = batcher.submit_nowait(2)
        flush = Flushing(batcher, tasks)
        await turns()
        third = batcher.submit_nowait(3, priority=1)
        await turns()
        assert not flush.ended
        gate.opened.set()
        assert await outcomes(first, second, third) == [10, 20, 30]
        await turns()
        assert flush.ended


async def test_a_flush_waits_for_its_items_and_not_for_who_rides_along() -> None:
    """What resolves early counts as resolved."""
    begin, end = anyio.Event(), anyio.Event()

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        await begin.wait()
        if len(items) == 2:
            batch.resolve(0, 10)
            await end.wait()
        return [item * 10 for item in items]

    async with Batcher(handler) as batcher, anyio.create_task_group() as tasks:
        batcher.submit_nowait(0)
        await turns()
        first = batcher.submit_nowait(1)
        flush = Flushing(batcher, tasks)
        await turns()
        second = batcher.submit_nowait(2)
        begin.set()
        await turns()
        assert (flush.ended, first.done(), second.done()) == (True, True, False)
        end.set()
        assert await outcomes(first, second) == [10, 20]


async def test_a_flush_ends_when_the_batcher_closes_at_once() -> None:
    """Its items have ended too."""
    gate = Gate()
    batcher = Batcher(gate, max_batch_size=1)
    async with anyio.create_task_group() as tasks:
        pendings = [batcher.submit_nowait(item) for item in range(3)]
        await turns()
        flush = Flushing(batcher, tasks)
        await turns()
        await batcher.aclose(0)
        await turns()
        assert flush.ended
        for pending in pendings:
            assert type(await outcome(pending)) is BatcherClosed
