"""One row of CSV of any length, piece by piece."""

from __future__ import annotations

import re
from functools import lru_cache

from . import finding

_CELL, _PLAIN, _QUOTED, _QUOTE, _BROKEN, _CR = range(6)
# Possessive: else each repetition would be kept, to come back to.
_IN_QUOTES = re.compile(r'[^"]*+(?:""[^"]*+)*+')
_IN_LINE = re.compile(r"[^\r\n]*+")


class LongRow:
    """One row, taken as `csv.reader` with ``strict=True`` takes it, but for its limit of a cell.

    It is for the row that lies across two blocks, and for what `csv.reader` refuses: after an error
    that has forgotten where it was, so the rest of a row would be taken for rows.

    Attributes:
        cells: The cells; none of a blank line, or of a row that is too long.
        problem: What is wrong with it. As for `csv.reader`, the row then ends with that line.
        too_long: True if it has more than `ROW_LENGTH_MAX` characters. Its end is found all the
            same, for its rest is no row.
        text: The row as it stands, as far as it was kept.
        lines: The lines that it ended.
    """

    def __init__(self, delimiter: str) -> None:
        self.cells: list[str] = []
        self.problem: str | None = None
        self.too_long = False
        self.length_max = finding.ROW_LENGTH_MAX
        self.lines = 0
        self._delimiter = delimiter
        self._in_cell = _until(delimiter)
        self._state = _CELL
        self._cell: list[str] = []
        self._texts: list[str] = []
        self._length = 0
        self._last = ""

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def feed(self, text: str, *, final: bool, cut: bool = True) -> int | None:
        """Take what comes next; return where in it the row ended, None if it goes on.

        Args:
            text: What comes next.
            final: True if the file ends with it.
            cut: False if it is known that no LF follows where it ends in a CR.
        """
        if not text and not final:
            return None
        if self._state == _CR:  # the row has ended; only its line end may go on
            return 1 if text.startswith("\n") else 0
        stop = self._scan(text)
        if stop is None:
            end = len(text)
            if final:
                self._end_of_file()
        else:
            end = stop + (2 if text.startswith("\r\n", stop) else 1)
        self._keep_text(text, len(text) if stop is None else stop, end)
        if stop is None:
            return end if final else None
        if cut and not final and end == len(text) and text[stop] == "\r":
            self._state = _CR
            return None
        return end

    def _scan(self, text: str) -> int | None:
        """Go through the text; return where the line end is with which the row ends."""
        at = 0
        while at < len(text):
            if self._state == _CELL:
                self._state = _QUOTED if text[at] == '"' else _PLAIN
                at += self._state == _QUOTED
                continue
            if self._state == _QUOTED:
                end = _match(_IN_QUOTES, text, at)
                self._cell.append(text[at:end].replace('""', '"'))
                if end < len(text):
                    self._state = _QUOTE  # its end, or the first of two
                at = end + 1
                continue
            if self._state == _QUOTE and text[at] == '"':
                self._cell.append('"')
                self._state = _QUOTED
                at += 1
                continue
            if self._state == _QUOTE and text[at] not in (self._delimiter, "\r", "\n"):
                self.problem = f"{self._delimiter!r} expected after '\"'"
                self._state = _BROKEN
            if self._state == _BROKEN:
                at = _match(_IN_LINE, text, at)
            elif self._state == _PLAIN:
                end = _match(self._in_cell, text, at)
                self._cell.append(text[at:end])
                at = end
            if at < len(text):
                self._end_cell()
                if text[at] != self._delimiter or self._state == _BROKEN:
                    return at
                self._state = _CELL
                at += 1
        return None

    def _end_cell(self) -> None:
        self.cells.append("".join(self._cell))
        self._cell.clear()

    def _end_of_file(self) -> None:
        if self._state == _QUOTED:
            self.problem = "unexpected end of data"
        self._end_cell()

    def _keep_text(self, text: str, stop: int, end: int) -> None:
        """Count what was taken, and keep it as far as there is room."""
        self.lines += finding.lines_in(text[:end])
        self.lines -= self._last == "\r" and text[:1] == "\n"
        self._last = text[end - 1 : end]
        self._length += stop
        if not self._length:
            self.cells = []  # a blank line
        if not self.too_long:
            self._texts.append(text[:end])
        if self._length > self.length_max:
            self.too_long = True
            self._texts = [self.text[: finding.SHOWN_OF_LONG_ROWS]]
            self._cell.clear()
            self.cells = []


def _match(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Return the end of what matches there; these patterns match everywhere."""
    found = pattern.match(text, at)
    return found.end() if found else at


@lru_cache(maxsize=8)
def _until(delimiter: str) -> re.Pattern[str]:
    return re.compile(rf"[^{re.escape(delimiter)}\r\n]*+")
