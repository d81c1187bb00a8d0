"""Checks of settings and of results: each refuses by name, with the rule and with what came."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterable, Coroutine, Iterable, Mapping
from typing import Any


def whole_number(name: str, value: Any, minimum: int) -> int:
    """Return value if it is an int of at least minimum; bools are refused."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def number(
    name: str, value: Any, *, above: float | None = None, minimum: float | None = None
) -> float:
    """Return value if it is a finite int or float within its range; bools are refused."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        bits = f"an int of {int(value).bit_length()} bits"
        raise ValueError(f"{name} must be within a float's range, got {bits}") from None
    if not finite:
        raise ValueError(f"{name} must be finite, got {value}")
    if above is not None and value <= above:
        raise ValueError(f"{name} must be greater than {above}, got {value}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return value if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def function(name: str, value: Any) -> Any:
    """Return value if it is None or can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function or None, got {value!r}")
    return value


def source(name: str, value: Any) -> None:
    """Refuse what is no source of items, and what gives something else than one would think.

    Raises:
        TypeError: If it is none.
    """
    what = f"{name} must be an iterable or async iterable of items"
    if not isinstance(value, (Iterable, AsyncIterable)):
        raise TypeError(f"{what}, got {value!r}")
    gives = _gives_instead(value)
    if gives is not None:
        raise TypeError(f"{what}, got a {type(value).__name__}, which gives its {gives}")


def _gives_instead(value: Any) -> str | None:
    """Return what iterating over something gives, if nobody can mean that as items."""
    if isinstance(value, str):
        return "characters"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "bytes"
    if isinstance(value, Mapping):
        return "keys"
    if hasattr(value, "__dataframe__") or (hasattr(value, "columns") and hasattr(value, "shape")):
        return "columns"  # a table, whoever made it
    return None


def is_awaitable(kind: type) -> bool:
    """Tell whether instances of a class can be awaited, whatever the class's own class answers."""
    return hasattr(kind, "__await__") and any("__await__" in vars(base) for base in kind.__mro__)


def refuse_awaitable(what: str, result: Any, others: Iterable[Any] = ()) -> None:
    """Refuse a result that can be awaited: nobody would.

    Coroutines among it and the others are closed, so that Python does not warn of them as well.

    Raises:
        TypeError: If it can be awaited.
    """
    if is_awaitable(type(result)):
        for one in (result, *others):
            if issubclass(type(one), Coroutine):
                with contextlib.suppress(Exception):  # under way elsewhere: not ours to close
                    one.close()
        raise TypeError(f"{what} is a {type(result).__name__}, which nobody awaits: await it first")
