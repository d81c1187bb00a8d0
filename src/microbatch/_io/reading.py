"""The bytes of a file, a block at a time, unzipped and decoded: plain files, pipes, terminals.

Blocking, but never for long: `Input.wait` waits for a pipe in the event loop.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import stat
import zlib
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from pathlib import Path

#: Bytes that are read at a time: some thousand rows, a few milliseconds of work in the thread.
BLOCK_BYTES = 256 * 1024

#: Stands in a text for what could not be decoded: no decoder makes it of sound bytes.
UNDECODABLE = "\udcff"
_HANDLER = "microbatch.undecodable"
codecs.register_error(_HANDLER, lambda error: (UNDECODABLE, getattr(error, "end", 0)))

_GZIP, _GZIP_MAGIC = 31, b"\x1f\x8b"  # zlib's "wbits" for a gzip header and trailer
_NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)  # a named pipe opens before anybody writes to it

_MARKS = {  # UTF-32's first: UTF-16's begins as they do
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: Which of the first four bytes are 0 where a text in ASCII begins without a mark.
_ZEROS = {
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
}


class Input:
    """A file that is read block by block.

    Args:
        path: The file.
        zipped: Whether it is gzip's; None: its first two bytes tell.

    Attributes:
        ended: True once all of it has been read.
        position: How many of its bytes have been read; of a gzip the zipped ones.
    """

    def __init__(self, path: Path, *, zipped: bool | None) -> None:
        self.ended = False
        self.position = 0
        self._first = b""
        self._file = io.FileIO(os.fspath(path), "rb", opener=_open)
        mode = os.fstat(self._file.fileno()).st_mode
        self._may_wait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or self._file.isatty()
        self._zipped = zipped
        self._member: zlib._Decompress | None = None
        self._members = 0
        self._compressed = b""
        self._error: Exception | None = None

    async def wait(self) -> None:
        """Return when there is something to read."""
        if self._may_wait and not self._compressed:
            await anyio.wait_readable(self._file.fileno())

    def read(self) -> bytes:
        """Return what is there, a block at most; nothing at the end, or if no more has come yet.

        Raises:
            OSError: If it cannot be read, or its gzip is damaged: after what was whole.
            EOFError: If its gzip breaks off, likewise.
        """
        if self._error is not None:
            raise self._error
        if self._compressed:
            return self._unzip()
        data = self._file.read(BLOCK_BYTES)
        if data is None:
            return b""
        self.position += len(data)
        if self._zipped is None:
            data = self._first + data
            if data == _GZIP_MAGIC[:1] and len(data) > len(self._first):
                self._first = data
                return b""
            self._zipped = data.startswith(_GZIP_MAGIC)
            self._first = b""
        if not data:
            return self._end()
        if not self._zipped:
            return data
        self._compressed = data
        return self._unzip()

    def _unzip(self) -> bytes:
        if self._member is None and not self._begin():
            return b""
        member, data = self._member, self._compressed
        assert member is not None  # noqa: S101 - just begun
        before = member.copy()
        try:
            found = member.decompress(data, BLOCK_BYTES)
        except zlib.error as error:
            self._compressed = b""
            self._error = gzip.BadGzipFile(f"the gzip is damaged: {error}")
            return _until_damage(before, data)
        self._compressed = member.unconsumed_tail
        if member.eof:
            self._compressed, self._member = member.unused_data, None
        return found

    def _begin(self) -> bool:
        """Begin the next member of the gzip file, after the zeros that may fill a file up."""
        if self._members:
            self._compressed = self._compressed.lstrip(b"\0")
        if not self._compressed:
            return False
        magic = self._compressed[:2]
        if not _GZIP_MAGIC.startswith(magic):
            self._compressed = b""
            raise gzip.BadGzipFile(f"Not a gzipped file ({magic!r})")
        self._member = zlib.decompressobj(_GZIP)
        self._members += 1
        return True

    def _end(self) -> bytes:
        if self._member is None:
            self.ended = True
            return b""
        self._error = EOFError("the gzip breaks off: the file is not whole")
        return self._member.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open(path: str, flags: int) -> int:
    if path == "/dev/stdin":
        # Opened by its name a file would begin anew, its permissions would be asked for again, and a socket,
        # which some programs give their children, has no name. Not made non-blocking: others have it too.
        return os.dup(0)
    return os.open(path, flags | _NON_BLOCKING)


def _until_damage(member: zlib._Decompress, data: bytes) -> bytes:
    """Return what can be unzipped; zlib gives nothing of a piece with damage in it."""
    found: list[bytes] = []
    with contextlib.suppress(zlib.error):
        found.extend(member.decompress(data[at : at + 1]) for at in range(len(data)))
    return b"".join(found)


class Decoder:
    """Turns a file's bytes into text; what cannot be decoded becomes `UNDECODABLE`.

    Attributes:
        name: What the encoding is called in messages.
    """

    def __init__(self, encoding: str | None) -> None:
        self.name = encoding or "UTF-8"
        self._guesses = encoding is None
        self._is_utf8 = codecs.lookup(encoding or "utf-8").name in {"utf-8", "utf-8-sig"}
        kind = "utf-8" if self._is_utf8 else encoding or ""
        self._decode = codecs.getincrementaldecoder(kind)(_HANDLER).decode
        self._first: bytes | None = b""
        self._has_text = False

    def text(self, data: bytes, *, final: bool) -> str:
        """Return the text of the next bytes, without a byte order mark.

        Raises:
            ValueError: If no encoding was given, and this begins as UTF-16 or UTF-32 does.
        """
        text = self._decode(self._after_mark(data, final=final), final=final)
        if text and not self._has_text:
            self._has_text = True
            text = text.removeprefix("\ufeff")
        return text

    def utf8(self, data: bytes, *, final: bool) -> bytes:
        """Return the same as UTF-8; what cannot be decoded is not UTF-8 there either."""
        if self._is_utf8:
            return self._after_mark(data, final=final)
        return self.text(data, final=final).encode(errors="surrogatepass")

    def _after_mark(self, data: bytes, *, final: bool) -> bytes:
        if self._first is None:
            return data
        data = self._first + data
        if not final and not _tells(data):
            self._first = data
            return b""
        self._first = None
        if self._guesses:
            _refuse_others(data)
        return data.removeprefix(codecs.BOM_UTF8) if self._is_utf8 else data


def _tells(data: bytes) -> bool:
    """Tell whether these first bytes are enough to know a mark by."""
    return len(data) >= 4 or (len(data) >= 2 and 0 < data[0] < 0x80 and data[1] != 0)


def _refuse_others(first: bytes) -> None:
    found = next((name for mark, name in _MARKS.items() if first.startswith(mark)), None)
    if found is None:
        found = _ZEROS.get(tuple(byte == 0 for byte in first[:4]))  # type: ignore[arg-type]
    if found is not None:
        raise ValueError(f"the file begins as {found} does, not as UTF-8: give encoding={found!r}")
