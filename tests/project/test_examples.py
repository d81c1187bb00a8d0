"""The examples run as a user runs them: by themselves, in an empty folder, and print what they claim."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from examples_support import EXAMPLES, output_of
from support import ENVIRONMENT


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> tuple[Path, str]:
    """The main job, run once: the folder with its file, and what it printed."""
    folder = tmp_path_factory.mktemp("import")
    return folder, output_of("import_airports.py", folder=folder)


def test_the_import_stores_every_row_but_the_broken_ones(imported):
    """The main job, on real data: what it prints and what the file holds must agree."""
    folder, printed = imported
    database = sqlite3.connect(folder / "airports.sqlite")
    stored, intruders = database.execute(
        "SELECT count(*), count(*) FILTER (WHERE icao LIKE 'XX0%') FROM airport"
    ).fetchone()
    database.close()
    assert stored > 28_000
    assert intruders == 0
    assert f"{stored + 5:,} submitted - 5 failed = {stored:,} in airports.sqlite" in printed


def test_the_broken_rows_fail_alone_each_for_its_own_reason(imported):
    """One bad row must not take the rest of its batch with it, and must say what was wrong."""
    reasons = re.findall(r"^  [0-9A-Z]{4}  (.+)$", imported[1], re.MULTILINE)
    assert sorted(reasons) == [
        "CHECK constraint failed: elevation must be a number",
        "CHECK constraint failed: lat must be within 90 degrees",
        "CHECK constraint failed: lon must be within 180 degrees",
        "NOT NULL constraint failed: airport.country",
        "UNIQUE constraint failed: airport.icao",
    ]


def test_the_import_takes_few_transactions_and_says_what_is_extrapolated(imported):
    """The table must not claim what was not measured."""
    lines = imported[1].splitlines()
    batched, sample, extrapolated = (line.replace(",", "").split() for line in lines[1:4])
    assert batched[0] == "batched"
    assert int(batched[2]) < int(batched[1]) / 100
    assert (sample[-8:-6], extrapolated[0]) == (["2000", "2000"], "extrapolated")


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
def test_the_import_shows_its_progress_on_a_terminal(tmp_path):
    """A bar while it runs; the other tests see that a pipe gets none."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "import_airports.py")],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while not (bar := re.search(rb"(\d+)%\|.*rows/s", shown)):
            shown += os.read(ours, 4096)  # Linux says OSError when the other end is closed
        assert int(bar[1]) < 100
    finally:
        process.kill()  # seen is seen: the rest of its work is another test's
        process.wait()
        os.close(ours)


def test_a_batch_beyond_the_parameters_of_a_statement_is_split(tmp_path):
    """32,766 parameters make 10,922 rows of three columns; one more and SQLite refuses the statement."""
    printed = output_of("insert_values.py", folder=tmp_path)
    assert printed == "25,000 rows by statements of [10922, 10922, 3156]\n"


def test_what_many_items_have_in_common_is_validated_once(tmp_path):
    """A check that asks the network for each item would undo what the batch gained."""
    assert output_of("validate_once.py", folder=tmp_path).splitlines() == [
        "667 written, 333 refused: {'no_mail': 333}",
        "1,000 addresses checked, 3 domains asked for",
    ]


def test_every_example_is_run():
    """An example that nobody runs is soon wrong."""
    tests = "".join(
        path.read_text(encoding="utf-8")
        for pattern in ("test_examples*.py", "test_recipes.py")
        for path in Path(__file__).parents[1].rglob(pattern)
    )
    tested = set(re.findall(r'["/](\w+\.py)"', tests))
    assert {path.name for path in EXAMPLES.glob("*.py")} <= tested
