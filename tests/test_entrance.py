"""The way in: room, refusals, and what happens when callers leave in the turn in which others come."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import Gate, counted, outcome, turns

from microbatch import Batcher, BatcherFull

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]


async def a_full_batcher(handler: Gate, **settings: Any) -> tuple[Batcher[Any, Any], list[Any]]:
    """Return a batcher with one item in flight and two buffered, which has refused a fourth."""
    batcher: Batcher[Any, Any] = Batcher(handler, max_pending=3, max_batch_size=1, **settings)
    pendings = [batcher.submit_nowait(0)]
    await turns()
    pendings += [batcher.submit_nowait(item) for item in (1, 2)]
    with pytest.raises(BatcherFull):
        batcher.submit_nowait(3)
    assert counted(batcher).in_flight == 1
    return batcher, pendings


@pytest.mark.parametrize("way", ["submit", "submit_nowait", "submit_many", "submit_many_report"])
@pytest.mark.parametrize("on_full", ["wait", "reject"])
async def test_an_item_that_comes_as_all_others_leave_is_handled(way: str, on_full: Any) -> None:
    """The buffer turns simple again at that very moment; the item must go into the one that is used."""
    handler = Gate()
    batcher, pendings = await a_full_batcher(handler, on_full=on_full)
    came: list[Any] = []

    async def come() -> None:
        for pending in pendings[1:]:
            pending.cancel()
        entering = getattr(batcher, way)([5] if "many" in way else 5)
        came.append(await outcome(entering))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(come)
        await turns()
        assert (counted(batcher).buffered, counted(batcher).in_flight) == (1, 1)
        handler.opened.set()
    if way == "submit_many_report":
        came = [came[0].values()]
    assert came == ([[50]] if "many" in way else [50])
    assert handler.batches == [[0], [5]]
    await batcher.aclose()
    assert (counted(batcher).pending, counted(batcher).items) == (0, 2)
