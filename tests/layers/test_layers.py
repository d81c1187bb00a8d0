"""Layers by themselves, without a Batcher: what each does to the items, the results and the errors."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import BACKENDS, programs, run, turns

from microbatch.errors import BatchAborted, HandlerCrashed, ItemError, ResultCountError, Skipped
from microbatch.layers import (
    atomic,
    bisecting,
    by_key,
    per_item,
    rate_limited,
    routed,
    validated,
)
from microbatch.layers._rate_limited import TokenBucket

pytestmark = pytest.mark.anyio


class PoisonError(Exception):
    """What a backend raises for bad data."""


class Backend:
    """A bulk handler that fails as a whole when one of its items is poison."""

    def __init__(self, poison: Any = (), error: type[Exception] = PoisonError) -> None:
        self.poison = set(poison)
        self.error = error
        self.calls: list[list[Any]] = []

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.calls.append(list(items))
        bad = [item for item in items if item in self.poison]
        items.clear()  # a handler owns its list
        if bad:
            raise self.error(bad[0])
        return [item * 10 for item in self.calls[-1]]


async def echo(items: list[Any]) -> list[Any]:
    return list(items)


def told(results: list[Any]) -> list[Any]:
    """Exceptions as their class's name, so that results can be compared."""
    return [type(r).__name__ if isinstance(r, Exception) else r for r in results]


# --- bisecting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [0, 17, 63])
async def test_one_poison_item_in_64_costs_at_most_13_calls(poison: int) -> None:
    """2 * log2(64) + 1; a call for each item would be 65."""
    backend = Backend(poison=[poison])
    results = await bisecting(backend, isolate_on=PoisonError)(list(range(64)))
    assert len(backend.calls) <= 2 * math.log2(64) + 1
    assert isinstance(results[poison], PoisonError)
    assert results[poison].args == (poison,)
    assert [r for r in results if not isinstance(r, Exception)] == [
        item * 10 for item in range(64) if item != poison
    ]


@given(data=st.data(), count=st.integers(1, 200))
def test_k_poison_items_of_n_stay_within_the_bound(data: st.DataObject, count: int) -> None:
    """For every n and k, wherever they stand: 2k * ceil(log2 n) + 1 calls, and never over 2n - 1."""
    poison = data.draw(st.sets(st.integers(0, count - 1)))
    backend = Backend(poison=poison)

    async def attempt() -> list[Any]:
        try:
            return await bisecting(backend)(list(range(count)))
        except PoisonError as error:
            assert count == 1
            return [error]

    results = run("asyncio", attempt)
    bound = 2 * len(poison) * math.ceil(math.log2(count)) + 1 if count > 1 else 1
    assert len(backend.calls) <= min(bound, 2 * count - 1)
    for index, result in enumerate(results):
        if index in poison:
            assert isinstance(result, PoisonError)
            assert result.args == (index,)
        else:
            assert result == index * 10


async def test_what_fails_every_time_is_not_split_for_ever() -> None:
    """A backend that is down costs two calls an item at the very most, and every item its own error."""
    backend = Backend(poison=range(64))
    results = await bisecting(backend)(list(range(64)))
    assert len(backend.calls) == 127
    assert len({id(error) for error in results}) == 64
    assert all(isinstance(error, PoisonError) for error in results)


async def test_an_error_that_is_not_to_be_isolated_fails_the_batch_in_one_call() -> None:
    """While the backend is down, halving would only make it worse."""
    backend = Backend(poison=[3], error=ConnectionError)
    with pytest.raises(ConnectionError):
        await bisecting(backend, isolate_on=(PoisonError, ValueError))(list(range(64)))
    assert len(backend.calls) == 1


