"""The transactions of one aiosqlite connection: each runs from BEGIN to its end, one at a time.

All of it runs in one event loop, which nothing of the user's runs in: see `host`.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import aiosqlite
import anyio

from microbatch.durable.errors import QueueCorrupt, QueueUnavailable

from .faults import LOCKED, primary_code, unavailable
from .place import identity

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from .guarded import Guarded
    from .records import Step

T = TypeVar("T")

#: Seconds for which SQLite itself waits at a time, and between two attempts: it does not always wait.
BUSY_TIMEOUT = 0.05
BUSY_PAUSE = 0.005

#: Seconds for which a transaction keeps asking for a lock: six times what `on_settle` may take.
LOCK_TIMEOUT = 30.0

#: Seconds past its bound for which the caller in a settle transaction is waited for; and seconds for the last
#: things that a connection does.
GRACE = 1.0

#: Seconds for which a rollback waits for the statement before it, until that is interrupted.
INTERRUPT_AFTER = 0.1

_SENSELESS = (TypeError, ValueError, LookupError)


class Guest(Generic[T]):
    """A write transaction in which its caller takes part.

    Args:
        before: The statements that begin it.
        timeout: Seconds for the caller's part.

    Attributes:
        begun: What the statements returned: the caller's part begins.
    """

    def __init__(self, before: Generator[Step, Any, T], timeout: float) -> None:
        self.before = before
        self.begun: Future[T] = Future()
        self._timeout = timeout
        self._good = False
        self._decided = False
        self._event: anyio.Event | None = None

    def decide(self, *, good: bool) -> None:
        """Say whether to commit; perhaps before it has begun."""
        self._good = good
        self._decided = True
        if self._event is not None:
            self._event.set()

    async def decision(self) -> bool:
        """Wait for that.

        Raises:
            TimeoutError: If the caller is long past its bound, or gone with its event loop.
        """
        if not self._decided:
            self._event = anyio.Event()
            with anyio.fail_after(self._timeout + GRACE):
                await self._event.wait()
        return self._good


class Transactions:
    """A connection, and what runs on it.

    Args:
        path: The file, resolved.
        factory: What sqlite3 makes as the connection.
        pragmas: Run before anything else.
        read_only: Whether nothing is written.

    Attributes:
        name: The file's path, for errors.
        connection: The connection, once `open` was called.
        worker: aiosqlite's thread, once it has begun to open the file.
        useless: Whether the connection must be closed now: no rollback mends it.
        lock_waits: How often the file was found locked.
    """

    connection: aiosqlite.Connection

    def __init__(
        self, path: Path, factory: type[Guarded], pragmas: Iterable[str], *, read_only: bool
    ) -> None:
        self.name = str(path)
        self.worker: threading.Thread | None = None
        self.useless = False
        self.lock_waits = 0
        self._path = path
        self._factory = factory
        self._pragmas = tuple(pragmas)
        self._read_only = read_only
        self._raw: Guarded | None = None
        self._turns = anyio.Lock()

    def _make(self, *arguments: Any, **settings: Any) -> Guarded:
        self.worker = threading.current_thread()
        self._raw = self._factory(*arguments, **settings)
        return self._raw

    async def open(self) -> None:
        """Open the file. Not to be cancelled: aiosqlite would drop the connection, and not close it.

        Raises:
            QueueUnavailable: If it cannot be opened.
        """
        try:
            await self._open()
        except Exception as error:
            await self._worker_ended()
            refusal = self._translated(error)
            raise refusal or QueueUnavailable(self.name, f"it cannot be opened: {error}") from error

    async def _open(self) -> None:
        self.connection = aiosqlite.connect(
            f"{self._path.as_uri()}?mode=rw",
            uri=True,
            factory=self._make,
            isolation_level=None,
            timeout=BUSY_TIMEOUT,
            cached_statements=256,
            check_same_thread=False,  # see close_dead
        )
        self._identity = self._look()
        await self.connection
        try:
            for pragma in self._pragmas:
                await self._patiently(pragma, ())
            self._check_in_place()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection and end its thread; not for longer than a disk should take."""
        with (
            anyio.move_on_after(GRACE, shield=True),
            contextlib.suppress(sqlite3.Error, ValueError),  # it is of no use anyway
        ):
            if self.worker is not None:  # else it was never opened
                await self.connection.close()

    async def _worker_ended(self) -> None:
        # Nobody else waits for what aiosqlite tells its thread when an opening fails. An answer of that for
        # an event loop that is closed by then would be a traceback.
        with anyio.move_on_after(GRACE):
            while self.worker is not None and self.worker.is_alive():  # noqa: ASYNC110 - it has none
                await anyio.sleep(BUSY_PAUSE)

    def close_dead(self) -> None:
        """Close what aiosqlite's thread has left open, which also rolls back. Not in the event loop."""
        assert self.worker is not None  # noqa: S101 - it was open
        assert self._raw is not None  # noqa: S101
        self.worker.join(GRACE)
        if not self.worker.is_alive():  # else the disk hangs, and it closes it once that answers
            with contextlib.suppress(sqlite3.Error):
                self._raw.close()

    async def in_turn(self) -> None:
        """Wait until everything that was asked for before this has ended."""
        async with self._turns:
            pass

    async def transact(self, steps: Generator[Step, Any, T]) -> T:
        """Run statements in a transaction of their own."""
        async with self._turns:
            try:
                await self._begin()
                result = await self._drive(steps)
                await self._commit()
            except BaseException as error:
                await self._give_up(error)
                raise
            finally:
                steps.close()
        return result

    async def settle(self, turn: Guest[Any]) -> None:
        """Run a write transaction in which its caller takes part."""
        async with self._turns:
            try:
                await self._begin()
                result = await self._drive(turn.before)
                self._guard(on=True)
                turn.begun.set_result(result)
                good = await self._decision_of(turn)
                self._guard(on=False)
                if good:
                    await self._commit()
                else:
                    await self._undo(None)
            except BaseException as error:
                await self._give_up(error)
                raise
            finally:
                turn.before.close()

    async def _decision_of(self, turn: Guest[Any]) -> bool:
        try:
            return await turn.decision()
        except BaseException:
            # The caller is still at it: what he executes behind the rollback would be committed all by itself.
            assert self._raw is not None  # noqa: S101 - it is open
            self._raw.over = True
            raise

    async def _begin(self) -> None:
        self._check_in_place()
        # `on_settle` may have set them. Both are read in this thread too, for every row.
        self.connection.row_factory = None
        self.connection.text_factory = str
        # A deferred one that reads first and writes later fails at once, whatever the timeout.
        await self._patiently("BEGIN" if self._read_only else "BEGIN IMMEDIATE", ())

    async def _drive(self, steps: Generator[Step, Any, T]) -> T:
        # The first statement of a reader takes the lock that its BEGIN did not.
        execute = self._patiently if self._read_only else self._execute
        try:
            sql, parameters, many = next(steps)
            while True:
                try:
                    if many:
                        await self.connection.executemany(sql, parameters)
                        rows = None
                    else:
                        rows = await execute(sql, parameters)
                except sqlite3.Error as error:
                    sql, parameters, many = steps.throw(error)
                else:
                    sql, parameters, many = steps.send(rows)
                execute = self._execute
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _execute(self, sql: str, parameters: Any) -> Any:
        return await self.connection.execute_fetchall(sql, parameters)

    async def _patiently(self, sql: str, parameters: Any) -> Any:
        """Execute a statement that takes a lock, and ask again while another connection has it."""
        ends = anyio.current_time() + LOCK_TIMEOUT
        while True:
            try:
                return await self._execute(sql, parameters)
            except sqlite3.Error as error:
                if primary_code(error) not in LOCKED:
                    raise
                self.lock_waits += 1
                if anyio.current_time() > ends:
                    reason = f"another program has kept it locked for {LOCK_TIMEOUT:g} s"
                    raise QueueUnavailable(self.name, reason) from error
            await anyio.sleep(BUSY_PAUSE)

    async def _commit(self) -> None:
        self._check_in_place()
        if not self.connection.in_transaction:
            message = (
                "the settle transaction was ended in on_settle, or by SQLite after an error in it"
            )
            raise sqlite3.ProgrammingError(message)
        await self._execute("COMMIT", ())

    async def _give_up(self, error: BaseException) -> None:
        """Roll back, and raise what is to be raised in the place of an error, if that is another one."""
        await self._undo(error)
        refusal = self._translated(error)
        if refusal is not None:
            raise refusal from error

    async def _undo(self, error: BaseException | None) -> None:
        """Roll back, after whatever statement is under way; give the connection up if that does not work."""
        self._guard(on=False)
        ended = False
        for seconds in (INTERRUPT_AFTER, GRACE):
            with anyio.move_on_after(seconds, shield=True) as scope:
                # A statement that failed may have rolled back all by itself.
                with contextlib.suppress(sqlite3.Error, ValueError):
                    await self._execute("ROLLBACK", ())
                ended = True
            if not scope.cancelled_caught:
                break
            with contextlib.suppress(ValueError):
                await self.connection.interrupt()
        if not ended or self._is_useless(error):
            self.useless = True

    def _is_useless(self, error: BaseException | None) -> bool:
        """Tell whether the connection may be in a state that no rollback mends."""
        try:
            open_still = self.connection.in_transaction
        except (sqlite3.Error, ValueError):  # `on_settle` has closed it
            return True
        if isinstance(error, sqlite3.Error) and unavailable(self.name, error) is not None:
            # What is damaged, or a file that is gone, may be in its cache.
            return open_still or primary_code(error) not in LOCKED | {sqlite3.SQLITE_FULL}
        # Its caller is still at it, with statements that would run outside of any transaction; or another
        # file stands in the place of this one.
        return open_still or isinstance(error, (TimeoutError, _Moved))

    def _guard(self, *, on: bool) -> None:
        assert self._raw is not None  # noqa: S101 - it is open
        self._raw.guarded = on

    # The file

    def _look(self) -> tuple[int, int]:
        try:
            return identity(self._path)
        except OSError as error:
            raise _Moved(self.name, error.strerror or str(error)) from error

    def _check_in_place(self) -> None:
        # A file that was deleted or replaced can still be used, for nothing.
        if self._look() != self._identity:
            raise _Moved(self.name, "another file stands in its place")

    def _translated(self, error: BaseException) -> QueueUnavailable | None:
        """Return what to raise in the place of an error; None to raise it itself."""
        if isinstance(error, _Moved):
            return QueueUnavailable(
                self.name, f"it was deleted or replaced under way: {error.reason}"
            )
        if isinstance(error, sqlite3.Error):
            return unavailable(self.name, error)
        if self._read_only and isinstance(error, _SENSELESS):
            # SQLite checks little of what it reads: garbage in a page comes out as odd rows.
            return QueueCorrupt(self.name, f"a row makes no sense: {error!r}")
        return None


class _Moved(QueueUnavailable):
    """The file is no longer where it was opened."""
