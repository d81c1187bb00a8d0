"""Those who wait for a load may go: nobody else is harmed, and with the last one its item."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
from support import Gate, Recorder, outcome, turns

from microbatch import Batcher, Loader

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def on_asyncio() -> bool:
    return sniffio.current_async_library() == "asyncio"


async def test_cancelling_one_awaiter_harms_nobody() -> None:
    """Neither others of the same load, nor those of an equal key, nor who gathers it."""
    handler = Gate()
    loader = Loader(handler)
    load = loader.load(1)
    found: list[Any] = []

    async def wait(one: Any, scope: anyio.CancelScope) -> None:
        with scope:
            found.append(await one)

    scopes = [anyio.CancelScope() for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for one, scope in zip((load, load, loader.load(1), loader.load(1)), scopes, strict=True):
            tasks.start_soon(wait, one, scope)
        await turns()
        scopes[0].cancel()
        scopes[2].cancel()
        await turns()
        assert await loader.load_many([]) == []
        handler.opened.set()
    assert found == [10, 10]
    assert await loader.load(1) == 10
    assert handler.batches == [[1]]


@pytest.mark.parametrize(
    "settings", [{}, {"coalesce": lambda key: key}, {"max_wait": 5.0}, {"max_pending": 2}]
)
async def test_the_last_awaiter_withdraws_a_buffered_item(settings: dict[str, Any]) -> None:
    """The handler never sees it, the others of its window are loaded, and the counts are exact."""
    handler = Gate()
    async with Batcher(handler, **settings) as batcher:
        loader = Loader(batcher)
        first = loader.load(0)
        await turns()
        if settings.get("max_wait"):
            await anyio.sleep(6)
        assert handler.batches == [[0]]
        scopes = [anyio.CancelScope() for _ in range(2)]
        found: list[Any] = []

        async def wait(load: Any, scope: anyio.CancelScope) -> None:
            with scope:
                found.append(await load)

        async with anyio.create_task_group() as tasks:
            loads = [loader.load(1), loader.load(2)]
            tasks.start_soon(wait, loads[0], scopes[0])
            tasks.start_soon(wait, loader.load(1), scopes[1])
            await turns()
            before = batcher.stats()
            scopes[0].cancel()
            await turns()
            assert batcher.stats().pending == before.pending
            scopes[1].cancel()
            await turns()
            if "max_pending" not in settings:  # else a part of the window stands in line
                assert batcher.stats().pending == before.pending - 1
            handler.opened.set()
            assert await first == 0
            assert await loads[1] == 20
        assert found == []
        assert handler.batches == [[0], [2]]
        assert await loader.load(1) == 10  # it was not kept
        assert handler.batches[2:] == [[1]]


async def test_a_load_that_is_cancelled_before_it_goes_is_not_handled() -> None:
    """In the two turns, and where it was the only one nothing goes at all."""
    handler = Recorder()
    loader = Loader(handler)
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with scope:
                await loader.load(1)

        tasks.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        scope.cancel()
    await turns()
    assert handler.batches == []
    keep = loader.load(2)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await loader.load(3)
    assert await keep == 20
    assert handler.batches == [[2]]


async def test_a_load_whose_item_was_withdrawn_is_loaded_anew_for_who_awaits_it() -> None:
    """Who comes after the last one is not harmed by him."""
    handler = Recorder()
    loader = Loader(handler)
    load = loader.load(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await load
    await turns()
    assert handler.batches == []
    assert await load == 10
    assert handler.batches == [[1]]


async def test_a_load_in_flight_without_awaiters_ends_and_is_not_kept() -> None:
    """It ended by cancellation."""
    handler = Gate()
    loader = Loader(handler)
    scope = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with scope:
                await loader.load(1)

        tasks.start_soon(wait)
        await turns()
        scope.cancel()
    handler.opened.set()
    assert await loader.load(1) == 10
    assert handler.batches == [[1], [1]]


async def test_a_handler_is_cancelled_with_its_last_awaiter_if_that_is_asked_for() -> None:
    """``cancel_abandoned`` counts loads as it does submits."""
    handler = Gate()
    loader = Loader(handler, cancel_abandoned=True)
    scope, ended = anyio.CancelScope(), []
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with scope:
                await loader.load_many([1, 2])
            ended.append(True)

        tasks.start_soon(wait)
        await turns()
        assert handler.batches == [[1, 2]]
        scope.cancel()
    await turns()
    handler.opened.set()
    assert await loader.load(1) == 10
    assert handler.batches == [[1, 2], [1]]


async def test_a_cancelled_load_many_withdraws_its_own_keys() -> None:
    """Those that others wait for too are loaded."""
    handler = Recorder()
    loader = Loader(handler)
    other = loader.load(2)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await loader.load_many([1, 2, 3])
    assert await other == 20
    assert handler.batches == [[2]]


async def test_a_cancelled_gather_is_one_awaiter_of_each() -> None:
    """asyncio's own: it cancels what it gathers."""
    if not on_asyncio():
        return
    handler = Gate()
    loader = Loader(handler)
    gathered = asyncio.gather(loader.load(1), loader.load(2))
    other = asyncio.ensure_future(loader.load_many([1]))
    await turns()
    gathered.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathered
    assert not other.done()
    handler.opened.set()
    assert await other == [10]
    assert await asyncio.gather(loader.load(1), loader.load(2)) == [10, 20]
    assert handler.batches == [[1, 2], [2]]


async def test_a_gather_gets_errors_of_its_own() -> None:
    """asyncio's own again."""
    if not on_asyncio():
        return
    loader = Loader(Recorder(fails={1}))
    load = loader.load(1)
    found = [
        (await asyncio.gather(load, return_exceptions=True))[0],
        (await asyncio.gather(load, return_exceptions=True))[0],
        await outcome(asyncio.gather(load)),
        await outcome(asyncio.shield(load)),
    ]
    assert [repr(error) for error in found] == ["ValueError(1)"] * 4
    assert len({id(error) for error in found}) == 4


async def test_who_gathers_a_load_keeps_it_though_another_awaiter_goes() -> None:
    """Its callbacks count."""
    if not on_asyncio():
        return
    handler = Recorder()
    load = Loader(handler).load(1)
    gathered = asyncio.gather(load)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await load
    assert await gathered == [10]
    assert handler.batches == [[1]]
