"""Files of drawn bytes, read beside the csv module and msgspec; rows that were written come back.

Drawn are the bytes, where the blocks end, and the limits; alphabets are small, so that quotes, line ends and marks
meet often.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from support import run

from microbatch._io import finding, reading
from microbatch.files import read_rows, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microbatch import Outcome

BLOCKS = st.integers(1, 12) | st.just(reading.BLOCK_BYTES)


@contextlib.contextmanager
def bounds(
    *, block: int = reading.BLOCK_BYTES, row: int = 2**24, cell: int = 131_072
) -> Iterator[None]:
    """Read so many bytes at a time, rows of so many characters, in a process that allows such cells."""
    before = reading.BLOCK_BYTES, finding.ROW_LENGTH_MAX, csv.field_size_limit(cell)
    reading.BLOCK_BYTES, finding.ROW_LENGTH_MAX = block, row
    try:
        yield
        assert csv.field_size_limit() == cell
    finally:
        reading.BLOCK_BYTES, finding.ROW_LENGTH_MAX, limit = before
        csv.field_size_limit(limit)


def read(data: bytes, suffix: str, **options: Any) -> tuple[list[Outcome[Any]], str | None]:
    """Return the outcomes, and the error that ended the reading."""

    async def main(path: Path) -> tuple[list[Outcome[Any]], str | None]:
        found: list[Outcome[Any]] = []
        try:
            async for outcome in read_rows(path, format=suffix, **options):
                found.append(outcome)
        except ValueError as error:
            return found, str(error)
        return found, None

    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        outcomes, error = run("asyncio", main, Path(file.name), real_time=True)
    assert [outcome.index for outcome in outcomes] == list(range(len(outcomes)))
    return outcomes, error


def read_outcomes(outcomes: list[Outcome[Any]]) -> list[tuple[int, Any]]:
    """Return each row's line and value, ``...`` for a bad one."""
    return [(outcome.id, outcome.value if outcome.ok else ...) for outcome in outcomes]


# --- CSV --------------------------------------------------------------------------------------------------------


def by_the_csv_module(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield each row's first line and its cells, None for a bad one; blank lines are left out."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield line, None
        else:
            if cells:
                yield line, cells


def is_good(cells: list[str] | None) -> bool:
    return cells is not None and len(cells) == 2 and "\udcff" not in "".join(cells)


@given(
    text=st.text(st.sampled_from('""",,\n\n\r;aé€ \0\udcff'), max_size=60),
    block=BLOCKS,
    cell=st.sampled_from([0, 1, 2, 5, 131_072]),
    delimiter=st.sampled_from(",;"),
)
@example(text='"a\r', block=3, cell=131_072, delimiter=",")
@example(text='1,"a""\n"",b"\r\n2,3', block=1, cell=2, delimiter=",")
def test_csv_is_read_as_the_csv_module_reads_it(
    text: str, block: int, cell: int, delimiter: str
) -> None:
    """Whatever the quotes and line ends, wherever a block ends, whatever the process allows a cell."""
    body = list(by_the_csv_module(text, delimiter))
    with bounds(block=block, cell=cell):
        data = f"x{delimiter}y\n{text}".encode(errors="surrogateescape")  # \udcff is a byte 255
        outcomes, error = read(data, "csv", delimiter=delimiter)
    assert error is None
    assert read_outcomes(outcomes) == [
        (line + 1, dict(zip("xy", cells, strict=True)) if is_good(cells) else ...)
        for line, cells in body
    ]


@given(
    lengths=st.lists(st.integers(20, 44), min_size=1, max_size=6),
    inside=st.sampled_from(["x", '""', ",", "\n", "é"]),
    block=st.integers(1, 12),
)
def test_a_csv_row_is_whole_or_bad_at_every_length_around_the_limit(
    lengths: list[int], inside: str, block: int
) -> None:
    """With a limit of 32 characters; the next row is read in any case."""
    rows = [
        '"' + (inside * length)[: length // len(inside) * len(inside)] + '"' for length in lengths
    ]
    with bounds(block=block, row=32):
        outcomes, error = read("\n".join(["x", *rows]).encode(), "csv")
    assert error is None
    values = [{"x": row[1:-1].replace('""', '"')} if len(row) <= 32 else ... for row in rows]
    assert [value for _, value in read_outcomes(outcomes)] == values


@given(
    names=st.lists(st.sampled_from(["a", "b", "", '"c\n"', "é"]), min_size=1, max_size=4),
    block=BLOCKS,
)
def test_a_first_line_gives_names_or_an_error(names: list[str], block: int) -> None:
    """Names that stand twice, or nowhere but at the end, are told."""
    cells = [name.strip('"') for name in names]
    while cells and not cells[-1]:
        cells.pop()
    with bounds(block=block):
        outcomes, error = read(f"{','.join(names)}\n{','.join('1' * len(cells))}".encode(), "csv")
    if not any(names) and len(names) == 1:  # blank lines, and then a row of nothing
        assert outcomes == []
    elif cells and len(set(cells)) == len(cells):
        assert (error, [outcome.value for outcome in outcomes]) == (
            None,
            [dict.fromkeys(cells, "1")],
        )
    else:
        assert error is not None
        assert outcomes == []


# --- NDJSON -----------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [b"1", b"23", b'"a"', b'"\xc3\xa9"', b'"\xe9"', b'"\\n"', b"[1,", b"]", b" ", b"\n", b"\r\n",
     b"\r", b"\n\n", b"{}", b'{"a": 1}', b"null", b"\xef\xbb\xbf", b"\0", b"1e5", b"NaN"]
)  # fmt: skip


