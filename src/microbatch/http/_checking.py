"""What is asked before anything is handled: may it, and is it right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import ItemError, code_of

from ._principals import forbidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._collection import Collection
    from ._operations import Operation
    from ._principals import Principal


class RefusedItem(ItemError):
    """An item that the application's ``validate`` or ``authorize`` refused.

    Attributes:
        status: Its status, where its code has none.
    """

    status: int = 422


def refused(error: ItemError, code: str, status: int) -> ItemError:
    """Return what is told of a refusal.

    Args:
        error: The application's own.
        code: What it is called if it has no word of its own for it.
        status: Its status, where its code has none.
    """
    own = code_of(error)
    told = RefusedItem(
        str(error),
        code=code if own == ItemError.code else own,
        retryable=False if error.retryable is None else error.retryable,
        retry_after=error.retry_after,
        field=error.field,
        details=error.details,
    )
    told.status = status
    return told


def grouped(operations: Iterable[Operation]) -> dict[tuple[Collection, str], list[Operation]]:
    """Return those without an error by their collection and kind, in the order in which these first come."""
    groups: dict[tuple[Collection, str], list[Operation]] = {}
    for one in operations:
        if one.error is None and one.collection is not None and one.kind is not None:
            groups.setdefault((one.collection, one.kind), []).append(one)
    return groups


async def allow(principal: Principal, operations: Sequence[Operation]) -> None:
    """Ask the collections' ``authorize`` about all items that could be read; some may get an error by it.

    Raises:
        Problem: 403 for all of them.
        TypeError: If it answers something else.
    """
    for (collection, kind), chosen in grouped(operations).items():
        ask = collection.settings.authorize
        if ask is None:
            continue
        try:
            answers: Any = await ask(principal, kind, [one.item for one in chosen])
        except PermissionError:
            raise forbidden() from None
        if answers is None:
            continue
        if not isinstance(answers, (list, tuple)) or len(answers) != len(chosen):
            message = (
                f"authorize of collection {collection.name!r} must return None or a list with an ItemError or "
                f"None for each of {len(chosen)} items, got {type(answers).__name__}"
            )
            raise TypeError(message)
        for one, answer in zip(chosen, answers, strict=True):
            if answer is not None and not isinstance(answer, ItemError):
                message = (
                    f"authorize of collection {collection.name!r} must return an ItemError or None "
                    f"for an item, got {type(answer).__name__}"
                )
                raise TypeError(message)
            if answer is not None:
                one.error = refused(answer, "forbidden", 403)


def validate_items(operations: Iterable[Operation]) -> None:
    """Ask the collections' ``validate`` about all items that are to be created; some may get an error by it."""
    for one in operations:
        if one.error is None and one.kind == "create" and one.collection is not None:
            check = one.collection.settings.validate
            if check is not None:
                one.error = _error_of(check, one.item)


def _error_of(check: Callable[[Any], object], item: Any) -> Exception | None:
    try:
        check(item)
    except ItemError as error:
        return refused(error, "validation_error", 422)
    except Exception as error:  # noqa: BLE001 - the application's own
        return error
    return None
