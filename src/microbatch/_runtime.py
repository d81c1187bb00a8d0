"""The few primitives that asyncio and trio each do their own way: waiter, timer, spawn.

This is the only module that imports either. A batcher talks to the event loop that it serves through one
`Runtime`, made when the first call arrives. On asyncio (uvloop too) a waiter is a native future, since
anything else per item costs half as much again; on trio it is a slotted object over
``wait_task_rescheduled``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import logging
import math
import signal
import sys
import threading
import types
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    import trio

logger = logging.getLogger("microbatch")

#: What ``set_result`` of a waiter raises when its caller has gone.
InvalidState = asyncio.InvalidStateError

#: The event loop of this thread, None outside asyncio. Not ``get_running_loop``: that one raises.
running_loop = asyncio._get_running_loop  # noqa: SLF001 - public by asyncio.events.__all__


class Waiter(Protocol):
    """What a caller waits on. Native futures are waiters too."""

    def done(self) -> bool: ...
    def cancel(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Exception, /) -> None: ...
    def __await__(self) -> Generator[Any, Any, Any]: ...


class Handle(Protocol):
    """A timer or a spawned task."""

    def cancel(self) -> Any: ...


class Runtime(Protocol):
    """One event loop, seen by a batcher."""

    loop: asyncio.AbstractEventLoop | None
    now: Callable[[], float]

    @property
    def create_waiter(self) -> Callable[[], Any]: ...
    def breathe(self) -> Awaitable[None]: ...
    def traced_waiter(self) -> Any: ...
    def watched_waiter(self, on_cancel: Callable[[Any], None] | None) -> Any: ...
    def item_waiter(self, on_cancel: Callable[[Any], None] | None) -> Any: ...
    def watch(self, waiter: Any, on_cancel: Callable[[Any], None]) -> None: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> Handle: ...
    def call_from_thread(self, callback: Callable[[], None]) -> None: ...
    def spawn(self, function: Callable[[Any], Any], argument: Any, name: str) -> Handle: ...
    def started(self) -> Awaitable[None]: ...
    def was_cancelled(self, task: Any) -> bool: ...
    def is_current(self) -> bool: ...
    def has_ended(self) -> bool: ...
    def raises_fatal(self, error: BaseException, task: Any) -> bool: ...


def current_runtime() -> Runtime:
    """Return a runtime for the event loop that runs here.

    Raises:
        RuntimeError: If none does.
    """
    loop = running_loop()
    trio = sys.modules.get("trio")
    if trio is not None and _in_trio(trio, loop):
        return _TrioRuntime(loop)
    if loop is None:
        raise RuntimeError(
            "no event loop is running here: await submit() within asyncio or trio, "
            "or call submit_from_thread() in another thread"
        )
    return _AsyncioRuntime(loop)


@types.coroutine
def in_context(
    base: contextvars.Context | None, function: Callable[[Any], Awaitable[Any]], argument: Any
) -> Generator[Any, Any, Any]:
    """Await ``function(argument)`` in a fresh copy of a context, an empty one if base is None.

    A task has one context for life, so this steps the coroutine by hand. A new task for every batch
    would do too, and costs 15,000 instructions more.
    """
    context = contextvars.Context() if base is None else base.copy()
    run = context.run
    awaitable: Any = run(function, argument)
    steps = awaitable if hasattr(awaitable, "send") else run(awaitable.__await__)
    send = steps.send
    try:
        yielded = run(send, None)
        while True:
            try:
                sent = yield yielded
            except GeneratorExit:
                run(steps.close)
                raise
            except BaseException as error:  # noqa: BLE001 - the coroutine's to handle
                yielded = run(steps.throw, error)
            else:
                yielded = run(send, sent)
    except StopIteration as stop:
        return stop.value
    finally:
        # From 3.12 on a finished frame keeps the one before it: what came through here would close a ring.
        sent = yielded = None


def _in_trio(trio: Any, loop: object) -> bool:
    """Tell whether trio runs here; where it is the guest of an asyncio loop, only its tasks count."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        if loop is not None:
            return False
    else:
        return True
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


# asyncio, uvloop


@types.coroutine
def _bare_yield() -> Generator[None, None, None]:
    yield


async def _no_yield() -> None:
    """Await nothing."""


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


def end_item(waiter: Any, error: Exception | None, *, cancelled: bool = False) -> None:
    on_end = getattr(waiter, "on_end", None)
    if on_end is not None:
        waiter.on_end = None
        on_end(error, cancelled)


