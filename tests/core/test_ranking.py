"""Ranking: who goes first, as a search through all would find it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import programs

from microbatch._core.ranking import FAIR_TURN, Ranking


class Element:
    def __init__(self, seq: int, priority: float) -> None:
        self.seq = seq
        self.priority = priority
        self.queued = False

    def __repr__(self) -> str:
        return f"<{self.seq} at {self.priority}>"


class NaiveRanking:
    """Looks at everything each time."""

    def __init__(self) -> None:
        self.elements: list[Element] = []
        self.mixed = False
        self.turns = 0

    def oldest(self) -> Element | None:
        return min(self.elements, key=lambda e: e.seq, default=None)

    def top(self) -> Element | None:
        return min(self.elements, key=lambda e: (-e.priority, e.seq), default=None)

    def turn(self) -> Element | None:
        aged = self.mixed and self.turns % FAIR_TURN == FAIR_TURN - 1
        return self.oldest() if aged else self.top()


@given(
    programs(
        st.tuples(
            st.sampled_from(
                ["push", "push", "push", "promote", "discard", "turn", "turn", "look", "push_back"]
            ),
            st.integers(-2, 2),
            st.integers(0, 99),
        ),
        200,
    ),
    st.booleans(),
)
def test_a_ranking_is_what_a_search_through_all_would_find(
    steps: list[tuple[str, int, int]], one_priority: bool
) -> None:
    """Higher priority first, first come first served within one, every tenth turn by age."""
    ranking: Ranking[Element] = Ranking()
    naive = NaiveRanking()
    gone: list[Element] = []
    for seq, (step, number, pick) in enumerate(steps):
        priority = 0 if one_priority else number
        chosen = naive.elements[pick % len(naive.elements)] if naive.elements else None
        if step == "push":
            if not naive.elements:
                naive.mixed = False
            elif naive.oldest().priority != priority:  # type: ignore[union-attr]
                naive.mixed = True
            element = Element(seq, priority)
            ranking.push(element)
            naive.elements.append(element)
        elif step == "push_back" and gone:
            element = gone.pop(pick % len(gone))
            if not naive.elements:
                naive.mixed = False
            elif naive.oldest().priority != element.priority:  # type: ignore[union-attr]
                naive.mixed = True
            ranking.push_back(element)
            naive.elements.append(element)
            naive.elements.sort(key=lambda e: e.seq)
        elif step == "promote" and chosen is not None and not one_priority:
            ranking.promote(chosen, chosen.priority + 1 + abs(number))
            naive.mixed = True
        elif step == "discard" and chosen is not None:
            ranking.discard(chosen)
            naive.elements.remove(chosen)
            gone.append(chosen)
        elif step == "turn":
            expected = naive.turn()
            found = ranking.turn()()
            assert found is expected
            if found is not None and pick % 3:  # else nobody could be taken, so the turn stays
                ranking.turned()
                naive.turns += naive.mixed
                ranking.discard(found)
                naive.elements.remove(found)
                gone.append(found)
        assert list(ranking) == naive.elements
        assert len(ranking) == len(naive.elements)
        assert bool(ranking) == bool(naive.elements)
        assert ranking.oldest() is naive.oldest()
        assert ranking.top() is naive.top()
        assert all(element.queued for element in naive.elements)
        assert chosen is None or chosen.queued == (chosen in naive.elements)


def filled(*priorities: float) -> Ranking[Element]:
    ranking: Ranking[Element] = Ranking()
    for seq, priority in enumerate(priorities):
        ranking.push(Element(seq, priority))
    return ranking


def take(ranking: Ranking[Element]) -> Element:
    element = ranking.turn()()
    assert element is not None
    ranking.turned()
    ranking.discard(element)
    return element


def test_one_turn_in_ten_goes_by_age() -> None:
    """So the least urgent of a thousand waits ten turns, not for ever, whoever comes after it."""
    ranking = filled(0)
    for seq in range(1, 100):
        ranking.push(Element(seq, 5))
    turns = [take(ranking).seq for _ in range(12)]
    assert turns[9] == 0
    assert turns[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert FAIR_TURN == 10


def test_a_turn_looks_by_the_same_rule_for_a_whole_batch() -> None:
    """A batch by age is by age to its end."""
    ranking = filled(0, 5, 1)
    for _ in range(FAIR_TURN - 1):
        assert ranking.turn()().priority == 5  # type: ignore[union-attr]
        ranking.turned()
    following = ranking.turn()
    seen = []
    while (element := following()) is not None:
        seen.append(element.seq)
        ranking.discard(element)
    assert seen == [0, 1, 2]


def test_a_ranking_forgets_what_was_taken() -> None:
    """A heap is full of what left by another door; it is thrown out once it is more than what stays."""
    ranking = filled(0, *range(1000))
    elements = list(ranking)
    for element in elements[:990]:
        ranking.discard(element)
    assert len(ranking._heap or ()) <= 2 * 11 + 16
    for element in elements[990:]:
        ranking.discard(element)
    assert ranking.top() is None
    assert ranking.oldest() is None
    ranking.push(Element(2000, 3))
    assert ranking._heap is None


@pytest.mark.parametrize("total", [1_000, 1_001])
def test_a_heap_is_made_anew_once_it_is_twice_what_stays_and_16(total: int) -> None:
    """Not at every step, which would be quadratic, and not never."""
    ranking = filled(0, *[1] * (total - 1))
    elements = list(ranking)
    while elements:
        ranking.discard(elements.pop())
        if 2 * len(elements) + 16 < total:
            break
        assert len(ranking._heap or ()) == total
    assert len(ranking._heap or ()) == len(elements) == (total - 17) // 2
