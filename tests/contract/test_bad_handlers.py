"""Handlers that crash, return rubbish, hang or fail one item: every caller ends exactly once."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Recorder, counted, outcome, outcomes

from microbatch import (
    Batcher,
    BatcherClosed,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ResultCountError,
    Retry,
    current_batch,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


class Boom(BaseException):
    """Not an Exception: nothing that catches Exception sees it."""


# --- handlers that crash ----------------------------------------------------------------------------------------


async def stolen_cancellation() -> BaseException:
    """Return a cancellation that belongs to a scope already left: what badly written libraries raise."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class() as error:
            stolen = error
            raise
    return stolen


@pytest.mark.parametrize(
    "make", [Boom, GeneratorExit, asyncio.CancelledError], ids=lambda make: make.__name__
)
async def test_a_base_exception_from_the_handler_fails_its_callers_and_nothing_else(
    make: Any,
) -> None:
    """Of 13 peers 9 hang all callers here, two of them for good."""

    async def handler(items: list[int]) -> list[int]:
        await anyio.lowlevel.checkpoint()
        if 0 in items:
            raise make("away")
        return items

    async with Batcher(handler) as batcher:
        errors = await outcomes(*(batcher.submit(item) for item in (0, 1, 2)))
        for error in errors:
            assert type(error) is HandlerCrashed
            assert error.kind == make.__name__
            assert type(error.__cause__) is make
        assert len(set(map(id, errors))) == 3
        assert await batcher.submit(3) == 3
        assert counted(batcher).failed == 3


async def test_a_cancellation_of_the_handlers_own_making_is_a_crash() -> None:
    """A driver that leaks its own cancellation must cancel neither the callers nor the batcher."""

    async def handler(items: list[int]) -> list[int]:
        if 0 in items:
            raise await stolen_cancellation()
        return items

    async with Batcher(handler) as batcher:
        errors = await outcomes(batcher.submit(0), batcher.submit(0))
        assert [type(error) for error in errors] == [HandlerCrashed, HandlerCrashed]
        assert isinstance(errors[0].__cause__, anyio.get_cancelled_exc_class())
        assert await batcher.submit(3) == 3


async def test_a_base_exception_group_from_the_handler_is_a_crash() -> None:
    """Task groups inside a handler wrap what crashed in a group."""

    async def handler(items: list[int]) -> list[int]:
        raise BaseExceptionGroup("several", [Boom("one"), ValueError("two")])

    async with Batcher(handler) as batcher:
        error = await outcome(batcher.submit(0))
        assert type(error) is HandlerCrashed
        assert type(error.__cause__) is BaseExceptionGroup


async def test_a_crash_of_a_generator_handler_fails_only_those_still_waiting() -> None:
    """What it yielded before stands."""

    async def handler(items: list[int]) -> Any:
        yield 1, "first"
        raise Boom

    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        kinds = [type(result) for result in results]
        assert sorted(kinds, key=str) == sorted([str, HandlerCrashed, HandlerCrashed], key=str)
        assert counted(batcher).failed == 2


@pytest.mark.real_time
async def test_a_handler_that_raises_before_its_first_await_fails_its_callers() -> None:
    """graphql/dataloader had to learn that a synchronous throw must reject, not crash."""

    def plain(items: list[int]) -> Any:
        raise LookupError("at once")

    async def immediate(items: list[int]) -> Any:
        raise LookupError("at once")

    for handler in (plain, immediate, immediate):
        async with Batcher(handler) as batcher:
            error = await outcome(batcher.submit(1))
            assert type(error) is LookupError
            assert error.args == ("at once",)


# --- handlers that return rubbish -------------------------------------------------------------------------------


