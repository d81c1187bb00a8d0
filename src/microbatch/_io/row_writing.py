"""Rows as the bytes of CSV, JSON and NDJSON."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Mapping
from typing import Any

import msgspec


def _plain(value: Any) -> Any:
    """Turn a pydantic model into what it is written as; by its aliases, by which it is read."""
    if callable(getattr(value, "model_dump", None)):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"a {type(value).__name__} cannot be written")


class RowBytes:
    """Turns rows into the bytes of a file, some at a time.

    Attributes:
        count: How many rows there were.
    """

    def __init__(self, kind: str, encoding: str, delimiter: str) -> None:
        self.count = 0
        self._kind = kind
        self._encoding = encoding
        self._encode = codecs.getincrementalencoder(encoding)().encode  # one mark for all of it
        self._encoder = msgspec.json.Encoder(enc_hook=_plain)
        self._delimiter = delimiter
        self._columns: list[Any] = []

    def rows(self, rows: list[Any]) -> bytes:
        """Return the next rows.

        Raises:
            ValueError: If a row of CSV has other fields than the first, or a row has a character
                that the encoding has not.
            TypeError: If a row cannot be encoded.
        """
        before, self.count = self.count, self.count + len(rows)
        texts = self._csv_lines(rows, before) if self._kind == "csv" else rows
        try:
            return self._block(texts, before)
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            number = next(n for n, text in enumerate(texts, before + 1) if not self._fits(text))
            raise ValueError(
                f"row {number} has {character!r}, which {self._encoding} cannot hold"
            ) from None

    def end(self) -> bytes:
        """Return what comes after the last row."""
        tail = ""
        if self._kind == "json":
            tail = "\n]\n" if self.count else "[]\n"
        return self._encode(tail, final=True)

    def _block(self, texts: list[Any], before: int) -> bytes:
        if self._kind == "csv":
            return self._encode("".join(texts))
        if self._kind == "ndjson":
            joined = self._encoder.encode_lines(texts)
        else:
            rows = b",\n".join(map(self._encoder.encode, texts))
            joined = (b",\n" if before else b"[\n") + rows
        return joined if self._encoding == "utf-8" else self._encode(joined.decode())

    def _fits(self, text: Any) -> bool:
        try:
            if self._kind != "csv":
                text = self._encoder.encode(text).decode()
            text.encode(self._encoding)
        except UnicodeEncodeError:
            return False
        return True

    def _csv_lines(self, rows: list[Any], before: int) -> list[str]:
        lines: list[str] = []
        # It ends lines in CRLF, as RFC 4180 has it: only then is a lone CR quoted.
        write = csv.writer(_Lines(lines), delimiter=self._delimiter).writerow
        for number, row in enumerate(rows, before + 1):
            fields = msgspec.to_builtins(row, enc_hook=_plain)
            if not isinstance(fields, Mapping):
                raise TypeError(
                    f"row {number} must be a mapping, a Struct, a dataclass or a model, got {row!r}"
                )
            if number == 1:
                self._columns = _columns_of(fields)
                write(self._columns)
            if fields.keys() != set(self._columns):
                raise ValueError(
                    f"row {number} has the fields {list(fields)}, the first row had {self._columns}"
                )
            for name, value in fields.items():
                if isinstance(value, (dict, list)):
                    raise TypeError(
                        f"row {number}: {name!r} is a {type(value).__name__}, which CSV cannot hold"
                    )
            write([fields[name] for name in self._columns])
        if before == 0:
            lines[:2] = ["".join(lines[:2])]  # one text for each row
        return lines


class _Lines:
    """Where `csv.writer` writes to."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def _columns_of(fields: Mapping[Any, Any]) -> list[Any]:
    """Return the names of the columns, if they can be read back as such."""
    names = list(fields)
    if not names or names[-1] in ("", None):
        raise ValueError(f"the last column of CSV must have a name, got the fields {names}")
    if len(set(map(str, names))) < len(names):
        raise ValueError(f"the columns of CSV must differ in their names, got the fields {names}")
    return names
