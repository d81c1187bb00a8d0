"""The queue's file, open: transactions, what SQLite says about it, and a connection that can be replaced.

Only `on_settle`, which is the user's coroutine, needs a transaction that stays open across hops:
`Database.transaction_around`.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, TypeVar, cast

import anyio

from .errors import QueueCorrupt, QueueUnavailable
from .hop import Work, close, connect, create

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    import aiosqlite

    from .hop import Guarded

T = TypeVar("T")

#: Seconds for which a transaction keeps asking for the file's write lock. As SQLite users know it (5 s), and
#: well over the longest wait measured between four processes that write without a pause (2 s).
LOCK_TIMEOUT = 5.0

#: Seconds after which a hop is given up: the disk hangs. The thread goes on with it; the caller does not.
HOP_TIMEOUT = 60.0

_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
#: The fault lies with the file or the disk, not with a statement: nobody in the group can be served.
_FAULTS = _DAMAGED | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}


class Locked(Exception):
    """Another connection holds the write lock: ask again."""


class Database:
    """The queue's file, open.

    Args:
        path: The file.
        pragmas: Run on every new connection; they return nothing or are verified by ``prepare``.
        prepare: Run once on every new connection, in its thread: creates or checks the schema.
    """

    def __init__(
        self,
        path: Path,
        *,
        pragmas: Iterable[str],
        prepare: Callable[[sqlite3.Connection], None],
    ) -> None:
        self.path = path
        self.lock_waits: int = 0
        self.generation: int = 0
        self.connections: int = 0
        self._pragmas = tuple(pragmas)
        self._prepare = prepare
        self._connection: aiosqlite.Connection | None = None
        self._inode = 0
        self._opened_before = False
        self._lock = anyio.Lock(fast_acquire=True)

    async def open(self) -> None:
        """Open the file; create it, readable by its owner only, if there is none.

        Raises:
            QueueUnavailable: If the file cannot be used; a narrower class where the reason is known.
        """
        await self._run(lambda _: None)

    async def _connect(self) -> aiosqlite.Connection:
        if self._connection is None:
            create(self.path, allowed=not self._opened_before)
            connection = connect(self.path)
            try:
                await connection
                await connection.execute_fetchall(Work(self._set_up))
            except BaseException:
                await close(connection)
                raise
            self._connection = connection
            self._opened_before = True
        return self._connection

    def _set_up(self, raw: sqlite3.Connection) -> None:
        try:
            for pragma in self._pragmas:
                raw.execute(pragma).fetchall()
            self._prepare(raw)
        except sqlite3.Error as error:
            # No caller's statement runs here: what a statement of ours is refused for lies with the file.
            if _code(error) in _LOCKED | _FAULTS:
                raise
            reason = f"its microbatch_* tables cannot be made or read: {error}"
            raise QueueUnavailable(str(self.path), reason) from error
        finally:
            if raw.in_transaction:
                raw.execute("ROLLBACK")
        self.connections += 1
        inode = self.path.stat().st_ino
        if inode != self._inode:
            self._inode = inode
            self.generation += 1

    def forget(self) -> None:
        """Let go of the connection of an event loop that has ended: its thread closes it by itself."""
        connection, self._connection = self._connection, None
        self._lock = anyio.Lock(fast_acquire=True)
        if connection is not None:
            connection.stop()

    async def close(self) -> None:
        """Close the connection and end its thread, whatever is cancelled."""
        with anyio.CancelScope(shield=True):
            async with self._lock:
                connection, self._connection = self._connection, None
                if connection is not None:
                    await close(connection)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that only reads, all of it on one state of the file.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """

        def reading(raw: sqlite3.Connection) -> T:
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            self._check_in_place()
            raw.execute("BEGIN")
            try:
                return work(raw)
            finally:
                if raw.in_transaction:
                    raw.execute("COMMIT")

        return await self._run(reading)

    async def glance(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function outside of a transaction: for pragmas."""

        def glancing(raw: sqlite3.Connection) -> T:
            self._check_in_place()
            return work(raw)

        return await self._run(glancing)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a write transaction and commit it.

        Returns:
            What the function returned, once it is on the disk.

        Raises:
            QueueUnavailable: If the file cannot be used; nothing was written, unless the commit itself
                failed.
            sqlite3.Error: If a statement failed on its own account; nothing was written.
        """

        def writing(raw: sqlite3.Connection) -> T:
            _begin(raw)
            try:
                result = work(raw)
                self._check_in_place()
                raw.execute("COMMIT")
            except BaseException:
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
                raise
            return result

        return await self._run(writing)

    async def transaction_around(
        self,
        before: Callable[[sqlite3.Connection], T],
        inside: Callable[[aiosqlite.Connection, T], Awaitable[None]],
        *,
        timeout: float,
    ) -> T:
        """Run ``before`` in a write transaction, then a coroutine in the same one, then commit.

        The connection does nothing else meanwhile. If ``inside`` raises or takes longer than ``timeout``,
        everything is rolled back and that error is raised, a TimeoutError for the timeout.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """

        def starting(raw: sqlite3.Connection) -> T:
            _begin(raw)
            result = before(raw)
            cast("Guarded", raw).guarded = True
            return result

        def ending(raw: sqlite3.Connection) -> None:
            cast("Guarded", raw).guarded = False
            if not raw.in_transaction:
                message = (
                    "on_settle ended the settle transaction, or SQLite did after an error in it"
                )
                raise sqlite3.ProgrammingError(message)
            self._check_in_place()
            raw.execute("COMMIT")

        def undoing(raw: sqlite3.Connection) -> None:
            cast("Guarded", raw).guarded = False
            if raw.in_transaction:
                raw.execute("ROLLBACK")

        async def around() -> T:
            try:
                connection, result = await self._hop(starting)
                with anyio.fail_after(timeout):
                    await inside(connection, result)
                await self._hop(ending)
            except Locked:
                raise
            except BaseException:
                await self._hop(undoing)
                raise
            return result

        return await self._until_free(around)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        async def once() -> T:
            return (await self._hop(work))[1]

        return await self._until_free(once)

    async def _until_free(self, attempt: Callable[[], Awaitable[T]]) -> T:
        deadline = anyio.current_time() + LOCK_TIMEOUT
        while True:
            # Others may come in between two attempts, readers above all. A cancellation too: then the
            # transaction was never begun.
            async with self._lock:
                with anyio.CancelScope(shield=True):
                    try:
                        return await attempt()
                    except Locked as locked:
                        self.lock_waits += 1
                        if anyio.current_time() > deadline:
                            reason = f"another program has kept it locked for {LOCK_TIMEOUT:g} s"
                            raise QueueUnavailable(str(self.path), reason) from locked.__cause__

    async def _hop(self, work: Callable[[sqlite3.Connection], T]) -> tuple[aiosqlite.Connection, T]:
        try:
            with anyio.fail_after(HOP_TIMEOUT):
                connection = await self._connect()
                return connection, cast("T", await connection.execute_fetchall(Work(work)))
        except sqlite3.Error as error:
            code = _code(error)
            if code in _LOCKED:
                raise Locked from error
            if code not in _FAULTS:
                raise
            if code != sqlite3.SQLITE_FULL:
                # Whatever it was may have left this connection with a file that is no longer there, or
                # with damage in its cache: the next call opens anew.
                await self._abandon()
            raise self._translated(error, code) from error
        except (TypeError, ValueError, LookupError) as error:
            # SQLite checks little of what it reads: garbage in a page comes out as odd rows.
            await self._abandon()
            raise QueueCorrupt(str(self.path), f"a row makes no sense: {error!r}") from error
        except (_Moved, OSError) as error:  # a TimeoutError is an OSError
            await self._abandon()
            raise self._translated(error) from error

    async def _abandon(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with anyio.move_on_after(1.0):
                await close(connection)

    def _check_in_place(self) -> None:
        # A file that was deleted or replaced can still be written to, into nowhere. Looked at as late
        # as possible, before the commit that callers will rely on.
        try:
            inode = self.path.stat().st_ino
        except OSError as error:
            raise _Moved(str(error)) from error
        if inode != self._inode:
            message = "another file stands in its place"
            raise _Moved(message)

    def _translated(self, error: Exception, code: int = 0) -> QueueUnavailable:
        path = str(self.path)
        if code in _DAMAGED:
            return QueueCorrupt(path, str(error))
        if isinstance(error, _Moved):
            return QueueUnavailable(path, f"it was deleted or replaced under way: {error}")
        if isinstance(error, TimeoutError):
            return QueueUnavailable(path, f"the disk did not answer for {HOP_TIMEOUT:g} s")
        if isinstance(error, OSError):
            return QueueUnavailable(path, error.strerror or str(error))
        return QueueUnavailable(path, str(error))


class _Moved(Exception):
    """The file is no longer where it was opened."""


def _begin(raw: sqlite3.Connection) -> None:
    if raw.in_transaction:  # whoever began it was cancelled by force before it could end it
        raw.execute("ROLLBACK")
    # A deferred transaction that reads first and writes later fails at once, whatever the busy timeout.
    raw.execute("BEGIN IMMEDIATE")


def _code(error: sqlite3.Error) -> int:
    # The primary code: the low byte of the extended one. Errors of the sqlite3 module itself have none;
    # an operational one of those means bytes that are no text: garbage in a page.
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return sqlite3.SQLITE_CORRUPT if isinstance(error, sqlite3.OperationalError) else 0
    return int(code) & 0xFF
