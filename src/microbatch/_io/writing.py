"""A file that takes its name when it is whole."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import secrets
import stat
from pathlib import Path
from typing import IO, cast

#: Rows that are encoded and written together.
ROWS_AT_A_TIME = 1000

#: Half the time of gzip's default 9, for a few per cent more bytes.
_GZIP_LEVEL = 6


class Output:
    """A file that is written under a temporary name beside its own.

    Raises:
        OSError: If it cannot be made, or what has the name now is no file.
    """

    def __init__(self, path: Path, *, zipped: bool) -> None:
        # What a symbolic link points to is replaced, not the link.
        self._path = Path(os.path.realpath(path))
        old = _file_at(self._path)
        # Part of the name alone, for the whole with what is added may be longer than names may be.
        name = f".{self._path.name[:40]}.{secrets.token_hex(6)}.part"
        self._parts = self._path.with_name(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._raw = os.fdopen(os.open(self._parts, flags, 0o600 if old else 0o666), "wb")
        self._file: IO[bytes] = self._raw
        try:
            if old:
                _take_after(old, self._raw.fileno())
            if zipped:  # without a name inside, which would be the temporary one
                self._file = cast(
                    "IO[bytes]", gzip.GzipFile("", "wb", _GZIP_LEVEL, fileobj=self._raw)
                )
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes) -> None:
        """Write on."""
        self._file.write(data)

    def finish(self, data: bytes) -> None:
        """Write what is left, make sure that it is on disk, and give the file its name."""
        self._file.write(data)
        if self._file is not self._raw:
            self._file.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._raw.close()
        self._parts.replace(self._path)

    def close(self) -> None:
        """Close it; unless it is finished, nothing is left of it."""
        for file in (self._file, self._raw):
            with contextlib.suppress(OSError):  # nothing to say beside the error that ended it
                file.close()
        self._parts.unlink(missing_ok=True)


def _file_at(path: Path) -> os.stat_result | None:
    """Return what is known of the file that will be replaced; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no file, so nothing can take its place", str(path))
    return found


def _take_after(old: os.stat_result, descriptor: int) -> None:
    """Give a new file the mode of the one that it will replace, and its owner if that is allowed."""
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
