"""Fifo: what waits, in which order it leaves, and when. Checked against a naive model."""

from __future__ import annotations

from typing import Any

import pytest
from fifo_support import cut, filled
from hypothesis import given
from hypothesis import strategies as st
from support import Caller, programs

from microbatch._core.fifo import Fifo
from microbatch._core.flushes import Mark
from microbatch._core.waiters import Group, Member


class Flush:
    """A mark, what it counts, and whether it told that all of that has ended."""

    def __init__(self, items: set[int]) -> None:
        self.items = items
        self.told = False
        self.mark = Mark(self.tell)
        self.mark.left = 1

    def tell(self) -> None:
        assert not self.told
        self.told = True


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
        self.closing = False
        self.flushes: list[Flush] = []
        self.watched: list[Any] = []
        self.flying: list[Any] = []  # batches that a flush counts items of

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
            if isinstance(waiter, Member) or waiter in self.watched:
                self.watched += self.fifo.unwatched()

    def flush(self, one: int) -> None:
        flush = Flush({item for item, _, _ in self.alive()})
        self.flushes.append(flush)
        self.fifo.flush(flush.mark)
        self.watched += self.fifo.unwatched()
        flush.mark.release()

    def land(self, one: int) -> None:
        if self.flying:
            run = self.flying.pop(one % len(self.flying))
            for entry in run.entries:
                entry.release()

    def flushed(self, items: Any) -> bool:
        return any(flush.items & {item for item, _, _ in items} for flush in self.flushes)

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
        for item, _, _, marks in out:
            assert marks == [flush.mark for flush in self.flushes if item in flush.items]
        self.flushes = [flush for flush in self.flushes if not flush.told]
        expected, self.inside = self.alive(), []
        assert [(item, waiter) for item, waiter, _, _ in out] == [(i, w) for i, w, _ in expected]
        if self.max_wait:
            assert all(
                since <= at for (_, _, since, _), (_, _, at) in zip(out, expected, strict=True)
            )
        assert (self.fifo.count, self.fifo.deadline()) == (0, None)

    def alive(self) -> list[tuple[int, Any, float]]:
        return [one for one in self.inside if not one[1].done()]

    def cut(self, one: int) -> None:
        alive, were_all_there = self.alive(), self.alive() == self.inside
        due = bool(alive) and (
            self.max_wait == 0
            or self.closing
            or len(alive) >= self.size
            or self.flushed(alive)
            or self.now >= alive[0][2] + self.max_wait
        )
        run = self.fifo.cut(self.now)
        if self.max_wait or not self.fifo.items:
            self.open = False
        if run is None:
            assert not due
            if self.fifo.count < len(self.inside):  # those who have gone were found
                self.inside = alive
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
            usual = "flush" if self.flushed(taken) else "wait" if self.max_wait else "idle"
            assert run.reason == ("close" if self.closing else usual)
        assert (run.entries is not None) == self.flushed(taken)
        if run.entries is not None:
            assert [(entry.item, entry.waiter) for entry in run.entries] == [t[:2] for t in taken]
            self.flying.append(run)
        last = taken[-1][0]
        self.inside = [entry for entry in self.inside if entry[0] > last]
        if len(taken) < self.size:
            self.inside = []
        kinds = {type(waiter) for waiter in run.waiters}
        assert len(kinds) == 1 or not run.uniform
        assert run.uniform or kinds != {Caller} or not were_all_there or run.entries is not None
        self.drop_unseen()

    def drop_unseen(self) -> None:
        """A batch is topped up from what follows; those of it who have gone are dropped there."""
        gone = len(self.inside) - self.fifo.count
        assert gone >= 0
        assert all(waiter.done() for _, waiter, _ in self.inside[:gone])
        self.inside = self.inside[gone:]

    def check(self) -> None:
        fifo = self.fifo
        alive = {item for item, _, _ in self.alive()}
        flying = {item for run in self.flying for item in run.items}
        for flush in self.flushes:
            assert flush.told == (not flush.items & (alive | flying)), (
                "a flush ends with its last item"
            )
        assert fifo.count == len(self.inside)
        assert fifo.items[fifo.head :] == [item for item, _, _ in self.inside]
        assert fifo.count or (fifo.items, fifo.waiters, fifo.head) == ([], [], 0)
        assert set(fifo.items[: fifo.head]) <= {None}
        assert set(fifo.waiters[: fifo.head]) <= {None}
        assert len(fifo.items) == len(fifo.waiters)
        full, rest = divmod(fifo.count, self.size)
        assert fifo.is_full() == (fifo.count >= self.size)
        ready = fifo.ready(self.now)
        if self.max_wait == 0 or self.closing:
            assert ready == full + bool(rest)
            return
        assert full <= ready <= full + bool(rest)
        when = fifo.deadline()
        if rest:
            oldest = self.inside[full * self.size][2]
            assert when is not None
            assert when <= oldest + self.max_wait
            last = self.inside[full * self.size :]
            if self.flushed(one for one in last if not one[1].done()):
                assert ready == full + 1
            elif not self.flushed(last):
                assert ready == full + (self.now >= when)
        else:
            assert when is None


