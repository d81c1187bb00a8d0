"""Tables for notebooks: what ``_repr_html_`` of reports and figures is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Characters of a cell that are shown: an error's text may carry the row that it is about.
CELL_LENGTH_MAX = 200


def cell_text(value: object) -> str:
    """Return a number with its thousands apart, anything else as its text."""
    if isinstance(value, int):
        return f"{value:,}"
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - a user's exception is shown, and may be unable to say what it is
        return f"a {type(value).__name__} whose text raised {type(error).__name__}"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table; whatever stands in it is escaped, and long texts are cut."""
    from html import escape  # noqa: PLC0415 - with a table of 2,000 entities that only notebooks need

    def cell(value: object) -> str:
        text = cell_text(value)
        cut = text if len(text) <= CELL_LENGTH_MAX else f"{text[:CELL_LENGTH_MAX]} ..."
        return escape(cut)

    titles = "".join(f"<th>{cell(title)}</th>" for title in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return (
        f"<table><caption>{cell(caption)}</caption>"
        f"<thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
    )
