"""buffer: what waits, in which order it leaves, and when. Checked against naive models."""

from __future__ import annotations

import contextvars
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from microbatch._waiters import Group, Member
from microbatch.buffer import FAIR_TURN, Entry, Fifo, Lanes, Mark, Ranking


class Caller:
    """A waiter: done before its time when its caller has gone."""

    def __init__(self) -> None:
        self.gone = False

    def done(self) -> bool:
        return self.gone


# Mark


def test_a_mark_tells_when_all_that_it_counted_are_gone() -> None:
    """flush() waits for it."""
    told: list[int] = []
    mark = Mark(lambda: told.append(1))
    mark.left = 2
    mark.release()
    assert (mark.left, told) == (1, [])
    mark.release()
    assert (mark.left, told) == (0, [1])


# Fifo


class Feeder:
    """Puts items into a Fifo as a batcher does, beside a list of what must be in it."""

    def __init__(self, size: int, max_wait: float, room: int) -> None:
        self.fifo = Fifo(size, max_wait)
        self.size = size
        self.max_wait = max_wait
        self.room = room  # how many may be inside
        self.now = 0.0
        self.open = False  # items may be appended without asking
        self.number = 0
        self.inside: list[tuple[int, Any, float]] = []
        self.earliest = 0.0  # since when the oldest item could have been said to wait

    def add(self, one: int) -> None:
        fifo = self.fifo
        if not self.open:
            room = self.room - fifo.count
            if room <= 0:
                return
            fifo.open(room, self.now)
            self.open = True
        assert len(fifo.items) < fifo.limit
        self.number += 1
        waiter = Caller()
        fifo.items.append(self.number)
        fifo.waiters.append(waiter)
        self.inside.append((self.number, waiter, self.now))
        if len(fifo.items) >= fifo.limit:
            self.open = False

    def add_many(self, one: int) -> None:
        fifo = self.fifo
        count = min(one, self.room - fifo.count)
        if count <= 0:
            return
        fifo.open(self.room - fifo.count, self.now, count)
        group = Group(count, 0)
        group.waiter = Caller()
        numbers = range(self.number + 1, self.number + count + 1)
        self.number += count
        fifo.items += numbers
        fifo.waiters += [group] * count
        self.inside += [
            (number, Member((group, index)), self.now) for index, number in enumerate(numbers)
        ]
        self.open = False

    def leave(self, one: int) -> None:
        if self.inside:
            waiter = self.inside[one % len(self.inside)][1]
            (waiter[0].waiter if isinstance(waiter, Member) else waiter).gone = True

    def wait(self, one: int) -> None:
        self.now += one * 0.25

    def sweep(self, one: int) -> None:
        self.fifo.sweep()
        self.open = False
        self.inside = self.alive()
        assert self.fifo.count == len(self.inside)

    def clear(self, one: int) -> None:
        out = list(self.fifo.clear())
        self.open = False
        expected, self.inside = self.alive(), []
        assert [(item, waiter) for item, waiter, _ in out] == [(i, w) for i, w, _ in expected]
        if self.max_wait:
            assert all(since <= at for (_, _, since), (_, _, at) in zip(out, expected, strict=True))
        assert (self.fifo.count, self.fifo.deadline()) == (0, None)

    def alive(self) -> list[tuple[int, Any, float]]:
        return [one for one in self.inside if not one[1].done()]

    def cut(self, one: int) -> None:
        alive, were_all_there = self.alive(), self.alive() == self.inside
        due = bool(alive) and (
            self.max_wait == 0
            or self.fifo.closing
            or len(alive) >= self.size
            or self.now >= alive[0][2] + self.max_wait
        )
        run = self.fifo.cut(self.now)
        if self.max_wait or not self.fifo.items:
            self.open = False
        if run is None:
            assert not due
            self.inside = [entry for entry in self.inside if self.fifo.count]
            return
        taken, rest = alive[: self.size], alive[self.size :]
        assert run.items == [item for item, _, _ in taken]
        waiters = run.waiters
        if run.group is not None:
            waiters = [Member((run.group, run.first + i)) for i in range(run.size)]
        assert waiters == [waiter for _, waiter, _ in taken]
        assert run.size == len(taken)
        if len(taken) == self.size:
            assert run.reason == "size"
        else:
            assert rest == []
            assert run.reason == (
                "close" if self.fifo.closing else "wait" if self.max_wait else "idle"
            )
        last = taken[-1][0]
        self.inside = [entry for entry in self.inside if entry[0] > last]
        if len(taken) < self.size:
            self.inside = []
        kinds = {type(waiter) for waiter in run.waiters}
        assert len(kinds) == 1 or not run.uniform
        assert run.uniform or kinds != {Caller} or not were_all_there
        self.drop_unseen()

    def drop_unseen(self) -> None:
        """A batch is topped up from what follows; those of it who have gone are dropped there."""
        gone = len(self.inside) - self.fifo.count
        assert gone >= 0
        assert all(waiter.done() for _, waiter, _ in self.inside[:gone])
        self.inside = self.inside[gone:]

    def check(self) -> None:
        fifo = self.fifo
        assert fifo.count == len(self.inside)
        assert fifo.items[fifo.head :] == [item for item, _, _ in self.inside]
        assert set(fifo.items[: fifo.head]) <= {None}
        assert set(fifo.waiters[: fifo.head]) <= {None}
        assert len(fifo.items) == len(fifo.waiters)
        full, rest = divmod(fifo.count, self.size)
        assert fifo.is_full() == (fifo.count >= self.size)
        ready = fifo.ready(self.now)
        if self.max_wait == 0 or fifo.closing:
            assert ready == full + bool(rest)
            return
        assert full <= ready <= full + bool(rest)
        when = fifo.deadline()
        if rest:
            oldest = self.inside[full * self.size][2]
            assert when is not None
            assert when <= oldest + self.max_wait
            assert ready == full + (self.now >= when)
        else:
            assert when is None


