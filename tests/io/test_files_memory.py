"""What reading and writing holds does not grow with the file, zipped or not."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from support import ENVIRONMENT, scaled

from microbatch.files import read_rows, write_rows

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(300)]


@pytest.fixture(params=["asyncio"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """The memory is the parsers', not the loop's."""
    return str(request.param)


def rows(count: int) -> Any:
    return ({"id": n, "text": f"{n:01000}"} for n in range(count))


@pytest.mark.parametrize("suffix", ["csv.gz", "json.gz", "ndjson.gz"])
async def test_a_zipped_file_of_10_mb_is_written_and_read_in_7(suffix: str, tmp_path: Path) -> None:
    """While it streams: a thousand rows at a time are written, and a block of 256 KiB is read."""
    path = tmp_path / f"rows.{suffix}"
    await write_rows(path, rows(100))  # what is imported late and kept is not the file's
    assert len([outcome async for outcome in read_rows(path)]) == 100
    tracemalloc.start()
    try:
        assert await write_rows(path, rows(10_000)) == 10_000
        _, writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        count = 0
        async for outcome in read_rows(path):
            count += outcome.ok
        _, reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert max(writing, reading) < 7_000_000


EXPORT = """
import sys, anyio, msgspec
from microbatch.files import read_rows, write_rows

class User(msgspec.Struct):
    id: int
    name: str
    email: str
    balance: float

async def main(path, count):
    users = (User(n, f"User {n}", f"user{n}@example.org", n / 7) for n in range(count))
    assert await write_rows(path, users) == count
    total = 0
    async for outcome in read_rows(path, User):
        total += outcome.ok and outcome.value.id
    assert total == count * (count - 1) // 2, total
    # Not ru_maxrss: that of a new program begins with what the one had that started it.
    with open("/proc/self/status") as status:
        peak = next(line for line in status if line.startswith("VmHWM:"))
    print(int(peak.split()[1]) // 1024, "MB")

anyio.run(main, sys.argv[1], int(sys.argv[2]))
"""


def megabytes_of(path: Path, count: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(path), str(count)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    found = re.fullmatch(r"(\d+) MB\n", done.stdout)
    assert found is not None, done.stderr
    return int(found[1])


@pytest.mark.soak
@pytest.mark.parametrize("suffix", ["csv.gz", "ndjson"])
def test_a_million_rows_are_exported_and_read_within_100_mb(suffix: str, tmp_path: Path) -> None:
    """All that the process takes, interpreter and imports included; and hardly more than for a fiftieth."""
    few = megabytes_of(tmp_path / f"few.{suffix}", 20_000)
    many = megabytes_of(tmp_path / f"many.{suffix}", scaled(1_000_000))
    assert many < 100
    assert many - few < 10
