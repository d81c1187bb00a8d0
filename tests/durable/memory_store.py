"""The naive store: dictionaries and lists, for the conformance suite and as the model of the SQLite one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from microbatch.durable.codec import encode_reason
from microbatch.durable.errors import IdempotencyConflict, QueueFull
from microbatch.durable.records import (
    Appended,
    Claim,
    Claimed,
    Consumer,
    DeadRow,
    Ended,
    Found,
    NewItem,
    Peek,
    QueueStats,
    State,
    Stored,
    Take,
)

PRUNE_STEP = 500
LIVE = (State.READY, State.SCHEDULED, State.CLAIMED)


@dataclass
class Row:
    id: int
    item: NewItem
    state: State
    due: float
    enqueued_at: float
    attempts: int = 0
    suspect: bool = False
    owner: Any = None
    result: bytes | None = None
    error: bytes | None = None
    ended_at: float = 0.0
    keep_until: float = 0.0


@dataclass
class MemoryStore:
    limits: Any
    clock: Any
    rows: dict[int, Row] = field(default_factory=dict)
    keys: dict[str, tuple[int, bytes, float]] = field(default_factory=dict)
    consumer_rows: dict[int, Consumer] = field(default_factory=dict)
    last_id: int = 0
    last_consumer: int = 0
    paused: bool = False
    generation: int = 1
    version: int = 0

    async def open(self): ...
    async def close(self): ...
    def forget(self): ...

    async def enqueue(self, requests, take: Take | None):
        now = self.clock.now()
        self._promote(now, only_look=True)
        overtaken = any(
            r.state == State.READY or (r.state == State.SCHEDULED and r.due <= now)
            for r in self.rows.values()
        )
        if self.paused or overtaken or (take and take.consumer not in self.consumer_rows):
            take = None
        answers, fresh = [], []
        for request in requests:
            before = (self.last_id, dict(self.keys), dict(self.rows))
            try:
                stored = [self._add(item, now) for item in request]
                if (
                    any(not s.repeated for s in stored)
                    and sum(r.state in LIVE for r in self.rows.values()) > self.limits.max_depth
                ):
                    raise QueueFull("default", "max_depth", self.limits.max_depth)
            except (QueueFull, IdempotencyConflict) as error:
                self.last_id, self.keys, self.rows = before
                answers.append(error)
            else:
                fresh += [s.id for s in stored if not s.repeated]
                answers.append(stored)
        if take is None:
            return answers
        first = sorted(
            (r for r in map(self.rows.get, fresh) if r.state == State.READY), key=self._order
        )
        taken = set()
        for row in first[: take.room]:
            row.state, row.attempts, row.owner = State.CLAIMED, 1, (take.consumer, take.claim)
            taken.add(row.id)
        return [
            a
            if isinstance(a, Exception)
            else [s._replace(taken=s.id in taken and not s.repeated) for s in a]
            for a in answers
        ]

    async def append(self, payloads, take):
        answers = await self.enqueue([[NewItem(payload)] for payload in payloads], take)
        stored = [answer[0] for answer in answers if isinstance(answer, list)]
        first = stored[0].id if stored else self.last_id + 1
        return Appended(first, len(stored), sum(s.taken for s in stored), "max_depth")

    def _add(self, item: NewItem, now: float) -> Stored:
        if item.key is not None:
            owner = self.keys.get(item.key)
            if owner is not None and owner[2] > now:
                if owner[1] != item.fingerprint:
                    raise IdempotencyConflict(item.key, owner[0])
                return Stored(owner[0], repeated=True)
        self.last_id += 1
        state = State.SCHEDULED if item.delay > 0 else State.READY
        self.rows[self.last_id] = Row(self.last_id, item, state, now + item.delay, now)
        if item.key is not None:
            self.keys[item.key] = (self.last_id, item.fingerprint, now + self.limits.key_ttl)
        return Stored(self.last_id)

    @staticmethod
    def _order(row: Row):
        return (-row.item.priority, row.due, row.id)

    def _promote(self, now: float, *, only_look: bool = False) -> None:
        for row in self.rows.values():
            if not only_look and row.state == State.SCHEDULED and row.due <= now:
                row.state = State.READY

    async def settle_and_claim(self, consumer, settlements, claim: Claim | None):
        settled = {s.id for s in settlements if self._settle(consumer, s)}
        return (
            settled,
            []
            if claim is None or self.paused or claim.consumer not in self.consumer_rows
            else self._claim(claim),
        )

    async def settle_around(self, consumer, settlements, inside):
        settled = {s.id for s in settlements if self._settle(consumer, s)}
        await inside(None, settled)
        return settled

    def _settle(self, consumer, s) -> bool:
        row = self.rows.get(s.id)
        if row is None or row.state != State.CLAIMED or row.owner != (consumer, s.claim):
            return False
        now = self.clock.now()
        row.state, row.owner, row.result = s.state, None, s.result
        row.error = row.error if s.state == State.READY else s.error
        row.attempts -= s.uncounted
        row.suspect = row.suspect and s.uncounted
        if s.state == State.SCHEDULED:
            row.due = now + s.delay
        if s.state >= State.DONE:
            self._end(row, now)
        return True

    def _end(self, row: Row, now: float) -> None:
        row.ended_at, row.keep_until = now, now + self.limits.result_ttl
        key = self.keys.get(row.item.key)
        if key is not None and key[0] == row.id and row.state != State.CANCELLED:
            row.keep_until = max(row.keep_until, key[2])

    def _claim(self, claim: Claim):
        self._promote(self.clock.now())
        chosen = []
        for row in sorted(
            (r for r in self.rows.values() if r.state == State.READY), key=self._order
        )[: claim.limit]:
            if row.suspect and (chosen or not claim.idle):
                break
            row.state, row.owner = State.CLAIMED, (claim.consumer, claim.number)
            row.attempts += 1
            chosen.append(
                Claimed(
                    row.id,
                    claim.number,
                    row.item.payload,
                    row.item.priority,
                    row.attempts,
                    row.suspect,
                    row.item.key,
                    None,
                    None,
                )
            )
            if row.suspect:
                break
        return chosen

    async def register(self, pid, born, take):
        while True:
            self.last_consumer += 1
            lock_file = take(self.last_consumer)
            if lock_file is not None:
                self.consumer_rows[self.last_consumer] = Consumer(
                    self.last_consumer, lock_file, pid, born
                )
                return self.last_consumer

    async def move_consumer(self, consumer, lock_file):
        self.consumer_rows[consumer] = self.consumer_rows[consumer]._replace(lock_file=lock_file)

    async def consumers(self):
        return list(self.consumer_rows.values())

    async def reclaim(self, consumer, attempts_max):
        dead = []
        self.consumer_rows.pop(consumer, None)
        for row in self.rows.values():
            if row.state == State.CLAIMED and row.owner[0] == consumer:
                row.owner = None
                if row.attempts >= attempts_max:
                    row.state, row.error = State.DEAD, encode_reason("ProcessDied", "")
                    row.ended_at = self.clock.now()
                    dead.append(row.id)
                else:
                    row.state, row.suspect = State.READY, True
        return dead

    async def cancel(self, number):
        row = self.rows.get(number)
        if row is None:
            return None
        if row.state not in (State.READY, State.SCHEDULED):
            return False
        row.state = State.CANCELLED
        self._end(row, self.clock.now())
        return True

    async def requeue(self, numbers):
        dead = [
            row
            for row in map(self.rows.get, numbers)
            if row is not None and row.state == State.DEAD
        ]
        for row in dead:
            row.state, row.due, row.attempts, row.suspect = State.READY, self.clock.now(), 0, False
        return len(dead)

    async def purge(self, numbers):
        ended = [n for n in numbers if n in self.rows and self.rows[n].state >= State.DONE]
        for number in ended:
            del self.rows[number]
        return len(ended)

    async def pause(self, paused):
        self.paused = paused

    async def prune(self):
        now, removed = self.clock.now(), 0
        for state in (State.DONE, State.CANCELLED):
            expired = sorted(
                (r for r in self.rows.values() if r.state == state and r.keep_until <= now),
                key=lambda r: r.keep_until,
            )
            removed += self._remove(expired[:PRUNE_STEP])
        for state, keep, order in (
            (State.DONE, self.limits.keep_done, lambda r: (r.keep_until, r.id)),
            (State.DEAD, self.limits.keep_dead, lambda r: r.id),
        ):
            if keep is not None:
                kept = sorted((r for r in self.rows.values() if r.state == state), key=order)
                removed += self._remove(kept[: min(max(0, len(kept) - keep), PRUNE_STEP)])
        expired = [key for key, (_, _, expires) in self.keys.items() if expires <= now][:PRUNE_STEP]
        for key in expired:
            del self.keys[key]
        return removed + len(expired) >= PRUNE_STEP

    def _remove(self, rows):
        for row in rows:
            del self.rows[row.id]
        return len(rows)

    async def find(self, numbers):
        return [
            Found(Ended(row.id, row.state, row.result, row.error, row.attempts), row.item.nonce)
            for row in map(self.rows.get, sorted(numbers))
            if row is not None
        ]

    async def dead_letters(self, after, limit):
        dead = sorted(
            (r for r in self.rows.values() if r.state == State.DEAD and r.id > after),
            key=lambda r: r.id,
        )
        return [
            DeadRow(r.id, r.item.payload, r.error, r.attempts, r.enqueued_at, r.ended_at)
            for r in dead[:limit]
        ]

    async def stats(self):
        now = self.clock.now()
        count = Counter(row.state for row in self.rows.values())
        dues = [row.due for row in self.rows.values() if row.state in (State.READY, State.CLAIMED)]
        oldest = max(0.0, now - min(dues, default=now))
        return QueueStats(
            count[State.READY], count[State.SCHEDULED], count[State.CLAIMED], count[State.DONE], count[State.DEAD],
            count[State.CANCELLED], oldest, 0, 0, 0, self.paused,
        )  # fmt: skip

    async def peek(self, seen):
        ready = sum(row.state == State.READY for row in self.rows.values())
        due = min(
            (row.due for row in self.rows.values() if row.state == State.SCHEDULED), default=None
        )
        self.version += 1
        return Peek(self.version, ready, due, self.paused)
