"""Fifo: since when its items wait, told by few looks at the clock and little memory."""

from __future__ import annotations

from fifo_support import cut, filled
from support import Caller

from microbatch._core.fifo import Fifo


def test_since_when_items_wait_moves_with_their_places() -> None:
    """Each batch of a Fifo that counts the time knows when its first item came, before and after."""
    fifo = filled(3_005, max_wait=1.0)
    for number in range(300):
        run = cut(fifo, now=100 + number / 10)
        assert run.since == 100 + number / 10
    assert (fifo.count, fifo.deadline()) == (5, 131.0)
    assert (fifo.cut(130.99), fifo.ready(130.99), fifo.ready(131.0)) == (None, 0, 1)
    run = cut(fifo, now=131.0)
    assert (run.items, run.since, run.reason) == (list(range(3_000, 3_005)), 130.0, "wait")


def test_a_fifo_that_counts_the_time_reads_the_clock_for_each_batch() -> None:
    """Not for each item, also where each item asks; many that come at once have a time of their own."""
    fifo = Fifo(10, 1.0)
    for number in range(25):
        fifo.open(100, 100.0 + number)
        fifo.items.append(number)
        fifo.waiters.append(Caller())
    assert len(fifo._times) == 3
    fifo.open(100, 200.0, 2)
    fifo.items += [25, 26]
    fifo.waiters += [Caller(), Caller()]
    assert [since for _, _, since, _ in fifo.clear()] == [100.0] * 10 + [110.0] * 10 + [
        120.0
    ] * 5 + [200.0] * 2


def test_what_is_left_beside_full_batches_waits_by_its_own_time() -> None:
    """It is not due because those before it are; without a wait it is, whatever the time."""
    fifo = filled(35, max_wait=1.0)
    cut(fifo)
    assert (fifo.deadline(), fifo.ready(101.29), fifo.ready(101.3)) == (101.3, 2, 3)
    assert filled(35).ready(0.0) == 4
    closing = filled(5, max_wait=1.0)
    closing.closing = True
    assert (closing.ready(0.0), cut(closing, now=0.0).reason) == (1, "close")


def unmarked(fifo: Fifo, count: int) -> None:
    fifo.open(1_000, None)
    fifo.items += range(count)
    fifo.waiters += [Caller() for _ in range(count)]


def test_what_no_clock_was_read_for_waits_since_the_first_cut_that_left_it() -> None:
    """So also in a Fifo that was emptied, in whichever way."""
    fifo = Fifo(2, 0.0)
    for now in (10.0, 20.0, 30.0, 40.0):
        unmarked(fifo, 3)
        run = cut(fifo, now=now)
        assert (run.items, run.since) == ([0, 1], now)
        if now < 30:
            run = cut(fifo, now=now + 5)
            assert (run.items, run.since) == ([2], now)
        elif now < 40:
            fifo.waiters[-1].gone = True
            fifo.sweep()
        else:
            assert [(item, since) for item, _, since, _ in fifo.clear(45.0)] == [(2, 40.0)]
    unmarked(fifo, 3)
    assert cut(fifo, now=10.0).since == 10.0
    assert cut(fifo, now=20.0).since == 10.0
    unmarked(fifo, 1)
    assert [since for _, _, since, _ in fifo.clear(45.0)] == [45.0]


def test_cuts_are_told_apart_by_the_millisecond_and_only_while_items_come() -> None:
    """A note for each cut would cost as much as one for each batch of one."""
    fifo = Fifo(1, 0.0)
    unmarked(fifo, 10)
    for number in range(50):
        cut(fifo, now=100 + number / 10_000)
        fifo.items.append(number)
        fifo.waiters.append(Caller())
    assert len(fifo._times) <= 7
    fifo = Fifo(1, 0.0)
    unmarked(fifo, 100)
    for number in range(50):
        cut(fifo, now=100.0 + number)
    assert len(fifo._times) <= 2


def test_sweeping_keeps_the_times_of_those_who_stay() -> None:
    """Places move up, and the times with them; an empty Fifo is swept for nothing."""
    fifo = Fifo(2, 1.0)
    fifo.sweep()
    for number in range(6):
        if len(fifo.items) >= fifo.limit:
            fifo.open(100, 100.0 + number)
        fifo.items.append(number)
        fifo.waiters.append(Caller())
    for place in (0, 2, 3):
        fifo.waiters[place].gone = True
    fifo.sweep()
    assert (fifo.items, fifo.withdrawn) == ([1, 4, 5], 3)
    fifo.waiters[1].gone = True
    assert [(item, since) for item, _, since, _ in fifo.clear()] == [(1, 100.0), (5, 104.0)]
    assert fifo.withdrawn == 4


def arrived(fifo: Fifo, count: int, *, every: float) -> list[Caller]:
    """Put in items that come one after the other."""
    callers = [Caller() for _ in range(count)]
    for number, caller in enumerate(callers):
        if len(fifo.items) >= fifo.limit:
            fifo.open(10**9, number * every)
        fifo.items.append(number)
        fifo.waiters.append(caller)
    return callers


def test_a_sweep_forgets_no_time_of_those_who_stay() -> None:
    """Else callers who give up would make the others' waits look longer with every look at stats()."""
    fifo = Fifo(10, 1.0)
    callers = arrived(fifo, 100, every=1.0)
    for caller in callers[:35]:
        caller.gone = True
    fifo.sweep()
    assert (fifo.count, fifo.withdrawn) == (65, 35)
    run = fifo.cut(1000.0)
    assert run is not None
    assert (run.items[0], run.since) == (35, 30.0)
    for caller in callers[45:]:
        caller.gone = True
    fifo.sweep()
    assert (fifo.count, fifo.withdrawn, fifo.deadline()) == (0, 90, None)


def test_what_cuts_remember_of_time_is_bounded() -> None:
    """One note a millisecond, and none for what has gone: a million waiting items must not cost two."""
    fifo = Fifo(1, 0.0)
    arrived(fifo, 3000, every=0.0)
    now = 1.0
    for number in range(3000):
        run = fifo.cut(now)
        assert run is not None
        assert run.items == [number]
        assert run.since <= now
        assert len(fifo._times) < 5
        now += 0.0001
    assert not fifo._times
