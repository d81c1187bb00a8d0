"""Loader: equal keys are one load, loads that belong together are one handler call, nobody harms another."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
from support import Gate, Recorder, outcome, outcomes, run, tasks_alive, turns

from microbatch import Batcher, BatcherClosed, BatcherFull, Loader, WouldDeadlock, batch_info

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


def on_asyncio() -> bool:
    return sniffio.current_async_library() == "asyncio"


async def test_loads_made_together_are_one_handler_call() -> None:
    """The N+1 of resolvers becomes one."""
    handler = Recorder()
    loader = Loader(handler)
    assert await outcomes(*[loader.load(key) for key in (3, 1, 2)]) == [30, 10, 20]
    assert handler.batches == [[3, 1, 2]]


async def test_equal_keys_share_one_load_and_its_value() -> None:
    """Together, one after the other, and while the load is on its way."""
    handler = Gate()
    loader = Loader(handler)
    together = [loader.load(1), loader.load(1)]
    async with anyio.create_task_group() as tasks:
        found: list[Any] = []

        async def wait(load: Any) -> None:
            found.append(await load)

        for load in together:
            tasks.start_soon(wait, load)
        await turns()
        assert handler.batches == [[1]]
        tasks.start_soon(wait, loader.load(1))
        await turns()
        handler.opened.set()
    assert found == [10, 10, 10]
    assert await loader.load(1) == 10
    assert handler.batches == [[1]]


async def test_one_load_has_any_number_of_awaiters() -> None:
    """In many tasks, again later, and after it is done."""
    handler = Recorder()
    load = Loader(handler).load(7)
    assert await outcomes(load, load, load) == [70, 70, 70]
    assert await load == 70
    assert handler.batches == [[7]]


async def test_an_error_is_kept_and_each_awaiter_has_its_own() -> None:
    """What one adds to it, no other sees."""
    handler = Recorder(fails={1})
    loader = Loader(handler)
    load, again = loader.load(1), loader.load(1)
    errors = await outcomes(load, load, again, again)
    errors.append(await outcome(load))
    errors.append(await outcome(loader.load(1)))
    (many,) = await loader.load_many([1])
    errors.append(many)
    assert [repr(error) for error in errors] == ["ValueError(1)"] * 7
    assert len({id(error) for error in errors}) == 7
    assert handler.batches == [[1]]


async def test_what_the_handler_raises_is_every_keys_error() -> None:
    """And kept like any other."""
    calls: list[list[int]] = []

    async def broken(keys: list[int]) -> list[int]:
        calls.append(keys)
        raise KeyError("backend")

    loader = Loader(broken)
    errors = await loader.load_many([1, 2])
    assert [repr(error) for error in errors] == ["KeyError('backend')"] * 2
    assert errors[0] is not errors[1]
    with pytest.raises(KeyError):
        await loader.load(2)
    assert calls == [[1, 2]]


async def test_load_many_keeps_the_order_and_puts_errors_in_their_places() -> None:
    """Known, new, equal and failing keys in one list."""
    handler = Recorder(fails={4})
    loader = Loader(handler)
    loader.prime(9, 99)
    await loader.load(1)
    found = await loader.load_many(key for key in (2, 9, 4, 1, 2))
    assert repr(found) == "[20, 99, ValueError(4), 10, 20]"
    assert handler.batches == [[1], [2, 4]]
    assert await loader.load_many([]) == []


async def test_load_many_fails_a_key_that_cannot_be_one_alone() -> None:
    """The others are loaded."""
    handler = Recorder()
    found = await Loader[Any, Any](handler).load_many([1, [], 2])
    assert found[0] == 10
    assert isinstance(found[1], TypeError)
    assert found[2] == 20
    with pytest.raises(TypeError):
        await Loader(handler).load_many(3)  # type: ignore[arg-type]


async def test_what_is_primed_first_wins() -> None:
    """Over a later prime, and never over a load."""
    handler = Recorder()
    loader = Loader(handler)
    loader.prime(1, 5)
    loader.prime(1, 6)
    assert await loader.load(1) == 5
    load = loader.load(2)
    loader.prime(2, 7)
    assert await load == 20
    loader.prime(2, 8)
    assert await loader.load(2) == 20
    assert handler.batches == [[2]]


async def test_an_exception_can_be_primed(caplog: pytest.LogCaptureFixture) -> None:
    """As a handler may return one; that nobody loads it is nothing to log."""
    loader = Loader(Recorder())
    loader.prime(1, KeyError("gone"))
    loader.prime(2, KeyError("unseen"))
    first, second = await outcome(loader.load(1)), await outcome(loader.load(1))
    assert repr(first) == repr(second) == "KeyError('gone')"
    assert first is not second
    del loader, first, second
    gc.collect()
    assert caplog.records == []


async def test_clear_loads_anew_and_leaves_who_waits_alone() -> None:
    """After a mutation the next load must not answer with what was before."""
    handler = Gate()
    loader = Loader(handler)
    async with anyio.create_task_group() as tasks:
        found: list[Any] = []

        async def wait(key: int) -> None:
            found.append(await loader.load(key))

        tasks.start_soon(wait, 1)
        await turns()
        loader.clear(1)
        loader.clear("never loaded")
        tasks.start_soon(wait, 1)
        await turns()
        handler.opened.set()
    assert found == [10, 10]
    assert handler.batches == [[1], [1]]
    loader.clear_all()
    assert await loader.load(1) == 10
    assert handler.batches == [[1], [1], [1]]


async def test_nested_resolvers_load_in_one_batch() -> None:
    """A task that starts another one, which loads, is in time: two turns of the loop."""
    handler = Recorder()
    loader = Loader(handler)
    async with anyio.create_task_group() as tasks:

        async def resolve(key: int) -> None:
            await loader.load(key)

        async def parent(key: int) -> None:
            tasks.start_soon(resolve, key)

        tasks.start_soon(resolve, 1)
        tasks.start_soon(parent, 2)
    assert [sorted(batch) for batch in handler.batches] == [[1, 2]]


async def test_many_loaders_over_one_batcher_share_its_handler_calls() -> None:
    """Each request has its cache, all requests one query."""
    handler = Recorder()
    async with Batcher(handler) as batcher:
        loaders = [Loader(batcher) for _ in range(5)]
        assert await outcomes(*[loader.load(key) for key, loader in enumerate(loaders)]) == [
            0, 10, 20, 30, 40,
        ]  # fmt: skip
        assert [sorted(batch) for batch in handler.batches] == [[0, 1, 2, 3, 4]]
        assert await loaders[0].load(1) == 10  # its own cache has not got it
        assert len(handler.batches) == 2


async def test_equal_keys_of_different_loaders_share_a_slot_where_the_batcher_coalesces() -> None:
    """And each gets the value, or an error of its own."""
    handler = Recorder(fails={2})
    async with Batcher(handler, coalesce=lambda key: key) as batcher:
        one, two = Loader(batcher), Loader(batcher)
        found = await outcomes(one.load(1), two.load(1), one.load(2), two.load(2))
    assert found[:2] == [10, 10]
    assert [repr(error) for error in found[2:]] == ["ValueError(2)"] * 2
    assert found[2] is not found[3]
    assert [sorted(batch) for batch in handler.batches] == [[1, 2]]


async def test_without_a_cache_only_what_is_buffered_is_shared() -> None:
    """What a handler has begun with may be older than a write."""
    handler = Gate()
    loader = Loader(handler, cache=False)
    async with anyio.create_task_group() as tasks:
        found: list[Any] = []

        async def wait(load: Any) -> None:
            found.append(await load)

        async def load(key: int) -> None:
            tasks.start_soon(wait, loader.load(key))
            await turns()

        await load(1)  # a handler has it
        await load(1)  # the batcher has it, behind the busy slot
        await load(1)
        tasks.start_soon(wait, loader.load(1))
        tasks.start_soon(wait, loader.load(1))
        await turns()
        assert handler.batches == [[1]]
        handler.opened.set()
    assert found == [10] * 5
    assert handler.batches == [[1], [1]]
    assert repr(loader).endswith("0 loads kept>")
    loader.prime(1, 0)
    assert await loader.load(1) == 10
    assert len(handler.batches) == 3


async def test_without_a_cache_errors_are_not_kept_either() -> None:
    """The next load may go well."""
    handler = Recorder(fails={1})
    loader = Loader(handler, cache=False)
    assert len([await outcome(loader.load(1)) for _ in range(2)]) == 2
    assert handler.batches == [[1], [1]]


async def test_loads_are_kept_in_a_mapping_that_is_given() -> None:
    """One that forgets some bounds the memory."""

    class Last(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            self.clear()
            super().__setitem__(key, value)

    handler, kept = Recorder(), Last()
    loader = Loader(handler, cache=kept)
    assert await loader.load_many([1, 2]) == [10, 20]
    assert list(kept) == [2]
    assert await loader.load_many([2, 1]) == [20, 10]
    assert handler.batches == [[1, 2], [1]]


async def test_a_key_function_says_what_is_cached_together() -> None:
    """The handler gets the first of equal ones as it came."""
    handler = Recorder()
    loader = Loader(handler, key=abs)
    assert await loader.load_many([-2, 2, 3]) == [-20, -20, 30]
    loader.prime(-4, 1)
    assert await loader.load(4) == 1
    loader.clear(2)
    assert await loader.load(2) == 20
    assert handler.batches == [[-2, 3], [2]]


# Ends


async def test_a_closed_batcher_fails_loads_and_they_are_not_kept() -> None:
    """What ended by closing did not end."""
    handler = Gate()
    batcher = Batcher(handler)
    loader = Loader(batcher)
    flying = loader.load(1)
    await turns()
    buffered = loader.load(2)
    await turns()
    collected = loader.load(3)
    await batcher.aclose(0)
    assert [type(error) for error in await outcomes(flying, buffered, collected)] == [
        BatcherClosed
    ] * 3
    assert repr(loader).endswith("0 loads kept>")
    assert isinstance(await outcome(loader.load(1)), BatcherClosed)
    assert repr(loader).endswith("0 loads kept>")


async def test_nothing_is_left_behind() -> None:
    """No task, no timer, nothing that keeps it alive; and nobody closes it."""
    before = tasks_alive()

    async def handler(keys: list[int]) -> list[int]:
        return keys

    loader = Loader(handler)
    assert await loader.load_many([1, 2]) == [1, 2]
    assert await loader.load(1) == 1
    await turns()
    assert tasks_alive() == before
    if hasattr(loop := asyncio.get_running_loop() if on_asyncio() else None, "timers"):
        assert loop.timers() == [] or all(timer.when() > 1_000 for timer in loop.timers())
    loader_gone, handler_gone = weakref.ref(loader), weakref.ref(handler)
    gc.disable()
    try:
        del loader
        assert loader_gone() is None  # no cycle leads through it
    finally:
        gc.enable()
    del handler
    gc.collect()
    assert handler_gone() is None


async def test_a_dropped_loader_ends_what_it_began() -> None:
    """Loads that are awaited have their values though nobody holds the loader."""
    handler = Recorder()
    load = Loader(handler).load(1)
    gc.collect()
    assert await load == 10


@pytest.mark.asyncio_logs
def test_a_failure_that_nobody_awaited_is_logged_once(
    backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As for a Pending; not that of a load that somebody awaited."""

    async def main() -> None:
        loader = Loader(Recorder(fails={1, 2, 3}), telemetry=False)
        loads = [loader.load(1), loader.load(2)]
        assert isinstance(await outcome(loads[1]), ValueError)
        assert len(await loader.load_many([2, 3])) == 2

    with caplog.at_level(logging.ERROR):
        run(backend_name, main)
        gc.collect()
    (record,) = caplog.records
    assert "never retrieved" in record.getMessage()


