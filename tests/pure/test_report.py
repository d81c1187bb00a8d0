"""report: what became of each item, and the report of many."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch import (
    BatcherFull,
    BatchFailed,
    BatchReport,
    HandlerTimeout,
    ItemError,
    Outcome,
    ResultCountError,
    Skipped,
)
from microbatch._pure.report import error_code, outcome_of

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
errors = st.one_of(
    st.builds(KeyError, st.text(max_size=5)),
    st.builds(OSError, st.integers(1, 99), st.text(max_size=5)),
    st.builds(Skipped, st.text(max_size=5), details=values),
    st.builds(
        ItemError,
        st.text(max_size=5),
        code=st.sampled_from(["gone", "rate"]),
        retryable=st.none() | st.booleans(),
        field=st.none() | st.text(max_size=5),
        details=values,
    ),
    st.builds(HandlerTimeout, st.text(max_size=5), st.floats(0, 9)),
    st.builds(ResultCountError, st.integers(0, 9), st.integers(0, 9)),
)
results = values | errors


@given(
    values, st.integers(0, 9), st.integers(0, 9), st.none() | st.integers() | st.text(max_size=3)
)
def test_a_value_makes_a_good_outcome(value: Any, index: int, attempts: int, ticket: Any) -> None:
    """Whatever it is, None included."""
    assert outcome_of(index, value, attempts=attempts, id=ticket) == Outcome(
        index=index, ok=True, value=value, error=None, skipped=False, attempts=attempts, id=ticket
    )
    assert outcome_of(index, value) == Outcome(index=index, ok=True, value=value)


@given(errors, st.integers(0, 9), st.integers(0, 9), st.none() | st.integers())
def test_an_exception_makes_a_failed_outcome(
    error: Exception, index: int, attempts: int, ticket: Any
) -> None:
    """Skipped is told apart, so that it is not counted as a failure."""
    assert outcome_of(index, error, attempts=attempts, id=ticket) == Outcome(
        index=index,
        ok=False,
        value=None,
        error=error,
        skipped=isinstance(error, Skipped),
        attempts=attempts,
        id=ticket,
    )
    assert outcome_of(index, error).attempts == 1
    assert outcome_of(index, error).id is None


def test_an_outcomes_defaults_are_those_of_a_first_good_attempt() -> None:
    """Only index and ok have to be said."""
    outcome: Outcome[None] = Outcome(4, ok=True)
    assert dataclasses.astuple(outcome) == (4, True, None, None, False, 1, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.ok = False  # type: ignore[misc]


def test_codes_are_the_errors_own_or_say_no_more_than_internal_error() -> None:
    """A foreign class's name tells strangers what the house is built of."""
    assert Outcome(0, ok=True, value=1).code is None
    assert Outcome(0, ok=False, error=ItemError("x", code="gone")).code == "gone"
    assert Outcome(0, ok=False, error=HandlerTimeout("n", 1)).code == "handler_timeout"
    assert Outcome(0, ok=False, error=KeyError("secret")).code == "internal_error"
    assert error_code(BatcherFull("n", "max_pending", 1)) == "batcher_full"
    assert error_code(KeyboardInterrupt()) == "internal_error"


@given(
    st.integers(0, 99),
    results,
    st.integers(0, 9),
    st.none() | st.integers(0, 9) | st.text(max_size=3),
)
def test_a_dict_of_an_outcome_goes_through_json_and_messagepack_and_back(
    index: int, result: Any, attempts: int, ticket: Any
) -> None:
    """What is stored or sent away must come back as it was."""
    outcome = outcome_of(index, result, attempts=attempts, id=ticket)
    told = outcome.as_dict()
    assert msgspec.json.decode(msgspec.json.encode(told)) == told
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told)) == told
    assert list(told) == ["index", "id", "ok", "skipped", "attempts", "value", "error"]
    assert (told["index"], told["id"], told["attempts"]) == (index, ticket, attempts)
    assert (told["ok"], told["skipped"]) == (outcome.ok, outcome.skipped)
    assert told["value"] == outcome.value
    assert (told["error"] is None) == outcome.ok
    if told["error"] is not None:
        assert told["error"]["code"] == outcome.code


def test_what_became_of_an_item_is_told_in_one_word() -> None:
    """The two flags beside it say the same, and a `match` needs one."""
    assert outcome_of(0, None).kind == "succeeded"
    assert outcome_of(0, KeyError(1)).kind == "failed"
    assert outcome_of(0, Skipped("known")).kind == "skipped"


