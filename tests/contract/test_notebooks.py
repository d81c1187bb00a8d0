"""Reports and figures show themselves as tables in notebooks."""

from __future__ import annotations

import html
import re
import subprocess
import sys

import pytest

from microbatch import Batcher, BatcherStats, BatchReport, ItemError, Outcome, Skipped


def cells(markup: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(<td>.*?)</tr>", markup)
    return [[html.unescape(one) for one in re.findall(r"<td>(.*?)</td>", row)] for row in rows]


def test_a_report_shows_its_counts_and_the_items_that_have_no_value():
    """What one looks for first; and never markup out of an error's text."""
    report = BatchReport(
        [
            Outcome(0, True, "fine"),
            Outcome(1, False, None, ItemError("<script>", code="bad&ugly"), attempts=3),
            Outcome(2, False, None, Skipped("twice"), skipped=True),
        ]
    )
    markup = report._repr_html_()
    assert "1 of 3 items succeeded" in markup
    assert "<script>" not in markup
    assert cells(markup) == [
        ["bad&ugly", "1"],
        ["skipped", "1"],
        ["1", "failed", "bad&ugly", "<script>", "3"],
        ["2", "skipped", "skipped", "twice", "1"],
    ]


def test_a_report_of_a_million_failures_stays_a_screen():
    """A notebook keeps what it shows."""
    report = BatchReport(Outcome(index, False, None, ItemError("no")) for index in range(10_000))
    markup = report._repr_html_()
    assert "the first 20, and 9,980 more" in markup
    assert len(cells(markup)) == 1 + 20
    assert len(markup) < 3_000


def test_a_report_without_failures_has_one_short_table():
    """Nothing to look at, nothing shown."""
    markup = BatchReport([Outcome(0, True, 1)])._repr_html_()
    assert "1 of 1 items succeeded" in markup
    assert cells(markup) == []
    assert markup.count("<table>") == 1


@pytest.mark.anyio
async def test_figures_show_each_of_them_by_name():
    """The table has every field of the class, with seconds as milliseconds."""

    async def handler(items):
        return items

    async with Batcher(handler, max_batch_size=2) as batcher:
        before = dict(cells(batcher.stats()._repr_html_()))
        await batcher.submit_many([1, 2, 3])
        after = dict(cells(batcher.stats()._repr_html_()))
    assert list(after) == list(type(batcher.stats()).__slots__)
    assert (before["reasons"], before["oldest_wait"]) == ("-", "-")
    assert (after["items"], after["reasons"]) == ("3", "size: 1, idle: 1")
    assert after["held"] == "0.0 ms"


def test_seconds_are_shown_in_milliseconds():
    """Waits are short: 0.0 s would tell nothing."""
    figures = dict.fromkeys(BatcherStats.__slots__, 0) | {"reasons": {}, "oldest_in_flight": None}
    shown = dict(cells(BatcherStats(**figures | {"oldest_wait": 0.25, "held": 2.5})._repr_html_()))
    assert (shown["oldest_wait"], shown["held"]) == ("250.0 ms", "2,500.0 ms")


def test_programs_that_show_nothing_do_not_pay_for_it():
    """html has a table of two thousand entities; importing microbatch must not load it."""
    code = "import sys; before = set(sys.modules); import microbatch; print('html' in set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
