"""bulk: any handler as an async function of a list."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import Any

import pytest
from support import outcome

from microbatch import ResultCountError
from microbatch._core.bulk import bulk


async def coroutine(items: list[Any]) -> list[Any]:
    return items


async def pairs(items: list[Any]) -> Any:
    for pair in enumerate(items):
        yield pair


def call(items: list[Any]) -> Any:
    """Return an awaitable: no coroutine function, as far as one can see from outside."""
    return coroutine(items)


@pytest.mark.anyio
async def test_bulk_makes_an_async_function_of_an_async_handler() -> None:
    """Layers call what they wrap in one way only."""
    call = bulk(coroutine)
    assert inspect.iscoroutinefunction(call)
    assert call.__name__ == "coroutine"
    assert call.__wrapped__ is coroutine  # type: ignore[attr-defined]
    assert await call([1, 2]) == [1, 2]

    async def short(items: list[Any]) -> list[Any]:
        return items[1:]

    assert type(await outcome(bulk(short)([1, 2]))) is ResultCountError
    assert await bulk(functools.partial(coroutine))([3]) == [3]


@pytest.mark.anyio
@pytest.mark.real_time
async def test_bulk_runs_a_plain_handler_in_a_thread() -> None:
    """The loop goes on meanwhile; what it returns is checked in the same way."""

    def where(items: list[Any]) -> list[Any]:
        return [threading.current_thread() is threading.main_thread() for _ in items]

    def nothing(items: list[Any]) -> None:
        items.clear()

    assert await bulk(where)([1, 2]) == [False, False]
    assert await bulk(nothing)([1, 2]) == [None, None]
    assert type(await outcome(bulk(lambda _: "ab")([1, 2]))) is TypeError


def test_bulk_refuses_generators_by_name() -> None:
    """Pairs come one at a time; a layer has nothing to hand on."""
    with pytest.raises(TypeError, match=r"^a generator handler is not allowed here, got pairs$"):
        bulk(pairs)
