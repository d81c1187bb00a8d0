"""A file that is looked at and nothing else: opened for reading only, never made, left as it was found.

SQLite makes a log and its index beside a file that is only read, and leaves them there. They are taken away
again where this look made them and nobody else uses them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from typing import TYPE_CHECKING, Any, TypeVar

from microbatch.durable.errors import QueueUnavailable, SchemaTooNew

from . import schema, sql
from .faults import primary_code, unavailable
from .session import Session, run

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from .records import Step

T = TypeVar("T")

#: Seconds for which a look waits for somebody who has the whole file locked.
LOOK_TIMEOUT = 5.0

#: Pages that are copied at once: between two of these an interruption comes through.
PAGES_COPIED = 256

#: How many bytes of the file, and from where on, hold SQLite's locks on it.
_SQLITE_LOCKS = (512, 0x40000000)


class Look:
    """A queue's file, open for reading.

    Args:
        path: The file, resolved.
        note: Told what the reader should know of how the file was opened.

    Attributes:
        immutable: Whether it is read as it stands, without a log: nobody may write here.

    Raises:
        QueueUnavailable: If it cannot be read; narrower where the reason is known.
    """

    def __init__(self, path: Path, note: Callable[[str], object] = lambda _: None) -> None:
        self._path = path
        self._made: list[Path] = []
        self.immutable = self._is_fixed()
        if self.immutable:
            note(f"{path} cannot be written by this user: it is read as it stands")
        else:
            self._made = [side for side in self._sides() if not side.exists()]
        with self._faults():
            try:
                self._raw = self._connect("mode=ro&immutable=1" if self.immutable else "mode=ro")
                self._check()
            except BaseException:
                self.close()
                raise

    def read(self, steps: Callable[[Session], Generator[Step, Any, T]]) -> T:
        """Run statements that only read, on one state of the file.

        Raises:
            QueueUnavailable: If the file cannot be read.
        """
        session = Session(
            path=self._path,
            now=time.time(),
            ticket=None,
            wal_size=lambda: schema.wal_size(self._path),
        )
        with self._faults():
            self._raw.execute("BEGIN")
            try:
                return run(self._raw, steps(session))
            finally:
                self._raw.execute("ROLLBACK")

    def backup(self, target: Path, progress: Callable[[int, int], object]) -> None:
        """Copy the file as it is at one moment, with what is in its log, into an empty file.

        Nobody is disturbed, but that the log cannot shrink meanwhile.

        Args:
            target: The empty file.
            progress: Told after each MiB or so how many pages are left, and how many there are.

        Raises:
            OSError: If there is no room for the copy.
            QueueUnavailable: If it cannot be read, or the copy cannot be written.
        """
        with self._faults(), contextlib.closing(_empty(target)) as copy:
            self._raw.execute("BEGIN")
            try:
                self._raw.execute(sql.HAS_TABLES).fetchall()  # from here on it is that moment
                self._raw.backup(
                    copy, pages=PAGES_COPIED, progress=lambda _, left, all_: progress(left, all_)
                )
            except sqlite3.Error as error:
                if primary_code(error) == sqlite3.SQLITE_FULL:  # who reads needs no room
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
                raise
            finally:
                self._raw.execute("ROLLBACK")

    def close(self) -> None:
        """Close it, and take away what it made beside the file."""
        raw = self.__dict__.pop("_raw", None)
        if raw is None:
            return
        raw.close()
        made = [side for side in self._made if side.exists()]
        if len(made) == 2:
            # SQLite knows best whether somebody else uses them: whoever closes the file last removes them.
            with contextlib.suppress(sqlite3.Error):
                last = self._connect("mode=rw")
                try:
                    last.execute(sql.HAS_TABLES).fetchall()
                finally:
                    last.close()
        elif made and made[0].name.endswith("-shm"):
            _remove_index(
                self._path, made[0]
            )  # the log was there: nothing of it may go into the file now

    # Opening

    def _is_fixed(self) -> bool:
        """Tell whether the file must be read without a log, as this user may write nothing here."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise QueueUnavailable(str(self._path), _cause(error)) from error
        if not stat.S_ISREG(found.st_mode):
            what = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise QueueUnavailable(str(self._path), f"it is {what}")
        if found.st_nlink > 1:  # its log has the other name
            reason = f"it has {found.st_nlink} names (hard links): a queue's file must have one"
            raise QueueUnavailable(str(self._path), reason)
        if os.access(self._path, os.W_OK) and os.access(self._path.parent, os.W_OK):
            return False
        if self._sides()[0].exists():
            reason = (
                "this user may not write here, and without that the log beside it (-wal) cannot be read: "
                "ask as the user whose workers use the file"
            )
            raise QueueUnavailable(str(self._path), reason)
        return True

    def _sides(self) -> list[Path]:
        return [self._path.with_name(self._path.name + suffix) for suffix in ("-wal", "-shm")]

    def _connect(self, how: str) -> sqlite3.Connection:
        uri = f"{self._path.as_uri()}?{how}"
        return sqlite3.connect(uri, uri=True, timeout=LOOK_TIMEOUT, isolation_level=None)

    def _check(self) -> None:
        if sqlite3.sqlite_version_info < schema.SQLITE_MINIMUM:
            needed = ".".join(map(str, schema.SQLITE_MINIMUM))
            reason = f"microbatch needs SQLite {needed}, this Python has {sqlite3.sqlite_version}"
            raise QueueUnavailable(str(self._path), reason)
        self._raw.execute("PRAGMA query_only = ON")
        found = schema.version(self._raw)
        if found > schema.SCHEMA_VERSION:
            raise SchemaTooNew(str(self._path), found, schema.SCHEMA_VERSION)
        if found != schema.SCHEMA_VERSION:
            reason = "it has no tables of microbatch"
            if found:
                reason = (
                    f"its schema is version {found}, and a look changes nothing: let a worker of this version "
                    "open it once, which brings it up to date"
                )
            raise QueueUnavailable(str(self._path), reason)

    @contextlib.contextmanager
    def _faults(self) -> Any:
        try:
            yield
        except sqlite3.Error as error:
            raise unavailable(str(self._path), error) or QueueUnavailable(
                str(self._path), str(error)
            ) from error


def _empty(target: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{target.as_uri()}?mode=rw", uri=True, isolation_level=None)


def _remove_index(path: Path, index: Path) -> None:
    """Remove the log's index, which is made anew when it is needed, unless somebody has the file open."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:  # pragma: no cover - there it stays
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        try:
            # Whoever has it open holds a lock within these bytes, and nobody can open it meanwhile.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, *_SQLITE_LOCKS)
            index.unlink()
        finally:
            os.close(descriptor)


def _cause(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return error.strerror or str(error)
