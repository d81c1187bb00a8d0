"""Random programs against the SQLite store and the naive one: every answer and every count must be the same.

A crash is drawn like any other step: a transaction that is cut off before its commit, with the connection dropped
and opened anew, or the death of a consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore
from support import programs, scaled

from microbatch.durable.file_store import FileStore
from microbatch.durable.limits import Limits
from microbatch.durable.records import Claim, NewItem, Settlement, State, Take

CONSUMERS = (1, 2)
numbers = st.integers(1, 12)
items = st.builds(
    lambda payload, key, priority, delay: NewItem(
        payload, key, None if key is None else payload, priority, delay
    ),
    st.sampled_from([b"a", b"b"]),
    st.sampled_from([None, None, None, "k", "l"]),
    st.integers(-1, 1),
    st.sampled_from([0.0, 0.0, 0.0, 5.0]),
)
steps = st.one_of(
    st.tuples(st.just("enqueue"), st.lists(st.lists(items, min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 3)),
    st.tuples(st.just("append"), st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=6), st.integers(0, 3)),
    st.tuples(st.just("claim"), st.sampled_from(CONSUMERS), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("settle"), st.sampled_from(CONSUMERS), st.lists(st.tuples(numbers, st.sampled_from([State.READY, State.SCHEDULED, State.DONE, State.DEAD]), st.booleans()), max_size=4, unique_by=lambda s: s[0])),
    st.tuples(st.just("stale"), st.sampled_from(CONSUMERS), numbers),
    st.tuples(st.just("cancel"), numbers),
    st.tuples(st.just("requeue"), st.lists(numbers, max_size=3, unique=True)),
    st.tuples(st.just("purge"), st.lists(numbers, max_size=3, unique=True)),
    st.tuples(st.just("pause"), st.booleans()),
    st.tuples(st.just("die"), st.sampled_from(CONSUMERS)),
    st.tuples(st.just("prune")),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 6.0, 30.0])),
    st.tuples(st.just("crash")),
)  # fmt: skip


class Time:
    seconds = 1_000_000.0

    def now(self):
        return self.seconds


class Cut(BaseException):
    """The process dies here."""


class Both:
    """The two stores, and what the consumers hold."""

    def __init__(self, folder: Path) -> None:
        self.time = Time()
        self.limits = Limits(max_depth=8, key_ttl=20, result_ttl=10, keep_done=3, keep_dead=2)
        self.path = folder / "queue.db"
        self.file = self.make()
        self.memory = MemoryStore(self.limits, self.time)
        self.number = 0
        self.held: dict[int, dict[int, int]] = {consumer: {} for consumer in CONSUMERS}
        self.names = {consumer: consumer for consumer in CONSUMERS}

    def make(self) -> FileStore:
        return FileStore(self.path, "default", "normal", self.limits, self.time)

    async def same(self, call):
        ours, naive = await call(self.file), await call(self.memory)
        assert repr(ours) == repr(naive)
        return ours

    async def step(self, kind, *arguments) -> None:
        self.number += 1
        await getattr(self, kind.rstrip("_"))(*arguments)
        stats = [await store.stats() for store in (self.file, self.memory)]
        assert stats[0].oldest_age == stats[1].oldest_age
        assert [getattr(stats[0], s.name.lower()) for s in State] == [
            getattr(stats[1], s.name.lower()) for s in State
        ]

    async def enqueue(self, requests, room):
        take = Take(self.names[1], self.number, room) if room else None
        answers = await self.same(lambda store: store.enqueue(requests, take))
        for answer in answers:
            for stored in answer if isinstance(answer, list) else ():
                if stored.taken:
                    self.held[1][stored.id] = self.number

    async def append(self, payloads, room):
        take = Take(self.names[1], self.number, room) if room else None
        first, _, taken, _ = await self.same(lambda store: store.append(payloads, take))
        for number in range(first, first + taken):
            self.held[1][number] = self.number

    async def claim(self, consumer, limit, idle):
        claim = Claim(self.names[consumer], self.number, limit, idle)
        _, claimed = await self.same(
            lambda store: store.settle_and_claim(self.names[consumer], [], claim)
        )
        for item in claimed:
            assert all(item.id not in held for held in self.held.values()), "two have one item"
            self.held[consumer][item.id] = self.number

    async def settle(self, consumer, wanted):
        held = self.held[consumer]
        settlements = [
            Settlement(number, held[number], state, b"r", b"e", 3.0, uncounted)
            for number, state, uncounted in wanted
            if number in held
        ]
        settled, _ = await self.same(
            lambda store: store.settle_and_claim(self.names[consumer], settlements, None)
        )
        assert settled == {s.id for s in settlements}, "an item was taken from a living consumer"
        for number in settled:
            del held[number]

    async def stale(self, consumer, number):
        settlement = Settlement(number, -1, State.DONE)
        settled, _ = await self.same(
            lambda store: store.settle_and_claim(self.names[consumer], [settlement], None)
        )
        assert settled == set()

    async def cancel(self, number):
        await self.same(lambda store: store.cancel(number))

    async def requeue(self, ids):
        await self.same(lambda store: store.requeue(ids))

    async def purge(self, ids):
        await self.same(lambda store: store.purge(ids))

    async def pause(self, paused):
        await self.same(lambda store: store.pause(paused))

    async def die(self, consumer):
        await self.same(lambda store: store.reclaim(self.names[consumer], 3))
        self.held[consumer] = {}
        self.names[consumer] = await self.same(
            lambda store: store.register(1, None, lambda number: 1)
        )

    async def prune(self):
        await self.same(lambda store: store.prune())

    async def pass_(self, seconds):
        self.time.seconds += seconds

    async def crash(self):
        """Everything of a transaction but its commit, then a new connection."""

        def doomed(raw):
            session = self.file._session(raw)
            session.enqueue([[NewItem(b"lost")]], None)
            session.claim(Claim(self.names[1], self.number, 5, True))
            session.count()
            raise ZeroDivisionError

        with contextlib.suppress(ZeroDivisionError):
            await self.file._database.write(doomed)
        await self.file.close()  # its thread has ended then: nothing touches the folder any more
        self.file = self.make()


setattr(Both, "pass", Both.pass_)


@given(programs(steps, 40))
@settings(max_examples=25)
def test_random_programs_agree_with_the_naive_store(program):
    """Items are never lost, doubled, held by two, or counted wrongly, whatever the order of things."""
    run_program(program)


@pytest.mark.soak
@given(programs(steps, 80))
@settings(max_examples=scaled(200))
def test_long_random_programs_agree_with_the_naive_store(program):
    """The same at length."""
    run_program(program)


def run_program(program):
    async def main(folder):
        both = Both(folder)
        for consumer in CONSUMERS:
            both.names[consumer] = await both.same(
                lambda store: store.register(1, None, lambda number: 1)
            )
        for step in program:
            await both.step(*step)
        await both.same(lambda store: store.find(range(1, 60)))
        await both.same(lambda store: store.dead_letters(0, 100))
        await both.file.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
