"""A connection that takes a whole transaction along in one hop to its thread.

aiosqlite carries one call at a time to the connection's thread. If BEGIN, the statements and COMMIT
went one by one, each would cost a hop, and a cancellation or another task could come between them. So a
whole transaction travels as one call: `Work` is a string to aiosqlite and a function to the connection class
that we hand to ``sqlite3.connect(factory=...)``. It runs from BEGIN to COMMIT or ROLLBACK in the connection's
thread, and nothing that happens in the event loop can leave it open.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import aiosqlite

from microbatch._loops.current import current_loop

from .errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

#: Seconds for which SQLite itself waits within one hop. It asks every 1 to 20 ms in that time, and the
#: thread is free for reads in between.
BUSY_TIMEOUT = 0.05

_ENDS_TRANSACTION = ("begin", "commit", "end", "rollback")


class Work(str, Generic[T]):
    """A function over the connection, dressed as SQL so that aiosqlite's own call takes it along."""

    __slots__ = ("run",)
    run: Callable[[sqlite3.Connection], T]

    def __new__(cls, run: Callable[[sqlite3.Connection], T]) -> Work[T]:
        """Dress a function."""
        work = super().__new__(cls, "-- a function")
        work.run = run
        return work


class _Result:
    def __init__(self, value: Any) -> None:
        self.fetchall = lambda: value


# ruff: noqa: D102 - the methods are sqlite3's


class Guarded(sqlite3.Connection):
    """A connection that runs `Work`, and that lets nobody end a transaction while it is guarded."""

    #: Whether a transaction is open that only its owner may end.
    guarded = False

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        if type(sql) is Work:
            return _Result(sql.run(self))
        if self.guarded:
            self._refuse_if(sql.lstrip().lower().startswith(_ENDS_TRANSACTION))
        return super().execute(sql, parameters)

    def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
        self._refuse_if(self.guarded)  # it commits before it starts
        return super().executescript(sql_script)

    def commit(self) -> None:
        self._refuse_if(self.guarded)
        super().commit()

    def rollback(self) -> None:
        self._refuse_if(self.guarded)
        super().rollback()

    def _refuse_if(self, ends: bool) -> None:
        if ends:
            message = "on_settle runs inside the settle transaction: it may not begin, commit or roll back"
            raise sqlite3.ProgrammingError(message)


def create(path: Path, *, allowed: bool) -> None:
    """Make the file, readable by its owner only, if there is none and that is ``allowed``.

    Raises:
        QueueUnavailable: If there can be no file here.
    """
    text = str(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not allowed:
            raise QueueUnavailable(
                text, "it was deleted under way: restore it, or open it anew"
            ) from None
    except OSError as error:
        raise QueueUnavailable(text, error.strerror or str(error)) from error
    else:
        if stat.S_ISDIR(mode):
            raise QueueUnavailable(text, "it is a directory")
        return
    try:
        # Exclusive: only a file that nobody has open may be closed here, for a close drops SQLite's locks.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise QueueUnavailable(text, error.strerror or str(error)) from error


def connect(path: Path) -> aiosqlite.Connection:
    """Return a connection to a file that exists, to be awaited, on a thread that ends with the process."""
    opened: list[Guarded] = []

    def factory(*arguments: Any, **settings: Any) -> Guarded:
        raw = Guarded(*arguments, **settings)
        opened.append(raw)
        return raw

    # aiosqlite's thread is not a daemon, so a program that forgets to close would never exit. A thread
    # inherits that from the thread that makes it: hence this one. Dying in a transaction is what WAL is for.
    made: list[aiosqlite.Connection] = []

    def make() -> None:
        made.append(
            aiosqlite.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                factory=factory,
                isolation_level=None,
                timeout=BUSY_TIMEOUT,
                cached_statements=256,
            )
        )

    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    maker.join()
    (connection,) = made
    with contextlib.suppress(AttributeError):  # it is private, and only ends more tidily for this
        thread: threading.Thread = connection._thread  # noqa: SLF001
        thread.run = partial(_run, thread.run, opened, current_loop().has_ended)  # type: ignore[method-assign]
    return connection


def _run(run: Callable[[], None], opened: list[Guarded], has_ended: Callable[[], bool]) -> None:
    """Run a connection's thread to its end, however its event loop ends, and close what it opened."""
    try:
        run()
    except RuntimeError:
        if not has_ended():  # then it had an answer, and nobody is left to take it
            raise
    finally:
        # aiosqlite drops a connection whose opening was cancelled.
        for raw in opened:
            with contextlib.suppress(sqlite3.Error):
                raw.close()


async def close(connection: aiosqlite.Connection) -> None:
    """Close a connection and end its thread, whatever SQLite says about it."""
    with contextlib.suppress(sqlite3.Error, ValueError):
        await connection.close()
