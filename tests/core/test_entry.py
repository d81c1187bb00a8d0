"""Entry and Mark: an item in lanes, and what tells when all that it counted are gone."""

from __future__ import annotations

import contextvars

from support import Caller

from microbatch._core.entry import ENDED, FLYING, NEW, Entry
from microbatch._core.flushes import Mark

# --- Mark -------------------------------------------------------------------------------------------------------


def test_a_mark_tells_when_all_that_it_counted_are_gone() -> None:
    """flush() waits for it."""
    told: list[int] = []
    mark = Mark(lambda: told.append(1))
    mark.left += 2
    mark.release()
    assert (mark.left, told) == (1, [])
    mark.release()
    assert (mark.left, told) == (0, [1])


# --- Entry ------------------------------------------------------------------------------------------------------


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
    assert (bare.attempts, bare.seq, bare.since, bare.queued, bare.state) == (1, 0, 0.0, False, NEW)
    assert (bare.lane, bare.run, bare.marks) == (None, None, None)


def test_an_entry_that_is_released_keeps_nobody_alive() -> None:
    """And tells every flush that counted it, once."""
    told: list[str] = []
    entry = Entry("item", Caller(), context=contextvars.copy_context())
    entry.state = FLYING
    entry.marks = [Mark(lambda: told.append("first")), Mark(lambda: told.append("second"))]
    for mark in entry.marks:
        mark.left = 1
    entry.release()
    entry.release()
    assert told == ["first", "second"]
    assert (entry.item, entry.key) == (None, None)
    assert (entry.waiter, entry.run, entry.lane, entry.context) == (None, None, None, None)
    assert (entry.state, entry.marks) == (ENDED, None)
