"""The event loop that a command runs in: a signal ends it whenever it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from microbatch._loops.on_asyncio import running_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

#: Seconds between two turns of the loop at most, as in uvicorn.
TURN = 0.1


def run_in_loop(function: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function to its end, in an event loop of its own.

    asyncio's wait for events is cut short by a signal that comes while it waits. One that comes in the moment
    before is seen only when it next wakes, which without this might be never.

    Raises:
        KeyboardInterrupt: If SIGINT came, after all that ran was cancelled.
        BaseException: What the function raises.
    """

    async def turning() -> T:
        loop: Any = running_loop()
        timer: Any = None

        def turn() -> None:
            nonlocal timer
            timer = loop.call_later(TURN, turn)

        turn()
        try:
            return await function()
        finally:
            timer.cancel()

    return anyio.run(turning, backend="asyncio")
