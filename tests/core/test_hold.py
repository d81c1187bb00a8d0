"""Hold and Holds: how long, who goes first, and when the others may."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from microbatch import Backoff, RateLimited, Retry
from microbatch._core.hold import Hold, Holds
from microbatch._core.holding import PASSED_OVER, is_passed_over, refuse

RETRY = Retry(
    on=OSError, holds=3, backoff=Backoff(initial=1.0, factor=2.0, maximum=60.0, jitter=0.0)
)


def test_one_batch_goes_first_and_the_others_when_it_is_back() -> None:
    """Closed for the time, open for one, closed for the rest of them, open."""
    hold = Hold()
    hold.begin(5.0)
    assert (hold.closed, hold.awaited) == (True, True)
    assert not hold.pass_time(4.9)
    assert hold.pass_time(5.0)
    assert not hold.pass_time(6.0)
    assert not hold.closed
    hold.leave("probe")
    assert hold.closed
    hold.come_back("one that began before")
    assert hold.closed
    hold.come_back("probe")
    assert (hold.closed, hold.awaited, hold.probe) == (False, False, None)
    hold.leave("another")
    assert not hold.closed


def test_a_probe_that_was_refused_itself_opens_nothing() -> None:
    """Its end comes after its refusal, which began another hold."""
    hold = Hold()
    hold.begin(0.0)
    hold.pass_time(0.0)
    hold.leave("probe")
    hold.begin(9.0)
    hold.come_back("probe")
    assert hold.closed


def test_refusals_in_a_row_are_counted_by_eras() -> None:
    """Calls that began before the hold are late: they make it longer, and count as nothing."""
    hold = Hold()
    first = refuse(hold, RateLimited(), 0, RETRY, 10.0)
    assert (first.waits, first.began, first.spent, hold.until) == (True, True, False, 11.0)
    late = refuse(hold, RateLimited(), 0, RETRY, 10.5)
    assert (late.waits, late.began, hold.until) == (False, False, 11.0)
    shorter = refuse(hold, RateLimited(retry_after=0.1), 0, RETRY, 10.5)
    assert (shorter.waits, hold.until) == (False, 11.0)
    longer = refuse(hold, RateLimited(retry_after=500), 0, RETRY, 10.5)
    assert (longer.waits, longer.began, hold.until) == (True, False, 70.5)
    assert hold.refusals == 1
    second = refuse(hold, RateLimited(), hold.era, RETRY, 80.0)
    assert (second.spent, hold.refusals, hold.until) == (False, 2, 82.0)
    third = refuse(hold, RateLimited(), hold.era, RETRY, 90.0)
    assert (third.began, third.spent, hold.until) == (True, True, 94.0)
    hold.pass_time(94.0)
    hold.leave("probe")
    hold.come_back("probe")  # failed otherwise: the row goes on
    late = refuse(hold, RateLimited(), 1, RETRY, 95.0)
    assert (late.began, late.spent, hold.refusals, hold.until) == (True, False, 3, 99.0)


def test_a_retrys_own_hold_must_be_a_number() -> None:
    """What it returns otherwise must not stop the clock of a partition."""

    class Odd(Retry):
        def hold(self, error: Exception, refusals: int, chance: Any = None) -> float:
            return -1.0

    hold = Hold()
    with pytest.raises(ValueError, match="delay must be at least 0"):
        refuse(hold, RateLimited(), 0, Odd(on=OSError), 0.0)
    assert (hold.closed, hold.refusals, hold.era) == (False, 0, 0)


def test_who_is_passed_over_is_counted_while_it_is_the_first() -> None:
    """Another one at the front begins anew: the first one has gone on."""
    hold = Hold()
    most = PASSED_OVER * RETRY.holds
    for _ in range(most - 1):
        assert not is_passed_over(hold, 7, RETRY)
    assert is_passed_over(hold, 7, RETRY)
    assert not is_passed_over(hold, 8, RETRY)
    assert not is_passed_over(hold, 7, RETRY)


def test_holds_tell_who_is_over_and_when_the_next_one_is() -> None:
    """Ones that were made longer stand in the heap twice, and count once."""
    holds = Holds()
    assert (bool(holds), holds.deadline(), holds.last(), holds.over(9.0)) == (False, None, None, [])
    owners = [SimpleNamespace(hold=Hold()) for _ in range(3)]
    for owner, until in zip(owners, (5.0, 3.0, 4.0), strict=True):
        owner.hold.begin(until)
        holds.add(owner)
    assert (holds.deadline(), holds.last()) == (3.0, 5.0)
    owners[1].hold.extend(6.0)
    holds.add(owners[1])
    assert holds.over(3.5) == []
    assert (holds.deadline(), holds.last()) == (4.0, 6.0)
    assert holds.over(5.0) == [owners[2], owners[0]]
    owners[1].hold.extend(8.0)
    holds.add(owners[1])
    assert holds.deadline() == 8.0
    assert holds.over(8.0) == [owners[1]]
    assert (holds.deadline(), holds.last()) == (None, None)
    owners[0].hold.begin(9.0)
    holds.add(owners[0])
    holds.clear()
    assert not holds
