"""The rare ways through a batcher: threads that give up, bulks in a full room, ends that come from elsewhere."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, counted, in_thread, outcome, outcomes, run, turns

from microbatch import Batcher, BatcherClosed, BatcherFull, HandlerTimeout, current_batch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


def test_a_batchers_name_is_its_handlers_unless_told_otherwise() -> None:
    """It stands in every error and log."""

    async def load(items: list[int]) -> list[int]:
        return items

    assert Batcher(load).name.endswith("<locals>.load")
    batcher = Batcher(load, name="orders")
    assert batcher.name == "orders"
    assert repr(batcher) == "<Batcher 'orders' open>"


async def test_two_forced_closings_at_once_both_wait_for_the_handler() -> None:
    """Whoever closes may rely on it that nothing of the batcher runs any more."""
    ended: list[str] = []

    async def handler(items: list[int]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            ended.append("handler")

    batcher = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()

    async def close() -> None:
        await batcher.aclose(0)
        ended.append("close")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close)
        tasks.start_soon(close)
    assert type(await outcome(pending)) is BatcherClosed
    assert ended == ["handler", "close", "close"]


@pytest.mark.real_time
async def test_stats_can_be_read_in_another_thread() -> None:
    """Where metrics are collected."""
    gate = Gate()
    async with Batcher(gate, max_batch_size=2) as batcher:
        pending = [batcher.submit_nowait(item) for item in range(3)]
        await turns()
        stats = await anyio.to_thread.run_sync(batcher.stats)
        assert (stats.pending, stats.in_flight, stats.buffered) == (3, 2, 1)
        assert stats.oldest_in_flight is not None
        gate.opened.set()
        assert [await one for one in pending] == [0, 10, 20]


# --- submit_from_thread -----------------------------------------------------------------------------------------


@pytest.mark.real_time
async def test_a_thread_that_gives_up_before_the_loop_had_a_turn_leaves_nothing() -> None:
    """A loop that is busy must not take in later what nobody waits for any more."""
    handler = Recorder()
    async with Batcher(handler) as batcher:
        thread, results = in_thread(batcher.submit_from_thread, 1, 0.01)
        thread.join()  # the loop stands still meanwhile
        assert type(results[0]) is TimeoutError
        assert str(results[0]) == f"batcher {batcher.name!r} gave no result within timeout=0.01 s"
        await turns()
        assert counted(batcher).pending == 0
    assert handler.batches == []


@pytest.mark.real_time
async def test_a_thread_that_gives_up_withdraws_its_item_there_and_then() -> None:
    """With an entry for each item its room is free at once."""
    gate = Gate()
    async with Batcher(gate, max_batch_size=1, partition=lambda _: "one") as batcher:
        first = batcher.submit_nowait(0)
        await turns()
        thread, results = in_thread(batcher.submit_from_thread, 1, 0.05)
        await anyio.to_thread.run_sync(thread.join)
        assert type(results[0]) is TimeoutError
        await anyio.sleep(0.01)
        assert batcher.stats().buffered == 0
        gate.opened.set()
        assert await first == 0
    assert gate.batches == [[0]]


# --- room, slots and groups -------------------------------------------------------------------------------------


async def test_a_bulk_that_fills_the_room_does_not_wait_for_company() -> None:
    """None can come."""
    handler = Recorder()
    start = anyio.current_time()
    async with Batcher(handler, max_wait=100.0, max_pending=5) as batcher:
        assert await batcher.submit_many(range(5)) == [0, 10, 20, 30, 40]
    assert anyio.current_time() - start < 1
    assert handler.sizes == [5]


async def test_callers_who_wait_for_room_with_the_same_key_share_a_slot_once_inside() -> None:
    """Neither was buffered when the other came."""
    gate = Gate()
    async with Batcher(
        gate, max_batch_size=1, max_pending=2, coalesce=lambda item: item
    ) as batcher:
        results: list[Any] = []

        async def submit(item: int) -> None:
            results.append(await batcher.submit(item))

        async with anyio.create_task_group() as tasks:
            for item in (1, 2, 3, 3):
                tasks.start_soon(submit, item)
                await turns()
            assert counted(batcher).waiting == 2
            gate.opened.set()
    assert sorted(results) == [10, 20, 30, 30]
    assert gate.batches == [[1], [2], [3]]


async def test_two_bulks_that_wait_for_room_take_turns() -> None:
    """A small one must not wait for the whole of a large one."""
    handler = Recorder(seconds=1)
    ended: list[str] = []
    async with Batcher(handler, max_batch_size=2, max_pending=2) as batcher:

        async def submit(name: str, count: int) -> None:
            await batcher.submit_many([name] * count)
            ended.append(name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(submit, "large", 20)
            await turns()
            tasks.start_soon(submit, "small", 4)
    assert ended == ["small", "large"]


async def test_a_cancelled_bulk_leaves_shared_slots_to_their_other_sharers() -> None:
    """Its own items go, duplicates included; who shares one with it keeps it."""
    gate = Gate()
    async with Batcher(gate, max_batch_size=1, coalesce=lambda item: item) as batcher:
        first = batcher.submit_nowait(0)
        await turns()
        with anyio.move_on_after(1):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(batcher.submit_many, [1, 2, 2, 2])
                await turns()
                other = batcher.submit_nowait(1)
                assert counted(batcher).buffered == 2
        assert counted(batcher).buffered == 1
        gate.opened.set()
        assert await first == 0
        assert await other == 10
    assert gate.batches == [[0], [1]]


async def test_closing_at_once_leaves_those_alone_who_were_cancelled_a_moment_ago() -> None:
    """Their notice is still on the way when their waiter is done."""
    gate = Gate()
    batcher = Batcher(gate, max_batch_size=1)
    flying, gone, there = (batcher.submit_nowait(item) for item in range(3))
    await turns()
    urgent = batcher.submit_nowait(3, priority=1)  # now there is an entry for each
    assert gone.cancel()
    await batcher.aclose(0)
    for pending in (flying, there, urgent):
        assert type(await outcome(pending)) is BatcherClosed
    assert counted(batcher).pending == 0


async def test_in_a_mixed_batch_who_has_gone_is_passed_over() -> None:
    """Single callers and a bulk's items together, one of them cancelled in flight."""
    gate = Gate()
    async with Batcher(gate, max_wait=1.0) as batcher:
        gone, there = batcher.submit_nowait(0), batcher.submit_nowait(1)
        async with anyio.create_task_group() as tasks:
            results: list[Any] = []

            async def submit() -> None:
                results.extend(await batcher.submit_many([2, 3]))

            tasks.start_soon(submit)
            await anyio.sleep(2)
            assert gone.cancel()
            gate.opened.set()
        assert await there == 10
    assert gate.batches == [[0, 1, 2, 3]]
    assert results == [20, 30]


