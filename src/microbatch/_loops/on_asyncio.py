"""The primitives on asyncio and uvloop: native futures, timers and tasks."""

from __future__ import annotations

import asyncio
import contextvars
import types
from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any

from .waiting import end_item

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from .protocol import Handle

#: The event loop of this thread, None outside asyncio. Not ``get_running_loop``: that one raises. It is
#: public by ``asyncio.events.__all__``.
running_loop = _get_running_loop

#: What ``set_result`` of a waiter raises when its caller has gone.
InvalidState = asyncio.InvalidStateError


@types.coroutine
def _bare_yield() -> Generator[None, None, None]:
    yield


class _TracedFuture(asyncio.Future[Any]):
    """A future that knows who submits: the context of its caller's span."""

    __slots__ = ("parent",)


class _WatchedFuture(_TracedFuture):
    """A future that tells of its cancellation at once, not one turn of the loop later.

    Costs 4 % of an item's whole way, so it serves only where that matters.
    """

    __slots__ = ("on_cancel",)

    on_cancel: Callable[[Any], None] | None

    def cancel(self, msg: Any = None) -> bool:
        if not super().cancel(msg):
            return False
        on_cancel, self.on_cancel = self.on_cancel, None
        if on_cancel is not None:
            on_cancel(self)
        return True


class _ItemFuture(_WatchedFuture):
    """A future that tells how it ended, for those who pay for a record of each item."""

    __slots__ = ("on_end",)

    on_end: Callable[[Exception | None, bool], None] | None

    def set_result(self, result: Any, /) -> None:
        asyncio.Future.set_result(self, result)
        end_item(self, None)

    def set_exception(self, exception: Any, /) -> None:
        asyncio.Future.set_exception(self, exception)
        end_item(self, exception)

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            end_item(self, None, cancelled=True)
        return cancelled


class AsyncioLoop:
    def __init__(self, native: asyncio.AbstractEventLoop) -> None:
        self.native: asyncio.AbstractEventLoop | None = native
        self._native = native
        # The context of callbacks: never a submitter's. One each: a context runs in one thread at a time.
        self._nothing = contextvars.Context()
        # Not loop.create_future, nor with loop=: that is 1,000 instructions more for each item. Who
        # calls has made sure that this loop is the running one.
        self.create_waiter: Callable[[], Any] = asyncio.Future
        # Not time.monotonic, which saves a call: tests replace the loop's clock.
        self.now = native.time
        #: Gives everybody who is runnable a turn.
        self.breathe: Callable[[], Awaitable[None]] = _bare_yield
        self.started: Callable[[], Awaitable[None]] = _bare_yield

    def traced_waiter(self) -> Any:
        return _TracedFuture()

    def watched_waiter(self, on_cancel: Callable[[Any], None] | None) -> Any:
        future = _WatchedFuture()
        future.on_cancel = on_cancel
        return future

    def item_waiter(self, on_cancel: Callable[[Any], None] | None) -> Any:
        future = _ItemFuture()
        future.on_cancel = on_cancel
        return future

    def watch(self, waiter: Any, on_cancel: Callable[[Any], None]) -> None:
        if not isinstance(waiter, asyncio.Future):
            waiter.on_cancel = on_cancel
            return

        def done(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                on_cancel(future)

        waiter.add_done_callback(done, context=self._nothing)

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        return self._native.call_at(when, callback, context=self._nothing)

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        self._native.call_soon_threadsafe(callback, context=self._nothing)

    def spawn(self, function: Callable[[Any], Any], argument: Any, name: str) -> Handle:
        """Start a task; the first that its coroutine awaits must be `started`.

        A task that is cancelled before its first step runs nothing, not even a `finally`. So its
        coroutine is stepped to `started` here, inside of its `try`.
        """
        coroutine = function(argument)
        coroutine.send(None)
        # Not loop.create_task: a task factory may start tasks eagerly, which would cut a batch before
        # the other callers had their turn.
        return asyncio.Task(coroutine, loop=self._native, name=name, context=contextvars.Context())

    def was_cancelled(self, task: Any) -> bool:
        """Tell whether a cancellation came from outside the task."""
        return bool(task.cancelling())

    def is_current(self) -> bool:
        return running_loop() is self._native

    def has_ended(self) -> bool:
        return self._native.is_closed()

    def raises_fatal(self, error: BaseException, task: Any) -> bool:
        """Tell whether a task may raise what must end the program: asyncio lets it out of the loop."""
        del error
        task.add_done_callback(_retrieve)
        return True

    def raise_fatal_soon(self, error: BaseException, raise_it: Callable[[], None]) -> None:
        """Let a callback raise what must end the program: asyncio lets it out of the loop."""
        del error
        self._native.call_soon(raise_it, context=self._nothing)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Take note of an exception, so that it is not logged as one that nobody did."""
    task.exception()
