"""Rows in and out of CSV, TSV, JSON and NDJSON files, gzip included: `read_rows` and `write_rows`.

A block at a time is read and written, in worker threads: the event loop is free meanwhile, and
memory stays flat whatever the file's size.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio

from ._io.csv_rows import CsvRows
from ._io.json_rows import JsonRows
from ._io.ndjson_rows import NdjsonRows
from ._io.reading import Decoder
from ._io.row_reading import rows_of_file
from ._io.row_types import csv_decoder, json_decoder
from ._io.row_writing import RowBytes
from ._io.sources import reader_of
from ._io.writing import ROWS_AT_A_TIME, Output
from ._loops.calling import run_in_thread
from ._pure.report import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterable

    from ._io.finding import Parser

__all__ = ["read_rows", "write_rows"]

T = TypeVar("T")

_FORMATS = {"csv": "csv", "tsv": "csv", "json": "json", "ndjson": "ndjson", "jsonl": "ndjson"}
_KNOWN = ", ".join([*_FORMATS, *(f"{name}.gz" for name in _FORMATS)])


@overload
def read_rows(
    path: str | os.PathLike[str],
    type: type[T],
    format: str | None = None,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> AsyncGenerator[Outcome[T], None]: ...
@overload
def read_rows(
    path: str | os.PathLike[str],
    type: None = None,
    format: str | None = None,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> AsyncGenerator[Outcome[Any], None]: ...
def read_rows(
    path: str | os.PathLike[str],
    type: Any = None,  # noqa: A002 - the word for it
    format: str | None = None,  # noqa: A002
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> AsyncGenerator[Outcome[Any], None]:
    """Read a file's rows, each as an `Outcome`: its value, or why it could not be read.

    A bad row does not end the reading. It comes in its place as a failed outcome with an
    ``ItemError`` of code ``"bad_row"``, whose message has the line and the reason, whose ``field``
    has the field if it is one, and whose ``details`` have the ``line`` and the ``row`` as it
    stands. What `map_batches` is given goes past the handler. No row is cut: one of more than 16 Mi
    characters (NDJSON: bytes) is a bad row, with its first 1000 characters in ``details``.

    ``index`` counts the rows from 0; ``id`` is the number of the line on which the row begins, the
    first one being 1. Lines end in LF, CRLF or CR; blank ones are left out and counted.

    CSV has the columns' names in its first line. A row of it is a dict of strings, or a ``type``
    made of them: an empty cell is None where the field may be None, "" where it may be a string,
    and else as if it were not there. Columns at the end that have no name are left out; a row with
    something in one is a bad row. The size of a cell is not bounded by `csv.field_size_limit`, and
    that is not changed. JSON is one array; where its syntax is broken, what follows cannot be read,
    and the iteration raises.

    Rows come as soon as they are there, from a named pipe too; a cancellation ends a wait for more
    at once. Leave an iteration early within ``contextlib.aclosing``, or give it to `map_batches`,
    which closes it.

    Args:
        path: The file.
        type: What a row is: a msgspec Struct, a dataclass, a TypedDict or any other type that
            msgspec can check and convert; a pydantic model, or another class with
            ``model_validate``; None for plain dicts.
        format: ``"csv"``, ``"tsv"``, ``"json"``, ``"ndjson"`` or ``"jsonl"`` (the same as
            ``"ndjson"``), each with or without ``".gz"``; by default the file's suffixes tell. A
            path that ends in ``.gz`` is unzipped in any case.
        delimiter: The character between the cells of CSV; by default a comma, in TSV a tab.
        encoding: Any text encoding that Python knows; by default UTF-8. A byte order mark is left
            out. A row with bytes that are none of the encoding is a bad row.

    Raises:
        ValueError: If the format or the encoding is not known, or the delimiter is none. While
            iterating, after the rows before it: if a CSV file names a column twice or its names
            cannot be read, if a JSON file is no array or breaks off, if the file begins as UTF-16
            or UTF-32 does and no encoding was given.
        TypeError: If an argument has the wrong type, or no row can be of this ``type``.
        OSError: While iterating: if the file cannot be read, or, after what is whole, if its gzip
            is damaged.
        EOFError: While iterating, after what is whole: if a gzip file breaks off.
    """
    place = _path_of(path)
    kind, zipped, cells_end = _format_of(place, format, delimiter)
    decoder = Decoder(_encoding_of(encoding))
    parser: Parser
    if kind == "csv":
        parser = CsvRows(decoder, csv_decoder(type), cells_end)
    elif kind == "json":
        parser = JsonRows(decoder, json_decoder(type))
    else:
        parser = NdjsonRows(decoder, json_decoder(type))
    return rows_of_file(place, parser, zipped=zipped)


async def write_rows(
    path: str | os.PathLike[str],
    rows: Iterable[Any] | AsyncIterable[Any],
    format: str | None = None,  # noqa: A002
    *,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> int:
    """Write rows to a file and return how many there were.

    The file is written under a temporary name beside it, and takes its own name when it is whole
    and on disk: nobody ever sees half of it, and an older one stays until then. If anything fails,
    or the call is cancelled, nothing is left. A file that is replaced passes on its mode, and its
    owner where that is allowed. A symbolic link stays, and what it points to is replaced.

    Args:
        path: The file; what is there is replaced.
        rows: Any iterable or async iterable of mappings, msgspec Structs, dataclasses or pydantic
            models (by their aliases); for JSON and NDJSON of anything that msgspec encodes. An
            `Outcome` stands for its value; one that failed raises its error, so filter those
            before. CSV has the first row's fields as its columns; None is an empty cell there.
        format: As for `read_rows`.
        delimiter: As for `read_rows`.
        encoding: Any text encoding that Python knows: ``"utf-8-sig"`` is UTF-8 with the byte order
            mark that some spreadsheets want.

    Raises:
        ValueError: If the format or the encoding is not known, the delimiter is none, a CSV row has
            other fields than the first, the first has none or none with a name at its end, or a row
            has a character that the encoding has not.
        TypeError: If an argument has the wrong type: a table, a mapping, a string or bytes are no
            rows. If a row cannot be encoded, or is none, or has a field that CSV cannot hold.
        OSError: If the file cannot be written, or what is there is no file, so that nothing can
            take its place.
        Exception: What ``rows`` raises.
    """
    place = _path_of(path)
    kind, zipped, cells_end = _format_of(place, format, delimiter)
    text = RowBytes(kind, _encoding_of(encoding) or "utf-8", cells_end)
    in_thread = partial(run_in_thread, limiter=anyio.CapacityLimiter(1))
    source = reader_of(rows, "rows")
    try:
        file = await in_thread(partial(Output, place, zipped=zipped))
        try:
            while not source.ended:
                block = [_row_of(item) for item in await source.read(ROWS_AT_A_TIME)]
                if source.error is not None:
                    raise source.error
                if block:
                    await in_thread(lambda rows: file.write(text.rows(rows)), block)
            await in_thread(lambda: file.finish(text.end()))
        finally:
            file.close()
    finally:
        await source.close()
    return text.count


def _row_of(item: Any) -> Any:
    if not isinstance(item, Outcome):
        return item
    if item.error is not None:
        raise item.error
    return item.value


def _path_of(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or a path, got a {type(path).__name__}")
    return Path(path)


def _encoding_of(encoding: str | None) -> str | None:
    """Return an encoding if it is one of text."""
    if encoding is None:
        return None
    if not isinstance(encoding, str):
        raise TypeError(f"encoding must be a str or None, got {encoding!r}")
    try:
        "".encode(encoding)
    except (LookupError, ValueError):  # a NUL in its name is a ValueError
        raise ValueError(f"encoding must be a text encoding of Python, got {encoding!r}") from None
    return encoding


def _format_of(
    path: Path,
    format: str | None,  # noqa: A002
    delimiter: str | None,
) -> tuple[str, bool, str]:
    """Return which of the three formats it is, whether it is zipped, and what ends a cell."""
    if format is not None and not isinstance(format, str):
        raise TypeError(f"format must be a str or None, got {format!r}")
    name = path.name.lower() if format is None else format
    plain = name.removesuffix(".gz")
    given = plain.rpartition(".")[2]
    if given not in _FORMATS or (format is not None and plain != given):
        what = f"the format of {str(path)!r}" if format is None else f"format {format!r}"
        raise ValueError(f"{what} is not known: known are {_KNOWN}")
    kind = _FORMATS[given]
    if delimiter is None:
        delimiter = "\t" if given == "tsv" else ","
    elif kind != "csv":
        raise ValueError(f"delimiter is for csv and tsv, got {delimiter!r} for {given}")
    elif not isinstance(delimiter, str):
        raise TypeError(f"delimiter must be a str or None, got {delimiter!r}")
    elif len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(
            f"delimiter must be one character, no quote and no line end, got {delimiter!r}"
        )
    return kind, name.endswith(".gz") or path.name.lower().endswith(".gz"), delimiter
