"""One test body for every store: the SQLite one, and the naive one that the model test believes."""

from __future__ import annotations

import pytest
from memory_store import MemoryStore

from microbatch.durable import IdempotencyConflict, QueueFull
from microbatch.durable.clock import Clock
from microbatch.durable.file_store import FileStore
from microbatch.durable.limits import Limits
from microbatch.durable.records import Claim, NewItem, Settlement, State, Take

pytestmark = pytest.mark.anyio


class Time:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> float:
        return self.seconds


@pytest.fixture
def time():
    return Time()


@pytest.fixture(params=["file", "memory"])
async def make(request, path, time):
    """Makes an open store with the limits that are given."""
    stores = []

    async def make(**limits):
        if request.param == "file":
            store = FileStore(path, "default", "full", Limits(**limits), time)
        else:
            store = MemoryStore(Limits(**limits), time)
        await store.open()
        assert [await store.register(1, None, lambda number: 9) for _ in range(2)] == [1, 2]
        stores.append(store)
        return store

    yield make
    for store in stores:
        await store.close()


def new(*payloads, **fields):
    return [NewItem(payload, **fields) for payload in payloads]


async def ids(store, *requests, take=None):
    return [[row.id for row in answer] for answer in await store.enqueue(requests, take)]


async def claim(store, limit=10, number=1, consumer=1, *, idle=True, settlements=()):
    _, claimed = await store.settle_and_claim(
        consumer, settlements, Claim(consumer, number, limit, idle)
    )
    return [(item.payload, item.attempts) for item in claimed]


async def counts(store):
    stats = await store.stats()
    return {
        name: getattr(stats, name)
        for name in ("ready", "scheduled", "claimed", "done", "dead", "cancelled")
        if getattr(stats, name)
    }


def done(number, claim=1, **fields):
    return Settlement(number, claim, State.DONE, **fields)


async def test_items_get_growing_ids_and_are_claimed_in_order(make):
    store = await make()
    assert await ids(store, new(b"a"), new(b"b", b"c", priority=1)) == [[1], [2, 3]]
    assert await claim(store, 2) == [(b"b", 1), (b"c", 1)]
    assert await claim(store, 2) == [(b"a", 1)]
    assert await counts(store) == {"claimed": 3}


async def test_ids_are_never_used_again(make):
    store = await make()
    await ids(store, new(b"a", b"b"))
    await claim(store)
    await store.settle_and_claim(1, [done(1), done(2)], None)
    assert await store.purge([1, 2]) == 2
    assert await ids(store, new(b"c")) == [[3]]


async def test_a_delayed_item_is_claimed_when_due(make, time):
    store = await make()
    await ids(store, new(b"late", delay=5), new(b"later", delay=9, priority=9), new(b"now"))
    peek = await store.peek(-1)
    assert (peek.ready, peek.next_due, peek.paused) == (1, time.seconds + 5, False)
    assert await claim(store) == [(b"now", 1)]
    time.seconds += 10
    assert await claim(store) == [(b"later", 1), (b"late", 1)]


async def test_the_short_way_takes_new_items_only_if_nobody_is_overtaken(make, time):
    store = await make()
    take = Take(1, 7, 2)
    (rows,) = await store.enqueue([new(b"a", b"b", b"c")], take)
    assert [row.taken for row in rows] == [True, True, False]
    (rows,) = await store.enqueue([new(b"d")], take)
    assert not rows[0].taken  # c was there before it
    await claim(store)
    (rows,) = await store.enqueue(
        [
            new(b"e", delay=5),
        ],
        take,
    )
    assert not rows[0].taken
    (rows,) = await store.enqueue([new(b"f")], take)
    assert rows[0].taken
    time.seconds += 6
    (rows,) = await store.enqueue([new(b"g")], take)
    assert not rows[0].taken  # e is due
    await claim(store)
    await store.pause(True)
    (rows,) = await store.enqueue([new(b"h")], take)
    assert not rows[0].taken


async def test_the_short_way_takes_the_most_urgent_first(make):
    store = await make()
    requests = [new(b"a"), new(b"b", priority=2), new(b"c", priority=1)]
    answers = await store.enqueue(requests, Take(1, 1, 2))
    assert [answer[0].taken for answer in answers] == [False, True, True]


async def test_appending_is_enqueueing_in_bulk(make):
    """The usual way has statements of its own: many rows in each."""
    store = await make(max_depth=100)
    appended = await store.append([bytes([n]) for n in range(90)], Take(1, 1, 7))
    assert appended == (1, 90, 7, "max_depth")
    assert (await store.append([b"x"] * 15, Take(1, 2, 7)))[:3] == (91, 10, 0)
    assert (await store.append([b"x"] * 2, None))[:3] == (101, 0, 0)
    assert await claim(store, 3, number=3) == [(bytes([n]), 1) for n in (7, 8, 9)]
    assert await store.settle_and_claim(1, [done(3, 1)], None) == ({3}, [])
    assert await counts(store) == {"ready": 90, "claimed": 9, "done": 1}
    assert await ids(store, new(*(bytes([n]) for n in range(1)))) == [[101]]