FEED = ["add"] * 6 + ["cut"] * 3 + "add_many leave wait sweep clear flush land".split()  # noqa: SIM905


@given(
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([6, 10_000]),
    programs(st.tuples(st.sampled_from(FEED), st.integers(0, 9)), 120),
)
def test_a_fifo_loses_nothing_and_keeps_the_order_under_any_program(
    size: int, max_wait: float, room: int, steps: list[tuple[str, int]]
) -> None:
    """Whoever leaves, joins in bulk or is swept out: batches are the next ones alive, and never late."""
    feeder = Feeder(size, max_wait, room)
    for name, one in steps:
        getattr(feeder, name)(one)
        feeder.check()
    feeder.fifo.closing = feeder.closing = True
    while feeder.inside:
        feeder.cut(0)
        feeder.check()
    assert feeder.fifo.cut(feeder.now) is None


@given(
    st.integers(1, 4),
    programs(
        st.tuples(st.sampled_from(["add", "add", "add", "wait", "cut"]), st.integers(0, 3)), 80
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


@pytest.mark.parametrize("max_wait", [0.0, 1.0])
def test_a_fifo_gives_back_places_when_they_are_a_thousand_and_half_of_all(max_wait: float) -> None:
    """A buffer that is never empty must not grow for ever, and moving all at each cut is quadratic."""
    fifo = filled(3_000, max_wait=max_wait)
    cut(fifo, 149)
    assert (fifo.head, len(fifo.items), len(fifo.waiters)) == (1_490, 3_000, 3_000)
    assert set(fifo.items[:1_490]) == {None}
    cut(fifo)
    assert (fifo.head, len(fifo.items), len(fifo.waiters)) == (0, 1_500, 1_500)
    assert cut(fifo).items == list(range(1_500, 1_510))

    fifo = filled(2_000, max_wait=max_wait)
    cut(fifo, 99)
    assert (fifo.head, len(fifo.items)) == (990, 2_000)
    cut(fifo)
    assert (fifo.head, len(fifo.items)) == (0, 1_000)


def test_places_that_are_given_back_make_no_more_room() -> None:
    """The limit is one of places; who may come without asking is as many as before."""
    fifo = filled(2_000, room=2_500)
    fifo.open(500, 0.0)
    assert fifo.limit == 2_500
    cut(fifo, 100)
    assert (len(fifo.items), fifo.limit) == (1_000, 1_500)


def test_a_fifo_asks_before_the_first_item_and_where_room_or_a_batch_ends() -> None:
    """Until then an append is all that it costs; a full batch is noticed only where time is counted."""
    assert Fifo(3, 0.0).limit == 0
    for max_wait, room, limit in ((0.0, 7, 7), (1.0, 7, 3), (1.0, 2, 2), (0.0, 5_000, 1_000)):
        fifo = Fifo(3, max_wait)
        fifo.open(room, 0.0)
        assert fifo.limit == limit


def test_a_batch_that_is_begun_has_room_for_the_rest_of_it() -> None:
    """Also after the one before was topped up with some of it, in place of who had gone."""
    fifo = Fifo(3, 1.0)
    fifo.open(100, 0.0, 6)
    fifo.items += range(6)
    fifo.waiters += [Caller() for _ in range(6)]
    fifo.waiters[0].gone = True
    three = fifo.waiters[1:4]
    run = cut(fifo)
    assert (run.items, run.waiters) == ([1, 2, 3], three)
    assert (fifo.head, fifo.withdrawn) == (4, 1)
    fifo.open(100, 0.0)
    assert fifo.limit == 7


class Other:
    """A waiter of another type, without what a Caller has inside."""

    def __init__(self) -> None:
        self.went = False

    def done(self) -> bool:
        return self.went


def group_of(count: int) -> Group:
    group = Group(count, 0)
    group.waiter = Caller()
    return group


def batch_of(*waiters: Any) -> Any:
    fifo = Fifo(10, 0.0)
    fifo.open(100, 0.0)
    fifo.items += range(len(waiters))
    fifo.waiters += waiters
    return fifo.cut(0.0)


def test_a_batch_of_several_kinds_of_waiters_is_looked_at_one_by_one() -> None:
    """Futures, blocked threads and the items of bulks may stand in one batch."""
    one, two = group_of(2), group_of(2)
    for waiters in (
        [Caller(), Other(), Caller()],
        [Caller(), one, one, Other()],
        [two, two, Caller()],
        [Caller(), group := group_of(2), group],
        [first := group_of(2), first, second := group_of(2), second],
    ):
        run = batch_of(*waiters)
        assert run.items == list(range(len(waiters)))
        assert (run.uniform, run.group) == (False, None)
        groups = [(w, 0) if w is not waiters[i - 1] else (w, 1) for i, w in enumerate(waiters)]
        assert run.waiters == [Member(g) if type(g[0]) is Group else g[0] for g in groups]


def test_of_several_kinds_of_waiters_those_who_have_gone_are_left_out() -> None:
    """Whichever kind they are of."""
    waiters = [Caller(), Other(), Caller(), group_of(1), Other()]
    waiters[0].gone = waiters[1].went = waiters[3].waiter.gone = True  # type: ignore[union-attr]
    run = batch_of(*waiters)
    assert (run.items, run.waiters) == ([2, 4], [waiters[2], waiters[4]])


def test_a_batch_of_one_bulk_is_told_as_that() -> None:
    """Its results then go in as a slice; from where on, the group knows."""
    group = group_of(25)
    fifo = Fifo(10, 0.0)
    fifo.open(100, 0.0, 25)
    fifo.items += range(25)
    fifo.waiters += [group] * 25
    for first, size in ((0, 10), (10, 10), (20, 5)):
        run = cut(fifo)
        assert (run.uniform, run.group, run.first, run.size) == (True, group, first, size)
    assert batch_of(one := group_of(1)).group is one
    group = group_of(2)
    group.waiter.gone = True
    assert batch_of(group, group) is None


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
    assert looks == 1_000 + 4_000 + 16_000 + 64_000


def test_what_is_taken_out_of_a_fifo_keeps_its_time() -> None:
    """An item that moves to the other buffer must not begin to wait anew; the Fifo is as good as new."""
    feeder = Feeder(2, 1.0, 100)
    for number in range(5):
        feeder.now = float(number)
        feeder.add(0)
    feeder.cut(0)
    fifo = feeder.fifo
    assert [(item, since) for item, _, since, _ in fifo.clear()] == [(3, 2.0), (4, 2.0), (5, 4.0)]
    assert (fifo.count, fifo.head, fifo.items, fifo.waiters) == (0, 0, [], [])
    assert list(fifo.clear()) == []
    assert fifo.deadline() is None