class Liar:
    """Says it has three results and gives two."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter([1, 2])


class Thrower:
    """Breaks when looked at."""

    def __len__(self) -> int:
        raise LookupError("length")

    def __iter__(self) -> Any:
        raise LookupError("iteration")


@pytest.mark.parametrize("rubbish", [
    pytest.param([1, 2], id="short"),
    pytest.param([1, 2, 3, 4], id="long"),
    pytest.param([], id="empty"),
    pytest.param("abc", id="str"),
    pytest.param(b"abc", id="bytes"),
    pytest.param(bytearray(b"abc"), id="bytearray"),
    pytest.param({1: 1, 2: 2, 3: 3}, id="mapping"),
    pytest.param({1, 2, 3}, id="set"),
    pytest.param(frozenset({1, 2, 3}), id="frozenset"),
    pytest.param(3, id="number"),
    pytest.param(object(), id="object"),
    pytest.param(iter([1, 2, 3]), id="iterator"),
    pytest.param(Liar(), id="liar"),
    pytest.param(Thrower(), id="thrower"),
    pytest.param(ValueError("returned"), id="exception"),
])  # fmt: skip
async def test_rubbish_from_the_handler_ends_every_caller_with_a_reason(rubbish: Any) -> None:
    """async-cache answers None in silence, pybatcher and the bare loop hang the third caller."""

    async def handler(items: list[Any]) -> Any:
        return rubbish if len(items) == 3 else items

    async with Batcher(handler) as batcher:
        errors = await outcomes(*(batcher.submit(item) for item in range(3)))
        assert {type(error) for error in errors} <= {ResultCountError, TypeError, LookupError}
        assert len(set(map(id, errors))) == 3
        if isinstance(rubbish, list):
            assert (
                str(errors[0])
                == f"the handler of batcher {batcher.name!r} must give one result for each of its 3 items, "
                f"got {len(rubbish)}"
            )
            assert (errors[0].expected, errors[0].got) == (3, len(rubbish))
        elif not isinstance(rubbish, Thrower | Liar):
            assert type(errors[0]) is TypeError
            assert type(rubbish).__name__ in str(errors[0])
            assert repr(batcher.name) in str(errors[0])
        assert await batcher.submit("next") == "next"
        assert counted(batcher).failed == 3


async def test_the_item_list_is_the_handlers_to_change() -> None:
    """A handler that empties, reorders or returns its list changes nothing for the callers."""

    async def handler(items: list[int]) -> list[int]:
        assert type(items) is list
        results = [item * 10 for item in items]
        items.clear()
        return results

    async with Batcher(handler) as batcher:
        assert await outcomes(*map(batcher.submit, range(5))) == [0, 10, 20, 30, 40]

    async def echo(items: list[int]) -> list[int]:
        return items

    async with Batcher(echo) as batcher:
        assert await outcomes(*map(batcher.submit, range(5))) == [0, 1, 2, 3, 4]


class Odd:
    """No truth, no equality, no hash: what NumPy arrays and ORM rows are like."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


@pytest.mark.parametrize(
    "settings", [{}, {"max_pending": 2}, {"retry": Retry(on=LookupError)}], ids=str
)
async def test_items_and_results_are_never_compared_hashed_or_tested(
    settings: dict[str, Any],
) -> None:
    """Only their identity counts; also while items are cancelled and waited for."""
    items = [Odd() for _ in range(6)]

    async def handler(batch: list[Odd]) -> list[Odd]:
        await anyio.sleep(1)
        return batch

    async with Batcher(handler, **settings) as batcher:
        with anyio.move_on_after(0.5):
            await outcomes(*map(batcher.submit, items))
        results = await outcomes(*map(batcher.submit, items))
    assert list(map(id, results)) == list(map(id, items))


@pytest.mark.parametrize(
    "item", [None, False, 0, "", ..., NotImplemented, ValueError("an item"), StopIteration()]
)
async def test_any_object_is_an_item(item: Any) -> None:
    """aiodataloader refuses None; an exception is a fine item, too."""

    async def handler(items: list[Any]) -> list[Any]:
        return [repr(item) for item in items]

    async with Batcher(handler) as batcher:
        assert await batcher.submit(item) == repr(item)


# --- one bad among many -----------------------------------------------------------------------------------------


async def test_one_bad_item_of_a_hundred_fails_alone() -> None:
    """Returned in its place, an exception is its own caller's; smartbatch needs 101 calls for it."""
    handler = Recorder(fails={13})
    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(100)))
    assert type(results.pop(13)) is ValueError
    assert results == [item * 10 for item in range(100) if item != 13]
    assert handler.sizes == [100]
    stats = counted(batcher)
    assert (stats.batches, stats.items, stats.failed) == (1, 100, 1)


async def test_a_failed_batch_fails_alone() -> None:
    """The batches before and after are other callers' affair."""

    async def handler(items: list[int]) -> list[int]:
        if 1 in items:
            raise ValueError("batch")
        return items

    async with Batcher(handler, max_batch_size=1) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert [results[0], type(results[1]), results[2]] == [0, ValueError, 2]


@pytest.mark.parametrize(
    "kind", [StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, Boom]
)
async def test_an_unraisable_result_ends_its_own_caller_alone(kind: Any) -> None:
    """asyncio refuses StopIteration in a future, and gather(return_exceptions=True) returns cancellations."""

    async def handler(items: list[int]) -> list[Any]:
        return [kind("odd") if item == 1 else item for item in items]

    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert (results[0], results[2]) == (0, 2)
        if issubclass(kind, Exception):
            assert isinstance(
                results[1], Exception
            )  # PEP 479 makes a RuntimeError of StopIteration
        assert await batcher.submit(5) == 5
        assert counted(batcher).pending == 0


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
async def test_a_raised_stop_iteration_ends_every_caller(kind: Any) -> None:
    """next() on an empty iterator in a handler is a common slip."""

    async def handler(items: list[int]) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        raise kind("odd")

    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert all(isinstance(result, Exception) for result in results)


