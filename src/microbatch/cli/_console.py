"""Where a command's words go: results to stdout, notes and errors to stderr; rich on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._jsonable import json_text
from ._wording import columns_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
        sys.stdout.write(f"{text}\n")

    def object(self, fields: Any) -> None:
        """Write an object as JSON, and let it be seen at once."""
        sys.stdout.write(f"{json_text(fields)}\n")
        sys.stdout.flush()

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> None:
        """Write a table: with lines and colours on a terminal, plain and whole elsewhere."""
        rows = list(rows)
        rich = self.rich(sys.stdout)
        if rich is None:
            for line in columns_text(heads, rows, right):
                self.line(line)
            return
        rich.print(self.rich_table(heads, rows, right))

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
        if not _is_terminal(stream):
            return None
        try:
            from rich.console import Console as RichConsole  # noqa: PLC0415 - of an extra
        except ImportError:
            self._note_once(_NO_RICH)
            return None
        return RichConsole(file=stream, highlight=False, emoji=False, markup=False)

    # Beside them

    def note(self, text: str) -> None:
        """Write a line that is no result."""
        sys.stdout.flush()
        sys.stderr.write(f"microbatch: {text}\n")
        sys.stderr.flush()

    def _note_once(self, text: str) -> None:
        if text not in self._noted and _is_terminal(sys.stderr):
            self._noted.add(text)
            self.note(text)

    def ask(self, question: str) -> bool | None:
        """Ask for a yes on the terminal; None where there is nobody to answer."""
        if not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
            return None
        sys.stdout.flush()
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
        return answer.strip().lower() in ("y", "yes")


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