@given(results)
def test_unwrapping_gives_the_value_or_raises_the_error(result: Any) -> None:
    """What a caller of that one item would have got, None included."""
    outcome = outcome_of(0, result)
    if not outcome.ok:
        with pytest.raises(type(result)) as raised:
            outcome.unwrap()
        assert raised.value is outcome.error
    else:
        assert outcome.unwrap() is result


def test_a_foreign_exceptions_text_stays_inside() -> None:
    """It may hold a password or a row of somebody else's."""
    told = outcome_of(0, ValueError("password=hunter2")).as_dict()
    assert told["error"] == {"code": "internal_error", "message": "internal error"}


def test_an_item_errors_fields_are_shown_where_they_are_set() -> None:
    """They were written to be read; what is not set is not there."""
    told = outcome_of(
        0, ItemError("bad", code="bad_email", retryable=False, field="email", details={"a": (1, 2)})
    ).as_dict()
    assert told["error"] == {
        "code": "bad_email",
        "message": "bad",
        "retryable": False,
        "field": "email",
        "details": {"a": (1, 2)},
    }
    assert outcome_of(0, ItemError("bad")).as_dict()["error"] == {
        "code": "item_error",
        "message": "bad",
    }
    assert outcome_of(0, HandlerTimeout("orders", 2)).as_dict()["error"] == {
        "code": "handler_timeout",
        "message": "the handler of batcher 'orders' took longer than handler_timeout=2 s",
    }


def test_a_value_is_made_of_built_in_types() -> None:
    """Structs and dataclasses become dicts; what msgspec does not know is refused."""

    @dataclasses.dataclass
    class Row:
        name: str

    assert outcome_of(0, Row("a")).as_dict()["value"] == {"name": "a"}
    with pytest.raises(TypeError):
        outcome_of(0, object()).as_dict()


@given(st.lists(results, max_size=12))
def test_the_counts_of_a_report_always_add_up(given_results: list[Any]) -> None:
    """total == succeeded + failed + skipped, and the codes count what did not succeed."""
    report: BatchReport[Any] = BatchReport(
        outcome_of(index, result) for index, result in enumerate(given_results)
    )
    failures = [result for result in given_results if isinstance(result, Exception)]
    skips = [result for result in failures if isinstance(result, Skipped)]
    assert report.total == len(report) == len(given_results)
    assert report.total == report.succeeded + report.failed + report.skipped
    assert report.succeeded == len(given_results) - len(failures)
    assert report.skipped == len(skips)
    assert sum(report.errors.values()) == report.failed + report.skipped
    assert all(
        number == sum(outcome.code == code for outcome in report)
        for code, number in report.errors.items()
    )
    if failures:
        with pytest.raises(
            BatchFailed, match=f"^{len(failures)} of {report.total} items failed"
        ) as caught:
            report.values()
        assert list(caught.value.exceptions) == failures
        assert caught.value.report is report
    else:
        assert report.values() == given_results


def test_a_report_is_a_sequence_of_its_outcomes() -> None:
    """In the order of the items, whatever order they ended in."""
    outcomes = [outcome_of(0, "a"), outcome_of(1, KeyError("x")), outcome_of(2, Skipped("y"))]
    report: BatchReport[str] = BatchReport(iter(outcomes))
    assert list(report) == outcomes
    assert report[1] is outcomes[1]
    assert report[-1] is outcomes[2]
    assert report[:2] == tuple(outcomes[:2])
    assert outcomes[0] in report
    with pytest.raises(IndexError):
        report[3]
    assert re.fullmatch(
        r"<BatchReport total=3 succeeded=1 failed=1 skipped=1 "
        r"errors=\{'internal_error': 1, 'skipped': 1\}>",
        repr(report),
    )
    assert report.errors == {"internal_error": 1, "skipped": 1}
    assert type(report.errors) is dict


def test_an_error_whose_text_raises_is_described_by_its_class() -> None:
    """A report must be made of whatever handlers raise."""

    class Mute(ItemError):
        def __str__(self) -> str:
            raise LookupError

    described = outcome_of(0, Mute("x", code="mute")).as_dict()["error"]
    assert described == {"code": "mute", "message": "Mute"}
