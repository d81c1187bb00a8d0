"""Rows into files: whole or not at all, with the mode of the file before, through links, in any encoding."""

# ruff: noqa: ASYNC240 - small files of the tests' own

from __future__ import annotations

import json
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from microbatch import Outcome, Skipped
from microbatch.files import write_rows

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]

# --- writing ----------------------------------------------------------------------------------------------------


async def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """Until then the older one is there; if anything fails nothing is left of the new one."""
    path = tmp_path / "rows.ndjson"
    await write_rows(path, ["old"])
    seen: list[list[str]] = []

    async def rows(count: int, error: Exception | None) -> Any:
        for n in range(count):
            if n in {1, 2500}:
                names = sorted(entry.name for entry in tmp_path.iterdir())
                seen.append(names)
                assert path.read_text() == '"old"\n'
            yield n
        if error is not None:
            raise error

    with pytest.raises(LookupError, match="no more"):
        await write_rows(path, rows(2600, LookupError("no more")))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == '"old"\n'
    assert [len(names) for names in seen] == [2, 2]
    assert seen[0][0].startswith(".rows.ndjson.")
    assert seen[0][0].endswith(".part")
    assert await write_rows(path, rows(2600, None)) == 2600
    assert len(path.read_text().splitlines()) == 2600
    assert list(tmp_path.iterdir()) == [path]


async def test_a_cancelled_writing_leaves_nothing(tmp_path: Path) -> None:
    """And closes the rows' source."""
    closed = False

    async def rows() -> Any:
        nonlocal closed
        try:
            yield 1
            scope.cancel()
            await anyio.sleep_forever()
        finally:
            closed = True

    with anyio.CancelScope() as scope:
        await write_rows(tmp_path / "rows.json.gz", rows())
    assert scope.cancelled_caught
    assert closed
    assert list(tmp_path.iterdir()) == []


async def test_outcomes_can_be_written_and_a_failed_one_raises(tmp_path: Path) -> None:
    """Left out it would be missing from the file, and nobody would know."""
    path = tmp_path / "rows.json"
    assert await write_rows(path, [Outcome(0, True, {"a": 1}), {"a": 2}]) == 2
    assert json.loads(path.read_text()) == [{"a": 1}, {"a": 2}]
    with pytest.raises(Skipped, match="old"):
        await write_rows(path, [Outcome(0, False, None, Skipped("old"), True)])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            [{"a": 1}, {"b": 1}],
            ValueError,
            r"row 2 has the fields \['b'\], the first row had \['a'\]",
        ),
        ([{"a": 1}, {"a": [1]}], TypeError, "row 2: 'a' is a list, which CSV cannot hold"),
        ([{"a": {}}], TypeError, "row 1: 'a' is a dict, which CSV cannot hold"),
        (
            [{"a": 1}, 3],
            TypeError,
            "row 2 must be a mapping, a Struct, a dataclass or a model, got 3",
        ),
        ([{"a": object()}], TypeError, "object"),
    ],
)
async def test_rows_that_csv_cannot_hold_are_named(
    rows: list[Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """By their number; nothing is left of the file."""
    with pytest.raises(error, match=message):
        await write_rows(tmp_path / "rows.csv", rows)
    assert list(tmp_path.iterdir()) == []


async def test_columns_of_later_rows_may_stand_in_another_order(tmp_path: Path) -> None:
    """They are told by their names."""
    path = tmp_path / "rows.csv"
    await write_rows(path, [{"a": 1, "b": 2}, {"b": 4, "a": 3}])
    assert path.read_bytes() == b"a,b\r\n1,2\r\n3,4\r\n"


@pytest.mark.parametrize("suffix", ["ndjson", "ndjson.gz"])
async def test_a_disk_that_is_full_is_told_and_nothing_is_left(suffix: str, tmp_path: Path) -> None:
    """The error of the write, not that of closing after it. A bound of the file's size stands for the disk's."""
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            await write_rows(tmp_path / f"rows.{suffix}", map(str, map(os.urandom, [5000] * 100)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []
