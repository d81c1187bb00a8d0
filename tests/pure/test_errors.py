"""errors: one tree; each class keeps its fields, says them, and can be copied and pickled."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

import microbatch
from microbatch import errors
from microbatch._pure.report import BatchReport, error_code, outcome_of

MESSAGES: list[tuple[errors.MicrobatchError, str]] = [
    (
        errors.BatcherFull("orders", "max_pending", 5),
        "batcher 'orders' is full: max_pending=5 is reached",
    ),
    (
        errors.BatcherFull("orders", "max_pending_weight", 2.5),
        "batcher 'orders' is full: max_pending_weight=2.5 is reached",
    ),
    (
        errors.BatcherClosed("orders"),
        "batcher 'orders' is closed: this item was not handled",
    ),
    (
        errors.BatcherClosed("orders", started=True),
        "batcher 'orders' was closed while the handler was working on this item",
    ),
    (
        errors.BatchAborted(3, KeyError("name")),
        "the batch was aborted because its item 3 failed: KeyError: 'name'",
    ),
    (errors.ItemError("no such user"), "no such user"),
    (errors.ItemError(code="gone"), "gone"),
    (errors.ItemError(), "item_error"),
    (
        errors.BatchAborted(3, KeyError("name"), "orders"),
        "the batch of batcher 'orders' was aborted because its item 3 failed: KeyError: 'name'",
    ),
    (errors.ItemNotFound(7), "nothing was found for 7"),
    (errors.Skipped("seen before"), "seen before"),
    (errors.Skipped(), "skipped"),
    (errors.RateLimited("slow down", retry_after=2), "slow down"),
    (errors.RateLimited(), "the backend takes nothing now"),
    (
        errors.RateLimited(retry_after=2.5),
        "the backend takes nothing now, and may be asked again in 2.5 s",
    ),
    (
        errors.ItemTooHeavy(12, 10),
        "an item of weight 12 is over max_batch_weight=10",
    ),
    (
        errors.ItemTooHeavy(1.5, 1.0, "max_pending_weight"),
        "an item of weight 1.5 is over max_pending_weight=1.0",
    ),
    (
        errors.ResultCountError(3, 2),
        "the handler must give one result for each of its 3 items, got 2",
    ),
    (
        errors.ResultCountError(3, 2, "index 1 came twice"),
        "the handler must give one result for each of its 3 items: index 1 came twice",
    ),
    (
        errors.ResultCountError(3, 2, name="orders"),
        "the handler of batcher 'orders' must give one result for each of its 3 items, got 2",
    ),
    (
        errors.ItemTooHeavy(12, 10, name="orders"),
        "an item of weight 12 is over max_batch_weight=10 of batcher 'orders'",
    ),
    (
        errors.HandlerTimeout("orders", 2.5),
        "the handler of batcher 'orders' took longer than handler_timeout=2.5 s",
    ),
    (
        errors.HandlerCrashed("orders", "SystemExit"),
        "the handler of batcher 'orders' crashed with SystemExit",
    ),
    (
        errors.HandlerStuck("orders", 9, 8),
        "9 handler calls of batcher 'orders' ignore their timeout, more than 8: no new batch is started until some of them end",
    ),
    (
        errors.WouldDeadlock("orders", "flush"),
        "flush() inside a handler of batcher 'orders' would wait for the batch that is running it; use submit_nowait() and do not await it there",
    ),
]
IDS = [f"{type(error).__name__}-{index}" for index, (error, _) in enumerate(MESSAGES)]


@pytest.mark.parametrize(("error", "message"), MESSAGES, ids=IDS)
def test_every_error_says_what_happened_and_where(error: Exception, message: str) -> None:
    """The text is all that a log has."""
    assert str(error) == message


@pytest.mark.parametrize("error", [error for error, _ in MESSAGES], ids=IDS)
@pytest.mark.parametrize("way", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_copies_and_pickles_keep_type_text_and_fields(error: Exception, way: Any) -> None:
    """Errors travel between processes, and each caller raises a copy of its own."""
    other = way(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert repr(other.args) == repr(error.args)
    assert repr(vars(other)) == repr(vars(error))


def test_the_fields_are_the_constructors_arguments() -> None:
    """What the message says, a program can read."""
    full = errors.BatcherFull("orders", "max_pending", 5)
    assert (full.name, full.limit, full.allowed) == ("orders", "max_pending", 5)
    closed = errors.BatcherClosed("orders")
    assert (closed.name, closed.started) == ("orders", False)
    assert errors.BatcherClosed("orders", started=True).started is True
    reason = KeyError("name")
    aborted = errors.BatchAborted(3, reason)
    assert (aborted.index, aborted.reason) == (3, reason)
    count = errors.ResultCountError(3, 2, "why")
    assert (count.expected, count.got, count.detail) == (3, 2, "why")
    assert errors.ResultCountError(3, 2).detail == ""
    missing = errors.ItemNotFound((1, "a"))
    assert (missing.key, missing.code, missing.retryable) == ((1, "a"), "not_found", False)
    for named in (count, aborted, errors.ItemTooHeavy(2, 1)):
        assert named.name is None  # type: ignore[attr-defined]
    timeout = errors.HandlerTimeout("orders", 2.5)
    assert (timeout.name, timeout.seconds) == ("orders", 2.5)
    crashed = errors.HandlerCrashed("orders", "SystemExit")
    assert (crashed.name, crashed.kind) == ("orders", "SystemExit")
    stuck = errors.HandlerStuck("orders", 9, 8)
    assert (stuck.name, stuck.stuck, stuck.allowed) == ("orders", 9, 8)
    deadlock = errors.WouldDeadlock("orders", "flush")
    assert (deadlock.name, deadlock.call) == ("orders", "flush")


def test_every_error_keeps_its_fields_in_args() -> None:
    """So that repr shows them and copies can be made without running a constructor."""
    assert errors.BatcherFull("orders", "max_pending", 5).args == ("orders", "max_pending", 5)
    assert errors.BatcherClosed("orders").args == ("orders", False)
    reason = KeyError("name")
    assert errors.BatchAborted(3, reason).args == (3, reason)
    assert errors.ItemError("why", code="gone").args == ("why",)
    assert errors.ItemNotFound("k").args == ("k",)
    assert errors.ResultCountError(3, 2, "why", "orders").args == (3, 2, "why", "orders")
    assert errors.ResultCountError(3, 2, "why").args == (3, 2, "why")
    assert errors.HandlerTimeout("orders", 2.5).args == ("orders", 2.5)
    assert errors.HandlerCrashed("orders", "SystemExit").args == ("orders", "SystemExit")
    assert errors.HandlerStuck("orders", 9, 8).args == ("orders", 9, 8)
    assert errors.WouldDeadlock("orders", "flush").args == ("orders", "flush")


def test_an_item_error_carries_what_a_program_can_act_on() -> None:
    """Code, retryable and the rest; nothing of it is guessed."""
    error = errors.ItemError(
        "slow down", code="rate", retryable=True, retry_after=2.5, field="email", details={"a": 1}
    )
    assert (error.message, error.code) == ("slow down", "rate")
    assert (error.retryable, error.retry_after) == (True, 2.5)
    assert (error.field, error.details) == ("email", {"a": 1})
    bare = errors.ItemError()
    assert (bare.message, bare.code) == ("", "item_error")
    assert (bare.retryable, bare.retry_after) == (None, None)
    assert (bare.field, bare.details) == (None, None)


def test_skipped_and_too_heavy_are_never_retried() -> None:
    """Sending the same item again cannot help."""
    skipped = errors.Skipped("seen before", code="duplicate", details=[1])
    assert skipped.retryable is False
    assert (skipped.reason, skipped.code, skipped.details) == ("seen before", "duplicate", [1])
    assert (errors.Skipped().reason, errors.Skipped().code) == ("", "skipped")
    refused = errors.RateLimited("slow down", retry_after=2, details=[1])
    assert (refused.code, refused.retryable, refused.retry_after) == ("rate_limited", True, 2)
    assert refused.details == [1]
    heavy = errors.ItemTooHeavy(12, 10)
    assert heavy.retryable is False
    assert (heavy.weight, heavy.allowed, heavy.limit) == (12, 10, "max_batch_weight")
    assert heavy.code == "item_too_heavy"


@pytest.mark.parametrize(
    ("error", "standard"),
    [
        (errors.ItemTooHeavy(12, 10), ValueError),
        (errors.HandlerTimeout("orders", 1), TimeoutError),
        (errors.WouldDeadlock("orders", "submit"), RuntimeError),
        (errors.BatcherFull("orders", "max_pending", 5), errors.Full),
        (errors.Skipped(), errors.ItemError),
        (errors.RateLimited(), errors.ItemError),
        (errors.ItemTooHeavy(12, 10), errors.ItemError),
    ],
)
def test_errors_are_what_their_standard_kind_says(
    error: Exception, standard: type[Exception]
) -> None:
    """Code that knows nothing of microbatch catches them."""
    assert isinstance(error, standard)


def test_every_error_stands_in_the_tree_of_the_docstring_and_in_the_package() -> None:
    """A class that is not drawn there is not found by who must catch it."""
    drawn = set(re.findall(r"(?:├─|└─) (\w+)", errors.__doc__ or "")) | {"MicrobatchError"}
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }
    assert drawn == defined == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), errors.MicrobatchError) for name in defined)
    assert all(getattr(microbatch, name) is getattr(errors, name) for name in defined)


def failed_batch() -> errors.BatchFailed:
    report: BatchReport[int] = BatchReport(
        [outcome_of(0, 1), outcome_of(1, KeyError("a")), outcome_of(2, ValueError("b"))]
    )
    with pytest.raises(errors.BatchFailed) as caught:
        report.values()
    return caught.value


def test_a_failed_batch_is_a_group_with_its_report() -> None:
    """Who wants all outcomes has them; who wants one kind takes it by except*."""
    error = failed_batch()
    assert error.message == "2 of 3 items failed"
    assert error.args == (error.message, list(error.exceptions))
    assert [type(one) for one in error.exceptions] == [KeyError, ValueError]
    assert error.report.total == 3
    seen: list[tuple[int, int]] = []
    try:
        raise error
    except* KeyError as group:
        seen.append((len(group.exceptions), group.report.total))  # type: ignore[attr-defined]
    except* ValueError as group:
        seen.append((len(group.exceptions), group.report.total))  # type: ignore[attr-defined]
    assert seen == [(1, 3), (1, 3)]


def test_the_parts_of_a_failed_batch_are_failed_batches() -> None:
    """split and subgroup keep the type, the message and the report."""
    error = failed_batch()
    matching, rest = error.split(KeyError)
    assert type(matching) is type(rest) is errors.BatchFailed
    assert matching.message == error.message
    assert matching.report is rest.report is error.report


def test_a_failed_batch_can_be_pickled() -> None:
    """With its report: a worker process must be able to hand it home."""
    error = failed_batch()
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is errors.BatchFailed
    assert str(other) == str(error)
    assert [type(one) for one in other.exceptions] == [KeyError, ValueError]
    assert other.report.errors == {"internal_error": 2}


def test_every_code_is_a_name_in_snake_case() -> None:
    """Reports count by them, dashboards show them."""
    codes = {error_code(error) for error, _ in MESSAGES}
    assert codes == {
        "batcher_full",
        "batcher_closed",
        "batch_aborted",
        "item_error",
        "gone",
        "not_found",
        "skipped",
        "item_too_heavy",
        "result_count_error",
        "handler_timeout",
        "handler_crashed",
        "handler_stuck",
        "rate_limited",
        "would_deadlock",
    }
