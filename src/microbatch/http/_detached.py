"""Work that goes on when its request has ended: a client that is gone leaves nothing half done."""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from microbatch._loops.context import in_context
from microbatch._loops.current import current_loop
from microbatch._pure.exceptions import HandlerCrashed
from microbatch._pure.handler import FATAL, find

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from microbatch._loops.protocol import Loop

T = TypeVar("T")

#: What tasks are called, and the logs of what fails in them.
_NAME = "microbatch.http"


class Detached:
    """Runs work in tasks of its own, and knows when all of it has ended."""

    def __init__(self) -> None:
        self._loop: Loop | None = None
        self._running: set[_Work] = set()  # asyncio keeps tasks by weak references alone
        self._idle: anyio.Event | None = None

    def __len__(self) -> int:
        """Return how much of it is under way."""
        return len(self._running)

    async def run(self, work: Callable[[], Awaitable[T]], *, timeout: float) -> T:
        """Do work in a task of its own and wait for it, but not for longer than a request may take.

        The work sees the caller's context variables.

        Returns:
            What the work returns.

        Raises:
            Problem: 504 if it takes longer; it goes on.
            Exception: What the work raises.

        Cancellation stops the waiting only.
        """
        loop = self._loop
        if loop is None or not loop.is_current():
            loop = self._loop = current_loop()
            self._forget_lost()
        one = _Work(work, copy_context(), loop)
        self._running.add(one)
        one.task = loop.spawn(self._do, one, _NAME)
        timer = loop.call_at(loop.now() + timeout, partial(one.wake, in_time=False))
        try:
            if not await one.waiter:
                raise Problem(
                    504,
                    f"it has taken longer than {timeout:g} s; it is still running",
                    type="timeout",
                )
        finally:
            timer.cancel()
        if one.error is not None:
            raise one.error
        result: T = one.result
        return result

    async def join(self) -> None:
        """Wait until all has ended, but for what an event loop took with it that is gone."""
        self._forget_lost()
        while self._running:
            self._idle = self._idle or anyio.Event()
            await self._idle.wait()

    def _forget_lost(self) -> None:
        """Do without what was under way in an event loop that has ended: it never comes to its end."""
        lost = {one for one in self._running if one.loop.has_ended()}
        if lost:
            self._running -= lost
            self._idle = None

    async def _do(self, one: _Work) -> None:
        try:
            await one.loop.started()
            one.result = await in_context(one.context, _worked, one.work, _waits)
        except Exception as error:  # noqa: BLE001 - it is the request's, which raises it
            one.error = error
        except BaseException as error:
            one.error = HandlerCrashed(_NAME, type(error).__name__)
            fatal = find(error, FATAL)
            if fatal is not None and one.loop.raises_fatal(fatal, one.task):
                raise fatal from fatal.__cause__
            if not isinstance(
                fatal, KeyboardInterrupt
            ):  # trio has that one; any other it cannot take
                raise
        finally:
            self._running.discard(one)
            if one.loop.is_current():  # else that has ended, and this is the garbage collector
                one.wake(in_time=True)
                if self._idle is not None and not self._running:
                    self._idle.set()
                    self._idle = None


class _Work:
    """One piece of it."""

    __slots__ = ("context", "error", "loop", "result", "task", "waiter", "work")

    def __init__(self, work: Callable[[], Awaitable[Any]], context: Context, loop: Loop) -> None:
        self.work = work
        self.context = context
        self.loop = loop
        self.waiter = loop.create_waiter()
        self.result: Any = None
        self.error: Exception | None = None
        self.task: Any = None

    def wake(self, *, in_time: bool) -> None:
        """Let the request go on, if nothing has yet."""
        if not self.waiter.done():
            self.waiter.set_result(in_time)


async def _worked(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def _waits() -> None:
    """Take note that the work has to wait: nobody has to know."""
