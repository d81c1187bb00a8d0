"""What HTTP says of what became of items: codes, statuses, texts. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from microbatch._pure.exceptions import (
    Full,
    HandlerCrashed,
    ItemError,
    MicrobatchError,
    ResultCountError,
    WouldDeadlock,
    code_of,
)
from microbatch._pure.report import INTERNAL_ERROR, error_code

if TYPE_CHECKING:
    from collections.abc import Callable

OperationKind = Literal["create", "update", "delete", "read"]

#: What success is called, by what was asked for.
SUCCESS: dict[str, int] = {"create": 201, "update": 200, "read": 200, "delete": 204}

#: The status of an item that failed, by its code. A code with a star stands for all that begin so. What is not
#: here is asked of ``status_of``, and is 500 if that does not know it either.
STATUS: dict[str, int] = {
    "invalid_item": 422,
    "validation_error": 422,
    "not_found": 404,
    "conflict": 409,
    "duplicate*": 409,
    "forbidden": 403,
    "rate_limited": 429,
    "too_many_requests": 429,
    "item_too_heavy": 413,
    "item_too_large": 413,
    "unknown_collection": 400,
    "unknown_method": 400,
    "missing_id": 400,
    "aborted": 424,
    "full": 503,
    "closed": 503,
    "handler_stuck": 503,
    "handler_timeout": 504,
    "expired": 504,
    "cancelled": 409,
}

#: Where HTTP's name differs from the one that a report counts by.
_NAMES = {
    "batch_aborted": "aborted",
    "batcher_full": "full",
    "queue_full": "full",
    "batcher_closed": "closed",
    "item_expired": "expired",
    "item_cancelled": "cancelled",
}

#: Codes that mean "not now".
RETRYABLE = frozenset({"full", "closed", "handler_stuck", "rate_limited", "too_many_requests"})

#: What is said of errors that are no ItemError: their own text may name what nobody outside should know of.
TEXTS: dict[str, str] = {
    "aborted": "not done, because another item failed",
    "full": "there is no room for it now: try again later",
    "closed": "the server is closing: try again later",
    "handler_stuck": "too many earlier calls are stuck: try again later",
    "handler_timeout": "it took too long; whether it was done is unknown",
    "expired": "it had not begun when its deadline came",
    "cancelled": "it was cancelled",
}

#: Our own errors that tell of a fault in the application, and of nothing that a client could act on.
_FAULTS = (HandlerCrashed, ResultCountError, WouldDeadlock)


def code_for(error: Exception) -> str:
    """Return the code by which HTTP tells an error; ``"internal_error"`` for what is no client's business."""
    if isinstance(error, ItemError):
        return code_of(error)
    if isinstance(error, _FAULTS):
        return INTERNAL_ERROR
    if isinstance(error, Full):
        return "full"
    code = error_code(error)
    return _NAMES.get(code, code)


def status_for(
    code: str, status_of: Callable[[str], int | None] | None = None, unknown: int = 500
) -> int:
    """Return the status of an item that failed with a code.

    Args:
        code: The code.
        status_of: The application's own function, asked about codes that HTTP gives no meaning to.
        unknown: The status if that does not know either.
    """
    status = STATUS.get(code)
    if status is not None:
        return status
    if code != INTERNAL_ERROR and status_of is not None:
        own: Any = status_of(code)
        if isinstance(own, int) and not isinstance(own, bool) and 400 <= own <= 599:
            return own
    return 409 if code.startswith("duplicate") else unknown


def text_for(error: Exception, code: str) -> str | None:
    """Return what may be said of an error; None if only an id that stands in our log."""
    if code == INTERNAL_ERROR:
        return None
    if isinstance(error, ItemError):
        try:
            return str(error)
        except Exception:  # noqa: BLE001 - a subclass's own
            return code
    if code in TEXTS:
        return TEXTS[code]
    # What a durable queue has kept of an ItemError: its text, and its code, which no other error has.
    message = getattr(error, "message", None)
    return message if isinstance(error, MicrobatchError) and isinstance(message, str) else None


def retryable_for(error: Exception, code: str) -> bool:
    """Tell whether sending the item again may help."""
    own = getattr(error, "retryable", None) if isinstance(error, MicrobatchError) else None
    return own if isinstance(own, bool) else code in RETRYABLE


def batch_status(*, succeeded: int, total: int, all_failed_status: int) -> int:
    """Return what a batch is answered with, where it is answered item by item.

    Args:
        succeeded: How many items succeeded or were skipped.
        total: How many there were.
        all_failed_status: The setting: what stands for a batch of which nothing succeeded.
    """
    if succeeded == total:
        return 200
    return 207 if succeeded else all_failed_status


def atomic_status(first: Exception | None, status: int) -> int:
    """Return what an all-or-nothing batch is answered with.

    Args:
        first: The first failure that is the item's own; None if there is none.
        status: That item's status.
    """
    if first is None:
        return 200
    if status == 409:
        return 409
    return 500 if code_for(first) == INTERNAL_ERROR else 422