FEED = ["add"] * 6 + ["cut"] * 3 + ["add_many", "leave", "wait", "sweep", "clear"]


@given(
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([6, 10_000]),
    st.lists(st.tuples(st.sampled_from(FEED), st.integers(0, 9)), max_size=120),
)
def test_a_fifo_loses_nothing_and_keeps_the_order_under_any_program(
    size: int, max_wait: float, room: int, steps: list[tuple[str, int]]
) -> None:
    """Whoever leaves, joins in bulk or is swept out: batches are the next ones alive, and never late."""
    feeder = Feeder(size, max_wait, room)
    for name, one in steps:
        getattr(feeder, name)(one)
        feeder.check()
    feeder.fifo.closing = True
    while feeder.inside:
        feeder.cut(0)
        feeder.check()
    assert feeder.fifo.cut(feeder.now) is None


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from(["add", "add", "add", "wait", "cut"]), st.integers(0, 3)),
        max_size=80,
    ),
)
def test_without_withdrawals_a_batch_leaves_neither_late_nor_early(
    size: int, steps: list[tuple[str, int]]
) -> None:
    """Full, or its oldest item has waited: not before."""
    feeder = Feeder(size, 1.0, 10_000)
    for name, one in steps:
        oldest = feeder.inside[0][2] if feeder.inside else None
        count = len(feeder.inside)
        getattr(feeder, name)(one)
        if name == "cut" and oldest is not None:
            left = len(feeder.inside) < count
            assert left == (count >= size or feeder.now >= oldest + 1.0)
        feeder.check()


def test_a_fifo_gives_back_the_places_of_what_was_taken() -> None:
    """A buffer that is never empty must not grow for ever, and moving all at each cut is quadratic."""
    feeder = Feeder(10, 0.0, 100_000)
    for _ in range(3_000):
        feeder.add(0)
    for _ in range(2_000):
        feeder.cut(0)
        for _ in range(10):
            feeder.add(0)
    assert len(feeder.inside) == 3_000
    assert len(feeder.fifo.items) <= 2 * 3_000
    feeder.check()


