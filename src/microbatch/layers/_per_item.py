"""`per_item`: a bulk handler out of a function for one item."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._core.info import current_batch, narrowed
from microbatch._pure import checks
from microbatch._pure.handler import FATAL, find, handler_kind, name_of

from ._passing import BulkHandler, R, T, crash_of, hand_over, is_asked_for, named_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def per_item(
    function: Callable[[T], Awaitable[R]], *, max_concurrency: int = 10
) -> BulkHandler[T, R]:
    """Make a bulk handler out of an async function for one item.

    For backends without a bulk call: the batch then bounds how much runs at once. Each item fails
    alone, and its caller goes on as soon as its own call is done. Within the function
    ``current_batch()`` is a batch of one.

    Args:
        function: Called once for each item, with the item alone.
        max_concurrency: Calls that run at the same time within one batch, at least 1. The default
            of 10 is what HTTP clients commonly allow to one host.

    Raises:
        TypeError: If ``function`` cannot be called or is a generator function; when called, if what
            it returns cannot be awaited.
        ValueError: If ``max_concurrency`` is below 1.
    """
    if handler_kind(function) == "generator":
        raise TypeError(f"a generator function is not allowed here, got {name_of(function)}")
    checks.whole_number("max_concurrency", max_concurrency, 1)
    name = name_of(function)

    @named_after(function)
    async def one_by_one(items: list[Any]) -> list[Any]:
        batch = current_batch()
        results: list[Any] = [None] * len(items)
        waiting = iter(range(len(items)))

        async def work() -> None:
            for index in waiting:
                with narrowed([index]):
                    results[index] = await _outcome(function, items[index], name)
                hand_over(batch, index, results[index])

        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(max_concurrency, len(items))):
                    tasks.start_soon(work)
        except BaseExceptionGroup as group:
            # Only what is no Exception gets here, such as KeyboardInterrupt: it goes on by itself.
            raise find(group, FATAL) or group.exceptions[0] from None
        return results

    return one_by_one


async def _outcome(function: Callable[[Any], Any], item: Any, name: str) -> Any:
    """Return the function's result, or the exception that takes its place."""
    try:
        returned = function(item)
        if inspect.isawaitable(returned):
            result = await returned
            checks.refuse_awaitable(f"the result of {name}", result)
            return result
        kind = type(returned).__name__
        return TypeError(f"per_item needs an async function, {name} returned {kind}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's
        return error
    except BaseException as error:
        # Cancelled by its own making; task groups inside may have wrapped it.
        own = find(error, anyio.get_cancelled_exc_class()) is not None
        if not own or is_asked_for() or find(error, FATAL) is not None:
            raise
        return crash_of(name, error)
