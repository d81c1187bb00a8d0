"""How tests read the README and docs/: sections, tables and blocks of a page, and what stands in a docstring."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
#: Its programs need servers, so they run elsewhere: tests/engines/test_recipes.py.
WITH_SERVERS = DOCS / "how-to" / "engines-recipes.md"
HEADING = re.compile(r"^#{1,4} (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


class Block(NamedTuple):
    """One fenced block of a page."""

    language: str
    source: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], text[: match.start()].count("\n") + 1)
        for match in BLOCK.finditer(text)
    ]


def sides(diff: str) -> tuple[str, str]:
    """Return the program before and after a diff, with empty lines where the other has its own."""
    lines = diff.splitlines()
    return tuple(
        "\n".join("" if line.startswith(other) else line[1:] for line in lines) for other in "+-"
    )


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def sections(page: Path) -> dict[str, str]:
    """Return the text below each heading, up to the next one of any level."""
    parts = HEADING.split(prose(page))
    return dict(zip((title.strip("`") for title in parts[1::2]), parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Return the cells of a section's first table, its header included."""
    table: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            if not set(line) <= set("|-: "):
                table.append([cell.strip() for cell in cells])
        elif table:
            break
    return table


def documented(page: Path, title: str) -> dict[str, str]:
    """Return the first two columns of a section's table: names and what stands beside them."""
    return {cells[0].strip("`"): cells[1] for cells in rows(sections(page)[title])[1:]}


def entries_of(documented: Any, heading: str) -> set[str]:
    """Return the names below a heading of a docstring, whose indentation Python 3.13 takes away."""
    text = inspect.cleandoc(documented.__doc__ or "").partition(heading)[2]
    return set(re.findall(r"^    (\w+): ", text, re.MULTILINE))


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in {"self", "handler"}
    }
