"""Rows in and out of CSV, JSON and NDJSON files, gzip included: `read_rows` and `write_rows`.

A block at a time is read and written, in worker threads: the event loop is free meanwhile, and
memory stays flat whatever the file's size.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import secrets
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast, overload

import anyio
import anyio.to_thread
import msgspec

from . import _rows
from ._sources import reader_of
from .outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable

__all__ = ["read_rows", "write_rows"]

T = TypeVar("T")

_FORMATS = ("csv", "json", "ndjson")
_KNOWN = ", ".join([*_FORMATS, *(f"{name}.gz" for name in _FORMATS)])

#: Rows that are encoded and written together.
_ROWS_AT_A_TIME = 1000
#: Half the time of gzip's default 9, for a few per cent more bytes.
_GZIP_LEVEL = 6


@overload
def read_rows(
    path: str | os.PathLike[str], type: type[T], format: str | None = None
) -> AsyncGenerator[Outcome[T], None]: ...
@overload
def read_rows(
    path: str | os.PathLike[str], type: None = None, format: str | None = None
) -> AsyncGenerator[Outcome[Any], None]: ...
def read_rows(
    path: str | os.PathLike[str],
    type: Any = None,  # noqa: A002 - the word for it
    format: str | None = None,  # noqa: A002
) -> AsyncGenerator[Outcome[Any], None]:
    """Read a file's rows, each as an `Outcome`: its value, or why it could not be read.

    A bad row does not end the reading. It comes in its place as a failed outcome with an
    ``ItemError`` of code ``"bad_row"``, whose message has the line and the reason, whose ``field``
    has the field if it is one, and whose ``details`` have the ``line`` and the ``row`` as it
    stands. What `map_batches` is given goes past the handler.

    ``index`` counts the rows from 0; ``id`` is the number of the line on which the row begins, the
    first one being 1.

    CSV has the columns' names in its first line. A row of it is a dict of strings, or a ``type``
    made of them: an empty cell is None where the field may be None, "" where it may be a string,
    and else as if it were not there. JSON is one array; where its syntax is broken between two
    elements, what follows cannot be read, and the iteration raises. UTF-8 throughout, with or
    without a byte order mark. Blank lines are left out.

    Leave an iteration early within ``contextlib.aclosing``, or give it to `map_batches`, which
    closes it.

    Args:
        path: The file.
        type: What a row is: a msgspec Struct, a dataclass, a TypedDict or any other type that
            msgspec can check and convert; None for plain dicts.
        format: ``"csv"``, ``"json"`` or ``"ndjson"``, each with or without ``".gz"``; by default
            the file's suffixes tell. A path that ends in ``.gz`` is unzipped in any case.

    Raises:
        ValueError: If the format is not known. While iterating: if a CSV file names a column twice,
            or a JSON file is no array or breaks off.
        TypeError: If msgspec does not support ``type``.
        OSError: While iterating: if the file cannot be read, or its gzip is damaged.
        EOFError: While iterating: if a gzip file breaks off.
    """
    place = Path(path)
    kind, zipped = _format_of(place, format)
    if kind == "csv":
        blocks: Any = partial(_rows.csv_blocks, decode=_rows.csv_decoder(type))
    else:
        decoder = msgspec.json.Decoder() if type is None else msgspec.json.Decoder(type)
        reader = _rows.json_blocks if kind == "json" else _rows.ndjson_blocks
        blocks = partial(cast("Any", reader), decoder=decoder)
    return _read(place, blocks, zipped=zipped)


async def _read(
    path: Path, blocks_of: Callable[[IO[bytes]], _rows.Blocks], *, zipped: bool
) -> AsyncGenerator[Outcome[Any], None]:
    in_thread = partial(anyio.to_thread.run_sync, limiter=anyio.CapacityLimiter(1))
    file = await in_thread(partial(_open, path, "rb", zipped=zipped))
    try:
        blocks = blocks_of(file)
        while (block := await in_thread(next, blocks, None)) is not None:
            for outcome in block:
                yield outcome
    finally:
        file.close()


async def write_rows(
    path: str | os.PathLike[str],
    rows: Iterable[Any] | AsyncIterable[Any],
    format: str | None = None,  # noqa: A002
) -> int:
    """Write rows to a file and return how many there were.

    The file is written under a temporary name beside it, and takes its own name when it is whole
    and on disk: nobody ever sees half of it, and an older one stays until then. If anything fails,
    or the call is cancelled, nothing is left.

    Args:
        path: The file; what is there is replaced.
        rows: Any iterable or async iterable of mappings, msgspec Structs or dataclasses; for JSON
            and NDJSON of anything that msgspec encodes. An `Outcome` stands for its value; one that
            failed raises its error, so filter those before. CSV has the first row's fields as its
            columns; None is an empty cell there.
        format: As for `read_rows`.

    Raises:
        ValueError: If the format is not known, or a CSV row has other fields than the first.
        TypeError: If a row cannot be encoded, or is none, or has a field that CSV cannot hold.
        OSError: If the file cannot be written.
        Exception: What ``rows`` raises.
    """
    place = Path(path)
    kind, zipped = _format_of(place, format)
    parts = place.with_name(f".{place.name}.{secrets.token_hex(6)}.part")
    in_thread = partial(anyio.to_thread.run_sync, limiter=anyio.CapacityLimiter(1))
    source = reader_of(rows)
    encode: Any = {"csv": _rows.CsvBytes(), "json": _rows.json_bytes, "ndjson": _rows.ndjson_bytes}
    encoder = msgspec.json.Encoder()
    written = 0
    file = await in_thread(partial(_open, parts, "xb", zipped=zipped))
    try:
        while not source.ended:
            block = [_row_of(item) for item in await source.read(_ROWS_AT_A_TIME)]
            if source.error is not None:
                raise source.error
            if block:
                await in_thread(_write, file, encode[kind], block, written, encoder)
                written += len(block)
        tail = (b"\n]\n" if written else b"[]\n") if kind == "json" else b""
        await in_thread(_finish, file, tail, parts, place)
    finally:
        with contextlib.suppress(OSError):  # nothing to say beside the error that brought us here
            file.close()
        parts.unlink(missing_ok=True)
        await source.close()
    return written


def _row_of(item: Any) -> Any:
    if not isinstance(item, Outcome):
        return item
    if item.error is not None:
        raise item.error
    return item.value


def _write(file: IO[bytes], encode: Any, rows: list[Any], first: int, encoder: Any) -> None:
    file.write(encode(rows, first, encoder))


def _finish(file: IO[bytes], tail: bytes, parts: Path, path: Path) -> None:
    """Write what is left, make sure that it is on disk, and give the file its name."""
    file.write(tail)
    file.close()
    descriptor = os.open(parts, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    parts.replace(path)


def _open(path: Path, mode: str, *, zipped: bool) -> IO[bytes]:
    if zipped:
        return cast("IO[bytes]", gzip.open(path, mode, compresslevel=_GZIP_LEVEL))
    return cast("IO[bytes]", path.open(mode))


def _format_of(path: Path, format: str | None) -> tuple[str, bool]:  # noqa: A002
    """Return which of the formats it is, and whether it is zipped."""
    name = path.name.lower() if format is None else format
    plain = name.removesuffix(".gz")
    kind = plain.rpartition(".")[2]
    if kind not in _FORMATS or (format is not None and plain != kind):
        what = f"the format of {str(path)!r}" if format is None else f"format {format!r}"
        raise ValueError(f"{what} is not known: known are {_KNOWN}")
    return kind, name.endswith(".gz") or path.name.lower().endswith(".gz")
