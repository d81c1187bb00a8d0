"""What a handler is, and what it may return."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal, TypeVar

from . import checks
from .exceptions import ResultCountError

R = TypeVar("R")


#: What a handler returns that has nothing to tell ...
Silent = Awaitable[None] | None


#: ... and one that has results.
Results = (
    Awaitable[Collection[R | Exception]]
    | Collection[R | Exception]
    | AsyncIterator[tuple[int, R | Exception]]
)


HandlerKind = Literal["async", "thread", "generator"]


def handler_kind(handler: Any) -> HandlerKind:
    """Tell how a handler is run: awaited, iterated as an async generator, or in a worker thread.

    Partials and ``__call__`` are looked through.

    Raises:
        TypeError: If it cannot be called, or is a plain generator function, whose results could not be
            told from the items of a batch.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a function that takes a list of items, got {handler!r}")
    function = handler
    while isinstance(function, functools.partial):
        function = function.func
    candidates = [function]
    if not inspect.isroutine(function) and not isinstance(function, type):
        candidates.append(type(function).__call__)
    if any(map(inspect.isasyncgenfunction, candidates)):
        return "generator"
    if any(map(inspect.iscoroutinefunction, candidates)):
        return "async"
    if any(map(inspect.isgeneratorfunction, candidates)):
        raise TypeError(
            f"handler must not be a plain generator function, got {name_of(handler)}: "
            "return a list, or make it `async def` and yield (index, result) pairs"
        )
    return "thread"


def name_of(handler: Any) -> str:
    """Return a handler's qualified name, looked up through partials; its class's if it has none."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    return str(name)


def results_of(returned: Any, count: int, name: str | None = None) -> list[Any]:
    """Turn what a handler returned into a list with one result for each of its ``count`` items.

    ``name`` is the batcher's, for errors; None where there is none.

    ``None`` means that there is nothing to tell: every item's result is ``None``.

    Raises:
        TypeError: If it is not a sized iterable, or one that has no positions of its own: a string,
            bytes, a mapping, a set, or a table that iterates over its columns. If a result can be awaited.
        ResultCountError: If there are more or fewer results than items.
    """
    results = listed(returned, count, name)
    has_exceptions(results, name)
    return results


def listed(returned: Any, count: int, name: str | None) -> list[Any]:
    """Do the same without a look at the single results."""
    if returned is None:
        return [None] * count
    if type(returned) is not list:
        kind = type(returned).__name__
        if (
            isinstance(returned, (str, bytes, bytearray, memoryview, AbstractSet))
            or is_mapping(returned)
            or not (hasattr(returned, "__len__") and hasattr(returned, "__iter__"))
        ):
            raise TypeError(
                f"{_handler_of(name)} must return a list of {count} results (or another sized "
                f"iterable that keeps the items' order, or None), got {kind}"
            )
        results = list(returned)
        if is_table(returned, results):
            raise TypeError(
                f"{_handler_of(name)} must return a list of {count} results, got {kind}, "
                "which iterates over its columns: make a list of its rows"
            )
        returned = results
    if len(returned) != count:
        raise ResultCountError(count, len(returned), name=name)
    return returned  # type: ignore[no-any-return]


#: What most results are: none of these is an exception or can be awaited.
_PLAIN = frozenset((type(None), bool, int, float, str, bytes, tuple, list, dict, set))
_PLAIN_IDS = frozenset(map(id, _PLAIN))


def received(returned: Any, count: int, name: str | None) -> tuple[list[Any], bool]:
    """Check what a handler returned; return the results, and whether an exception is among them.

    Raises:
        ResultCountError: If there are not as many results as items.
        TypeError: If it cannot be a batch's results, or one of them can be awaited.
    """
    if type(returned) is not list or len(returned) != count:
        returned = listed(returned, count, name)
    # What serves for many costs a batch of one 1 % of all that it does.
    if count == 1 and id(type(returned[0])) in _PLAIN_IDS:
        return returned, False
    return returned, has_exceptions(returned, name)


def has_exceptions(results: list[Any], name: str | None) -> bool:
    """Tell whether a result is an exception: by type, whatever the types of results think of == and hash.

    Raises:
        TypeError: If a result can be awaited.
    """
    try:
        kinds: Any = set(map(type, results))
        if kinds <= _PLAIN:
            return False
    except Exception:  # noqa: BLE001 - a metaclass's own, such as for a class that has no hash
        kinds = list(map(type, results))
    if any(map(checks.is_awaitable, kinds)):
        index = next(i for i, r in enumerate(results) if checks.is_awaitable(type(r)))
        what = f"{_handler_of(name)} must return results, but the one at index {index}"
        checks.refuse_awaitable(what, results[index], results)
    return any(issubclass(kind, BaseException) for kind in kinds)


def is_mapping(returned: Any) -> bool:
    """Tell whether something is a mapping, by its class or by what it can do."""
    return isinstance(returned, Mapping) or all(
        callable(getattr(type(returned), name, None)) for name in ("keys", "values", "items")
    )


def is_table(returned: Any, elements: list[Any]) -> bool:
    """Tell whether something is a table whose elements are columns and not rows, as a DataFrame's are.

    Told by what it can do: by the interchange protocol of DataFrames, or since its elements are what its
    ``columns`` are, or since it has two dimensions and its elements have none. A matrix has rows.
    """
    if hasattr(type(returned), "__dataframe__"):
        return True
    columns = getattr(returned, "columns", None)
    if columns is not None and not callable(columns):
        try:
            labels = [getattr(element, "name", element) for element in elements]
            if labels == list(columns):
                return True
        except Exception:  # noqa: BLE001 - rows that cannot be compared with what columns are
            return False
    shape = getattr(returned, "shape", None)
    return (
        isinstance(shape, tuple)
        and len(shape) > 1
        and any(isinstance(e, str) or not hasattr(e, "__len__") for e in elements[:1])
    )


def _handler_of(name: str | None) -> str:
    return "the handler" if name is None else f"the handler of batcher {name!r}"


#: What must end the program.
FATAL = (KeyboardInterrupt, SystemExit)


def find(
    error: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]
) -> BaseException | None:
    """Return the first exception of a kind in what was raised: itself, or one within a group."""
    if not isinstance(error, BaseExceptionGroup):
        return error if issubclass(type(error), kinds) else None
    for member in error.exceptions:
        if (found := find(member, kinds)) is not None:
            return found
    return None


def is_only(error: BaseException, wanted: BaseException) -> bool:
    """Tell whether an exception is this very one, or groups in which there is nothing else."""
    if isinstance(error, BaseExceptionGroup) and error is not wanted:
        return all(is_only(member, wanted) for member in error.exceptions)
    return error is wanted