def test_a_fifo_that_counts_the_time_gives_back_places_too() -> None:
    """Since when each waits moves along with them."""
    feeder = Feeder(10, 1.0, 100_000)
    for number in range(3_005):
        feeder.now = number / 100
        feeder.add(0)
    for _ in range(300):
        feeder.cut(0)
        feeder.check()
    assert len(feeder.inside) == 5
    assert len(feeder.fifo.items) <= 3_005 - 1_000
    assert feeder.fifo.deadline() == 31.0


def test_a_batch_of_several_kinds_of_waiters_is_looked_at_one_by_one() -> None:
    """Futures, blocked threads and a bulk's items may stand in one batch."""

    class Other:
        def __init__(self) -> None:
            self.went = False

        def done(self) -> bool:
            return self.went

    group = Group(2, 0)
    group.waiter = Caller()
    for waiters in ([Caller(), Other(), Caller()], [Caller(), group, group, Other()]):
        fifo = Fifo(10, 0.0)
        fifo.open(100, 0.0)
        fifo.items += range(len(waiters))
        fifo.waiters += waiters
        waiters[0].gone = True  # type: ignore[union-attr]
        run = fifo.cut(0.0)
        assert run is not None
        assert run.items == list(range(1, len(waiters)))
        assert not run.uniform


def test_a_fifo_finds_who_has_gone_while_nothing_is_cut() -> None:
    """A stalled handler and callers that time out: what they left must not pile up."""
    feeder = Feeder(10, 0.0, 10_000_000)
    for _ in range(20_000):
        feeder.add(0)
        feeder.inside[-1][1].gone = True
    assert feeder.fifo.count <= 1_000


def test_looking_for_who_has_gone_costs_little_when_nobody_has() -> None:
    """Whenever there are four times as many as the last time: linear in the end."""
    looks = 0

    class Looked(Caller):
        def done(self) -> bool:
            nonlocal looks
            looks += 1
            return False

    fifo = Fifo(10, 0.0)
    for number in range(100_000):
        if len(fifo.items) >= fifo.limit:
            fifo.open(10_000_000, 0.0)
        fifo.items.append(number)
        fifo.waiters.append(Looked())
    assert 0 < looks < 200_000


def test_what_is_taken_out_of_a_fifo_keeps_its_time() -> None:
    """An item that moves to the other buffer must not begin to wait anew; the Fifo is as good as new."""
    feeder = Feeder(2, 1.0, 100)
    for number in range(5):
        feeder.now = float(number)
        feeder.add(0)
    feeder.cut(0)
    fifo = feeder.fifo
    assert [(item, since) for item, _, since in fifo.clear()] == [(3, 2.0), (4, 2.0), (5, 4.0)]
    assert (fifo.count, fifo.head, fifo.items, fifo.waiters) == (0, 0, [], [])
    assert list(fifo.clear()) == []
    assert fifo.deadline() is None


# Entry


def test_an_entry_keeps_what_it_was_given() -> None:
    """And begins at its first attempt, in no buffer."""
    context = contextvars.copy_context()
    waiter = Caller()
    entry = Entry(
        "item", waiter, priority=2, weight=1.5, partition="p", key=("k",), context=context
    )
    assert (entry.item, entry.waiter, entry.priority, entry.weight) == ("item", waiter, 2, 1.5)
    assert (entry.partition, entry.key, entry.context) == ("p", ("k",), context)
    bare = Entry("item", waiter)
    assert (bare.priority, bare.weight, bare.partition) == (0, 0, None)
    assert (bare.key, bare.context) == (None, None)
    assert (bare.attempts, bare.seq, bare.since, bare.queued, bare.state) == (1, 0, 0.0, False, "")
    assert (bare.lane, bare.run, bare.marks) == (None, None, None)


