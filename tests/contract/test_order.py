"""Who goes first and with whom: priority, weight, partitions, coalescing."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import pytest
from support import Gate, Recorder, counted, outcome, outcomes, turns

from microbatch import Batcher, BatcherFull, current_batch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


def flat(handler: Recorder) -> list[Any]:
    return [item for batch in handler.batches for item in batch]


async def behind_a_gate(batcher: Any, handler: Gate) -> None:
    """Occupy the only slot, so that what follows is buffered until the gate opens."""
    batcher.submit_nowait(0)
    await turns()
    assert handler.batches == [[0]]


# --- priority ---------------------------------------------------------------------------------------------------


async def test_higher_priority_goes_first_and_equal_ones_in_order() -> None:
    """Urgent work overtakes what waits, never its own kind."""
    handler = Gate()
    async with Batcher(handler, max_batch_size=2) as batcher:
        await behind_a_gate(batcher, handler)
        for item, priority in [(1, 0), (2, 5), (3, 0), (4, 5), (5, -1), (6, 9)]:
            batcher.submit_nowait(item, priority=priority)
        handler.opened.set()
    assert flat(handler) == [0, 6, 2, 4, 1, 3, 5]
    assert handler.sizes == [1, 2, 2, 2]


async def test_submit_and_submit_many_take_a_priority() -> None:
    """All ways in are alike."""
    handler = Gate()
    async with Batcher(handler) as batcher, anyio.create_task_group() as tasks:
        await behind_a_gate(batcher, handler)
        batcher.submit_nowait(1)
        tasks.start_soon(lambda: batcher.submit(2, priority=1))
        await turns()
        tasks.start_soon(lambda: batcher.submit_many([3, 4], priority=2))
        await turns()
        tasks.start_soon(lambda: batcher.submit_many_report([5], priority=3))
        await turns()
        handler.opened.set()
    assert flat(handler) == [0, 5, 3, 4, 2, 1]


async def test_waiters_for_room_come_in_by_priority() -> None:
    """The queue for room obeys the same order as the buffer."""
    handler = Gate()
    async with (
        Batcher(handler, max_pending=2, max_batch_size=1) as batcher,
        anyio.create_task_group() as tasks,
    ):
        await behind_a_gate(batcher, handler)
        batcher.submit_nowait(1)
        for item, priority in [(2, 0), (3, 5), (4, 0), (5, 5)]:
            tasks.start_soon(
                lambda item=item, priority=priority: batcher.submit(item, priority=priority)
            )
            await turns()
        assert counted(batcher).waiting == 4
        handler.opened.set()
    order = flat(handler)
    assert [item for item in order if item > 1] == [3, 5, 2, 4]


async def test_a_steady_stream_of_urgent_items_starves_nobody() -> None:
    """The bound is documented and holds: one batch in ten goes by age, and an ordinary item is in it."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_batch_size=1) as batcher:
        for item in (-1, -2, -3, *range(5)):
            batcher.submit_nowait(item, priority=100 * (item >= 0))
        for number in range(50):
            batcher.submit_nowait(number, priority=100)  # so that there is always an urgent one
            await anyio.sleep(1)
    served = [handler.batches.index([item]) for item in (-1, -2, -3)]
    assert served[0] < 10
    assert [later - earlier for earlier, later in itertools.pairwise(served)] == [10, 10]


async def test_a_late_urgent_item_does_not_push_a_batch_over_its_size() -> None:
    """Overtaking changes the order, not the limits."""
    handler = Gate()
    async with Batcher(handler, max_batch_size=3) as batcher:
        await behind_a_gate(batcher, handler)
        for item in range(1, 9):
            batcher.submit_nowait(item, priority=item % 3)
        handler.opened.set()
    assert handler.sizes == [1, 3, 3, 2]
    assert flat(handler) == [0, 2, 5, 8, 1, 4, 7, 3, 6]


