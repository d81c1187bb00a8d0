"""The file of failed rows: the source's columns and why, in a form that ``import`` reads again."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from microbatch._io.writing import Output
from microbatch.durable.errors import ItemFailed

from ._command import WRONG_USE, CommandEnd
from ._import_source import ADDED, CODE, ERROR, INDEX, TEXT, row_in_file
from ._jsonable import json_text

if TYPE_CHECKING:
    from ._import_source import RowSource

#: Characters of an error that are kept.
_ERROR_CHARACTERS = 2_000


class FailedRows:
    """Writes failed rows, in the source's order, to a file that takes its name when it is whole.

    Args:
        path: Where it goes; None: nowhere.
        source: What the rows are of: in its format, unless the name tells another one.

    Raises:
        CommandEnd: If it cannot be written.
    """

    def __init__(self, path: str | None, source: RowSource) -> None:
        self._source = source
        self._path = path
        self._file: Output | None = None
        self._columns: list[str] | None = None
        self._begun = False
        self._of_source = False
        if path is None:
            return
        suffix = Path(path).suffix[1:].lower()
        self._format = {"csv": "csv", "json": "json", "ndjson": "ndjson", "jsonl": "ndjson"}.get(
            suffix, source.format
        )
        try:
            self._of_source = self._is_source(Path(path))
            self._file = Output(Path(path), zipped=False)
        except OSError as error:
            raise self._refusal(error) from error

    def _is_source(self, path: Path) -> bool:
        """Tell whether the source itself will be replaced; allowed for a file of failed rows alone."""
        if self._source.is_stdin or not path.exists() or not self._source.path.samefile(path):
            return False
        if not self._source.has_failed_before():
            message = (
                f"--failed: {path} is the source, and would hold nothing but its failed rows then: "
                "give another name"
            )
            raise CommandEnd(message, WRONG_USE)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, index: int, raw: Any, code: str | None, error: BaseException) -> None:
        """Write a row.

        Args:
            index: Its place in the source, from 0.
            raw: The row as it stands there.
            code: The error's code.
            error: Why it failed.
        """
        if self._file is None:
            return
        own, text = row_in_file(raw)
        # Of one that was stored the file's own words: its id and attempts tell nothing about the row.
        message = (error.message if isinstance(error, ItemFailed) else str(error))[
            :_ERROR_CHARACTERS
        ]
        added = {INDEX: index, CODE: code, ERROR: message}
        self._write(self._row_text(own, text, added))

    def finish(self, *, whole: bool = True) -> None:
        """Give the file its name. It is there also if nothing failed, in place of an older one.

        Args:
            whole: Whether the source was read to its end: else it is not replaced by what was read of it.
        """
        if self._file is None or (self._of_source and not whole):
            return
        end = ""
        if self._format == "json":
            end = "\n]\n" if self._begun else "[]\n"
        elif self._format == "csv" and not self._begun:
            end = _line_of(self._head({}))
        try:
            self._file.finish(end.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise self._refusal(error) from error

    def _row_text(self, own: dict[str, Any], text: str | None, added: dict[str, Any]) -> str:
        if self._format != "csv":
            whole = {**own, **({} if text is None else {TEXT: text}), **added}
            before = "" if self._format == "ndjson" else ",\n" if self._begun else "[\n"
            return f"{before}{json_text(whole)}" + ("\n" if self._format == "ndjson" else "")
        head = "" if self._begun else _line_of(self._head(own))
        if text is not None:
            added[ERROR] = f"{added[ERROR]}: {text}"[:_ERROR_CHARACTERS]
        assert self._columns is not None  # noqa: S101 - the head is written first
        cells = [_cell(own.get(name)) for name in self._columns]
        return head + _line_of([*cells, *added.values()])

    def _head(self, own: dict[str, Any]) -> list[str]:
        self._columns = self._source.columns or list(own)
        return [*self._columns, *ADDED]

    def _write(self, text: str) -> None:
        assert self._file is not None  # noqa: S101 - asked before
        self._begun = True
        try:
            self._file.write(text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> CommandEnd:
        reason = error.strerror or error
        return CommandEnd(f"--failed: {self._path} cannot be written: {reason}", WRONG_USE)


def _line_of(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()


def _cell(value: Any) -> Any:
    """Return a cell: of JSON a string's characters, nothing for null, and else what stands in the source."""
    if not isinstance(value, msgspec.Raw):
        return value
    text = bytes(value).decode()
    return msgspec.json.decode(text) if text.startswith(('"', "n")) else text


def raw_of(error: BaseException) -> Any:
    """Return a bad row as it stands in the source: as text where its columns do not show it.

    A row with too few or too many cells would be a good one the next time, and none that anybody wrote.
    """
    details = getattr(error, "details", None)
    if not isinstance(details, dict):
        return ""
    return _line_of(details["cells"]) if "cells" in details else details.get("row", "")
