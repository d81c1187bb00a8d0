"""Those who wait for a load may go: nobody else is harmed, and with the last one its item."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import sniffio
from support import Gate, Recorder, in_thread, outcome, run, turns
from telemetry_support import Sdk

from microbatch import Batcher, Loader

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


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


async def test_who_awaits_what_a_cancelled_gather_left_behind_has_its_value() -> None:
    """The very future that was cancelled is awaited by others: before its load ends, and after."""
    if not on_asyncio():
        return
    handler = Gate(fails={2})
    loader = Loader(handler)
    loads = [loader.load(1), loader.load(2)]
    gathered = asyncio.gather(*loads)
    waiting = [asyncio.ensure_future(outcome(load)) for load in (*loads, *loads)]
    late = asyncio.ensure_future(loads[0])  # type: ignore[arg-type]
    await turns()
    gathered.cancel()
    await turns()
    going = asyncio.ensure_future(outcome(loads[0]))
    await turns()
    handler.opened.set()
    going.cancel()
    assert [repr(one) for one in await asyncio.gather(*waiting)] == ["10", "ValueError(2)"] * 2
    with pytest.raises(asyncio.CancelledError):
        await going
    assert late.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await gathered
    assert await loads[0] == 10  # loaded anew
    assert repr(await outcome(loads[1])) == "ValueError(2)"


@pytest.mark.real_time
async def test_a_load_is_awaited_in_its_own_event_loop_only(backend_name: str) -> None:
    """Another one's scheduler would not be woken; a value that is there may go anywhere."""
    loads: list[Any] = []

    def elsewhere() -> None:
        async def main() -> None:
            loads.append(await outcome(pending))
            loads.append(await known)

        run(backend_name, main, real_time=True)

    handler = Gate()
    handler.opened.set()
    loader: Loader[int, int] = Loader(handler)
    known = loader.load(1)
    assert await known == 10
    handler.opened = anyio.Event()  # else it may be there before the other loop asks
    pending = loader.load(3)
    thread, failures = in_thread(elsewhere)
    await anyio.to_thread.run_sync(thread.join)
    handler.opened.set()
    assert failures == [None]
    assert "belongs to another event loop" in str(loads[0])
    assert loads[1] == 10
    assert await pending == 30


async def test_cancelled_loads_of_one_window_leave_by_any_way() -> None:
    """In lanes, in line and where several share a key, whoever comes first."""
    handler = Gate()
    async with Batcher(handler, max_pending=2, max_batch_size=1) as batcher:
        loader = Loader(batcher)
        first = loader.load(0)
        await turns()
        scope = anyio.CancelScope()

        async def wait() -> None:
            with scope:
                await loader.load_many([1, 2, 1, 3])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await turns()
            other = loader.load(3)
            await turns()
            scope.cancel()
            await turns()
            handler.opened.set()
        assert await first == 0
        assert await other == 30
    assert handler.batches == [[0], [3]]


def test_a_loader_works_in_one_event_loop_after_the_other(backend_name: str) -> None:
    """What was on its way when a loop ended is loaded anew in the next one."""
    handler = Recorder()
    loader = Loader(handler)
    left: list[Any] = []

    async def first() -> None:
        assert await loader.load(1) == 10
        left.append(loader.load(2))

    async def second() -> None:
        assert await loader.load(1) == 10
        assert await loader.load(2) == 20
        await outcome(left.pop())

    run(backend_name, first)
    run(backend_name, second)
    assert handler.batches[0] == [1]
    assert handler.batches[-1] == [2]


