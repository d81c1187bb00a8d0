"""taskiq: batchers open and drain with the worker."""

from __future__ import annotations

import asyncio

import pytest
from messages_support import until
from taskiq import AckableMessage, AsyncBroker, InMemoryBroker, SimpleRetryMiddleware
from taskiq.message import TaskiqMessage
from taskiq.receiver import Receiver

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
        return [(await task.wait_result(timeout=60)).return_value for task in sent]

    assert asyncio.run(worker()) == [0, 10, 20]
    broker.executor.shutdown()
    assert asyncio.run(worker()) == [0, 10, 20]
    assert batches == [[0, 1, 2], [0, 1, 2]]


class Wire(AsyncBroker):
    """A broker that notes what it is told: which tasks were acknowledged, which sent anew, that it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[object] = []
        self.is_worker_process = True

    async def kick(self, message: object) -> None:
        self.said.append("sent")

    def listen(self):
        raise NotImplementedError

    async def shutdown(self) -> None:
        self.said.append("closed")
        await super().shutdown()

    def deliver(self, item: int) -> asyncio.Task[None]:
        """Let a receiver have a task, as if it came over the wire."""
        message = TaskiqMessage(
            task_id="1", task_name="save", labels={}, labels_types={}, args=[item], kwargs={}
        )
        delivery = AckableMessage(
            data=self.formatter.dumps(message).message, ack=lambda: self.said.append(item)
        )
        return asyncio.create_task(Receiver(self, max_async_tasks=10).callback(delivery))


def worker_of(*, hangs: bool) -> tuple[Wire, Batcher[int, int]]:
    """A worker's broker and its batcher, whose items wait for company or for ever."""

    async def handle(items: list[int]) -> list[int]:
        if hangs:
            await asyncio.Event().wait()
        return items

    batcher = Batcher(handle, max_wait=0 if hangs else 3600, max_concurrency=1)
    broker = Wire()
    broker.add_middlewares(SimpleRetryMiddleware(default_retry_label=True))
    attach(broker, batcher)

    @broker.task(task_name="save")
    async def save(row: int) -> int:
        return await batcher.submit(row)

    return broker, batcher


def test_batchers_drain_before_the_broker_closes_its_connection():
    """What ends after that could not be acknowledged any more."""

    async def main() -> None:
        broker, batcher = worker_of(hangs=False)
        await broker.startup()
        task = broker.deliver(7)
        await until(lambda: batcher.stats().buffered == 1)
        await broker.shutdown()
        await task
        assert broker.said == [7, "closed"]

    asyncio.run(main())


def test_what_a_closing_batcher_refuses_is_neither_acknowledged_nor_sent_anew():
    """Acknowledged it would be lost; sent anew as well it would come twice."""

    broker, batcher = worker_of(hangs=True)

    async def worker() -> None:
        await broker.startup()
        task = broker.deliver(7)
        await until(lambda: batcher.stats().in_flight == 1)
        closing = asyncio.create_task(broker.shutdown())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        closing.cancel()  # as --shutdown-timeout does
        with pytest.raises(asyncio.CancelledError):
            await closing
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(worker())
    asyncio.run(worker())  # a second start adds nothing
    assert broker.said == ["closed", "closed"]
    assert len(broker.middlewares) == 2


def test_an_error_of_the_handler_is_acknowledged_and_left_to_the_other_middlewares():
    """Only what was never handled is held back."""

    async def main() -> None:
        broker, _ = worker_of(hangs=True)

        @broker.task(task_name="save")
        async def save(row: int) -> int:
            raise ValueError(row)

        await broker.startup()
        await broker.deliver(7)
        assert broker.said == ["sent", 7]
        await broker.shutdown()

    asyncio.run(main())


def test_a_process_that_only_sends_opens_and_closes_nothing():
    """Its batchers may serve something else there."""

    async def main() -> None:
        broker, batcher = worker_of(hangs=False)
        broker.is_worker_process = False
        await broker.startup()
        await broker.shutdown()
        pending = batcher.submit_nowait(1)
        await batcher.aclose()
        assert await pending == 1

    asyncio.run(main())


def test_wrong_arguments_are_refused():
    """At the line that has them wrong."""
    with pytest.raises(TypeError, match="attach takes a broker of taskiq first, got 3"):
        attach(3, Batcher(list))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="attach needs at least one batcher, got none"):
        attach(InMemoryBroker())
    with pytest.raises(TypeError, match="attach takes batchers, got 5"):
        attach(InMemoryBroker(), 5)  # type: ignore[arg-type]
