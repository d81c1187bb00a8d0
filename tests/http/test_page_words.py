"""Figures and values as the page shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from microbatch.http._page import words
from microbatch.http._page.plot import HEIGHT, WIDTH, plot
from microbatch.http._page.shown import SHOWN_BYTES, Shown, cut_line, extract, line_of, lines_of


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.01, "0 s"),
        (0.25, "0.2 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3_605, "1 h"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_span_has_two_units_at_most(seconds, text):
    """Nobody reads seconds of days."""
    assert words.span(seconds) == text


def test_figures_have_their_thousands_apart_and_a_noun():
    """As they stand on the page."""
    assert words.count(1_234_567) == "1,234,567"
    assert [words.with_noun(n, "item") for n in (0, 1, 2_000)] == [
        "0 items",
        "1 item",
        "2,000 items",
    ]
    assert [words.per_second(r) for r in (0.0, 12.54, 1_250.0)] == ["0/s", "12.5/s", "1,250/s"]
    assert [words.size(n) for n in (999, 1_500, 2_500_000_000, 10**16)] == [
        "999 bytes", "1.5 kB", "2.5 GB", "10,000.0 TB",
    ]  # fmt: skip
    assert [words.percent(f) for f in (0, 0.999, 1)] == ["0 %", "99 %", "100 %"]


def test_moments_are_in_utc_and_none_breaks_a_page():
    """A file that was made to hold nonsense is shown as it is."""
    assert words.moment(0.0) == "1970-01-01 00:00:00"
    assert words.moment(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02 03:04:05"
    assert words.stamp(0.0) == "1970-01-01T00:00:00Z"
    assert (words.moment(None), words.stamp(None)) == ("-", "")
    assert (words.moment(1e300), words.stamp(1e300)) == ("1e+300", "")


def test_a_plot_has_its_highest_slot_at_the_top_and_says_the_same_in_words():
    """The points are within the drawing; without anything it is a line at the bottom."""
    drawn = plot([0, 5, 10], [0, 5, 0], 60.0)
    assert drawn.well.split()[0] == f"0,{HEIGHT}"
    assert drawn.well.split()[-1] == f"{WIDTH},{HEIGHT}"
    heights = [float(point.split(",")[1]) for point in drawn.well.split()]
    assert min(heights) == 2.0
    assert drawn.text == ("Items ended in the last 3 minutes: 20, of which 5 died; at most 0.167/s")
    empty = plot([0.0, 0.0], [0.0, 0.0], 10.0)
    assert {point.split(",")[1] for point in empty.well.split()} <= {f"{HEIGHT}", f"{HEIGHT}.0"}
    assert empty.dead == ""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


def test_every_value_has_a_text():
    """Whatever stands in a payload, or comes out of redact."""
    assert lines_of({"a": [1, "é"]}) == '{\n  "a": [\n    1,\n    "é"\n  ]\n}'
    assert line_of({"a": None}) == '{"a":null}'
    assert line_of(Odd()) == '"<odd>"'
    assert line_of({(1, 2): b"x"}) == '{"(1, 2)":"eA=="}'
    assert line_of(["\ud800"]) == lines_of(["\ud800"]) == r"['\ud800']"
    deep = nested(100_000)
    assert lines_of(deep) == line_of(deep) == "(nested too deeply to be shown)"


def test_a_text_is_cut_between_characters():
    """Half a character is none."""
    assert extract("abc") == ("abc", 3, False)
    long = extract("é" * SHOWN_BYTES)
    assert long == ("é" * (SHOWN_BYTES // 2), SHOWN_BYTES * 2, True)
    assert extract("a" + "é" * SHOWN_BYTES).text.endswith("é")
    assert cut_line(" a \n b ") == "a b"
    assert len(cut_line("x" * 500)) == 120


def test_what_redact_returns_is_shown_whatever_it_is():
    """A key that becomes a number, an error that becomes a dict."""
    shown = Shown(lambda value: {"was": type(value).__name__})
    assert shown.name("key") == '{"was":"str"}'
    assert shown.name(None) is None
    from microbatch.durable import ItemFailed

    error = shown.error(ItemFailed(1, "E", "message", 1, "traceback"))
    assert error is not None
    assert (error.message, error.traceback) == ('{"was":"str"}', '{"was":"str"}')
    assert Shown(None).error(None) is None
