"""handler: what a bulk handler is, and how what it returns becomes a list of results."""

from __future__ import annotations

import functools
import re
from array import array
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch import ResultCountError
from microbatch._pure.handler import handler_kind, name_of, results_of

# --- what a handler is ------------------------------------------------------------------------------------------


async def coroutine(items: list[Any]) -> list[Any]:
    return items


def plain(items: list[Any]) -> list[Any]:
    return items


async def pairs(items: list[Any]) -> Any:
    for pair in enumerate(items):
        yield pair


def generator(items: list[Any]) -> Any:
    yield from items


def call(items: list[Any]) -> Any:
    """Return an awaitable: no coroutine function, as far as one can see from outside."""
    return coroutine(items)


class Calls:
    """One class with a method of each kind."""

    async def coroutine(self, items: list[Any]) -> list[Any]:
        return items

    def plain(self, items: list[Any]) -> list[Any]:
        return items

    async def pairs(self, items: list[Any]) -> Any:
        for pair in enumerate(items):
            yield pair


class Coroutine:
    async def __call__(self, items: list[Any]) -> list[Any]:
        return items


class Pairs:
    async def __call__(self, items: list[Any]) -> Any:
        for pair in enumerate(items):
            yield pair


class Plain:
    def __call__(self, items: list[Any]) -> list[Any]:
        return items


class Generator:
    def __call__(self, items: list[Any]) -> Any:
        yield from items


class Meta(type):
    async def __call__(cls, items: list[Any]) -> list[Any]:  # type: ignore[override]
        return items


class Odd(metaclass=Meta):
    pass


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (coroutine, "async"),
        (functools.partial(coroutine), "async"),
        (functools.partial(functools.partial(coroutine)), "async"),
        (Calls().coroutine, "async"),
        (Coroutine(), "async"),
        (functools.partial(Coroutine()), "async"),
        (pairs, "generator"),
        (functools.partial(pairs), "generator"),
        (Calls().pairs, "generator"),
        (Pairs(), "generator"),
        (plain, "thread"),
        (functools.partial(plain), "thread"),
        (Calls().plain, "thread"),
        (Plain(), "thread"),
        (call, "thread"),
        (list, "thread"),
        (sorted, "thread"),
        (Coroutine, "thread"),
        (Odd, "thread"),
    ],
)
def test_how_a_handler_is_run(handler: Any, kind: str) -> None:
    """Partials and `__call__` are looked through; what only returns an awaitable is seen when it does."""
    assert handler_kind(handler) == kind


@pytest.mark.parametrize("handler", [None, 5, "handler", [coroutine]])
def test_what_cannot_be_called_is_no_handler(handler: Any) -> None:
    """Refused where it was written, not at the first item."""
    message = f"handler must be a function that takes a list of items, got {handler!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        handler_kind(handler)


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (generator, "generator"),
        (functools.partial(generator), "generator"),
        (Generator(), "Generator"),
    ],
)
def test_a_plain_generator_function_is_refused(handler: Any, name: str) -> None:
    """Its results could not be told from the items of a batch."""
    message = (
        f"handler must not be a plain generator function, got {name}: "
        "return a list, or make it `async def` and yield (index, result) pairs"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        handler_kind(handler)


def test_a_handlers_name_is_its_qualified_one() -> None:
    """It stands in every error and log; an object without a name goes by its class."""
    assert name_of(coroutine) == "coroutine"
    assert name_of(functools.partial(functools.partial(coroutine))) == "coroutine"
    assert name_of(Calls().plain) == "Calls.plain"
    assert name_of(Plain()) == "Plain"
    assert name_of(functools.partial(Plain())) == "Plain"
    assert name_of(list) == "list"


# --- what a handler returns -------------------------------------------------------------------------------------


@given(st.lists(st.integers() | st.none(), max_size=8))
def test_any_sized_iterable_becomes_a_list_of_results(values: list[Any]) -> None:
    """A list goes through as it is; others are read once."""
    assert results_of(values, len(values)) is values
    assert results_of(tuple(values), len(values)) == values
    assert results_of(deque(values), len(values)) == values
    assert results_of(dict.fromkeys(range(3)).values(), 3) == [None, None, None]
    assert results_of(range(len(values)), len(values)) == list(range(len(values)))


def test_arrays_become_lists_of_their_elements() -> None:
    """What a model returns, as it is."""
    assert results_of(array("i", [1, 2]), 2) == [1, 2]
    assert results_of(np.array([1, 2]), 2) == [1, 2]
    rows = results_of(np.array([[1, 2], [3, 4]]), 2)
    assert [list(row) for row in rows] == [[1, 2], [3, 4]]


def test_none_gives_every_item_none() -> None:
    """A handler that only writes has nothing to tell."""
    assert results_of(None, 3) == [None, None, None]
    assert results_of(None, 0) == []


class Sized:
    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    "returned",
    [
        "ab",
        b"ab",
        bytearray(b"ab"),
        memoryview(b"ab"),
        {0: "a", 1: "b"},
        {0: "a", 1: "b"}.keys(),
        {1, 2},
        frozenset({1, 2}),
        5,
        iter([1, 2]),
        (item for item in (1, 2)),
        Sized(),
    ],
)
def test_what_has_no_positions_is_refused(returned: Any) -> None:
    """A dict of two entries has the right length and the wrong meaning."""
    message = (
        "the handler must return a list of 2 results (or another sized iterable that keeps the items' "
        f"order, or None), got {type(returned).__name__}"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        results_of(returned, 2)


@given(st.integers(0, 5), st.integers(0, 5))
def test_there_is_one_result_for_each_item(count: int, returned: int) -> None:
    """One too few or too many, and nobody knows whose is whose."""
    results = [0] * returned
    if count == returned:
        assert results_of(results, count) is results
        return
    with pytest.raises(ResultCountError) as caught:
        results_of(results, count)
    assert (caught.value.expected, caught.value.got) == (count, returned)
