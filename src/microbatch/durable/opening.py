"""Opening and closing: one process, one event loop, and an end that no cancellation can prevent."""

from __future__ import annotations

import contextvars
import logging
import os
from typing import TYPE_CHECKING, Any, Self

import anyio

from microbatch._loops.current import current_loop
from microbatch._pure import checks
from microbatch._pure.exceptions import BatcherClosed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from microbatch._loops.protocol import Loop

logger: logging.Logger = logging.getLogger("microbatch.durable")


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
        if self.on_end is not None:
            self.on_end()
        self.ended.set()


class Opened:
    """What can be opened by its first call, in whatever event loop that comes, and must be closed."""

    _name: str
    _poll_interval: float

    def __init__(self) -> None:
        self._process = os.getpid()
        self._state = "new"
        self._forget()

    def _forget(self) -> None:
        """Set the state of what serves no event loop."""
        self._loop: Loop | None = None
        self._opening: anyio.Lock = anyio.Lock(fast_acquire=True)

    def _check_place(self) -> None:
        """Refuse another process or event loop than the one that this queue serves."""
        if self._process != os.getpid():
            message = (
                f"queue {self._name!r} belongs to another process, which forked this one: "
                "make a new one here"
            )
            raise RuntimeError(message)
        loop = self._loop
        if loop is not None and not loop.is_current():
            if not loop.has_ended():
                message = (
                    f"queue {self._name!r} serves another event loop that is still alive: "
                    "make one for each"
                )
                raise RuntimeError(message)
            if self._state == "open":
                logger.warning("queue %r: its event loop ended without aclose()", self._name)
            self._state = "new" if self._state in ("new", "open") else "closed"
            self._lose_loop()

    def _opened(self) -> Loop | None:
        """Return the event loop that is served if the queue is open, in this process and in that loop."""
        loop = self._loop
        if (
            self._state == "open"
            and loop is not None
            and loop.is_current()
            and self._process == os.getpid()
        ):
            return loop
        return None

    async def _open(self) -> Loop:
        """Make sure that the queue is open, in this process and this event loop."""
        if (loop := self._opened()) is not None:
            return loop
        self._check_place()
        if self._state in ("closing", "closed"):
            raise BatcherClosed(self._name)
        current = current_loop()
        if not hasattr(current.create_waiter(), "add_done_callback"):
            message = (
                "the durable mode needs asyncio: aiosqlite, which runs its connection, "
                "does not work under trio"
            )
            raise RuntimeError(message)
        self._loop = current
        async with self._opening:
            if self._state == "new":
                await self._start_wholly()
        if self._state != "open":
            raise BatcherClosed(self._name)
        return current

    async def _start_wholly(self) -> None:
        try:
            await self._start()
        except (Exception, anyio.get_cancelled_exc_class()):
            await self._in_own_task(self._stop_halfway())
            raise
        if self._state == "new":
            self._state = "open"
        else:  # closed meanwhile
            await self._in_own_task(self._shut())

    def _spawn(self, coroutine: Coroutine[Any, Any, None], what: str) -> OwnTask:
        """Start a task of the queue's own, in an empty context."""
        loop = self._loop
        assert loop is not None  # noqa: S101 - it is open, and only asyncio gets that far
        assert loop.native is not None  # noqa: S101
        task = loop.native.create_task(
            coroutine, name=f"{self._name} {what}", context=contextvars.Context()
        )
        return OwnTask(task, f"queue {self._name!r}: its {what} failed")

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            QueueUnavailable: If the file cannot be used; a narrower class where the reason is known.
            BatcherClosed: If the queue was closed before.
            RuntimeError: Under trio, in a forked child, or if it serves another event loop.
        """
        await self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; at once when the block is left by an exception or a cancellation."""
        await (self.aclose() if exc_type is None else self.aclose(0))

    async def aclose(self, drain_timeout: float | None = 30.0) -> None:
        """Stop taking items, let what is being written reach the disk, and close the file.

        Who still waits for a result gets ``BatcherClosed``; the items stay. May be called more than
        once. Cancelling it closes at once.

        Args:
            drain_timeout: Seconds to wait for the disk, at least 0; None for no limit.
        """
        if drain_timeout is not None:
            checks.number("drain_timeout", drain_timeout, minimum=0)
        self._check_place()
        if self._state == "new":
            self._state = "closed"
        if self._opening.locked():
            async with self._opening:
                pass  # whoever is opening it sees that it is closed, and closes the file
        if self._state == "open":
            self._state = "closing"
            try:
                with anyio.move_on_after(drain_timeout):
                    await self._drain()
            finally:
                await self._in_own_task(self._shut(), self._closed)
        while self._state == "closing":  # noqa: ASYNC110  # somebody else is at it
            await anyio.sleep(self._poll_interval)

    async def _in_own_task(
        self, closing: Coroutine[Any, Any, None], on_end: Callable[[], None] | None = None
    ) -> None:
        """End things in a task of their own, which no cancellation of the caller's can stop."""
        task = self._spawn(closing, "closing")
        task.on_end = on_end
        with anyio.CancelScope(shield=True):
            await task.ended.wait()

    def _closed(self) -> None:
        self._state = "closed"

    # What a queue does at these points

    async def _start(self) -> None:
        """Open the file and start the queue's own tasks."""

    async def _stop_halfway(self) -> None:
        """Let go of what was opened when the start failed or was cancelled."""

    def _lose_loop(self) -> None:
        """Forget what belonged to an event loop that has ended."""
        self._forget()

    async def _drain(self) -> None:
        """Finish what is under way, with all the time that the caller gives."""

    async def _shut(self) -> None:
        """Close at once: in a bounded time."""
