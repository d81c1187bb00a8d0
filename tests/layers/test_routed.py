"""routed: each kind of item to its own handler."""

from __future__ import annotations

from typing import Any

import pytest
from layers_support import echo, told

from microbatch.errors import ItemError
from microbatch.layers import routed

pytestmark = pytest.mark.anyio


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
