"""Opening and closing: one process, one event loop, and an end that no cancellation can prevent."""

from __future__ import annotations

import contextvars
import logging
import os
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from microbatch._loops.current import current_loop
from microbatch._loops.on_asyncio import running_loop
from microbatch._loops.virtual import hold_clock, no_hold
from microbatch._pure import checks
from microbatch._pure.exceptions import BatcherClosed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from microbatch._loops.protocol import Loop

logger: logging.Logger = logging.getLogger("microbatch.durable")


#: Seconds that closing gives a start that is under way: as long as it gives the last transaction.
START_GRACE = 5.0

_everyone: weakref.WeakSet[Opening] = weakref.WeakSet()


def _close_in_child() -> None:
    for opening in list(_everyone):
        opening.native = None  # so every call looks at which process it is in


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_close_in_child)


class OwnTask:
    """A task whose end can be awaited by somebody who is cancelled meanwhile, and whose error is seen."""

    def __init__(self, task: asyncio.Task[None], complaint: str) -> None:
        self.task = task
        self.ended: anyio.Event = anyio.Event()
        self.on_end: Callable[[], None] | None = None
        self._complaint = complaint
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error(self._complaint, exc_info=task.exception())
        try:
            if self.on_end is not None:
                self.on_end()
        finally:  # who closes waits for it
            self.ended.set()


class Parts(Protocol):
    """What is opened and closed."""

    async def start(self, loop: Loop) -> None:
        """Open everything."""

    async def stop_halfway(self) -> None:
        """Let go of what was opened when the start failed or was cancelled."""

    def stop_starting(self) -> None:
        """Let a start that is under way fail, and not wait any longer."""

    def lose_loop(self) -> None:
        """Forget what belonged to an event loop that has ended."""

    async def drain(self) -> None:
        """Finish what is under way, with all the time that the caller gives."""

    async def shut(self) -> None:
        """Close at once: in a bounded time."""


