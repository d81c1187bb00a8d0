"""waiters: who waits for an item when that is not one caller with a future."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch import Skipped
from microbatch._core.waiters import Group, Member, Shared, dressed


class Caller:
    """A waiter that counts how often it is told."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.gone = False

    def done(self) -> bool:
        return self.gone or bool(self.results)

    def set_result(self, result: Any) -> None:
        assert not self.done()
        self.results.append(result)

    def set_exception(self, error: Exception) -> None:
        assert not self.done()
        self.results.append(error)


def group(total: int, first_id: int = 0) -> Group:
    made = Group(total, first_id)
    made.waiter = Caller()
    return made


def members(of: Group, *indices: int) -> list[Member]:
    return [Member((of, index)) for index in indices]


# groups


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)), st.integers(0, 99))
def test_a_groups_report_has_every_outcome_in_the_items_order(
    order: list[int], failing: set[int], first_id: int
) -> None:
    """Whatever order they end in; the last one wakes the caller, and it alone."""
    whole = group(6, first_id)
    for position, index in enumerate(order):
        assert not whole.waiter.done()
        assert not Member((whole, index)).done()
        assert whole.left == 6 - position
        if index in failing:
            Member((whole, index)).set_exception(KeyError(index))
        else:
            Member((whole, index)).set_result(index * 10)
    assert whole.left == 0
    assert whole.waiter.results == [None]
    assert Member((whole, 0)).done()
    report = whole.report()
    assert [outcome.index for outcome in report] == list(range(6))
    assert [outcome.id for outcome in report] == list(range(first_id, first_id + 6))
    assert [outcome.ok for outcome in report] == [index not in failing for index in range(6)]
    assert [outcome.value for outcome in report] == [
        None if index in failing else index * 10 for index in range(6)
    ]
    assert [outcome.error for outcome in report] == [whole.errors.get(i) for i in range(6)]
    assert {outcome.attempts for outcome in report} == {1}


def test_a_run_of_values_goes_in_at_once() -> None:
    """A batch of one group's items costs one copy, not a call for each."""
    whole = group(5, 7)
    whole.take_in(1, ["b", "c"])
    assert whole.left == 3
    assert not whole.waiter.done()
    whole.take_in(3, ["d", "e"])
    assert not whole.waiter.done()
    whole.take_in(0, ["a"])
    assert whole.left == 0
    assert whole.waiter.results == [None]
    assert whole.report().values() == ["a", "b", "c", "d", "e"]
    assert [outcome.id for outcome in whole.report()] == [7, 8, 9, 10, 11]


def test_what_never_reached_a_handler_had_no_attempt() -> None:
    """An item that found no room was not tried; one that was retried says how often."""
    whole = group(3)
    full, skipped = ValueError("full"), Skipped("seen")
    whole.fail(1, full)
    assert whole.left == 2
    whole.fail(2, skipped, attempts=4)
    whole.attempts[0] = 2
    Member((whole, 0)).set_result("a")
    report = whole.report()
    assert [outcome.attempts for outcome in report] == [2, 0, 4]
    assert [outcome.error for outcome in report] == [None, full, skipped]
    assert [outcome.skipped for outcome in report] == [False, False, True]
    assert (report.succeeded, report.failed, report.skipped) == (1, 1, 1)
    assert report[0].value == "a"
    assert report[0].id == 0
    assert whole.waiter.results == [None]


def test_attempts_are_told_of_a_group_without_errors_too() -> None:
    """An item that came through at the second attempt is a success with a history."""
    whole = group(2)
    whole.attempts[1] = 3
    whole.take_in(0, ["a", "b"])
    assert [outcome.attempts for outcome in whole.report()] == [1, 3]


@pytest.mark.parametrize("end", ["result", "error", "run"])
def test_a_group_whose_caller_has_gone_wakes_nobody(end: str) -> None:
    """A cancelled future must not be set: asyncio would raise in the middle of a batch."""
    whole = group(1)
    whole.waiter.gone = True
    if end == "result":
        Member((whole, 0)).set_result(5)
    elif end == "error":
        Member((whole, 0)).set_exception(KeyError())
    else:
        whole.take_in(0, [5])
    assert whole.left == 0
    assert whole.waiter.results == []


# runs of members


def test_a_group_stands_for_each_of_its_members_until_somebody_looks() -> None:
    """They keep their order, so a counter tells which is which, however they leave."""
    whole, caller = group(3), Caller()
    first, second, third = dressed([whole, caller, whole])
    assert type(first) is type(third) is Member
    assert (first, third) == ((whole, 0), (whole, 1))
    assert second is caller
    assert dressed([whole]) == [(whole, 2)]


# shared slots


def test_sharers_get_one_result_and_an_exception_each() -> None:
    """None of them sees what another does to its exception."""
    callers = [Caller(), Caller(), Caller()]
    callers[1].gone = True
    shared = Shared(dict.fromkeys(callers))
    assert not shared.done()
    shared.set_result(5)
    assert [caller.results for caller in callers] == [[5], [], [5]]
    assert shared.done()

    callers = [Caller(), Caller(), Caller()]
    callers[0].gone = True
    shared = Shared(dict.fromkeys(callers))
    error = KeyError("k")
    shared.set_exception(error)
    second, third = callers[1].results[0], callers[2].results[0]
    assert callers[0].results == []
    assert repr(second) == repr(third) == repr(error)
    assert len({id(error), id(second), id(third)}) == 3


def test_a_shared_slot_is_done_when_all_its_sharers_are() -> None:
    """One who still waits keeps it."""
    callers = [Caller(), Caller()]
    shared = Shared(dict.fromkeys(callers))
    callers[0].gone = True
    assert not shared.done()
    callers[1].gone = True
    assert shared.done()
