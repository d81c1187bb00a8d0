"""The bound of overtaking: one in ten goes by age, of callers let in and of items."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest
from support import Recorder, counted, turns

from microbatch import Batcher

pytestmark = [pytest.mark.timeout(180)]


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
