"""What is no list of results is refused by what it is, on every way that results can take."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import numpy as np
import pytest
from support import Recorder, counted, outcomes

from microbatch import Batcher, BatchFailed, ItemNotFound, ResultCountError, current_batch
from microbatch.layers import atomic, bisecting, by_key, per_item, routed, validated

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


class Column:
    """A column of a table that iterates over such."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return 3


class Table:
    """As many rows as columns; iterating gives columns: what a DataFrame is like."""

    def __init__(self, elements: list[Any]) -> None:
        self._elements = elements

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(self._elements)


class Interchanging(Table):
    def __dataframe__(self) -> Any:
        raise AssertionError("it is enough that it is there")


class Labelled(Table):
    @property
    def columns(self) -> Any:
        return tuple(getattr(element, "name", element) for element in self._elements)


class Shaped(Table):
    shape = (3, 3)


class Dictionary:
    """Behaves as a mapping without being registered as one."""

    def __init__(self) -> None:
        self._items = {0: "a", 1: "b", 2: "c"}

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(self._items)

    def keys(self) -> Any:
        return self._items.keys()

    def values(self) -> Any:
        return self._items.values()

    def items(self) -> Any:
        return self._items.items()


NO_RESULTS = [
    pytest.param(Interchanging(["id", "name", "total"]), id="interchange"),
    pytest.param(Labelled(["id", "name", "total"]), id="labels"),
    pytest.param(Labelled([Column("id"), Column("name"), Column("total")]), id="named columns"),
    pytest.param(Labelled([0, 1, 2]), id="numbered columns"),
    pytest.param(Shaped(["id", "name", "total"]), id="two dimensions"),
    pytest.param(Shaped([0, 1, 2]), id="two dimensions, numbered"),
    pytest.param(Dictionary(), id="duck mapping"),
]


@pytest.mark.parametrize("returned", NO_RESULTS)
async def test_a_table_of_as_many_rows_as_columns_is_refused(returned: Any) -> None:
    """Its columns' names went out as the callers' results."""

    async def handler(items: list[int]) -> Any:
        return returned if len(items) == 3 else items

    async with Batcher(handler, name="report") as batcher:
        errors = await outcomes(*map(batcher.submit, range(3)))
        assert [type(error) for error in errors] == [TypeError] * 3
        assert str(errors[0]).startswith("the handler of batcher 'report' must return a list of 3")
        assert type(returned).__name__ in str(errors[0])
        assert await batcher.submit(1) == 1


@pytest.mark.parametrize("returned", NO_RESULTS)
@pytest.mark.parametrize("layer", [atomic, bisecting, lambda h: validated(h, int), lambda h: routed({1: h}, by=lambda _: 1)])  # fmt: skip
async def test_layers_refuse_the_same(layer: Any, returned: Any) -> None:
    """A layer looks at what its handler returned before the batcher does."""

    async def handler(items: list[int]) -> Any:
        if len(items) < 3:
            raise LookupError(items)
        return returned

    try:
        results = await layer(handler)([0, 1, 2])
    except TypeError as error:
        results = [error]
    assert all(isinstance(result, TypeError | LookupError) for result in results)


@pytest.mark.parametrize("found", [*NO_RESULTS, pytest.param({1: 2}, id="mapping")])
async def test_rows_by_key_are_no_columns(found: Any) -> None:
    """by_key takes any iterable of rows, so it has to look as well."""

    async def find(items: list[int]) -> Any:
        return found

    with pytest.raises(TypeError, match="must return an iterable of rows, got"):
        await by_key(find, row_key=lambda row: row)([0, 1, 2])


class Rows(Table):
    """A table that iterates over its rows, and knows its columns."""

    columns = ("id", "name", "total")
    shape = (3, 3)


