"""The writer's connection: transactions, what SQLite says about the file, and opening it anew."""

from __future__ import annotations

import logging
import secrets
import sqlite3
import time
from typing import TYPE_CHECKING, Any, TypeVar

from microbatch.durable.errors import QueueCorrupt, QueueUnavailable

from . import schema, sql
from .faults import DAMAGED, FAULTS, LOCKED, primary_code
from .place import create_and_check, identity
from .session import Ids, Session, run

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator
    from pathlib import Path

    from .records import Step

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds for which a transaction keeps asking for the file's write lock: five times what `on_settle` of
#: another process may take.
LOCK_TIMEOUT = 30.0

#: Seconds for which SQLite itself waits at a time: it asks every 1 to 20 ms.
BUSY_TIMEOUT = 0.25

_SENSELESS = (TypeError, ValueError, LookupError)


class Fault(Exception):
    """The file cannot be used: nobody in the group could be served."""

    def __init__(self, kind: type[QueueUnavailable], path: str, reason: str) -> None:
        super().__init__(reason)
        self._kind = kind
        self._path = path
        self.reason = reason

    def error(self) -> QueueUnavailable:
        """Return a new error for one caller."""
        if isinstance(self.__cause__, QueueUnavailable):
            return self.__cause__
        error = self._kind(self._path, self.reason)
        error.__cause__ = self.__cause__
        return error


