"""Plain functions in worker threads."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread

from .virtual import thread_at_work

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def run_in_thread(
    function: Callable[..., T],
    *args: Any,
    limiter: anyio.CapacityLimiter,
    abandon_on_cancel: bool = False,
) -> T:
    """Run a function in a worker thread, while virtual time, if there is any, does not jump.

    What trio says of a coroutine that comes out of it holds.
    """
    with thread_at_work():
        return await anyio.to_thread.run_sync(
            function, *args, limiter=limiter, abandon_on_cancel=abandon_on_cancel
        )


async def call_in_thread(
    function: Callable[[list[Any]], Any], items: list[Any], ended: Callable[[], None] | None = None
) -> Any:
    """Run a plain handler in a worker thread and return what it returns.

    Never through anyio's default limiter: where web endpoints wait in its 40 tokens for a batch, the
    batch would wait for a token. How many threads there are is bounded by the batcher's slots.
    A cancelled caller goes on at once and the thread is left to finish; ``ended`` is then called in it.
    If the call is given up before a thread took it, the function is not called, and that is its end.
    """
    # Taken by who comes first: the thread that begins, or the caller that gives up.
    taken = threading.Lock()

    def work() -> list[Any]:
        if not taken.acquire(blocking=False):
            return []
        try:
            return [
                function(items)
            ]  # in a list: trio refuses a coroutine that comes out of a thread
        finally:
            if ended is not None:
                ended()

    try:
        (returned,) = await run_in_thread(
            work, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
    except BaseException:
        if taken.acquire(blocking=False) and ended is not None:
            ended()
        raise
    if inspect.isawaitable(returned):
        returned = await returned
    return returned