class _AsyncioRuntime:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop | None = loop
        self._loop = loop
        # The context of callbacks: never a submitter's. One each: a context runs in one thread at a time.
        self._nothing = contextvars.Context()
        # Not loop.create_future, nor with loop=: that is 1,000 instructions more for each item. Who
        # calls has made sure that this loop is the running one.
        self.create_waiter: Callable[[], Any] = asyncio.Future
        self.now = loop.time

    def breathe(self) -> Awaitable[None]:
        """Give everybody who is runnable a turn."""
        return _bare_yield()

    def traced_waiter(self) -> Any:
        return _TracedFuture()

    def watched_waiter(self, on_cancel: Callable[[Any], None] | None) -> Any:
        future = _WatchedFuture(loop=self._loop)
        future.on_cancel = on_cancel
        return future

    def item_waiter(self, on_cancel: Callable[[Any], None] | None) -> Any:
        future = _ItemFuture(loop=self._loop)
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
        return self._loop.call_at(when, callback, context=self._nothing)

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(callback, context=self._nothing)

    def spawn(self, function: Callable[[Any], Any], argument: Any, name: str) -> Handle:
        """Start a task; the first that its coroutine awaits must be `started`.

        A task that is cancelled before its first step runs nothing, not even a `finally`. So its
        coroutine is stepped to `started` here, inside of its `try`.
        """
        coroutine = function(argument)
        coroutine.send(None)
        # Not loop.create_task: a task factory may start tasks eagerly, which would cut a batch before
        # the other callers had their turn.
        return asyncio.Task(coroutine, loop=self._loop, name=name, context=contextvars.Context())

    def started(self) -> Awaitable[None]:
        return _bare_yield()

    def was_cancelled(self, task: Any) -> bool:
        """Tell whether a cancellation came from outside the task."""
        return bool(task.cancelling())

    def is_current(self) -> bool:
        return running_loop() is self._loop

    def has_ended(self) -> bool:
        return self._loop.is_closed()

    def raises_fatal(self, error: BaseException, task: Any) -> bool:
        """Tell whether a task may raise what must end the program: asyncio lets it out of the loop."""
        del error
        task.add_done_callback(_retrieve)
        return True


def _retrieve(task: asyncio.Task[None]) -> None:
    """Take note of an exception, so that it is not logged as one that nobody did."""
    task.exception()


# trio

_PENDING, _VALUE, _ERROR, _CANCELLED = range(4)


class _TrioWaiter:
    """A future for one awaiting trio task."""

    __slots__ = ("__weakref__", "_result", "_state", "_task", "on_cancel", "parent")

    def __init__(self) -> None:
        self._state = _PENDING
        self._result: Any = None
        self._task: trio.lowlevel.Task | None = None
        self.on_cancel: Callable[[Any], None] | None = None

    def done(self) -> bool:
        return self._state != _PENDING

    def cancelled(self) -> bool:
        return self._state == _CANCELLED

    def set_result(self, result: Any) -> None:
        self._settle(_VALUE, result)

    def set_exception(self, exception: Exception) -> None:
        self._settle(_ERROR, exception)

    def _settle(self, state: int, result: Any) -> None:
        if self._state == _PENDING:
            self._state = state
            self._result = result
            self.on_cancel = None
            if self._task is not None:
                _lowlevel().reschedule(self._task)
                self._task = None

    def cancel(self) -> bool:
        if self._state != _PENDING:
            return False
        task = self._task
        self._leave()
        if task is not None:
            _lowlevel().reschedule(task)
        return True

    def _leave(self) -> None:
        self._state = _CANCELLED
        self._task = None
        on_cancel, self.on_cancel = self.on_cancel, None
        if on_cancel is not None:
            on_cancel(self)

    def _abort(self, _: Any) -> trio.lowlevel.Abort:
        self._leave()
        return _lowlevel().Abort.SUCCEEDED  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._state == _PENDING:
            if self._task is not None:
                raise RuntimeError("a Pending has one awaiter, and another task awaits it already")
            lowlevel = _lowlevel()
            self._task = lowlevel.current_task()
            yield from lowlevel.wait_task_rescheduled(self._abort).__await__()
        if self._state == _VALUE:
            return self._result
        if self._state == _CANCELLED:
            raise RuntimeError("this Pending was cancelled")
        error, self._result = self._result, None
        if error is None:
            raise RuntimeError("this Pending's exception was raised already")
        try:
            raise error
        finally:
            del error, self  # else the traceback holds the error that holds the traceback

    def __del__(self) -> None:
        if self._state == _ERROR and self._result is not None:
            logger.error("exception of a Pending was never retrieved", exc_info=self._result)


