"""`bisecting`: halve a failed batch until what poisons it fails alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from microbatch._core.bulk import bulk
from microbatch._core.info import current_batch, narrowed
from microbatch._pure.copying import copy_exception
from microbatch._pure.exceptions import ItemError, RateLimited

from ._passing import BulkHandler, Handler, R, SilentHandler, T, hand_over, named_after

Isolate = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]


@overload
def bisecting(
    handler: SilentHandler[T], *, isolate_on: Isolate = Exception
) -> BulkHandler[T, None]: ...
@overload
def bisecting(handler: Handler[T, R], *, isolate_on: Isolate = Exception) -> BulkHandler[T, R]: ...
def bisecting(handler: Any, *, isolate_on: Isolate = Exception) -> BulkHandler[Any, Any]:
    """Halve a batch that fails as a whole, until the items that make it fail do so alone.

    With k such items among n, the handler is called at most ``2 * k * ceil(log2(n)) + 1`` times,
    and never more than ``2 * n - 1`` times, whatever fails. One part is called after another, the
    first half to its end before the second, so what the calls that succeed do comes in the items'
    order: of two writes of one key, the later one wins. The callers of a part go on as soon as it is
    done.

    Warning: a failed call must have had no effect, or one that may be repeated, for its items are
    passed on again. Put this around a handler whose write is one transaction, not around one that
    stops half-way.

    Args:
        handler: An async or plain bulk handler. Errors that it returns for single items are left
            alone.
        isolate_on: Which errors may be an item's fault: an exception class, a tuple of them, or a
            predicate. With any other error a part fails as it is, in one call. Name what your
            backend raises for bad data: while it is down, halving makes things worse. An
            ``ItemError`` whose ``retryable`` is True is never an item's fault. After a
            ``RateLimited`` the handler is not called again for this batch: what is left gets it too.

    Returns:
        A handler whose poisonous items fail alone. It raises what the handler raised where the
        batch has one item only or the error of the whole batch is not to be isolated.

    Raises:
        TypeError: If the handler is a generator function, or ``isolate_on`` is none of the above.
        ValueError: If ``isolate_on`` is an empty tuple.
    """
    call = bulk(handler)
    isolates = _predicate(isolate_on)

    @named_after(handler)
    async def bisected(items: list[Any]) -> list[Any]:
        batch = current_batch()
        count = len(items)
        results: list[Any] = [None] * count
        parts = [range(count)] if items else []  # a stack: depth first keeps the items' order
        while parts:
            part = parts.pop()
            half = len(part) // 2
            try:
                with narrowed(part):
                    found = await call(items[part.start : part.stop])
            except Exception as error:
                if half and isolates(error):
                    parts += (part[half:], part[:half])
                    continue
                if len(part) == count:
                    raise
                if isinstance(error, RateLimited):  # so it would the rest, which follows in a row
                    part = range(part.start, count)
                    parts.clear()
                found = [copy_exception(error) for _ in part]
            for index, result in zip(part, found, strict=True):
                results[index] = result
                if len(part) < count:
                    hand_over(batch, index, result)
        return results

    return bisected


def _predicate(isolate_on: Isolate) -> Callable[[Exception], bool]:
    classes = isolate_on if isinstance(isolate_on, tuple) else (isolate_on,)
    if not classes:
        raise ValueError("isolate_on must name at least one exception class, got ()")
    by_class = all(isinstance(cls, type) and issubclass(cls, Exception) for cls in classes)
    if not by_class and (isinstance(isolate_on, (tuple, type)) or not callable(isolate_on)):
        raise TypeError(
            "isolate_on must be an exception class, a tuple of them or a predicate, "
            f"got {isolate_on!r}"
        )

    def isolates(error: Exception) -> bool:
        if isinstance(error, RateLimited) or (
            isinstance(error, ItemError) and error.retryable is True
        ):
            return False  # the backend is busy, whatever the items are
        if by_class:
            return isinstance(error, classes)  # type: ignore[arg-type]
        return bool(isolate_on(error))  # type: ignore[operator]

    return isolates