class Connection:
    """The file, open for writing, in the writer's thread.

    Args:
        path: The file, resolved.
        lives: Tells whether a consumer of a file of version 1 lives.
        synchronous: What is asked of the disk to begin with.

    Attributes:
        ticket: The number that this opening of the file drew: it goes into the tickets of new items.
        lock_waits: How often the file was found locked.
        held: The numbers of jobs that nobody here claims from yet.
        generation: How many different files have been open here.
        synchronous: The strongest that anybody asked for.
    """

    def __init__(
        self, path: Path, lives: Callable[[tuple[Any, ...]], bool], synchronous: str
    ) -> None:
        self._path = path
        self._name = str(path)
        self._lives = lives
        self._raw: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self.held: set[int] = set()
        self._ids = Ids(self.held)
        self.ticket = 0
        self.lock_waits = 0
        self.generation = 0
        self.synchronous = synchronous
        self._asked_for = synchronous

    def demand_synchronous(self, names: Collection[str]) -> None:
        """See that the disk is asked for as much as the strictest of these: from the next transaction on.

        Within one SQLite does not change it.
        """
        self.synchronous = max(names, key=schema.SYNCHRONOUS.__getitem__)

    @property
    def place(self) -> tuple[int, int] | None:
        """Return the device and inode of the file; None before it was opened."""
        return self._identity

    def session(self, *, reserves: bool = True) -> Session:
        """Return the statements for one transaction; another connection's must not reserve ids here."""
        return Session(
            path=self._path,
            now=time.time(),
            ticket=self.ticket,
            ids=self._ids if reserves else None,
            wal_size=lambda: schema.wal_size(self._path),
        )

    run = staticmethod(run)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a write transaction and commit it.

        Raises:
            Fault: If the file cannot be used; nothing was written, unless the commit itself failed.
            Exception: What the function raised; nothing was written.
        """
        with self._faults():
            raw = self._open()
            self._begin(raw)
            try:
                result = work(raw)
                self._check_in_place()
                raw.execute("COMMIT")
            except BaseException:
                self._ids.rollback()
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
                raise
            return result

    def attempt(self, raw: sqlite3.Connection, work: Callable[[], T]) -> T:
        """Run a function in a part of the transaction that is undone if it raises, and then alone.

        Unless SQLite has undone the whole transaction: then there is none any more.
        """
        mark = self._ids.mark()
        raw.execute("SAVEPOINT microbatch")
        try:
            return work()
        except BaseException:
            if raw.in_transaction:
                raw.execute("ROLLBACK TO microbatch")
                self._ids.rollback(mark)
            raise
        finally:
            if raw.in_transaction:
                raw.execute("RELEASE microbatch")

    def committed(self) -> None:
        """Keep the ids that the last transaction reserved."""
        self._ids.commit()

    def read(self, steps: Callable[[Session], Generator[Step, object, T]]) -> T:
        """Run statements that only read, on one state of the file.

        Raises:
            Fault: If the file cannot be used.
        """
        with self._faults(reading=True):
            raw = self._open()
            if raw.in_transaction:
                return run(raw, steps(self.session()))
            self._check_in_place()
            raw.execute("BEGIN")
            try:
                return run(raw, steps(self.session()))
            finally:
                if raw.in_transaction:
                    raw.execute("ROLLBACK")

    def version(self) -> tuple[int, int]:
        """Return what changes whenever another connection has committed, or another file is open here.

        Raises:
            Fault: If the file cannot be used.
        """
        with self._faults():
            raw = self._open()
            self._check_in_place()
            ((number,),) = raw.execute(sql.DATA_VERSION).fetchall()
            return self.generation, int(number)

    def is_still(self, version: tuple[int, int]) -> bool:
        """Tell whether nobody has committed since `version` said this; a file put in its place goes unseen."""
        if self._raw is None:
            return False
        try:
            ((number,),) = self._raw.execute(sql.DATA_VERSION).fetchall()
        except sqlite3.Error:
            return False  # a whole look tells of it
        return version == (self.generation, number)

    def empty_log(self) -> None:
        """Move what is in the write-ahead log into the file, if no reader needs it, and cut the log."""
        with self._faults():
            self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the connection, whatever SQLite says about it."""
        raw, self._raw = self._raw, None
        # What could not be committed may be on the disk all the same: its ids are never given again.
        self._ids = Ids(self.held)
        if raw is not None:
            try:
                raw.close()
            except sqlite3.Error as error:
                logger.debug("closing %s: %s", self._path, error)

    # Opening

    def _open(self) -> sqlite3.Connection:
        if self._raw is not None:
            return self._raw
        found = create_and_check(self._path, allowed=self._identity is None)
        raw = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=BUSY_TIMEOUT,
            cached_statements=256,
        )
        try:
            self._prepare(raw)
        except BaseException:
            raw.close()
            raise
        self._raw, self._asked_for = raw, self.synchronous
        if found != self._identity:
            self._identity = found
            self.generation += 1
            self.ticket = secrets.randbits(62)
            self._ids = Ids(self.held)
        return raw

    def _prepare(self, raw: sqlite3.Connection) -> None:
        try:
            schema.prepare(raw, self._path, self.synchronous, self._lives, self._begin_unlocked)
        except sqlite3.Error as error:
            # No caller's statement runs here: what a statement of ours is refused for lies with the file.
            if primary_code(error) in LOCKED | FAULTS:
                raise
            reason = f"its microbatch_* tables cannot be made or read: {error}"
            raise QueueUnavailable(str(self._path), reason) from error

    def _begin(self, raw: sqlite3.Connection) -> None:
        if raw.in_transaction:  # whoever began it could not end it
            raw.execute("ROLLBACK")
        if self._asked_for != self.synchronous:
            self._asked_for = self.synchronous
            raw.execute(f"PRAGMA synchronous = {schema.SYNCHRONOUS[self.synchronous]}")
        self._begin_unlocked(raw)

    def _begin_unlocked(self, raw: sqlite3.Connection) -> None:
        """Begin a transaction, once the file is not locked."""
        ends = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                # A deferred one that reads first and writes later fails at once, whatever the timeout.
                raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if primary_code(error) not in LOCKED:
                    raise
                self.lock_waits += 1
                if time.monotonic() > ends:
                    reason = f"another program has kept it locked for {LOCK_TIMEOUT:g} s"
                    raise Fault(QueueUnavailable, str(self._path), reason) from error
            else:
                return

    def _check_in_place(self) -> None:
        # A file that was deleted or replaced can still be written to, into nowhere. Looked at as late
        # as possible, before the commit that callers will rely on.
        try:
            found = identity(self._name)
        except OSError as error:
            raise _MovedError(str(error)) from error
        if found != self._identity:
            message = "another file stands in its place"
            raise _MovedError(message)

    # Faults

    def is_fault(self, error: sqlite3.Error) -> bool:
        """Tell whether the file or the disk is at fault, and not a statement."""
        return primary_code(error) in LOCKED | FAULTS

    def unusable(self, error: Exception) -> Exception:
        """Return what one caller is told whose own statements failed."""
        if isinstance(error, sqlite3.Error):
            refusal = QueueUnavailable(str(self._path), str(error))
        elif isinstance(error, _SENSELESS):
            refusal = QueueCorrupt(str(self._path), f"a row makes no sense: {error!r}")
        else:
            return error
        refusal.__cause__ = error
        return refusal

    def _faults(self, *, reading: bool = False) -> _Faults:
        return _Faults(self, reading)

    def fault_of(self, error: BaseException, *, reading: bool) -> Fault | None:
        """Return the fault of the file that an error shows; None if it shows another one.

        Whatever it is may have left the connection with a file that is no longer there, or with damage in
        its cache: the next transaction opens anew.
        """
        path = str(self._path)
        kind, reason, keep = QueueUnavailable, str(error), False
        if isinstance(error, QueueUnavailable):
            kind, reason = type(error), error.reason
        elif isinstance(error, sqlite3.Error):
            code = primary_code(error)
            if code in LOCKED:
                keep = True
            elif code not in FAULTS:
                return None
            elif code in DAMAGED:
                kind = QueueCorrupt
            else:
                keep = code == sqlite3.SQLITE_FULL
        elif isinstance(error, _MovedError):
            reason = f"it was deleted or replaced under way: {error}"
        elif isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif reading and isinstance(error, _SENSELESS):
            # SQLite checks little of what it reads: garbage in a page comes out as odd rows.
            kind, reason = QueueCorrupt, f"a row makes no sense: {error!r}"
        else:
            return None
        if not keep:
            self.close()
        fault = Fault(kind, path, reason)
        fault.__cause__ = error
        return fault


class _Faults:
    """Turns what shows that the file cannot be used into a `Fault`."""

    __slots__ = ("_connection", "_reading")

    def __init__(self, connection: Connection, reading: bool) -> None:
        self._connection = connection
        self._reading = reading

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, Fault):
            return
        fault = self._connection.fault_of(error, reading=self._reading)
        if fault is not None:
            raise fault from error


class _MovedError(Exception):
    """The file is no longer where it was opened."""
