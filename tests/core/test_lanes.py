"""Lanes: when each is ready, who goes first, what is forgotten. The naive model is beside it."""

from __future__ import annotations

from typing import Any

from support import Caller

from microbatch._core.entry import Entry
from microbatch._core.flushes import Mark
from microbatch._core.lanes import Lanes


def sharer_of(lanes: Lanes, partition: Any, key: Any) -> Entry | None:
    """Return whose slot a new item of this key would share."""
    return lanes.place(Entry(0, Caller(), partition=partition, key=key))[1]


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
    lanes.landed(first.lane, 0.0, first)
    assert cut(lanes).items == [2]
    assert lanes.cut(0.0) is None
    lanes.landed(second.lane, 0.0, second)
    assert cut(lanes).items == [3]


def test_what_waited_for_its_partition_waits_for_company_too() -> None:
    """The place is free, but the batch is neither full nor old enough."""
    lanes = lanes_of(2, 1.0, lane_limit=1)
    for number in range(3):
        put(lanes, number, 100.0)
    run = cut(lanes, 100.0)
    lanes.landed(run.lane, 100.5, run)
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
    lanes.landed(first.lane, 0.0, first)
    put(lanes, 2)
    put(lanes, 3)
    assert cut(lanes).items == [2]
    assert lanes.cut(0.0) is None
    lanes.landed(second.lane, 0.0, second)
    assert cut(lanes).items == [3]


def test_a_batch_from_before_the_buffer_was_emptied_may_land_later() -> None:
    """A batcher makes new lanes then, and what was in flight belongs to the old ones."""
    runs = []
    for _ in range(3):
        lanes = lanes_of(1)
        put(lanes, 0)
        runs.append(cut(lanes))
    for run in runs[:1]:
        lanes.landed(run.lane, 0.0, run)
    assert list(lanes._lanes) == [runs[2].lane]
    for run in (runs[2], runs[1]):
        lanes.landed(run.lane, 0.0, run)
    assert list(lanes._lanes) == []