class Incomparable(list[int]):
    """A row that will not be compared."""

    def __eq__(self, other: object) -> bool:
        raise LookupError

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "row", [(1, "b", 2.0), np.arange(3), Incomparable([1, 2, 3])], ids=["tuple", "array", "odd"]
)
async def test_a_table_that_iterates_over_its_rows_is_a_list_of_results(row: Any) -> None:
    """It is about what iterating gives, not about names of attributes."""
    rows = [row, (0, "a", 1.0), row]

    async def handler(items: list[int]) -> Any:
        return Rows(rows)

    async with Batcher[int, Any](handler) as batcher:
        results = await outcomes(*[batcher.submit_nowait(item) for item in range(3)])
    assert all(result is row for result, row in zip(results, rows, strict=True))


# --- results that nobody awaits ---------------------------------------------------------------------------------


async def answer(item: int) -> int:
    return item


class Awaitable:
    def __await__(self) -> Any:
        yield


AWAITABLES = [
    pytest.param(answer, id="coroutine"),
    pytest.param(lambda item: Awaitable(), id="awaitable"),
]


def check_refused(errors: list[Any], name: str) -> None:
    """Each has the reason, and nothing else warned of it."""
    assert [type(error) for error in errors] == [TypeError] * len(errors)
    for error in errors:
        assert repr(name) in str(error)
        assert "which nobody awaits: await it first" in str(error)


@pytest.mark.parametrize("make", AWAITABLES)
@pytest.mark.parametrize("kind", ["async", "thread"])
@pytest.mark.real_time
async def test_a_list_of_awaitables_is_refused_and_closed(make: Any, kind: str) -> None:
    """`[fetch(item) for item in items]` went out unawaited: each caller got a coroutine."""

    def plain(items: list[int]) -> Any:
        return [make(item) for item in items]

    async def handler(items: list[int]) -> Any:
        return plain(items)

    gc.collect()  # what earlier tests left would complain here
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with Batcher(handler if kind == "async" else plain, name="lazy") as batcher:
            check_refused(await outcomes(*map(batcher.submit, range(3))), "lazy")
            assert counted(batcher).failed == 3
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


async def test_a_single_awaitable_among_results_is_named() -> None:
    """The message says where it is."""

    async def handler(items: list[int]) -> Any:
        return [0, answer(1), ValueError(2)]

    async with Batcher(handler, name="lazy") as batcher:
        errors = await outcomes(*map(batcher.submit, range(3)))
    check_refused(errors, "lazy")
    assert "must return results, but the one at index 1 is a coroutine" in str(errors[0])


@pytest.mark.parametrize("make", AWAITABLES)
async def test_an_awaitable_from_a_generator_stops_it(make: Any) -> None:
    """Like every other mistake of a generator's: those who have their result keep it."""

    async def handler(items: list[int]) -> Any:
        yield 0, items[0]
        yield 1, make(1)

    async with Batcher[int, int](handler, name="lazy") as batcher:
        good, *bad = await outcomes(*[batcher.submit_nowait(item) for item in range(3)])
    assert good == 0
    check_refused(bad, "lazy")


@pytest.mark.parametrize("make", AWAITABLES)
async def test_an_awaitable_is_not_resolved_with(make: Any) -> None:
    """The call raises, and the item still waits for its outcome."""

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        with pytest.raises(TypeError, match=r"result is a .*, which nobody awaits"):
            batch.resolve(0, make(1))
        return items

    async with Batcher(handler) as batcher:
        assert await outcomes(*map(batcher.submit, range(3))) == [0, 1, 2]


@pytest.mark.parametrize("make", AWAITABLES)
@pytest.mark.parametrize("layer", [atomic, bisecting, lambda h: validated(h, int), lambda h: routed({1: h}, by=lambda _: 1)])  # fmt: skip
async def test_layers_refuse_awaitables(layer: Any, make: Any) -> None:
    """Without a batcher too."""

    async def handler(items: list[int]) -> Any:
        return [make(item) for item in items]

    try:
        results = await layer(handler)([1, 2])
    except TypeError as error:
        results = [error]
    assert all("which nobody awaits" in str(result) for result in results)


async def test_an_item_whose_own_result_is_awaitable_fails_alone() -> None:
    """In by_key and per_item each result is one item's own business."""

    async def find(items: list[int]) -> dict[int, Any]:
        return {0: "a", 1: answer(1)}

    async def twice(item: int) -> Any:
        return answer(item) if item else "a"

    for layered in (by_key(find), per_item(twice)):
        good, bad = await layered([0, 1])
        assert good == "a"
        assert "which nobody awaits" in str(bad)


