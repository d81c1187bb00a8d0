"""Rows in and out of files: every format, every kind of damage, nothing half written, nothing left open."""

# ruff: noqa: ASYNC240 - small files of the tests' own

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import gzip
import io
import json
import random
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from microbatch import ItemError, Outcome
from microbatch._io import reading
from microbatch.files import read_rows, write_rows
from microbatch.streaming import map_batches

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]

FORMATS = ["csv", "json", "ndjson", "csv.gz", "json.gz", "ndjson.gz"]


class User(msgspec.Struct):
    name: str
    age: int
    active: bool = True
    score: float | None = None
    joined: dt.date | None = None


USERS = [
    User("Ada", 36, score=1.5, joined=dt.date(2020, 1, 2)),
    User('Bo, the "second"', 7, active=False),
    User("two\nlines", -1, score=0.1 + 0.2),
    User("Zoë €", 10**12, score=-1e300),
    User("", 0),
]


async def collect(path: Path, *arguments: Any, **options: Any) -> list[Outcome[Any]]:
    return [outcome async for outcome in read_rows(path, *arguments, **options)]


def values(outcomes: list[Outcome[Any]]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


def problems(outcomes: list[Outcome[Any]]) -> list[str]:
    return [str(outcome.error) for outcome in outcomes if outcome.error is not None]


# --- there and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
async def test_typed_rows_come_back_as_they_were(suffix: str, tmp_path: Path) -> None:
    """In every format, told by the suffix: quotes, line breaks, dates, floats, None and the default."""
    path = tmp_path / f"users.{suffix}"
    assert await write_rows(path, USERS) == 5
    outcomes = await collect(path, User)
    assert values(outcomes) == USERS
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FORMATS)
async def test_no_rows_make_a_file_that_reads_as_no_rows(suffix: str, tmp_path: Path) -> None:
    """A valid one: an empty JSON array is not an empty file."""
    path = tmp_path / f"none.{suffix}"
    assert await write_rows(path, []) == 0
    assert await collect(path) == []


@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
async def test_the_size_of_the_blocks_changes_nothing(
    suffix: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, quoted line breaks, numbers and characters of several bytes may lie across two blocks."""
    rows = [
        {"n": 12_345.678e5, "text": 'ä€😀 "quoted",\n second line', "tail": -1},
        *({"n": n, "text": "x" * n, "tail": 1.5e-7} for n in range(30)),
    ]
    path = tmp_path / f"rows.{suffix}"
    await write_rows(path, rows)
    monkeypatch.setattr(reading, "BLOCK_BYTES", size)
    outcomes = await collect(path)
    if suffix == "csv":
        assert [o.value["text"] for o in outcomes] == [row["text"] for row in rows]
        assert [o.id for o in outcomes[:3]] == [2, 4, 5]
    else:
        assert values(outcomes) == rows
        assert [o.id for o in outcomes[:3]] == ([2, 3, 4] if suffix == "json" else [1, 2, 3])


async def test_what_others_wrote_is_read(tmp_path: Path) -> None:
    """The plain libraries' files, a byte order mark, Windows line ends, no line end at the end."""
    rows = [{"a": "1", "b": "x\r\ny"}, {"a": "2", "b": ""}]
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["a", "b"])
        writer.writeheader()
        writer.writerows(rows)
    assert values(await collect(path)) == rows
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8-sig")
    assert values(await collect(path)) == rows
    path.write_text(json.dumps(rows))
    assert values(await collect(path)) == rows
    path = tmp_path / "rows.ndjson"
    path.write_text("\n\n".join(map(json.dumps, rows)), newline="\r\n")
    outcomes = await collect(path)
    assert values(outcomes) == rows
    assert [outcome.id for outcome in outcomes] == [1, 3]


@pytest.mark.parametrize("suffix", ["csv", "json", "ndjson"])
async def test_the_plain_libraries_read_what_was_written(suffix: str, tmp_path: Path) -> None:
    """Nobody needs this library to read its files."""
    path = tmp_path / f"rows.{suffix}.gz"
    await write_rows(path, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}])
    text = gzip.decompress(path.read_bytes()).decode()
    if suffix == "csv":
        assert list(csv.DictReader(io.StringIO(text))) == [
            {"a": "1", "b": "x"},
            {"a": "2", "b": "y"},
        ]
    else:
        found = json.loads(text) if suffix == "json" else list(map(json.loads, text.splitlines()))
        assert found == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