# --- ends that come from elsewhere ------------------------------------------------------------------------------


async def test_a_generator_that_ignores_its_end_gives_nobody_anything() -> None:
    """What it yields after its timeout is nobody's."""

    async def handler(items: list[int]) -> Any:
        yield 0, "in time"
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            yield 1, "late"

    async with Batcher(handler, handler_timeout=1.0) as batcher:
        first, second = batcher.submit_nowait(0), batcher.submit_nowait(1)
        assert await first == "in time"
        assert type(await outcome(second)) is HandlerTimeout


@pytest.mark.real_time
async def test_a_thread_that_resolves_twice_before_the_loop_had_a_turn_is_told_so() -> None:
    """The first outcome stands."""
    started, resolved = threading.Event(), threading.Event()
    told: list[str] = []

    def handler(items: list[int]) -> list[str]:
        info = current_batch()
        assert info is not None
        started.wait()
        info.resolve(0, "first")
        try:
            info.resolve(0, "second")
        except RuntimeError as error:
            told.append(str(error))
        resolved.set()
        return ["third"]

    async with Batcher(handler) as batcher:
        pending = batcher.submit_nowait(1)
        await turns()
        started.set()
        assert resolved.wait(60)  # the loop stands still meanwhile
        assert await pending == "first"
    assert [error.partition(": ")[2] for error in told] == [
        "item 0 of the batch has its outcome already"
    ]


