"""Copies of exceptions: one for each caller, of the very same type."""

from __future__ import annotations

import functools
import types
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


_OWN_FIELDS = frozenset(
    ("__dict__", "__weakref__", "__traceback__", "__context__", "__cause__", "__suppress_context__")
)


_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)


_BUILTIN = type(BaseException.__new__)


@functools.lru_cache(maxsize=256)
def _plan(cls: type[BaseException]) -> tuple[Any, tuple[Any, ...]]:
    """Tell how a class's instances are copied: by whose ``__new__``, and which fields C code keeps."""
    maker = next(base for base in cls.__mro__ if type(vars(base).get("__new__")) is _BUILTIN)
    fields = tuple(
        field
        for base in cls.__mro__
        for name, field in vars(base).items()
        if isinstance(field, _DESCRIPTORS) and name not in _OWN_FIELDS
    )
    return maker, fields


def copy_exception(error: E) -> E:
    """Return an exception of the very same type, args and fields that can be raised on its own.

    Cause, context, notes and the frames so far are kept; raising the copy lengthens the traceback of
    the copy alone. Exceptions within a group are copied too. ``__init__`` is not run, so classes with
    keyword-only arguments work; what can be copied neither this way nor by ``copy.copy`` is returned
    as it is and then shared.
    """
    for method in (_copy_fields, _copy_by_reduce):
        try:
            copy = method(error)
        except Exception:  # noqa: BLE001, S112 - a foreign class may raise anything; then it is shared
            continue
        if copy is not error and type(copy) is type(error):
            return copy
    return error


def _copy_fields(error: E) -> E:
    cls: Any = type(error)
    maker, fields = _plan(cls)
    if isinstance(error, BaseExceptionGroup):
        members = [copy_exception(member) for member in error.exceptions]
        copy = maker.__new__(cls, error.message, members)
    else:
        copy = maker.__new__(cls, *error.args)
        BaseException.__setattr__(copy, "args", error.args)
    for field in fields:
        _copy_field(field, error, copy)
    return _dress(copy, error)  # type: ignore[no-any-return]


def _copy_field(field: Any, error: BaseException, copy: BaseException) -> None:
    """Copy what C code or ``__slots__`` keeps outside ``__dict__``, such as ``OSError.filename``."""
    try:
        value = field.__get__(error)
    except AttributeError:  # an empty slot
        return
    try:
        if field.__get__(copy) is value:  # OSError's text tells None from nothing: leave nothing be
            return
    except AttributeError:
        pass
    try:
        field.__set__(copy, value)
    except (AttributeError, TypeError):  # read-only: then __new__ must have set it
        if isinstance(error, BaseExceptionGroup):
            return
        if field.__get__(copy) != value:
            raise


def _copy_by_reduce(error: E) -> E:
    import copy as copying  # noqa: PLC0415 - rare: classes made in C or Rust with a __reduce__

    copy = copying.copy(error)
    BaseException.__setattr__(copy, "args", error.args)  # pydantic's __reduce__ sets others
    if str(copy) != str(error):
        return error
    return _dress(copy, error)


def _dress(copy: E, error: E) -> E:
    fields = getattr(error, "__dict__", {})
    if fields:
        copy.__dict__.update(fields)
    if "__notes__" in fields:
        copy.__dict__["__notes__"] = list(fields["__notes__"])
    BaseException.__setattr__(copy, "__cause__", error.__cause__)
    BaseException.__setattr__(copy, "__context__", error.__context__)
    BaseException.__setattr__(copy, "__suppress_context__", error.__suppress_context__)
    return copy.with_traceback(error.__traceback__)
