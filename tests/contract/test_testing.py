"""microbatch.testing: time that takes none, handlers that remember, retries at once."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
import typing
from collections.abc import AsyncIterator  # noqa: TC003 - evaluated here
from typing import Any

import anyio
import pytest
import trio
from support import outcome

import microbatch.testing
from microbatch import (
    Backoff,
    Batcher,
    HandlerTimeout,
    ItemError,
    Retry,
    batched,
    current_batch,
)
from microbatch.layers import bisecting
from microbatch.testing import no_backoff, recorded, virtual_time

pytestmark = pytest.mark.timeout(180)

DAY = 86_400.0


def test_the_public_names_are_these() -> None:
    """Each says what it is for."""
    assert microbatch.testing.__all__ == ["no_backoff", "recorded", "virtual_time"]
    for name in microbatch.testing.__all__:
        assert getattr(microbatch.testing, name).__doc__.strip()


# --- virtual time ----------------------------------------------------------------------------------------------


async def a_day_with_retries() -> tuple[int, float]:
    """Wait for company, fail, back off, hang, and be ended by a timeout."""
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError
        await anyio.sleep_forever()
        return items

    retry = Retry(on=ConnectionError, backoff=Backoff(initial=DAY, maximum=DAY, jitter=0))
    began = anyio.current_time()
    async with Batcher(handler, max_wait=DAY, retry=retry, handler_timeout=DAY) as batcher:
        assert type(await outcome(batcher.submit(1))) is HandlerTimeout
    return calls, anyio.current_time() - began


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_waits_back_off_and_timeouts_take_no_time(backend: str) -> None:
    """Days of them: in real time this test would be ended by its limit."""
    options = virtual_time(backend)
    calls, seconds = anyio.run(a_day_with_retries, backend=backend, backend_options=options)
    assert calls == 2
    assert seconds == pytest.approx(4 * DAY)  # for company, in back-off, for company, for the end


def test_asyncio_and_trio_themselves_take_it_too() -> None:
    """Without anyio's plugin: what other plugins, and a ``main`` of one's own, are given."""
    assert virtual_time() == virtual_time("asyncio")
    with asyncio.Runner(**virtual_time()) as runner:
        assert runner.run(a_day_with_retries())[0] == 2
    assert trio.run(a_day_with_retries, **virtual_time("trio"))[0] == 2


def test_each_event_loop_has_a_clock_of_its_own() -> None:
    """What one test waited is nothing to the next."""
    assert virtual_time("trio")["clock"] is not virtual_time("trio")["clock"]
    for _ in range(2):
        with asyncio.Runner(**virtual_time()) as runner:
            assert runner.get_loop().time() == 0
            runner.run(anyio.sleep(DAY))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_plain_handler_is_not_overtaken_by_the_clock(backend: str) -> None:
    """It takes real time in its thread, and its timeout is not over before it has begun."""

    def handler(items: list[int]) -> list[int]:
        time.sleep(0.05)
        return items

    async def main() -> tuple[int, float]:
        began = anyio.current_time()
        async with Batcher(handler, max_wait=DAY, handler_timeout=DAY) as batcher:
            return await batcher.submit(1), anyio.current_time() - began

    result, seconds = anyio.run(main, backend=backend, backend_options=virtual_time(backend))
    assert result == 1
    assert DAY <= seconds < 2 * DAY


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_thread_that_hangs_runs_into_its_timeout(backend: str) -> None:
    """While a thread works time passes as it does outside; it does not stand still."""
    go = threading.Event()

    async def main() -> Any:
        batcher = Batcher(lambda _: go.wait(30), handler_timeout=0.1)
        failed = await outcome(batcher.submit(1))
        go.set()
        await batcher.aclose()
        return failed

    failed = anyio.run(main, backend=backend, backend_options=virtual_time(backend))
    assert type(failed) is HandlerTimeout


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        ("uvloop", "backend must be 'asyncio' or 'trio', got 'uvloop': uvloop's timers are out of"),
        ("curio", "backend must be 'asyncio' or 'trio', got 'curio'"),
    ],
)
def test_another_event_loop_is_refused(backend: str, text: str) -> None:
    """By name, with what to do instead."""
    with pytest.raises(ValueError, match=text):
        virtual_time(backend)


# --- recorded --------------------------------------------------------------------------------------------------


async def lookup(keys: list[int]) -> list[str | Exception]:
    """Look up."""
    return [str(key) if key >= 0 else KeyError(key) for key in keys]


def plain(keys: list[int]) -> list[str | Exception]:
    """Look up."""
    return [str(key) if key >= 0 else KeyError(key) for key in keys]


async def stream(keys: list[int]) -> AsyncIterator[tuple[int, str | Exception]]:
    """Look up."""
    for index, key in enumerate(keys):
        yield index, str(key) if key >= 0 else KeyError(key)


async def second(start: int, keys: list[int]) -> list[str | Exception]:
    return await lookup(keys)


class Key(int):
    """A type that only this module knows."""


class Service:
    """Has handlers, and is one; its field is none of its handlers' annotations."""

    prefix: str = ""

    async def many(self, keys: list[int]) -> list[str | Exception]:
        return await lookup(keys)

    def plain(self, keys: list[int]) -> list[str | Exception]:
        return plain(keys)

    async def __call__(self, keys: list[Key]) -> list[str | Exception]:
        return await lookup(keys)  # type: ignore[arg-type]


