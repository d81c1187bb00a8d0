"""markup: tables for notebooks, escaped and bounded."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch._pure.markup import CELL_LENGTH_MAX, cell_text, table


class Cells(HTMLParser):
    """The texts of a table's cells, and the tags that it is made of."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert not attrs
        self.tags.add(tag)
        if tag in {"td", "th", "caption"}:
            self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])), min_size=1
    )
)
def test_whatever_stands_in_a_cell_is_text(values):
    """An error's text comes from elsewhere: in a notebook it must stay text."""
    found = Cells(table("<b>", ["&"], [values]))
    assert found.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    shown = [v if len(v) <= CELL_LENGTH_MAX else f"{v[:CELL_LENGTH_MAX]} ..." for v in values]
    assert found.texts == ["<b>", "&", *shown]


def test_a_long_text_is_cut():
    """A driver's error may carry the whole row."""
    assert len(Cells(table("", [], [["x" * 10_000]])).texts[-1]) == CELL_LENGTH_MAX + 4


class Speechless(Exception):
    def __str__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_234_567, "1,234,567"),
        ("a", "a"),
        (None, "None"),
        (Speechless(), "a Speechless whose text raised ZeroDivisionError"),
    ],
)
def test_what_is_shown_of_a_value(value, text):
    """Numbers with their thousands apart; an exception that cannot speak is still named."""
    assert cell_text(value) == text
