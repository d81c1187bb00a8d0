"""info: a narrowed view, and what there is outside of a batch."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import outcomes

from microbatch import Batcher, batch_info, current_batch
from microbatch._core.info import narrowed

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


async def test_outside_a_batch_there_is_none() -> None:
    """A view of a part of it is no batch either."""
    assert current_batch() is None
    with narrowed([0]):
        assert current_batch() is None


async def test_asking_for_the_batch_where_there_is_none_is_an_error() -> None:
    """Inside it is the same as `current_batch`, with nothing to rule out for type checkers."""
    seen: list[Any] = []

    async def handler(items: list[int]) -> None:
        seen.append(batch_info().size)
        with narrowed([1]):
            seen.append(batch_info().size)

    async with Batcher(handler) as batcher:
        await batcher.submit_many(range(3))
    assert seen == [3, 1]
    with pytest.raises(
        RuntimeError, match=r"^no batch is running here: batch_info\(\) is for what"
    ):
        batch_info()


async def test_a_narrowed_view_is_a_batch_of_its_own_and_views_nest() -> None:
    """A layer that passes on a part must not make its handler resolve another's item."""
    seen: list[Any] = []

    async def handler(items: list[int]) -> list[Any]:
        with narrowed([1, 3]):
            with narrowed([1]):
                inner = current_batch()
                assert inner is not None
                seen.append((inner.size, inner.attempts, inner.reason))
                inner.resolve(0, "three")
                with pytest.raises(IndexError, match=r"^index must be from 0 to 0, got 1$"):
                    inner.resolve(1, "x")
            middle = current_batch()
            assert middle is not None
            seen.append(middle.size)
            with pytest.raises(RuntimeError, match="item 1 of the batch has its outcome already"):
                middle.resolve(1, "again")
        whole = current_batch()
        assert whole is not None
        seen.append(whole.size)
        return list(items)

    async with Batcher(handler) as batcher:
        results = await batcher.submit_many(range(4))
    assert results == [0, 1, 2, "three"]
    assert seen == [(1, (1,), "idle"), 2, 4]


async def test_a_narrowed_view_maps_indices_to_the_outer_batch() -> None:
    """A layer passes some items on: what is resolved below must reach the right callers."""

    async def inner(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        assert batch.size == len(items)
        batch.resolve(1, "narrow")
        return items

    async def handler(items: list[str]) -> list[str]:
        with narrowed([0, 2]):
            await inner([items[0], items[2]])
        batch = current_batch()
        assert batch is not None
        assert batch.size == 3
        await anyio.sleep(1)
        return [item * 2 for item in items]

    async with Batcher(handler) as batcher:
        assert await outcomes(*(batcher.submit_nowait(item) for item in "abc")) == [
            "aa",
            "bb",
            "narrow",
        ]
    with narrowed([0]):
        assert current_batch() is None