async def test_a_backend_that_asks_to_come_back_later_is_not_halved() -> None:
    """A retryable ItemError is about the backend; 127 calls would be the answer to "too many requests"."""
    calls = 0

    async def busy(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise ItemError("slow down", code="busy", retryable=True)

    with pytest.raises(ItemError, match="slow down"):
        await bisecting(busy)(list(range(64)))
    assert calls == 1


async def test_a_predicate_says_what_is_isolated() -> None:
    """Database drivers tell bad data from bad luck by a code, not by the class."""
    backend = Backend(poison=[2])
    results = await bisecting(backend, isolate_on=lambda error: error.args == (2,))([1, 2, 3, 4])
    assert told(results) == [10, "PoisonError", 30, 40]


async def test_a_part_that_fails_otherwise_fails_in_one_piece_with_copies() -> None:
    """The connection went while the bad item was looked for: those left get that error, each its own."""
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise PoisonError
        if 3 in items:
            raise ConnectionError("gone")
        return items

    results = await bisecting(handler, isolate_on=PoisonError)([1, 2, 3, 4])
    assert calls == 3
    assert results[:2] == [1, 2]
    assert told(results[2:]) == ["ConnectionError", "ConnectionError"]
    assert results[2] is not results[3]


async def test_a_bad_half_is_taken_apart_before_the_next_half_is_called() -> None:
    """Breadth first, an unrelated bad row let an older write of a key replace a newer one."""
    backend = Backend(poison=[0])
    await bisecting(backend)(list(range(8)))
    assert backend.calls == [
        [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [4, 5, 6, 7],
    ]  # fmt: skip


@given(data=st.data(), count=st.integers(2, 100))
def test_the_last_of_two_writes_of_a_key_wins_whatever_else_is_bad(
    data: st.DataObject, count: int
) -> None:
    """Effects come in the items' order: the table looks as if the good items had come one by one."""
    keys = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    poison = data.draw(st.sets(st.integers(0, count - 1), max_size=5))
    table: dict[int, int] = {}
    effects: list[int] = []

    async def upsert(rows: list[tuple[int, int]]) -> None:
        if any(index in poison for index, _ in rows):
            raise PoisonError
        effects.extend(index for index, _ in rows)
        table.update({key: index for index, key in rows})

    run("asyncio", bisecting(upsert), list(enumerate(keys)))
    good = [index for index in range(count) if index not in poison]
    assert effects == good
    assert table == {keys[index]: index for index in good}


async def test_errors_that_the_handler_returns_are_left_alone() -> None:
    """They are isolated already."""
    results = await bisecting(Backend())([1])
    assert results == [10]

    async def some(items: list[int]) -> list[Any]:
        return [Skipped("old") if item == 2 else item for item in items]

    assert told(await bisecting(some)([1, 2])) == [1, "Skipped"]


async def test_a_wrong_count_is_isolated_like_any_error() -> None:
    """The handler loses rows of one kind: the others come through."""

    async def loses(items: list[int]) -> list[int]:
        return [item for item in items if item != 2]

    assert told(await bisecting(loses)([1, 2, 3, 4])) == [1, "ResultCountError", 3, 4]


@pytest.mark.parametrize(
    ("isolate_on", "error", "message"),
    [
        ((), ValueError, r"isolate_on must name at least one exception class, got \(\)"),
        (
            int,
            TypeError,
            "isolate_on must be an exception class, a tuple of them or a predicate, got <class 'int'>",
        ),
        ((ValueError, 3), TypeError, "isolate_on must be an exception class, a tuple"),
        (KeyboardInterrupt, TypeError, "isolate_on must be an exception class, a tuple"),
        (
            "x",
            TypeError,
            "isolate_on must be an exception class, a tuple of them or a predicate, got 'x'",
        ),
    ],
)
def test_bisecting_refuses_what_is_no_error_to_isolate(
    isolate_on: Any, error: type[Exception], message: str
) -> None:
    """At once, by name."""
    with pytest.raises(error, match=message):
        bisecting(echo, isolate_on=isolate_on)


# --- rate_limited -----------------------------------------------------------------------------------------------


async def schedule(limited: Any, batches: list[list[Any]], starts: list[float]) -> list[float]:
    """Call once for each batch, all at once; return how long after the beginning each call passed."""
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for batch in batches:
            tasks.start_soon(limited, batch)
            await turns(2)
    return [pytest.approx(start - began) for start in starts]


def clock() -> tuple[Any, list[float], list[Any]]:
    """A handler that notes when it was called, and for what."""
    starts: list[float] = []
    seen: list[Any] = []

    async def handler(items: list[Any]) -> list[Any]:
        starts.append(anyio.current_time())
        seen.append(items)
        return items

    return handler, starts, seen


async def test_fifty_calls_at_ten_a_second_start_a_tenth_apart() -> None:
    """With burst 1: 0, 0.1, ... 4.9 seconds, exactly, and in the order in which they came."""
    handler, starts, seen = clock()
    batches = [[number] for number in range(50)]
    assert await schedule(rate_limited(handler, 10), batches, starts) == [n / 10 for n in range(50)]
    assert seen == batches


async def test_a_burst_passes_at_once_and_is_paid_for_later() -> None:
    """Five at once, then one every half second."""
    handler, starts, _ = clock()
    batches = [[n] for n in range(9)]
    got = await schedule(rate_limited(handler, 2, burst=5), batches, starts)
    assert got == [0, 0, 0, 0, 0, 0.5, 1, 1.5, 2]


async def test_items_can_be_counted_instead_of_calls() -> None:
    """One call of 100 items uses 100 tokens: limits of APIs often count operations."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 100, burst=100, cost=lambda item: 1)
    assert await schedule(limited, [[0] * 100, [0] * 50, [0] * 100], starts) == [0, 0.5, 1.5]


async def test_each_item_may_have_a_cost_of_its_own() -> None:
    """Tokens of a language model, bytes, rows: 60 a minute, spent as 30 + 30, then 15, then 45."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 60, per=60.0, burst=60, cost=lambda item: item)
    assert await schedule(limited, [[30, 30], [15], [20, 25]], starts) == [0, 15, 60]


async def test_a_batch_costlier_than_the_burst_passes_late() -> None:
    """It could never find its tokens in the bucket; it waits until as many have come."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 10, burst=10, cost=lambda item: 1)
    assert await schedule(limited, [[0] * 30, [0] * 10], starts) == [2, 3]


async def test_idle_time_fills_the_bucket_but_no_further() -> None:
    """An hour of silence allows the burst, not an hour's worth of calls."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 1, burst=2)
    await schedule(limited, [[0]] * 3, starts)
    await anyio.sleep(3600)
    starts.clear()
    assert await schedule(limited, [[0]] * 4, starts) == [0, 0, 1, 2]


async def test_a_cancelled_call_takes_no_tokens_and_the_next_moves_up() -> None:
    """Cancelled at the head of the queue or within it."""
    handler, starts, seen = clock()
    limited = rate_limited(handler, 1)
    began = anyio.current_time()
    scopes = [anyio.CancelScope() for _ in range(5)]

    async def call(number: int) -> None:
        with scopes[number]:
            await limited([number])

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(call, number)
            await turns(2)
        await anyio.sleep(0.5)
        scopes[1].cancel()
        scopes[3].cancel()
    assert seen == [[0], [2], [4]]
    assert [start - began for start in starts] == pytest.approx([0, 1, 2])


async def test_a_failed_call_has_used_its_tokens() -> None:
    """The backend counted it."""
    starts: list[float] = []

    async def fails(items: list[int]) -> list[int]:
        starts.append(anyio.current_time())
        raise ConnectionError

    limited = rate_limited(fails, 1)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await limited([1])
    assert [b - a for a, b in itertools.pairwise(starts)] == pytest.approx([1, 1])


def test_each_event_loop_has_a_bucket_of_its_own() -> None:
    """A limited handler serves a second event loop after the first has ended."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 1)
    for _ in range(2):
        starts.clear()
        assert run("asyncio", schedule, limited, [[0]] * 2, starts) == [0, 1]


async def test_a_cost_that_is_none_fails_the_batch_by_name() -> None:
    """A wrong sum would let too much through."""
    limited = rate_limited(echo, 1, cost=lambda item: item)
    with pytest.raises(ValueError, match=r"cost\(item\) must be at least 0, got -1"):
        await limited([-1])
    with pytest.raises(TypeError, match=r"cost\(item\) must be a number, got 'x'"):
        await limited(["x"])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rate": 0}, ValueError, "rate must be greater than 0, got 0"),
        ({"rate": "1"}, TypeError, "rate must be a number, got '1'"),
        ({"rate": 1, "per": 0.0}, ValueError, "per must be greater than 0"),
        ({"rate": 1, "burst": 0}, ValueError, "burst must be greater than 0"),
        ({"rate": 1, "burst": float("inf")}, ValueError, "burst must be finite"),
        ({"rate": 1, "cost": 3}, TypeError, "cost must be a function or None, got 3"),
    ],
)
def test_rate_limited_refuses_bad_settings(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """By name, with the rule and the value."""
    with pytest.raises(error, match=message):
        rate_limited(echo, **settings)


@given(
    rate=st.floats(0.1, 100),
    burst=st.floats(0.1, 50),
    calls=programs(st.tuples(st.floats(0, 10), st.floats(0, 100), st.floats(0, 5)), 30),
)
def test_no_window_sees_more_than_its_share(
    rate: float, burst: float, calls: list[tuple[float, float, float]]
) -> None:
    """Between any two starts the cost is at most burst plus rate times the time, or one batch's own.

    However late the event loop wakes up whoever waits.
    """
    bucket = TokenBucket(rate, burst)
    now = 0.0
    passed: list[tuple[float, float]] = []
    for pause, tokens, delay in calls:
        now += pause
        start = bucket.start(now, tokens)
        assert start >= now
        start = start if start == now else start + delay
        bucket.take(now, tokens, start)
        passed.append((start, tokens))
        now = start
    for i, (first, heaviest) in enumerate(passed):
        spent = 0.0
        for last, tokens in passed[i:]:
            spent += tokens
            allowed = max(burst, heaviest) + rate * (last - first)
            assert spent <= allowed * (1 + 1e-9) + 1e-6


# --- by_key -----------------------------------------------------------------------------------------------------


async def test_each_item_gets_its_own_row_of_a_mapping() -> None:
    """What is missing fails alone, with KeyError and its key."""

    async def find(ids: list[int]) -> dict[int, str]:
        assert ids == [3, 1, 2]
        ids.clear()
        return {1: "one", 3: "three", 9: "nobody asked"}

    results = await by_key(find)([3, 1, 2])
    assert results[:2] == ["three", "one"]
    assert isinstance(results[2], KeyError)
    assert results[2].args == (2,)


async def test_rows_may_come_in_any_order() -> None:
    """As a SELECT ... WHERE id IN (...) gives them, fewer than were asked for."""

    async def select(users: list[dict[str, int]]) -> Any:
        return iter([{"id": 3, "name": "c"}, {"id": 1, "name": "a"}])

    keyed = by_key(select, key=lambda user: user["user"], row_key=lambda row: row["id"])
    results = await keyed([{"user": 1}, {"user": 2}, {"user": 3}, {"user": 1}])
    assert [r if isinstance(r, KeyError) else r["name"] for r in results[:1]] == ["a"]
    assert told(results)[1] == "ItemNotFound"
    assert results[2]["name"] == "c"
    assert results[3] is results[0]


async def test_two_rows_of_one_key_fail_its_items_alone() -> None:
    """A join that multiplies rows would go unseen if the last one won."""

    async def select(ids: list[int]) -> list[tuple[int, str]]:
        return [(1, "a"), (2, "b"), (1, "c")]

    results = await by_key(select, row_key=lambda row: row[0])([1, 2, 1])
    assert told(results) == ["ValueError", (2, "b"), "ValueError"]
    assert str(results[0]) == "by_key expects one row for each key, got more for 1"
    assert results[0] is not results[2]


async def test_a_mapping_may_make_up_what_is_missing() -> None:
    """Rows grouped by key: who has none gets an empty list."""

    async def orders(ids: list[int]) -> Any:
        grouped: Any = defaultdict(list)
        grouped[1].append("order")
        return grouped

    assert await by_key(orders)([1, 2]) == [["order"], []]


async def test_a_key_function_that_raises_fails_its_item_alone() -> None:
    """So does a key that cannot be hashed, and an exception in the mapping."""

    async def find(items: list[Any]) -> dict[Any, Any]:
        return {1: "one", 2: ItemError("locked", code="locked")}

    results = await by_key(find, key=lambda item: item["id"])(
        [{"id": 1}, {}, {"id": []}, {"id": 2}]
    )
    assert told(results) == ["one", "KeyError", "TypeError", "ItemError"]


@pytest.mark.real_time
async def test_a_plain_function_is_asked_in_a_thread() -> None:
    """Most database drivers block."""
    import threading

    def find(ids: list[int]) -> dict[int, int]:
        return {1: threading.get_ident()}

    assert await by_key(find)([1]) != [threading.get_ident()]


async def test_by_key_says_what_it_needs() -> None:
    """A list where a mapping is due, a mapping where rows are due."""

    async def rows(ids: list[int]) -> Any:
        return [1]

    async def mapping(ids: list[int]) -> Any:
        return {1: 1}

    with pytest.raises(
        TypeError, match=r"must return a mapping by key, got list: .* give row_key="
    ):
        await by_key(rows)([1])
    with pytest.raises(TypeError, match="with row_key= must return an iterable of rows, got dict"):
        await by_key(mapping, row_key=id)([1])
    with pytest.raises(TypeError, match="key must be a function or None, got 'id'"):
        by_key(mapping, key="id")  # type: ignore[call-overload]


# --- per_item ---------------------------------------------------------------------------------------------------


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


# --- atomic -----------------------------------------------------------------------------------------------------


async def fails_odd(items: list[int]) -> list[Any]:
    return [ValueError(item) if item % 2 else item for item in items]


async def test_one_failed_item_fails_the_batch_and_is_named_to_the_others() -> None:
    """Failed items keep their own errors; the others get BatchAborted, each its own."""
    results = await atomic(fails_odd)([0, 2, 3, 4, 5])
    assert told(results) == [
        "BatchAborted",
        "BatchAborted",
        "ValueError",
        "BatchAborted",
        "ValueError",
    ]
    aborted = results[0]
    assert isinstance(aborted, BatchAborted)
    assert aborted.index == 2
    assert aborted.reason is results[2]
    assert str(aborted) == "the batch was aborted because its item 2 failed: ValueError: 3"
    assert len({id(result) for result in results}) == 5


async def test_a_batch_whose_items_are_fine_or_skipped_is_kept() -> None:
    """Skipped is told apart from failed: a duplicate must not undo the others."""

    async def upsert(items: list[int]) -> list[Any]:
        return [Skipped("duplicate") if item == 1 else item for item in items]

    assert told(await atomic(upsert)([0, 1, 2])) == [0, "Skipped", 2]


class Transaction:
    """Notes how it was entered and left."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextlib.asynccontextmanager
    async def __call__(self) -> Any:
        self.log.append("begin")
        try:
            yield
        except Exception as error:
            self.log.append(f"rollback: {type(error).__name__}")
            raise
        self.log.append("commit")


async def test_the_transaction_is_rolled_back_or_committed_around_the_call() -> None:
    """By the BatchAborted, by what the handler raised, or left normally."""
    transaction = Transaction()
    handler = atomic(fails_odd, transaction=transaction)
    assert await handler([0, 2]) == [0, 2]
    await handler([0, 1])

    async def raises(items: list[int]) -> list[int]:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await atomic(raises, transaction=transaction)([1])
    assert transaction.log == [
        "begin",
        "commit",
        "begin",
        "rollback: BatchAborted",
        "begin",
        "rollback: ConnectionError",
    ]


async def test_a_transaction_that_swallows_the_abort_changes_nothing() -> None:
    """The outcomes are decided by the items."""
    handler = atomic(fails_odd, transaction=lambda: contextlib.AsyncExitStack())  # noqa: PLW0108
    assert told(await handler([0, 1])) == ["BatchAborted", "ValueError"]

    @contextlib.asynccontextmanager
    async def swallows() -> Any:
        with contextlib.suppress(Exception):
            yield

    assert told(await atomic(fails_odd, transaction=swallows)([0, 1])) == [
        "BatchAborted",
        "ValueError",
    ]


async def test_a_commit_that_fails_fails_every_item() -> None:
    """Nothing is told before the transaction has ended."""

    @contextlib.asynccontextmanager
    async def refuses() -> Any:
        yield
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await atomic(fails_odd, transaction=refuses)([0, 2])


async def test_a_handlers_own_batch_aborted_goes_through() -> None:
    """It is not the layer's."""
    own = BatchAborted(0, ValueError())

    async def raises(items: list[int]) -> list[int]:
        raise own

    with pytest.raises(BatchAborted) as caught:
        await atomic(raises)([1])
    assert caught.value is own


def test_atomic_refuses_a_transaction_that_is_no_function() -> None:
    """An open transaction object in its place is an easy mistake."""
    with pytest.raises(TypeError, match="transaction must be a function or None, got 3"):
        atomic(echo, transaction=3)  # type: ignore[call-overload]


# --- routed -----------------------------------------------------------------------------------------------------


async def test_each_kind_goes_to_its_handler_and_results_keep_the_items_order() -> None:
    """Handlers run in the mapping's order, and only for kinds that are there."""
    order: list[str] = []

    def noting(name: str) -> Any:
        async def handler(items: list[Any]) -> list[str]:
            order.append(name)
            return [f"{name} {item['n']}" for item in items]

        return handler

    route = routed(
        {kind: noting(kind) for kind in ("create", "update", "delete")}, by=lambda i: i["op"]
    )
    items = [{"op": op, "n": n} for n, op in enumerate(["delete", "create", "delete", "create"])]
    assert await route(items) == ["delete 0", "create 1", "delete 2", "create 3"]
    assert order == ["create", "delete"]


async def test_an_unknown_kind_fails_alone() -> None:
    """With the known ones named; so does an item whose kind cannot be told, or cannot be hashed."""
    route = routed({"create": echo, "delete": echo}, by=lambda item: item[0])
    results = await route([("create",), ("drop",), (), ([],), ("delete",)])
    assert told(results) == [("create",), "ItemError", "IndexError", "TypeError", ("delete",)]
    error = results[1]
    assert isinstance(error, ItemError)
    assert str(error) == "unknown kind 'drop': known are 'create', 'delete'"
    assert (error.code, error.retryable) == ("unknown_kind", False)


async def test_a_handler_that_raises_fails_its_own_kind_alone() -> None:
    """Each of its items with a copy of its own."""

    async def fails(items: list[Any]) -> list[Any]:
        raise ConnectionError("gone")

    results = await routed({"bad": fails, "good": echo}, by=str)(["bad", "good", "bad"])
    assert told(results) == ["ConnectionError", "good", "ConnectionError"]
    assert results[0] is not results[2]


@pytest.mark.parametrize(
    ("handlers", "by", "error", "message"),
    [
        ({}, str, ValueError, "handlers must name at least one kind, got {}"),
        ([echo], str, TypeError, "handlers must be a mapping from kind to handler, got "),
        ({"a": echo}, "op", TypeError, "by must be a function from item to kind, got 'op'"),
        ({"a": 3}, str, TypeError, "handler must be a function that takes a list of items, got 3"),
    ],
)
def test_routed_refuses_bad_settings(
    handlers: Any, by: Any, error: type[Exception], message: str
) -> None:
    """At once, by name."""
    with pytest.raises(error, match=message):
        routed(handlers, by=by)


# --- validated --------------------------------------------------------------------------------------------------


def positive(item: int) -> None:
    if item <= 0:
        raise ItemError(f"{item} is not positive", code="not_positive")


async def test_bad_items_fail_and_the_good_ones_run_without_them() -> None:
    """All bad items are told at once, not only the first."""
    backend = Backend()
    results = await validated(backend, positive)([1, -1, 2, 0])
    assert told(results) == [10, "ItemError", 20, "ItemError"]
    assert [str(r) for r in results if isinstance(r, ItemError)] == [
        "-1 is not positive",
        "0 is not positive",
    ]
    assert backend.calls == [[1, 2]]


async def test_reject_runs_nothing_if_one_item_is_bad() -> None:
    """The good ones are aborted, told apart from the failed."""
    backend = Backend()
    handler = validated(backend, positive, mode="reject")
    results = await handler([1, -1, 2, 0])
    assert told(results) == ["BatchAborted", "ItemError", "BatchAborted", "ItemError"]
    aborted = results[0]
    assert isinstance(aborted, BatchAborted)
    assert (aborted.index, aborted.reason) == (1, results[1])
    assert backend.calls == []
    assert await handler([1, 2]) == [10, 20]


async def test_a_batch_of_bad_items_only_never_reaches_the_handler() -> None:
    """In either mode."""
    backend = Backend()
    assert told(await validated(backend, positive)([0])) == ["ItemError"]
    assert told(await validated(backend, positive, mode="reject")([0])) == ["ItemError"]
    assert backend.calls == []


def test_validated_refuses_bad_settings() -> None:
    """An async validator would never be awaited, and so let everything pass."""

    async def check(item: int) -> None: ...

    with pytest.raises(TypeError, match="validate must be a plain function, got <function"):
        validated(echo, check)
    with pytest.raises(TypeError, match="validate must be a plain function, got 3"):
        validated(echo, 3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="mode must be 'skip' or 'reject', got 'drop'"):
        validated(echo, positive, mode="drop")  # type: ignore[call-overload]


# --- all of them ------------------------------------------------------------------------------------------------


async def silent(items: list[Any]) -> None:
    """Store."""


def plain(items: list[Any]) -> list[Any]:
    """Double."""
    return [item * 2 for item in items]


LAYERS: dict[str, Any] = {
    "atomic": atomic,
    "bisecting": bisecting,
    "rate_limited": lambda handler: rate_limited(handler, 1000, burst=1000),
    "routed": lambda handler: routed(
        {True: handler, False: handler}, by=lambda item: item % 2 == 0
    ),
    "validated": lambda handler: validated(handler, positive),
}


@pytest.mark.parametrize("name", LAYERS)
async def test_every_layer_takes_a_handler_that_returns_nothing(name: str) -> None:
    """Then every item's result is None."""
    assert await LAYERS[name](silent)([1, 2, 3]) == [None] * 3


@pytest.mark.real_time
@pytest.mark.parametrize("name", LAYERS)
async def test_every_layer_takes_a_plain_function(name: str) -> None:
    """Which runs in a thread, as under a Batcher."""
    assert await LAYERS[name](plain)([1, 2, 3]) == [2, 4, 6]


@pytest.mark.parametrize("name", LAYERS)
async def test_every_layer_checks_what_the_handler_returns(name: str) -> None:
    """A wrong count is an error where it happens, not three layers further out."""

    async def short(items: list[Any]) -> list[Any]:
        return items[1:]

    try:
        results = await LAYERS[name](short)([2, 4])
    except ResultCountError as error:
        results = [error, error]
    assert told(results) == ["ResultCountError"] * 2


@pytest.mark.parametrize("name", [*LAYERS, "by_key", "per_item"])
async def test_no_items_make_no_call(name: str) -> None:
    """Nor an error."""
    layers = LAYERS | {"by_key": by_key, "per_item": per_item}
    backend = Backend()
    assert await layers[name](backend)([]) == []
    assert backend.calls == []


@pytest.mark.parametrize("name", [*LAYERS, "by_key"])
def test_every_layer_refuses_generator_handlers(name: str) -> None:
    """They hand out results by themselves; a layer around one could not."""

    async def pairs(items: list[Any]) -> Any:
        yield 0, 1

    with pytest.raises(TypeError, match=r"a generator handler is not allowed here, got .*pairs"):
        (LAYERS | {"by_key": by_key})[name](pairs)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "routed"])
