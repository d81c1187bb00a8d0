"""Lanes under drawn programs, against a naive model: order, priority, weight, partition, key, flush."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support import Caller, programs

from microbatch._core.entry import BUFFERED, FLYING, Entry
from microbatch._core.flushes import Mark
from microbatch._core.hold import Hold
from microbatch._core.lanes import Lanes


def sharer_of(lanes: Lanes, partition: Any, key: Any) -> Entry | None:
    """Return whose slot a new item of this key would share."""
    return lanes.place(Entry(0, Caller(), partition=partition, key=key))[1]


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
        self.held: dict[
            Any, float
        ] = {}  # when the time of partitions that wait for their backend is over
        self.awaited: set[Any] = set()  # of these one batch goes first
        self.probes: dict[Any, Any] = {}  # where it is under way
        self.again: set[Entry] = set()  # were refused

    def of(self, partition: Any) -> list[Entry]:
        return [entry for entry in self.entries if entry.partition == partition]

    def is_free(self, partition: Any) -> bool:
        if partition in self.probes or self.held.get(partition, -1.0) > self.now:
            return False
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
            or any(
                entry.seq >= entries[0].seq for entry in self.again if entry.partition == partition
            )
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
        # Beside one that was refused another one of its key may stand, which came meanwhile: either will do.
        assert sharer in keyed if keyed else sharer is None
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
            self.land_it(run)

    def land_it(self, run: Any) -> None:
        partition = run.lane.partition
        if self.probes.get(partition) is run:
            del self.probes[partition]
            self.awaited.discard(partition)
        self.lanes.landed(run.lane, self.now, run)

    def refuse(self, one: int, two: int) -> None:
        """A batch comes back whose backend took some of it, and nothing more now."""
        if not self.flying:
            return
        run = self.flying.pop(one % len(self.flying))
        partition, lane = run.lane.partition, run.lane
        until = self.now + two % 4 * 0.5
        if lane.hold is None:
            lane.hold = Hold()
        lane.hold.begin(until)
        self.lanes.hold(lane)
        self.held[partition] = until
        self.awaited.add(partition)
        self.probes.pop(partition, None)
        self.was_due.discard(partition)
        back = [entry for place, entry in enumerate(run.entries) if (place + one) % 3]
        for entry in run.entries:
            if entry in back:
                self.lanes.put_back(entry, self.now)
                self.entries.append(entry)
                self.again.add(entry)
                # Whatever a flush counted stands behind it, so it goes for that reason too.
                if any(e.partition == partition and e.seq > entry.seq for e in self.flushed):
                    self.flushed.add(entry)
            else:
                entry.release()
        self.entries.sort(key=lambda entry: entry.seq)
        self.land_it(run)

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
        if partition in self.awaited:
            self.probes[partition] = run

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
        elif self.max_wait and (
            self.now >= run.since + self.max_wait or self.is_again(run.lane.partition, run.entries)
        ):
            assert run.reason == "wait"
        else:
            assert run.reason == "idle"
            assert self.pressed or not self.max_wait
        if self.max_weight is not None:
            assert run.weight <= self.max_weight

    def is_again(self, partition: Any, entries: list[Entry]) -> bool:
        last = max([e.seq for e in self.again if e.partition == partition], default=-1)
        return any(entry.seq <= last for entry in entries)

    def forget(self) -> None:
        """Partitions that have nothing when their time is over begin anew."""
        self.lanes.ready(self.now)  # they look what time it is
        flying = {run.lane.partition for run in self.flying}
        for partition in list(self.awaited):
            if not (self.of(partition) or partition in flying or self.held[partition] > self.now):
                self.awaited.discard(partition)

    def check(self) -> None:
        self.forget()
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
        idle += [
            until
            for partition, until in self.held.items()
            if until > self.now and self.of(partition)
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


STEPS = ["add"] * 6 + ["cut"] * 3 + "withdraw leave sweep wait flush press land land refuse".split()  # noqa: SIM905


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
        program.now += 0.5
    program.now += 2.0
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