HANDLERS = {
    "async": lookup,
    "plain": plain,
    "generator": stream,
    "method": Service().many,
    "plain method": Service().plain,
    "object": Service(),
    "partial": functools.partial(second, 1),
}


@pytest.mark.anyio
@pytest.mark.real_time
@pytest.mark.parametrize("kind", HANDLERS)
async def test_a_recorded_handler_does_what_it_did(kind: str) -> None:
    """Results, errors of single items, and what it was called with."""
    handler: Any = recorded(HANDLERS[kind])
    async with Batcher(handler, max_batch_size=2) as batcher:
        report = await batcher.submit_many_report([3, -1, 5])
    assert [one.value for one in report] == ["3", None, "5"]
    assert [type(one.error) for one in report] == [type(None), KeyError, type(None)]
    assert handler.batches == [[3, -1], [5]]
    assert handler.reasons == ["size", "idle"]


@pytest.mark.parametrize("kind", HANDLERS)
def test_a_recorded_handler_is_to_inspect_what_it_was(kind: str) -> None:
    """A batcher's name, and what frameworks and type checks ask for."""
    handler = HANDLERS[kind]
    copy: Any = recorded(handler)  # type: ignore[operator]
    assert inspect.signature(copy) == inspect.signature(handler)
    inner = handler if inspect.isroutine(handler) else type(handler).__call__
    for asks in (inspect.iscoroutinefunction, inspect.isasyncgenfunction):
        assert asks(copy) == (asks(handler) or (kind != "partial" and asks(inner)))
    assert Batcher(copy).name == Batcher(handler).name  # type: ignore[call-overload]
    assert copy.__doc__ == handler.__doc__
    if kind != "partial":
        shown = typing.get_type_hints(copy)
        assert shown == typing.get_type_hints(inner)
        assert shown["keys"] == (list[Key] if kind == "object" else list[int])


def test_a_type_and_a_built_in_function_may_be_recorded() -> None:
    """They can be handlers."""
    for handler in (sorted, list):
        copy: Any = recorded(handler)  # type: ignore[type-var]
        assert copy([2]) == [2]
        assert (copy.batches, copy.reasons) == ([[2]], [None])
        assert copy.__name__ == handler.__name__


@pytest.mark.anyio
async def test_the_record_holds_whatever_the_handler_does_with_its_list() -> None:
    """The list is the handler's; and what fails was called all the same, each time."""

    @recorded
    async def handler(items: list[int]) -> list[int]:
        items.clear()
        raise ConnectionError

    retry = Retry(on=ConnectionError, attempts=2)
    async with Batcher(handler, retry=retry) as batcher:
        assert type(await outcome(batcher.submit(1))) is ConnectionError
    assert handler.batches == [[1], [1]]
    handler.batches.clear()
    assert await outcome(handler([5])) != []
    assert (handler.batches, handler.reasons) == ([[5]], ["idle", "idle", None])


@pytest.mark.anyio
async def test_two_records_of_one_handler_are_two() -> None:
    """The handler itself is not changed."""
    one, two = recorded(lookup), recorded(lookup)
    await one([1])
    assert (one.batches, two.batches) == ([[1]], [])
    assert not hasattr(lookup, "batches")


@pytest.mark.anyio
async def test_within_layers_each_call_is_recorded_as_it_comes() -> None:
    """A layer narrows the batch, and its reason stays."""

    @recorded
    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        assert batch.size == len(items)
        if -1 in items:
            raise ItemError("bad")
        return items

    async with Batcher(bisecting(handler, isolate_on=ItemError)) as batcher:
        report = await batcher.submit_many_report([1, -1, 2, 3])
    assert [one.ok for one in report] == [True, False, True, True]
    assert handler.batches == [[1, -1, 2, 3], [1, -1], [1], [-1], [2, 3]]
    assert set(handler.reasons) == {"idle"}


