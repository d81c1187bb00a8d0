"""The way in: room, refusals, and what happens when callers leave in the turn in which others come."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import anyio
import pytest
from support import Gate, counted, outcome, turns

from microbatch import Backoff, Batcher, BatcherClosed, BatcherFull, Retry

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


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


@pytest.mark.parametrize("settings", [{}, {"max_wait": 9.0}, {"partition": lambda _: 0}])
async def test_a_report_after_closing_at_once_counts_handler_calls(settings: Any) -> None:
    """Whoever decides from it what to send again elsewhere must know what a handler may have done."""
    handler = Gate()
    batcher: Batcher[Any, Any] = Batcher(handler, max_batch_size=2, max_pending=5, **settings)
    reports: list[Any] = []

    async def call() -> None:
        reports.append(await batcher.submit_many_report(range(7)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await turns()
        await batcher.aclose(0)
    assert [one.attempts for one in reports[0]] == [1, 1, 0, 0, 0, 0, 0]
    assert [type(one.error) for one in reports[0]] == [BatcherClosed] * 7


async def test_a_report_after_closing_in_back_off_counts_the_calls_that_were() -> None:
    """Not the one that was to come."""

    async def handler(items: list[int]) -> list[Any]:
        return [ConnectionError(item) if item else item for item in items]

    retry = Retry(on=ConnectionError, attempts=9, backoff=Backoff(initial=4.0, factor=1, jitter=0))
    batcher: Batcher[Any, Any] = Batcher(handler, retry=retry)
    reports: list[Any] = []

    async def call() -> None:
        reports.append(await batcher.submit_many_report(range(3)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.sleep(9)
        assert counted(batcher).in_backoff == 2
        await batcher.aclose(0)
    assert [one.attempts for one in reports[0]] == [1, 3, 3]


async def test_a_resolved_pending_keeps_no_item_alive() -> None:
    """Nothing is kept of an item once it is resolved, however it came in."""

    class Item:
        pass

    async def handler(items: list[Item]) -> list[str]:
        return ["done"] * len(items)

    batcher = Batcher(handler, partition=type, coalesce=id)
    kept, items = [], [Item(), Item()]
    gone = [weakref.ref(item) for item in items]
    async with batcher:
        for priority, item in enumerate(items):
            kept.append(batcher.submit_nowait(item, priority=priority))
        del item, items
        assert [await pending for pending in kept] == ["done", "done"]
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
