"""A queue as single items in a dict: what `Session` must amount to, told as plainly as can be.

And `File`, which runs a session's statements on a plain connection and reads the tables back item by item.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from microbatch.durable._file import (
    claiming,
    endings,
    job_incoming,
    job_pages,
    job_steps,
    keeping,
    payloads,
    ranges,
    schema,
    sql,
    staging,
    storing,
)
from microbatch.durable._file.records import ENDED, Range, State
from microbatch.durable._file.session import Ids, Session, run
from microbatch.durable._file.view import CLOCK_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

#: Bounds so small that a drawn program meets all of them.
SMALL = {
    "ITEMS_MAX": 7,
    "BLOB_BYTES": 12,
    "BLOB_ITEMS": 4,
    "CLAIM_BYTES": 25,
    "PROMOTE_STEP": 3,
    "READ_STEPS": (1, 2, 3),
    "PRUNE_STEP": 4,
    "MERGED_RUNS": 2,
    "STEP": 3,
    "IDS_STEP": 2,
    "IDS_TOGETHER": 3,
    "PAGE_STEP": 3,
    "PAGE_BYTES": 60,
    "COPIED_BYTES": 20,
}


def shrink(monkeypatch: Any) -> None:
    """Make every bound small, wherever a module has it."""
    jobs = (job_incoming, job_pages, job_steps)
    for module in (claiming, keeping, payloads, ranges, endings, staging, storing, *jobs):
        for name, value in SMALL.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("microbatch.durable._file.view.RESERVED", 10)


@dataclass
class Item:
    """One item, as the model has it."""

    id: int
    queue: int
    payload: bytes
    priority: int = 0
    due: float = 0.0
    since: float = 0.0
    lane: int = 0
    state: State = State.READY
    attempts: int = 0
    deaths: int = 0
    apart: int | None = None
    consumer: int | None = None
    claim: int | None = None
    key: str | None = None
    result: bytes | None = None
    error: bytes | None = None
    keep_until: float | None = None
    trace: bytes | None = None

    @property
    def place(self) -> tuple[int, float, int]:
        return -self.priority, self.due, self.id

    @property
    def is_needed(self) -> bool:
        return self.state not in (State.DONE, State.SKIPPED) or self.key is not None

    def shown(self) -> tuple[Any, ...]:
        """Return what the file must say of it."""
        waits = None if self.state in ENDED else (self.due, self.since, self.apart)
        deaths = None if self.state in ENDED else self.deaths
        return (
            self.queue, self.lane, int(self.state), self.priority, waits, self.attempts, deaths,
            self.consumer, self.claim, self.key,
        )  # fmt: skip


@dataclass
class Model:
    """Items, keys and what is closed."""

    items: dict[int, Item] = field(default_factory=dict)
    keys: dict[tuple[int, str], tuple[int, float]] = field(default_factory=dict)
    paused: set[int] = field(default_factory=set)
    closed: set[tuple[int, int]] = field(default_factory=set)

    def of(self, queue: int, *states: State) -> list[Item]:
        return [i for i in self.items.values() if i.queue == queue and i.state in states]

    def depth(self, queue: int) -> int:
        return len(self.of(queue, State.READY, State.SCHEDULED, State.CLAIMED, State.STAGED))

    def owner(self, queue: int, key: str, now: float) -> Item | None:
        number, expires = self.keys.get((queue, key), (0, 0.0))
        item = self.items.get(number)
        return None if item is None or (item.state in ENDED and expires <= now) else item

    def is_free(self, queue: int, now: float) -> bool:
        if queue in self.paused or (queue, 0) in self.closed or self.of(queue, State.READY):
            return False
        if self.of(queue, State.SCHEDULED):
            self.repair(queue, now)
        return not any(item.due <= now for item in self.of(queue, State.SCHEDULED))

    def repair(self, queue: int, now: float) -> None:
        for item in self.of(queue, State.READY, State.SCHEDULED):
            if item.since > now + CLOCK_TOLERANCE:
                item.due, item.since = now + (item.due - item.since), now

    def next_claims(self, queue: int, now: float, slots: int, size: int) -> list[list[Item]]:
        """Return what claims get, were everything that is overdue ready."""
        waiting = [
            item
            for item in self.of(queue, State.READY, State.SCHEDULED)
            if (item.state == State.READY or item.due <= now)
            and (queue, item.lane) not in self.closed
        ]
        waiting.sort(key=lambda item: item.place)
        claims: list[list[Item]] = []
        while waiting and len(claims) < slots:
            first = waiting[0]
            if first.apart is not None:
                group = [i for i in waiting if (i.apart, i.lane) == (first.apart, first.lane)]
                chosen = self.fit(group[:size])
                claims.append(chosen)
                if len(chosen) < len(group):
                    left = group[len(chosen) :]
                    for item in left:
                        item.apart = left[0].id
                    break
            else:
                stop = next((n for n, i in enumerate(waiting) if i.apart is not None), None)
                claims.append(self.fit(waiting[:stop][:size]))
            waiting = [item for item in waiting if item not in claims[-1]]
        return claims

    def fit(self, chosen: list[Item]) -> list[Item]:
        size = 0
        for index, item in enumerate(chosen):
            size += len(item.payload)
            if index and size > SMALL["CLAIM_BYTES"]:
                return chosen[:index]
        return chosen

    def end(self, item: Item, state: State, now: float, ttl: float) -> None:
        item.state, item.consumer, item.claim, item.apart = state, None, None, None
        item.keep_until = None if state == State.DEAD else now + ttl
        if item.key is not None and state in (State.DONE, State.SKIPPED):
            number, expires = self.keys.get((item.queue, item.key), (0, 0.0))
            if number == item.id:
                item.keep_until = max(now + ttl, expires)

    def take_back(self, queue: int, consumer: int, attempts_max: int, now: float) -> list[int]:
        held = [i for i in self.of(queue, State.CLAIMED) if i.consumer == consumer]
        dead = []
        for claim in sorted({item.claim or 0 for item in held}):
            group = [item for item in held if item.claim == claim]
            group.sort(key=lambda item: item.place)
            if len(group) == 1:
                item = replace(group[0])
                item.attempts, item.deaths = item.attempts + 1, item.deaths + 1
                self.items[item.id] = item
                if item.deaths >= 2 or item.attempts >= attempts_max:
                    self.end(item, State.DEAD, now, 0)
                    dead.append(item.id)
                else:
                    item.apart = item.id
                    self.give_back(item)
                continue
            size, room, first = -(-len(group) // 10), 0, group[0]
            for item in group:
                if not room or item.lane != first.lane:
                    room, first = size, item
                item.apart = first.id
                self.give_back(item)
                room -= 1
        return dead

    def give_back(self, item: Item) -> None:
        item.state, item.consumer, item.claim = State.READY, None, None

    def remove(self, number: int) -> None:
        item = self.items.pop(number)
        if item.key is not None and self.keys.get((item.queue, item.key), (0, 0))[0] == number:
            del self.keys[item.queue, item.key]


class File:
    """The tables, and sessions on them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        schema.prepare(self.raw, path, "normal", lambda _: True)
        self.raw.execute("PRAGMA synchronous = OFF")
        self.ids: Ids | None = Ids()
        self.now = 1_000_000.0
        self.statements: list[str] = []

    def write(self, work: Callable[[Session], Generator[Any, Any, Any]]) -> Any:
        """Run one transaction."""
        session = Session(path=self.path, now=self.now, ticket=7, ids=self.ids, wal_size=lambda: 0)
        self.raw.execute("BEGIN IMMEDIATE")
        try:
            answer = run(self.raw, self._noted(work(session)))
            run(self.raw, self._noted(session.finish()))
        except BaseException:
            self.raw.execute("ROLLBACK")
            if self.ids is not None:
                self.ids.rollback()
            raise
        self.raw.execute("COMMIT")
        if self.ids is not None:
            self.ids.commit()
        return answer

    def _noted(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        answer = None
        try:
            while True:
                step = steps.send(answer)
                self.statements.append(step[0])
                answer = yield step
        except StopIteration as end:
            return end.value

    def ranges(self) -> list[Range]:
        rows = self.raw.execute("SELECT * FROM microbatch_ranges ORDER BY first_id").fetchall()
        return [Range(*row) for row in rows]

    def shown(self) -> dict[int, tuple[Any, ...]]:
        """Return each item as its range has it; none may be in two."""
        found: dict[int, tuple[Any, ...]] = {}
        for one in self.ranges():
            ended = one.state in ENDED
            shown = (
                one.queue, one.lane, one.state, one.priority,
                None if ended else (one.due, one.since, one.apart),
                one.attempts, None if ended else one.deaths, one.consumer, one.claim, one.key,
            )  # fmt: skip
            for number in range(one.first, one.first + one.count):
                assert number not in found
                found[number] = shown
        return found

    def values(self, table: str, column: str) -> dict[int, bytes]:
        """Return the results or payloads by id; none may be there twice."""
        found: dict[int, bytes] = {}
        for first, count, lengths, content in self.raw.execute(
            f"SELECT first_id, count, lengths, {column} FROM microbatch_{table}"
        ):
            at, numbers = 0, range(first, first + count)
            for number, length in zip(numbers, json.loads(lengths), strict=True):
                assert number not in found
                found[number] = b"(dropped)" if length is None else content[at : at + length]
                at += length or 0
            assert at == len(content)
        return found

    def blobs(self) -> list[range]:
        rows = self.raw.execute("SELECT first_id, count FROM microbatch_blobs").fetchall()
        return [range(first, first + count) for first, count in rows]

    def check(self, model: Model) -> None:
        """Compare the file with the model."""
        shown = {number: item.shown() for number, item in model.items.items()}
        assert self.shown() == shown
        items = model.items.values()
        results = {item.id: item.result for item in items if item.result is not None}
        assert self.values("results", "results") == results
        errors = {item.id: item.error for item in items if item.error is not None}
        assert dict(self.raw.execute("SELECT * FROM microbatch_errors")) == errors
        content = self.values("blobs", "payloads")
        for item in items:
            if item.is_needed:
                assert content[item.id] == item.payload
        seen = {row[0]: row[8] for row in self.raw.execute("SELECT * FROM microbatch_items")}
        there = {n: p for n, p in content.items() if n in shown and p != b"(dropped)"}
        assert seen == there
        for blob in self.blobs():
            assert any(n in shown and model.items[n].is_needed for n in blob), blob
        keys = {(q, k): (i, e) for q, k, i, e in self.raw.execute("SELECT * FROM microbatch_keys")}
        assert keys == model.keys
        for row in self.raw.execute(f"SELECT id, paused, {sql.COUNTS} FROM microbatch_queues"):
            assert list(row[2:]) == [len(model.of(row[0], state)) for state in State]
            assert bool(row[1]) == (row[0] in model.paused)
        lanes = self.raw.execute(
            "SELECT queue, lane, priority, due, first_id FROM microbatch_lanes"
        ).fetchall()
        for queue, lane, *head in lanes:
            ready = [item for item in model.of(queue, State.READY) if item.lane == lane]
            first = min(ready, key=lambda item: item.place, default=None)
            wanted = [None] * 3 if first is None else [first.priority, first.due, first.id]
            assert head == wanted
