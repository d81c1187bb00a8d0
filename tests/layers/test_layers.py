"""What holds for every layer, and for layers around layers."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from layers_support import Backend, echo, told
from support import BACKENDS, run

from microbatch.errors import ItemError, ResultCountError
from microbatch.layers import atomic, bisecting, by_key, per_item, rate_limited, routed, validated

pytestmark = pytest.mark.anyio


def positive(item: int) -> None:
    if item <= 0:
        raise ItemError(f"{item} is not positive", code="not_positive")


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
