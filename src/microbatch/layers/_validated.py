"""`validated`: bad items fail before the handler sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from microbatch._core.bulk import bulk
from microbatch._core.info import batcher_name, current_batch, narrowed
from microbatch._pure.exceptions import BatchAborted
from microbatch._pure.handler import handler_kind

from ._passing import BulkHandler, Handler, R, SilentHandler, T, hand_over, named_after

if TYPE_CHECKING:
    from collections.abc import Callable

Mode = Literal["skip", "reject"]


@overload
def validated(
    handler: SilentHandler[T], validate: Callable[[T], object], *, mode: Mode = "skip"
) -> BulkHandler[T, None]: ...
@overload
def validated(
    handler: Handler[T, R], validate: Callable[[T], object], *, mode: Mode = "skip"
) -> BulkHandler[T, R]: ...
def validated(handler: Any, validate: Any, *, mode: Mode = "skip") -> BulkHandler[Any, Any]:
    """Validate every item of a batch before any of them is handled.

    What ``validate`` raises for an item is its caller's error. All bad items are told, not just the
    first.

    Args:
        handler: An async or plain bulk handler. It is not called when no item is left for it.
        validate: A plain function that raises for a bad item; what it returns is not used. It runs
            in the event loop, so it must not block.
        mode: ``"skip"``: the good items run without the bad ones. ``"reject"``: if one item is bad
            none runs, and the good ones get ``BatchAborted``, which names the first bad one.

    Raises:
        TypeError: If the handler is a generator function or ``validate`` is not a plain function.
        ValueError: If the mode is neither of the two.
    """
    call = bulk(handler)
    if not callable(validate) or handler_kind(validate) != "thread":
        raise TypeError(f"validate must be a plain function, got {validate!r}")
    if mode not in {"skip", "reject"}:
        raise ValueError(f"mode must be 'skip' or 'reject', got {mode!r}")

    @named_after(handler)
    async def checked(items: list[Any]) -> list[Any]:
        batch = current_batch()
        errors = _errors_of(items, validate)
        for index, error in errors.items():
            hand_over(batch, index, error)
        good = [index for index in range(len(items)) if index not in errors]
        results: list[Any] = [errors.get(index) for index in range(len(items))]
        if errors and mode == "reject":
            first, reason = next(iter(errors.items()))
            for index in good:
                results[index] = BatchAborted(first, reason, batcher_name())
        elif good:
            with narrowed(good):
                found = await call([items[index] for index in good])
            for index, result in zip(good, found, strict=True):
                results[index] = result
        return results

    return checked


def _errors_of(items: list[Any], validate: Callable[[Any], object]) -> dict[int, Exception]:
    errors: dict[int, Exception] = {}
    for index, item in enumerate(items):
        try:
            validate(item)
        except Exception as error:  # noqa: BLE001 - whatever it raises is the item's error
            errors[index] = error
    return errors
