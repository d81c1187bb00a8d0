"""The rows of the file that ``import`` reads: as the handler gets them, and as they stand in it."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from microbatch._io.csv_rows import CsvRows
from microbatch._io.json_rows import JsonRows
from microbatch._io.ndjson_rows import NdjsonRows
from microbatch._io.reading import Decoder
from microbatch._io.row_reading import rows_of_file
from microbatch._io.row_types import csv_decoder, json_decoder
from microbatch._pure.exceptions import ItemError

from ._command import NO_FILE, WRONG_USE, CommandEnd

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from microbatch._pure.report import Outcome

FORMATS = ("csv", "json", "ndjson")
_SUFFIXES = {"csv": "csv", "json": "json", "ndjson": "ndjson", "jsonl": "ndjson"}

#: The columns that a file of failed rows has behind the source's own.
INDEX, CODE, ERROR = "microbatch_index", "microbatch_code", "microbatch_error"
ADDED = (INDEX, CODE, ERROR)
#: The text of a row of JSON that is no object, or cannot be read, in such a file.
TEXT = "microbatch_row"

BAD_ROW = "bad_row"

#: An object whose values stay as they stand in the source: numbers have more digits than a float.
_object_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_to_json = msgspec.json.encode

#: Bytes of a file in which it is looked for whether it holds failed rows.
_BEGINNING = 1 << 20


class FileRow(NamedTuple):
    """A row.

    Attributes:
        raw: What stands in the file: a dict of strings for CSV, the text for JSON.
        value: What the handler gets.
    """

    raw: Any
    value: Any


class RowSource:
    """A file of rows, or stdin; may be read again and again where it is a file.

    Args:
        name: Its path; ``-`` for stdin.
        format: One of `FORMATS`; None: its suffix tells.
        row_type: What rows are made into; None for plain dicts.

    Attributes:
        path: Where it is.
        format: How its rows stand in it.
        is_stdin: Whether it can be read once only.
        size: Its bytes; None where that is not known.

    Raises:
        CommandEnd: If it is not there, or its format is not known, or no row can be of that type.
    """

    def __init__(self, name: str, format: str | None, row_type: Any) -> None:  # noqa: A002
        self.is_stdin = name == "-"
        self.path = Path("/dev/stdin" if self.is_stdin else name)
        self.format = format or _format_by(name)
        self.size: int | None = None
        if not self.is_stdin:
            try:
                found = self.path.stat()
            except OSError as error:
                reason = error.strerror or str(error)
                raise CommandEnd(f"{name} cannot be read: {reason}", NO_FILE) from error
            self.size = found.st_size if self.path.is_file() else None
        self._csv: CsvRows | None = None
        try:
            self._of_mapping = csv_decoder(row_type)
            self._of_text = json_decoder(row_type)
        except TypeError as error:
            raise CommandEnd(f"--type: {error}", WRONG_USE) from error

    @property
    def columns(self) -> list[str] | None:
        """The source's own columns, of CSV whose first row has been read; None otherwise."""
        if self._csv is None or not self._csv.columns:
            return None
        return [name for name in self._csv.columns if name not in ADDED]

    async def rows(
        self, told: Callable[[int], object] = lambda _: None
    ) -> AsyncGenerator[Outcome[Any], None]:
        """Yield its rows as outcomes whose values are `FileRow`s; a bad one has its error.

        Args:
            told: Told how many bytes have been read.

        Raises:
            OSError, EOFError, ValueError: As `rows_of_file`.
        """
        decoder = Decoder(None)
        parser: Any
        self._csv = None
        if self.format == "csv":
            parser = self._csv = CsvRows(decoder, self._csv_row, ",")
        elif self.format == "json":
            parser = JsonRows(decoder, self._json_row)
        else:
            parser = NdjsonRows(decoder, self._json_row)
        async with aclosing(rows_of_file(self.path, parser, zipped=None, told=told)) as found:
            async for outcome in found:
                if outcome.error is not None:
                    yield _as_before(outcome)
                else:
                    yield outcome

    def _csv_row(self, row: dict[str, Any]) -> FileRow:
        if INDEX not in row:
            return FileRow(row, self._of_mapping(row))
        raw = {name: cell for name, cell in row.items() if name not in ADDED}
        if row.get(CODE) == BAD_ROW and not any(raw.values()):
            # It could not be read the last time either, and stands here as nothing.
            raise _BadBefore(row.get(ERROR) or "it could not be read")
        return FileRow(raw, self._of_mapping(raw))

    def _json_row(self, text: Any) -> FileRow:
        if INDEX in text if isinstance(text, str) else INDEX.encode() in text:
            found = _object_in(text) or {}
            if INDEX in found:
                if TEXT in found:
                    text = str(msgspec.json.decode(found[TEXT]))
                else:
                    left = {name: one for name, one in found.items() if name not in ADDED}
                    text = _to_json(left).decode()
        return FileRow(text, self._of_text(text))

    def has_failed_before(self) -> bool:
        """Tell whether it is a file of failed rows, or has no rows at all."""
        with self.path.open("rb") as file:
            begins = file.read(_BEGINNING)
        return INDEX.encode() in begins or begins.strip() in (b"", b"[]")

    def digest(self, *more: str) -> str:
        """Return the SHA-256 of its bytes, and of what else tells one import from another."""
        found = hashlib.sha256("\0".join(more).encode())
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
        return found.hexdigest()


class _BadBefore(ValueError):
    """A row of a file of failed rows that could not be read when that was made."""


def _as_before(outcome: Outcome[Any]) -> Outcome[Any]:
    """Return a bad row without what a file of failed rows has put beside it."""
    error: Any = outcome.error  # an ItemError, as `rows_of_file` makes them
    row = error.details["row"]
    if not (isinstance(row, dict) and INDEX in row):
        return outcome
    details = {name: one for name, one in row.items() if name not in ADDED}
    again = ItemError(
        error.message,
        code=error.code,
        retryable=error.retryable,
        field=error.field,
        details={**error.details, "row": details},
    )
    return replace(outcome, error=again)


def _format_by(name: str) -> str:
    plain = Path(name).name.lower().removesuffix(".gz")
    found = _SUFFIXES.get(plain.rpartition(".")[2])
    if name == "-" or found is None:
        what = "stdin has no name" if name == "-" else f"the name of {name!r} does not tell it"
        raise CommandEnd(f"--format is needed, one of {', '.join(FORMATS)}: {what}", WRONG_USE)
    return found


def row_in_file(raw: Any) -> tuple[dict[str, Any], str | None]:
    """Return a row's own columns, and its text where it has none or cannot be read."""
    if isinstance(raw, dict):
        return raw, None
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    found = _object_in(text)
    return ({}, text.strip()) if found is None else (found, None)


def _object_in(text: str | bytes) -> dict[str, Any] | None:
    try:
        return _object_of(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
