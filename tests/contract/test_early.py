"""Outcomes that a handler gives before it ends: ``current_batch().resolve``."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import counted, outcome, outcomes, turns

from microbatch import Batcher, current_batch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


async def test_a_handler_may_resolve_an_item_early() -> None:
    """Its caller goes on at once; what is returned in its place later is not looked at."""
    hold = anyio.Event()

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        batch.resolve(1, "early")
        await hold.wait()
        return [item * 2 for item in items]

    async with Batcher(handler) as batcher:
        first, second = batcher.submit_nowait("a"), batcher.submit_nowait("b")
        assert await second == "early"
        assert not first.done()
        stats = counted(batcher)
        assert (stats.in_flight, stats.items) == (1, 1)
        hold.set()
        assert await first == "aa"
        assert counted(batcher).items == 2


async def test_an_item_resolved_with_an_exception_fails_early() -> None:
    """Layers hand over what they know, failures included; a later crash of the batch changes nothing for it."""

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        batch.resolve(0, KeyError("early"))
        await anyio.sleep(1)
        raise ValueError("late")

    async with Batcher(handler) as batcher:
        pendings = [batcher.submit_nowait(item) for item in "ab"]
        start = anyio.current_time()
        error = await outcome(pendings[0])
        assert type(error) is KeyError
        assert anyio.current_time() == start
        assert type(await outcome(pendings[1])) is ValueError
        assert counted(batcher).failed == 2


@pytest.mark.parametrize("index", [2, -1, 99])
async def test_resolving_an_index_that_is_not_there_is_refused(index: int) -> None:
    """The handler that miscounts learns it there and then."""
    errors: list[Any] = []

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        try:
            batch.resolve(index, "x")
        except Exception as error:
            errors.append(error)
        return items

    async with Batcher(handler) as batcher:
        assert await outcomes(*(batcher.submit_nowait(item) for item in "ab")) == ["a", "b"]
    assert len(errors) == 1
    assert str(index) in str(errors[0])


async def test_resolving_after_the_batch_is_over_changes_nothing() -> None:
    """A stray task of the handler may still hold the batch."""
    kept: list[Any] = []

    async def handler(items: list[str]) -> list[str]:
        kept.append(current_batch())
        return items

    async with Batcher(handler) as batcher:
        pending = batcher.submit_nowait("a")
        await turns()
        before = counted(batcher)
        await outcome(_resolve(kept[0]))
        assert await pending == "a"
        assert counted(batcher) == before


async def _resolve(batch: Any) -> None:
    batch.resolve(0, "stray")


async def test_an_early_result_frees_room() -> None:
    """Resolved items no longer count as pending: the next caller may come in."""
    hold = anyio.Event()

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        batch.resolve(0, "early")
        await hold.wait()
        return items

    async with Batcher(handler, max_pending=1) as batcher:
        assert await batcher.submit("a") == "early"
        pending = batcher.submit_nowait("b")
        assert counted(batcher).pending == 1
        hold.set()
        assert await pending == "early"


async def test_a_mix_of_early_and_returned_results_fits_many_batches() -> None:
    """Each caller gets its own, whichever way it came."""

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        for index, item in enumerate(items):
            if item % 3 == 0:
                batch.resolve(index, -item)
        await anyio.sleep(1)
        return items

    async with Batcher(handler, max_batch_size=7, max_concurrency=3) as batcher:
        results = await outcomes(*map(batcher.submit, range(100)))
    assert results == [-item if item % 3 == 0 else item for item in range(100)]


async def test_an_index_to_resolve_is_an_int_within_the_batch() -> None:
    """-1 would be somebody else's item."""
    messages: list[str] = []

    async def handler(items: list[int]) -> list[int]:
        info = current_batch()
        assert info is not None
        for index in (True, "0", 1.0, -1, 2):
            with pytest.raises((TypeError, IndexError)) as caught:
                info.resolve(index, "x")  # type: ignore[arg-type]
            messages.append(str(caught.value))
        return items

    async with Batcher(handler) as batcher:
        assert await outcomes(batcher.submit(1), batcher.submit(2)) == [1, 2]
    assert messages == [
        "index must be an int, got True",
        "index must be an int, got '0'",
        "index must be an int, got 1.0",
        "index must be from 0 to 1, got -1",
        "index must be from 0 to 1, got 2",
    ]
