"""Parameters of a query, each checked by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._exchange import Exchange

#: What a page holds by default, and at most.
PAGE, PAGE_MAX = 100, 1_000


def known_only(exchange: Exchange, *names: str) -> None:
    """Refuse a parameter that is not known here: a misspelt one must not be passed over.

    Raises:
        Problem: 400.
    """
    for name in exchange.request.query_params:
        if name not in names:
            known = ", ".join(names)
            raise _wrong(f"unknown parameter {name[:100]!r}: known here are {known}", name[:100])


def one_of(exchange: Exchange, name: str, allowed: Sequence[str]) -> str | None:
    """Return one of some words; None if none is given.

    Raises:
        Problem: 400.
    """
    text = exchange.request.query_params.get(name)
    if text is not None and text not in allowed:
        raise _wrong(f"{name} must be one of {', '.join(allowed)}", name)
    return text


def flag_of(exchange: Exchange, name: str) -> bool:
    """Return whether something is asked for: ``1`` or ``true``, ``0`` or ``false``.

    Raises:
        Problem: 400.
    """
    return one_of(exchange, name, ("1", "true", "0", "false")) in {"1", "true"}


def page_limit(exchange: Exchange) -> int:
    """Return how many entries a page is to have.

    Raises:
        Problem: 400.
    """
    text = exchange.request.query_params.get("limit")
    if text is None:
        return PAGE
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= PAGE_MAX):
        raise _wrong(f"limit must be a number from 1 to {PAGE_MAX}", "limit")
    return int(text)


def seconds(exchange: Exchange, name: str, most: float) -> float:
    """Return a number of seconds; 0 if none is given, and ``most`` for more.

    Raises:
        Problem: 400.
    """
    text = exchange.request.query_params.get(name, "0")
    whole, _, rest = text.partition(".")
    digits = whole + rest
    if not (digits.isascii() and digits.isdecimal() and whole and len(text) < 20):
        raise _wrong(f"{name} must be a number of seconds", name)
    return min(float(text), most)


def accepts(exchange: Exchange, *media_types: str) -> bool:
    """Tell whether a client asks for one of these, by name."""
    for part in ",".join(exchange.request.headers.getlist("accept")).split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        refused = any(
            word.replace(" ", "") in {"q=0", "q=0.0", "q=0.00", "q=0.000"} for word in parameters
        )
        if kind in media_types and not refused:
            return True
    return False


def _wrong(detail: str, name: str) -> Problem:
    return Problem(400, detail, type="invalid-parameter", parameter=name)