# --- bad rows ---------------------------------------------------------------------------------------------------


async def test_every_bad_line_of_ndjson_is_told_and_the_good_ones_go_on(tmp_path: Path) -> None:
    """With its number, its reason, its field and its text."""
    path = tmp_path / "users.ndjson"
    path.write_bytes(
        b'{"name": "Ada", "age": 36}\n'
        b'{"name": "Bo", "age": "7"}\n'
        b"\n"
        b'{"name": "Cy", \n'
        b"not json\r\n"
        b'{"name": "\xff", "age": 1}\n'
        b'{"age": 1}\n'
        b'{"name": "Di", "age": 1}'
    )
    outcomes = await collect(path, User)
    assert values(outcomes) == [User("Ada", 36), None, None, None, None, None, User("Di", 1)]
    assert [outcome.index for outcome in outcomes] == list(range(7))
    assert [outcome.id for outcome in outcomes] == [1, 2, 4, 5, 6, 7, 8]
    assert [text.partition(":")[0] for text in problems(outcomes)] == [
        f"line {n}" for n in (2, 4, 5, 6, 7)
    ]
    error = outcomes[1].error
    assert isinstance(error, ItemError)
    assert str(error) == "line 2: Expected `int`, got `str` - at `$.age`"
    assert (error.code, error.field, error.retryable) == ("bad_row", "age", False)
    assert error.details == {"line": 2, "row": '{"name": "Bo", "age": "7"}'}
    assert outcomes[3].as_dict()["error"]["details"] == {"line": 5, "row": "not json"}


async def test_a_line_that_is_nested_too_deep_is_a_bad_row(tmp_path: Path) -> None:
    """It raises a RecursionError: the line's fault, and no reason to lose the others."""
    path = tmp_path / "deep.ndjson"
    path.write_bytes(b"1\n" + b"[" * 100_000 + b"]" * 100_000 + b"\n2\n")
    outcomes = await collect(path)
    assert values(outcomes) == [1, None, 2]
    assert "recursion" in str(outcomes[1].error)


async def test_every_bad_line_of_csv_is_told_and_the_good_ones_go_on(tmp_path: Path) -> None:
    """A wrong type, too few cells, too many, what is not UTF-8, a quote in the wrong place."""
    path = tmp_path / "users.csv"
    path.write_bytes(
        b"name,age,active,score\n"
        b"Ada,36,true,\n"
        b"Bo,seven,,\n"
        b"\n"
        b"Cy,1\n"
        b"Di,1,true,1.5,extra\n"
        b"\xff,1,,\n"
        b'"Ed"x,1,,\n'
        b'"two\nlines",2,,\n'
        b"Flo,3,no,\n"
        b"Gil,,1,2.5\n"
        b"Hal,8,0,nan\n"
    )
    outcomes = await collect(path, User)
    good = [o.value for o in outcomes if o.ok]
    assert good[0] == User("Ada", 36)
    assert good[1] == User("two\nlines", 2)
    assert (good[2].name, good[2].active) == ("Hal", False)
    assert problems(outcomes) == [
        "line 3: Expected `int`, got `str` - at `$.age`",
        "line 5: 2 cells, but the first line names 4 columns",
        "line 6: 5 cells, but the first line names 4 columns",
        "line 7: it is not UTF-8",
        "line 8: ',' expected after '\"'",
        "line 11: Expected `bool`, got `str` - at `$.active`",
        "line 12: Object missing required field `age`",
    ]
    rows = [o.error.details["row"] for o in outcomes if isinstance(o.error, ItemError)]
    assert rows[0] == {"name": "Bo", "age": "seven", "active": "", "score": ""}
    assert rows[1] == {"name": "Cy", "age": "1", "active": "", "score": ""}
    assert rows[2] == {"name": "Di", "age": "1", "active": "true", "score": "1.5"}
    assert rows[3] == {"name": "?", "age": "1", "active": "", "score": ""}
    assert rows[4] == '"Ed"x,1,,'
    cells = [o.error.details.get("cells") for o in outcomes if isinstance(o.error, ItemError)]
    assert cells == [
        None, ["Cy", "1"], ["Di", "1", "true", "1.5", "extra"], ["?", "1", "", ""], None, None, None,
    ]  # fmt: skip
    assert [o.id for o in outcomes if o.ok] == [2, 9, 13]


