"""Time that waits for nobody: event loops whose clock jumps when all that is left to do is to wait.

On asyncio it is the loop's own clock, on trio its ``MockClock``. While somebody holds it, time passes as it
does outside: what a thread will do is not known, so a jump would run into every timeout that guards it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple, Unpack

from .on_asyncio import running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

T = TypeVar("T")


Ts = TypeVarTuple("Ts")


#: Seconds for which nothing at all happens before a loop that nobody seems able to wake gives up. Threads
#: that were started outside of Python are not seen, and may do so.
PATIENCE = 5.0

#: How many of the tasks that wait are told of.
TASKS_TOLD = 10


class Holdable(Protocol):
    """A virtual clock, told of threads that work."""

    def hold(self) -> None: ...
    def release(self) -> None: ...


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with a clock that jumps."""

    def __init__(self) -> None:
        self._now = 0.0
        self._working = 0
        self._since = 0.0
        self._has_signals = False
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the seconds since the loop was made, those that it jumped over included."""
        return self._now + (time.monotonic() - self._since if self._working else 0.0)

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    def hold(self) -> None:
        """Let time pass as it does outside, until `release` is called as often."""
        if not self._working:
            self._since = time.monotonic()
        self._working += 1

    def release(self) -> None:
        """Take a `hold` back."""
        self._working -= 1
        if not self._working:
            self._now += time.monotonic() - self._since

    def is_held(self) -> bool:
        """Tell whether a thread works."""
        return self._working > 0

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run a function in a thread, as ``asyncio.to_thread`` does; time passes as outside meanwhile."""
        future = super().run_in_executor(executor, func, *args)
        self.hold()
        future.add_done_callback(lambda _: self.release())
        return future

    async def shutdown_default_executor(self, *timeout: Any, **named: Any) -> None:
        """Wait for the threads of ``run_in_executor`` to end, as long as that takes outside."""
        self.hold()
        try:
            await super().shutdown_default_executor(*timeout, **named)
        finally:
            self.release()

    def add_signal_handler(
        self, sig: int, callback: Callable[[Unpack[Ts]], object], *args: *Ts
    ) -> None:
        """Call a function at a signal, for which the loop then waits."""
        super().add_signal_handler(sig, callback, *args)
        self._has_signals = True

    def may_be_woken(self) -> bool:
        """Tell whether anybody is known who could end a wait that no timer ends."""
        return self._has_signals or self._working > 0 or threading.active_count() > 1

    def deadlock(self) -> RuntimeError:
        """Return the error of a loop in which nothing will happen any more."""
        tasks = sorted(asyncio.all_tasks(self), key=asyncio.Task.get_name)
        told = [f"{task.get_name()}: {_where(task.get_coro())}" for task in tasks[:TASKS_TOLD]]
        told += [f"and {len(tasks) - TASKS_TOLD} more"] * (len(tasks) > TASKS_TOLD)
        lines = "\n  ".join(told)
        return RuntimeError(
            "nothing can happen any more in virtual time: no task can run, no timer is set, and there is no "
            f"socket or thread to wake the event loop. What waits:\n  {lines}"
        )


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        loop = self._loop
        if loop.is_held():
            return super().select(timeout)
        if timeout is None:  # no timer: what wakes this loop now comes from outside
            # One thing is always open: the loop's own pipe to itself.
            if len(self.get_map()) > 1 or loop.may_be_woken():
                return super().select(None)
            events = super().select(PATIENCE)
            if not events:
                raise loop.deadlock()
            return events
        events = super().select(0)
        if not events and timeout > 0:
            loop.jump(timeout)
        return events


def _where(awaited: Any) -> str:
    """Return the functions in which something waits, each with its line."""
    places = []
    while frame := getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None):
        file = Path(frame.f_code.co_filename).name
        places.append(f"{frame.f_code.co_name} ({file}:{frame.f_lineno})")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return " > ".join(places)


class _TrioClock:
    """Holds trio's clock."""

    def __init__(self, clock: Any) -> None:
        self._clock: Any = weakref.proxy(clock)  # which is the key that this is kept under
        self._working = 0

    def hold(self) -> None:
        if not self._working:
            self._clock.autojump_threshold = math.inf
            self._clock.rate = 1.0
        self._working += 1

    def release(self) -> None:
        self._working -= 1
        if not self._working:
            self._clock.rate = 0.0
            self._clock.autojump_threshold = 0.0


#: trio's clocks that jump, and what holds each.
_trio_clocks: weakref.WeakKeyDictionary[Any, Holdable] = weakref.WeakKeyDictionary()


def trio_clock() -> Any:
    """Return a clock for ``trio.run`` that jumps.

    Raises:
        ImportError: If trio is not installed.
    """
    from trio.testing import MockClock  # noqa: PLC0415 - who does not use trio need not have it

    clock = MockClock(autojump_threshold=0)
    _trio_clocks[clock] = _TrioClock(clock)
    return clock


def _running_clock() -> Holdable | None:
    """Return the virtual clock of the event loop that runs here; None where time is real."""
    if _trio_clocks:
        with contextlib.suppress(RuntimeError):  # trio does not run here
            return _trio_clocks.get(sys.modules["trio"].lowlevel.current_clock())
    loop: Any = running_loop()
    return loop if isinstance(loop, VirtualLoop) else None


def hold_clock() -> Callable[[], None]:
    """Let virtual time pass as real time does, until what this returns is called, once."""
    clock = _running_clock()
    if clock is None:
        return no_hold
    clock.hold()
    return clock.release


def no_hold() -> None:
    """Take back what was no hold."""


@contextlib.contextmanager
def thread_at_work() -> Iterator[None]:
    """Within, virtual time passes as real time does: around the wait for a thread, in the event loop."""
    release = hold_clock()
    try:
        yield
    finally:
        release()