@pytest.mark.anyio
async def test_a_recorded_generator_is_closed_where_it_stood() -> None:
    """Its ``finally`` gives a cursor back, in the handler's own task."""
    tasks: list[int] = []

    @recorded
    async def handler(items: list[int]) -> AsyncIterator[tuple[int, int]]:
        tasks.append(anyio.get_current_task().id)
        try:
            for index in range(9):
                yield index, index
        finally:
            tasks.append(anyio.get_current_task().id)

    async with Batcher(handler) as batcher:
        assert len(await batcher.submit_many_report([1, 2])) == 2
    assert len(tasks) == 2
    assert tasks[0] == tasks[1]


@pytest.mark.anyio
@pytest.mark.real_time
async def test_the_calls_of_many_threads_keep_their_reasons() -> None:
    """Both lists grow together."""

    @recorded
    def handler(items: list[int]) -> None: ...

    async with Batcher(handler, max_batch_size=3, max_concurrency=8) as batcher:
        await batcher.submit_many(range(100))
    assert len(handler.batches) == len(handler.reasons) == 34
    assert sorted(item for batch in handler.batches for item in batch) == list(range(100))


@pytest.mark.anyio
async def test_methods_of_a_class_are_recorded_in_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With monkeypatch around a class that is not one's own, or below ``@batched``."""
    monkeypatch.setattr(Service, "many", recorded(Service.many))
    async with Batcher(Service().many) as batcher:
        assert await batcher.submit(1) == "1"
    assert Service.many.batches == Service().many.batches == [[1]]  # type: ignore[attr-defined]

    class Users:
        @recorded
        async def names(self, keys: list[int]) -> list[str]:
            return [str(key) for key in keys]

        name = batched(names)

    users = Users()
    assert await users.name(7) == "7"
    assert users.names.batches == [[7]]
    assert str(inspect.signature(users.name)) == "(item: int) -> str"


def test_what_is_no_handler_is_not_recorded() -> None:
    """As by `Batcher`."""
    with pytest.raises(TypeError, match="handler must be a function"):
        recorded(5)  # type: ignore[call-overload]


# --- no back-off -----------------------------------------------------------------------------------------------


class Fails:
    """Fails some times, then returns the items."""

    def __init__(self, times: int) -> None:
        self.times = times

    async def __call__(self, items: list[int]) -> list[int]:
        self.times -= 1
        if self.times >= 0:
            raise ConnectionError
        return items


SLOW = Retry(on=ConnectionError, attempts=3, backoff=Backoff(initial=DAY, maximum=DAY, jitter=0))


@pytest.mark.anyio
@pytest.mark.real_time
async def test_without_back_off_retries_go_at_once() -> None:
    """In real time; else it would be days. The number of attempts stays."""
    with no_backoff():
        async with Batcher(Fails(2), retry=SLOW) as batcher:
            assert await batcher.submit(1) == 1
        async with Batcher(Fails(3), retry=SLOW) as batcher:
            report = await batcher.submit_many_report([1])
            assert (type(report[0].error), report[0].attempts) == (ConnectionError, 3)


@pytest.mark.anyio
@pytest.mark.real_time
async def test_it_holds_for_errors_that_say_when_and_in_every_thread() -> None:
    """``retry_after`` is such a wait too; an application under a test client runs in a thread of its own."""

    async def handler(items: list[int]) -> list[int]:
        calls.append(len(items))
        if len(calls) == 1:
            raise ItemError("busy", retryable=True, retry_after=DAY)
        return items

    async def main() -> int:
        async with Batcher(handler, retry=SLOW) as batcher:
            return await batcher.submit(1)

    calls: list[int] = []
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(anyio.run(main)))
    with no_backoff():
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert results == [1]


@pytest.mark.anyio
async def test_after_the_outer_block_items_wait_again() -> None:
    """Blocks nest, as fixtures do, and end by an exception too."""

    async def seconds() -> float:
        began = anyio.current_time()
        async with Batcher(Fails(1), retry=SLOW) as batcher:
            await batcher.submit(1)
        return anyio.current_time() - began

    with pytest.raises(ZeroDivisionError), no_backoff():
        with no_backoff():
            assert await seconds() < 1
        assert await seconds() < 1
        raise ZeroDivisionError
    assert await seconds() == pytest.approx(DAY)
