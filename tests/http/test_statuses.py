"""What HTTP says of errors: a table, and what stands beside it."""

from __future__ import annotations

import pytest

from microbatch import (
    BatchAborted,
    BatcherClosed,
    BatcherFull,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ItemError,
    ItemNotFound,
    ItemTooHeavy,
    RateLimited,
    ResultCountError,
    WouldDeadlock,
)
from microbatch.durable import ItemCancelled, ItemExpired, ItemFailed, QueueFull
from microbatch.http._statuses import (
    STATUS,
    atomic_status,
    batch_status,
    code_for,
    retryable_for,
    status_for,
    text_for,
)

ERRORS = [
    (BatchAborted(0, ValueError("secret")), "aborted", 424, False),
    (BatcherFull("secret", "max_pending", 1), "full", 503, True),
    (QueueFull("secret", "max_depth", 1), "full", 503, True),
    (BatcherClosed("secret"), "closed", 503, True),
    (HandlerStuck("secret", 9, 8), "handler_stuck", 503, True),
    (HandlerTimeout("secret", 3), "handler_timeout", 504, False),
    (ItemExpired(5), "expired", 504, False),
    (ItemCancelled(5), "cancelled", 409, False),
    (HandlerCrashed("secret", "SystemExit"), "internal_error", 500, False),
    (ResultCountError(1, 2, "secret"), "internal_error", 500, False),
    (WouldDeadlock("secret", "submit"), "internal_error", 500, False),
    (ValueError("secret"), "internal_error", 500, False),
    (ItemNotFound("7"), "not_found", 404, False),
    (ItemTooHeavy(5, 4), "item_too_heavy", 413, False),
    (RateLimited(), "rate_limited", 429, True),
    (ItemError("x", code="duplicate_email"), "duplicate_email", 409, False),
    (ItemError("x", code="odd", retryable=True), "odd", 500, True),
    (ItemFailed(1, "ValueError", "secret", 1), "internal_error", 500, False),
    (ItemFailed(1, "ItemError", "taken", 1, code="conflict"), "conflict", 409, False),
    (ItemFailed(1, "HandlerTimeout", "secret", 1, code="handler_timeout", retryable=True), "handler_timeout", 504, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code", "status", "retryable"), ERRORS, ids=lambda one: type(one).__name__
)
def test_what_is_told_of_an_error(
    error: Exception, code: str, status: int, retryable: bool
) -> None:
    """Its code, its status, whether to try again; never a text that may name what nobody should know."""
    assert code_for(error) == code
    assert status_for(code) == status
    assert retryable_for(error, code) is retryable
    text = text_for(error, code)
    assert (text is None) == (code == "internal_error")
    assert "secret" not in (text or "")


def test_the_statuses_of_codes() -> None:
    """The contract's table."""
    expected = {
        422: {"invalid_item", "validation_error"}, 404: {"not_found"}, 403: {"forbidden"},
        409: {"conflict", "duplicate*", "cancelled"}, 429: {"rate_limited", "too_many_requests"},
        413: {"item_too_heavy", "item_too_large"}, 424: {"aborted"}, 503: {"full", "closed", "handler_stuck"},
        400: {"unknown_collection", "unknown_method", "missing_id"}, 504: {"handler_timeout", "expired"},
    }  # fmt: skip
    assert {code: status for status, codes in expected.items() for code in codes} == STATUS


def test_a_code_of_the_application_may_not_be_a_success() -> None:
    """A failed item has a status of an error, whatever ``status_of`` says."""
    for own in (200, 99, 600, True, "409", None):
        assert status_for("odd", lambda code, own=own: own) == 500
    assert status_for("odd", lambda code: 418) == 418
    assert status_for("conflict", lambda code: 418) == 409
    assert status_for("duplicate_x", lambda code: 418) == 418
    assert status_for("internal_error", lambda code: 418) == 500


def test_the_status_of_a_batch() -> None:
    """All, some, none; and where it is all or nothing."""
    assert batch_status(succeeded=0, total=0, all_failed_status=422) == 200
    assert batch_status(succeeded=2, total=2, all_failed_status=422) == 200
    assert batch_status(succeeded=1, total=2, all_failed_status=422) == 207
    assert batch_status(succeeded=0, total=2, all_failed_status=422) == 422
    assert atomic_status(None, 0) == 200
    assert atomic_status(ItemError("x", code="conflict"), 409) == 409
    assert atomic_status(ValueError(), 500) == 500
    assert atomic_status(ItemError("x", code="odd"), 500) == 422
    assert atomic_status(ItemNotFound(1), 404) == 422
