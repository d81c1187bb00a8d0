"""What a bulk handler is, and how what it returns or raises becomes outcomes."""

from __future__ import annotations

import functools
import inspect
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
import anyio.to_thread

from . import _checks, batch
from .errors import ResultCountError

if TYPE_CHECKING:
    from collections.abc import Callable

E = TypeVar("E", bound=BaseException)
R = TypeVar("R")

#: What a handler returns that has nothing to tell ...
Silent = Awaitable[None] | None
#: ... and one that has results.
Results = (
    Awaitable[Collection[R | Exception]]
    | Collection[R | Exception]
    | AsyncIterator[tuple[int, R | Exception]]
)
Kind = Literal["async", "thread", "generator"]


def kind_of(handler: Any) -> Kind:
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


def results_of(returned: Any, count: int) -> list[Any]:
    """Turn what a handler returned into a list with one result for each of its ``count`` items.

    ``None`` means that there is nothing to tell: every item's result is ``None``.

    Raises:
        TypeError: If it is not a sized iterable, or one that has no positions of its own: a string,
            bytes, a mapping, a set, or a table that iterates over its columns. If a result can be awaited.
        ResultCountError: If there are more or fewer results than items.
    """
    name = batch.batcher_name()
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
    if any(map(_checks.is_awaitable, kinds)):
        index = next(i for i, r in enumerate(results) if _checks.is_awaitable(type(r)))
        what = f"{_handler_of(name)} must return results, but the one at index {index}"
        _checks.refuse_awaitable(what, results[index], results)
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


async def call_in_thread(
    function: Callable[[list[Any]], Any], items: list[Any], ended: Callable[[], None] | None = None
) -> Any:
    """Run a plain handler in a worker thread and return what it returns.

    Never through anyio's default limiter: where web endpoints wait in its 40 tokens for a batch, the
    batch would wait for a token. How many threads there are is bounded by the batcher's slots.
    A cancelled caller goes on at once and the thread is left to finish; ``ended`` is then called in it.
    If the call is given up before a thread took it, the function is not called, and that is its end.
    """
    # Taken by who comes first: the thread that begins, or the caller that gives up.
    taken = threading.Lock()

    def work() -> list[Any]:
        if not taken.acquire(blocking=False):
            return []
        try:
            return [
                function(items)
            ]  # in a list: trio refuses a coroutine that comes out of a thread
        finally:
            if ended is not None:
                ended()

    try:
        (returned,) = await anyio.to_thread.run_sync(
            work, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
    except BaseException:
        if taken.acquire(blocking=False) and ended is not None:
            ended()
        raise
    if inspect.isawaitable(returned):
        returned = await returned
    return returned


def bulk(handler: Any) -> Callable[[list[Any]], Awaitable[list[Any]]]:
    """Make an async function from items to a list of results out of an async or plain handler.

    Raises:
        TypeError: If it is a generator function or cannot be called.
    """
    kind = kind_of(handler)
    if kind == "generator":
        raise TypeError(f"a generator handler is not allowed here, got {name_of(handler)}")

    @functools.wraps(handler, updated=())
    async def call(items: list[Any]) -> list[Any]:
        count = len(items)
        if kind == "async":
            return results_of(await handler(items), count)
        return results_of(await call_in_thread(handler, items), count)

    return call


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