class Claiming(type):
    """A class whose own class can be awaited; its instances cannot."""

    def __await__(cls) -> Any:
        yield


class Plain(metaclass=Claiming):
    pass


async def test_a_result_is_not_awaitable_for_what_its_class_is() -> None:
    """What can be awaited is told by the result."""

    async def handler(items: list[int]) -> list[Any]:
        return [Plain() for _ in items]

    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(2)))
    assert [type(result) for result in results] == [Plain] * 2


# --- errors name their batcher, and by_key what it did not find ------------------------------------------------


async def test_a_wrong_count_names_the_batcher_through_layers() -> None:
    """A program has many batchers, and a log one line."""

    async def handler(items: list[int]) -> list[int]:
        return items[1:]

    for layered in (handler, atomic(handler), validated(atomic(handler), int)):
        async with Batcher(layered, name="orders") as batcher:
            errors = await outcomes(*map(batcher.submit, range(3)))
        assert {(type(error), error.name) for error in errors} == {(ResultCountError, "orders")}
    with pytest.raises(ResultCountError, match=r"^the handler must give one result"):
        await atomic(handler)([1, 2])


async def test_a_failed_group_names_the_batcher() -> None:
    """What submit_many raises stands in a log alone."""
    async with Batcher(Recorder(fails=(1,)), name="orders") as batcher:
        with pytest.raises(BatchFailed, match=r"^batcher 'orders': 1 of 3 items failed"):
            await batcher.submit_many(range(3))


async def test_an_aborted_item_names_the_batcher() -> None:
    """The same for what all-or-nothing layers give to the good ones."""
    layers = (
        atomic(Recorder(fails=(1,))),
        validated(Recorder(), lambda item: 1 // (item - 1), mode="reject"),
    )
    for layered in layers:
        async with Batcher(layered, name="orders") as batcher:
            errors = await outcomes(*map(batcher.submit, range(3)))
        assert "the batch of batcher 'orders' was aborted" in str(errors[0])


@pytest.mark.parametrize(("missing", "expected"), [
    (None, None),
    ([], []),
    (lambda key: f"no {key}", "no 2"),
    (LookupError, LookupError),
    (LookupError("gone"), LookupError),
    (lambda key: 1 // 0, ZeroDivisionError),
])  # fmt: skip
async def test_missing_says_what_an_item_gets_that_nothing_was_found_for(
    missing: Any, expected: Any
) -> None:
    """A value, or a function of the key; what it raises is that item's alone."""

    async def find(items: list[str]) -> Any:
        return {1: "one"}

    async def select(items: list[str]) -> Any:
        return [(1, "one")]

    for layered in (
        by_key(find, key=int, missing=missing),
        by_key(select, key=int, row_key=lambda row: row[0], missing=missing),
    ):
        good, bad = await layered(["1", "2"])
        assert good in ("one", (1, "one"))
        assert bad == expected if not isinstance(expected, type) else type(bad) is expected
        assert bad is not missing or missing is None or missing == []


async def test_what_was_not_found_is_an_item_error_and_a_key_error() -> None:
    """Both habits of catching it work, and it is not sent again."""

    async def find(items: list[int]) -> dict[int, str]:
        return {}

    async with Batcher(by_key(find)) as batcher:
        with pytest.raises(KeyError) as caught:
            await batcher.submit(7)
        report = await batcher.submit_many_report([7, 8])
    assert type(caught.value) is ItemNotFound
    assert (caught.value.key, caught.value.retryable) == (7, False)
    assert report.errors == {"not_found": 2}


async def test_a_key_error_of_the_key_function_is_that_items_own() -> None:
    """It is not mistaken for a row that was not found."""

    async def find(items: list[Any]) -> dict[int, str]:
        return {1: "one"}

    layered = by_key(find, key=lambda item: item["id"], missing=None)
    good, bad, none = await layered([{"id": 1}, {}, {"id": 2}])
    assert (good, none) == ("one", None)
    assert type(bad) is KeyError
