"""Rows of CSV: `csv.reader` for what lies whole in a block, `LongRow` for what does not."""

from __future__ import annotations

import csv
import io
from itertools import chain
from typing import TYPE_CHECKING, Any

from .csv_long import LongRow
from .finding import Found, is_text, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from microbatch._pure.report import Outcome

    from .reading import Decoder


class _NoMoreLines(Exception):
    """Tells a row that goes on in the next block from one that ends with the file."""


def _no_more() -> Iterator[str]:
    raise _NoMoreLines
    yield ""


class CsvRows:
    """Finds rows in a CSV file whose first row has the columns' names."""

    def __init__(
        self, decoder: Decoder, decode: Callable[[dict[str, Any]], Any], delimiter: str
    ) -> None:
        self.error: Exception | None = None
        self._decoder = decoder
        self._decode = decode
        self._delimiter = delimiter
        self._found = Found(decoder.name)
        self._line = 1
        self._long: LongRow | None = None
        self._names: list[str] = []
        self._columns = 0  # with those at the end that have no name
        self._undecodable = False

    @property
    def columns(self) -> list[str]:
        """The columns' names, once the first row has been read."""
        return list(self._names)

    def feed(self, data: bytes, *, final: bool) -> list[Outcome[Any]]:
        """Return the rows that ended in this piece; what ends the reading is kept as the error."""
        try:
            self._take_text(self._decoder.text(data, final=final), final=final)
        except ValueError as error:
            self.error = error
        return self._found.taken()

    def _take_text(self, text: str, *, final: bool) -> None:
        self._undecodable = self._undecodable or not is_text(text)
        if self._long is not None:
            end = self._long.feed(text, final=final)
            if end is None:
                return
            self._end_long(self._long)
            text = text[end:]
        lines = io.StringIO(text, newline="").readlines()
        whole = len(lines)
        if lines and not lines[-1].endswith("\n"):  # after a CR there may come an LF
            whole -= 1
        taken = self._take_lines(lines, whole)
        if taken < len(lines):
            self._long = LongRow(self._delimiter)
            if self._long.feed("".join(lines[taken:]), final=final) is not None:
                self._end_long(self._long)

    def _take_lines(self, lines: list[str], whole: int) -> int:
        """Take the rows that end in the first so many lines; return how many lines they took."""
        source = iter(lines[:whole])
        # Strict, for else a quote in the wrong place is read as something that nobody wrote.
        rows = csv.reader(chain(source, _no_more()), strict=True, delimiter=self._delimiter)
        before, skipped = self._line, 0
        names, decode, good = self._names, self._decode, self._found.good
        plain = self._plain_width()
        while True:
            first = rows.line_num + skipped
            line = self._line = before + first
            try:
                cells = next(rows)
            except _NoMoreLines:
                return first
            except csv.Error:
                # A quote in the wrong place, or a cell over csv.field_size_limit. That limit is
                # everybody's in this process, so it is not touched; the row is read without it.
                end = self._take_long(lines, first, whole)
                if end is None:
                    return first
                for _ in range(rows.line_num + skipped, end):
                    next(source)
                    skipped += 1
                continue
            if len(cells) != plain:
                if cells:
                    self._take(cells)
                    names, plain = self._names, self._plain_width()
                continue
            row = dict(zip(names, cells))  # noqa: B905 - counted already
            try:
                value = decode(row)
            except Exception as error:  # noqa: BLE001 - a user's type may raise anything
                self._found.bad(line, error, row)
            else:
                good(line, value)

    def _plain_width(self) -> int:
        """Return how many cells a row has that needs no second look; -1 if every row needs one."""
        count = len(self._names)
        return count if 0 < count == self._columns and not self._undecodable else -1

    def _take_long(self, lines: list[str], first: int, whole: int) -> int | None:
        """Take the row that begins in this line; return where the next one begins, if it ends."""
        row = LongRow(self._delimiter)
        for index in range(first, whole):
            if row.feed(lines[index], final=False, cut=False) is not None:
                self._end_long(row)
                return index + 1
        return None

    def _end_long(self, row: LongRow) -> None:
        self._long = None
        if row.too_long:
            self._refuse_in_header(f"the row has more than {row.length_max} characters")
            self._found.too_long(self._line, shown(row.text))
        elif row.problem is not None:
            self._refuse_in_header(row.problem)
            self._found.bad(self._line, row.problem, shown(row.text).rstrip("\r\n"))
        elif row.cells:
            self._take(row.cells)
        self._line += row.lines

    def _refuse_in_header(self, problem: str) -> None:
        if not self._columns:
            raise ValueError(f"line {self._line}: {problem}")

    def _take(self, cells: list[str]) -> None:
        """Take a row that may be the first, have another number of cells, or not be text."""
        if not self._columns:
            self._take_names(cells)
            return
        names, found, line = self._names, self._found, self._line
        row: dict[str, Any] = dict(zip(names, cells, strict=False))
        count = len(cells)
        if self._undecodable and not is_text("".join(cells)):
            legible = list(map(shown, cells))
            found.bad_text(line, dict(zip(names, legible, strict=False)), legible)
        elif not len(names) <= count <= self._columns:
            problem = f"{count} cells, but the first line names {len(names)} columns"
            found.bad(line, problem, dict.fromkeys(names, "") | row, cells)
        elif any(cells[len(names) :]):
            problem = f"a cell beyond the {len(names)} columns that the first line names"
            found.bad(line, problem, row, cells)
        else:
            try:
                value = self._decode(row)
            except Exception as error:  # noqa: BLE001 - a user's type may raise anything
                found.bad(line, error, row)
            else:
                found.good(line, value)

    def _take_names(self, cells: list[str]) -> None:
        names = list(cells)
        while names and not names[-1]:  # commas at the ends of lines, as spreadsheets leave them
            names.pop()
        if not is_text("".join(names)):
            name = self._decoder.name
            raise ValueError(f"line {self._line}: the columns' names are not {name}: give encoding")
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"the first line names columns twice: {', '.join(map(repr, twice))}")
        if not names:
            raise ValueError(f"line {self._line}: no column has a name")
        self._names, self._columns = names, len(cells)
