"""Models in the manner of pydantic: classes with ``model_validate`` and ``model_dump``.

They become built-in values and come back by these two methods alone, so nothing is imported for them.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: How a model is taken apart to be read back. ``python``: the other mode writes stars for secrets, without a
#: word. Field names and not aliases, for a field may be written by one alias and read by another.
_DUMPED: Mapping[str, Any] = {
    "mode": "python",
    "by_alias": False,
    "round_trip": True,
    "warnings": False,
}

#: How it comes back. Dates and sets went as text and lists, which a strict model would refuse.
_VALIDATED: Mapping[str, Any] = {"strict": False, "by_alias": True, "by_name": True}

#: How it is shown. By its aliases, as in files.
_SHOWN: Mapping[str, Any] = {"mode": "json", "by_alias": True}

#: Wrong fields that a message names; the rest are counted.
_PROBLEMS_MAX = 10


def is_whole_model(kind: Any) -> bool:
    """Tell whether a class is a model."""
    return callable(getattr(kind, "model_validate", None)) and callable(
        getattr(kind, "model_dump", None)
    )


def dump(model: Any) -> Any:
    """Return what `validate` makes an equal model of."""
    kind = type(model)
    settings = _accepted(kind.model_dump, "by_alias", "mode", "round_trip", "warnings")
    wanted = {name: _DUMPED[name] for name in settings}
    if "by_alias" in wanted and "by_name" not in _accepted(kind.model_validate, "by_name"):
        wanted["by_alias"] = True  # pydantic before 2.11 knows no fields by their names
    return model.model_dump(**wanted)


def validate(kind: Any, value: Any) -> Any:
    """Return a model of what `dump` gave, or of anything else that its class takes.

    Raises:
        ValueError: If that is wrong; the message names each field.
    """
    settings = _accepted(kind.model_validate, *_VALIDATED)
    if "by_name" not in settings:
        settings = [name for name in settings if name != "by_alias"]
    try:
        return kind.model_validate(value, **{name: _VALIDATED[name] for name in settings})
    except Exception as error:
        if (problems := _problems_of(error)) is None:
            raise
        raise ValueError(problems) from error


def as_shown(value: Any) -> Any:
    """Return a model, or a part of one, as it is shown in JSON.

    Raises:
        TypeError: If it is none.
    """
    kind = type(value)
    if not is_whole_model(kind):
        return text_of(value)
    wanted = {name: _SHOWN[name] for name in _accepted(kind.model_dump, *_SHOWN)}
    try:
        return value.model_dump(**wanted)
    except ValueError:  # bytes that are no text, say: msgspec may know what to make of the part
        wanted.pop("mode", None)
        return value.model_dump(**wanted)


def text_of(value: Any) -> Any:
    """Return what often stands in models and has a text that reads back: paths, addresses, URLs.

    Raises:
        TypeError: If it is nothing of this kind.
    """
    kind = type(value)
    if callable(getattr(kind, "__fspath__", None)):
        return value.__fspath__()
    if kind.__module__ == "ipaddress" or callable(getattr(kind, "unicode_string", None)):
        return str(value)  # an address; one of pydantic's URLs
    raise TypeError(f"Encoding objects of type {kind.__name__} is unsupported")


@lru_cache(maxsize=256)
def _accepts(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _accepted(function: Callable[..., Any], *names: str) -> list[str]:
    """Return those arguments that a class's own method takes: not each is pydantic's, or its newest."""
    return [name for name in names if _accepts(function, name)]


def _problems_of(error: Exception) -> str | None:
    """Return what is wrong with which field, if an error knows, in a line and without the values."""
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return None
    try:
        found = [(".".join(map(str, one["loc"])), one["msg"]) for one in errors()]
    except Exception:  # noqa: BLE001 - another kind of error, or a validator's own that cannot be shown
        return None
    lines = [f"{field}: {message}" if field else message for field, message in found]
    more = len(lines) - _PROBLEMS_MAX
    return "; ".join(lines[:_PROBLEMS_MAX]) + (f"; and {more} more" if more > 0 else "")
