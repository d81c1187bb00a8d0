"""The examples about streams run as a user runs them, and print what they claim."""

from __future__ import annotations

import csv
import gzip
import re
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from examples_support import SMALL, output_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)


def counts(output: str) -> dict[str, int]:
    return {
        what: int(many.replace(",", ""))
        for what, many in re.findall(r"^  (\S.*?)\s{2,}([\d,]+)$", output, re.MULTILINE)
    }


def megabytes(output: str) -> int:
    found = re.search(r"^(\d+) MB of memory at most$", output, re.MULTILINE)
    assert found is not None
    return int(found[1])


def bare_interpreter() -> float:
    """Megabytes that Python takes by itself."""
    code = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    command = [*SMALL, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_a_peak_of_memory_is_the_measured_programs_own() -> None:
    """Else what a test run has had hides what an example takes: both sides of a difference would be the same."""
    ballast = bytearray(b"x") * 300_000_000
    assert bare_interpreter() < 100
    del ballast


def test_a_hundred_thousand_users_are_imported_and_every_row_is_accounted_for(
    tmp_path: Path,
) -> None:
    """Created, skipped and failed add up; the failed rows stand in a file with their reasons."""
    output = output_of("import_users.py", folder=tmp_path)
    found = counts(output)
    assert found.keys() == {
        "created",
        "failed: bad_row",
        "failed: blocked_domain",
        "skipped: duplicate_email",
    }
    assert sum(found.values()) == 100_000
    assert re.search(r"^100,000 rows in [\d.]+ s", output, re.MULTILINE)
    assert 2_000 < found["skipped: duplicate_email"] < 4_000
    database = sqlite3.connect(tmp_path / "users.sqlite")
    assert database.execute("SELECT count(*) FROM user").fetchone() == (found["created"],)
    database.close()
    with (tmp_path / "failed.csv").open() as file:
        failed = list(csv.DictReader(file))
    assert len(failed) == found["failed: bad_row"] + found["failed: blocked_domain"]
    assert all(row["problem"] for row in failed)
    assert any(
        row["problem"].endswith("2 cells, but the first line names 4 columns") for row in failed
    )


def test_failed_rows_can_be_mended_and_imported_again(tmp_path: Path) -> None:
    """In the very file that the import wrote; known users are updated when that is asked for."""
    first = counts(output_of("import_users.py", "--count", "5000", folder=tmp_path))
    path = tmp_path / "failed.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == first["failed: bad_row"] + first["failed: blocked_domain"] > 50
    for row in rows:
        row["email"] = row["email"].replace(" at ", "@").replace("blocked.example", "example.org")
        row["name"] = row["name"] or "Somebody"
        row["age"] = row["age"].replace("forty", "40")
        row["country"] = row["country"] or "NO"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    second = counts(
        output_of("import_users.py", "--duplicates", "update", "failed.csv", folder=tmp_path)
    )
    assert sum(second.values()) == len(rows)
    assert second.keys() <= {"created", "updated"}
    assert path.read_bytes() == b""
    third = counts(
        output_of("import_users.py", "--duplicates", "update", "--count", "5000", folder=tmp_path)
    )
    assert third["updated"] == first["created"] + first["skipped: duplicate_email"]
    assert "created" not in third


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_million_users_stay_within_60_mb_above_the_interpreter(tmp_path: Path) -> None:
    """As for 100,000: what is held does not grow with the file."""
    output = output_of("import_users.py", "--count", "1000000", folder=tmp_path, measured=True)
    assert sum(counts(output).values()) == 1_000_000
    assert megabytes(output) - bare_interpreter() < 60


def test_the_imported_airports_are_exported_and_read_back(tmp_path: Path) -> None:
    """Zipped NDJSON and CSV, each compared with the table row by row."""
    output = output_of("export_airports.py", folder=tmp_path)
    imported = re.search(r"imported ([\d,]+) airports", output)
    assert imported is not None
    assert int(imported[1].replace(",", "")) > 28_000
    assert output.count(f"exported {imported[1]} airports") == 2
    assert output.count("read back: the same") == 2
    with gzip.open(tmp_path / "airports.csv.gz", "rt") as file:
        assert sum(1 for _ in csv.reader(file)) == int(imported[1].replace(",", "")) + 1
    again = output_of("export_airports.py", folder=tmp_path)
    assert "imported" not in again
    assert again.count("read back: the same") == 2


@pytest.mark.slow
def test_a_bulk_api_is_left_in_peace_and_only_failed_items_go_again(tmp_path: Path) -> None:
    """The API counts how often each person came; whole requests that fail are sent again too."""
    output = output_of("call_bulk_api.py", folder=tmp_path)
    assert "sent 1 times: 990\n  sent 3 times: 10\n" in output
    assert re.match(r"1,000 people by \d\d requests instead of 1,020\n", output)
    assert "answered with 500 and sent again: 2 requests\n" in output
    refused = re.search(r"refused with 429: at most (\d+) requests in a pause, (\d+) slots", output)
    assert refused is not None
    assert 1 <= int(refused[1]) <= int(refused[2])
    assert "made: 996, failed: 4\n" in output
    assert "    9: http_422, person 9 has no address, sent 1 times\n" in output
