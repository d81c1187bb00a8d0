"""What a queue does within one transaction: enqueue, claim, settle, read.

Everything here runs in the connection's thread, in a transaction that `Database` opened.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from . import store as sql
from .codec import encode_reason
from .inserting import appending, enqueueing
from .records import (
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
    Settlement,
    State,
    Stored,
    Take,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    from .inserting import Step
    from .limits import Limits

T = TypeVar("T")


class Session:
    """One queue within one transaction.

    Args:
        raw: The connection, in a transaction.
        queue: The queue's number.
        name: The queue's name, for errors.
        path: The file, for its size.
        now: The time, in seconds since the epoch.
        limits: How much the queue may hold.
    """

    def __init__(  # noqa: PLR0917 - made in one place
        self, raw: sqlite3.Connection, queue: int, name: str, path: Path, now: float, limits: Limits
    ) -> None:
        self._raw = raw
        self._queue = queue
        self._name = name
        self._path = path
        self._now = now
        self._limits = limits
        self._moved = [0] * len(State)

    def count(self) -> None:
        """Write down how many items changed their state: the last statement of a transaction."""
        if any(self._moved):
            self._raw.execute(sql.COUNT, (*self._moved, self._queue))
            self._moved = [0] * len(State)

    def _move(self, before: State, after: State | None, items: int = 1) -> None:
        self._moved[before] -= items
        if after is not None:
            self._moved[after] += items

    def enqueue(
        self, requests: Sequence[Sequence[NewItem]], take: Take | None
    ) -> list[list[Stored] | Exception]:
        """Store groups of items, each group wholly or not at all.

        Args:
            requests: The groups.
            take: Who may keep the first items at once, or None. It gets them only if nothing is ready
                before them and the queue is not paused, so that nobody is overtaken.

        Returns:
            For each group its items' ids, or why it was refused: `QueueFull`, `IdempotencyConflict`.
        """
        return self._run(
            enqueueing(self._queue, self._name, self._path, self._now, self._limits, requests, take)
        )

    def append(self, payloads: Sequence[bytes], take: Take | None) -> Appended:
        """Store items that have nothing but a payload, as many as there is room for.

        Args:
            payloads: The items.
            take: As for `enqueue`.
        """
        return self._run(
            appending(self._queue, self._path, self._now, self._limits, payloads, take)
        )

    def _run(self, steps: Generator[Step, Any, T]) -> T:
        answer: list[Any] | None = None
        try:
            while True:
                sql, parameters, many = steps.send(answer)
                if many:
                    self._raw.executemany(sql, parameters)
                else:
                    answer = self._raw.execute(sql, parameters).fetchall()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def claim(self, claim: Claim) -> list[Claimed]:
        """Give a consumer the next items, in order, and count the attempt before any handler runs."""
        paused, _, scheduled, _ = self._raw.execute(sql.QUEUE, (self._queue,)).fetchone()
        # If the file was replaced, it may not know this consumer: nobody would take back what it holds.
        known = self._raw.execute(sql.IS_CONSUMER, (claim.consumer,)).fetchone()
        if paused or known is None:
            return []
        if scheduled:
            due = self._raw.execute(
                sql.PROMOTE, (self._queue, self._now, sql.PROMOTE_STEP)
            ).rowcount
            self._move(State.SCHEDULED, State.READY, due)
        chosen: list[Claimed] = []
        for row in self._raw.execute(sql.NEXT, (self._queue, claim.limit)).fetchall():
            number, payload, priority, attempts, suspect, key, job, trace = row
            if suspect and (chosen or not claim.idle):
                break
            chosen.append(
                Claimed(
                    number,
                    claim.number,
                    payload,
                    priority,
                    attempts + 1,
                    bool(suspect),
                    key,
                    job,
                    trace,
                )
            )
            if suspect:
                break
        if chosen:
            self._raw.executemany(
                sql.CLAIM, [(claim.consumer, claim.number, item.id) for item in chosen]
            )
            self._move(State.READY, State.CLAIMED, len(chosen))
        return chosen

    def settle(self, consumer: int, settlements: Sequence[Settlement]) -> set[int]:
        """Record what became of claimed items.

        Returns:
            The ids that were this consumer's still, under the claim that is named. The others are left
            as they are: somebody else has them now.
        """
        ids = json.dumps([settlement.id for settlement in settlements])
        mine = {row[0]: row for row in self._raw.execute(sql.MINE, (ids, consumer)).fetchall()}
        rows = []
        settled = set()
        for settlement in settlements:
            number, claim, state, result, error, delay, uncounted = settlement
            found = mine.pop(number, None)
            if found is None or found[1] != claim:
                continue
            ended = state >= State.DONE
            rows.append(
                (
                    int(state),
                    result,
                    int(state),
                    error,
                    self._now + delay if state == State.SCHEDULED else None,
                    self._now if ended else None,
                    self._keep_until(number, found[2]) if ended else None,
                    int(uncounted),
                    # If it counts the handler came back: the item is no longer suspect either.
                    int(uncounted),
                    number,
                )
            )
            settled.add(number)
            self._move(State.CLAIMED, state)
        if rows:
            self._raw.executemany(sql.SETTLE, rows)
        return settled

    def _keep_until(self, number: int, key: str | None) -> float:
        until = self._now + self._limits.result_ttl
        if key is not None:  # who comes again with the key gets the result
            found = self._raw.execute(sql.KEY_EXPIRES, (self._queue, key, number)).fetchone()
            until = max(until, *(found or (until,)))
        return until

    def register(self, pid: int, born: str | None, take: Callable[[int], int | None]) -> int:
        """Make a consumer.

        Args:
            pid: Its process.
            born: What tells that process from a later one with its number.
            take: Locks the byte with the consumer's number, before anybody else can see the row, and
                returns the lock file's identity; None if somebody else has the byte.
        """
        while True:
            number = self._raw.execute(sql.REGISTER, (self._queue, 0, pid, born)).lastrowid
            assert number is not None  # noqa: S101 - an INSERT has one
            lock_file = take(number)
            if lock_file is not None:
                self.move_consumer(number, lock_file)
                return number
            # A consumer of the file that stood here before a backup was restored still has that byte.
            self.forget_consumer(number)

    def move_consumer(self, consumer: int, lock_file: int) -> None:
        """Write down that a consumer's lock is in another file now."""
        self._raw.execute(sql.MOVE_CONSUMER, (lock_file, consumer))

    def forget_consumer(self, consumer: int) -> None:
        """Remove a consumer that holds nothing."""
        self._raw.execute(sql.FORGET, (consumer,))

    def consumers(self) -> list[Consumer]:
        """Return all consumers of this queue, living or dead."""
        return [
            Consumer(*row) for row in self._raw.execute(sql.CONSUMERS, (self._queue,)).fetchall()
        ]

    def reclaim(self, consumer: int, attempts_max: int) -> list[int]:
        """Take back what a dead consumer held, and forget the consumer.

        Its items are ready again but suspect: each may have killed its process, so each is handled alone
        from now on. The ones that used up their attempts are dead letters.

        Returns:
            The ids of the new dead letters.
        """
        dead = []
        for number, attempts in self._raw.execute(sql.HELD, (self._queue, consumer)).fetchall():
            if attempts >= attempts_max:
                reason = f"its process died while it had the item, {attempts} times in all"
                self._raw.execute(
                    sql.BURY, (encode_reason("ProcessDied", reason), self._now, number)
                )
                self._move(State.CLAIMED, State.DEAD)
                dead.append(number)
            else:
                self._raw.execute(sql.TAKE_BACK, (number,))
                self._move(State.CLAIMED, State.READY)
        self.forget_consumer(consumer)
        return dead

    def cancel(self, number: int) -> bool | None:
        """Cancel an item that nobody has; return whether that was so, None if there is no such item."""
        found = self._states([number])
        if not found:
            return None
        ((_, state),) = found
        if state not in (State.READY, State.SCHEDULED):
            return False
        self._raw.execute(sql.CANCEL, (self._now, self._now + self._limits.result_ttl, number))
        self._move(State(state), State.CANCELLED)
        return True

    def requeue(self, numbers: Iterable[int]) -> int:
        """Make dead letters ready again, with all their attempts; return how many were dead letters."""
        dead = [number for number, state in self._states(numbers) if state == State.DEAD]
        self._raw.executemany(sql.REQUEUE, [(self._now, number) for number in dead])
        self._move(State.DEAD, State.READY, len(dead))
        return len(dead)

    def purge(self, numbers: Iterable[int]) -> int:
        """Remove items that have ended; return how many were removed."""
        ended = [(number, state) for number, state in self._states(numbers) if state >= State.DONE]
        for number, state in ended:
            self._raw.execute(sql.DELETE, (number,))
            self._move(State(state), None)
        return len(ended)

    def _states(self, numbers: Iterable[int]) -> list[tuple[int, int]]:
        return self._raw.execute(sql.STATES, (self._queue, json.dumps(list(numbers)))).fetchall()

    def pause(self, paused: bool) -> None:
        """Stop or resume claims, for every process."""
        self._raw.execute(sql.PAUSE, (int(paused), self._queue))

    def prune(self) -> bool:
        """Remove some of what is kept too long or beyond its count; return whether there may be more."""
        removed = 0
        for state, expired in sql.EXPIRED.items():
            removed += self._remove(
                state,
                self._raw.execute(expired, (self._queue, self._now, sql.PRUNE_STEP)).fetchall(),
            )
        _, _, _, done, dead, _, _ = self._raw.execute(sql.STATS, (self._queue,)).fetchone()
        for state, kept, keep in (
            (State.DONE, done, self._limits.keep_done),
            (State.DEAD, dead, self._limits.keep_dead),
        ):
            beyond = 0 if keep is None else kept + self._moved[state] - keep
            if beyond > 0:
                oldest = self._raw.execute(
                    sql.OLDEST[state], (self._queue, min(beyond, sql.PRUNE_STEP))
                ).fetchall()
                removed += self._remove(state, oldest)
        removed += self._raw.execute(
            sql.EXPIRE_KEYS, (self._queue, self._queue, self._now, sql.PRUNE_STEP)
        ).rowcount
        return removed >= sql.PRUNE_STEP

    def _remove(self, state: State, rows: list[tuple[int]]) -> int:
        self._raw.executemany(sql.DELETE, rows)
        self._move(state, None, len(rows))
        return len(rows)

    def find(self, numbers: Iterable[int]) -> list[Found]:
        """Return the rows that there are, in any state."""
        rows = self._raw.execute(sql.ENDED, (self._queue, json.dumps(list(numbers)))).fetchall()
        return [
            Found(Ended(number, State(state), result, error, attempts), nonce)
            for number, state, result, error, attempts, nonce in rows
        ]

    def dead_letters(self, after: int, limit: int) -> list[DeadRow]:
        """Return dead letters with greater ids, by id."""
        rows = self._raw.execute(sql.DEAD, (self._queue, after, limit)).fetchall()
        return [DeadRow(*row) for row in rows]

    def stats(self, lock_waits: int) -> QueueStats:
        """Return the counts, from the queue's own row."""
        row = self._raw.execute(sql.STATS, (self._queue,)).fetchone()
        ready, scheduled, claimed, done, dead, cancelled, paused = row
        dues = [
            self._raw.execute(sql.OLDEST_READY, {"queue": self._queue}).fetchone()[0],
            self._raw.execute(sql.OLDEST_CLAIMED, (self._queue,)).fetchone()[0],
        ]
        oldest = min((due for due in dues if due is not None), default=self._now)
        (file_bytes,) = self._raw.execute(sql.PAGES_IN_USE).fetchone()
        return QueueStats(
            ready=ready,
            scheduled=scheduled,
            claimed=claimed,
            done=done,
            dead=dead,
            cancelled=cancelled,
            oldest_age=max(0.0, self._now - oldest),
            file_bytes=file_bytes,
            wal_bytes=sql.wal_size(self._path),
            lock_waits=lock_waits,
            paused=bool(paused),
        )

    def peek(self, version: int) -> Peek:
        """Return what a worker must know to decide whether to claim."""
        paused, ready, scheduled, _ = self._raw.execute(sql.QUEUE, (self._queue,)).fetchone()
        due = self._raw.execute(sql.NEXT_DUE, (self._queue,)).fetchone()[0] if scheduled else None
        return Peek(version, ready, due, bool(paused))
