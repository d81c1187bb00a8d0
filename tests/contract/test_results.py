"""How what a handler returns or raises becomes each caller's own outcome."""

from __future__ import annotations

import array
from collections import deque
from typing import Any

import numpy as np
import pytest
from support import counted, outcomes

from microbatch import Batcher, ItemError, ItemTooHeavy, Skipped

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.mark.parametrize("make", [
    pytest.param(list, id="list"),
    pytest.param(tuple, id="tuple"),
    pytest.param(deque, id="deque"),
    pytest.param(lambda values: array.array("i", values), id="array"),
    pytest.param(np.array, id="numpy"),
    pytest.param(lambda values: dict(enumerate(values)).values(), id="dict values"),
    pytest.param(lambda values: range(values[0], values[-1] + 1), id="range"),
])  # fmt: skip
async def test_any_sized_iterable_is_a_result(make: Any) -> None:
    """Whoever answers for the batch may answer with what it has."""

    async def handler(items: list[int]) -> Any:
        return make(items)

    async with Batcher(handler) as batcher:
        assert await outcomes(*map(batcher.submit_nowait, range(5))) == list(range(5))


async def test_rows_of_a_matrix_are_results() -> None:
    """A model's predictions: one row each."""

    async def handler(items: list[int]) -> Any:
        return np.arange(len(items) * 2).reshape(len(items), 2)

    async with Batcher(handler) as batcher:
        rows = await outcomes(*(batcher.submit_nowait(item) for item in range(3)))
    assert [row.tolist() for row in rows] == [[0, 1], [2, 3], [4, 5]]


async def test_a_handler_that_returns_none_gives_every_caller_none() -> None:
    """Writers have nothing to say but that it is done."""
    seen: list[int] = []

    async def handler(items: list[int]) -> None:
        seen.extend(items)

    async with Batcher(handler) as batcher:
        assert await outcomes(*map(batcher.submit, range(3))) == [None] * 3
        assert await batcher.submit_many([3, 4]) == [None, None]
        report = await batcher.submit_many_report([5])
        assert report[0].ok
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]


async def test_item_errors_and_skips_reach_their_own_caller() -> None:
    """A code, a field and a reason for one; its neighbours are fine."""

    async def handler(items: list[int]) -> list[Any]:
        return [
            items[0],
            ItemError("no such town", code="validation", field="town"),
            Skipped("known"),
        ]

    async with Batcher(handler) as batcher:
        first, second, third = await outcomes(*(batcher.submit_nowait(item) for item in range(3)))
    assert first == 0
    assert (second.code, second.field, str(second)) == ("validation", "town", "no such town")
    assert (type(third), third.reason) == (Skipped, "known")


async def test_a_skip_is_counted_apart_in_reports() -> None:
    """An import that finds half its rows known has not failed."""

    async def handler(items: list[int]) -> list[Any]:
        return [Skipped("known") if item % 2 else item for item in items]

    async with Batcher(handler) as batcher:
        report = await batcher.submit_many_report(range(6))
    assert (report.succeeded, report.failed, report.skipped, report.total) == (3, 0, 3, 6)


async def test_an_exception_class_is_a_value() -> None:
    """Only instances are raised."""

    async def handler(items: list[int]) -> list[Any]:
        return [ValueError for _ in items]

    async with Batcher(handler) as batcher:
        assert await batcher.submit(1) is ValueError


async def test_the_handlers_error_keeps_its_cause_for_each_caller() -> None:
    """`raise X from Y` is how handlers tell what the backend said."""

    async def handler(items: list[int]) -> list[int]:
        try:
            raise KeyError("backend")
        except KeyError as error:
            raise LookupError("handler") from error

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, range(3)))
    assert [repr(error.__cause__) for error in errors] == ["KeyError('backend')"] * 3


# --- weight -----------------------------------------------------------------------------------------------------


async def test_an_item_that_is_too_heavy_by_itself_is_refused() -> None:
    """It would never fit; nothing else is harmed."""
    sizes: list[int] = []

    async def handler(items: list[bytes]) -> None:
        sizes.append(sum(map(len, items)))

    async with Batcher(handler, weigh=len, max_batch_weight=10) as batcher:
        results = await outcomes(*map(batcher.submit, [b"x" * 4, b"x" * 11, b"x" * 10]))
        assert results[0] is results[2] is None
        error = results[1]
        assert type(error) is ItemTooHeavy
        assert isinstance(error, ValueError)
        assert (error.weight, error.allowed, error.limit) == (11, 10, "max_batch_weight")
        assert (
            str(error)
            == f"an item of weight 11 is over max_batch_weight=10 of batcher {batcher.name!r}"
        )
        with pytest.raises(ItemTooHeavy):
            batcher.submit_nowait(b"x" * 11)
        report = await batcher.submit_many_report([b"x" * 11, b"x"])
        assert report.errors == {"item_too_heavy": 1}
        assert report[0].attempts == 0
        assert counted(batcher).pending == 0
    assert max(sizes) <= 10


async def test_batches_of_heavy_items_are_as_large_as_the_weight_allows() -> None:
    """Items of 12 kB against 600 kB a call: fifty at a time."""
    sizes: list[int] = []

    async def handler(items: list[int]) -> None:
        sizes.append(len(items))

    async with Batcher(handler, weigh=lambda item: 12_000, max_batch_weight=600_000) as batcher:
        await batcher.submit_many(range(175))
    assert sizes == [50, 50, 50, 25]


class AlwaysEqual(type):
    """Overloads == as a query builder does: what comes of it is true, whatever is compared."""

    def __eq__(cls, other: object) -> bool:
        return True

    __hash__ = type.__hash__


class NeverCompared(type):
    def __eq__(cls, other: object) -> bool:
        raise TypeError("not to be compared")

    __hash__ = type.__hash__


class Unhashable(type):
    def __eq__(cls, other: object) -> bool:
        return cls is other

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("meta", [AlwaysEqual, NeverCompared, Unhashable])
async def test_a_results_class_may_compare_and_hash_as_it_likes(meta: type) -> None:
    """An exception among such results is still raised, in its own caller."""
    result = meta("Row", (), {})()

    async def handler(items: list[int]) -> list[Any]:
        return [ValueError("no") if item == 1 else result for item in items]

    async with Batcher(handler, max_batch_size=3) as batcher:
        first, second, third = await outcomes(*map(batcher.submit, range(3)))
        assert first is result
        assert type(second) is ValueError
        assert third is result
        assert await outcomes(batcher.submit(0), batcher.submit(2)) == [result, result]
        assert (counted(batcher).items, counted(batcher).failed) == (5, 1)
