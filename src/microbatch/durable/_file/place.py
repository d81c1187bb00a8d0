"""Where a queue's file is: its path, resolved once, and what a file there must be like.

A file is known by its device and inode. Two names of one file would be two lock files and two logs: symlinks
are resolved, and hard links are refused.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path
from typing import Any

from microbatch.durable.errors import QueueUnavailable

#: Device and inode.
Identity = tuple[int, int]

#: What stands beside the database: SQLite's log and its index, and the consumers' locks.
SIDE_FILES = ("-wal", "-shm", "-alive")

#: One file at a time is created in this process. A close drops all locks that the process has on a file, so no
#: other thread may open a new file before this one has closed it.
_creating = threading.Lock()


def _forget_mutex() -> None:
    global _creating  # noqa: PLW0603 - another thread may have had it when the process forked
    _creating = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_forget_mutex)


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path without symlinks. Nothing is opened, and no file needs to be there.

    Raises:
        TypeError: If it is no str and no path of str.
        ValueError: If it can be no file's name.
    """
    text: Any = os.fspath(path)
    if not isinstance(text, str):
        message = f"path must be a str or a path of str, got {path!r}"
        raise TypeError(message)
    refusal = _refusal(text)
    if refusal is not None:
        message = f"path must name a file, got {text!r}: {refusal}"
        raise ValueError(message)
    # The working directory and the symlinks may change before the first call.
    return Path(os.path.realpath(text))


def _refusal(text: str) -> str | None:
    lower = text.lower()
    found = {
        "it is empty": not text,
        "it has a NUL in it": "\0" in text,
        "it has a lone surrogate in it, which no file name can have": not _encodes(text),
        "a queue in memory would not be durable: in tests, use a file in a temporary directory": (
            lower == ":memory:" or lower.startswith("file::memory:")
        ),
        "give the path itself, not a URI": lower.startswith("file:"),
        "it is a directory: add the file's name": text.endswith(("/", os.sep))
        or Path(text).name in ("", ".."),
    }
    return next((refusal for refusal, applies in found.items() if applies), None)


def _encodes(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def storable_name(setting: str, value: Any) -> str:
    """Return a name that can stand in the file.

    Raises:
        TypeError: If it is no str, or an empty one.
        ValueError: If it has no UTF-8 form.
    """
    if not isinstance(value, str) or not value:
        message = f"{setting} must be a str that is not empty, got {value!r}"
        raise TypeError(message)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        message = (
            f"{setting} must not have lone surrogates, which have no UTF-8 form, got {value!r}"
        )
        raise ValueError(message) from None
    return value


def identity(path: str | Path) -> Identity:
    """Return the device and inode of the file that stands at a path now.

    Raises:
        OSError: If none does, or it cannot be looked at.
    """
    found = os.stat(path)  # noqa: PTH116 - before each commit: given as str, without three calls of pathlib's
    return found.st_dev, found.st_ino


def create_and_check(path: Path, *, allowed: bool = True) -> Identity:
    """Make the file, readable by its owner only, if there is none and that is ``allowed``; return what it is.

    Where this process may, the files beside it get its mode and owner.

    Raises:
        QueueUnavailable: If there can be no file here, or what is here is no file with one name.
    """
    with _creating:
        try:
            found = _stat_or_create(path, allowed)
        except OSError as error:
            raise QueueUnavailable(str(path), _reason(error, path)) from error
    if stat.S_ISDIR(found.st_mode):
        raise QueueUnavailable(str(path), "it is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise QueueUnavailable(str(path), "it is no regular file")
    if found.st_nlink > 1:
        # By its other name it would have another log and another lock file: two writers, and damage.
        reason = f"it has {found.st_nlink} names (hard links): a queue's file must have one"
        raise QueueUnavailable(str(path), reason)
    for suffix in SIDE_FILES:
        adopt(path, path.with_name(path.name + suffix))
    return found.st_dev, found.st_ino


def _stat_or_create(path: Path, allowed: bool) -> os.stat_result:
    with contextlib.suppress(FileNotFoundError):
        return path.stat()
    if not allowed:
        raise QueueUnavailable(str(path), "it was deleted under way: restore it, or open it anew")
    with contextlib.suppress(FileExistsError):  # another process was first
        # Exclusive: only a file that nobody has open may be closed here, for a close drops SQLite's locks.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    return path.stat()


def _reason(error: OSError, path: Path) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        return f"its directory {str(path.parent)!r} does not exist"
    return reason


def adopt(database: Path, side: Path) -> None:
    """Give a file beside the database its owner and mode, as far as this process may.

    Another user who may use the database must be able to use what belongs to it, whoever made that and
    under whatever umask. SQLite sees to its own files when it makes them, but not later.
    """
    with contextlib.suppress(OSError):  # it is not there, or is not ours to change
        wanted, found = database.stat(), side.lstat()
        # Never through a link: in a directory that others may write to, it could lead to anything.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return
        if hasattr(os, "chown"):  # pragma: no branch - not on Windows
            _own(side, found, wanted)
        if stat.S_IMODE(found.st_mode) != stat.S_IMODE(wanted.st_mode):
            side.chmod(stat.S_IMODE(wanted.st_mode))


def _own(side: Path, found: os.stat_result, wanted: os.stat_result) -> None:
    if (found.st_uid, found.st_gid) == (wanted.st_uid, wanted.st_gid):
        return
    for owner in (
        wanted.st_uid,
        -1,
    ):  # only root may give a file away; a group of its own the owner may set
        try:
            os.chown(side, owner, wanted.st_gid, follow_symlinks=False)
        except PermissionError:
            continue
        return
