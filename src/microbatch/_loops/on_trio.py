"""The primitives on trio: a slotted object over ``wait_task_rescheduled``, and system tasks."""

from __future__ import annotations

import contextvars
import logging
import math
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from microbatch._pure.copying import copy_exception
from microbatch._telemetry.log import write

from .waiting import end_item

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Generator

    import trio

    from .protocol import Handle

_PENDING, _VALUE, _ERROR, _CANCELLED = range(4)


class OtherRunError(RuntimeError):
    """A waiter was asked for in another run than the one that is served, which may have ended."""


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
        self._end(_VALUE, result)

    def set_exception(self, exception: Exception) -> None:
        self._end(_ERROR, exception)

    def _end(self, state: int, result: Any) -> None:
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
            write(
                logging.ERROR,
                "exception of a Pending was never retrieved",
                exc_info=self._result,
            )


class _TrioItemWaiter(_TrioWaiter):
    """The same, telling how it ended."""

    __slots__ = ("on_end",)

    on_end: Callable[[Exception | None, bool], None] | None

    def _end(self, state: int, result: Any) -> None:
        if self._state == _PENDING:
            super()._end(state, result)
            end_item(self, result if state == _ERROR else None)

    def _leave(self) -> None:
        super()._leave()
        end_item(self, None, cancelled=True)


class TrioLoad:
    """A load on trio: each who awaits it waits on a waiter of his own.

    Attributes:
        awaiting: Who awaits it; None before the first one.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_told",
        "_value",
        "awaiting",
        "index",
        "source",
    )

    def __init__(self) -> None:
        self.source: Any = None
        self.index: int = 0
        self.awaiting: Any = None
        self._value: Any = None
        self._error: Exception | None = None
        self._told = False

    def __await__(self) -> Generator[Any, Any, Any]:
        source = self.source
        if source is None:
            return self.result()
        if source.withdrawn:  # and here is who wants it after all
            return (yield from source.again().__await__())
        if not source.loop.is_current():
            raise RuntimeError("this load belongs to another event loop: load it in this one")
        waiter = _TrioWaiter()
        waiter.on_cancel = self.part
        self.join(waiter)
        try:
            return (yield from waiter.__await__())
        finally:
            del waiter

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
        left = self._waiters()
        left.remove(waiter)
        self.awaiting = left
        if not left:
            self.source.leave(self)

    def abandoned(self) -> bool:
        """Tell whether all who waited have gone unnoticed: never, for a waiter tells of it at once."""
        return False

    def resolve(self, value: Any) -> None:
        """Give everybody the value."""
        self.source = None
        self._value = value
        waiting, self.awaiting = self._waiters(), None
        for waiter in waiting:
            waiter.set_result(value)

    def fail(self, error: Exception) -> None:
        """Give everybody a copy of the exception."""
        self.source = None
        self._error = error
        waiting, self.awaiting = self._waiters(), None
        for waiter in waiting:
            waiter.set_exception(copy_exception(error))
            self._told = True

    def keep(self) -> None:
        """It has its value, and is asked for again: there is nothing to do."""

    def failed(self) -> bool:
        """Tell whether its outcome is an exception."""
        return self._error is not None

    def result(self) -> Any:
        if self._error is not None:
            raise self.exception()  # type: ignore[misc]
        return self._value

    def exception(self) -> BaseException | None:
        self._told = True
        return None if self._error is None else copy_exception(self._error)

    def __del__(self) -> None:
        if self._error is not None and not self._told:
            write(logging.ERROR, "exception of a load was never retrieved", exc_info=self._error)


def _lowlevel() -> Any:
    return sys.modules["trio"].lowlevel


class _TrioHandle:
    """A timer or task of trio's: a cancel scope in a system task of its own.

    Attributes:
        taken_back: Whether somebody cancelled it; a scope does not tell that from its deadline.
    """

    __slots__ = ("_scope", "taken_back")

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self.taken_back = False

    def cancel(self) -> None:
        self.taken_back = True
        self._scope.cancel()

    def is_cancelled(self) -> bool:
        return bool(self._scope.cancel_called)


class TrioLoop:
    def __init__(self, native: asyncio.AbstractEventLoop | None) -> None:
        import trio  # noqa: PLC0415 - only who runs trio needs it

        self.native = native  # of the host, should trio run as its guest
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        # Not trio.current_time: stats() and readers of gauges ask in other threads too.
        self.now = trio.lowlevel.current_clock().current_time

    def create_waiter(self) -> Any:
        if self._trio.lowlevel.current_trio_token() is not self._token:
            raise OtherRunError("this batcher serves another run of trio")
        return _TrioWaiter()

    def create_load(self) -> Any:
        return TrioLoad()

    def resolve(self, loads: list[Any], first: int, values: list[Any]) -> None:
        """Give loads their values, those that stand in a row from the first on."""
        for index, value in enumerate(values, first):
            known, loads[index] = loads[index], None
            for load in known if isinstance(known, list) else (known,):
                if load is not None:
                    load.resolve(value)

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
            if not handle.taken_back:  # its time may have come since
                _call(callback)

        self._trio.lowlevel.spawn_system_task(ring, context=contextvars.Context())
        return handle

    def in_two_turns(self, callback: Callable[[], None]) -> None:
        """Call back when all tasks have had two turns, in a copy of this context.

        Within a turn trio's tasks run in any order, so it is the beginning of the third that has seen both.
        """

        async def wait() -> None:
            await self.breathe()
            await self.breathe()
            _call(callback)

        self._trio.lowlevel.spawn_system_task(wait, context=contextvars.copy_context())

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        self._token.run_sync_soon(_call, callback)

    def spawn(self, function: Callable[[Any], Any], argument: Any, name: str) -> Handle:
        scope = self._trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    await function(argument)
            except self._trio.Cancelled:  # the run is ending
                raise
            except BaseException:  # noqa: BLE001 - nothing may leave a system task
                write(logging.ERROR, "a task of batcher %r failed", name, exc_info=True)

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

    def raise_fatal_soon(self, error: BaseException, raise_it: Callable[[], None]) -> None:
        """Hand Ctrl-C to trio; for ``SystemExit`` there is no way but the batcher's end."""
        del raise_it
        self.raises_fatal(error, None)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:  # noqa: BLE001 - asyncio logs it and goes on; here it would end the program
        write(logging.ERROR, "a callback of a batcher failed", exc_info=True)


async def _no_yield() -> None:
    """Await nothing."""


def _nothing() -> None:
    """Do nothing: scheduled to see whether a run of trio takes callbacks still."""
