"""Rows of CSV, JSON and NDJSON, a block at a time. Blocking: `files` calls this in threads."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import IO, Any

import msgspec

from ._sources import successes
from .errors import ItemError
from .outcome import Outcome, outcome_of

Blocks = Iterator[list[Outcome[Any]]]

#: Bytes that are read at a time: some thousand rows, a few milliseconds of work in the thread.
BLOCK_BYTES = 256 * 1024
#: Bytes of one row at most. What a line has beyond is dropped, so that it becomes a bad row.
ROW_BYTES_MAX = 16 * 1024 * 1024

#: What reading a row may raise: msgspec's own errors are ValueErrors only since 0.21.
_UNREADABLE = (ValueError, RecursionError, msgspec.MsgspecError)

_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")


def lines_of(file: IO[bytes]) -> Iterator[list[bytes]]:
    """Yield a file's lines in blocks, none of them longer than `ROW_BYTES_MAX`."""
    rest = b""
    dropping = False
    while chunk := file.read(BLOCK_BYTES):
        if dropping:
            _, newline, after = chunk.partition(b"\n")
            if not newline:
                continue
            dropping = False
            chunk = newline + after
        lines = io.BytesIO(rest + chunk).readlines()
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if len(rest) > ROW_BYTES_MAX:
            rest, dropping = rest[:ROW_BYTES_MAX], True
        if lines:
            yield lines
    if rest:
        yield [rest]


# Reading


class _Outcomes:
    """Collects the outcomes of rows; good ones are made many at a time."""

    def __init__(self) -> None:
        self._index = 0
        self._values: list[Any] = []
        self._lines: list[int] = []
        self._outcomes: list[Outcome[Any]] = []

    def good(self, line: int, value: Any) -> None:
        self._values.append(value)
        self._lines.append(line)

    def bad(self, line: int, error: object, row: Any) -> None:
        self._settle()
        reason = str(error)
        field = _FIELD.search(reason)
        problem = ItemError(
            f"line {line}: {reason}",
            code="bad_row",
            retryable=False,
            field=(field[1] or None) if field else None,
            details={"line": line, "row": row},
        )
        self._outcomes.append(outcome_of(self._index, problem, id=line))
        self._index += 1

    def _settle(self) -> None:
        self._outcomes += successes(self._index, self._values, self._lines)
        self._index += len(self._values)
        self._values, self._lines = [], []

    def taken(self) -> list[Outcome[Any]]:
        """Return what came since the last time."""
        self._settle()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes


def ndjson_blocks(file: IO[bytes], decoder: msgspec.json.Decoder[Any]) -> Blocks:
    """Yield the outcomes of a file with one JSON value on each line; blank lines are left out."""
    found = _Outcomes()
    line = 0
    for lines in lines_of(file):
        try:
            values = decoder.decode_lines(b"".join(lines))
        except _UNREADABLE:
            values = []
        if len(values) == len(lines):  # all of them are good, and none is blank
            for line, value in enumerate(values, line + 1):  # noqa: B020
                found.good(line, value)
        else:
            for line, text in enumerate(lines, line + 1):  # noqa: B020
                try:
                    found.good(line, decoder.decode(text))
                except _UNREADABLE as error:
                    if not text.isspace():
                        found.bad(line, error, text.decode(errors="replace").rstrip())
        yield found.taken()


def csv_blocks(file: IO[bytes], decode: Callable[[dict[str, Any]], Any]) -> Blocks:
    """Yield the outcomes of a CSV file whose first row has the columns' names."""
    lines = _CsvLines(file)
    rows = csv.reader(lines, strict=True)
    names = _names(rows)
    found = _Outcomes()
    width = len(names)
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            found.bad(line, error, lines.between(line, rows.line_num))
            continue
        if len(cells) == width and not lines.undecodable:
            row = dict(zip(names, cells))  # noqa: B905 - counted already
            try:
                found.good(line, decode(row))
            except _UNREADABLE as error:
                found.bad(line, error, row)
        elif cells:
            _suspicious(found, line, names, cells, decode)
        if lines.blocks_read > 1:
            lines.blocks_read = 1
            yield found.taken()
    yield found.taken()


