"""Rows into files: whole or not at all, with the mode of the file before, through links, in any encoding."""

# ruff: noqa: ASYNC240 - small files of the tests' own

from __future__ import annotations

import json
import os
import resource
import signal
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest

from microbatch import Outcome, Skipped
from microbatch.files import read_rows, write_rows

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
            await write_rows(tmp_path / f"rows.{suffix}", map(str, map(os.urandom, [5000] * 20)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


# --- what was there before --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
async def test_a_file_that_is_replaced_passes_on_its_mode(mode: int, tmp_path: Path) -> None:
    """What only its owner could read must not be everybody's because it was written anew."""
    path = tmp_path / "rows.csv.gz"
    path.touch()
    path.chmod(mode)
    await write_rows(path, [{"a": 1}])
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.stat().st_size > 0


async def test_what_is_written_is_never_more_open_than_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not under its temporary name either, and not for a moment."""
    path = tmp_path / "rows.ndjson"
    path.touch()
    path.chmod(0o600)
    modes: list[int] = []
    change = os.fchmod

    def look(descriptor: int, mode: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        change(descriptor, mode)

    def rows() -> Any:
        for entry in tmp_path.iterdir():
            yield stat.S_IMODE(entry.stat().st_mode)

    monkeypatch.setattr(os, "fchmod", look)
    assert await write_rows(path, rows()) == 2
    assert path.read_text() == f"{0o600}\n{0o600}\n"
    assert modes == [0o600]


async def test_a_new_file_has_the_mode_that_new_files_have(tmp_path: Path) -> None:
    """As the process's mask has it."""
    mask = os.umask(0o027)
    try:
        await write_rows(tmp_path / "rows.ndjson", [1])
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "rows.ndjson").stat().st_mode) == 0o640


async def test_a_file_that_is_replaced_passes_on_its_owner(tmp_path: Path) -> None:
    """Else a job of root's would lock the owner out."""
    path = tmp_path / "rows.ndjson"
    path.touch()
    owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)  # only root may give a file away
    path.chmod(0o600)
    await write_rows(path, [1])
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o600)


async def test_a_mode_that_cannot_be_passed_on_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is left."""

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "rows.ndjson"
    path.touch()
    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(PermissionError):
        await write_rows(path, [1])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
async def test_a_link_stays_and_its_file_is_replaced(there: bool, tmp_path: Path) -> None:
    """In the folder where that is, whole or not at all; a link to a file that is still to come too."""
    folder = tmp_path / "data"
    folder.mkdir()
    target = folder / "today.ndjson"
    if there:
        target.write_text('"old"\n')
    link, second = tmp_path / "rows.ndjson", tmp_path / "again.ndjson"
    link.symlink_to(Path("data") / "today.ndjson")
    second.symlink_to(link)
    with pytest.raises(ZeroDivisionError):
        await write_rows(second, (1 // n for n in [1, 0]))
    assert target.exists() == there
    await write_rows(second, ["new"])
    assert second.is_symlink()
    assert link.is_symlink()
    assert target.read_text() == '"new"\n'
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == [
        "again.ndjson",
        "data",
        "rows.ndjson",
        "today.ndjson",
    ]


async def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    """As the system tells it."""
    link = tmp_path / "rows.ndjson"
    link.symlink_to(link)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        await write_rows(link, [1])
    assert list(tmp_path.iterdir()) == [link]


async def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """A pipe that became a file would cut off its readers; a folder would be told of after all the rows."""
    pipe, folder = tmp_path / "pipe.csv", tmp_path / "folder.csv"
    os.mkfifo(pipe)
    folder.mkdir()
    taken = iter([{"a": 1}])
    with pytest.raises(OSError, match="it is no file, so nothing can take its place"):
        await write_rows(pipe, taken)
    with pytest.raises(IsADirectoryError):
        await write_rows(folder, taken)
    assert next(taken) == {"a": 1}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.csv", "pipe.csv"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


async def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    """The temporary one is not longer than names may be."""
    path = tmp_path / f"{'ü' * 124}.jsonl"  # 254 bytes of 255
    await write_rows(path, [1])
    assert list(tmp_path.iterdir()) == [path]


async def test_the_temporary_name_does_not_stand_in_the_gzip(tmp_path: Path) -> None:
    """``gunzip -N`` would give it to the file."""
    path = tmp_path / "rows.ndjson.gz"
    await write_rows(path, [1])
    assert b".part" not in path.read_bytes()
    assert b"rows" not in path.read_bytes()


# --- what can be written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_a_character_that_the_encoding_has_not_is_told_with_its_row(
    suffix: str, tmp_path: Path
) -> None:
    """A question mark in its place would be another row."""
    rows = [{"a": "ö"}] * 1500 + [{"a": "5 €"}]
    message = "row 1501 has '€', which latin-1 cannot hold"
    with pytest.raises(ValueError, match=message):
        await write_rows(tmp_path / f"rows.{suffix}", rows, encoding="latin-1")
    with pytest.raises(ValueError, match=r"row 2 has '\\ud800', which utf-8 cannot hold"):
        await write_rows(tmp_path / f"rows.{suffix}", [{"a": "ö"}, {"a": "\ud800"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"the last column of CSV must have a name, got the fields \[\]"),
        ({"a": 1, "": 2}, r"the last column of CSV must have a name, got the fields \['a', ''\]"),
        ({1: 1, "1": 2}, "the columns of CSV must differ in their names, got the fields"),
    ],
)
async def test_columns_that_could_not_be_read_back_are_refused(
    fields: Any, message: str, tmp_path: Path
) -> None:
    """A row of no cells is a blank line, which is no row."""
    with pytest.raises(ValueError, match=message):
        await write_rows(tmp_path / "rows.csv", [fields])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"delimiter": ";;"}, ValueError, "delimiter must be one character, .* got ';;'"),
        ({"delimiter": '"'}, ValueError, "delimiter must be one character, no quote"),
        ({"delimiter": 9}, TypeError, "delimiter must be a str or None, got 9"),
        (
            {"delimiter": ";", "format": "jsonl"},
            ValueError,
            "delimiter is for csv and tsv, got ';' for",
        ),
        ({"encoding": "klingon"}, ValueError, "must be a text encoding of Python, got 'klingon'"),
        ({"encoding": "hex"}, ValueError, "encoding must be a text encoding of Python, got 'hex'"),
        ({"encoding": 8}, TypeError, "encoding must be a str or None, got 8"),
        ({"format": 8}, TypeError, "format must be a str or None, got 8"),
        ({"path": 8}, TypeError, "path must be a str or a path, got a int"),
        ({"path": b"rows.csv"}, TypeError, "path must be a str or a path, got a bytes"),
        ({"path": {"a": 1}}, TypeError, "path must be a str or a path, got a dict"),
    ],
)
async def test_bad_arguments_are_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """When they are given, in reading and in writing."""
    given = {"path": "rows.csv"} | arguments
    with pytest.raises(error, match=message):
        read_rows(**given)
    with pytest.raises(error, match=message):
        await write_rows(rows=[], **given)
