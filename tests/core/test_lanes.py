"""buffer's Ranking and Lanes: order, priority, weight, partition, key, flush. Checked against naive models."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Caller, programs

from microbatch._core.entry import BUFFERED, FLYING, Entry, Mark
from microbatch._core.lanes import Lanes
from microbatch._core.ranking import FAIR_TURN, Ranking

# Ranking


class Element:
    def __init__(self, seq: int, priority: float) -> None:
        self.seq = seq
        self.priority = priority
        self.queued = False

    def __repr__(self) -> str:
        return f"<{self.seq} at {self.priority}>"


def sharer_of(lanes: Lanes, partition: Any, key: Any) -> Entry | None:
    """Return whose slot a new item of this key would share."""
    return lanes.place(Entry(0, Caller(), partition=partition, key=key))[1]


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
            st.sampled_from(["push", "push", "push", "promote", "discard", "turn", "turn", "look"]),
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
        elif step == "promote" and chosen is not None and not one_priority:
            ranking.promote(chosen, chosen.priority + 1 + abs(number))
            naive.mixed = True
        elif step == "discard" and chosen is not None:
            ranking.discard(chosen)
            naive.elements.remove(chosen)
        elif step == "turn":
            expected = naive.turn()
            found = ranking.turn()()
            assert found is expected
            if found is not None and pick % 3:  # else nobody could be taken, so the turn stays
                ranking.turned()
                naive.turns += naive.mixed
                ranking.discard(found)
                naive.elements.remove(found)
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


# Lanes


class Program:
    """Lanes under random calls, beside a list of what must be in it."""

    def __init__(
        self, size: int, max_wait: float, max_weight: float | None, limit: int | None
    ) -> None:
        self.lanes = Lanes(lambda: self.size, max_wait, max_weight=max_weight, lane_limit=limit)
        self.size = size
        self.max_wait = max_wait
        self.max_weight = max_weight
        self.limit = limit
        self.now = 0.0
        self.entries: list[Entry] = []  # buffered, by age
        self.flying: list[Any] = []
        self.flushed: set[Entry] = set()
        self.was_due: set[Any] = set()  # partitions that were due since they were last cut
        self.marks: list[tuple[Mark, set[Entry]]] = []
        self.number = 0
        self.closing = False
        self.pressed = False
        self.found = 0  # cancelled ones that the lanes came across themselves

    def of(self, partition: Any) -> list[Entry]:
        return [entry for entry in self.entries if entry.partition == partition]

    def is_free(self, partition: Any) -> bool:
        flying = sum(run.lane.partition == partition for run in self.flying)
        return self.limit is None or flying < self.limit

    def is_due(self, partition: Any) -> bool:
        entries = self.of(partition)
        return bool(entries) and (
            self.max_wait == 0
            or self.closing
            or self.pressed
            or len(entries) >= self.size
            or (
                self.max_weight is not None
                and sum(entry.weight for entry in entries) >= self.max_weight
            )
            or self.now >= entries[0].since + self.max_wait
            or entries[0] in self.flushed
        )

    def note_due(self) -> None:
        for partition in {entry.partition for entry in self.entries}:
            if self.is_free(partition) and self.is_due(partition):
                self.was_due.add(partition)

    def drop(self, entry: Entry) -> None:
        self.entries.remove(entry)
        if not self.of(entry.partition):
            self.was_due.discard(entry.partition)

    # steps

    def add(self, one: int, two: int) -> None:
        priority, partition = one % 3, "abc"[two % 3]
        key = (two,) if two % 2 else None
        sharer = sharer_of(self.lanes, partition, key)
        keyed = [e for e in self.of(partition) if key is not None and e.key == key]
        assert sharer is (keyed[0] if keyed else None)
        if sharer is not None:
            self.lanes.promote(sharer, priority)
            return
        self.number += 1
        weight = one % 4 * 0.5
        entry = Entry(
            self.number, Caller(), priority=priority, weight=weight, partition=partition, key=key
        )
        self.entries.append(entry)
        self.lanes.add(entry, self.now)
        assert entry.state is BUFFERED

    def withdraw(self, one: int, two: int) -> None:
        if self.entries:
            entry = self.entries[one % len(self.entries)]
            self.lanes.withdraw(entry)
            entry.release()
            self.drop(entry)

    def leave(self, one: int, two: int) -> None:
        if self.entries:
            self.entries[one % len(self.entries)].waiter.gone = True

    def sweep(self, one: int, two: int) -> None:
        self.lanes.sweep()
        for entry in [entry for entry in self.entries if entry.waiter is None]:
            self.found += 1
            self.drop(entry)
        assert not any(entry.waiter.gone for entry in self.entries)

    def wait(self, one: int, two: int) -> None:
        self.now += one % 5 * 0.5

    def flush(self, one: int, two: int) -> None:
        mark = Mark(lambda: None)
        mark.left = 1
        self.lanes.flush(mark if two % 2 else None, self.now)
        if two % 2:
            assert mark.left == 1 + len(self.entries)
            self.marks.append((mark, set(self.entries)))
        self.flushed |= set(self.entries)

    def press(self, one: int, two: int) -> None:
        self.pressed = two % 2 == 0
        self.lanes.press(self.pressed)

    def land(self, one: int, two: int) -> None:
        if self.flying:
            run = self.flying.pop(one % len(self.flying))
            for entry in run.entries:
                entry.release()
            self.lanes.landed(run.lane, self.now)

    def cut(self, one: int, two: int) -> None:
        before = list(self.entries)
        run = self.lanes.cut(self.now)
        for entry in before:
            if entry.waiter is None:  # gone, and found so
                self.found += 1
                self.drop(entry)
                self.pressed = self.pressed and self.lanes.pressed  # it has left room
        assert self.lanes.pressed == self.pressed
        # Whose others have gone may be due no longer.
        ready = {lane.partition for lane in self.lanes._ready}
        assert ready <= self.was_due
        self.was_due = ready | ({run.lane.partition} if run is not None else set())
        if run is None:
            for partition in {entry.partition for entry in self.entries}:
                assert not (self.is_free(partition) and self.is_due(partition)), partition
            return
        partition = run.lane.partition
        assert run.entries is not None
        assert 1 <= len(run.entries) == run.size <= self.size
        assert {entry.partition for entry in run.entries} == {partition}
        assert run.items == [entry.item for entry in run.entries]
        assert run.waiters == [entry.waiter for entry in run.entries]
        assert not any(waiter.gone for waiter in run.waiters)
        assert run.weight == sum(entry.weight for entry in run.entries)
        assert self.is_due(partition)
        assert self.is_free(partition)
        alive = [e for e in self.of(partition) if not e.waiter.gone]
        by_age = alive[: run.size]
        by_priority = sorted(alive, key=lambda e: (-e.priority, e.seq))[: run.size]
        assert run.entries in (by_age, by_priority)
        assert run.since == min(entry.since for entry in run.entries)
        self.check_reason(run, alive)
        for entry in run.entries:
            assert (entry.state, entry.run) == (FLYING, run)
            self.drop(entry)
        self.was_due.discard(partition)
        self.flying.append(run)

    def check_reason(self, run: Any, alive: list[Entry]) -> None:
        rest = [e for e in alive if e not in run.entries]
        if run.size == self.size:
            assert run.reason == "size"
        elif rest or (self.max_weight is not None and run.weight >= self.max_weight):
            assert run.reason == "weight"
        elif self.closing:
            assert run.reason == "close"
        elif any(entry in self.flushed for entry in run.entries):
            assert run.reason == "flush"
        elif self.max_wait and self.now >= run.since + self.max_wait:
            assert run.reason == "wait"
        else:
            assert run.reason == "idle"
            assert self.pressed or not self.max_wait
        if self.max_weight is not None:
            assert run.weight <= self.max_weight

    def check(self) -> None:
        lanes, entries = self.lanes, self.entries
        assert lanes.count == len(entries)
        assert lanes.weight == sum(entry.weight for entry in entries)
        assert lanes.withdrawn == self.found
        assert sorted(lanes.entries(), key=lambda e: e.seq) == entries
        assert [e.seq for e in entries] == sorted(e.seq for e in entries)
        for mark, counted in self.marks:
            assert mark.left == 1 + sum(entry.state in {BUFFERED, FLYING} for entry in counted)
        self.note_due()
        idle = [
            oldest.since + self.max_wait
            for partition in {entry.partition for entry in entries} - self.was_due
            if self.is_free(partition)
            for oldest in self.of(partition)[:1]
        ]
        when = lanes.deadline()
        assert not idle or (when is not None and when <= min(idle))
        if self.was_due:
            assert lanes.ready(self.now) >= 1
        else:
            assert lanes.ready(self.now) == 0
        assert entries or lanes.ready(self.now) == 0
        lists = [lanes._idle, lanes._ready]
        assert all(
            lane.entries and lane.queued == (here is lanes._ready)
            for here in lists
            for lane in here
        )
        assert len({id(lane) for _, _, lane in lanes._deadlines}) == len(lanes._deadlines)
        assert not lanes.is_full() or max(len(self.of(p)) for p in "abc") >= self.size


STEPS = ["add"] * 6 + ["cut"] * 3 + "withdraw leave sweep wait flush press land land".split()  # noqa: SIM905


@given(
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([None, 2.0]),
    st.sampled_from([None, 1, 2]),
    programs(st.tuples(st.sampled_from(STEPS), st.integers(0, 11), st.integers(0, 11)), 120),
)
def test_lanes_keep_every_promise_under_any_program(
    size: int,
    max_wait: float,
    max_weight: float | None,
    limit: int | None,
    steps: list[tuple[str, int, int]],
) -> None:
    """Batches of one partition, in order, within size and weight, none too early and none left behind."""
    program = Program(size, max_wait, max_weight, limit)
    for name, one, two in steps:
        getattr(program, name)(one, two)
        program.check()
    program.lanes.closing = program.closing = True
    program.lanes.flush(None, program.now)
    while program.entries or program.flying:
        program.note_due()
        program.cut(0, 0)
        program.land(0, 0)
    lanes = program.lanes
    assert (lanes.count, lanes.weight, lanes.ready(program.now), lanes.deadline()) == (
        0,
        0,
        0,
        None,
    )
    assert not lanes._lanes
    assert not lanes._idle
    assert all(mark.left == 1 for mark, _ in program.marks)


def lanes_of(size: int = 2, max_wait: float = 0.0, **limits: Any) -> Lanes:
    return Lanes(lambda: size, max_wait, **limits)


def put(lanes: Lanes, item: Any, now: float = 0.0, **fields: Any) -> Entry:
    entry = Entry(item, Caller(), **fields)
    lanes.add(entry, now)
    return entry


def cut(lanes: Lanes, now: float = 0.0) -> Any:
    run = lanes.cut(now)
    assert run is not None
    return run


def test_a_lane_is_ready_at_its_deadline_and_not_before() -> None:
    """max_wait is a promise both ways."""
    lanes = lanes_of(2, 1.0)
    put(lanes, "a", 100.25)
    assert (lanes.ready(101.0), lanes.deadline(), lanes.cut(101.0)) == (0, 101.25, None)
    assert (lanes.ready(101.25), lanes.deadline()) == (1, None)
    run = cut(lanes, 101.25)
    assert (run.items, run.reason, run.since) == (["a"], "wait", 100.25)


def test_a_full_lane_is_ready_at_once_and_what_it_leaves_waits_on() -> None:
    """By its own age: the timer that was set for the first one says nothing of the last."""
    lanes = lanes_of(2, 1.0)
    for number, now in enumerate((100.0, 100.25, 100.5)):
        put(lanes, number, now)
    assert (lanes.ready(100.5), lanes.is_full()) == (1, True)
    run = cut(lanes, 100.5)
    assert (run.items, run.reason) == ([0, 1], "size")
    assert lanes.cut(100.5) is None
    assert (lanes.ready(101.0), lanes.deadline()) == (0, 101.5)
    run = cut(lanes, 101.5)
    assert (run.items, run.reason, run.since) == ([2], "wait", 100.5)


def test_a_lane_has_one_deadline_however_many_its_items_are() -> None:
    """And has one again after it was empty, also while its batch is still in flight."""
    lanes = lanes_of(4, 1.0)
    for number in range(3):
        put(lanes, number, 100.0)
    assert len(lanes._deadlines) == 1
    put(lanes, 3, 100.0)
    run = cut(lanes, 100.0)
    assert (run.size, lanes.deadline()) == (4, None)
    put(lanes, 4, 100.5)
    assert lanes.deadline() == 101.5
    assert (lanes.ready(101.25), lanes.ready(101.5)) == (0, 1)


def test_a_lane_that_was_emptied_is_not_made_ready_by_its_old_deadline() -> None:
    """Its timer is not worth looking for, so it may ring for nobody."""
    lanes = lanes_of(2, 1.0)
    gone = put(lanes, "a", 100.0, partition="a")
    other = put(lanes, "b", 100.5, partition="b")
    lanes.withdraw(gone)
    assert lanes.ready(101.0) == 0
    assert list(lanes._idle) == [other.lane]
    lanes.press()
    assert lanes.ready(101.0) == 1


def test_weight_makes_a_lane_ready_and_cuts_a_batch_where_it_is_reached() -> None:
    """Up to the limit and no further; what an item weighed goes with it."""
    lanes = lanes_of(10, 1.0, max_weight=2.0)
    for weight in (0.5, 1.0):
        put(lanes, weight, weight=weight)
    assert lanes.ready(0.0) == 0
    put(lanes, 0.5, weight=0.5)
    assert lanes.ready(0.0) == 1
    run = cut(lanes)
    assert (run.items, run.weight, run.reason) == ([0.5, 1.0, 0.5], 2.0, "weight")
    put(lanes, 1.5, weight=1.5)
    late = put(lanes, 1.0, weight=1.0)
    run = cut(lanes)
    assert (run.items, run.weight, run.reason) == ([1.5], 1.5, "weight")
    assert (lanes.ready(0.0), lanes.weight) == (0, 1.0)
    lanes.withdraw(late)
    put(lanes, 1.5, weight=1.5)
    assert lanes.ready(0.0) == 0
    put(lanes, 0.5, weight=0.5)
    assert cut(lanes).items == [1.5, 0.5]


def test_a_partition_has_as_many_batches_in_flight_as_it_may() -> None:
    """Neither one more nor one less; what waits then is not ready, however much it is."""
    lanes = lanes_of(1, 0.0, lane_limit=2)
    for number in range(5):
        put(lanes, number, partition="p")
    first, second = cut(lanes), cut(lanes)
    assert (lanes.ready(0.0), lanes.cut(0.0)) == (0, None)
    put(lanes, "q", partition="q")
    assert cut(lanes).items == ["q"]
    lanes.landed(first.lane, 0.0)
    assert cut(lanes).items == [2]
    assert lanes.cut(0.0) is None
    lanes.landed(second.lane, 0.0)
    assert cut(lanes).items == [3]


def test_what_waited_for_its_partition_waits_for_company_too() -> None:
    """The place is free, but the batch is neither full nor old enough."""
    lanes = lanes_of(2, 1.0, lane_limit=1)
    for number in range(3):
        put(lanes, number, 100.0)
    run = cut(lanes, 100.0)
    lanes.landed(run.lane, 100.5)
    assert (lanes.ready(100.5), lanes.deadline()) == (0, 101.0)
    assert cut(lanes, 101.0).items == [2]


def test_a_lone_lane_is_ready_for_each_of_its_full_batches() -> None:
    """So that a task starts for each while slots are free; of many lanes each counts once, at least."""
    lanes = lanes_of(2)
    for number in range(7):
        put(lanes, number)
    assert lanes.ready(0.0) == 3
    lanes = lanes_of(2, 1.0)
    put(lanes, "a", partition="a")
    for partition in "abcde":
        put(lanes, partition, partition=partition)
    assert lanes.ready(0.0) == 1


def test_a_batch_is_full_when_the_next_one_to_leave_is() -> None:
    """The loop then needs no turn for it to grow."""
    lanes = lanes_of(2)
    assert not lanes.is_full()
    put(lanes, 0)
    assert not lanes.is_full()
    put(lanes, 1)
    assert lanes.is_full()


def test_flushing_makes_due_what_is_there_and_nothing_that_comes_later() -> None:
    """In every lane; a mark counts each."""
    lanes = lanes_of(2, 1.0)
    put(lanes, "a", partition="a")
    put(lanes, "b", partition="b")
    told: list[int] = []
    mark = Mark(lambda: told.append(1))
    lanes.flush(mark, 0.0)
    assert (mark.left, lanes.ready(0.0)) == (2, 2)
    for name in "ab":
        run = cut(lanes)
        assert (run.items, run.reason) == ([name], "flush")
        run.entries[0].release()
    assert told == [1]
    put(lanes, "late", 0.5, partition="a")
    assert lanes.ready(0.5) == 0
    assert cut(lanes, 1.5).reason == "wait"


def test_what_was_flushed_and_comes_back_is_due_at_once() -> None:
    """flush() waits for retries too, so they must not wait for company."""
    lanes = lanes_of(2, 1.0)
    entry = Entry("again", Caller())
    entry.marks = [Mark(lambda: None)]
    lanes.add(entry, 0.0)
    assert lanes.ready(0.0) == 1
    assert cut(lanes).reason == "flush"


def test_while_closing_whatever_comes_is_due() -> None:
    """Items that were in back-off come when nobody else will."""
    lanes = lanes_of(2, 1.0)
    lanes.closing = True
    put(lanes, "a")
    assert lanes.ready(0.0) == 1
    assert cut(lanes).reason == "close"


def test_a_full_room_makes_each_lane_ready_once() -> None:
    """However often it is asked for."""
    lanes = lanes_of(2, 1.0)
    put(lanes, "a", partition="a")
    put(lanes, "b", partition="b")
    lanes.press()
    lanes.press()
    assert lanes.ready(0.0) == 2
    assert [cut(lanes).items, cut(lanes).items] == [["a"], ["b"]]
    assert lanes.cut(0.0) is None


def test_lanes_leave_by_their_most_urgent_item() -> None:
    """One that a more urgent caller joins, or shares, overtakes."""
    lanes = lanes_of(2)
    first = put(lanes, "a", partition="a")
    put(lanes, "b", partition="b")
    put(lanes, "c", partition="c")
    put(lanes, "urgent", priority=1, partition="c")
    lanes.promote(first, 2)
    assert first.priority == 2
    assert cut(lanes).items == ["a"]
    assert cut(lanes).items == ["urgent", "c"]
    assert cut(lanes).items == ["b"]


def test_promoting_raises_and_never_lowers() -> None:
    """Whoever shares an urgent item with less urgency does not slow it down."""
    lanes = lanes_of(1)
    put(lanes, 0)
    entry = put(lanes, 1)
    lanes.promote(entry, 3)
    lanes.promote(entry, 1)
    assert entry.priority == 3
    assert cut(lanes).items == [1]


def test_one_priority_needs_no_heap() -> None:
    """Order of arrival is all there is: what joins or shares as an equal changes nothing."""
    lanes = lanes_of(4)
    entry = put(lanes, 0)
    for number in range(20):
        put(lanes, number)
    lanes.promote(entry, 0)
    assert entry.lane.entries._heap is None
    assert lanes._ready._heap is None


def test_the_oldest_of_a_batch_is_known_though_the_urgent_come_first() -> None:
    """Telemetry tells how long it waited."""
    lanes = lanes_of(2)
    put(lanes, "old", 1.0)
    put(lanes, "less", 2.0, priority=1)
    put(lanes, "urgent", 3.0, priority=5)
    run = cut(lanes, 4.0)
    assert (run.items, run.since) == (["urgent", "less"], 2.0)


def test_a_key_is_found_while_its_first_item_is_buffered() -> None:
    """One that comes back from a retry stands beside it, and leaves it its place."""
    lanes = lanes_of(1)
    first = put(lanes, 0, key=("k",))
    second = put(lanes, 1, key=("k",))
    put(lanes, 2)
    assert sharer_of(lanes, None, ("k",)) is first
    assert (sharer_of(lanes, None, ("l",)), sharer_of(lanes, "p", ("k",))) == (None, None)
    lanes.withdraw(second)
    assert sharer_of(lanes, None, ("k",)) is first
    assert cut(lanes).items == [0]
    assert sharer_of(lanes, None, ("k",)) is None


def test_who_has_gone_is_dropped_and_counted() -> None:
    """When a batch is cut, and when somebody asks."""
    lanes = lanes_of(2)
    gone, too, _, _ = [put(lanes, number) for number in range(4)]
    gone.waiter.gone = too.waiter.gone = True
    assert cut(lanes).items == [2, 3]
    assert (lanes.withdrawn, gone.waiter, too.waiter) == (2, None, None)
    other = put(lanes, 4)
    put(lanes, 5)
    other.waiter.gone = True
    lanes.sweep()
    assert (lanes.withdrawn, lanes.count, other.waiter) == (3, 1, None)


def test_a_lane_that_is_empty_is_forgotten() -> None:
    """Whether its items were withdrawn or found gone: keys may be as many as there are users."""
    lanes = lanes_of(2)
    lanes.withdraw(put(lanes, "a", partition="a"))
    put(lanes, "b", partition="b").waiter.gone = True
    assert lanes.cut(0.0) is None
    assert (lanes.ready(0.0), lanes.count, list(lanes._lanes)) == (0, 0, [])


def test_a_lane_is_kept_while_a_batch_of_it_is_in_flight() -> None:
    """It counts them: what comes meanwhile must not find a new lane without any."""
    lanes = lanes_of(1, lane_limit=2)
    for number in range(2):
        put(lanes, number)
    first, second = cut(lanes), cut(lanes)
    lanes.landed(first.lane, 0.0)
    put(lanes, 2)
    put(lanes, 3)
    assert cut(lanes).items == [2]
    assert lanes.cut(0.0) is None
    lanes.landed(second.lane, 0.0)
    assert cut(lanes).items == [3]


def test_a_batch_from_before_the_buffer_was_emptied_may_land_later() -> None:
    """A batcher makes new lanes then, and what was in flight belongs to the old ones."""
    runs = []
    for _ in range(3):
        lanes = lanes_of(1)
        put(lanes, 0)
        runs.append(cut(lanes))
    first, second, third = [run.lane for run in runs]
    lanes.landed(first, 0.0)
    assert list(lanes._lanes) == [third]
    lanes.landed(third, 0.0)
    lanes.landed(second, 0.0)
    assert list(lanes._lanes) == []