class Opening:
    """What can be opened by its first call, in whatever event loop that comes, and must be closed.

    Args:
        name: The queue's name for people.
        parts: What is opened and closed.

    Attributes:
        state: ``"new"``, ``"open"``, ``"closing"`` or ``"closed"``.
        loop: The event loop that is served; None before the first call.
        native: asyncio's own, while it is open, in this process: what a call on the usual way looks at.
    """

    def __init__(self, name: str, parts: Parts) -> None:
        self._name = name
        self._parts = parts
        self._process: int | None = None
        self.state: str = "new"
        self.native: object = None
        self._forget()
        _everyone.add(self)

    def _forget(self) -> None:
        self.native = None
        self.loop: Loop | None = None
        self._release: Callable[[], None] = no_hold
        self._lock: anyio.Lock = anyio.Lock(fast_acquire=True)
        self._closed: anyio.Event = anyio.Event()

    def _check_place(self) -> None:
        """Refuse another process or event loop than the one that this queue serves."""
        if self._process not in (None, os.getpid()):
            message = (
                f"queue {self._name!r} belongs to another process, which forked this one: "
                "make a new one here"
            )
            raise RuntimeError(message)
        loop = self.loop
        if loop is not None and not loop.is_current():
            if not loop.has_ended():
                message = (
                    f"queue {self._name!r} serves another event loop that is still alive: "
                    "make one for each"
                )
                raise RuntimeError(message)
            was_open = self.state in ("open", "closing")
            if was_open:
                logger.warning("queue %r: its event loop ended without aclose()", self._name)
                self._parts.lose_loop()
            self.state = "new" if self.state in ("new", "open") else "closed"
            self._forget()

    def opened(self) -> Loop | None:
        """Return the event loop that is served if the queue is open, in this process and in that loop."""
        native = self.native
        return self.loop if native is not None and running_loop() is native else None

    async def open(self) -> Loop:
        """Make sure that the queue is open, in this process and this event loop.

        Raises:
            QueueUnavailable: If the file cannot be used.
            BatcherClosed: If it was closed.
            RuntimeError: Under trio, in a forked child, or if it serves another event loop.
        """
        if (loop := self.opened()) is not None:
            return loop
        self._check_place()
        if self.state in ("closing", "closed"):
            raise BatcherClosed(self._name)
        current = current_loop()
        if current.native is None or not hasattr(current.create_waiter(), "add_done_callback"):
            message = (
                "the durable mode needs asyncio: aiosqlite, which runs the connections that users touch, "
                "does not work under trio"
            )
            raise RuntimeError(message)
        self.loop = current
        self._process = os.getpid()
        async with self._lock:
            if self.state == "new":
                await self._start(current)
        if self.state != "open":
            raise BatcherClosed(self._name)
        return current

    async def _start(self, loop: Loop) -> None:
        # From here on threads and the file take part in everything: virtual time would jump past them.
        self._release = hold_clock()
        try:
            await self._start_parts(loop)
        finally:
            if self.state != "open":
                self._release()

    async def _start_parts(self, loop: Loop) -> None:
        try:
            await self._parts.start(loop)
        except GeneratorExit:  # its event loop has ended: there is nothing to wait in
            raise
        except (Exception, anyio.get_cancelled_exc_class()):
            await self._in_own_task(self._parts.stop_halfway())
            raise
        if self.state == "new":
            self.state, self.native = "open", loop.native
        else:  # closed meanwhile
            await self._in_own_task(self._parts.shut())

    def spawn(self, coroutine: Coroutine[Any, Any, None], what: str) -> OwnTask:
        """Start a task of the queue's own, in an empty context."""
        loop = self.loop
        assert loop is not None  # noqa: S101 - it is open, and only asyncio gets that far
        assert loop.native is not None  # noqa: S101
        task = loop.native.create_task(
            coroutine, name=f"{self._name} {what}", context=contextvars.Context()
        )
        return OwnTask(task, f"queue {self._name!r}: its {what} failed")

    async def close(self, drain_timeout: float | None) -> None:
        """Drain for so many seconds, None for no limit; then shut. Cancelling it shuts at once."""
        if drain_timeout is not None:
            checks.number("drain_timeout", drain_timeout, minimum=0)
        self._check_place()
        if self.state == "new":
            self.state = "closed"
        if self._lock.locked():
            await self._end_start(drain_timeout)
        if self.state == "open":
            self.state, self.native = "closing", None
            try:
                with anyio.move_on_after(drain_timeout):
                    await self._parts.drain()
            finally:
                await self._in_own_task(self._parts.shut(), self._end)
        elif self.state == "closing":  # somebody else is at it
            await self._closed.wait()

    async def _end_start(self, seconds: float | None) -> None:
        """Wait until whoever is opening it sees that it is closed, and closes the file: not for ever."""
        try:
            with anyio.move_on_after(None if seconds is None else max(seconds, START_GRACE)):
                async with self._lock:
                    return
            self._parts.stop_starting()
        except BaseException:
            self._parts.stop_starting()
            raise
        async with self._lock:
            pass

    async def _in_own_task(
        self, closing: Coroutine[Any, Any, None], on_end: Callable[[], None] | None = None
    ) -> None:
        """End things in a task of their own, which no cancellation of the caller's can stop."""
        loop = self.loop
        assert loop is not None  # noqa: S101 - it was open, or about to be
        native: Any = loop.spawn(self._run_whole, closing, f"{self._name} closing")
        task = OwnTask(native, f"queue {self._name!r}: its closing failed")
        task.on_end = on_end
        with anyio.CancelScope(shield=True):
            await task.ended.wait()

    async def _run_whole(self, closing: Coroutine[Any, Any, None]) -> None:
        """Run it even if somebody cancels all tasks before its first step, as `asyncio.run` does at its end."""
        assert self.loop is not None  # noqa: S101
        try:
            await self.loop.started()
        finally:
            await closing

    def _end(self) -> None:
        self.state = "closed"
        self._release()
        self._closed.set()
