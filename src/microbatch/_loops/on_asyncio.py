"""The primitives on asyncio and uvloop: native futures, timers and tasks."""

from __future__ import annotations

import asyncio
import contextvars
import types
from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any

from microbatch._pure.copying import copy_exception

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


class _KnownLoad(asyncio.Future[Any]):
    """A load that has its value: awaiting it costs no more than awaiting any future."""

    __slots__ = ("awaiting", "index", "source")

    source: Any
    index: int
    awaiting: Any

    def failed(self) -> bool:
        """Tell whether its outcome is an exception."""
        return False


class AsyncioLoad(_KnownLoad):
    """A load on asyncio.

    Who awaits it waits on a future of his own, so that his cancellation is nobody else's. It is a future itself
    for ``gather``, ``wait`` and ``shield``, which would wrap anything else in a task each: 20,000
    instructions. They cancel it as one more of those who wait.

    Who makes one sets its attributes: an ``__init__`` costs as much as the future itself.

    Attributes:
        awaiting: Who awaits it: None before the first one, a waiter, or a list of them.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Any]:
        source = self.source
        if source is None:
            return self.result()
        if running_loop() is not source.native:
            if source.withdrawn:  # and here is who wants it after all
                return (yield from source.again().__await__())
            raise RuntimeError("this load belongs to another event loop: load it in this one")
        waiter: Any = asyncio.Future()
        if self.awaiting is None:
            self.awaiting = waiter
        else:
            self.join(waiter)
        try:
            return (yield from waiter)
        except BaseException:
            if waiter.cancelled() or not waiter.done():
                self.part(waiter)
            waiter = None  # a traceback would keep it, it the exception, and that the traceback
            raise

    def join(self, waiter: Any) -> None:
        """Have one more wake with the outcome."""
        waiting = self._waiters()
        waiting.append(waiter)
        self.awaiting = waiting

    def _waiters(self) -> list[Any]:
        awaiting = self.awaiting
        if awaiting is None:
            return []
        return awaiting if type(awaiting) is list else [awaiting]

    def part(self, waiter: Any) -> None:
        """Do without one of those who wait."""
        if self.source is None or self.source.withdrawn:
            return
        left = self._waiters()
        left.remove(waiter)
        self.awaiting = left
        if left or (self._callbacks and not self.done()):  # somebody awaits or gathers it
            return
        asyncio.Future.cancel(self)
        self.source.leave(self)

    def abandoned(self) -> bool:
        """Tell whether all who waited have gone, be it a moment ago."""
        if self.awaiting is None:
            return self.done()
        gathered = self._callbacks and not self.done()
        return not gathered and all(waiter.done() for waiter in self._waiters())

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled and self.source is not None and not self._waiters():
            self.source.leave(self)
        return cancelled

    def fail(self, error: Exception) -> None:
        """Give everybody a copy of the exception."""
        if self.done():
            self.source.retire(self)
        else:
            self.source = None
            self.set_exception(error)
            self.__class__ = _FailedLoad
        waiting, self.awaiting = self._waiters(), None
        if waiting and self.source is None:
            asyncio.Future.exception(self)  # told, so not logged as never retrieved
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(copy_exception(error))

    def keep(self) -> None:
        """Become what awaits in one step: it has its value, and is asked for again."""
        self.__class__ = _KnownLoad  # type: ignore[assignment]


class _FailedLoad(AsyncioLoad):
    """A load that failed: each gets a copy of the exception."""

    __slots__ = ()

    def result(self) -> Any:
        raise self.exception()  # type: ignore[misc]

    def exception(self) -> BaseException | None:
        error = super().exception()
        return error if error is None else copy_exception(error)

    def failed(self) -> bool:
        return True


_set_result = asyncio.Future.set_result


def _resolve(loads: list[Any], first: int, values: list[Any]) -> None:
    """Give loads their values, those that stand in a row from the first on."""
    for index, value in enumerate(values, first):
        load = loads[index]
        loads[index] = None
        if type(load) is AsyncioLoad:  # no call: it is 3 % of all that a load costs
            if load.done():  # who gathered it has gone
                load.source.retire(load)
            else:
                load.source = None
                _set_result(load, value)
            waiter = load.awaiting
            if waiter is not None:
                if type(waiter) is list:
                    _wake(waiter, value)
                elif not waiter.done():
                    waiter.set_result(value)
                load.awaiting = None
        elif load is not None:
            _resolve(load, 0, [value] * len(load))


def _wake(waiters: list[Any], value: Any) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(value)


class AsyncioLoop:
    def __init__(self, native: asyncio.AbstractEventLoop) -> None:
        self.native: asyncio.AbstractEventLoop | None = native
        self._native = native
        # The context of callbacks: never a submitter's. One each: a context runs in one thread at a time.
        self._nothing = contextvars.Context()
        # Not loop.create_future, nor with loop=: that is 1,000 instructions more for each item. Who
        # calls has made sure that this loop is the running one.
        self.create_waiter: Callable[[], Any] = asyncio.Future
        self.create_load: Callable[[], Any] = AsyncioLoad
        self.resolve: Callable[[list[Any], int, list[Any]], None] = _resolve
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

    def in_two_turns(self, callback: Callable[[], None]) -> None:
        """Call back in the turn of the loop after the next one, in a copy of this context."""
        call_soon = self._native.call_soon
        call_soon(call_soon, callback)

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