async def test_a_mapping_that_fails_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """Where outcomes are given nothing of the user's may raise."""

    class Stubborn(dict[Any, Any]):
        def __delitem__(self, key: Any) -> None:
            raise KeyError("stubborn")

    handler = Recorder()
    loader = Loader(handler, cache=Stubborn())
    load = loader.load(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await load
    assert await loader.load(2) == 20
    assert await loader.load(1) == 10
    assert [record.getMessage() for record in caplog.records] == ["a Loader's cache failed"]
    assert handler.batches[-1] == [1]


async def test_one_of_equal_keys_goes_and_the_next_one_leads() -> None:
    """The first of those who share a key may be the one that leaves."""
    handler = Recorder()
    loader = Loader(handler)
    first, second = loader.load(1), loader.load(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await first
    third = loader.load(1)
    assert [await second, await third, await first] == [10, 10, 10]
    assert handler.batches == [[1]]


async def test_telemetry_sees_a_window_as_its_first_caller() -> None:
    """The batch's span is linked to the request's, as after `submit_many`."""
    sdk = Sdk()
    with sdk.tracer.start_as_current_span("request") as request:
        loader = Loader(Recorder(), telemetry=sdk.telemetry())
        assert await loader.load_many([1, 2]) == [10, 20]
    (batch,) = [span for span in sdk.all_spans() if span.name != "request"]
    assert [link.context for link in batch.links] == [request.get_span_context()]


@pytest.mark.parametrize("fails", [(), (1,)])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("settings", [{}, {"coalesce": lambda key: key}])
async def test_a_load_that_left_in_flight_gets_nothing_any_more(
    settings: dict[str, Any], cache: bool, fails: Any
) -> None:
    """Its batch mates get theirs, values and errors."""
    handler = Gate(fails=fails)
    loader = Loader(handler, cache=cache, **settings)
    stays = loader.load(2)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, loader.load(1))
            tasks.start_soon(outcome, loader.load(1))
            await turns()
            assert handler.batches == [[2, 1]]
            scope.cancel()
    handler.opened.set()
    assert await stays == 20
    assert (await loader.load_many([2]))[0] == 20


async def test_without_a_cache_an_item_in_lanes_is_shared_until_a_handler_has_it() -> None:
    """Entries tell where their items are."""
    handler = Gate()
    loader = Loader(handler, cache=False, weigh=len, max_batch_weight=9)
    first = loader.load("a")
    await turns()
    loads = [loader.load("b")]
    await turns()
    loads.append(loader.load("b"))
    loads.append(loader.load("a"))
    handler.opened.set()
    assert await first == "a" * 10
    assert [await load for load in loads] == ["b" * 10, "b" * 10, "a" * 10]
    assert sorted(key for batch in handler.batches for key in batch) == ["a", "a", "b"]


async def test_who_is_cancelled_as_a_window_goes_is_left_out_of_its_batch() -> None:
    """In lanes each is looked at when the batch is cut, though the notice is still on its way."""
    if not on_asyncio():
        return
    handler = Gate()
    loader = Loader(handler, coalesce=lambda key: key, max_batch_size=1)
    first = loader.load(0)
    await turns()
    impatient = [asyncio.ensure_future(outcome(loader.load(key))) for key in (1, 1, 2)]
    gathered = asyncio.gather(loader.load(2))
    await turns()
    handler.opened.set()
    for task in impatient:
        task.cancel()
    assert await gathered == [20]
    assert await first == 0
    assert await loader.load(1) == 10
    assert handler.batches == [[0], [2], [1]]


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_in_the_turn_of_the_outcome_is_cancelled(fails: bool) -> None:
    """The outcome comes before the notice; the others get it."""
    if not on_asyncio():
        return
    waiting: list[Any] = []

    async def handler(keys: list[int]) -> list[int | Exception]:
        for task in waiting:
            task.cancel()
        return [KeyError(key) if fails else key for key in keys]

    loader = Loader(handler, telemetry=False)
    load, other = loader.load(1), loader.load(1)
    waiting += [
        asyncio.ensure_future(outcome(load)),
        asyncio.ensure_future(loader.load_many([1, 2])),
    ]
    assert repr(await outcome(other)) == ("KeyError(1)" if fails else "1")
    for task in waiting:
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_closing_passes_over_loads_that_left_the_line() -> None:
    """Those that still wait for room are told."""
    handler = Gate()
    batcher = Batcher(handler, max_pending=1)
    loader = Loader(batcher)
    loads = [loader.load(key) for key in range(3)]
    await turns()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await loads[2]
    await batcher.aclose(0)
    found = [await outcome(load) for load in loads]
    assert [type(error).__name__ for error in found] == ["BatcherClosed"] * 3
    assert handler.batches == [[0]]
