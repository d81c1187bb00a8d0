"""The rows that were found in a file, as outcomes, good or bad; and their bound."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from microbatch._pure.exceptions import ItemError
from microbatch._pure.report import Outcome, outcome_of

from .sources import successes

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Characters of one row at most (in NDJSON bytes). A longer one is read over and is a bad row: the
#: bound of what a file can make us hold.
ROW_LENGTH_MAX = 16 * 1024 * 1024
#: Characters that are kept of a row that was too long.
SHOWN_OF_LONG_ROWS = 1000

#: What says enough by its text. msgspec's own errors are ValueErrors only since 0.21.
_TELLING = (str, ValueError, RecursionError, msgspec.MsgspecError)
_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")


class Parser(Protocol):
    """Finds rows in the pieces of a file, wherever it was cut.

    Attributes:
        error: What ends the reading, once the rows before it have been taken.
    """

    error: Exception | None

    def feed(self, data: bytes, *, final: bool) -> list[Outcome[Any]]:
        """Return the rows that ended in this piece."""
        ...


class Found:
    """Collects the outcomes of rows; good ones are made many at a time."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._index = 0
        self._values: list[Any] = []
        self._lines: list[int] = []
        self._outcomes: list[Outcome[Any]] = []

    def good(self, line: int, value: Any) -> None:
        """Take a row that begins in this line."""
        self._values.append(value)
        self._lines.append(line)

    def good_lines(self, line: int, values: list[Any]) -> None:
        """Take rows of one line each."""
        self._values += values
        self._lines += range(line, line + len(values))

    def bad(self, line: int, problem: object, row: Any, cells: Sequence[str] | None = None) -> None:
        """Take a row that cannot be read, as it stands, and why; its cells where the row does not show them."""
        self._settle()
        reason, field = _explained(problem)
        error = ItemError(
            f"line {line}: {reason}",
            code="bad_row",
            retryable=False,
            field=field,
            details={"line": line, "row": row} | ({} if cells is None else {"cells": cells}),
        )
        self._outcomes.append(outcome_of(self._index, error, id=line))
        self._index += 1

    def bad_text(self, line: int, row: Any, cells: Sequence[str] | None = None) -> None:
        """Take a row with something in it that could not be decoded."""
        self.bad(line, f"it is not {self._encoding}", row, cells)

    def too_long(self, line: int, begins: str) -> None:
        """Take a row of more than `ROW_LENGTH_MAX` characters."""
        problem = f"the row has more than {ROW_LENGTH_MAX} characters"
        self.bad(line, problem, begins[:SHOWN_OF_LONG_ROWS])

    def _settle(self) -> None:
        self._outcomes += successes(self._index, self._values, self._lines)
        self._index += len(self._values)
        self._values, self._lines = [], []

    def taken(self) -> list[Outcome[Any]]:
        """Return what came since the last time."""
        self._settle()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes


def _explained(problem: object) -> tuple[str, str | None]:
    """Return the reason and the field, as msgspec or pydantic tell them."""
    if hasattr(problem, "error_count") and hasattr(problem, "errors"):
        # pydantic's: its own text has three lines for each, with the whole input.
        first, *others = problem.errors()
        path = ".".join(map(str, first["loc"]))
        reason = f"{first['msg']} - at `$.{path}`" if path else str(first["msg"])
        return f"{reason} (and {len(others)} more)" if others else reason, path or None
    reason = str(problem)
    if not isinstance(problem, _TELLING):
        reason = f"{type(problem).__name__}: {reason}"  # a KeyError's text is a key, and no more
    found = _FIELD.search(reason)
    return reason, (found[1] or None) if found else None


def lines_in(text: str) -> int:
    """Count the line ends in a text: LF, CRLF and CR."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def is_text(text: str) -> bool:
    """Tell whether a text has nothing in it that could not be decoded."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


def shown(text: str) -> str:
    """Return a text that may hold what could not be decoded, with question marks for that."""
    return text.encode(errors="replace").decode()
