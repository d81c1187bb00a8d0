"""`by_key`: give each caller its own row of what a bulk read found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar, overload

from microbatch._loops.calling import call_in_thread
from microbatch._pure import checks
from microbatch._pure.copying import copy_exception
from microbatch._pure.exceptions import ItemNotFound
from microbatch._pure.handler import handler_kind, is_mapping, is_table, name_of

from ._passing import BulkHandler, T, named_after

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
M = TypeVar("M")


@overload
def by_key(
    handler: Callable[[list[T]], Awaitable[Mapping[T, V | Exception]] | Mapping[T, V | Exception]],
    *,
    key: None = None,
    row_key: None = None,
) -> BulkHandler[T, V]: ...
@overload
def by_key(
    handler: Callable[[list[T]], Awaitable[Mapping[K, V | Exception]] | Mapping[K, V | Exception]],
    *,
    key: Callable[[T], K],
    row_key: None = None,
) -> BulkHandler[T, V]: ...
@overload
def by_key(
    handler: Callable[[list[T]], Awaitable[Iterable[V]] | Iterable[V]],
    *,
    key: Callable[[T], Hashable] | None = None,
    # Not Callable[[V], ...]: inside Batcher(by_key(...)) mypy takes V for `V | Exception`, which is what the
    # Batcher takes, and then refuses a function of the row alone.
    row_key: Callable[[Any], Hashable],
) -> BulkHandler[T, V]: ...
@overload
def by_key(
    handler: Callable[[list[T]], Awaitable[Mapping[K, V | Exception]] | Mapping[K, V | Exception]],
    *,
    key: Callable[[T], K] | None = None,
    row_key: None = None,
    missing: Callable[[Any], M],
) -> BulkHandler[T, V | M]: ...
@overload
def by_key(
    handler: Callable[[list[T]], Awaitable[Iterable[V]] | Iterable[V]],
    *,
    key: Callable[[T], Hashable] | None = None,
    row_key: Callable[[Any], Hashable],
    missing: Callable[[Any], M],
) -> BulkHandler[T, V | M]: ...
@overload
def by_key(
    handler: Callable[[list[T]], Awaitable[Mapping[K, V | Exception]] | Mapping[K, V | Exception]],
    *,
    key: Callable[[T], K] | None = None,
    row_key: None = None,
    missing: M,
) -> BulkHandler[T, V | M]: ...
@overload
def by_key(
    handler: Callable[[list[T]], Awaitable[Iterable[V]] | Iterable[V]],
    *,
    key: Callable[[T], Hashable] | None = None,
    row_key: Callable[[Any], Hashable],
    missing: M,
) -> BulkHandler[T, V | M]: ...
def by_key(
    handler: Callable[[list[Any]], Any],
    *,
    key: Callable[[Any], Hashable] | None = None,
    row_key: Callable[[Any], Hashable] | None = None,
    missing: Any = ItemNotFound,
) -> BulkHandler[Any, Any]:
    """Make a handler of a bulk read whose rows come by key, or in any order.

    An item that nothing was found for fails alone with ``ItemNotFound(key)``, unless ``missing`` says
    what it gets, or the mapping makes it up, as a ``defaultdict(list)`` of rows grouped by key does. Items
    with equal keys get the same object. Rows that nobody asked for are left out.

    Args:
        handler: An async or plain function from a list of items to a mapping by key; with
            ``row_key`` to an iterable of rows, such as a SELECT returns. An exception in the
            mapping is raised in its item's caller.
        key: An item's key; without it the item is its own key. If it raises, that item fails alone.
        row_key: A row's key. Two rows of one key fail its items alone, with ``ValueError``: a join
            that multiplies rows should not go unseen.
        missing: What an item gets that nothing was found for: a value, such as None, or a function that
            is called with the key. An exception, returned or raised, is that item's alone.

    Raises:
        TypeError: If the handler is a generator function or an argument cannot be called; when
            called, if what the handler returned is no mapping, or with ``row_key`` no iterable of rows.
    """
    if handler_kind(handler) == "generator":
        raise TypeError(f"a generator handler is not allowed here, got {name_of(handler)}")
    in_thread = handler_kind(handler) == "thread"
    checks.function("key", key)
    checks.function("row_key", row_key)

    @named_after(handler)
    async def keyed(items: list[Any]) -> list[Any]:
        if not items:
            return []
        passed_on = list(items)
        if in_thread:
            found = await call_in_thread(handler, passed_on)
        else:
            found = await handler(passed_on)
        rows = _mapping(found, row_key)
        return [_pick(item, key, rows, missing) for item in items]

    return keyed


def _mapping(found: Any, row_key: Callable[[Any], Hashable] | None) -> Mapping[Hashable, Any]:
    if row_key is None:
        if not isinstance(found, Mapping):
            raise TypeError(
                f"the handler of by_key must return a mapping by key, got {type(found).__name__}: "
                "for rows in any order give row_key="
            )
        return found
    listed = None
    if (
        not isinstance(found, (str, bytes))
        and not is_mapping(found)
        and isinstance(found, Iterable)
    ):
        listed = list(found)
    if listed is None or is_table(found, listed):
        raise TypeError(
            "the handler of by_key with row_key= must return an iterable of rows, "
            f"got {type(found).__name__}"
        )
    rows: dict[Hashable, Any] = {}
    for row in listed:
        its_key = row_key(row)
        if its_key in rows:
            message = f"by_key expects one row for each key, got more for {its_key!r}"
            row = ValueError(message)  # noqa: PLW2901 - it takes the row's place
        rows[its_key] = row
    return rows


def _pick(
    item: Any,
    key: Callable[[Any], Hashable] | None,
    rows: Mapping[Hashable, Any],
    missing: Any,
) -> Any:
    try:
        wanted = item if key is None else key(item)
        try:
            row = rows[wanted]
        except KeyError:
            row = missing(wanted) if callable(missing) else missing
        checks.refuse_awaitable("what by_key found for an item", row)
    except Exception as error:  # noqa: BLE001 - from key() or missing(), or it cannot be hashed
        return error
    return copy_exception(row) if issubclass(type(row), Exception) else row
