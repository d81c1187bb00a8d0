"""bisecting: a failed batch is halved until what fails stands alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers_support import Backend, PoisonError, echo, told
from support import run

from microbatch.errors import ItemError, Skipped
from microbatch.layers import bisecting

pytestmark = pytest.mark.anyio


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
