"""What a flush counts of a Fifo, and makes due: a place that moves as items leave, are dropped, or go."""

from __future__ import annotations

from fifo_support import cut, filled
from support import Caller

from microbatch._core.flushes import Mark


def test_a_flush_names_who_is_last_now_though_a_sweep_came_before_the_notice() -> None:
    """asyncio tells of a cancellation a turn later; who is never watched would keep the flush waiting."""
    fifo, told = filled(3), list[int]()
    mark = Mark(lambda: told.append(1))
    fifo.flush(mark)
    assert fifo.unwatched() == [fifo.waiters[2]]
    assert fifo.unwatched() == []
    fifo.waiters[2].gone = True
    fifo.sweep()
    assert fifo.unwatched() == [fifo.waiters[1]]
    for waiter in fifo.waiters:
        waiter.gone = True
    assert (fifo.unwatched(), told) == ([], [1])


def test_a_sweep_ends_a_flush_of_which_nobody_is_left() -> None:
    """It need not wait for the notice."""
    fifo, told = filled(3), list[int]()
    fifo.flush(Mark(lambda: told.append(1)))
    for waiter in fifo.waiters:
        waiter.gone = True
    fifo.sweep()
    assert told == [1]


def test_what_is_due_moves_with_the_places_that_are_given_back() -> None:
    """Else later items would leave before their time."""
    fifo = filled(25, max_wait=1.0)
    cut(fifo)
    fifo.flush(Mark(lambda: None))
    fifo.items += range(10)
    fifo.waiters += [Caller() for _ in range(10)]
    assert (fifo.ready(100.0), fifo.flushes.due) == (2, 25)
    fifo.sweep()
    assert (fifo.ready(100.0), fifo.flushes.due) == (2, 15)


def test_a_flush_whose_callers_have_gone_unnoticed_makes_nothing_else_due() -> None:
    """What came later has its own time."""
    fifo, told = filled(2, max_wait=1.0), list[int]()
    fifo.flush(Mark(lambda: told.append(1)))
    assert fifo.unwatched() == [fifo.waiters[1]]
    fifo.items.append(2)
    fifo.waiters.append(Caller())
    for waiter in fifo.waiters[:2]:
        waiter.gone = True
    assert fifo.cut(100.5) is None
    assert told == [1]
    assert cut(fifo).items == [2]


def test_a_flush_waits_for_an_item_that_leaves_as_places_are_given_back() -> None:
    """Then it stands at no place, and in no batch yet."""
    fifo, told = filled(1_000), list[int]()
    cut(fifo, 99)
    for waiter in fifo.waiters[990:999]:
        waiter.gone = True
    fifo.flush(Mark(lambda: told.append(1)))
    assert fifo.unwatched() == [fifo.waiters[999]]
    fifo.items += range(1_000)
    fifo.waiters += [Caller() for _ in range(1_000)]
    run = cut(fifo)
    assert (run.items[0], len(fifo.items), fifo.head) == (999, 1_000, 9)
    assert told == []
    for entry in run.entries:
        entry.release()
    assert told == [1]