# --- weight -----------------------------------------------------------------------------------------------------


async def test_no_batch_is_over_its_weight_and_order_is_kept() -> None:
    """The first item that no longer fits ends the batch: a lighter one behind it does not overtake."""
    handler = Gate()
    async with Batcher(handler, weigh=lambda item: item, max_batch_weight=10) as batcher:
        await behind_a_gate(batcher, handler)
        for item in (4, 5, 6, 1, 10, 1, 9, 2):
            batcher.submit_nowait(item)
        handler.opened.set()
    assert handler.batches == [[0], [4, 5], [6, 1], [10], [1, 9], [2]]


async def test_weight_sends_a_batch_at_once() -> None:
    """As size does: reached is reached."""
    handler = Recorder()
    async with Batcher(handler, weigh=float, max_batch_weight=10, max_wait=1000) as batcher:
        for item in (4, 6):
            batcher.submit_nowait(item)
        await turns()
        assert handler.batches == [[4, 6]]
        for item in (4, 5, 7):
            batcher.submit_nowait(item)
        await turns()
        assert handler.batches == [[4, 6], [4, 5]]
    assert handler.reasons == ["weight", "weight", "close"]


async def test_fractions_of_weight_add_up() -> None:
    """Ten tenths are one, whatever binary fractions say, or nearly so; none is over."""
    handler = Recorder()
    async with Batcher(
        handler, weigh=lambda item: 0.25, max_batch_weight=1.0, max_pending_weight=100.0
    ) as batcher:
        await batcher.submit_many(range(10))
    assert handler.sizes == [4, 4, 2]


async def test_max_pending_weight_bounds_what_is_held() -> None:
    """Memory is bytes, not items: waiting callers hold it outside."""
    handler = Gate()
    async with Batcher(
        handler, weigh=lambda item: item, max_batch_weight=10, max_pending_weight=12, name="heavy"
    ) as batcher:
        first, second = batcher.submit_nowait(6), batcher.submit_nowait(6)
        with pytest.raises(
            BatcherFull, match="batcher 'heavy' is full: max_pending_weight=12 is reached"
        ):
            batcher.submit_nowait(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batcher.submit, 7)
            await turns()
            assert counted(batcher).waiting == 1
            second.cancel()
            await turns()
            assert counted(batcher).waiting == 1
            handler.opened.set()
        assert await first == 60
    assert flat(handler) == [6, 7]


async def test_a_heavy_waiter_is_not_overtaken_by_light_ones() -> None:
    """Strict order in the queue for room, too: else a stream of small items would keep a large one out for ever."""
    handler = Gate()
    async with Batcher(handler, weigh=lambda item: item, max_pending_weight=10) as batcher:
        held = batcher.submit_nowait(6)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batcher.submit, 9)
            await turns()
            tasks.start_soon(batcher.submit, 1)
            await turns()
            assert counted(batcher).waiting == 2
            with pytest.raises(BatcherFull):
                batcher.submit_nowait(2)
            handler.opened.set()
        assert await held == 60
    assert flat(handler) == [6, 9, 1]


async def test_an_item_heavier_than_all_room_is_refused_at_once() -> None:
    """Waiting for room that never comes would be a hang."""
    async with Batcher(Recorder(), weigh=lambda item: item, max_pending_weight=12) as batcher:
        error = await outcome(batcher.submit(13))
        assert isinstance(error, ValueError)
        assert (
            str(error) == "an item of weight 13 is over max_pending_weight=12 of batcher 'Recorder'"
        )
        assert await batcher.submit(12) == 120


# --- partitions -------------------------------------------------------------------------------------------------


async def test_batches_never_mix_partitions() -> None:
    """One tenant's rows never travel with another's; current_batch tells whose they are."""
    seen: list[tuple[Any, list[str]]] = []

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        seen.append((batch.partition, list(items)))
        return items

    async with Batcher(handler, partition=lambda item: item[0]) as batcher:
        items = ["a1", "b1", "a2", "c1", "b2", "a3"]
        assert await batcher.submit_many(items) == items
    assert sorted(seen) == [("a", ["a1", "a2", "a3"]), ("b", ["b1", "b2"]), ("c", ["c1"])]