@given(data=st.lists(PIECES, max_size=16).map(b"".join), block=BLOCKS)
@example(data=b"1\n\n2 3\n4", block=4)
def test_ndjson_is_a_value_on_each_line(data: bytes, block: int) -> None:
    """As msgspec reads the line by itself: neither the line before nor the block has a say."""
    lines = data.removeprefix(codecs.BOM_UTF8).splitlines()
    expected: list[tuple[int, Any]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                expected.append((number, msgspec.json.decode(line)))
            except (ValueError, msgspec.MsgspecError):
                expected.append((number, ...))
    with bounds(block=block):
        outcomes, error = read(data, "ndjson")
    if error is not None:
        assert "\0" in data[:4].decode(errors="replace")
        assert "give encoding='utf-" in error
    else:
        assert read_outcomes(outcomes) == expected


@given(lengths=st.lists(st.integers(20, 44), min_size=1, max_size=6), block=st.integers(1, 12))
def test_a_line_of_ndjson_is_whole_or_bad_at_every_length_around_the_limit(
    lengths: list[int], block: int
) -> None:
    """A number that is cut is another number."""
    rows = ["1" * 9 + " " * (length - 10) + "2" if length % 2 else f'"{"x" * (length - 2)}"' for length in lengths]  # fmt: skip
    with bounds(block=block, row=32):
        outcomes, _ = read("\r\n".join(rows).encode(), "ndjson")
    found = [value for _, value in read_outcomes(outcomes)]
    assert found == [row[1:-1] if len(row) <= 32 and row[0] == '"' else ... for row in rows]


# --- JSON -------------------------------------------------------------------------------------------------------

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text('"\\,[]{}aé\n\r€', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"]a', max_size=2), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(
    rows=st.lists(VALUES, max_size=6),
    space=st.sampled_from(["", " ", "\n", "\r\n", "\r", "\n\n\t"]),
    ascii_only=st.booleans(),
    block=BLOCKS,
)
def test_a_json_array_is_read_element_by_element(
    rows: list[Any], space: str, ascii_only: bool, block: int
) -> None:
    """Whatever stands in strings and between the elements, wherever a block ends."""
    import json

    elements = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = f"{space}[{space}" + f"{space},{space}".join(elements) + f"{space}]{space}"
    with bounds(block=block):
        outcomes, error = read(text.encode(), "json")
    assert error is None
    lines, at = [], 0
    for element in elements:
        at = text.index(element, at)
        lines.append(len((text[:at] + "x").splitlines()) if space else 1)
        at += len(element)
    assert [value for _, value in read_outcomes(outcomes)] == rows
    if all(element.isascii() for element in elements):  # splitlines knows more line ends than files
        assert [line for line, _ in read_outcomes(outcomes)] == lines


@given(
    data=st.lists(
        st.sampled_from([b"[", b"]", b",", b"1", b'"a"', b'"', b"{", b"}", b"\\", b" ", b"\n", b"\xe9", b"x"]),
        max_size=14,
    ).map(b"".join),
    block=BLOCKS,
)  # fmt: skip
def test_no_row_of_a_json_array_is_invented_or_lost(data: bytes, block: int) -> None:
    """Every array that msgspec reads is read; from any other only rows that stand in it, and then an error."""
    data = b"[" + data
    with bounds(block=block):
        outcomes, error = read(data, "json")
    expected = decoded(data)
    found = [outcome.value for outcome in outcomes]
    if expected is not None:
        assert (error, found) == (None, expected)
    elif all(outcome.ok for outcome in outcomes):
        assert error is not None
        assert any(decoded(data[:end] + b"]") == found for end in range(len(data) + 1))


def decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, msgspec.MsgspecError):
        return None


