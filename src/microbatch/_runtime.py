"""The few primitives that asyncio and trio each do their own way: waiter, timer, spawn.

Only this module and the two behind it, `_asyncio` and `_trio`, know either. A batcher talks to the event loop
that it serves through one `Runtime`, made when the first call arrives. On asyncio (uvloop too) a waiter is a
native future, since anything else per item costs half as much again; on trio it is a slotted object over
``wait_task_rescheduled``.
"""

from __future__ import annotations

import contextvars
import sys
import types
from typing import TYPE_CHECKING, Any, Protocol

from ._asyncio import AsyncioRuntime, running_loop
from ._trio import TrioRuntime

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Generator


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
        return TrioRuntime(loop)
    if loop is None:
        raise RuntimeError(
            "no event loop is running here: await submit() within asyncio or trio, "
            "or call submit_from_thread() in another thread"
        )
    return AsyncioRuntime(loop)


@types.coroutine
def in_context(
    base: contextvars.Context | None,
    function: Callable[[Any], Awaitable[Any]],
    argument: Any,
    on_wait: Callable[[], object],
) -> Generator[Any, Any, Any]:
    """Await ``function(argument)`` in a fresh copy of a context, an empty one if base is None.

    A task has one context for life, so this steps the coroutine by hand. A new task for every batch
    would do too, and costs 15,000 instructions more. When it first has to wait, ``on_wait`` is called.
    """
    context = contextvars.Context() if base is None else base.copy()
    run = context.run
    steps: Any = run(function, argument)
    send = getattr(steps, "send", None)
    if send is None:  # no coroutine
        steps = run(steps.__await__)
        send = steps.send
    try:
        yielded = run(send, None)
        on_wait()
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
