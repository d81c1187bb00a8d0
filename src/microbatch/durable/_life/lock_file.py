"""Lock files: the bytes of them that this process holds, and what the system lets one do with them.

A POSIX record lock belongs to the process: it does not conflict with the same process's, and closing *any*
descriptor of the file drops it. So there is one descriptor per file and process, which is closed only once the
process holds nothing in that file, and a forked child touches none.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING

from microbatch.durable._file.place import adopt
from microbatch.durable.errors import QueueUnavailable

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":  # pragma: no cover - not run on this platform
    import msvcrt

    def _lock(descriptor: int, byte: int) -> bool:
        os.lseek(descriptor, byte, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _lock_again(descriptor: int, byte: int) -> bool:
        del descriptor, byte
        return True  # there a lock belongs to the descriptor, and no other close drops it

    def _unlock(descriptor: int, byte: int) -> None:
        os.lseek(descriptor, byte, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

    def _is_free(descriptor: int, byte: int) -> bool:
        if not _lock(descriptor, byte):
            return False
        _unlock(descriptor, byte)
        return True

else:
    import fcntl

    def _lock(descriptor: int, byte: int, kind: int = fcntl.LOCK_EX) -> bool:
        try:
            fcntl.lockf(descriptor, kind | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # what a lock in the way is called differs
            return False
        return True

    _lock_again = _lock

    def _unlock(descriptor: int, byte: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, byte)

    def _is_free(descriptor: int, byte: int) -> bool:
        # Shared, so that two who probe do not take each other for the consumer.
        if not _lock(descriptor, byte, fcntl.LOCK_SH):
            return False
        _unlock(descriptor, byte)
        return True


class LockFile:
    """A lock file that this process has open.

    Attributes:
        identity: Its device and inode, which no other file can have while it is open.
        held: Who holds which byte, in this process.
    """

    def __init__(self, descriptor: int, identity: str) -> None:
        self.identity = identity
        self.held: dict[int, object] = {}
        self._descriptor = descriptor

    def is_open(self) -> bool:
        """Tell whether the descriptor is still that file's: a program may close what it does not know."""
        try:
            return _identity(os.fstat(self._descriptor)) == self.identity
        except OSError:
            return False

    def lock(self, byte: int, holder: object) -> bool:
        """Lock a byte, or make sure that it still is; return whether it is the holder's.

        Raises:
            OSError: If the system has no lock to give.
        """
        before = self.held.get(byte)
        if before is not None and before is not holder:
            return False
        if not (_lock if before is None else _lock_again)(self._descriptor, byte):
            return False
        self.held[byte] = holder
        return True

    def unlock(self, byte: int) -> None:
        """Give back a byte that is held; the last one closes the file."""
        del self.held[byte]
        if self.is_open():
            # Else the end of the process, or of the descriptor, has done it or will.
            with contextlib.suppress(OSError):
                _unlock(self._descriptor, byte)
        self.close_if_idle()

    def is_locked_elsewhere(self, byte: int) -> bool:
        """Tell whether another process holds a byte; if that cannot be told, one does."""
        if byte in self.held:
            return False
        try:
            return not _is_free(self._descriptor, byte)
        except OSError:
            return True

    def close_if_idle(self) -> None:
        """Close it if this process holds nothing in it."""
        if self.held:
            return
        if files.open.get(self.identity) is self:
            del files.open[self.identity]
        if self.is_open():
            os.close(self._descriptor)


class _Files:
    """The lock files that this process has open; ask only while ``mutex`` is held.

    Attributes:
        open: Each by its identity.
    """

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.open: dict[str, LockFile] = {}

    def forget(self) -> None:
        """Forget in a forked child what is the parent's: the descriptors are there, but none of the locks."""
        self.__init__()  # type: ignore[misc]

    def at(self, path: Path) -> LockFile | None:
        """Return the lock file that stands at a path if it is open here; the caller closes it if idle."""
        found = self.open.get(identity_at(path))
        return found if found is not None and found.is_open() else None

    def open_existing(self, path: Path) -> LockFile | None:
        """Return the lock file that stands at a path; None if none does, or it cannot be opened."""
        found = self.at(path)
        if found is None:
            with contextlib.suppress(OSError, QueueUnavailable):
                found = self._open(path, 0, 0)
        return found

    def open_or_create(self, path: Path, database: Path) -> LockFile:
        """Return the lock file that stands at a path; made, with the database's mode and owner, if none does.

        Raises:
            QueueUnavailable: If it can be neither opened nor made; it names the lock file.
        """
        found = self.at(path)
        if found is not None:
            return found
        try:
            mode = stat.S_IMODE(database.stat().st_mode)
        except OSError as error:
            raise lock_file_unavailable(database, error) from error
        try:
            found = self._open(path, os.O_CREAT, mode)
        except OSError as error:
            raise lock_file_unavailable(path, error) from error
        adopt(database, path)
        return found

    def _open(self, path: Path, flags: int, mode: int) -> LockFile:
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"):
            flags |= getattr(os, name, 0)
        descriptor = os.open(path, flags | os.O_RDWR, mode)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(descriptor)
            raise QueueUnavailable(str(path), "it must be a regular file with one name")
        identity = _identity(found)
        lock_file = self.open.get(identity)
        if lock_file is None or not lock_file.is_open():
            lock_file = self.open[identity] = LockFile(descriptor, identity)
        # Else the file came to be between the two looks, and we have it open: this descriptor must stay
        # open, unused, for closing it would drop our locks.
        return lock_file


#: This process's.
files = _Files()

if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=files.forget)


def identity_at(path: Path) -> str:
    """Return which file stands at a path; empty if none does."""
    try:
        return _identity(path.lstat())
    except OSError:
        return ""


def _identity(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}"


def lock_file_unavailable(path: Path, error: OSError) -> QueueUnavailable:
    """Return what to raise for what the system said about a file."""
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        reason += ": who uses the queue must be able to read and write it"
    return QueueUnavailable(str(path), reason)
