"""Who lives is the operating system's word: a record lock on a byte of its own for each consumer.

The kernel drops a process's record locks when it dies, however it dies, and not before. So nobody has to
renew a lease, and no clock is asked. What was rejected: leases (a long handler or a stopped process loses
its items while it still works on them), ``flock`` (it belongs to the open file, so a forked child keeps it
alive), locks on the database itself (SQLite closes it when it likes, and any close drops them all).

A POSIX record lock belongs to the process: it does not conflict with the same process's, and closing *any*
descriptor of the file drops it. So there is one descriptor per file and process, and consumers of
one process are told apart in memory.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .records import Consumer

if sys.platform == "win32":  # pragma: no cover - not run on this platform
    import msvcrt

    def _try_lock(descriptor: int, byte: int) -> bool:
        os.lseek(descriptor, byte, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int, byte: int) -> None:
        os.lseek(descriptor, byte, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int, byte: int) -> bool:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int, byte: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, byte)


class _LockFile:
    """A lock file that this process has open, and the bytes of it that this process holds."""

    def __init__(self, descriptor: int, identity: int) -> None:
        self.descriptor = descriptor
        self.identity = identity
        self.held: dict[int, Callable[[], bool]] = {}


#: By inode. A descriptor is closed only once the process holds nothing in its file: until then a close,
#: even of a second descriptor, would drop the locks of every other consumer of this process.
_open_files: dict[int, _LockFile] = {}
_mutex = threading.RLock()


def _forget_in_child() -> None:
    # The child has the descriptors but none of the locks: it forgets them and leaves them untouched.
    global _mutex  # noqa: PLW0603
    _mutex = threading.RLock()
    _open_files.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_forget_in_child)


def birth_of(pid: int) -> str | None:
    """Return what tells a process from a later one with the same number; None if there is no such thing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in brackets may hold anything, blanks and brackets too: fields count from the last bracket.
    return stat.rpartition(")")[2].split()[19]


class Presence:
    """One consumer's sign of life in ``<path>-alive``.

    Args:
        path: The queue's file; the lock file beside it gets its permissions.
        lives: Tells the consumers of this same process whether this one still works: its event loop may
            have ended under it.
    """

    def __init__(self, path: Path, lives: Callable[[], bool] = lambda: True) -> None:
        self._database = path
        self._lives = lives
        self._path = path.with_name(f"{path.name}-alive")
        self._file: _LockFile | None = None
        self._byte: int | None = None

    @property
    def identity(self) -> int:
        """Return which lock file this is: its inode, which cannot be used again while it is open."""
        return self._file.identity if self._file else 0

    def take(self, byte: int) -> int | None:
        """Hold a byte, in whatever file stands at the path now.

        Returns:
            The file's identity; None if another consumer holds the byte.

        Raises:
            OSError: If the file can be neither opened nor created.
        """
        with _mutex:
            lock_file = self._open()
            if byte in lock_file.held or not _try_lock(lock_file.descriptor, byte):
                return None
            lock_file.held[byte] = self._lives
            before, self._file, self._byte = self._file, lock_file, byte
            _drop(before, byte, unless=lock_file)
            return lock_file.identity

    def release(self) -> None:
        """Let go of the byte: from now on everybody sees this consumer as gone. Harmless if repeated."""
        with _mutex:
            lock_file, self._file = self._file, None
            if lock_file is not None and _open_files.get(lock_file.identity) is lock_file:
                _drop(lock_file, self._byte)

    def follow(self) -> bool:
        """Take the byte in a new lock file too if somebody deleted or replaced the old one.

        Returns:
            Whether it did: the new identity must then be written into the queue's file.
        """
        with _mutex:
            if self._byte is None or self._stat() == self.identity:
                return False
            return self.take(self._byte) is not None

    def sees(self, consumer: Consumer) -> bool:
        """Return whether a consumer lives. If in doubt it does: an item handled late is better than twice."""
        with _mutex:
            lock_file = _open_files.get(consumer.lock_file)
            if lock_file is None and consumer.pid == os.getpid():
                # This process knows what it holds. If it is nowhere, the row came with a copy of the file;
                # if it is elsewhere, it may just be moving.
                held = (other.held.get(consumer.id) for other in _open_files.values())
                return any(lives is not None and lives() for lives in held)
            if lock_file is None:
                # Its lock is in a file that has been deleted since, so it cannot be asked for. A living
                # process notices that too and moves (`follow`); until then its number must do.
                return _runs(consumer.pid, consumer.born)
            lives = lock_file.held.get(consumer.id)
            if lives is not None:
                return lives()
            if not _try_lock(lock_file.descriptor, consumer.id):
                return True
            _unlock(lock_file.descriptor, consumer.id)
            return False

    def _stat(self) -> int:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return 0

    def _open(self) -> _LockFile:
        lock_file = _open_files.get(self._stat())
        if lock_file is None:
            mode = self._database.stat().st_mode & 0o777
            descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), mode
            )
            identity = os.fstat(descriptor).st_ino
            # If the file came to be between the two looks, and we have it open, then this descriptor
            # must stay open, unused: closing it would drop our locks.
            lock_file = _open_files.setdefault(identity, _LockFile(descriptor, identity))
        return lock_file


def _drop(
    lock_file: _LockFile | None, byte: int | None, *, unless: _LockFile | None = None
) -> None:
    if lock_file is None or byte is None or lock_file is unless:
        return
    lock_file.held.pop(byte, None)
    with contextlib.suppress(OSError):
        _unlock(lock_file.descriptor, byte)
    if not lock_file.held:
        del _open_files[lock_file.identity]
        os.close(lock_file.descriptor)


def _runs(pid: int, born: str | None) -> bool:
    if sys.platform == "win32":  # pragma: no cover - an open file cannot be deleted there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, as somebody else
    return born is None or birth_of(pid) in {born, None}