async def test_many_rows_with_fields_of_their_own(make):
    """They go in several statements, and each keeps its place."""
    store = await make()
    requests = [NewItem(bytes([n]), priority=-n) for n in range(90)]
    assert await ids(store, requests) == [list(range(1, 91))]
    assert await claim(store, 100) == [(bytes([n]), 1) for n in range(90)]


async def test_a_settle_needs_the_consumer_and_the_claim(make):
    store = await make()
    await ids(store, new(b"a", b"b", b"c"))
    await claim(store, number=4)
    settled, _ = await store.settle_and_claim(2, [done(1, 4)], None)
    assert settled == set()
    settled, _ = await store.settle_and_claim(
        1, [done(1, 3), done(2, 4, result=b"r"), done(99, 4)], None
    )
    assert settled == {2}
    settled, _ = await store.settle_and_claim(1, [done(2, 4)], None)
    assert settled == set()
    assert await counts(store) == {"claimed": 2, "done": 1}
    (found,) = await store.find([2, 99])
    assert (found.ended.state, found.ended.result, found.ended.attempts) == (State.DONE, b"r", 1)


async def test_who_is_not_a_consumer_of_this_file_gets_nothing(make):
    """The file was replaced under it: nobody would take back what it holds."""
    store = await make()
    (rows,) = await store.enqueue([new(b"a")], Take(99, 1, 5))
    assert not rows[0].taken
    assert await claim(store, consumer=99) == []
    assert await claim(store) == [(b"a", 1)]


async def test_giving_back_and_retrying(make, time):
    store = await make()
    await ids(store, new(b"a", b"b", b"c"))
    await claim(store)
    settlements = [
        Settlement(1, 1, State.READY, uncounted=True),
        Settlement(2, 1, State.READY),
        Settlement(3, 1, State.SCHEDULED, error=b"e", delay=2),
    ]
    await store.settle_and_claim(1, settlements, None)
    assert await claim(store, number=2) == [(b"a", 1), (b"b", 2)]
    time.seconds += 2
    assert await claim(store, number=3) == [(b"c", 2)]


async def test_dead_letters_pages_requeue_and_purge(make):
    store = await make()
    await ids(store, new(b"a", b"b", b"c"))
    await claim(store)
    await store.settle_and_claim(
        1, [Settlement(n, 1, State.DEAD, error=b"e") for n in (1, 2, 3)], None
    )
    assert [row.id for row in await store.dead_letters(0, 2)] == [1, 2]
    assert [row.id for row in await store.dead_letters(2, 2)] == [3]
    assert (await store.dead_letters(2, 2))[0].error == b"e"
    assert await store.requeue([1, 77]) == 1
    assert await store.purge([2]) == 1
    assert await store.purge([1]) == 0
    assert await counts(store) == {"ready": 1, "dead": 1}
    assert await claim(store) == [(b"a", 1)]


async def test_cancel(make):
    store = await make()
    await ids(store, new(b"a"), new(b"b", delay=5), new(b"c"))
    assert await store.cancel(1) is True
    assert await store.cancel(2) is True
    assert await store.cancel(1) is False
    assert await claim(store) == [(b"c", 1)]
    assert await store.cancel(3) is False
    assert await store.cancel(9) is None
    assert await counts(store) == {"claimed": 1, "cancelled": 2}


async def test_pause(make):
    store = await make()
    await ids(store, new(b"a"))
    await store.pause(True)
    assert await claim(store) == []
    assert (await store.stats()).paused
    await store.pause(False)
    assert await claim(store) == [(b"a", 1)]


async def test_keys(make, time):
    store = await make(key_ttl=10)
    one = NewItem(b"a", "k", b"1")
    other = NewItem(b"b", "k", b"2")
    first, second, third = await store.enqueue([[one], [one], [other]], Take(1, 1, 5))
    assert (first[0].id, first[0].taken, first[0].repeated) == (1, True, False)
    assert (second[0].id, second[0].taken, second[0].repeated) == (1, False, True)
    assert isinstance(third, IdempotencyConflict)
    ((again,),) = await store.enqueue([[one]], None)
    assert (again.id, again.repeated) == (1, True)
    time.seconds += 11
    assert await ids(store, [other]) == [[2]]


async def test_a_refused_group_leaves_nothing(make):
    """Its keys and ids included."""
    store = await make(max_depth=3)
    key = NewItem(b"a", "k", b"1")
    answers = await store.enqueue([new(b"a", b"b"), [key, *new(b"c", b"d")], [key]], None)
    assert isinstance(answers[1], QueueFull)
    assert [row.id for row in answers[0]] == [1, 2]
    assert [row.id for row in answers[2]] == [3]
    assert isinstance((await store.enqueue([new(b"e")], None))[0], QueueFull)
    await claim(store, 1)
    await store.settle_and_claim(1, [done(1)], None)
    assert await ids(store, new(b"f")) == [[4]]


