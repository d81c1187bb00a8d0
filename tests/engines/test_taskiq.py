"""taskiq: batchers open and drain with the worker."""

from __future__ import annotations

import asyncio

import pytest
from messages_support import until
from taskiq import InMemoryBroker

from microbatch import Batcher, BatcherClosed
from microbatch.engines.taskiq import attach


def test_tasks_become_items_and_batchers_drain_with_the_worker():
    """A second worker in another event loop finds them open again."""
    batches: list[list[int]] = []

    async def handle(items: list[int]) -> list[int]:
        batches.append(sorted(items))
        return [item * 10 for item in items]

    batcher = Batcher(handle, max_wait=3600)
    broker = InMemoryBroker()
    attach(broker, batcher)

    @broker.task
    async def save(row: int) -> int:
        return await batcher.submit(row)

    async def worker() -> list[int]:
        await asyncio.create_task(broker.startup())
        sent = [await save.kiq(number) for number in range(3)]
        await until(lambda: batcher.stats().buffered == 3)
        await asyncio.create_task(broker.shutdown())  # in another task than the start
        with pytest.raises(BatcherClosed):
            await batcher.submit(4)
        return [(await task.wait_result(timeout=10)).return_value for task in sent]

    assert asyncio.run(worker()) == [0, 10, 20]
    broker.executor.shutdown()
    assert asyncio.run(worker()) == [0, 10, 20]
    assert batches == [[0, 1, 2], [0, 1, 2]]


def test_wrong_arguments_are_refused():
    """At the line that has them wrong."""
    with pytest.raises(TypeError, match="attach takes a broker of taskiq first, got 3"):
        attach(3, Batcher(list))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="attach needs at least one batcher, got none"):
        attach(InMemoryBroker())
    with pytest.raises(TypeError, match="attach takes batchers, got 5"):
        attach(InMemoryBroker(), 5)  # type: ignore[arg-type]