def test_a_layered_handler_is_named_after_the_one_inside(name: str) -> None:
    """Logs and telemetry should say what runs, not how it is wrapped; partials are looked through."""
    import functools

    layered = LAYERS[name](functools.partial(silent))
    assert (layered.__name__, layered.__qualname__) == ("silent", "silent")
    assert (layered.__module__, layered.__doc__) == (silent.__module__, "Store.")
    assert LAYERS[name](Backend()).__doc__ == Backend.__doc__


def test_routed_has_a_name_of_its_own() -> None:
    """It has no single handler inside."""
    assert LAYERS["routed"](echo).__qualname__ == "routed"


async def test_layers_nest() -> None:
    """Checked, rate-limited, with the poison found and the rest sent in halves: each layer as alone."""
    backend = Backend(poison=[3])
    handler = validated(bisecting(rate_limited(backend, 1)), positive)
    began = anyio.current_time()
    assert told(await handler([1, -1, 2, 3, 4])) == [10, "ItemError", 20, "PoisonError", 40]
    assert len(backend.calls) == 5
    assert anyio.current_time() - began == pytest.approx(4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_atomic_around_bisecting_names_the_poison_and_keeps_nothing(backend: str) -> None:
    """The order of nesting says what is meant: find it, then fail the batch for it."""
    results = run(backend, atomic(bisecting(Backend(poison=[3]))), [1, 2, 3, 4])
    assert told(results) == ["BatchAborted", "BatchAborted", "PoisonError", "BatchAborted"]
    assert results[0].index == 2