async def test_what_a_dead_consumer_held_goes_on_alone(make):
    store = await make()
    consumer = await store.register(1, None, lambda number: 5)
    await ids(store, new(b"a", b"b", b"c"), new(b"d", priority=-1))
    await claim(store, 3, consumer=consumer)
    assert (await store.consumers())[2:] == [(consumer, 5, 1, None)]
    assert await store.reclaim(consumer, 3) == []
    assert [c.id for c in await store.consumers()] == [1, 2]
    assert await claim(store, 9, idle=False) == []
    assert await claim(store, 9) == [(b"a", 2)]
    assert await claim(store, 9) == [(b"b", 2)]
    assert await store.settle_and_claim(
        1, [Settlement(1, 1, State.READY, uncounted=True)], None
    ) == ({1}, [])
    assert await claim(store, 9) == [(b"a", 2)]  # nobody has seen it since: suspect still
    assert await claim(store, 9) == [(b"c", 2)]
    assert await claim(store, 9) == [(b"d", 1)]


async def test_a_consumer_that_held_an_item_too_often_buries_it(make):
    store = await make()
    await ids(store, new(b"a"))
    for number in range(1, 4):
        consumer = await store.register(1, None, lambda number: 5)
        assert await claim(store, number=number, consumer=consumer) == [(b"a", number)]
        assert await store.reclaim(consumer, 3) == ([1] if number == 3 else [])
    assert await counts(store) == {"dead": 1}


async def test_a_consumer_takes_the_next_number_if_its_byte_is_taken(make):
    """After a restored backup the numbers may have been given before."""
    store = await make()
    answers = iter([None, 5])
    consumer = await store.register(1, None, lambda number: next(answers))
    assert [c.id for c in await store.consumers()] == [1, 2, consumer]
    await store.move_consumer(consumer, 6)
    assert [c.lock_file for c in await store.consumers()] == [9, 9, 6]


async def test_retention_by_age(make, time):
    store = await make(result_ttl=10, key_ttl=20)
    await ids(store, new(b"a"), [NewItem(b"b", "k", b"1")], new(b"c"), new(b"d"))
    await claim(store, 3)
    await store.settle_and_claim(1, [done(1), done(2), Settlement(3, 1, State.DEAD)], None)
    await store.cancel(4)
    await prune(store)
    assert await counts(store) == {"done": 2, "dead": 1, "cancelled": 1}
    time.seconds += 11
    await prune(store)
    assert await counts(store) == {
        "done": 1,
        "dead": 1,
    }  # the key's result stays as long as the key
    time.seconds += 11
    await prune(store)
    assert await counts(store) == {"dead": 1}


async def test_retention_by_count_keeps_the_newest(make, time):
    store = await make(keep_done=2, keep_dead=1)
    await ids(store, new(*(bytes([n]) for n in range(7))))
    await claim(store, 7)
    for number in range(1, 8):
        time.seconds += 1
        state = State.DONE if number < 5 else State.DEAD
        await store.settle_and_claim(1, [Settlement(number, 1, state)], None)
    await prune(store)
    assert [found.ended.id for found in await store.find(range(1, 8))] == [3, 4, 7]


async def test_retention_goes_in_small_steps(make, monkeypatch):
    """Writers wait for it, so no step may be long."""
    for module in ("microbatch.durable.store", "memory_store"):
        monkeypatch.setattr(f"{module}.PRUNE_STEP", 3)
    store = await make(keep_done=0)
    await ids(store, new(*(bytes([n]) for n in range(7))))
    await claim(store, 7)
    await store.settle_and_claim(1, [done(n) for n in range(1, 8)], None)
    assert await store.prune() is True
    assert await counts(store) == {"done": 4}
    await prune(store)
    assert await counts(store) == {}


async def prune(store):
    for _ in range(10):
        if not await store.prune():
            return


async def test_the_oldest_age_is_that_of_the_longest_due(make, time):
    store = await make()
    assert (await store.stats()).oldest_age == 0
    await ids(store, new(b"a"))
    time.seconds += 5
    await ids(store, new(b"b", priority=9), new(b"c", priority=4), new(b"d", delay=1))
    time.seconds += 7
    assert (await store.stats()).oldest_age == 12
    await claim(store, 3)
    await store.settle_and_claim(1, [done(1)], None)
    assert (await store.stats()).oldest_age == 7


def test_the_clock_never_goes_back():
    """An hour back must not make a back-off of a second last an hour."""
    wall, monotonic = [1000.0], [50.0]
    clock = Clock(lambda: wall[0], lambda: monotonic[0])
    assert clock.now() == 1000
    wall[0] -= 3600
    monotonic[0] += 5
    assert clock.now() == 1005
    wall[0] = 9000
    assert clock.now() == 9000
    monotonic[0] += 1
    assert clock.now() == 9001
