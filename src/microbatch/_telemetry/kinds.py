"""Kinds of errors: what failures are counted by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from microbatch._pure.exceptions import (
    BatcherClosed,
    BatcherFull,
    HandlerTimeout,
    ItemError,
    code_of,
)

from .names import _BY_IDENTITY

if TYPE_CHECKING:
    from collections.abc import Mapping


class _CancelledError(Exception):
    """Stands for callers who went before a handler saw their items."""


_KNOWN: Final[Mapping[type[BaseException], str]] = {
    BatcherClosed: "closed",
    HandlerTimeout: "timeout",
    _CancelledError: "cancelled",
}


#: What an error counts as: its class, and the code of an ItemError.
Kind = tuple[type[BaseException], str | None]


CANCELLED: Final[Kind] = (_CancelledError, None)


CLOSED: Final[Kind] = (BatcherClosed, None)


FULL: Final[Kind] = (BatcherFull, None)


def kind_of(error: BaseException) -> Kind:
    """Return what an error counts as; unlike the error it keeps nothing alive, and it can be hashed.

    A class whose own class compares and hashes as it likes counts as the base that does not.
    """
    cls = type(error)
    code = code_of(error) if issubclass(cls, ItemError) else None  # type: ignore[arg-type]
    while (type(cls).__hash__, type(cls).__eq__) != _BY_IDENTITY:
        cls = cls.__bases__[0]
    return cls, code


def counted(counts: dict[Kind, int] | None, error: BaseException) -> dict[Kind, int]:
    """Count one more error, in a dict that is made for the first one."""
    counts = {} if counts is None else counts
    kind = kind_of(error)
    counts[kind] = counts.get(kind, 0) + 1
    return counts