# --- handlers that hang -----------------------------------------------------------------------------------------


async def test_a_handler_that_hangs_is_ended_by_its_timeout() -> None:
    """Its callers get a TimeoutError on time and the next batch runs; 5 of 13 peers are stuck here."""

    async def handler(items: list[int]) -> list[int]:
        if 0 in items:
            await anyio.sleep_forever()
        return items

    async with Batcher(handler, handler_timeout=30.0, name="slow") as batcher:
        start = anyio.current_time()
        errors = await outcomes(batcher.submit(0), batcher.submit(1))
        assert anyio.current_time() - start == pytest.approx(30.0, abs=0.01)
        assert all(
            type(error) is HandlerTimeout and isinstance(error, TimeoutError) for error in errors
        )
        assert (
            str(errors[0])
            == "the handler of batcher 'slow' took longer than handler_timeout=30.0 s"
        )
        assert errors[0] is not errors[1]
        assert await batcher.submit(2) == 2
        stats = counted(batcher)
        assert (stats.batches, stats.items, stats.failed, stats.pending) == (2, 3, 2, 0)


async def test_without_a_timeout_a_hanging_handler_shows_in_the_stats() -> None:
    """Nothing else can be known about it; others still run while slots are free."""

    async def handler(items: list[int]) -> list[int]:
        if 0 in items:
            await anyio.sleep_forever()
        return items

    async with Batcher(handler, max_concurrency=2, drain_timeout=5.0) as batcher:
        pending = batcher.submit_nowait(0)
        await anyio.sleep(50)
        assert await batcher.submit(1) == 1
        await anyio.sleep(50)
        assert batcher.stats().oldest_in_flight == pytest.approx(100)
        assert counted(batcher).in_flight == 1
        start = anyio.current_time()
    assert 5 <= anyio.current_time() - start < 60
    error = await outcome(pending)
    assert type(error) is BatcherClosed
    assert error.started


async def test_a_timeout_holds_even_if_the_handler_ignores_its_cancellation() -> None:
    """The slot is free on time: one deaf handler must not stop the service."""

    async def handler(items: list[int]) -> list[int]:
        if 0 in items:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(500)
        return items

    async with Batcher(handler, handler_timeout=1.0) as batcher:
        start = anyio.current_time()
        assert type(await outcome(batcher.submit(0))) is HandlerTimeout
        assert await batcher.submit(1) == 1
        assert anyio.current_time() - start == pytest.approx(1.0, abs=0.01)
        await anyio.sleep(600)
        assert counted(batcher).pending == 0


async def test_deaf_handlers_are_counted_and_bounded() -> None:
    """Each holds memory, a connection, perhaps a thread: past eight new batches fail, until some of them end."""
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if 0 in items:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(500)
        return items

    async with Batcher(handler, handler_timeout=1.0, name="deaf") as batcher:
        kinds = [type(await outcome(batcher.submit(0))) for _ in range(15)]
        # A task that is slow to clean up is not called deaf at once, so a few more than nine may start.
        assert kinds[:8] == [HandlerTimeout] * 8
        assert kinds[11:] == [HandlerStuck] * 4
        assert calls <= 11
        error = await outcome(batcher.submit(1))
        assert type(error) is HandlerStuck
        assert error.stuck > error.allowed == 8
        assert "'deaf'" in str(error)
        await anyio.sleep(600)
        assert await batcher.submit(1) == 1
        assert counted(batcher).failed == 16


async def test_what_a_handler_returns_after_its_timeout_reaches_nobody() -> None:
    """Its callers have their answer; a second one must not disturb anything."""

    async def handler(items: list[int]) -> list[int]:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        current_batch().resolve(0, "late")
        return items

    async with Batcher(handler, handler_timeout=1.0) as batcher:
        assert type(await outcome(batcher.submit(0))) is HandlerTimeout
        before = counted(batcher)
        await anyio.sleep(10)
        after = counted(batcher)
        assert (after.batches, after.items, after.failed) == (
            before.batches,
            before.items,
            before.failed,
        )


async def test_an_error_that_the_handler_raises_on_its_cancellation_does_not_replace_the_timeout() -> (
    None
):
    """Rolling back may fail too; the callers were promised a HandlerTimeout."""

    async def handler(items: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("rollback")

    async with Batcher(handler, handler_timeout=1.0) as batcher:
        assert type(await outcome(batcher.submit(0))) is HandlerTimeout
