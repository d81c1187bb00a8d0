"""What a single-item function says of itself, read off its bulk function: names, signature, annotations."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import operator
import types
import typing
from operator import attrgetter
from typing import Any

from microbatch._pure.handler import name_of

EMPTY: Any = inspect.Parameter.empty
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class About:
    """What a single-item function says of itself, read off its bulk function."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.qualname: str = name_of(function)
        self.name: str = str(getattr(function, "__name__", self.qualname.rpartition(".")[2]))
        self.module: str = str(getattr(function, "__module__", __name__))
        self.doc: str | None = getattr(function, "__doc__", None)
        #: What stands before the item: of a method its first parameter's name, else "". None: unknown yet.
        self.owner: str | None = ""
        self._signature: inspect.Signature | None = None

    def find_owner(self) -> None:
        """See whether the bulk function is a method, with ``self`` or ``cls`` before its items."""
        self.owner = owner_of(self.function)

    @property
    def globals(self) -> dict[str, Any]:
        return globals_of(self.function)

    @property
    def signature(self) -> inspect.Signature:
        # When first asked for: what annotations name may stand further down in the module.
        if self._signature is None:
            self._signature = signature_of(self.function, self.owner)
        return self._signature

    @property
    def annotations(self) -> dict[str, Any]:
        shown = {name: p.annotation for name, p in self.signature.parameters.items()}
        shown["return"] = self.signature.return_annotation
        return {name: one for name, one in shown.items() if one is not EMPTY}

    def not_one_item(self, count: int) -> TypeError:
        """Return the error of a call with ``count`` positional arguments."""
        if self.owner:
            message = f"{self.qualname}() takes its {self.owner} and one item"
        else:
            message = f"{self.qualname}() takes one item"
        return TypeError(
            f"{message}, got {count} positional argument{'s' if count > 1 else ''}: "
            "`.batcher.submit_many` takes many items"
        )


#: What a function's object is about; one of the few things that `Told` may ask of it.
_about_of = attrgetter("_about")


class Told:
    """An attribute whose value on a function's objects ``About`` knows; on the class it is the class's."""

    def __init__(self, name: str, of_class: Any = None) -> None:
        self._name = name
        self._of_class = of_class

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self._of_class
        return getattr(_about_of(instance), self._name)


def owner_of(function: Any) -> str | None:
    """Return the name of what a bulk method takes before its items, ``self`` or ``cls``; "" of a function.

    None if its signature does not tell: ``(*args)``, or that of a built-in function.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    needed = [p.name for p in parameters if p.kind in POSITIONAL and p.default is EMPTY]
    return needed[0] if len(needed) > 1 else ""


def signature_of(function: Any, owner: str | None) -> inspect.Signature:
    """Return ``(item: T) -> R`` for ``(items: list[T]) -> list[R]``; for a method with its owner in front.

    ``priority`` is left out on purpose: frameworks that fill in parameters by signature would take it
    from whoever sends the request.
    """
    try:
        bulk = inspect.signature(function)
    except (TypeError, ValueError):
        bulk = inspect.Signature()
    names = globals_of(function)
    taken = [p for p in bulk.parameters.values() if p.kind in POSITIONAL]
    place = 1 if owner_of(function) else 0
    items = _evaluated(taken[place].annotation, names) if len(taken) > place else EMPTY
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    item = inspect.Parameter("item", kind, annotation=_only(items))
    front = [inspect.Parameter(owner, inspect.Parameter.POSITIONAL_ONLY)] if owner else []
    returned = _evaluated(bulk.return_annotation, names)
    return inspect.Signature([*front, item], return_annotation=_result(returned))


def globals_of(function: Any) -> dict[str, Any]:
    """Return the names of the module that a function was written in."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__globals__"):
        function = getattr(function, "__func__", type(function).__call__)
    return getattr(function, "__globals__", {})


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """Evaluate a postponed annotation; one that cannot be (an import for type checkers only) is none."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)  # noqa: S307 - the function's own annotation, as typing does
    except Exception:  # noqa: BLE001 - whatever its names raise
        return EMPTY


def _only(annotation: Any) -> Any:
    """Return ``T`` of ``list[T]``, of ``Sequence[T]``, and so on."""
    arguments = typing.get_args(annotation)
    return arguments[0] if len(arguments) == 1 else EMPTY


def _result(annotation: Any) -> Any:
    """Return what one caller gets: ``R`` of ``list[R | Exception]``, and of pairs that are yielded."""
    if annotation is None or annotation is type(None):
        return None
    origin = typing.get_origin(annotation)
    if origin in (collections.abc.Awaitable, collections.abc.Coroutine):
        return _result(typing.get_args(annotation)[-1])
    if origin in (
        collections.abc.AsyncIterator,
        collections.abc.AsyncIterable,
        collections.abc.AsyncGenerator,
    ):
        pair = typing.get_args(typing.get_args(annotation)[0])
        return _without_errors(pair[1]) if len(pair) == 2 else EMPTY
    return _without_errors(_only(annotation))


def _without_errors(annotation: Any) -> Any:
    """Take the exceptions out of a union: a caller gets them raised."""
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return annotation
    kept = [
        one
        for one in typing.get_args(annotation)
        if not (isinstance(one, type) and issubclass(one, Exception))
    ]
    return functools.reduce(operator.or_, kept) if kept else EMPTY