def _names(rows: Iterator[list[str]]) -> list[str]:
    try:
        names = next(filter(None, rows), [])
    except csv.Error as error:
        raise ValueError(f"line 1: {error}") from None
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the first line names columns twice: {', '.join(map(repr, twice))}")
    return names


def _suspicious(
    found: _Outcomes,
    line: int,
    names: list[str],
    cells: list[str],
    decode: Callable[[dict[str, Any]], Any],
) -> None:
    """Take a row that has more or fewer cells than columns, or may not be UTF-8."""
    row: dict[str, Any] = dict(zip(names, cells, strict=False))
    if not _is_text("".join(cells)):
        shown = {name: cell.encode(errors="replace").decode() for name, cell in row.items()}
        found.bad(line, "it is not UTF-8", shown)
    elif len(cells) != len(names):
        problem = f"{len(cells)} cells, but the first line names {len(names)} columns"
        found.bad(line, problem, dict.fromkeys(names, "") | row)
    else:
        try:
            found.good(line, decode(row))
        except _UNREADABLE as error:
            found.bad(line, error, row)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _CsvLines:
    """The lines of a CSV file as text, and the raw ones of a bad row.

    Attributes:
        undecodable: True once a block was not UTF-8; what is not is kept as surrogates.
        blocks_read: Counts the blocks, for who hands on a block's rows when the next one begins.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.undecodable = False
        self.blocks_read = 0
        self._before: list[str] = []
        self._now: list[str] = []
        self._first = 1  # the number of the first line that is kept
        self._lines = chain.from_iterable(self._blocks(file))

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def _blocks(self, file: IO[bytes]) -> Iterator[list[str]]:
        for lines in lines_of(file):
            raw = b"".join(lines)
            if not self.blocks_read:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                self.undecodable = True
                text = raw.decode(errors="surrogateescape")
            self._first += len(self._before)
            self._before = self._now
            self._now = io.StringIO(text, newline="\n").readlines()
            self.blocks_read += 1
            yield self._now

    def between(self, first: int, last: int) -> str:
        """Return these lines, as far as they are of the last two blocks."""
        kept = self._before + self._now
        found = "".join(kept[max(0, first - self._first) : last - self._first + 1])
        return found.encode(errors="replace").decode().rstrip("\r\n")


def csv_decoder(type_: Any) -> Callable[[dict[str, Any]], Any]:
    """Return what makes a typed row of a row of strings.

    An empty cell is None where the field may be None, the empty string where it may be a string,
    and else as if the column were not there, so that the field's default holds.
    """
    if type_ is None:
        return lambda row: row
    info = msgspec.inspect.type_info(type_)
    drops = {field.encode_name: _on_empty(field.type) for field in getattr(info, "fields", ())}

    def decode(row: dict[str, Any]) -> Any:
        if "" in row.values():
            row = {
                name: cell or drops.get(name, "")
                for name, cell in row.items()
                if cell or drops.get(name, "") is not msgspec.UNSET
            }
        return msgspec.convert(row, type_, strict=False)

    return decode


def _on_empty(info: msgspec.inspect.Type) -> Any:
    """Return what an empty cell stands for; UNSET: nothing."""
    types = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    if any(isinstance(one, msgspec.inspect.NoneType) for one in types):
        return None
    texts = (msgspec.inspect.StrType, msgspec.inspect.AnyType)
    return "" if any(isinstance(one, texts) for one in types) else msgspec.UNSET


def json_blocks(file: IO[bytes], decoder: msgspec.json.Decoder[Any]) -> Blocks:
    """Yield the outcomes of a JSON array's elements, read one after another.

    Raises:
        ValueError: If it is no array, or breaks off or goes wrong between two elements: what comes
            after cannot be told apart.
    """
    text = _JsonText(file)
    if text.skip() != "[":
        raise ValueError(f"line {text.line}: a JSON array is expected")
    text.take(1)
    found = _Outcomes()
    done = text.skip() == "]"
    if done:
        text.take(1)
    while not done:
        try:
            line, element, after = text.element()
        except ValueError:
            yield found.taken()
            raise
        try:
            found.good(line, decoder.decode(element))
        except _UNREADABLE as error:
            found.bad(line, error, element)
        done = after == "]"
        if text.refilled:
            text.refilled = False
            yield found.taken()
    yield found.taken()
    if text.skip():
        raise ValueError(f"line {text.line}: more follows after the JSON array")


class _JsonText:
    """A JSON text that is read as it is needed.

    Attributes:
        line: The number of the line that has been reached.
        refilled: True once more was read, for who hands on a block's rows then.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.line = 1
        self.refilled = False
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._ended = False

    def _refill(self) -> bool:
        """Read as much again as is there; False at the end."""
        if self._ended:
            return False
        self._text = self._text[self._at :]
        self._at = 0
        chunk = self._file.read(max(BLOCK_BYTES, len(self._text)))
        self._ended = not chunk
        try:
            self._text += self._decode(chunk, final=self._ended)
        except UnicodeDecodeError as error:
            raise ValueError(f"after line {self.line}: {error}") from None
        self.refilled = True
        return True

    def take(self, count: int) -> str:
        """Go on by so many characters, and return them."""
        taken = self._text[self._at : self._at + count]
        self._at += count
        self.line += taken.count("\n")
        return taken

    def skip(self) -> str:
        """Go on to the next character that is not blank, and return it; "" at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self.take(blank.end() - self._at if blank else 0)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._refill():
                return ""

    def element(self) -> tuple[int, str, str]:
        """Return the line, the text of the next element, and the character that follows it."""
        self.skip()
        line = self.line
        while True:
            problem = "an element is expected"
            try:
                _, end = self._scan(self._text, self._at)
            except (ValueError, RecursionError) as error:
                problem = str(error).partition(": line ")[0]
            else:
                blank = _BLANK.match(self._text, end)
                after = self._text[blank.end() : blank.end() + 1] if blank else ""
                if after and after in ",]":
                    element = self.take(end - self._at)
                    self.skip()
                    self.take(1)
                    return line, element, after
                problem = "',' or ']' is expected after an element"
            if len(self._text) - self._at > ROW_BYTES_MAX:
                problem = f"an element has more than {ROW_BYTES_MAX} characters"
            elif self._refill():
                continue
            raise ValueError(f"line {line}: {problem}; the rest of the array cannot be read")


_BLANK = re.compile(r"[ \t\r\n]*")


# Writing


def ndjson_bytes(rows: list[Any], first: int, encoder: msgspec.json.Encoder) -> bytes:
    """Return rows as lines."""
    return encoder.encode_lines(rows)


def json_bytes(rows: list[Any], first: int, encoder: msgspec.json.Encoder) -> bytes:
    """Return rows as elements, after those that are there."""
    return (b"[\n" if first == 0 else b",\n") + b",\n".join(map(encoder.encode, rows))


class CsvBytes:
    """Turns rows into CSV; the first row's fields are the columns."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def __call__(self, rows: list[Any], first: int, _: object) -> bytes:
        """Return rows as CSV lines, the columns' names before the first."""
        out = io.StringIO(newline="")
        writer = csv.writer(out)  # with CRLF, as RFC 4180 has it: only then is a lone CR quoted
        for number, row in enumerate(rows, first + 1):
            fields = msgspec.to_builtins(row)
            if not isinstance(fields, Mapping):
                raise TypeError(
                    f"row {number} must be a mapping, a Struct or a dataclass, got {row!r}"
                )
            if number == 1:
                self._names = list(fields)
                writer.writerow(self._names)
            if fields.keys() != set(self._names):
                raise ValueError(
                    f"row {number} has the fields {list(fields)}, the first row had {self._names}"
                )
            for name, value in fields.items():
                if isinstance(value, (dict, list)):
                    raise TypeError(
                        f"row {number}: {name!r} is a {type(value).__name__}, which CSV cannot hold"
                    )
            writer.writerow([fields[name] for name in self._names])
        return out.getvalue().encode()
