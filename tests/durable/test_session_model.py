"""Drawn programs on a queue's tables, against single items in a dict."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_model import File, Item, Model, shrink

from microbatch.durable._file import sql
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.records import (
    ENDED,
    Clash,
    Demand,
    NewItem,
    Settlement,
    State,
    Verdict,
)
from microbatch.durable.errors import QueueFull

QUEUES, CONSUMERS = 2, 2
LIMITS = Limits(max_depth=40, key_ttl=50.0, result_ttl=100.0, keep_done=12, keep_dead=3)

payload = st.binary(min_size=1, max_size=9)
queues = st.sampled_from([0, 0, 0, 1])
consumers = st.sampled_from([0, 0, 1])
demands = st.none() | st.tuples(consumers, st.integers(1, 3), st.integers(1, 6))
new_items = st.builds(
    NewItem,
    payload=st.sampled_from([b"a", b"a", b"a", b"a longer one"]),
    key=st.sampled_from([None, None, "k", "k", "l", "m"]),
    priority=st.integers(-1, 1),
    delay=st.sampled_from([0.0, 0.0, 1.0, 30.0]),
    trace=st.none() | st.just(b"t"),
)
numbers = st.lists(st.integers(1, 60), max_size=12)
OPERATIONS = st.one_of(
    st.tuples(st.just("append"), queues, st.lists(payload, max_size=12), demands),
    st.tuples(st.just("enqueue"), queues, st.lists(st.lists(new_items, max_size=4), max_size=3), demands),
    st.tuples(st.just("stage"), queues, st.lists(new_items.map(lambda i: i._replace(key=None)), max_size=9), consumers, st.booleans()),
    st.tuples(st.just("claim"), queues, consumers, st.integers(1, 3), st.integers(1, 8)),
    st.tuples(st.just("settle"), queues, consumers, st.lists(st.integers(0, 7), min_size=12, max_size=12)),
    st.tuples(st.just("settle"), queues, consumers, st.just([0] * 12)),
    st.tuples(st.just("take_back"), queues, consumers, st.integers(1, 4)),
    st.tuples(st.just("give_back"), queues, consumers),
    st.tuples(st.just("cancel"), st.integers(1, 60), st.booleans()),
    st.tuples(st.just("requeue"), queues, numbers),
    st.tuples(st.just("purge"), queues, numbers),
    st.tuples(st.just("pause"), queues, st.booleans()),
    st.tuples(st.just("prune"), queues),
    st.tuples(st.just("tidy"), queues),
    st.tuples(st.just("lane"), queues, st.integers(0, 2), st.booleans(), st.booleans()),
    st.tuples(st.just("clock"), st.sampled_from([0.4, 1.0, 10.0, 60.0, 120.0, 1e6, -0.4, -5.0, -1e6])),
)  # fmt: skip


class Program:
    """The file and the model, side by side."""

    def __init__(self, folder: str) -> None:
        self.file = File(Path(folder) / "q.db")
        self.model = Model()
        self.queues = [self.file.write(lambda s, n=n: s.queue(f"q{n}")).id for n in range(QUEUES)]
        self.consumers = [
            self.file.write(lambda s, n=n: s.register(self.queues[0], n, None))
            for n in range(CONSUMERS)
        ]
        self.claims = itertools.count(1, 10)

    def run(self, name: str, *arguments: Any) -> None:
        getattr(self, f"do_{name}")(*arguments)
        self.file.check(self.model)

    def _demand(self, drawn: Any) -> Demand | None:
        if drawn is None:
            return None
        consumer, slots, size = drawn
        return Demand(self.consumers[consumer], next(self.claims), slots, size)

    def _new(self, queue: int, number: int, item: NewItem, state: State) -> Item:
        now = self.file.now
        new = Item(number, queue, item.payload, item.priority, now + item.delay, now)
        new.state, new.key, new.trace = state, item.key, item.trace
        self.model.items[number] = new
        return new

    def _give(self, demand: Demand, new: list[Item]) -> list[list[Item]]:
        """Hand new items to a demand, as the short way does; return its claims."""
        waiting = sorted(new, key=lambda item: item.place)
        claims: list[list[Item]] = []
        while waiting and len(claims) < demand.slots:
            claims.append(self.model.fit(waiting[: demand.size]))
            waiting = waiting[len(claims[-1]) :]
        return claims

    def _compare(self, demand: Demand, claims: list[Any], wanted: list[list[Item]]) -> None:
        assert [claim.number for claim in claims] == list(
            range(demand.claim, demand.claim + len(claims))
        )
        for claim, chosen in zip(claims, wanted, strict=True):
            numbers = [n for one in claim.ranges for n in range(one.first, one.first + one.count)]
            assert numbers == [item.id for item in chosen]
            assert claim.payloads == [item.payload for item in chosen]
            traces = [item.trace for item in chosen]
            assert claim.traces == (traces if any(traces) else None)
            for item in chosen:
                item.state, item.consumer, item.claim = State.CLAIMED, demand.consumer, claim.number

    def do_append(self, queue: int, content: list[bytes], drawn: Any) -> None:
        queue, demand = self.queues[queue], self._demand(drawn)
        room = LIMITS.max_depth - self.model.depth(queue)
        free = bool(content) and room > 0 and demand is not None
        free = free and self.model.is_free(queue, self.file.now)
        answer = self.file.write(lambda s: s.append(queue, LIMITS, content, None, demand))
        assert answer.accepted == min(len(content), max(0, room))
        new = [
            self._new(queue, answer.first + index, NewItem(content[index]), State.READY)
            for index in range(answer.accepted)
        ]
        if demand is not None and free:
            self._compare(demand, answer.claims, self._give(demand, new))
        else:
            assert answer.claims == []

    def do_enqueue(  # noqa: PLR0912 - told in the order in which it happens
        self, queue: int, groups: list[list[NewItem]], drawn: Any
    ) -> None:
        queue, demand, model, now = (
            self.queues[queue],
            self._demand(drawn),
            self.model,
            self.file.now,
        )
        before = dict(model.items)
        owners = {key: model.owner(queue, key, now) for key in "klm"}
        old_keys = dict(model.keys)
        answers, claims = self.file.write(lambda s: s.enqueue(queue, LIMITS, groups, demand))
        room = LIMITS.max_depth - model.depth(queue)
        new: list[Item] = []
        for group, answer in zip(groups, answers, strict=True):
            mine: dict[str, NewItem] = {}
            clash, fresh = False, 0
            for item in group:
                older: Any = mine.get(item.key or "") or owners.get(item.key or "")
                if older is None:
                    fresh += 1
                    if item.key:
                        mine[item.key] = item
                elif older.payload != item.payload:
                    clash = True
                    break
            if clash:
                assert isinstance(answer, Clash)
                assert answer.payload == older.payload
                continue
            if fresh > room:
                assert isinstance(answer, QueueFull)
                continue
            room -= fresh
            for item, stored in zip(group, answer, strict=True):
                owner = owners.get(item.key or "")
                assert stored.repeated == (owner is not None)
                if owner is not None:
                    assert stored.id == owner.id
                    continue
                assert stored.id not in before
                state = State.SCHEDULED if item.delay else State.READY
                new.append(self._new(queue, stored.id, item, state))
                if item.key:
                    owners[item.key] = new[-1]
                    model.keys[queue, item.key] = (stored.id, now + LIMITS.key_ttl)
        assert [item.id for item in new] == sorted(item.id for item in new)
        assert new or model.keys == old_keys
        for item in new:
            del model.items[item.id]
        free = bool(new) and demand is not None and model.is_free(queue, now)
        model.items.update((item.id, item) for item in new)
        if demand is not None and free:
            ready = [item for item in new if item.state == State.READY]
            self._compare(demand, claims, self._give(demand, ready))
        else:
            assert claims == []

    def do_stage(self, queue: int, items: list[NewItem], consumer: int, show: bool) -> None:
        queue, consumer, part = self.queues[queue], self.consumers[consumer], next(self.claims)
        for half in (items[:4], items[4:]):
            refused = self.file.write(
                lambda s, half=half: s.stage(queue, LIMITS, half, consumer, part)
            )
            room = LIMITS.max_depth - self.model.depth(queue)
            assert (refused is not None) == (len(half) > room)
            if refused is None:
                new = set(self.file.shown()) - set(self.model.items)
                for number, item in zip(sorted(new), half, strict=True):
                    staged = self._new(queue, number, item, State.STAGED)
                    staged.due, staged.since = item.delay, 0.0
                    staged.consumer, staged.claim = consumer, part
        self.file.check(self.model)
        staged_now = [item for item in self.model.of(queue, State.STAGED) if item.claim == part]
        if show:
            shown = self.file.write(lambda s: s.show_staged(queue, consumer, part))
            ids = [n for first, count in shown for n in range(first, first + count)]
            assert ids == [item.id for item in staged_now]
            for item in staged_now:
                item.state = State.SCHEDULED if item.due else State.READY
                item.due, item.since = self.file.now + item.due, self.file.now
                item.consumer = item.claim = None
        else:
            while self.file.write(lambda s: s.drop_staged(queue, consumer, 2, claim=part)):
                pass
            for item in staged_now:
                self.model.remove(item.id)

    def do_claim(self, queue: int, consumer: int, slots: int, size: int) -> None:
        queue, model = self.queues[queue], self.model
        demand = Demand(self.consumers[consumer], next(self.claims), slots, size)
        model.repair(queue, self.file.now)
        aparts = {item.id: item.apart for item in model.of(queue, State.READY)}
        wanted = (
            [] if queue in model.paused else model.next_claims(queue, self.file.now, slots, size)
        )
        claims, row = self.file.write(lambda s: s.claim(queue, demand))
        assert row == self.file.write(lambda s: s.look(queue))
        # At most so many were made ready; what comes after the first of the others is left for later.
        late = []
        for item in model.of(queue, State.SCHEDULED):
            if item.due <= self.file.now and queue not in model.paused:
                if self.file.shown()[item.id][2] == State.SCHEDULED:
                    late.append(item)
                else:
                    item.state = State.READY
        if late:
            bound = min(item.place for item in late)
            kept = [[item for item in claim if item.place < bound] for claim in wanted]
            if kept != wanted:
                for number, apart in aparts.items():
                    model.items[number].apart = apart
                kept = [claim for claim in kept if claim]
                if any(item.apart is not None for claim in wanted for item in claim):
                    self._adopt(demand, claims)
                    return
                wanted = kept
        self._compare(demand, claims, wanted)

    def _adopt(self, demand: Demand, claims: list[Any]) -> None:
        shown = self.file.shown()
        for claim in claims:
            for one in claim.ranges:
                for number in range(one.first, one.first + one.count):
                    item = self.model.items[number]
                    assert item.state == State.READY
                    item.state, item.consumer, item.claim = (
                        State.CLAIMED,
                        demand.consumer,
                        claim.number,
                    )
        for number, item in self.model.items.items():
            if item.state in (State.READY, State.CLAIMED) and item.apart is not None:
                item.apart = shown[number][4][2]

    def do_settle(self, queue: int, consumer: int, how: list[int]) -> None:
        queue, consumer, model, now = (
            self.queues[queue],
            self.consumers[consumer],
            self.model,
            self.file.now,
        )
        held = [item for item in model.of(queue, State.CLAIMED) if item.consumer == consumer]
        if not held:
            return
        claim = min(item.claim or 0 for item in held)
        mine = sorted((item for item in held if item.claim == claim), key=lambda item: item.id)
        done, results, verdicts, changes = [], [], [], []
        for item, way in zip(mine, how + [0] * len(mine), strict=False):
            if way in (0, 1):
                done.append(item.id)
                results.append(b"result" if way == 0 else None)
                changes.append((item, State.DONE, results[-1], None, 0.0, True))
            elif way < 7:
                state = (State.SKIPPED, State.DEAD, State.SCHEDULED, State.SCHEDULED, State.READY)[
                    way - 2
                ]
                error = b"error" if way in (3, 4) else None
                delay = 2.0 if state == State.SCHEDULED else 0.0
                verdicts.append(Verdict(item.id, state, error, delay, state != State.READY))
                changes.append((item, state, None, error, delay, state != State.READY))
        stranger = max(model.items) + 1000
        settlement = Settlement(claim, [*done, stranger], [*results, b"nobody's"], verdicts)
        settled = self.file.write(lambda s: s.settle(queue, LIMITS, consumer, [settlement]))
        assert settled == {item.id for item, *_ in changes}
        for item, state, result, error, delay, counted in changes:
            item.attempts += counted
            item.result = result
            if state in (State.DONE, State.SKIPPED):
                item.error = error
            item.error = error or item.error
            if state in ENDED:
                model.end(item, state, now, LIMITS.result_ttl)
            else:
                model.give_back(item)
                item.state = state
                if state == State.SCHEDULED:
                    item.due, item.since, item.apart = now + delay, now, None

    def do_take_back(self, queue: int, consumer: int, attempts_max: int) -> None:
        queue, consumer = self.queues[queue], self.consumers[consumer]
        before = {n: item.error for n, item in self.model.items.items()}
        dead = self.model.take_back(queue, consumer, attempts_max, self.file.now)
        found: list[int] = []
        more = True
        while more:
            some, more = self.file.write(lambda s: s.take_back(queue, consumer, attempts_max))
            found += some
        assert found == dead
        errors = dict(self.file.raw.execute("SELECT * FROM microbatch_errors"))
        for number in dead:
            assert b"ProcessDied" in errors[number]
            assert b"its process died while it had this item alone" in errors[number]
            assert before[number] is None or b"the error before" in errors[number]
            self.model.items[number].error = errors[number]

    def do_give_back(self, queue: int, consumer: int) -> None:
        queue, consumer = self.queues[queue], self.consumers[consumer]
        while self.file.write(lambda s: s.give_back(queue, consumer)):
            pass
        for item in self.model.of(queue, State.CLAIMED):
            if item.consumer == consumer:
                self.model.give_back(item)

    def do_cancel(self, number: int, wrong: bool) -> None:
        item = self.model.items.get(number)
        queue = item.queue if item is not None else self.queues[0]
        ticket = (8,) if wrong else ()
        answer = self.file.write(lambda s: s.cancel(queue, LIMITS, number, *ticket))
        if item is None or wrong or item.state == State.STAGED:
            assert answer is None
        elif item.state in (State.READY, State.SCHEDULED):
            assert answer is True
            if item.key and self.model.keys.get((queue, item.key), (0,))[0] == number:
                del self.model.keys[queue, item.key]
            item.key = None
            self.model.end(item, State.CANCELLED, self.file.now, LIMITS.result_ttl)
        else:
            assert answer is False

    def do_requeue(self, queue: int, chosen: list[int]) -> None:
        queue, now = self.queues[queue], self.file.now
        dead = [item for item in self.model.of(queue, State.DEAD) if item.id in chosen]
        assert self.file.write(lambda s: s.requeue(queue, chosen)) == len(dead)
        for item in dead:
            item.state, item.due, item.since = State.READY, now, now
            item.attempts = item.deaths = 0

    def do_purge(self, queue: int, chosen: list[int]) -> None:
        queue = self.queues[queue]
        ended = [item.id for item in self.model.of(queue, *ENDED) if item.id in chosen]
        assert self.file.write(lambda s: s.purge(queue, chosen)) == len(ended)
        for number in ended:
            self.model.remove(number)

    def do_pause(self, queue: int, paused: bool) -> None:
        queue = self.queues[queue]
        self.file.write(lambda s: s.pause(queue, paused))
        (self.model.paused.add if paused else self.model.paused.discard)(queue)

    def do_prune(self, queue: int) -> None:
        queue, model, now = self.queues[queue], self.model, self.file.now
        for _ in range(100):
            if not self.file.write(lambda s: s.prune(queue, LIMITS)):
                break
        else:
            raise AssertionError("it never ends")
        left = self.file.shown()
        gone = [item for item in model.of(queue, *State) if item.id not in left]
        done = model.of(queue, State.DONE, State.SKIPPED)
        for item in gone:
            assert item.state in ENDED
            if item.state == State.DEAD:
                continue
            beyond = item in done and len(done) > LIMITS.keep_done
            assert beyond or (item.keep_until is not None and item.keep_until <= now)
            if item.key is not None and item.keep_until > now:
                owner, expires = model.keys.get((queue, item.key), (0, 0.0))
                assert owner != item.id or expires <= now
        for item in gone:
            model.remove(item.id)
        living = sum(
            1
            for item in model.of(queue, State.DONE, State.SKIPPED)
            if item.key and model.keys.get((queue, item.key), (0,))[0] == item.id
        )
        assert len(model.of(queue, State.DONE, State.SKIPPED)) <= LIMITS.keep_done + living
        assert len(model.of(queue, State.DEAD)) <= LIMITS.keep_dead

    def do_tidy(self, queue: int) -> None:
        while self.file.write(lambda s: s.tidy(self.queues[queue])):
            pass

    def do_lane(self, queue: int, lane: int, is_open: bool, move: bool) -> None:
        """Open or close a lane; move what is ready in the first one to it, as jobs will."""
        queue, raw = self.queues[queue], self.file.raw
        raw.execute(
            "INSERT OR IGNORE INTO microbatch_lanes (queue, lane) VALUES (?, ?)", (queue, lane)
        )
        raw.execute("UPDATE microbatch_lanes SET open = ? WHERE queue = ? AND lane = ?", (is_open, queue, lane))  # fmt: skip
        (self.model.closed.discard if is_open else self.model.closed.add)((queue, lane))
        if not move:
            return
        for item in self.model.of(queue, State.READY):
            item.lane = lane
        raw.execute(
            "UPDATE microbatch_ranges SET lane = ? WHERE queue = ? AND state = 0", (lane, queue)
        )
        for (number,) in raw.execute(
            "SELECT lane FROM microbatch_lanes WHERE queue = ?", (queue,)
        ).fetchall():
            (head,) = raw.execute(sql.HEAD, (queue, number)).fetchall() or [(None, None, None)]
            raw.execute(sql.SET_HEAD, (*head, queue, number))

    def do_clock(self, step: float) -> None:
        self.file.now += step


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@given(st.integers(1, 70).flatmap(lambda n: st.lists(OPERATIONS, min_size=n, max_size=n)))
@settings(deadline=None)
def test_a_file_of_ranges_is_a_dict_of_items(operations: list[Any]) -> None:
    """Whatever is done, in whatever order: no item is lost, doubled, miscounted or handed out in a wrong order."""
    with tempfile.TemporaryDirectory() as folder:
        program = Program(folder)
        try:
            for operation in operations:
                program.run(*operation)
        finally:
            program.file.raw.close()
