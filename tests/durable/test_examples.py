"""The examples of the durable mode: they kill, roll back and refuse, and what they print must be so every time."""

from __future__ import annotations

import csv
import os
import re
import sqlite3

import pytest
from examples_support import output_of
from pages_support import DOCS, blocks_of

pytestmark = pytest.mark.slow

PRINTS = {
    "durable_orders.py": [
        "killed the worker in the middle of its work",
        "killed the worker in the middle of its work",
        "every order handled exactly once: True",
        "stock is never negative: True",
        "orders that found no stock: True",
    ],
    "outbox.py": [
        "waiting while the server is down: 90",
        "balance: 910",
        "every committed event arrived: True",
        "in far fewer requests than events: True",
    ],
    "saga.py": [
        "killed the worker: some trips are booked, one is being undone",
        "16 trips are booked, each with flight, hotel, payment",
        "trip 0 was refused: flight, hotel, undo hotel, undo flight",
        "all or nothing, for every trip: True",
    ],
    "reconcile.py": [
        "5,000 payments written; 0 missing, 0 different, 0 unexpected",
        "after the restore: 40 missing, 2 different, 1 unexpected",
        "42 written again; 1 removed: 0 missing, 0 different, 0 unexpected",
    ],
}


PAGE = DOCS / "how-to/jobs.md"
ON_PAGE = ["saga.py", "reconcile.py"]


@pytest.mark.parametrize("name", ON_PAGE)
def test_the_page_shows_what_an_example_prints(name):
    """To the letter."""
    assert "".join(f"{line}\n" for line in PRINTS[name]) in [b.source for b in blocks_of(PAGE)]


@pytest.mark.skipif(os.name != "posix", reason="kills processes")
@pytest.mark.parametrize("name", PRINTS)
def test_an_example_prints_what_it_claims(name, tmp_path):
    """Exactly once for every order, and no event lost or made up."""
    assert output_of(name, folder=tmp_path).splitlines() == PRINTS[name]


def without_figures(text: str) -> str:
    """How many were done when it was cancelled differs from run to run."""
    return re.sub(r"\d[\d,]*", "n", text)


FAILED = [
    ("line 5001", "code_taken", "UNIQUE constraint failed: airport.icao"),
    ("line 10002", "invalid_item", "Expected `float`, got `str` - at `$.elevation`"),
    ("line 15003", "invalid_item", "Expected `float` <= 90.0 - at `$.lat`"),
    ("line 20004", "invalid_item", "Expected `float` >= -180.0 - at `$.lon`"),
    ("line 25005", "invalid_item", "Expected `str` of length >= 2 - at `$.country`"),
]


def test_an_import_that_is_cancelled_at_a_third_is_finished_by_a_second_job(tmp_path):
    """Real data: what it prints, what the table holds and what the file of failures says must agree."""
    printed = output_of("import_job.py", folder=tmp_path)
    (shown,) = [block.source for block in blocks_of(PAGE) if block.language == "console"]
    assert without_figures(printed) == without_figures(shown)
    lines = printed.replace(",", "").splitlines()
    first = re.fullmatch(
        r"the job: cancelled; of (\d+) (\d+) succeeded 5 failed (\d+) cancelled; errors (.*)",
        lines[0],
    )
    assert first is not None, lines[0]
    total, succeeded, cancelled = map(int, first.group(1, 2, 3))
    assert total == succeeded + 5 + cancelled
    assert total / 3 - 5 <= succeeded < total / 2
    assert first[4] == "{'invalid_item': 4 'code_taken': 1}"
    assert lines[1] == "a second process saw the same never going back: True"
    assert lines[2] == (
        f"the rest: succeeded; of {cancelled} {cancelled} succeeded 0 failed 0 cancelled; errors {{}}"
    )
    assert lines[-1] == f"{total} rows - 5 failed = {total - 5} in airports.sqlite"
    database = sqlite3.connect(tmp_path / "airports.sqlite")
    assert database.execute("SELECT count(*) FROM airport").fetchone() == (total - 5,)
    database.close()
    with (tmp_path / "failed.csv").open(newline="", encoding="utf-8") as file:
        failed = [(row["id"], row["code"], row["reason"]) for row in csv.DictReader(file)]
    assert [row[:2] for row in failed] == [row[:2] for row in FAILED]
    assert all(
        told.endswith(wanted) for (*_, told), (*_, wanted) in zip(failed, FAILED, strict=True)
    )
