"""Rows of NDJSON: one JSON value on each line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import finding
from .finding import Found

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._pure.report import Outcome

    from .reading import Decoder


class NdjsonRows:
    """Finds rows in a file with one JSON value on each line; blank lines are left out."""

    def __init__(self, decoder: Decoder, decode: Callable[[bytes], Any]) -> None:
        self.error: Exception | None = None
        self._decoder = decoder
        self._decode = decode
        self._found = Found(decoder.name)
        self._line = 1
        self._pieces: list[bytes] = []  # of the line that goes on in the next block
        self._length = 0
        self._cr = False  # it ends in a CR so far

    def feed(self, data: bytes, *, final: bool) -> list[Outcome[Any]]:
        """Return the rows that ended in this piece; what ends the reading is kept as the error."""
        try:
            data = self._decoder.utf8(data, final=final)
        except ValueError as error:
            self.error = error
            return []
        if self._cr and data and not data.startswith(b"\n"):
            self._end(b"")
        lines = data.splitlines(keepends=True)
        rest = b""
        if lines and not final and not lines[-1].endswith(b"\n"):  # after a CR there may come an LF
            rest = lines.pop()
        if self._pieces and (lines or final):
            self._end(lines.pop(0) if lines else b"")
        self._take(lines)
        if rest:
            self._begin(rest)
        return self._found.taken()

    def _begin(self, piece: bytes) -> None:
        """Keep a piece of a line, unless the line is too long already."""
        if self._length <= finding.ROW_LENGTH_MAX:
            self._pieces.append(piece)
            self._length += len(piece)
        self._cr = piece.endswith(b"\r")

    def _end(self, piece: bytes) -> None:
        """Take the line that ends with this piece."""
        self._begin(piece)
        line = b"".join(self._pieces)
        self._pieces, self._length, self._cr = [], 0, False
        if len(line.removesuffix(b"\n").removesuffix(b"\r")) > finding.ROW_LENGTH_MAX:
            begins = line[: finding.SHOWN_OF_LONG_ROWS].decode(errors="replace")
            self._found.too_long(self._line, begins)
            self._line += 1
        else:
            self._take([line])

    def _take(self, lines: list[bytes]) -> None:
        at = 0
        rest = iter(lines)
        while at < len(lines):
            # A line each: many lines at once would not tell two values on one line from a blank one.
            values: list[Any] = []
            try:
                values.extend(map(self._decode, rest))  # keeps what came before an error
            except Exception as error:  # noqa: BLE001 - a user's type may raise anything
                problem: Exception | None = error
            else:
                problem = None
            self._found.good_lines(self._line + at, values)
            at += len(values)
            if problem is not None:
                self._take_bad(self._line + at, lines[at], problem)
                at += 1
        self._line += len(lines)

    def _take_bad(self, line: int, text: bytes, problem: Exception) -> None:
        if isinstance(problem, UnicodeDecodeError):
            self._found.bad_text(line, text.decode(errors="replace").rstrip())
        elif not text.isspace():
            self._found.bad(line, problem, text.decode(errors="replace").rstrip())