async def test_an_open_quote_is_one_bad_row(tmp_path: Path) -> None:
    """It takes the rest of the file with it; its text is kept, so that it can be mended."""
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n3,"open\n5,6\n')
    outcomes = await collect(path)
    assert problems(outcomes) == ["line 3: unexpected end of data"]
    assert isinstance(outcomes[1].error, ItemError)
    assert outcomes[1].error.details["row"] == '3,"open\n5,6'


async def test_every_bad_element_of_a_json_array_is_told(tmp_path: Path) -> None:
    """Where the element ends is known, so the next one is read."""
    path = tmp_path / "users.json"
    path.write_text('[\n{"name": "Ada", "age": 36},\n{"name": "Bo"}, 7,\n{"name": "Cy", "age": 1}]')
    outcomes = await collect(path, User)
    assert values(outcomes) == [User("Ada", 36), None, None, User("Cy", 1)]
    assert problems(outcomes) == [
        "line 3: Object missing required field `age`",
        "line 3: Expected `object`, got `int`",
    ]


@pytest.mark.parametrize(
    ("text", "reason", "before"),
    [
        ("", "line 1: a JSON array is expected", 0),
        ('{"a": 1}', "line 1: a JSON array is expected", 0),
        ("[1, 2, oops, 4]", "line 1: Expecting value; the rest of the array cannot be read", 2),
        ("[1,\n2,\n{", "line 3: Expecting property name enclosed in double quotes; the rest", 2),
        ("[1 2]", "line 1: ',' or ']' is expected after an element; the rest", 0),
        ("[1,]", "line 1: Expecting value; the rest of the array cannot be read", 1),
        ("[1, 2", "line 1: ',' or ']' is expected after an element; the rest", 1),
        ("[" * 100_000, "line 1: maximum recursion depth exceeded", 0),
        ("[1]\n[2]", "line 2: more follows after the JSON array", 1),
        (b"[1, \xff]", "line 1: it is not UTF-8; the rest of the array cannot be read", 1),
    ],
)
async def test_a_json_array_that_breaks_off_raises_after_what_was_whole(
    text: str | bytes, reason: str, before: int, tmp_path: Path
) -> None:
    """What follows cannot be told apart; to end quietly would lose it."""
    path = tmp_path / "rows.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found: list[Any] = []
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        async for outcome in read_rows(path):
            found.append(outcome.value)
    assert found == list(range(1, before + 1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b,a\n1,2,3\n", "the first line names columns twice: 'a'"),
        ('"a"b\n', "line 1: ',' expected after"),
    ],
)
async def test_a_csv_file_whose_columns_have_no_sound_names_raises(
    text: str, reason: str, tmp_path: Path
) -> None:
    """One of two equal columns would win silently."""
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        await collect(path)


async def test_an_empty_cell_is_what_its_field_allows(tmp_path: Path) -> None:
    """None, the empty string, or the default; without one it is missing."""

    class Row(msgspec.Struct):
        key: int
        text: str
        maybe: str | None
        number: int | None
        default: int = 7
        anything: Any = 1

    path = tmp_path / "rows.csv"
    path.write_text("key,text,maybe,number,default,anything\n1,,,,,\n,x,x,1,1,1\n")
    outcomes = await collect(path, Row)
    assert outcomes[0].value == Row(1, "", None, None, 7, "")
    assert problems(outcomes) == ["line 3: Object missing required field `key`"]


async def test_any_type_that_msgspec_knows_will_do(tmp_path: Path) -> None:
    """A dataclass, a mapping; one that it does not know is refused at once."""

    @dataclass
    class Point:
        x: int
        y: int

    path = tmp_path / "rows.csv"
    path.write_text("x,y\n1,2\n")
    assert values(await collect(path, Point)) == [Point(1, 2)]
    assert values(await collect(path, dict[str, int])) == [{"x": 1, "y": 2}]
    await write_rows(path, [Point(3, 4)])
    assert path.read_bytes() == b"x,y\r\n3,4\r\n"
    with pytest.raises(TypeError):
        read_rows(tmp_path / "rows.json", list[int] | set[int])


