"""Where a command's words go: results to stdout, notes and errors to stderr; rich on a terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ._command import WRONG_USE, CommandEnd
from ._jsonable import ascii_json, json_text
from ._wording import ascii_text, columns_text, least_width, records_text, safe_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_NO_RICH = "tables, progress bars and live views need rich: pip install 'microbatch[cli]'"


class Console:
    """What a command writes to.

    Args:
        json: Whether results are JSON objects, one a line.

    Attributes:
        json: The same.
    """

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self._noted: set[str] = set()

    # Results

    def line(self, text: str = "") -> None:
        """Write a line of text."""
        _put(f"{text}\n")

    def object(self, fields: Any) -> None:
        """Write an object as JSON, and let it be seen at once."""
        self.json_piece(f"{json_text(fields)}\n")
        self.flush()

    @staticmethod
    def json_piece(text: str) -> None:
        """Write a piece of JSON: escaped where stdout's encoding has no such character."""
        _put(text, ascii_json)

    @staticmethod
    def csv_piece(text: str) -> None:
        """Write a piece of CSV: as it is, but to a terminal without what that would take as an order."""
        if _is_terminal(sys.stdout):
            text = "\n".join(map(safe_text, text.replace("\r\n", "\n").split("\n")))
        _put(text)

    @staticmethod
    def flush() -> None:
        """Let what was written be seen.

        Raises:
            CommandEnd: If it cannot be written.
        """
        with _or_said():
            sys.stdout.flush()

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> None:
        """Write a table: with lines and colours on a terminal, plain and whole elsewhere."""
        rows = list(rows)
        rich = self.rich(sys.stdout)
        if rich is None:
            for line in columns_text(heads, rows, right):
                self.line(line)
            return
        if least_width(heads, rows, right) <= rich.width:
            rich.print(self.rich_table(heads, rows, right))
            return
        for line in records_text(heads, rows):
            self.line(line)

    @staticmethod
    def rich_table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> Any:
        """Return a table of rich's. No cell of it is read as markup."""
        from rich import box  # noqa: PLC0415 - of an extra
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, head in enumerate(heads):
            justify: Any = "right" if right[place : place + 1] == "r" else "left"
            table.add_column(Text(head), justify=justify, overflow="fold")
        for cells in rows:
            table.add_row(*map(Text, cells))
        return table

    def rich(self, stream: Any) -> Any:
        """Return rich's console on a stream if that is a terminal and rich is there; else None."""
        if not _is_terminal(stream) or "utf" not in (stream.encoding or "").lower():
            return None
        try:
            from rich.console import Console as RichConsole  # noqa: PLC0415 - of an extra
        except ImportError:
            self._note_once(_NO_RICH)
            return None
        return RichConsole(file=stream, highlight=False, emoji=False, markup=False)

    # Beside them

    def note(self, text: str) -> None:
        """Write a line that is no result; names in it may come from anybody."""
        with suppress(CommandEnd, OSError):  # that is said where results are written
            self.flush()
        sys.stderr.write(f"microbatch: {safe_text(text)}\n")
        sys.stderr.flush()

    def _note_once(self, text: str) -> None:
        if text not in self._noted and _is_terminal(sys.stderr):
            self._noted.add(text)
            self.note(text)

    def ask(self, question: str) -> bool | None:
        """Ask for a yes on the terminal; None where there is nobody to answer."""
        if not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
            return None
        self.flush()
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
        return answer.strip().lower() in ("y", "yes")


def _put(text: str, fitted: Callable[[str], str] = ascii_text) -> None:
    """Write to stdout; what its encoding has not is escaped."""
    with _or_said():
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            sys.stdout.write(fitted(text))


@contextmanager
def _or_said() -> Iterator[None]:
    """Say that stdout cannot be written: a full disk behind it, say. Of a reader that left nothing is said."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        message = f"stdout cannot be written: {error.strerror or error}"
        raise CommandEnd(message, WRONG_USE) from error


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
