"""`forward`: a durable queue empties itself into an engine."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from microbatch import Backoff, ItemError, RateLimited, Retry
from microbatch.durable import DurableBatcher, DurableQueue, ItemFailed
from microbatch.engines.forward import forward
from microbatch.testing import no_backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@contextlib.asynccontextmanager
async def forwarding(
    queue: DurableQueue[Any, Any], publish: Any, **settings: Any
) -> AsyncIterator[None]:
    task = asyncio.create_task(forward(queue, publish, **settings))
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_items_end_when_the_broker_has_confirmed(tmp_path: Path):
    """Several at once, in the queue's order; whoever submits waits for the confirmation."""

    async def main() -> None:
        sent: list[int] = []
        confirmed, all_there = asyncio.Event(), asyncio.Event()

        async def publish(item: int) -> object:
            sent.append(item)
            if len(sent) == 5:
                all_there.set()
            await confirmed.wait()
            return object()  # nothing that could be stored: dropped without a result_type

        async with DurableQueue[int, Any](tmp_path / "q", item_type=int) as queue:
            tickets = await queue.enqueue_many(range(5))
            async with forwarding(queue, publish):
                await all_there.wait()
                assert sent == list(range(5))
                assert (await queue.stats()).done == 0
                confirmed.set()
                assert [await queue.result(ticket, timeout=30) for ticket in tickets] == [None] * 5

    asyncio.run(main())


@pytest.mark.parametrize("trouble", [None, RateLimited()])
def test_a_broker_that_hangs_or_refuses_makes_no_dead_letters_by_itself(
    tmp_path: Path, trouble: Exception | None
):
    """As long as the default says, which is days."""

    async def main() -> None:
        calls = 0

        async def publish(item: int) -> None:
            nonlocal calls
            calls += 1
            if trouble is None and calls <= 3:
                await asyncio.sleep(3600)
            if trouble is not None and calls <= 30:
                raise trouble

        async with DurableQueue[int, Any](tmp_path / "q", item_type=int) as queue:
            ticket = await queue.enqueue(1)
            timeout = 0.05 if trouble is None else None
            async with forwarding(queue, publish, publish_timeout=timeout):
                assert await queue.result(ticket, timeout=30) is None
            assert calls == (4 if trouble is None else 31)

    with no_backoff():
        asyncio.run(main())


def test_it_empties_the_file_that_the_queue_was_opened_with(tmp_path: Path, monkeypatch: Any):
    """A relative path meant one in the folder of that moment."""
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with DurableQueue[int, Any]("q", item_type=int) as queue:
            (elsewhere := tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir(elsewhere)
            ticket = await queue.enqueue(1)
            sent: list[int] = []

            async def publish(item: int) -> None:
                sent.append(item)

            async with forwarding(queue, publish):
                assert await queue.result(ticket, timeout=30) is None
            assert (sent, list(elsewhere.iterdir())) == ([1], [])

    asyncio.run(main())


def test_what_publishing_returns_is_the_result_of_a_queue_that_has_results(tmp_path: Path):
    """The broker's own number of a message, say."""

    async def publish(item: int) -> int:
        return item + 100

    async def main() -> int:
        queue = DurableQueue[int, int](tmp_path / "q", item_type=int, result_type=int)
        async with queue, forwarding(queue, publish):
            return await queue.submit(1)

    assert asyncio.run(main()) == 101


def test_a_broker_that_is_away_makes_no_dead_letters_and_a_message_that_it_refuses_one(
    tmp_path: Path,
):
    """An outbox is for the time in which the other side is not there."""
    tries: list[int] = []

    async def publish(item: int) -> None:
        tries.append(item)
        if item == 2:
            raise ItemError("too large", retryable=False)
        if tries.count(item) < 3:
            raise ConnectionError

    async def main() -> Any:
        retry = Retry(on=Exception, attempts=10, backoff=Backoff(initial=0.01))
        async with DurableQueue[int, Any](tmp_path / "q", item_type=int) as queue:
            ticket, refused = await queue.enqueue_many([1, 2])
            async with forwarding(queue, publish, retry=retry):
                await queue.result(ticket, timeout=30)
                with pytest.raises(ItemFailed):
                    await queue.result(refused, timeout=30)
            return (await queue.dead_letters())[0].item

    assert asyncio.run(main()) == 2
    assert tries.count(1) == 3
    assert tries.count(2) == 1


def test_what_is_cancelled_stays_in_the_queue(tmp_path: Path):
    """It is published by the next one."""

    async def main() -> None:
        begun = asyncio.Event()

        async def hangs(item: int) -> None:
            begun.set()
            await asyncio.sleep(3600)

        async def publish(item: int) -> None: ...

        async with DurableQueue[int, Any](tmp_path / "q", item_type=int) as queue:
            ticket = await queue.enqueue(1)
            async with forwarding(queue, hangs):
                await begun.wait()
            async with forwarding(queue, publish):
                assert await queue.result(ticket, timeout=30) is None

    asyncio.run(main())


def test_wrong_arguments_are_refused(tmp_path: Path):
    """Before anything is opened."""

    async def publish(item: int) -> None: ...

    with pytest.raises(TypeError, match="queue must be a DurableQueue without a handler, got 3"):
        asyncio.run(forward(3, publish))  # type: ignore[arg-type]
    batcher = DurableBatcher(tmp_path / "q", list, item_type=int)
    with pytest.raises(
        TypeError, match="queue must be a DurableQueue without a handler, got <Durable"
    ):
        asyncio.run(forward(batcher, publish))
    queue = DurableQueue[int, Any](tmp_path / "q", item_type=int)
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, got 0"):
        asyncio.run(forward(queue, publish, max_batch_size=0))