@given(
    lengths=st.lists(st.integers(20, 44), min_size=1, max_size=6),
    inside=st.sampled_from(["x", "]", ",", "[{", "\\\\", '\\"']),
    block=st.integers(1, 12),
)
def test_an_element_is_whole_or_bad_at_every_length_around_the_limit(
    lengths: list[int], inside: str, block: int
) -> None:
    """The next one is read in any case."""
    rows = ['"' + (inside * length)[: length // len(inside) * len(inside)] + '"' for length in lengths]  # fmt: skip
    with bounds(block=block, row=32):
        outcomes, error = read(f"[{','.join(rows)}]".encode(), "json")
    assert error is None
    expected = [msgspec.json.decode(row) if len(row) <= 32 else ... for row in rows]
    assert [value for _, value in read_outcomes(outcomes)] == expected


# --- there and back ---------------------------------------------------------------------------------------------

CELLS = st.text(st.sampled_from('",;\t\n\r aé\0\ufeff') | st.characters(codec="utf-8"), max_size=6)


@given(
    names=st.lists(CELLS.filter(bool), min_size=1, max_size=3, unique=True),
    count=st.integers(0, 8),
    data=st.data(),
    suffix=st.sampled_from(["csv", "tsv", "json", "ndjson", "jsonl", "csv.gz", "jsonl.gz"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-le", "gb18030", "utf-7"]),
    block=BLOCKS,
    cell=st.sampled_from([0, 3, 131_072]),
)
def test_rows_that_were_written_come_back(  # noqa: PLR0917
    names: list[str], count: int, data: st.DataObject, suffix: str, encoding: str, block: int, cell: int
) -> None:  # fmt: skip
    """Any text, in every format and encoding, however it is read."""
    names = [name.removeprefix("\ufeff") or "x" for name in names]  # a mark, where a file begins
    rows = [{name: data.draw(CELLS) for name in names} for _ in range(count)]

    async def main(path: Path) -> list[Any]:
        assert await write_rows(path, rows, suffix, encoding=encoding) == count
        return [
            outcome.value async for outcome in read_rows(path, format=suffix, encoding=encoding)
        ]

    with tempfile.TemporaryDirectory() as folder, bounds(block=block, cell=cell):
        assert run("asyncio", main, Path(folder) / "rows", real_time=True) == rows


@given(
    text=st.text(st.sampled_from('aé€日\n,"'), max_size=30),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-be", "utf-32", "latin-1", "shift_jis"]),
    suffix=st.sampled_from(["csv", "ndjson"]),
    block=BLOCKS,
)
def test_an_encoding_changes_nothing_but_the_bytes(
    text: str, encoding: str, suffix: str, block: int
) -> None:
    """What is read in one is what is read in UTF-8, good rows and bad."""
    text = "a\n" + text.encode(encoding, "replace").decode(encoding)
    plain, _ = read(text.encode(), suffix)
    with bounds(block=block):
        outcomes, error = read(text.encode(encoding), suffix, encoding=encoding)
    assert error is None
    assert read_outcomes(outcomes) == read_outcomes(plain)
