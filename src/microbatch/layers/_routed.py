"""`routed`: mixed operations in one batch, each kind to its own handler."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar, overload

from microbatch._core.bulk import bulk
from microbatch._core.info import current_batch, narrowed
from microbatch._pure.copying import copy_exception
from microbatch._pure.exceptions import ItemError

from ._passing import BulkHandler, Handler, R, SilentHandler, T, hand_over

K = TypeVar("K", bound=Hashable)


@overload
def routed(
    handlers: Mapping[K, SilentHandler[T]], *, by: Callable[[T], K]
) -> BulkHandler[T, None]: ...
@overload
def routed(handlers: Mapping[K, Handler[T, R]], *, by: Callable[[T], K]) -> BulkHandler[T, R]: ...
def routed(handlers: Mapping[Any, Any], *, by: Callable[[Any], Any]) -> BulkHandler[Any, Any]:
    """Sort a mixed batch by kind and give each kind to its own handler.

    The handlers are called one after another, in the order of the mapping and only for kinds that
    the batch has; results come back in the items' order. A handler that raises fails its own kind
    alone. An item of a kind that no handler takes fails alone, with an ``ItemError`` whose code is
    ``"unknown_kind"``.

    Args:
        handlers: An async or plain bulk handler for each kind. The mapping is copied.
        by: An item's kind. If it raises, that item fails alone.

    Raises:
        TypeError: If ``handlers`` is no mapping, ``by`` cannot be called, or a handler is a
            generator function.
        ValueError: If there are no handlers.
    """
    if not isinstance(handlers, Mapping):
        raise TypeError(f"handlers must be a mapping from kind to handler, got {handlers!r}")
    if not handlers:
        raise ValueError("handlers must name at least one kind, got {}")
    if not callable(by):
        raise TypeError(f"by must be a function from item to kind, got {by!r}")
    calls = {kind: bulk(handler) for kind, handler in handlers.items()}

    async def route(items: list[Any]) -> list[Any]:
        batch = current_batch()
        results: list[Any] = [None] * len(items)

        def found(indices: Iterable[int], outcomes: Iterable[Any]) -> None:
            for index, result in zip(indices, outcomes, strict=True):
                results[index] = result
                hand_over(batch, index, result)

        indices_of, refused = _sorted(items, by, calls)
        found(refused, refused.values())
        for kind, indices in indices_of.items():
            try:
                with narrowed(indices):
                    outcomes = await calls[kind]([items[index] for index in indices])
            except Exception as error:  # noqa: BLE001 - it fails its own kind
                outcomes = [copy_exception(error) for _ in indices]
            found(indices, outcomes)
        return results

    route.__name__ = route.__qualname__ = "routed"
    return route


def _sorted(
    items: list[Any], by: Callable[[Any], Any], kinds: Iterable[Any]
) -> tuple[dict[Any, list[int]], dict[int, Exception]]:
    """Return the indices of each kind that is there, in the kinds' order, and who is of none."""
    indices_of: dict[Any, list[int]] = {kind: [] for kind in kinds}
    refused: dict[int, Exception] = {}
    for index, item in enumerate(items):
        try:
            kind = by(item)
            if kind not in indices_of:
                known = ", ".join(map(repr, indices_of))
                message = f"unknown kind {kind!r}: known are {known}"
                raise ItemError(message, code="unknown_kind", retryable=False)
        except Exception as error:  # noqa: BLE001 - the user's function, or of no kind
            refused[index] = error
        else:
            indices_of[kind].append(index)
    return {kind: indices for kind, indices in indices_of.items() if indices}, refused
