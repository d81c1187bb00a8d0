"""per_item: a function of one item as a handler."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from layers_support import echo, told

from microbatch.errors import HandlerCrashed, Skipped
from microbatch.layers import per_item

pytestmark = pytest.mark.anyio


async def test_items_run_side_by_side_within_the_limit_and_keep_their_order() -> None:
    """Ten calls of one second, four at a time, take three seconds."""
    running = peak = 0

    async def fetch(item: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await anyio.sleep(1 + (10 - item) / 100)
        running -= 1
        return item * 10

    began = anyio.current_time()
    assert await per_item(fetch, max_concurrency=4)(list(range(10))) == [n * 10 for n in range(10)]
    assert peak == 4
    assert anyio.current_time() - began == pytest.approx(3.2, abs=0.2)


async def test_each_item_fails_alone() -> None:
    """Whatever it raises, and wherever: before the first await too."""

    async def fetch(item: int) -> int:
        if item == 1:
            raise ValueError(item)
        await anyio.lowlevel.checkpoint()
        if item == 2:
            raise Skipped("later")
        return item

    assert told(await per_item(fetch)([0, 1, 2, 3])) == [0, "ValueError", "Skipped", 3]


async def test_a_plain_function_in_the_place_of_an_async_one_is_named() -> None:
    """Its result would be taken for granted otherwise."""

    def add(item: int) -> int:
        return item + 1

    [error] = await per_item(add)([1])  # type: ignore[arg-type]
    assert isinstance(error, TypeError)
    assert "per_item needs an async function, test_a_plain" in str(error)
    assert str(error).endswith("add returned int")


async def test_a_function_that_returns_an_awaitable_will_do() -> None:
    """``lambda id: client.get(id)``."""

    async def get(item: int) -> int:
        return item + 1

    assert await per_item(lambda item: get(item))([1]) == [2]  # noqa: PLW0108


async def test_a_cancellation_of_the_functions_own_making_fails_its_item() -> None:
    """Let through it would quietly end the task group: the others would be left without an outcome."""
    cancelled = anyio.get_cancelled_exc_class()

    async def fetch(item: int) -> int:
        if item == 1:
            raise cancelled if cancelled.__module__.startswith("asyncio") else await own(cancelled)
        return item

    async def own(cls: Any) -> BaseException:
        with anyio.CancelScope() as scope:  # trio makes them itself: take one out of its scope
            scope.cancel()
            try:
                await anyio.sleep(1)
            except cls as error:
                return error
        raise AssertionError

    results = await per_item(fetch, max_concurrency=1)([0, 1, 2])
    assert told(results) == [0, "HandlerCrashed", 2]
    assert isinstance(results[1], HandlerCrashed)
    assert isinstance(results[1].__cause__, cancelled)


async def test_cancelling_the_batch_cancels_every_item() -> None:
    """And the cancellation goes on to who asked for it."""
    ended: list[int] = []

    async def fetch(item: int) -> None:
        try:
            await anyio.sleep(10)
        finally:
            ended.append(item)

    with anyio.move_on_after(1) as scope:
        await per_item(fetch)([1, 2, 3])
    assert scope.cancelled_caught
    assert sorted(ended) == [1, 2, 3]


async def test_what_is_no_exception_ends_the_batch_as_it_is() -> None:
    """Ctrl-C is not one item's failure, and comes by itself, not in a group."""

    class Stop(BaseException):
        pass

    async def fetch(item: int) -> int:
        await anyio.sleep(item)
        raise Stop(item)

    with pytest.raises(Stop):
        await per_item(fetch)([1, 2])


def test_per_item_refuses_bad_settings() -> None:
    """By name."""

    async def pairs(item: int) -> Any:
        yield item

    with pytest.raises(ValueError, match="max_concurrency must be at least 1, got 0"):
        per_item(echo, max_concurrency=0)
    with pytest.raises(TypeError, match=r"a generator function is not allowed here, got .*pairs"):
        per_item(pairs)  # type: ignore[arg-type]