class _TrioItemWaiter(_TrioWaiter):
    """The same, telling how it ended."""

    __slots__ = ("on_end",)

    on_end: Callable[[Exception | None, bool], None] | None

    def _settle(self, state: int, result: Any) -> None:
        if self._state == _PENDING:
            super()._settle(state, result)
            end_item(self, result if state == _ERROR else None)

    def _leave(self) -> None:
        super()._leave()
        end_item(self, None, cancelled=True)


def _lowlevel() -> Any:
    return sys.modules["trio"].lowlevel


class _TrioHandle:
    """A timer or task of trio's: a cancel scope in a system task of its own."""

    __slots__ = ("_scope",)

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope

    def cancel(self) -> None:
        self._scope.cancel()

    def is_cancelled(self) -> bool:
        return bool(self._scope.cancel_called)


class _TrioRuntime:
    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        import trio  # noqa: PLC0415 - only who runs trio needs it

        self.loop = loop  # of the host, should trio run as its guest
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        # Not trio.current_time: stats() and readers of gauges ask in other threads too.
        self.now = trio.lowlevel.current_clock().current_time

    def create_waiter(self) -> Any:
        if self._trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError("this batcher serves another run of trio that is still alive")
        return _TrioWaiter()

    def breathe(self) -> Awaitable[None]:
        return self._trio.lowlevel.cancel_shielded_checkpoint()

    def traced_waiter(self) -> Any:
        return self.create_waiter()

    def watched_waiter(self, on_cancel: Callable[[Any], None] | None) -> Any:
        waiter = _TrioWaiter()
        waiter.on_cancel = on_cancel
        return waiter

    def item_waiter(self, on_cancel: Callable[[Any], None] | None) -> Any:
        self.create_waiter()  # for its check
        waiter = _TrioItemWaiter()
        waiter.on_cancel = on_cancel
        return waiter

    def watch(self, waiter: Any, on_cancel: Callable[[Any], None]) -> None:
        waiter.on_cancel = on_cancel

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        scope = self._trio.CancelScope(deadline=when)
        handle = _TrioHandle(scope)

        async def ring() -> None:
            with scope:
                await self._trio.sleep_forever()
            if self._trio.current_time() >= when:
                callback()

        self._trio.lowlevel.spawn_system_task(ring, context=contextvars.Context())
        return handle

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        self._token.run_sync_soon(callback)

    def spawn(self, function: Callable[[Any], Any], argument: Any, name: str) -> Handle:
        scope = self._trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    await function(argument)
            except self._trio.Cancelled:  # the run is ending
                raise
            except BaseException:  # nothing may leave a system task
                logger.exception("a task of batcher %r failed", name)

        self._trio.lowlevel.spawn_system_task(run, name=name, context=contextvars.Context())
        return _TrioHandle(scope)

    def started(self) -> Awaitable[None]:
        return _no_yield()

    def was_cancelled(self, task: Any) -> bool:
        """Tell whether a cancellation came from outside: by us, or because the run is ending."""
        return task.is_cancelled() or self._trio.current_effective_deadline() == -math.inf

    def is_current(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def has_ended(self) -> bool:
        try:
            self._token.run_sync_soon(_nothing)
        except self._trio.RunFinishedError:
            return True
        return False

    def raises_fatal(self, error: BaseException, task: Any) -> bool:
        """Hand Ctrl-C to trio, which raises it in the main task; nothing may leave a system task.

        For ``SystemExit`` there is no way; closing the batcher raises it then.
        """
        del task
        main = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and main:
            signal.raise_signal(signal.SIGINT)
        return False


def _nothing() -> None:
    """Do nothing: scheduled to see whether a run of trio takes callbacks still."""


class ThreadWaiter:
    """What a blocked thread waits on, in the place of a future of the loop."""

    __slots__ = ("_answer", "on_cancel", "on_end", "parent")

    def __init__(self) -> None:
        self._answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.on_cancel: Callable[[Any], None] | None = None

    def done(self) -> bool:
        return self._answer.done()

    def cancelled(self) -> bool:
        return self._answer.cancelled()

    def cancel(self) -> bool:
        return self._answer.cancel()

    def set_result(self, result: Any) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # its thread has gone
            self._answer.set_result(result)
            end_item(self, None)

    def set_exception(self, exception: Exception) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self._answer.set_exception(exception)
            end_item(self, exception)

    def wait(self, seconds: float) -> bool:
        """Block up to so many seconds; tell whether the answer is there."""
        return bool(concurrent.futures.wait([self._answer], seconds).done)

    def result(self) -> Any:
        return self._answer.result(0)
