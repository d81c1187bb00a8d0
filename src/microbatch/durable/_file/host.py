"""A thread that has one aiosqlite connection, and an event loop of its own to use it from.

aiosqlite has a thread for each connection, and answers every call in the event loop that made it. A cancelled
call goes on there without its caller; an answer for an event loop that has ended kills the thread; and the
thread keeps a program from exiting. So a connection of ours is used from a small event loop in a daemon
thread: aiosqlite's inherits that, and its answers always find their loop. A transaction runs here from BEGIN to
its end, whatever becomes of its caller and the caller's event loop, which is woken once.

The one exception is what `on_settle` itself executes: it is answered in the caller's event loop. If that ends
just then, aiosqlite's thread is dead, and this one closes the connection, which rolls back.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from microbatch._loops.current import current_loop
from microbatch.durable.errors import QueueUnavailable

from .port import Port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from pathlib import Path

    from anyio.abc import TaskGroup

    from microbatch._loops.protocol import Loop

    from .records import Step
    from .transactions import Guest, Transactions

T = TypeVar("T")


class Host:
    """The thread.

    Args:
        path: The file, for errors and the thread's name.
        transactions: Makes what it hosts, in the thread's event loop.

    Attributes:
        transactions: What it hosts, once it is open.
        opened: Done when that is so.
        ended: Done when nothing of it is left but the thread's last step.
        stopping: Whether it takes nothing more.
    """

    transactions: Transactions

    def __init__(self, path: Path, transactions: Callable[[], Transactions]) -> None:
        self.opened: Future[None] = Future()
        self.ended: Future[None] = Future()
        self.stopping = False
        self._name = str(path)
        self._make = transactions
        self._process = os.getpid()
        self._mutex = threading.Lock()
        self._answers: set[Future[Any]] = set()
        self._inbox: deque[Callable[[], object]] = deque()
        self._woken: anyio.Event
        self._port: Port | None = None
        self._tasks: TaskGroup
        self._thread = threading.Thread(
            target=self._run, name=f"microbatch beside {path.name}", daemon=True
        )

    # From any thread, without waiting

    def start(self) -> None:
        """Begin to open the file.

        Raises:
            QueueUnavailable: If the system has no thread to give.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise QueueUnavailable(self._name, f"no thread for it: {error}") from error

    def transact(self, steps: Generator[Step, Any, T]) -> Future[T]:
        """Run statements in a transaction of their own. The answer is cancelled if this is stopped.

        Raises:
            QueueUnavailable: If it takes nothing more.
        """
        return self._begin(lambda: self.transactions.transact(steps))

    def settle(self, turn: Guest[Any]) -> Future[None]:
        """Run a write transaction in which its caller takes part.

        Raises:
            QueueUnavailable: If it takes nothing more.
        """
        return self._begin(lambda: self.transactions.settle(turn))

    def _begin(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        answer: Future[T] = Future()
        with self._mutex:
            if self.stopping:
                raise self.ended_meanwhile()
            self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        self.tell(lambda: self._tasks.start_soon(self._answer, function, answer))
        return answer

    def ended_meanwhile(self) -> QueueUnavailable:
        """Return what to raise for what was stopped."""
        return QueueUnavailable(self._name, "the connection was ended meanwhile")

    def silent(self, seconds: float) -> QueueUnavailable:
        """Return what to raise where it did not answer for so many seconds."""
        return QueueUnavailable(self._name, f"the disk did not answer for {seconds:g} s")

    def tell(self, function: Callable[[], object]) -> None:
        """Call a function in the thread's event loop, if that still runs."""
        self._inbox.append(function)
        if self._port is not None:
            self._port.deliver([(self._wake, None)])

    def finish(self) -> None:
        """End once what is under way, and what waits, has ended."""
        self._end(lambda: self._tasks.start_soon(self._stop_in_turn))

    def stop(self) -> None:
        """End now, and roll back what is under way. Harmless if repeated."""
        self._end(self._stop)

    def _end(self, how: Callable[[], object]) -> None:
        if (
            self._process == os.getpid()
        ):  # a forked child has none of the threads, and shares what they have
            with self._mutex:
                self.stopping = True
            self.tell(how)

    def join(self) -> None:
        """Wait for the thread, once it has `ended`."""
        self._thread.join()

    # In the thread

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend="asyncio")
        except BaseException as error:
            if self.opened.done():
                raise
            refusal = QueueUnavailable(self._name, f"no event loop for it: {error}")
            self.opened.set_exception(refusal)
        finally:
            with self._mutex:
                self.stopping = True
            for answer in list(self._answers):
                answer.cancel()
            if not self.opened.exception():
                self.transactions.close_dead()
            self.ended.set_result(None)

    async def _main(self) -> None:
        self.transactions = self._make()
        try:
            async with anyio.create_task_group() as self._tasks:
                self._woken = anyio.Event()
                loop = current_loop()
                _outlive(loop)
                self._port = Port(loop)
                # Nothing that was told is heard before it is open: aiosqlite drops what it was opening when
                # that is cancelled, and does not close it.
                await self._open()
                while not self.opened.exception():
                    while self._inbox:
                        self._inbox.popleft()()
                    await self._woken.wait()
                    self._woken = anyio.Event()
        finally:
            # What was under way has ended.
            await self.transactions.close()

    async def _open(self) -> None:
        try:
            await self.transactions.open()
        except QueueUnavailable as error:
            self.opened.set_exception(error)
        else:
            self.opened.set_result(None)

    def _wake(self, _: None) -> None:
        self._woken.set()

    async def _answer(self, function: Callable[[], Awaitable[T]], answer: Future[T]) -> None:
        try:
            result = await function()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            end: Callable[[], None] = partial(answer.set_exception, error)
        else:
            end = partial(answer.set_result, result)
        if self.transactions.useless:
            self._stop()
        end()

    def _stop(self) -> None:
        with self._mutex:
            self.stopping = True
        self._tasks.cancel_scope.cancel()

    async def _stop_in_turn(self) -> None:
        await self.transactions.in_turn()
        self._stop()


def _outlive(loop: Loop) -> None:
    """Let aiosqlite's thread go on where this event loop has ended: it dies of an answer that it cannot give.

    A disk that hangs for longer than it is waited for would leave the connection open, and a traceback.
    """
    native: Any = loop.native
    answer = native.call_soon_threadsafe

    def answer_if_there(*call: Any, **settings: Any) -> Any:
        try:
            return answer(*call, **settings)
        except RuntimeError:
            if not native.is_closed():
                raise
            return None

    native.call_soon_threadsafe = answer_if_there