# --- formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("rows.xml", None), ("rows", None), ("a.csv", "xml"), ("x.gz", None), ("a.csv", "a.csv")],
)
async def test_an_unknown_format_is_refused_with_the_known_ones(
    name: str, kind: str | None
) -> None:
    """When it is called, not at the first row."""
    known = (
        "is not known: known are csv, tsv, json, ndjson, jsonl, csv.gz, tsv.gz, json.gz, ndjson.gz"
    )
    with pytest.raises(ValueError, match=known):
        read_rows(name, format=kind)
    with pytest.raises(ValueError, match=known):
        await write_rows(name, [], kind)


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_format_given_counts_more_than_the_suffix(kind: str, tmp_path: Path) -> None:
    """Uploads have any name; but what ends in .gz is zipped in any case."""
    path = tmp_path / "upload"
    await write_rows(path, [{"a": 1}], kind)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == kind.endswith(".gz")
    [outcome] = await collect(path, format=kind)
    assert outcome.value in ({"a": 1}, {"a": "1"})
    path = tmp_path / "rows.CSV.GZ"
    await write_rows(path, [{"a": 1}], kind)
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    assert len(await collect(path, format=kind)) == 1


async def test_a_file_that_is_not_there_or_damaged_raises_what_the_system_says(
    tmp_path: Path,
) -> None:
    """Nothing of it is a row."""
    with pytest.raises(FileNotFoundError):
        await collect(tmp_path / "none.csv")
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(b"no gzip at all")
    with pytest.raises(OSError, match="Not a gzipped file"):
        await collect(path)
    path.write_bytes(gzip.compress(b"a\n" * 1000)[:-12])
    with pytest.raises(EOFError):
        await collect(path)


# --- threads, early ends ----------------------------------------------------------------------------------------


async def test_rows_are_parsed_off_the_event_loop(tmp_path: Path) -> None:
    """Else a large file would hold up everybody else."""
    threads: set[int] = set()

    class Row(msgspec.Struct):
        a: str

        def __post_init__(self) -> None:
            threads.add(threading.get_ident())

    path = tmp_path / "rows.csv"
    await write_rows(path, [{"a": "1"}])
    await collect(path, Row)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_an_iteration_left_early_closes_the_file(tmp_path: Path) -> None:
    """By aclosing, and by a stream."""
    path = tmp_path / "rows.ndjson"
    await write_rows(path, range(10_000))

    def is_open() -> bool:
        return str(path) in {file.path for file in psutil.Process().open_files()}

    async with contextlib.aclosing(read_rows(path)) as rows:
        async for _ in rows:
            assert is_open()
            break
    assert not is_open()

    async def handler(items: list[int]) -> None: ...

    async with map_batches(read_rows(path), handler, max_batch_size=10) as outcomes:
        async for _ in outcomes:
            break
    assert not is_open()


# --- a pipeline -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_a_file_a_handler_and_a_file_make_a_pipeline(count: int, tmp_path: Path) -> None:
    """CSV in, changed CSV out; bad ones keep their line number."""
    generator = random.Random(7)
    rows = [{"id": n, "price": generator.randrange(10_000)} for n in range(count)]
    source, target = tmp_path / "in.csv", tmp_path / "out.csv.gz"
    await write_rows(source, rows)
    with source.open("a") as file:
        file.write("x,1\n")

    class Row(msgspec.Struct):
        id: int
        price: int

    async def raise_price(items: list[Row]) -> list[Row]:
        return [Row(row.id, row.price + 1) for row in items]

    bad: list[Any] = []

    async with map_batches(read_rows(source, Row), raise_price) as outcomes:

        async def good() -> Any:
            async for outcome in outcomes:
                if outcome.ok:
                    yield outcome.value
                else:
                    bad.append(outcome.id)

        assert await write_rows(target, good()) == count
    assert bad == [count + 2]
    assert values(await collect(target, Row)) == [Row(r["id"], r["price"] + 1) for r in rows]
