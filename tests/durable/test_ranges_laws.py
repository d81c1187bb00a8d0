"""Laws of the planner: whatever is done to ranges is done to their items, one by one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ranges_support import item, items_of, made

from microbatch.durable._file import ranges
from microbatch.durable._file.records import ENDED, Range, Settlement, State, Verdict

STATES = [int(state) for state in State]


@st.composite
def rows(draw: Any, states: Any = None, size: int = 6) -> list[Range]:
    """Draw ranges beside and apart from each other, alike and not alike, with ids ascending."""
    found: list[Range] = []
    first = 1
    position = 0
    for _ in range(draw(st.integers(0, size))):
        first += draw(st.sampled_from([0, 0, 0, 1, 5]))
        count = draw(st.integers(1, 5))
        state = draw(st.sampled_from(states or STATES))
        key = draw(st.sampled_from([None, None, None, "k"])) if count == 1 else None
        job = draw(st.sampled_from([None, None, 3]))
        ended = state in ENDED
        at = draw(st.sampled_from([100.0, 100.0, 101.0, 130.0]))
        found.append(
            made(
                first,
                count,
                state=state,
                lane=draw(st.sampled_from([0, 0, 0, 1])),
                priority=draw(st.sampled_from([0, 0, 0, 2])),
                due=0.0 if ended else draw(st.sampled_from([10.0, 10.0, 11.0])),
                since=at if ended else 10.0,
                attempts=draw(st.sampled_from([0, 0, 1])),
                apart=first if state == State.READY and draw(st.booleans()) else None,
                consumer=1 if state == State.CLAIMED else None,
                claim=draw(st.sampled_from([1, 1, 2])) if state == State.CLAIMED else None,
                job=job,
                position=None if job is None else position,
                key=key,
                ended_at=at if ended else None,
                keep_until=at + 80.0 if ended and state != State.DEAD and job is None else None,
                ended=draw(st.integers(1, 3)) if ended else None,
            )
        )
        first += count
        position += count
    return found


ids = st.lists(st.integers(0, 45), max_size=15)


@given(rows())
def test_merged_ranges_are_the_same_items(found: list[Range]) -> None:
    """A merge that moved an item to other neighbours would hand it out with their attempts or their priority."""
    merged = ranges.merge(reversed(found))
    assert [item(one, n) for one, n in items_of(merged)] == [
        item(one, n) for one, n in items_of(found)
    ]
    assert merged == ranges.merge(merged)
    for left, right in itertools.pairwise(merged):
        assert not ranges.joins(left, right)


@given(rows(states=[3, 4, 5, 6]))
def test_what_has_ended_is_kept_long_enough_and_not_much_longer(found: list[Range]) -> None:
    """A trickle of items merged without end would keep the first one for ever."""
    before = {n: one for one, n in items_of(found)}
    for one, number in items_of(ranges.merge(found)):
        old = before[number]
        if one.job is None:
            assert one.keep_until is not None
            assert old.keep_until is not None
            assert old.keep_until <= one.keep_until <= old.keep_until + 80.0 / ranges.SPREAD
        else:  # until its job goes
            assert one.keep_until is None
        assert one.ended is not None
        assert one.ended >= (old.ended or 0)
        assert one.enqueued <= old.enqueued


@given(rows(), ids)
def test_a_cut_range_is_the_same_items_in_order(found: list[Range], numbers: list[int]) -> None:
    """Each part knows whether it is wanted, and a part of a job keeps its place in it."""
    wanted = ranges.runs(numbers)
    for one in found:
        pieces = list(ranges.cut(one, wanted))
        cut = [(n, piece, inside) for piece, inside in pieces for _, n in items_of([piece])]
        assert [n for n, _, _ in cut] == [n for _, n in items_of([one])]
        for number, piece, inside in cut:
            assert inside == (number in numbers)
            assert item(piece, number) == item(one, number)


@given(ids)
def test_runs_are_the_ids_each_once_ascending(numbers: list[int]) -> None:
    """Ids come from callers: doubled, in any order."""
    found = ranges.runs(numbers)
    assert [n for first, last in found for n in range(first, last + 1)] == sorted(set(numbers))
    assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(found))


@given(rows())
def test_spans_are_the_ids_of_ranges(found: list[Range]) -> None:
    """Blobs, results and errors are found by them."""
    covered = ranges.spans(reversed(found))
    assert covered == ranges.runs(n for _, n in items_of(found))


@given(rows(), rows())
def test_a_change_turns_the_old_rows_into_the_new_ones(old: list[Range], new: list[Range]) -> None:
    """A row that is neither removed nor written over would be an item twice."""
    table = {one.first: one for one in old}
    remove, write, moved, jobs = ranges.change(old, new)
    for first in remove:
        del table[first]
    table.update((one.first, one) for one in write)
    assert sorted(table.values()) == sorted(new)
    assert not {one.first for one in write} & {one.first for one in old if one in new}
    for state in State:
        after, before = ([o.count for o in rows if o.state == state] for rows in (new, old))
        assert moved[state] == sum(after) - sum(before)
    for job in {one.job for one in (*old, *new)} - {None}:
        assert jobs is not None
        for state in State:
            after, before = (
                [o.count for o in rows if (o.state, o.job) == (state, job)] for rows in (new, old)
            )
            assert jobs[job][state] == sum(after) - sum(before)
    assert jobs is None or all(one.job is None for one in (*old, *new)) == (not jobs)


@given(rows(), ids)
def test_altered_items_are_those_that_were_named(found: list[Range], numbers: list[int]) -> None:
    """`purge` of one item must not take its neighbours along."""
    touched, new, parts = ranges.alter(
        found, ranges.runs(numbers), lambda one: None if one.count % 2 else one._replace(due=5.0)
    )
    assert {n for _, n in items_of(parts)} == {n for _, n in items_of(found)} & set(numbers)
    kept = {n: one for one, n in items_of(new)}
    for one, number in items_of(touched):
        if number not in numbers:
            assert item(kept[number], number) == item(one, number)
    assert {n for _, n in items_of(new)} <= {n for _, n in items_of(touched)}
    untouched = [one for one in found if one not in touched]
    assert not {n for _, n in items_of(untouched)} & set(numbers)


verdicts = st.sampled_from([State.SKIPPED, State.DEAD, State.SCHEDULED, State.READY])


@given(rows(states=[2], size=4), st.lists(st.sampled_from(["done", "left", *State]), max_size=20))
def test_a_settlement_settles_what_it_names(held: list[Range], how: list[Any]) -> None:
    """An item that is not named stays claimed; one that is not held is nobody's to settle."""
    numbers = [n for _, n in items_of(held)]
    chosen = dict(zip([*numbers, 99], how, strict=False))
    done = [n for n, way in chosen.items() if way == "done"]
    judged = [
        Verdict(n, way, None, 3.0, way != State.READY)
        for n, way in chosen.items()
        if way in (State.SKIPPED, State.DEAD, State.SCHEDULED, State.READY)
    ]
    settlement = Settlement(1, done, [None] * len(done), judged)
    ends = ranges.Ends(200.0, 9, 300.0, dict.fromkeys(numbers, 350.0))
    old, new, settled = ranges.settle_ranges(held, settlement, ends)
    assert settled == ({*done} | {verdict.id for verdict in judged}) & set(numbers)
    assert [n for _, n in items_of(new)] == [n for _, n in items_of(old)]
    before = {n: one for one, n in items_of(held)}
    assert settled <= {n for _, n in items_of(old)}
    for one, number in items_of(new):
        way = chosen.get(number)
        was = before[number]
        if number not in settled:
            assert item(one, number) == item(was, number)
            continue
        state = State.DONE if way == "done" else way
        assert one.state == state
        assert one.attempts == was.attempts + (state != State.READY)
        assert (one.consumer, one.claim) == (None, None)
        if state in ENDED:
            assert (one.ended, one.ended_at, one.due, one.apart) == (9, 200.0, 0.0, None)
            kept = 300.0 if one.key is None else 350.0
            assert one.keep_until == (None if state == State.DEAD or one.job is not None else kept)
        elif state == State.SCHEDULED:
            assert (one.due, one.since, one.apart) == (203.0, 200.0, None)
        else:
            assert (one.due, one.since, one.apart) == (was.due, was.since, was.apart)


