"""Connections beside the writer's, on aiosqlite: one that reads, and one in which `on_settle` runs."""

from __future__ import annotations

import weakref
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio

from microbatch._loops.current import current_loop

from .guarded import Guarded
from .host import Host
from .port import Port
from .transactions import GRACE, INTERRUPT_AFTER, Guest, Transactions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable
    from pathlib import Path

    import aiosqlite

    from .records import Step

T = TypeVar("T")

#: Seconds after which a caller is told that the disk hangs.
ANSWER_TIMEOUT = 60.0

#: Only the writer checkpoints. What was deleted is not left in the file's pages.
_PRAGMAS = ("PRAGMA wal_autocheckpoint = 0", "PRAGMA secure_delete = FAST")


class AsyncConnection:
    """A connection to a queue's file for one event loop. Make it with `open`.

    Args:
        host: The thread that has the connection.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._waiting: set[Any] = set()
        # Whoever drops it without closing it must not leave the threads behind.
        weakref.finalize(self, host.stop).atexit = False

    @classmethod
    def begin(
        cls,
        path: Path,
        *,
        factory: type[Guarded] = Guarded,
        read_only: bool,
        pragmas: Iterable[str] = (),
    ) -> Self:
        """Begin to open a file that exists, which the writer has prepared; `opened` waits for that.

        Args:
            path: The file, resolved.
            factory: What sqlite3 makes as the connection.
            read_only: Whether nothing may be written.
            pragmas: Run before anything else.

        Raises:
            QueueUnavailable: If the system has no thread to give.
        """
        if read_only:
            pragmas = (*pragmas, "PRAGMA query_only = ON")
        host = Host(
            path, lambda: Transactions(path, factory, (*_PRAGMAS, *pragmas), read_only=read_only)
        )
        connection = cls(host)
        host.start()
        return connection

    @classmethod
    async def open(cls, path: Path, **settings: Any) -> Self:
        """Open a file; see `begin`. Cancelling it leaves nothing open.

        Raises:
            QueueUnavailable: If the file cannot be opened.
        """
        connection = cls.begin(path, **settings)
        await connection.opened()
        return connection

    async def opened(self) -> None:
        """Wait until it is open. Cancelling this ends it.

        Raises:
            QueueUnavailable: If the file cannot be opened, or it was ended meanwhile.
        """
        try:
            await self._answer_of(self._host.opened)
        except BaseException:
            self._host.stop()
            raise
        self._host.opened.result()

    @property
    def ended(self) -> bool:
        """Tell whether it takes nothing more: it was closed or stopped, or found that it is of no use."""
        return self._host.stopping

    @property
    def usable(self) -> bool:
        """Tell whether it is open, and takes more."""
        return self._host.opened.done() and not self._host.stopping

    @property
    def lock_waits(self) -> int:
        """Return how often the file was found locked."""
        return self._host.transactions.lock_waits

    async def run(self, steps: Generator[Step, Any, T]) -> T:
        """Run statements in a transaction of their own; one is under way at a time.

        The generator is stepped in another thread. Cancelling stops the waiting only: what has begun goes on
        to its end.

        Raises:
            QueueUnavailable: If the file cannot be used; narrower where the reason is known.
            sqlite3.Error: If a statement failed on its own account; nothing was written.
            Exception: What the generator raises; nothing was written.
        """
        answer = self._host.transact(steps)
        await self._answer_of(answer)
        return self._result_of(answer)

    async def _answer_of(self, future: Future[Any]) -> None:
        """Wait for what the thread does, as long as a disk may take."""
        if not await _wait_for(future, ANSWER_TIMEOUT, self._waiting):
            if self.ended:
                raise self._host.ended_meanwhile()
            self.stop()
            raise self._host.silent(ANSWER_TIMEOUT)

    async def around(
        self,
        before: Generator[Step, Any, T],
        inside: Callable[[aiosqlite.Connection, T], Awaitable[object]],
        *,
        timeout: float,
    ) -> T:
        """Run statements in a write transaction, then a coroutine in the same one, then commit.

        The coroutine runs in the caller's event loop, and the connection does nothing else meanwhile. If it
        raises, is cancelled or takes too long, everything is rolled back, and then that comes out of here.
        Who is cancelled during the commit does not learn how it ended.

        Args:
            before: The statements; stepped in another thread.
            inside: Gets the connection and what the statements returned. It may not end the transaction.
            timeout: Seconds for it.

        Raises:
            QueueUnavailable: If the file cannot be used; narrower where the reason is known.
            TimeoutError: If the coroutine took too long.
            sqlite3.Error: If a statement failed on its own account, or the transaction was ended in it.
            Exception: What the generator or the coroutine raises.
        """
        host = self._host
        turn = Guest(before, timeout)
        ending = host.settle(turn)
        ending.add_done_callback(lambda _: turn.begun.cancel())  # nobody begins what has ended
        try:
            result = await self._begun(turn, ending)
            with anyio.fail_after(timeout):
                await inside(host.transactions.connection, result)
        except BaseException:
            host.tell(partial(turn.decide, good=False))
            with anyio.move_on_after(2 * GRACE + INTERRUPT_AFTER, shield=True):
                await _wait_for(ending)
            raise
        host.tell(partial(turn.decide, good=True))
        await _wait_for(ending)
        self._result_of(ending)
        return result

    async def _begun(self, turn: Guest[T], ending: Future[None]) -> T:
        await _wait_for(turn.begun)
        if turn.begun.cancelled():
            self._result_of(ending)  # it says why
        return self._result_of(turn.begun)

    async def close(self) -> None:
        """Close it once what is under way has ended; nothing of it is left then.

        Cancelling this ends at once what is under way.
        """
        self._host.finish()
        try:
            await _wait_for(self._host.ended)
        except BaseException:
            self.stop()
            raise
        self._host.join()

    def stop(self) -> None:
        """End it from any thread, and roll back what is under way. Does not wait; harmless if repeated."""
        self._host.stop()

    def desert(self) -> None:
        """The same, and let nobody in its event loop wait any more for what it does: the disk may hang."""
        self.stop()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(False)

    def _result_of(self, future: Future[T]) -> T:
        try:
            return future.result()
        except CancelledError as error:
            raise self._host.ended_meanwhile() from error


async def _wait_for(
    future: Future[Any], seconds: float | None = None, waiting: set[Any] | None = None
) -> bool:
    """Wait until another thread's future is done, in whatever event loop; return whether it is.

    Meanwhile what is waited with is among those ``waiting``.
    """
    # No cancel scope, and so no timeout of anyio's: a task that is abandoned in one is never collected.
    loop = current_loop()
    waiter = loop.create_waiter()

    def wake(done: bool) -> None:
        if not waiter.done():
            waiter.set_result(done)

    future.add_done_callback(lambda _: Port(loop).deliver([(wake, True)]))
    if seconds is None:
        return bool(await waiter)
    timer = loop.call_at(loop.now() + seconds, lambda: wake(False))
    waiting = set() if waiting is None else waiting
    waiting.add(waiter)
    try:
        return bool(await waiter)
    finally:
        waiting.discard(waiter)
        timer.cancel()
