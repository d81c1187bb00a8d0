"""Rows of a JSON array, one element after another."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from . import finding
from .finding import Found, is_text, lines_in, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._pure.report import Outcome

    from .reading import Decoder

_BLANK = re.compile(r"[ \t\r\n]*")
_TO_STRUCTURE = re.compile(r'[^"\[\]{},]*')
_TO_BRACKET = re.compile(r'[^"\[\]{}]*')
_IN_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)

# What the numbers are is for the decoder of rows to say, and what stands in strings too.
_element_at = json.JSONDecoder(parse_int=str, parse_float=str, strict=False).raw_decode

_BEFORE, _FIRST, _ELEMENT, _AFTER = range(4)


class JsonRows:
    """Finds rows in a JSON array.

    Where its syntax is broken, what comes after cannot be told apart: that ends the reading.
    """

    def __init__(self, decoder: Decoder, decode: Callable[[str], Any]) -> None:
        self.error: Exception | None = None
        self._decoder = decoder
        self._decode = decode
        self._found = Found(decoder.name)
        self._state = _BEFORE
        self._line = 1
        self._text = ""
        self._at = 0
        self._held = ""  # a CR after which there may come an LF
        self._long: _Element | None = None

    def feed(self, data: bytes, *, final: bool) -> list[Outcome[Any]]:
        """Return the rows that ended in this piece; what ends the reading is kept as the error."""
        try:
            self._add(self._decoder.text(data, final=final), final=final)
            self._take()
            if final:
                self._end()
        except ValueError as error:
            self.error = error
        return self._found.taken()

    def _add(self, text: str, *, final: bool) -> None:
        text = self._text[self._at :] + self._held + text
        self._held = "\r" if text.endswith("\r") and not final else ""
        self._text = text.removesuffix(self._held)
        self._at = 0

    def _take(self) -> None:
        """Take what is there, up to its end or to an element that goes on."""
        if self._long is not None and not self._take_long(self._long):
            return
        while char := self._skip():
            if self._state in (_FIRST, _ELEMENT) and not (self._state == _FIRST and char == "]"):
                if not self._take_element():
                    return
            elif self._state == _AFTER:
                raise ValueError(f"line {self._line}: more follows after the JSON array")
            elif self._state == _BEFORE:
                if char != "[":
                    raise ValueError(f"line {self._line}: a JSON array is expected")
                self._at += 1
                self._state = _FIRST
            else:
                self._at += 1
                self._state = _AFTER

    def _skip(self) -> str:
        """Go on to the next character that is not blank, and return it; "" at the end."""
        self._go(_blank_until(self._text, self._at))
        return self._text[self._at : self._at + 1]

    def _go(self, end: int) -> None:
        self._line += lines_in(self._text[self._at : end])
        self._at = end

    def _take_element(self) -> bool:
        """Take the element that begins here; return False if it goes on."""
        try:
            _, end = _element_at(self._text, self._at)
        except (ValueError, RecursionError):
            pass  # it is broken, or it goes on
        else:
            after = _blank_until(self._text, end)
            if self._text[after : after + 1] in (",", "]"):
                line, element = self._line, self._text[self._at : end]
                self._go(after)
                self._take_row(line, element)
                return True
        self._long = _Element(self._line)
        return self._take_long(self._long)

    def _take_long(self, element: _Element) -> bool:
        """Go on with an element that did not end with the block, or is broken."""
        end = element.feed(self._text[self._at :])
        if end is None:
            self._go(len(self._text))
            return False
        self._go(self._at + end)
        self._long = None
        if element.too_long:
            self._found.too_long(element.line, shown(element.text))
            self._step()
            return True
        try:
            self._check(element)
        except RecursionError as error:
            self._found.bad(element.line, error, shown(element.text).rstrip())
            self._step()
        else:
            self._take_row(element.line, element.text.rstrip())
        return True

    def _check(self, element: _Element, *, final: bool = False) -> None:
        """Raise for what is no element, or more than one."""
        problem = "',' or ']' is expected after an element"
        try:
            _, end = _element_at(element.text, 0)
        except ValueError as error:
            problem = str(error).partition(": line ")[0]
            if not is_text(element.text):
                problem = f"it is not {self._decoder.name}"
        else:
            sound = _blank_until(element.text, end) == len(element.text)
            if sound and self._text[self._at : self._at + 1] in (",", "]") and not final:
                return
        raise ValueError(f"line {element.line}: {problem}; the rest of the array cannot be read")

    def _take_row(self, line: int, element: str) -> None:
        try:
            value = self._decode(element)
        except Exception as error:  # noqa: BLE001 - a user's type may raise anything
            if is_text(element):
                self._found.bad(line, error, element)
            else:
                self._found.bad_text(line, shown(element))
        else:
            self._found.good(line, value)
        self._step()

    def _step(self) -> None:
        """Go past what ends an element."""
        self._state = _ELEMENT if self._text[self._at] == "," else _AFTER
        self._at += 1

    def _end(self) -> None:
        """Raise if the array has not ended."""
        if self._state == _BEFORE:
            raise ValueError(f"line {self._line}: a JSON array is expected")
        if self._state != _AFTER:
            element = self._long or _Element(self._line)
            try:
                self._check(element, final=True)
            except RecursionError as error:
                problem = f"{error}; the rest of the array cannot be read"
                raise ValueError(f"line {element.line}: {problem}") from None


class _Element:
    """An element that may go on in the next block, piece by piece; its end is found by its brackets.

    Attributes:
        line: The number of the line on which it begins.
        text: The element, as far as it was kept.
        too_long: True if it has more than `ROW_LENGTH_MAX` characters.
    """

    def __init__(self, line: int) -> None:
        self.line = line
        self.too_long = False
        self._pieces: list[str] = []
        self._length = 0
        self._depth = 0
        self._in_string = False
        self._escapes = False

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def feed(self, text: str) -> int | None:
        """Take what comes next; return where in it the element ended, None if it goes on."""
        end = self._scan(text)
        piece = text if end is None else text[:end]
        self._length += len(piece)
        if not self.too_long:
            self._pieces.append(piece)
            self.too_long = self._length > finding.ROW_LENGTH_MAX
            if self.too_long:
                self._pieces = [self.text[: finding.SHOWN_OF_LONG_ROWS]]
        return end

    def _scan(self, text: str) -> int | None:
        at = 0
        if self._escapes and text:
            self._escapes = False
            at = 1
        while at < len(text):
            at = self._passed(text, at)
            if at == len(text):
                break
            char = text[at]
            if char == "\\":  # only in a string, and only at the end of the piece
                self._escapes = True
            elif char == '"':
                self._in_string = not self._in_string
            elif char in "[{":
                self._depth += 1
            elif self._depth:
                self._depth -= 1
            else:
                return at
            at += 1
        return None

    def _passed(self, text: str, at: int) -> int:
        """Return where the next character is that means something here."""
        pattern = _IN_STRING if self._in_string else _TO_BRACKET if self._depth else _TO_STRUCTURE
        found = pattern.match(text, at)
        return found.end() if found else at


def _blank_until(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at
