"""The planner's decisions one by one: what is merged, what is not, and why."""

from __future__ import annotations

from typing import Any

import pytest
from ranges_support import made

from microbatch.durable._file import ranges
from microbatch.durable._file.records import Settlement, State, Verdict

DONE = {"state": 3, "due": 0.0, "since": 100.0, "ended_at": 100.0, "keep_until": 180.0, "ended": 1}


def test_neighbours_that_are_alike_become_one() -> None:
    """A batch that comes back as ten verdicts is one row again."""
    assert ranges.merge([made(3, 2), made(1, 2), made(5)]) == [made(1, 5)]


@pytest.mark.parametrize(
    "other",
    [
        {"first": 4},
        {"queue": 2},
        {"lane": 1},
        {"state": 1},
        {"priority": 1},
        {"due": 11.0},
        {"since": 11.0},
        {"attempts": 1},
        {"deaths": 1},
        {"apart": 3},
        {"consumer": 1},
        {"claim": 1},
        {"ticket": 8},
        {"job": 1},
        {"position": 4},
        {"key": "k"},
        {"enqueued": 11.0},
    ],
)
def test_neighbours_that_differ_stay_apart(other: dict[str, Any]) -> None:
    """Each of these would be lost for one of the two."""
    left, right = made(1, 2), made(3)._replace(**other)
    assert ranges.merge([left, right]) == [left, right]


def test_a_job_s_items_merge_where_their_places_follow() -> None:
    """A million items of a job are a thousand rows."""
    left, right = made(1, 2, job=1, position=5), made(3, 2, job=1, position=7)
    assert ranges.merge([left, right]) == [made(1, 4, job=1, position=5)]


def test_a_range_has_ten_thousand_items_at_most() -> None:
    """What one step of upkeep can bear."""
    assert len(ranges.merge([made(1, 9_999), made(10_000)])) == 1
    assert len(ranges.merge([made(1, 10_000), made(10_001)])) == 2


def test_what_ended_one_after_the_other_is_one_range_with_the_last_times() -> None:
    """A lone caller's items would otherwise be a row each for a day."""
    early = made(1, **DONE)
    late = made(2, **DONE | {"since": 105.0, "ended_at": 105.0, "keep_until": 185.0, "ended": 2})
    late = late._replace(enqueued=104.0)
    assert ranges.merge([early, late]) == [
        made(1, 2, **DONE | {"ended_at": 105.0, "keep_until": 185.0, "ended": 2})
    ]


def test_dead_letters_keep_their_own_times() -> None:
    """`dead_letters` shows when each was enqueued and when it died."""
    dead = DONE | {"state": 7, "keep_until": None}
    assert len(ranges.merge([made(1, **dead), made(2, **dead)])) == 1
    assert len(ranges.merge([made(1, **dead), made(2, **dead | {"ended_at": 101.0})])) == 2


def test_a_whole_batch_that_fails_alike_is_one_range() -> None:
    """A database that is down sends every batch into back-off: a row each would be a thousand."""
    held = [made(1, 50, state=2, consumer=1, claim=4)]
    verdicts = [Verdict(n, State.SCHEDULED, b"", 3.0) for n in range(1, 51)]
    ends = ranges.Ends(200.0, 1, 300.0, {})
    _, new, settled = ranges.settle_ranges(held, Settlement(4, [], [], verdicts), ends)
    assert len(settled) == 50
    assert ranges.merge(new) == [made(1, 50, state=1, due=203.0, since=200.0, attempts=1)]


def test_an_outcome_that_is_named_twice_counts_once() -> None:
    """The first word stands."""
    held = [made(1, 2, state=2, consumer=1, claim=4)]
    verdicts = [Verdict(1, State.DEAD), Verdict(2, State.DEAD), Verdict(2, State.SCHEDULED)]
    _, new, _ = ranges.settle_ranges(
        held, Settlement(4, [1], [None], verdicts), ranges.Ends(200.0, 1, 300.0, {})
    )
    assert [(one.first, one.state, one.attempts) for one in new] == [(1, 3, 1), (2, 7, 1)]


def test_two_deaths_alone_are_a_dead_letter() -> None:
    """Whatever attempts are left: a third process would die of it."""
    one = made(1, state=2, consumer=1, claim=1)
    ((again,), dead) = ranges.take_back_ranges([one], 9, 200.0, 1)
    assert (again.state, again.deaths, again.attempts, again.apart) == (0, 1, 1, 1)
    assert dead == []
    ((last,), dead) = ranges.take_back_ranges([again._replace(state=2, claim=2)], 9, 201.0, 2)
    assert (last.state, last.deaths, last.attempts, last.ended) == (7, 2, 2, 2)
    assert dead == [last]


def test_tenths_follow_the_order_of_handling_over_several_ranges() -> None:
    """The urgent ones of a dead claim are urgent still."""
    held = [made(1, 10, state=2, claim=1), made(20, 10, state=2, claim=1, priority=5)]
    parts, _ = ranges.take_back_ranges(held, 9, 0.0, 1)
    assert [(one.first, one.count, one.apart) for one in parts][:6] == [
        (20, 2, 20), (22, 2, 22), (24, 2, 24), (26, 2, 26), (28, 2, 28), (1, 2, 1),
    ]  # fmt: skip


def test_tenths_never_span_two_lanes() -> None:
    """A group that must be claimed together could not be, while one of its lanes is closed."""
    held = [made(1, 3, state=2, claim=1), made(9, 17, state=2, claim=1, lane=4)]
    parts, _ = ranges.take_back_ranges(held, 9, 0.0, 1)
    assert [(one.first, one.count, one.lane, one.apart) for one in parts][:4] == [
        (1, 2, 0, 1), (3, 1, 0, 3), (9, 2, 4, 9), (11, 2, 4, 11),
    ]  # fmt: skip


def test_a_requeued_item_begins_anew() -> None:
    """Attempts and deaths of its former life would end it at once."""
    dead = made(1, **DONE | {"state": 7, "keep_until": None}, attempts=3, deaths=2)
    assert ranges.ready(dead, 50.0) == made(1, due=50.0, since=50.0)
