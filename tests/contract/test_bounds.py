"""What is bounded: batches in flight, and room for what is pending."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, counted, outcomes, run, turns

from microbatch import Batcher, BatcherFull

if sys.version_info >= (3, 12):

    def test_an_eager_task_factory_changes_nothing() -> None:
        """Eager tasks run up to their first wait at once: calls made together must still travel together."""
        handler = Recorder()

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            async with Batcher(handler) as batcher, asyncio.TaskGroup() as tasks:
                started = [tasks.create_task(batcher.submit(item)) for item in range(50)]
            assert [task.result() for task in started] == [item * 10 for item in range(50)]

        run("asyncio", main)
        assert handler.sizes == [50]


pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_no_more_batches_are_in_flight_than_max_concurrency(limit: int) -> None:
    """The connection pool behind the handler has only so many; and no slot stays idle under load."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_concurrency=limit, max_batch_size=3) as batcher:
        await outcomes(*map(batcher.submit, range(60)))
    assert handler.peak == limit
    assert handler.sizes == [3] * 20


WAYS_TO_BUFFER: list[Any] = [
    {},
    {"max_wait": 1},
    {"weigh": lambda item: 1, "max_batch_weight": 1e9},
]


async def test_batches_whose_handler_answers_without_waiting_share_a_task() -> None:
    """A task for each would gain nothing: no two of them are ever under way at the same time."""
    seen = set()

    async def handler(items: list[int]) -> list[int]:
        seen.add(anyio.get_current_task().id)
        return items

    async with Batcher(handler, max_batch_size=10, max_concurrency=8) as batcher:
        assert await outcomes(*map(batcher.submit, range(500))) == list(range(500))
    assert len(seen) == 1


@pytest.mark.parametrize("settings", WAYS_TO_BUFFER, ids=["chunks", "window", "lanes"])
async def test_a_batch_that_waits_holds_up_nobody_behind_it(settings: Any) -> None:
    """Some answer at once, as out of a cache, and one among them does not."""
    opened = anyio.Event()

    async def handler(items: list[int]) -> list[int]:
        if 3 in items:
            await opened.wait()
        return items

    async with Batcher(handler, max_batch_size=1, max_concurrency=2, **settings) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(10)]
        await anyio.sleep(2)
        assert [pending.done() for pending in pendings] == [item != 3 for item in range(10)]
        opened.set()
        assert await pendings[3] == 3


async def test_slots_are_given_back_whatever_the_handler_does() -> None:
    """A slot lost to an error would be lost for good."""

    async def handler(items: list[int]) -> Any:
        if items[0] % 3 == 0:
            raise ValueError
        if items[0] % 3 == 1:
            raise BaseException
        return []

    async with Batcher(handler, max_concurrency=2, max_batch_size=1) as batcher:
        results = await outcomes(*map(batcher.submit, range(30)))
        assert all(isinstance(result, Exception) for result in results)
        assert counted(batcher).batches == 30


async def test_callers_wait_for_room_first_come_first_served() -> None:
    """The queue for room is fair, and the count of pending items never passes the limit."""
    handler = Recorder(seconds=1)
    async with (
        Batcher(handler, max_pending=4, max_batch_size=2) as batcher,
        anyio.create_task_group() as tasks,
    ):
        for item in range(12):
            tasks.start_soon(batcher.submit, item)
            await turns(3)
            assert counted(batcher).pending <= 4
        assert counted(batcher).waiting == 8
    assert [item for batch in handler.batches for item in batch] == list(range(12))


async def test_a_latecomer_does_not_take_the_room_of_those_that_wait() -> None:
    """A place that becomes free belongs to the oldest waiter from that moment on."""
    handler = Gate()
    async with Batcher(handler, max_pending=2) as batcher, anyio.create_task_group() as tasks:
        batcher.submit_nowait(1)
        await turns()
        buffered = batcher.submit_nowait(2)
        tasks.start_soon(batcher.submit, 3)
        await turns()
        assert counted(batcher).waiting == 1
        buffered.cancel()
        with pytest.raises(BatcherFull):
            batcher.submit_nowait(4)
        handler.opened.set()
    assert [item for batch in handler.batches for item in batch] == [1, 3]


async def test_unbounded_room_is_available_on_request() -> None:
    """max_pending=None: whoever asks for it has a bound elsewhere."""
    handler = Gate()
    async with Batcher(handler, max_pending=None) as batcher:
        for item in range(20_000):
            batcher.submit_nowait(item)
        await turns()
        assert counted(batcher).pending == 20_000
        handler.opened.set()
    assert counted(batcher).items == 20_000


async def test_room_smaller_than_a_batch_is_no_deadlock() -> None:
    """With room for three and batches of ten, three are all that can ever come together."""
    handler = Recorder()
    async with Batcher(handler, max_pending=3, max_batch_size=10, max_wait=5.0) as batcher:
        assert await outcomes(*map(batcher.submit, range(10))) == [item * 10 for item in range(10)]
    assert max(handler.sizes) == 3


# --- full -------------------------------------------------------------------------------------------------------


async def test_a_full_batcher_rejects_and_recovers() -> None:
    """Rejected items are not counted, not handled and leave nothing behind."""
    handler = Gate()
    async with Batcher(handler, max_pending=3, on_full="reject", name="small") as batcher:
        held = [batcher.submit_nowait(item) for item in range(3)]
        for _ in range(100):
            with pytest.raises(BatcherFull) as caught:
                await batcher.submit(9)
        assert str(caught.value) == "batcher 'small' is full: max_pending=3 is reached"
        assert counted(batcher).pending == 3
        handler.opened.set()
        assert [await pending for pending in held] == [0, 10, 20]
        assert await batcher.submit(9) == 90
    assert handler.seen == {0: 1, 1: 1, 2: 1, 9: 1}