async def test_awaiting_where_it_would_deadlock_is_refused() -> None:
    """Inside the handler that loads: a value that is known is given."""
    found: list[Any] = []

    async def handler(keys: list[int]) -> list[int]:
        if 2 in keys:
            found.append(await loader.load(1))
            with pytest.raises(WouldDeadlock, match="load"):
                loader.load(3)
            with pytest.raises(WouldDeadlock):
                await loader.load_many([4])
            with pytest.raises(WouldDeadlock):
                loader.load(2)
        return keys

    loader = Loader(handler)
    assert await loader.load(1) == 1
    assert await loader.load(2) == 2
    assert found == [1]


async def test_a_full_room_makes_loads_wait_or_fail_as_the_batcher_says() -> None:
    """Back-pressure is the batcher's."""
    handler = Recorder()
    assert await Loader(handler, max_pending=3, max_batch_size=2).load_many(range(8)) == [
        key * 10 for key in range(8)
    ]
    found = await Loader(handler, max_pending=3, on_full="reject").load_many(range(5))
    assert found[:3] == [0, 10, 20]
    assert [type(error).__name__ for error in found[3:]] == ["BatcherFull"] * 2


async def test_a_key_that_a_full_room_refused_is_loaded_once_there_is_room() -> None:
    """That says nothing of the key."""
    loader = Loader(Recorder(), max_pending=1, on_full="reject")
    first, refused = await loader.load_many([1, 2])
    assert (first, type(refused)) == (10, BatcherFull)
    assert await loader.load(2) == 20