def others() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def test_a_task_that_somebody_cancels_before_it_began_loses_nothing() -> None:
    """Frameworks cancel all tasks when they stop; if the loop goes on after all, so do we."""

    async def main() -> None:
        handler = Recorder()
        async with Batcher(handler) as batcher:
            before = set(others())
            pending = batcher.submit_nowait(1)
            (task,) = set(others()) - before
            task.cancel()
            assert await pending == 10

    run("asyncio", main)


def test_a_call_that_shares_an_item_goes_on_for_a_task_that_somebody_cancelled() -> None:
    """Any call shows that the loop goes on, also one that brings nothing new."""

    async def main() -> None:
        handler = Recorder()
        async with Batcher(handler, coalesce=lambda item: item) as batcher:
            before = set(others())
            pending = batcher.submit_nowait(1)
            (task,) = set(others()) - before
            task.cancel()
            await turns()
            start = anyio.current_time()
            assert await outcomes(batcher.submit(1), pending) == [10, 10]
            assert anyio.current_time() == start
        assert handler.batches == [[1]]

    run("asyncio", main)


async def test_a_bulk_that_leaves_leaves_the_callers_that_share_its_items() -> None:
    """Two bulks that ask for the same, one of which gives up: the other gets its results."""
    gate = Gate()
    batcher = Batcher(gate, coalesce=lambda item: item, max_wait=1.0)
    results: list[Any] = []

    async def stay() -> None:
        results.extend(await batcher.submit_many([1, 2]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stay)
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(batcher.submit_many, [1, 2, 3])
            await turns()
            assert counted(batcher).buffered == 3
            leaving.cancel_scope.cancel()
        assert counted(batcher).buffered == 2
        gate.opened.set()
    assert results == [10, 20]
    assert gate.batches == [[1, 2]]
    await batcher.aclose()


async def test_without_telemetry_every_way_out_is_the_same() -> None:
    """Refused, cancelled, closed while waiting for room, buffered or in a bulk: nobody is told, nothing is lost."""
    batcher = Batcher(Gate(), max_pending=3, partition=lambda item: 0, telemetry=False)
    first = batcher.submit_nowait(1)
    await turns()
    gone = batcher.submit_nowait(2)
    assert gone.cancel()
    assert counted(batcher).pending == 1
    kept: list[Any] = []

    async def keep(awaitable: Any) -> None:
        kept.append(type(await outcome(awaitable)))

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(batcher.submit_many, range(5))
            await turns()
            assert counted(batcher).waiting == 1
            leaving.cancel_scope.cancel()
        assert (counted(batcher).pending, counted(batcher).waiting) == (1, 0)
        tasks.start_soon(keep, batcher.submit_many([1, 2]))
        await turns()
        with pytest.raises(BatcherFull):
            batcher.submit_nowait(3)
        tasks.start_soon(keep, batcher.submit(4))
        await turns()
        assert counted(batcher).waiting == 1
        await batcher.aclose(0)
        assert type(await outcome(first)) is BatcherClosed
    assert sorted(kind.__name__ for kind in kept) == ["BatchFailed", "BatcherClosed"]


@pytest.mark.real_time
async def test_without_telemetry_a_thread_may_submit_too() -> None:
    """It has no caller to be told of."""
    async with Batcher(Recorder(), telemetry=False) as batcher:
        assert await anyio.to_thread.run_sync(batcher.submit_from_thread, 1) == 10
