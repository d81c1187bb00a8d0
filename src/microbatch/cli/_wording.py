"""Values as people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))
_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def seconds_text(seconds: float | None) -> str:
    """Return a time span: ``"0.25 s"``, ``"3 min 20 s"``, ``"2 d 4 h"``; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.001 else "0 s"
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    for place, (unit, size) in enumerate(_UNITS):
        if left >= size:
            small, small_size = ("s", 1) if unit == "min" else _UNITS[place + 1]
            rest = left % size // small_size
            return f"{left // size} {unit}" + (f" {rest} {small}" if rest else "")
    raise AssertionError  # pragma: no cover - 60 s are a minute


def bytes_text(size: int) -> str:
    """Return a size: ``"512 bytes"``, ``"1.5 MiB"``."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_SIZES) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} bytes" if not unit else f"{value:.1f} {_SIZES[unit]}"


def count_text(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``"1 item"``, ``"2,000 items"``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def rate_text(rate: float | None) -> str:
    """Return items per second: ``"12.5/s"``; a dash for None."""
    return "-" if rate is None else f"{rate:,.3g}/s" if rate < 100 else f"{rate:,.0f}/s"


def time_text(seconds: float | None) -> str:
    """Return a moment in UTC, to the second; a dash for None."""
    if seconds is None:
        return "-"
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"  # no clock says so: the file was made to


def iso_text(seconds: float | None) -> str | float | None:
    """Return a moment for JSON: ISO 8601 in UTC; the number itself where there is no such moment."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return seconds


def safe_text(value: Any, limit: int | None = None) -> str:
    """Return a value's text on one line, without what a terminal would take as an order; cut if asked."""
    text = value if isinstance(value, str) else str(value)
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    return "".join(c if c.isprintable() else _ESCAPES.get(c, _escaped(c)) for c in text)


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def ascii_text(text: str) -> str:
    """Return a text in ASCII alone, for a stream whose encoding has not all of it."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def safe_lines(text: str) -> str:
    """Return a text of several lines without what a terminal would take as an order."""
    return "\n".join(safe_text(line.expandtabs()) for line in text.splitlines())


def columns_text(heads: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> list[str]:
    """Return a table as lines: columns as wide as they need, two blanks between them.

    Args:
        heads: The columns' names.
        rows: The cells.
        right: For each column ``r`` if it is aligned to the right, anything else if not.
    """
    table = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        shown = [
            cell.rjust(width) if right[place : place + 1] == "r" else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(shown).rstrip())
    return lines


#: Characters of a text column that say something when the rest of it stands below.
_TEXT_WIDTH = 12


def least_width(heads: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> int:
    """Return how wide a screen must be for a table that can be read: figures are not broken into lines."""
    width = 0
    for place, column in enumerate(zip(heads, *rows, strict=True)):
        longest = max(map(len, column))
        is_figure = right[place : place + 1] == "r"
        width += 3 + max(len(heads[place]), longest if is_figure else min(longest, _TEXT_WIDTH))
    return width


def records_text(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table as lines for a narrow screen: a cell on each, with its column's name."""
    width = max(map(len, heads))
    lines: list[str] = []
    for cells in rows:
        lines += [""] * bool(lines)
        lines += [f"{head:<{width}}  {cell}" for head, cell in zip(heads, cells, strict=True)]
    return lines
