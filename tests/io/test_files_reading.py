"""Rows out of files as people have them: long cells, marks, encodings, damage, odd ends of lines, pipes."""

# ruff: noqa: ASYNC240 - small files of the tests' own

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from microbatch import ItemError, Outcome
from microbatch._io import finding, reading
from microbatch._io.csv_rows import CsvRows
from microbatch._io.json_rows import JsonRows
from microbatch._io.ndjson_rows import NdjsonRows
from microbatch._io.reading import Decoder
from microbatch._io.row_types import csv_decoder, json_decoder
from microbatch.files import read_rows, write_rows

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]

ROWS = [{"a": "1", "b": "Zoë"}, {"a": "2", "b": "€"}]


@pytest.fixture(params=["asyncio"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """What stands in a file is found without a loop: test_files.py reads on all of them."""
    return str(request.param)


async def collect(path: Path, *arguments: Any, **options: Any) -> list[Outcome[Any]]:
    return [outcome async for outcome in read_rows(path, *arguments, **options)]


async def read(path: Path, data: bytes, *arguments: Any, **options: Any) -> list[Outcome[Any]]:
    path.write_bytes(data)
    return await collect(path, *arguments, **options)


async def until_error(path: Path, error: type[Exception], message: str) -> list[Any]:
    """Return the values that came before the error."""
    found: list[Any] = []
    with pytest.raises(error, match=message):
        async for outcome in read_rows(path):
            found.append(outcome.value)
    return found


def values(outcomes: list[Outcome[Any]]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


def problems(outcomes: list[Outcome[Any]]) -> list[str]:
    return [str(outcome.error) for outcome in outcomes if outcome.error is not None]


# --- long rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [131_071, 131_072, 131_073, 400_000])
async def test_a_long_cell_is_whole_whatever_the_process_allows(
    length: int, tmp_path: Path
) -> None:
    """The limit of the csv module is everybody's in a process: a cell over it is read, and the limit left."""
    rows = [{"a": 'x"\n,' * (length // 4), "b": "1"}, {"a": "short", "b": "y" * length}]
    path = tmp_path / "rows.csv"
    await write_rows(path, [*rows, {"a": "", "b": "end"}])
    outcomes = await collect(path)
    assert values(outcomes) == [*rows, {"a": "", "b": "end"}]
    assert [outcome.id for outcome in outcomes] == [2, 3 + length // 4, 4 + length // 4]
    assert csv.field_size_limit() == 131_072


async def test_a_smaller_limit_of_the_process_changes_nothing(tmp_path: Path) -> None:
    """Whoever set it meant other files."""
    before = csv.field_size_limit(3)
    try:
        outcomes = await read(
            tmp_path / "rows.csv", b'name,b\n"long, and\nquoted",2\nlonger,3\n"x"y,4\n'
        )
        assert csv.field_size_limit() == 3
    finally:
        csv.field_size_limit(before)
    assert values(outcomes)[:2] == [
        {"name": "long, and\nquoted", "b": "2"},
        {"name": "longer", "b": "3"},
    ]
    assert problems(outcomes) == ["line 5: ',' expected after '\"'"]


@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
@pytest.mark.parametrize("block", [1, 7, 64, 200])
async def test_a_row_at_the_limit_is_good_and_a_longer_one_is_one_bad_row(
    suffix: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read over to its very end: what it holds are no rows. The memory is bounded all the while."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    monkeypatch.setattr(finding, "ROW_LENGTH_MAX", 256)
    monkeypatch.setattr(finding, "SHOWN_OF_LONG_ROWS", 100)
    texts = ["1", "x" * 254, "x" * 255, "x" * 5000, "2"]  # and two quotes
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        path.write_text('a\r\n"' + '"\r\n"'.join(texts) + '"\r\n')
    else:
        await write_rows(path, texts)
    outcomes = await collect(path)
    found = [o.value["a"] if suffix == "csv" and o.ok else o.value for o in outcomes]
    assert found == ["1", "x" * 254, None, None, "2"]
    first = 1 if suffix == "ndjson" else 2
    assert [outcome.id for outcome in outcomes] == list(range(first, first + 5))
    assert problems(outcomes) == [
        f"line {first + n}: the row has more than 256 characters" for n in (2, 3)
    ]
    error = outcomes[3].error
    assert isinstance(error, ItemError)
    assert error.details is not None
    assert error.details["row"] == '"' + "x" * 99


async def test_what_a_row_that_is_too_long_holds_is_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line ends and brackets in its quotes do not end it."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", 16)
    monkeypatch.setattr(finding, "ROW_LENGTH_MAX", 64)
    inside = '1,2\n""x"",3\n' * 20
    outcomes = await read(tmp_path / "a.csv", f'a,b\n"{inside}",4\n5,6\n'.encode())
    assert values(outcomes) == [None, {"a": "5", "b": "6"}]
    assert [outcome.id for outcome in outcomes] == [2, 43]
    element = json.dumps({"a": ["]", '"', "\\", "},\n{"] * 20}, indent=1)
    outcomes = await read(tmp_path / "a.json", f"[1, {element},\n3]".encode())
    assert values(outcomes) == [1, None, 3]
    assert [outcome.id for outcome in outcomes] == [1, 1, element.count("\n") + 2]


@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_the_limit_is_16_mi_characters(suffix: str, tmp_path: Path) -> None:
    """As the pages say; a cell of 15 Mi is whole, one of 17 Mi is a bad row and not a part of one."""
    mebi = 1024 * 1024
    path = tmp_path / f"rows.{suffix}"
    cells = ["x" * 15 * mebi, "x" * 17 * mebi, "y"]
    if suffix == "csv":  # the csv module writes no more than 10 MB a second
        path.write_text("\n".join(["a", *cells]))
    else:
        await write_rows(path, [{"a": cell} for cell in cells])
    outcomes = await collect(path)
    assert [len(o.value["a"]) if o.ok else None for o in outcomes] == [15 * mebi, None, 1]
    assert f"has more than {16 * mebi} characters" in str(outcomes[1].error)


@pytest.mark.parametrize(
    ("text", "message"),
    [('"' + "x" * 300 + '"\n1\n', "line 1: the row has more than 256"), ('"a', "line 1: unexpec")],
)
async def test_a_first_line_that_names_no_columns_raises(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be told of the rows below it."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", 64)
    monkeypatch.setattr(finding, "ROW_LENGTH_MAX", 256)
    path = tmp_path / "rows.csv"
    path.write_text(text)
    assert await until_error(path, ValueError, message) == []


async def test_an_element_that_is_nested_too_deep_is_a_bad_row(tmp_path: Path) -> None:
    """Its brackets tell where it ends, so the next one is read."""
    deep = b"[" * 100_000 + b"]" * 100_000
    outcomes = await read(tmp_path / "rows.json", b"[1,\n" + deep + b",\n3]")
    assert values(outcomes) == [1, None, 3]
    assert "recursion" in problems(outcomes)[0]


@pytest.mark.parametrize(
    ("parser", "data"),
    [
        (CsvRows(Decoder(None), csv_decoder(None), ","), b"a\n1\n2"),
        (JsonRows(Decoder(None), json_decoder(None)), b'[{"a": "1"}, {"a": "2"}]'),
        (NdjsonRows(Decoder(None), json_decoder(None)), b'{"a": "1"}\n{"a": "2"}'),
    ],
)
async def test_a_file_may_end_with_any_piece(parser: Any, data: bytes) -> None:
    """A file's last piece is empty as a rule, but need not be."""
    assert values(parser.feed(data, final=True)) == [{"a": "1"}, {"a": "2"}]


# --- marks and encodings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 256 * 1024])
@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_a_byte_order_mark_is_no_part_of_the_first_row(
    suffix: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows programs put one before UTF-8 too; the mark may come in pieces."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    path = tmp_path / f"rows.{suffix}"
    await write_rows(path, ROWS, encoding="utf-8-sig")
    assert path.read_bytes().count(codecs.BOM_UTF8) == 1
    assert values(await collect(path)) == ROWS
    assert values(await collect(path, encoding="utf-8")) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_another_unicode_encoding_is_named_and_read_where_it_is_given(
    suffix: str, encoding: str, tmp_path: Path
) -> None:
    """Read as UTF-8 it would be rows of NULs; with a mark or without one it is told by its beginning."""
    path = tmp_path / f"rows.{suffix}"
    await write_rows(path, ROWS, encoding=encoding)
    message = f"the file begins as {encoding} does, not as UTF-8: give encoding='{encoding}'"
    assert await until_error(path, ValueError, message) == []
    assert values(await collect(path, encoding=encoding)) == ROWS


@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_a_mark_of_utf_16_is_no_part_of_the_first_row_either(
    suffix: str, tmp_path: Path
) -> None:
    """Whether the encoding was given with its byte order or without."""
    path = tmp_path / f"rows.{suffix}"
    await write_rows(path, ROWS, encoding="utf-16-le")
    path.write_bytes(codecs.BOM_UTF16_LE + path.read_bytes())
    assert values(await collect(path, encoding="utf-16-le")) == ROWS
    assert values(await collect(path, encoding="utf-16")) == ROWS


@pytest.mark.parametrize("block", [1, 3, 256 * 1024])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis", "gb18030"])
@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_any_encoding_can_be_given(
    suffix: str, encoding: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters of several bytes may lie across two blocks."""
    rows = [{"a": "äöü" if encoding in {"latin-1", "cp1252"} else "日本語", "b": "x\r\ny"}] * 3
    path = tmp_path / f"rows.{suffix}"
    await write_rows(path, rows, encoding=encoding)
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    assert values(await collect(path, encoding=encoding)) == rows


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        ("csv", b"a\ngood\nb\xe4d\nalso\n"),
        ("json", b'["good",\n"b\xe4d",\n"also"]'),
        ("ndjson", b'"good"\n"b\xe4d"\n"also"'),
    ],
)
async def test_a_row_that_is_not_of_the_encoding_is_one_bad_row(
    suffix: str, data: bytes, tmp_path: Path
) -> None:
    """One byte of Latin-1 costs its own row alone, in every format."""
    outcomes = await read(tmp_path / f"rows.{suffix}", data)
    found = [o.value["a"] if isinstance(o.value, dict) else o.value for o in outcomes]
    assert found == ["good", None, "also"]
    line = 3 if suffix == "csv" else 2
    assert problems(outcomes) == [f"line {line if suffix != 'ndjson' else 2}: it is not UTF-8"]
    assert "\udce4" not in str(outcomes[1].as_dict())
    json.dumps(outcomes[1].as_dict()).encode()


async def test_a_row_that_is_not_of_a_given_encoding_is_a_bad_row_too(tmp_path: Path) -> None:
    """It is named as it was given."""
    for suffix, data in {"csv": b"a\nx\n\x81\n", "ndjson": b'"x"\n"\x81"\n'}.items():
        outcomes = await read(tmp_path / f"rows.{suffix}", data, encoding="cp1252")
        assert [outcome.ok for outcome in outcomes] == [True, False]
        assert "it is not cp1252" in str(outcomes[1].error)


async def test_columns_names_that_cannot_be_decoded_raise(tmp_path: Path) -> None:
    """Names that cannot be encoded again would break whatever comes next."""
    path = tmp_path / "rows.csv"
    path.write_bytes("größe,b\n1,2\n".encode("latin-1"))
    message = "line 1: the columns' names are not UTF-8: give encoding"
    assert await until_error(path, ValueError, message) == []
    assert values(await collect(path, encoding="latin-1")) == [{"größe": "1", "b": "2"}]


# --- lines ------------------------------------------------------------------------------------------------------


async def test_a_blank_line_hides_no_line_with_two_values(tmp_path: Path) -> None:
    """Two values on a line are a bad row, and every row keeps its own line's number."""
    outcomes = await read(tmp_path / "rows.ndjson", b'1\n\n2 3\n4\n\n \t\n"5"\r\n')
    assert values(outcomes) == [1, None, 4, "5"]
    assert [outcome.id for outcome in outcomes] == [1, 3, 4, 7]


@pytest.mark.parametrize("block", [1, 2, 5, 256 * 1024])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_lines_end_in_lf_crlf_or_cr(
    suffix: str, ends: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old spreadsheets write CR alone. Lines are numbered by any of them, also where a block ends within one."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    lines = {
        "csv": ["a,b", "", '1,"x', 'y"', "2,z"],
        "json": ["[", "", '{"a": "1",', '"b": "x\\ny"},', '{"a": "2", "b": "z"}]'],
        "ndjson": ["", "", '{"a": "1", "b": "x\\ny"}', "", '{"a": "2", "b": "z"}'],
    }[suffix]
    outcomes = await read(tmp_path / f"rows.{suffix}", ends.join(lines).encode())
    inside = ends if suffix == "csv" else "\n"
    assert values(outcomes) == [{"a": "1", "b": f"x{inside}y"}, {"a": "2", "b": "z"}]
    assert [outcome.id for outcome in outcomes] == [3, 5]


@pytest.mark.parametrize("names", ["a,b,,", 'a,b,"",', "a,b,"])
async def test_columns_without_a_name_at_the_end_are_left_out(names: str, tmp_path: Path) -> None:
    """Spreadsheets leave commas at the ends of lines; something below them is not lost silently."""
    commas = "," * (names.count(",") - 1)
    text = f"{names}\n1,2{commas}\n3,4\n5,6,\n7,8,x\n9\n1,2{commas},\n"
    outcomes = await read(tmp_path / "rows.csv", text.encode())
    good = [o.value for o in outcomes if o.ok]
    assert good == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5", "b": "6"}]
    assert problems(outcomes) == [
        "line 5: a cell beyond the 2 columns that the first line names",
        "line 6: 1 cells, but the first line names 2 columns",
        f"line 7: {len(commas) + 3} cells, but the first line names 2 columns",
    ]


async def test_columns_of_which_none_has_a_name_raise(tmp_path: Path) -> None:
    """Else every row would be empty."""
    path = tmp_path / "rows.csv"
    path.write_text(",,\n1,2,3\n")
    assert await until_error(path, ValueError, "line 1: no column has a name") == []


async def test_rows_are_separated_as_is_said(tmp_path: Path) -> None:
    """By tabs in TSV, by a semicolon where a spreadsheet's country wants it; written and read."""
    rows = [{"a": "1,5", "b": "x;y\tz"}]
    for name, delimiter in [("rows.tsv", None), ("rows.csv", ";"), ("rows.tsv.gz", "|")]:
        path = tmp_path / name
        await write_rows(path, rows, delimiter=delimiter)
        data = path.read_bytes()
        text = (gzip.decompress(data) if name.endswith("gz") else data).decode()
        expected = list(csv.reader(text.splitlines(), delimiter=delimiter or "\t"))
        assert expected == [["a", "b"], ["1,5", "x;y\tz"]]
        assert values(await collect(path, delimiter=delimiter)) == rows


async def test_jsonl_is_ndjson(tmp_path: Path) -> None:
    """Half of the world calls it so."""
    path = tmp_path / "rows.jsonl"
    await write_rows(path, ROWS)
    assert path.read_bytes() == b"".join(msgspec.json.encode(row) + b"\n" for row in ROWS)
    assert values(await collect(path)) == ROWS
    assert values(await collect(path, format="ndjson")) == ROWS


# --- gzip -------------------------------------------------------------------------------------------------------


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(count))


async def test_a_gzip_that_breaks_off_gives_what_is_whole_and_raises(tmp_path: Path) -> None:
    """And no part of a row: a number that was cut is another number."""
    path = tmp_path / "rows.ndjson.gz"
    data = gzip.compress(numbers(200_000))
    path.write_bytes(data[: len(data) // 2])
    known = zlib.decompressobj(31).decompress(data[: len(data) // 2])
    found = await until_error(path, EOFError, "the gzip breaks off: the file is not whole")
    assert found == list(range(known.count(b"\n")))
    assert len(found) > 80_000


async def test_a_gzip_that_breaks_off_anywhere_gives_all_that_can_be_unzipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what zlib still holds when the file ends."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", 64)
    data = gzip.compress(b"1\n" * 3000)
    path = tmp_path / "rows.ndjson.gz"
    for end in range(12, len(data)):
        path.write_bytes(data[:end])
        known = zlib.decompressobj(31).decompress(data[:end])
        assert len(await until_error(path, EOFError, "breaks off")) == known.count(b"\n")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
async def test_a_gzip_that_is_damaged_gives_what_is_whole_and_raises(
    place: float, tmp_path: Path
) -> None:
    """What cannot be unzipped ends the reading; what stands before it comes."""
    path = tmp_path / "rows.ndjson.gz"
    data = bytearray(gzip.compress(numbers(30_000)))  # a block, unzipped
    data[int(len(data) * place)] ^= 0xFF
    path.write_bytes(data)
    found = await until_error(path, gzip.BadGzipFile, "the gzip is damaged")
    assert len(found) > 30_000 * place * 0.9
    assert found[:1000] == list(range(1000))


async def test_a_gzip_may_have_several_members_and_zeros_at_its_end(tmp_path: Path) -> None:
    """As after ``cat a.gz b.gz``, and on tapes."""
    path = tmp_path / "rows.ndjson.gz"
    path.write_bytes(gzip.compress(b"1\n2") + gzip.compress(b"3\n4\n") + b"\0" * 100)
    assert values(await collect(path)) == [1, 23, 4]
    path.write_bytes(b"")
    assert await collect(path) == []
    path.write_bytes(gzip.compress(b"1\n") + b"rubbish")
    assert await until_error(path, gzip.BadGzipFile, r"Not a gzipped file \(b'ru'\)") == [1]


async def test_a_gzip_that_grows_a_thousandfold_is_read_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 MB of zeros in 100 kB would else be unzipped at once."""
    sizes: list[int] = []
    read_block = reading.Input.read
    monkeypatch.setattr(
        reading.Input, "read", lambda self: sizes.append(len(b := read_block(self))) or b
    )
    path = tmp_path / "rows.ndjson.gz"
    path.write_bytes(gzip.compress(b" " * 20_000_000 + b"\n1\n"))
    outcomes = await collect(path)
    assert [outcome.value for outcome in outcomes] == [None, 1]
    assert max(sizes) == reading.BLOCK_BYTES
