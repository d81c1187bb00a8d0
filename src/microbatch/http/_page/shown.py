"""What of the application's own data is shown, and how: everything passes here, and ``redact`` comes first."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch.durable import ItemFailed

logger: logging.Logger = logging.getLogger("microbatch.http")

#: Bytes of a payload, a result or a traceback that a page shows; beyond, it has a link to all.
SHOWN_BYTES = 10_000

#: Characters of it in a list.
LINE_CHARACTERS = 120

_encode = msgspec.json.Encoder(enc_hook=repr).encode


class Extract(NamedTuple):
    """The beginning of a text.

    Attributes:
        text: As much as a page shows.
        size: The bytes of all of it.
        cut: Whether there is more.
    """

    text: str
    size: int
    cut: bool


class ShownError(NamedTuple):
    """An error, redacted."""

    kind: str
    code: str
    message: str
    traceback: str
    retryable: bool


class Shown:
    """Makes texts of payloads, results, errors and names, redacted.

    Args:
        redact: The application's own function: gets built-in values, and strings where the text is one, and
            returns what may be shown; None shows everything.
    """

    def __init__(self, redact: Callable[[Any], Any] | None) -> None:
        self._redact = redact

    def value(self, value: Any) -> Any:
        """Return what may be shown of a value."""
        if self._redact is None or value is None:
            return value
        try:
            return self._redact(value)
        except Exception as error:  # noqa: BLE001
            # The application's own function may raise anything. What it was to hide stays hidden.
            logger.error(  # noqa: TRY400 - the traceback might tell it
                "redact raised %s: a value is not shown on the page", type(error).__name__
            )
            return f"(not shown: redact raised {type(error).__name__})"

    def name(self, value: str | None) -> str | None:
        """Return what may be shown of a key, an owner, or a client's id."""
        shown = self.value(value)
        return shown if shown is None or isinstance(shown, str) else line_of(shown)

    def text(self, value: Any) -> str:
        """Return what may be shown of a value, as text of several lines."""
        return lines_of(self.value(value))

    def line(self, value: Any) -> str:
        """Return what may be shown of a value, on one line, whole."""
        return line_of(self.value(value))

    def error(self, error: ItemFailed | None) -> ShownError | None:
        """Return what may be shown of an error."""
        if error is None:
            return None
        message, traceback = map(self.value, (error.message, error.traceback))
        return ShownError(
            error.kind,
            error.code,
            message if isinstance(message, str) else line_of(message),
            traceback if isinstance(traceback, str) else line_of(traceback),
            error.retryable,
        )


def lines_of(value: Any) -> str:
    """Return a value as JSON of several lines; what has no form there is shown by its text."""
    try:
        return msgspec.json.format(_encode(value), indent=2).decode("utf-8")
    except (TypeError, ValueError, RecursionError, OverflowError):
        return _repr(value)


def line_of(value: Any) -> str:
    """Return the same on one line."""
    try:
        return _encode(value).decode("utf-8")
    except (TypeError, ValueError, RecursionError, OverflowError):
        return _repr(value)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return "(nested too deeply to be shown)"


def extract(text: str) -> Extract:
    """Return as much of a text as a page shows."""
    content = text.encode("utf-8", "backslashreplace")
    if len(content) <= SHOWN_BYTES:
        return Extract(text, len(content), cut=False)
    return Extract(content[:SHOWN_BYTES].decode("utf-8", "ignore"), len(content), cut=True)


def cut_line(text: str) -> str:
    """Return as much of a text as a list shows."""
    line = " ".join(text.split())
    return line if len(line) <= LINE_CHARACTERS else f"{line[: LINE_CHARACTERS - 1]}…"
