"""The bound of overtaking: one in ten goes by age, of callers let in, of batches, and of a partition's batches."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest
from support import Caller, Recorder, counted, turns

from microbatch import Batcher
from microbatch._core.entry import Entry
from microbatch._core.lanes import Lanes

pytestmark = [pytest.mark.timeout(20)]

SIZES = [1, 2, 3, 7, 8, 10, 25]


async def let_in_beside_urgent_ones(heavy: int, older: int, **settings: Any) -> list[list[Any]]:
    """Return the batches after the first, where ordinary callers met a steady stream of urgent ones.

    The older ones are -1, -2 and so on; the last one, 0, weighs ``heavy``.
    """
    handler = Recorder(seconds=1)
    size = settings["max_batch_size"]
    async with Batcher(handler, **settings) as batcher, anyio.create_task_group() as tasks:
        for item in range(1000, 1000 + size):
            batcher.submit_nowait(item)
        await turns()
        for item in [*range(-older, 0), 0]:
            tasks.start_soon(batcher.submit, item)
            await turns(2)

        async def urgent(item: int) -> None:
            await batcher.submit(item, priority=1)

        assert counted(batcher).waiting == older + 1
        item = 0
        while 0 not in handler.seen and len(handler.batches) < 200:
            for _ in range(2 * size + 10):
                item += 1
                tasks.start_soon(urgent, item)
            await anyio.sleep(1)
    return handler.batches[1:]


@pytest.mark.anyio
@pytest.mark.parametrize("older", [0, 1, 4])
@pytest.mark.parametrize("size", SIZES)
async def test_who_waits_for_room_is_overtaken_by_nine_at_most(size: int, older: int) -> None:
    """Whatever the size of a batch: only who was let in counts, not how often somebody asked."""
    batches = await let_in_beside_urgent_ones(
        1, older, max_batch_size=size, max_pending=size, max_concurrency=1
    )
    order = [item for batch in batches for item in batch]
    place = 10 * (older + 1) - 1  # among those let in, from 0
    assert 0 in batches[place // size]
    assert sum(item < 0 for item in order[: place + size]) == older


@pytest.mark.anyio
@pytest.mark.parametrize("size", SIZES)
async def test_a_heavy_item_is_overtaken_by_nine_at_most(size: int) -> None:
    """When its turn comes nobody else is let in until there is room for it, or it would wait for ever."""
    batches = await let_in_beside_urgent_ones(
        size,
        0,
        max_batch_size=size,
        weigh=lambda item: size if item == 0 else 1,
        max_pending_weight=size,
    )
    assert batches[math.ceil(9 / size)] == [0]


def lanes_with(partitions: int, size: int, older: int, **settings: Any) -> Lanes:
    """Return lanes where the youngest partition's last item, 0, has so many older ones before it."""
    lanes = Lanes(lambda: size, 0.0, **settings)
    for partition in range(1, partitions + 1):
        for item in range(-older, 1) if partition == partitions else [1]:
            lanes.add(Entry(item, Caller(), partition=partition, weight=1), 0.0)
    return lanes


@pytest.mark.parametrize("older", [0, 1, 7, 40])
@pytest.mark.parametrize("partitions", [1, 2, 5])
@pytest.mark.parametrize(("size", "weight"), [(1, None), (3, None), (8, None), (8, 2)])
def test_an_item_leaves_within_the_stated_number_of_batches(
    size: int, weight: float | None, partitions: int, older: int
) -> None:
    """The bound that the docstring of ``submit`` states, met to the batch; urgent items come all the time."""
    lanes = lanes_with(partitions, size, older, max_weight=weight)
    total = of_its_own = 0
    items: list[Any] = []
    while 0 not in items:
        for partition in range(1, partitions + 1):
            for _ in range(size):
                entry = Entry(1, Caller(), partition=partition, priority=5, weight=1)
                lanes.add(entry, 0.0)
        run = lanes.cut(0.0)
        assert run is not None
        items = run.items
        total += 1
        of_its_own += run.lane.partition == partitions
        lanes.landed(run.lane, 0.0)
    fits = size if weight is None else int(weight)
    assert of_its_own == 10 * (older // fits + 1)
    assert total <= 10 * partitions * of_its_own


def test_of_many_partitions_one_batch_in_ten_is_of_who_has_been_ready_the_longest() -> None:
    """Four quiet tenants beside an urgent one: the youngest of them has its batch among the next 10 for each."""
    lanes = Lanes(lambda: 4, 0.0)
    for partition in range(4):
        lanes.add(Entry(partition, Caller(), partition=partition), 0.0)
    batches: list[list[Any]] = []
    while [3] not in batches:
        lanes.add(Entry(9, Caller(), partition="urgent", priority=5), 0.0)
        run = lanes.cut(0.0)
        assert run is not None
        batches.append(run.items)
        lanes.landed(run.lane, 0.0)
    assert [batches.index([partition]) + 1 for partition in range(4)] == [10, 20, 30, 40]