async def test_each_partition_fills_by_itself() -> None:
    """The size limit counts within a partition, and so does the window."""
    handler = Recorder()
    async with Batcher(
        handler, partition=lambda item: item % 2, max_batch_size=2, max_wait=1.0, max_concurrency=10
    ) as batcher:
        start = anyio.current_time()
        for item in (0, 1):
            batcher.submit_nowait(item)
        await anyio.sleep(0.5)
        batcher.submit_nowait(2)
        await turns()
        assert handler.batches == [[0, 2]]
        batcher.submit_nowait(4)
        await anyio.sleep(3)
    assert handler.batches == [[0, 2], [1], [4]]
    assert [moment - start for moment in handler.started] == pytest.approx([0.5, 1.0, 1.5])


async def test_partition_concurrency_of_one_keeps_a_partition_in_order() -> None:
    """One at a time for each customer, all customers at once."""
    running: dict[int, int] = {}
    peaks: dict[int, int] = {}
    order: dict[int, list[int]] = {}
    total = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal total
        key = items[0] % 3
        running[key] = running.get(key, 0) + 1
        total = max(total, sum(running.values()))
        peaks[key] = max(peaks.get(key, 0), running[key])
        await anyio.sleep((items[0] % 5) / 10 + 0.1)
        order.setdefault(key, []).extend(items)
        running[key] -= 1
        return items

    async with Batcher(
        handler,
        partition=lambda item: item % 3,
        partition_concurrency=1,
        max_concurrency=10,
        max_batch_size=2,
    ) as batcher:
        await batcher.submit_many(range(60))
    assert peaks == {0: 1, 1: 1, 2: 1}
    assert order == {key: list(range(key, 60, 3)) for key in range(3)}
    assert total == 3


async def test_partition_concurrency_of_two_allows_two() -> None:
    """Bounded, not serial."""
    handler = Recorder(seconds=1)
    async with Batcher(
        handler,
        partition=lambda item: 0,
        partition_concurrency=2,
        max_concurrency=10,
        max_batch_size=1,
    ) as batcher:
        await batcher.submit_many(range(10))
    assert handler.peak == 2


async def test_a_busy_partition_holds_no_other_up() -> None:
    """Its items wait; the slots are the others' meanwhile."""
    handler = Gate()
    done: list[int] = []

    async def two_ways(items: list[int]) -> list[int]:
        if items[0] % 2 == 0:
            return await handler(items)
        done.extend(items)
        return items

    async with Batcher(
        two_ways,
        partition=lambda item: item % 2,
        partition_concurrency=1,
        max_concurrency=2,
        max_batch_size=1,
    ) as batcher:
        for item in (0, 2, 4, 1, 3, 5):
            batcher.submit_nowait(item)
        await turns(40)
        assert done == [1, 3, 5]
        handler.opened.set()


