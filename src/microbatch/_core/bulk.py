"""One form for all handlers that a layer may get: an async function from items to a list of results."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from microbatch._loops.calling import call_in_thread
from microbatch._pure.handler import handler_kind, name_of, results_of

from .info import batcher_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def bulk(handler: Any) -> Callable[[list[Any]], Awaitable[list[Any]]]:
    """Make an async function from items to a list of results out of an async or plain handler.

    Raises:
        TypeError: If it is a generator function or cannot be called.
    """
    kind = handler_kind(handler)
    if kind == "generator":
        raise TypeError(f"a generator handler is not allowed here, got {name_of(handler)}")

    @functools.wraps(handler, updated=())
    async def call(items: list[Any]) -> list[Any]:
        count = len(items)
        if kind == "async":
            return results_of(await handler(items), count, batcher_name())
        return results_of(await call_in_thread(handler, items), count, batcher_name())

    return call
