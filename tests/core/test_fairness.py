"""The bound of overtaking in lanes: one in ten goes by age, of batches and of a partition's batches."""

from __future__ import annotations

from typing import Any

import pytest
from support import Caller

from microbatch._core.entry import Entry
from microbatch._core.lanes import Lanes

pytestmark = [pytest.mark.timeout(180)]


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
        lanes.landed(run.lane, 0.0, run)
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
        lanes.landed(run.lane, 0.0, run)
    assert [batches.index([partition]) + 1 for partition in range(4)] == [10, 20, 30, 40]