async def test_the_partition_with_the_highest_priority_goes_first() -> None:
    """Among those that are ready; inside a partition the order is strict."""
    handler = Gate()
    async with Batcher(handler, partition=lambda item: item // 10) as batcher:
        await behind_a_gate(batcher, handler)
        for item, priority in [(11, 0), (21, 1), (12, 0), (31, 5), (22, 0), (13, 3)]:
            batcher.submit_nowait(item, priority=priority)
        handler.opened.set()
    assert handler.batches == [[0], [31], [13, 11, 12], [21, 22]]


async def test_partitions_take_turns() -> None:
    """A partition that is never empty must not keep the others waiting for ever."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, partition=lambda item: item % 2, max_batch_size=5) as batcher:
        for item in range(0, 200, 2):
            batcher.submit_nowait(item)
        await turns()
        rare = batcher.submit_nowait(1)
        start = anyio.current_time()
        await rare
        assert anyio.current_time() - start <= 21


async def test_odd_hashable_keys_are_partitions() -> None:
    """None, tuples and enums are what people return; None is a key like any other."""
    handler = Recorder()
    async with Batcher(handler, partition=lambda item: None if item < 3 else (item,)) as batcher:
        await batcher.submit_many(range(5))
    assert sorted(handler.batches) == [[0, 1, 2], [3], [4]]


# --- coalescing -------------------------------------------------------------------------------------------------


async def test_a_hundred_submits_of_one_key_are_one_item() -> None:
    """They share one slot and one result, and take one place of room."""
    handler = Recorder()
    async with Batcher(handler, coalesce=lambda item: item, max_pending=2) as batcher:
        pendings = [batcher.submit_nowait(7) for _ in range(100)]
        assert counted(batcher).pending == 1
        assert await outcomes(*pendings) == [70] * 100
        stats = counted(batcher)
        assert (stats.items, stats.batches) == (1, 1)
    assert handler.batches == [[7]]


async def test_a_key_joins_buffered_items_only() -> None:
    """A load that began before a write must not answer one after it."""
    handler = Gate()
    async with Batcher(handler, coalesce=lambda item: item) as batcher:
        first = batcher.submit_nowait(7)
        await turns()
        second, third = batcher.submit_nowait(7), batcher.submit_nowait(7)
        assert counted(batcher).pending == 2
        handler.opened.set()
        assert await outcomes(first, second, third) == [70, 70, 70]
    assert handler.batches == [[7], [7]]


async def test_a_key_counts_within_its_partition() -> None:
    """Equal keys of two tenants are two items."""
    handler = Recorder()
    async with Batcher(
        handler, partition=lambda item: item[0], coalesce=lambda item: item[1]
    ) as batcher:
        await outcomes(*(batcher.submit((tenant, 1)) for tenant in "aabb"))
    assert sorted(handler.batches) == [[("a", 1)], [("b", 1)]]


async def test_a_sharer_takes_no_room() -> None:
    """Full for others, it may still join what is there."""
    handler = Gate()
    async with Batcher(
        handler, coalesce=lambda item: item, max_pending=2, on_full="reject"
    ) as batcher:
        await behind_a_gate(batcher, handler)
        first = batcher.submit_nowait(7)
        second = batcher.submit_nowait(7)
        with pytest.raises(BatcherFull):
            batcher.submit_nowait(8)
        handler.opened.set()
        assert await outcomes(first, second) == [70, 70]


async def test_the_highest_sharers_priority_counts() -> None:
    """Whoever joins may be in more of a hurry."""
    handler = Gate()
    async with Batcher(handler, coalesce=lambda item: item, max_batch_size=1) as batcher:
        await behind_a_gate(batcher, handler)
        for item, priority in [(1, 2), (2, 0), (3, 1), (2, 5), (1, -5)]:
            batcher.submit_nowait(item, priority=priority)
        handler.opened.set()
    assert flat(handler) == [0, 2, 1, 3]


async def test_submit_many_coalesces_its_own_items() -> None:
    """Each place has its result, each distinct key one slot."""
    handler = Recorder()
    async with Batcher(handler, coalesce=lambda item: item) as batcher:
        assert await batcher.submit_many([1, 2, 1, 1, 3]) == [10, 20, 10, 10, 30]
    assert handler.batches == [[1, 2, 3]]


async def test_a_withdrawn_key_can_be_submitted_afresh() -> None:
    """It must not be joined to an item that is gone."""
    handler = Recorder()
    async with Batcher(handler, coalesce=lambda item: item, max_wait=1.0) as batcher:
        batcher.submit_nowait(7).cancel()
        assert await batcher.submit(7) == 70
    assert handler.batches == [[7]]