def test_an_entry_that_is_released_keeps_nobody_alive() -> None:
    """And tells every flush that counted it, once."""
    told: list[str] = []
    entry = Entry("item", Caller(), context=contextvars.copy_context())
    entry.state = "flying"
    entry.marks = [Mark(lambda: told.append("first")), Mark(lambda: told.append("second"))]
    for mark in entry.marks:
        mark.left = 1
    entry.release()
    entry.release()
    assert told == ["first", "second"]
    assert (entry.waiter, entry.run, entry.lane, entry.context) == (None, None, None, None)
    assert (entry.state, entry.marks) == ("", None)


# Ranking


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
        self.turns += self.mixed
        return self.oldest() if self.mixed and self.turns % FAIR_TURN == 0 else self.top()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "push", "promote", "discard", "turn", "turn", "look"]),
            st.integers(-2, 2),
            st.integers(0, 99),
        ),
        max_size=200,
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
            if found is not None:
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

    def of(self, partition: Any) -> list[Entry]:
        return [entry for entry in self.entries if entry.partition == partition]

    def is_free(self, partition: Any) -> bool:
        flying = sum(run.lane.partition == partition for run in self.flying)
        return self.limit is None or flying < self.limit

    def is_due(self, partition: Any) -> bool:
        entries = self.of(partition)
        return bool(entries) and (
            self.max_wait == 0
            or self.lanes.closing
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
        sharer = None if key is None else self.lanes.sharer(partition, key)
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
        assert entry.state == "buffered"

    def withdraw(self, one: int, two: int) -> None:
        if self.entries:
            entry = self.entries[one % len(self.entries)]
            self.lanes.withdraw(entry)
            entry.release()
            self.drop(entry)
            self.lanes.withdraw(entry)  # a second time changes nothing

    def leave(self, one: int, two: int) -> None:
        if self.entries:
            self.entries[one % len(self.entries)].waiter.gone = True

    def sweep(self, one: int, two: int) -> None:
        self.lanes.sweep()
        for entry in [entry for entry in self.entries if entry.waiter is None]:
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
        self.lanes.press()
        self.was_due |= {e.partition for e in self.entries if self.is_free(e.partition)}

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
                self.drop(entry)
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
        assert partition in self.was_due
        assert self.is_free(partition)
        alive = [e for e in self.of(partition) if not e.waiter.gone]
        by_age = alive[: run.size]
        by_priority = sorted(alive, key=lambda e: (-e.priority, e.seq))[: run.size]
        assert run.entries in (by_age, by_priority)
        self.check_reason(run, alive)
        for entry in run.entries:
            assert (entry.state, entry.run) == ("flying", run)
            self.drop(entry)
        self.was_due.discard(partition)
        self.flying.append(run)

    def check_reason(self, run: Any, alive: list[Entry]) -> None:
        rest = [e for e in alive if e not in run.entries]
        if run.size == self.size:
            assert run.reason == "size"
        elif rest or (self.max_weight is not None and run.weight >= self.max_weight):
            assert run.reason == "weight"
        elif self.lanes.closing:
            assert run.reason == "close"
        elif any(entry in self.flushed for entry in run.entries):
            assert run.reason == "flush"
        else:
            assert run.reason == ("wait" if self.max_wait else "idle")
        if self.max_weight is not None:
            assert run.weight <= self.max_weight

    def check(self) -> None:
        lanes, entries = self.lanes, self.entries
        assert lanes.count == len(entries)
        assert lanes.weight == sum(entry.weight for entry in entries)
        assert sorted(lanes.entries(), key=lambda e: e.seq) == entries
        assert [e.seq for e in entries] == sorted(e.seq for e in entries)
        for mark, counted in self.marks:
            assert mark.left == 1 + sum(entry.state in ("buffered", "flying") for entry in counted)
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
        assert not lanes.is_full() or max(len(self.of(p)) for p in "abc") >= self.size


STEPS = ["add"] * 6 + ["cut"] * 3 + "withdraw leave sweep wait flush press land land".split()  # noqa: SIM905


@given(
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([None, 2.0]),
    st.sampled_from([None, 1, 2]),
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 11), st.integers(0, 11)), max_size=120
    ),
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
    program.lanes.closing = True
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