@pytest.mark.parametrize("room", [2, 100])
async def test_each_load_is_asked_about_in_its_own_callers_context(room: int) -> None:
    """They go together, and are several requests' all the same: nobody's tenant is another's."""
    tenant: ContextVar[int] = ContextVar("tenant")
    seen: list[tuple[int, int]] = []

    async def handler(keys: list[int]) -> list[int]:
        contexts = batch_info().contexts
        assert contexts is not None
        seen.extend(zip(keys, [context[tenant] for context in contexts], strict=True))
        return keys

    loader = Loader(
        handler, capture_context=True, partition=lambda _: tenant.get() % 2, max_pending=room
    )
    gone = anyio.CancelScope()

    async def request(number: int) -> None:
        tenant.set(number)
        with gone if number == 2 else anyio.CancelScope():
            await loader.load(number)

    async with anyio.create_task_group() as tasks:
        for number in range(1, 6):
            tasks.start_soon(request, number)
        await anyio.lowlevel.checkpoint()
        gone.cancel()
    assert {key: own for key, own in seen if key != 2} == {1: 1, 3: 3, 4: 4, 5: 5}
    assert all(key == own for key, own in seen)


async def test_a_users_function_that_raises_fails_its_own_load() -> None:
    """The others of the window go their way."""

    def weigh(key: int) -> int:
        return 1 // key

    loader = Loader(Recorder(), weigh=weigh, max_batch_weight=5)
    found = await loader.load_many([1, 0, 2])
    assert repr(found) == "[10, ZeroDivisionError('integer division or modulo by zero'), 20]"


async def test_misuse_is_refused_by_name() -> None:
    """At once, with what was wrong."""
    handler = Recorder()
    with pytest.raises(
        TypeError, match=r"a Loader over a Batcher takes no settings of one, got max_wait"
    ):
        Loader(Batcher(handler), max_wait=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="key must be a function or None, got 3"):
        Loader(handler, key=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"cache must be a bool or a mutable mapping, got \[\]"):
        Loader(handler, cache=[])  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, got 0"):
        Loader(handler, max_batch_size=0)
    with pytest.raises(TypeError, match="unhashable"):
        Loader[Any, Any](handler).load([])
