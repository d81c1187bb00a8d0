"""by_key: rows in any order or a mapping, given back to the items by their key."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from layers_support import told

from microbatch.errors import ItemError
from microbatch.layers import by_key

pytestmark = pytest.mark.anyio


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