@given(rows(states=[2]), st.integers(1, 3))
def test_a_claim_of_the_dead_goes_again_in_tenths(held: list[Range], attempts_max: int) -> None:
    """Who died in company is charged with nothing, and is in smaller company the next time."""
    assume(held)
    total = sum(one.count for one in held)
    parts, dead = ranges.take_back_ranges(held, attempts_max, 200.0, 9)
    before = {n: one for one, n in items_of(held)}
    assert sorted(n for _, n in items_of(parts)) == sorted(before)
    if total == 1:
        (one,) = parts
        assert (one.attempts, one.deaths) == (held[0].attempts + 1, 1)
        assert (one.state == State.DEAD) == (one.attempts >= attempts_max) == (dead == [one])
        return
    assert dead == []
    groups: dict[int | None, list[Range]] = {}
    for one in parts:
        assert one.state == State.READY
        groups.setdefault(one.apart, []).append(one)
    lanes = len({one.lane for one in held})
    size = -(-total // 10)
    assert len(groups) <= 10 + 2 * len(held) * (lanes - 1)
    for apart, group in groups.items():
        assert group[0].first == apart
        assert sum(one.count for one in group) <= size
        assert len({one.lane for one in group}) == 1
    for one, number in items_of(parts):
        was = before[number]
        assert (one.attempts, one.deaths, one.due) == (was.attempts, was.deaths, was.due)


@given(rows(), st.integers(0, 20))
def test_the_oldest_are_the_first_in_order(found: list[Range], count: int) -> None:
    """Retention by count takes so many items and no more, also out of the middle of a range."""
    wanted = ranges.oldest(reversed(found), count)
    ordered = [n for one in reversed(found) for _, n in items_of([one])]
    numbers = [n for first, last in wanted for n in range(first, last + 1)]
    assert sorted(numbers) == sorted(ordered[:count])


@pytest.mark.parametrize("count", [1, 2, 10, 11, 95, 100])
def test_tenths_are_at_most_ten(count: int) -> None:
    """More would make a backlog after a crash slow, fewer a poison item costly."""
    parts, _ = ranges.take_back_ranges([made(1, count, state=2, claim=1)], 9, 0.0, 1)
    assert len(parts) == min(count, -(-count // -(-count // 10)))
    assert len(parts) <= 10
