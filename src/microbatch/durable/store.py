"""The store: every SQL statement of the durable mode, and what each one is for.

Tables, all named ``microbatch_*`` because the file may be the application's own (``application_id`` and
``user_version`` belong to it):

- ``microbatch_schema``: one row: the schema's version and the last id given to an item. Ids come from
  there and are never used again, which plain row ids do not promise; ``AUTOINCREMENT`` would, at the price of
  a second table's update for every single row.
- ``microbatch_queues``: one row for each named queue: whether it is paused, and how many items are in each
  state. The counts are kept in the transactions that change them, once per transaction and not per
  item, so that depth, stats and "is anything ready?" never scan.
- ``microbatch_items``: the items. Partial indexes, so that a claim never reads past finished or delayed rows.
- ``microbatch_keys``: idempotency keys apart, so that only keyed items pay for them.
- ``microbatch_consumers``: who may hold claimed items. Its ids are the bytes of the lock file (`alive`).

Everything here runs in the connection's thread within a transaction that `Database` opened.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any, TypeVar

from .codec import encode_reason
from .errors import IdempotencyConflict, QueueFull, QueueUnavailable, SchemaTooNew
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
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from pathlib import Path

T = TypeVar("T")

#: Raised with every change of the tables, together with a step in `_MIGRATIONS`.
SCHEMA_VERSION = 1

#: The oldest SQLite that is tested; json_each is always built in since 3.38.
SQLITE_MINIMUM = (3, 38, 0)

#: Two connections that write and checkpoint at the same moment may damage the file before this version.
SQLITE_WITHOUT_WAL_BUG = (3, 51, 3)

#: Rows that one step of retention removes: about 5 ms, for which writers wait at most.
PRUNE_STEP = 500

#: Delayed items that one claim makes ready at most: more than any batch takes.
PROMOTE_STEP = 1_000

SYNCHRONOUS = {"normal": 1, "full": 2, "extra": 3}

PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    # The log is truncated to this after a burst, once everything in it is in the file.
    "PRAGMA journal_size_limit = 16777216",
    "PRAGMA fullfsync = ON",  # macOS only: there fsync alone does not reach the medium
    "PRAGMA checkpoint_fullfsync = ON",
    "PRAGMA foreign_keys = OFF",
)

_SCHEMA = (
    "CREATE TABLE microbatch_schema (version INTEGER NOT NULL, last_id INTEGER NOT NULL)",
    "INSERT INTO microbatch_schema VALUES (1, 0)",
    """CREATE TABLE microbatch_queues (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        paused INTEGER NOT NULL DEFAULT 0,
        ready INTEGER NOT NULL DEFAULT 0,
        scheduled INTEGER NOT NULL DEFAULT 0,
        claimed INTEGER NOT NULL DEFAULT 0,
        done INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0,
        dead INTEGER NOT NULL DEFAULT 0
    )""",
    """CREATE TABLE microbatch_items (
        id INTEGER PRIMARY KEY,
        queue INTEGER NOT NULL,
        state INTEGER NOT NULL,
        priority INTEGER NOT NULL,
        due REAL NOT NULL,
        attempts INTEGER NOT NULL,
        suspect INTEGER NOT NULL DEFAULT 0,
        consumer INTEGER,
        claim INTEGER,
        enqueued_at REAL NOT NULL,
        ended_at REAL,
        keep_until REAL,
        payload BLOB NOT NULL,
        result BLOB,
        error BLOB,
        key TEXT,
        nonce INTEGER,
        job INTEGER,
        trace BLOB
    )""",
    """CREATE INDEX microbatch_ready ON microbatch_items (queue, priority DESC, due)
        WHERE state = 0""",
    "CREATE INDEX microbatch_scheduled ON microbatch_items (queue, due) WHERE state = 1",
    "CREATE INDEX microbatch_claimed ON microbatch_items (queue, consumer) WHERE state = 2",
    "CREATE INDEX microbatch_done ON microbatch_items (queue, keep_until) WHERE state = 3",
    "CREATE INDEX microbatch_cancelled ON microbatch_items (queue, keep_until) WHERE state = 4",
    "CREATE INDEX microbatch_dead ON microbatch_items (queue) WHERE state = 5",
    "CREATE INDEX microbatch_job ON microbatch_items (job, state) WHERE job IS NOT NULL",
    """CREATE TABLE microbatch_keys (
        queue INTEGER NOT NULL,
        key TEXT NOT NULL,
        item INTEGER NOT NULL,
        fingerprint BLOB NOT NULL,
        expires REAL NOT NULL,
        PRIMARY KEY (queue, key)
    ) WITHOUT ROWID""",
    "CREATE INDEX microbatch_keys_expires ON microbatch_keys (queue, expires)",
    """CREATE TABLE microbatch_consumers (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        queue INTEGER NOT NULL,
        lock_file INTEGER NOT NULL,
        pid INTEGER NOT NULL,
        born TEXT
    )""",
)

#: Statements that lead from version n to n + 1, by n. Nothing was ever released before version 1.
_MIGRATIONS: dict[int, tuple[str, ...]] = {}

#: Changes when another connection has committed, in whatever process.
DATA_VERSION = "PRAGMA data_version"

_HAS_TABLES = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'microbatch_schema'"
_QUEUE_ID = "SELECT id FROM microbatch_queues WHERE name = ?"
_QUEUE = "SELECT paused, ready, scheduled, claimed FROM microbatch_queues WHERE id = ?"
_LAST_ID = "SELECT last_id FROM microbatch_schema"
_SET_LAST_ID = "UPDATE microbatch_schema SET last_id = ?"
#: Rows in one INSERT. One statement with many rows costs less than half of `executemany`, and lets the event
#: loop's thread run meanwhile, where executemany would ask for Python's lock once for each row.
_ROWS = (64, 16, 4, 1)
_COLUMNS = "(id, queue, state, priority, due, attempts, consumer, claim, enqueued_at, payload{})"
_INSERT = {
    rows: "INSERT INTO microbatch_items "
    + _COLUMNS.format(", key, nonce, trace")
    + " VALUES "
    + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * rows)
    for rows in _ROWS
}
#: The same for items that differ in nothing but their payloads: those alone are bound for each row.
_APPEND = {
    rows: "INSERT INTO microbatch_items "
    + _COLUMNS.format("")
    + " VALUES "
    + ", ".join(f"(?1 + {row}, ?2, ?3, 0, ?4, ?5, ?6, ?7, ?4, ?{8 + row})" for row in range(rows))
    for rows in _ROWS
}
_KEY = "SELECT item, fingerprint FROM microbatch_keys WHERE queue = ? AND key = ? AND expires > ?"
_SET_KEY = """INSERT INTO microbatch_keys (queue, key, item, fingerprint, expires)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT (queue, key) DO UPDATE
    SET item = excluded.item, fingerprint = excluded.fingerprint, expires = excluded.expires"""
_IS_DUE = "SELECT 1 FROM microbatch_items WHERE state = 1 AND queue = ? AND due <= ? LIMIT 1"
_NEXT_DUE = "SELECT min(due) FROM microbatch_items WHERE state = 1 AND queue = ?"
_PROMOTE = """UPDATE microbatch_items SET state = 0 WHERE id IN (
    SELECT id FROM microbatch_items WHERE state = 1 AND queue = ? AND due <= ? ORDER BY due LIMIT ?)"""
_NEXT = """SELECT id, payload, priority, attempts, suspect, key, job, trace FROM microbatch_items
    WHERE state = 0 AND queue = ? ORDER BY priority DESC, due, id LIMIT ?"""
_CLAIM = """UPDATE microbatch_items SET state = 2, consumer = ?, claim = ?, attempts = attempts + 1
    WHERE id = ?"""
_MINE = """SELECT id, claim, key FROM microbatch_items
    WHERE id IN (SELECT value FROM json_each(?)) AND consumer = ? AND state = 2"""
_SETTLE = """UPDATE microbatch_items SET state = ?1, result = ?2,
    error = CASE ?1 WHEN 0 THEN error ELSE ?3 END, due = coalesce(?4, due), ended_at = ?5,
    keep_until = ?6, attempts = attempts - ?7, suspect = suspect * ?7, consumer = NULL, claim = NULL
    WHERE id = ?8"""
_KEY_EXPIRES = "SELECT expires FROM microbatch_keys WHERE queue = ? AND key = ? AND item = ?"
_COUNT = """UPDATE microbatch_queues SET ready = ready + ?, scheduled = scheduled + ?, claimed = claimed + ?,
    done = done + ?, cancelled = cancelled + ?, dead = dead + ? WHERE id = ?"""
_CONSUMERS = "SELECT id, lock_file, pid, born FROM microbatch_consumers WHERE queue = ?"
_REGISTER = "INSERT INTO microbatch_consumers (queue, lock_file, pid, born) VALUES (?, ?, ?, ?)"
_MOVE_CONSUMER = "UPDATE microbatch_consumers SET lock_file = ? WHERE id = ?"
_IS_CONSUMER = "SELECT 1 FROM microbatch_consumers WHERE id = ?"
_FORGET = "DELETE FROM microbatch_consumers WHERE id = ?"
_TAKE_BACK = """UPDATE microbatch_items SET state = 0, suspect = 1, consumer = NULL, claim = NULL
    WHERE id = ?"""
_BURY = """UPDATE microbatch_items SET state = 5, error = ?, ended_at = ?, consumer = NULL, claim = NULL
    WHERE id = ?"""
_PAUSE = "UPDATE microbatch_queues SET paused = ? WHERE id = ?"
_HELD = """SELECT id, attempts FROM microbatch_items WHERE state = 2 AND queue = ? AND consumer = ?"""
_STATES = """SELECT id, state FROM microbatch_items
    WHERE queue = ? AND id IN (SELECT value FROM json_each(?))"""
_ENDED = """SELECT id, state, result, error, attempts, nonce FROM microbatch_items
    WHERE queue = ? AND id IN (SELECT value FROM json_each(?))"""
_DEAD = """SELECT id, payload, error, attempts, enqueued_at, ended_at FROM microbatch_items
    WHERE state = 5 AND queue = ? AND id > ? ORDER BY id LIMIT ?"""
_REQUEUE = """UPDATE microbatch_items SET state = 0, due = ?, attempts = 0, suspect = 0, ended_at = NULL
    WHERE id = ?"""
_CANCEL = """UPDATE microbatch_items SET state = 4, ended_at = ?, keep_until = ? WHERE id = ?"""
_DELETE = "DELETE FROM microbatch_items WHERE id = ?"
_EXPIRED = {
    State.DONE: """SELECT id FROM microbatch_items
        WHERE state = 3 AND queue = ? AND keep_until <= ? ORDER BY keep_until LIMIT ?""",
    State.CANCELLED: """SELECT id FROM microbatch_items
        WHERE state = 4 AND queue = ? AND keep_until <= ? ORDER BY keep_until LIMIT ?""",
}
_OLDEST = {
    State.DONE: """SELECT id FROM microbatch_items
        WHERE state = 3 AND queue = ? ORDER BY keep_until LIMIT ?""",
    State.DEAD: "SELECT id FROM microbatch_items WHERE state = 5 AND queue = ? ORDER BY id LIMIT ?",
}
_EXPIRE_KEYS = """DELETE FROM microbatch_keys WHERE queue = ? AND key IN (
    SELECT key FROM microbatch_keys WHERE queue = ? AND expires <= ? LIMIT ?)"""
# The oldest of each priority stands first in the index of ready items, so one step per priority does.
_OLDEST_READY = """WITH RECURSIVE
    step (priority) AS (
        SELECT max(priority) FROM microbatch_items WHERE state = 0 AND queue = :queue
        UNION ALL
        SELECT (SELECT max(priority) FROM microbatch_items
                WHERE state = 0 AND queue = :queue AND priority < step.priority)
        FROM step WHERE step.priority IS NOT NULL LIMIT 1000)
    SELECT min((SELECT min(due) FROM microbatch_items
                WHERE state = 0 AND queue = :queue AND priority = step.priority))
    FROM step WHERE priority IS NOT NULL"""
_PAGES_IN_USE = """SELECT (page_count - freelist_count) * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""
_STATS = """SELECT ready, scheduled, claimed, done, dead, cancelled, paused
    FROM microbatch_queues WHERE id = ?"""
_OLDEST_CLAIMED = "SELECT min(due) FROM microbatch_items WHERE state = 2 AND queue = ?"


def prepare(raw: sqlite3.Connection, path: Path, synchronous: str) -> None:
    """Check a new connection's settings and the schema; create or migrate it.

    Raises:
        QueueUnavailable: If SQLite is too old, or refused WAL or the synchronous mode.
        SchemaTooNew: If a newer microbatch made the tables.
    """
    if sqlite3.sqlite_version_info < SQLITE_MINIMUM:
        needed = ".".join(map(str, SQLITE_MINIMUM))
        reason = f"microbatch needs SQLite {needed}, this Python has {sqlite3.sqlite_version}"
        raise QueueUnavailable(str(path), reason)
    raw.execute(f"PRAGMA synchronous = {SYNCHRONOUS[synchronous]}")
    (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
    (level,) = raw.execute("PRAGMA synchronous").fetchone()
    if mode != "wal" or level != SYNCHRONOUS[synchronous]:
        reason = f"asked for WAL and synchronous={synchronous}, got {mode} and {level}: a network file system?"
        raise QueueUnavailable(str(path), reason)
    if _version(raw) == SCHEMA_VERSION:
        return
    raw.execute("BEGIN IMMEDIATE")
    version = _version(raw)  # again: another process may have been first
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(str(path), version, SCHEMA_VERSION)
    for statement in _SCHEMA if version == 0 else ():
        raw.execute(statement)
    for step in range(max(version, 1), SCHEMA_VERSION):
        for statement in _MIGRATIONS[step]:
            raw.execute(statement)
    raw.execute("UPDATE microbatch_schema SET version = ?", (SCHEMA_VERSION,))
    raw.execute("COMMIT")


def _version(raw: sqlite3.Connection) -> int:
    if raw.execute(_HAS_TABLES).fetchone() is None:
        return 0
    (version,) = raw.execute("SELECT version FROM microbatch_schema").fetchone()
    return int(version)


def empty_log(raw: sqlite3.Connection) -> None:
    """Move what is in the write-ahead log into the file, if no reader needs it, and cut the log."""
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def queue_id(raw: sqlite3.Connection, name: str) -> int:
    """Return the number of a named queue, which is made if there is none yet."""
    found = raw.execute(_QUEUE_ID, (name,)).fetchone()
    if found is None:
        raw.execute("INSERT INTO microbatch_queues (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
        found = raw.execute(_QUEUE_ID, (name,)).fetchone()
    return int(found[0])


class Limits:
    """How much a queue may hold, and for how long.

    Attributes:
        max_depth: Items not yet ended.
        max_file_bytes: Pages in use plus the write-ahead log; None for no bound.
        key_ttl: Seconds for which a key is remembered.
        result_ttl: Seconds for which done and cancelled items are kept.
        keep_dead: Dead letters kept at most; None for no bound.
        keep_done: Done items kept at most; None for no bound.
    """

    def __init__(
        self,
        *,
        max_depth: int = 1_000_000,
        max_file_bytes: int | None = None,
        key_ttl: float = 86_400.0,
        result_ttl: float = 86_400.0,
        keep_dead: int | None = None,
        keep_done: int | None = None,
    ) -> None:
        self.max_depth = max_depth
        self.max_file_bytes = max_file_bytes
        self.key_ttl = key_ttl
        self.result_ttl = result_ttl
        self.keep_dead = keep_dead
        self.keep_done = keep_done


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

    def __init__(
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
            self._raw.execute(_COUNT, (*self._moved, self._queue))
            self._moved = [0] * len(State)

    def _move(self, before: State | None, after: State | None, items: int = 1) -> None:
        if before is not None:
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
            enqueueing(
                self._queue, self._name, self._path, self._now, self._limits, requests, take
            )
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
        paused, _, scheduled, _ = self._raw.execute(_QUEUE, (self._queue,)).fetchone()
        # If the file was replaced, it may not know this consumer: nobody would take back what it holds.
        known = self._raw.execute(_IS_CONSUMER, (claim.consumer,)).fetchone()
        if paused or known is None:
            return []
        if scheduled:
            due = self._raw.execute(_PROMOTE, (self._queue, self._now, PROMOTE_STEP)).rowcount
            self._move(State.SCHEDULED, State.READY, due)
        chosen = []
        for row in self._raw.execute(_NEXT, (self._queue, claim.limit)).fetchall():
            number, payload, priority, attempts, suspect, key, job, trace = row
            if suspect and (chosen or not claim.idle):
                break
            chosen.append(
                Claimed(number, claim.number, payload, priority, attempts + 1, bool(suspect), key, job, trace)
            )
            if suspect:
                break
        if chosen:
            self._raw.executemany(_CLAIM, [(claim.consumer, claim.number, item.id) for item in chosen])
            self._move(State.READY, State.CLAIMED, len(chosen))
        return chosen

    def settle(self, consumer: int, settlements: Sequence[Settlement]) -> set[int]:
        """Record what became of claimed items.

        Returns:
            The ids that were this consumer's still, under the claim that is named. The others are left
            as they are: somebody else has them now.
        """
        ids = json.dumps([settlement.id for settlement in settlements])
        mine = {row[0]: row for row in self._raw.execute(_MINE, (ids, consumer)).fetchall()}
        rows = []
        settled = set()
        for settlement in settlements:
            number, claim, state, result, error, delay, uncounted = settlement
            found = mine.pop(number, None)
            if found is None or found[1] != claim:
                continue
            ended = state >= State.DONE
            rows.append((
                int(state),
                result,
                error,
                self._now + delay if state == State.SCHEDULED else None,
                self._now if ended else None,
                self._keep_until(number, found[2]) if ended else None,
                int(uncounted),  # if it is 0 the handler came back: the item is no longer suspect either
                number,
            ))
            settled.add(number)
            self._move(State.CLAIMED, state)
        if rows:
            self._raw.executemany(_SETTLE, rows)
        return settled

    def _keep_until(self, number: int, key: str | None) -> float:
        until = self._now + self._limits.result_ttl
        if key is not None:  # who comes again with the key gets the result
            found = self._raw.execute(_KEY_EXPIRES, (self._queue, key, number)).fetchone()
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
            number = self._raw.execute(_REGISTER, (self._queue, 0, pid, born)).lastrowid
            assert number is not None  # noqa: S101 - an INSERT has one
            lock_file = take(number)
            if lock_file is not None:
                self.move_consumer(number, lock_file)
                return number
            # A consumer of the file that stood here before a backup was restored still has that byte.
            self.forget_consumer(number)

    def move_consumer(self, consumer: int, lock_file: int) -> None:
        """Write down that a consumer's lock is in another file now."""
        self._raw.execute(_MOVE_CONSUMER, (lock_file, consumer))

    def forget_consumer(self, consumer: int) -> None:
        """Remove a consumer that holds nothing."""
        self._raw.execute(_FORGET, (consumer,))

    def consumers(self) -> list[Consumer]:
        """Return all consumers of this queue, living or dead."""
        return [Consumer(*row) for row in self._raw.execute(_CONSUMERS, (self._queue,)).fetchall()]

    def reclaim(self, consumer: int, attempts_max: int) -> list[int]:
        """Take back what a dead consumer held, and forget the consumer.

        Its items are ready again but suspect: each may have killed its process, so each is handled alone
        from now on. The ones that used up their attempts are dead letters.

        Returns:
            The ids of the new dead letters.
        """
        dead = []
        for number, attempts in self._raw.execute(_HELD, (self._queue, consumer)).fetchall():
            if attempts >= attempts_max:
                reason = f"its process died while it had the item, {attempts} times in all"
                self._raw.execute(_BURY, (encode_reason("ProcessDied", reason), self._now, number))
                self._move(State.CLAIMED, State.DEAD)
                dead.append(number)
            else:
                self._raw.execute(_TAKE_BACK, (number,))
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
        self._raw.execute(_CANCEL, (self._now, self._now + self._limits.result_ttl, number))
        self._move(State(state), State.CANCELLED)
        return True

    def requeue(self, numbers: Iterable[int]) -> int:
        """Make dead letters ready again, with all their attempts; return how many were dead letters."""
        dead = [number for number, state in self._states(numbers) if state == State.DEAD]
        self._raw.executemany(_REQUEUE, [(self._now, number) for number in dead])
        self._move(State.DEAD, State.READY, len(dead))
        return len(dead)

    def purge(self, numbers: Iterable[int]) -> int:
        """Remove items that have ended; return how many were removed."""
        ended = [(number, state) for number, state in self._states(numbers) if state >= State.DONE]
        for number, state in ended:
            self._raw.execute(_DELETE, (number,))
            self._move(State(state), None)
        return len(ended)

    def _states(self, numbers: Iterable[int]) -> list[tuple[int, int]]:
        return self._raw.execute(_STATES, (self._queue, json.dumps(list(numbers)))).fetchall()

    def pause(self, paused: bool) -> None:  # noqa: FBT001
        """Stop or resume claims, for every process."""
        self._raw.execute(_PAUSE, (int(paused), self._queue))

    def prune(self) -> bool:
        """Remove some of what is kept too long or beyond its count; return whether there may be more."""
        removed = 0
        for state, sql in _EXPIRED.items():
            removed += self._remove(state, self._raw.execute(sql, (self._queue, self._now, PRUNE_STEP)).fetchall())
        _, _, _, done, dead, _, _ = self._raw.execute(_STATS, (self._queue,)).fetchone()
        for state, kept, keep in (
            (State.DONE, done, self._limits.keep_done),
            (State.DEAD, dead, self._limits.keep_dead),
        ):
            beyond = 0 if keep is None else kept + self._moved[state] - keep
            if beyond > 0:
                oldest = self._raw.execute(_OLDEST[state], (self._queue, min(beyond, PRUNE_STEP))).fetchall()
                removed += self._remove(state, oldest)
        removed += self._raw.execute(_EXPIRE_KEYS, (self._queue, self._queue, self._now, PRUNE_STEP)).rowcount
        return removed >= PRUNE_STEP

    def _remove(self, state: State, rows: list[tuple[int]]) -> int:
        self._raw.executemany(_DELETE, rows)
        self._move(state, None, len(rows))
        return len(rows)

    def find(self, numbers: Iterable[int]) -> list[Found]:
        """Return the rows that there are, in any state."""
        rows = self._raw.execute(_ENDED, (self._queue, json.dumps(list(numbers)))).fetchall()
        return [
            Found(Ended(number, State(state), result, error, attempts), nonce)
            for number, state, result, error, attempts, nonce in rows
        ]

    def dead_letters(self, after: int, limit: int) -> list[DeadRow]:
        """Return dead letters with greater ids, by id."""
        rows = self._raw.execute(_DEAD, (self._queue, after, limit)).fetchall()
        return [DeadRow(*row) for row in rows]

    def stats(self, lock_waits: int) -> QueueStats:
        """Return the counts, from the queue's own row."""
        row = self._raw.execute(_STATS, (self._queue,)).fetchone()
        dues = [
            self._raw.execute(_OLDEST_READY, {"queue": self._queue}).fetchone()[0],
            self._raw.execute(_OLDEST_CLAIMED, (self._queue,)).fetchone()[0],
        ]
        oldest = min((due for due in dues if due is not None), default=self._now)
        (file_bytes,) = self._raw.execute(_PAGES_IN_USE).fetchone()
        return QueueStats(
            *row[:6], max(0.0, self._now - oldest), file_bytes, wal_size(self._path), lock_waits, bool(row[6])
        )

    def peek(self, version: int) -> Peek:
        """Return what a worker must know to decide whether to claim."""
        paused, ready, scheduled, _ = self._raw.execute(_QUEUE, (self._queue,)).fetchone()
        due = self._raw.execute(_NEXT_DUE, (self._queue,)).fetchone()[0] if scheduled else None
        return Peek(version, ready, due, bool(paused))


#: A statement for whoever has the connection: its text, its parameters, and whether it runs for many.
Step = tuple[str, Any, bool]


def enqueueing(
    queue: int,
    name: str,
    path: Path,
    now: float,
    limits: Limits,
    requests: Sequence[Sequence[NewItem]],
    take: Take | None,
) -> Generator[Step, Any, list[list[Stored] | Exception]]:
    """Store groups of items (`Session.enqueue`), on whatever connection runs the statements it yields.

    A generator, because the connection may be the application's own, and an aiosqlite one is awaited.
    """
    take, last_id, room, full = yield from _admission(queue, path, now, limits, take)
    insertion = _Insertion(last_id)
    for items in requests:
        insertion.start()
        try:
            for item in items:
                before = None
                if item.key is not None:
                    before = insertion.keys.get(item.key)
                    if before is None:
                        stored = yield _KEY, (queue, item.key, now), False
                        before = stored[0] if stored else None
                insertion.add(item, before)
            if full and insertion.size:
                raise QueueFull(name, "max_file_bytes", limits.max_file_bytes or 0)
            if insertion.size > room:
                raise QueueFull(name, "max_depth", limits.max_depth)
        except (QueueFull, IdempotencyConflict) as error:
            insertion.refuse(error)
        else:
            room -= insertion.size
            insertion.accept()
    taken = insertion.first(take.room) if take is not None else frozenset()
    if insertion.rows:
        rows, counts = insertion.table(queue, now, take, taken)
        for start, size in _parts(len(rows)):
            chosen = rows[start : start + size]
            yield _INSERT[size], [value for row in chosen for value in row], False
        yield _SET_LAST_ID, (insertion.last_id,), False
        yield _COUNT, (*counts, queue), False
    if insertion.keys:
        expires = now + limits.key_ttl
        yield _SET_KEY, [(queue, key, *owner, expires) for key, owner in insertion.keys.items()], True
    return insertion.stored(taken)


def appending(
    queue: int, path: Path, now: float, limits: Limits, payloads: Sequence[bytes], take: Take | None
) -> Generator[Step, Any, Appended]:
    """Store items that have nothing but a payload (`Session.append`): the usual way, and the cheapest."""
    take, last_id, room, full = yield from _admission(queue, path, now, limits, take)
    accepted = 0 if full else max(0, min(room, len(payloads)))
    taken = 0 if take is None else min(take.room, accepted)
    counts = [0] * len(State)
    counts[State.CLAIMED], counts[State.READY] = taken, accepted - taken
    if take is not None:
        claimed = (State.CLAIMED, 1, take.consumer, take.claim)
        yield from _append(queue, now, last_id + 1, payloads[:taken], claimed)
    ready = (State.READY, *_NOBODY)
    yield from _append(queue, now, last_id + taken + 1, payloads[taken:accepted], ready)
    if accepted:
        yield _SET_LAST_ID, (last_id + accepted,), False
        yield _COUNT, (*counts, queue), False
    return Appended(last_id + 1, accepted, taken, "max_file_bytes" if full else "max_depth")


def _append(
    queue: int, now: float, first_id: int, payloads: Sequence[bytes], owner: tuple[Any, ...]
) -> Generator[Step, Any, None]:
    state, attempts, consumer, claim = owner
    for start, size in _parts(len(payloads)):
        shared = (first_id + start, queue, int(state), now, attempts, consumer, claim)
        yield _APPEND[size], (*shared, *payloads[start : start + size]), False


def _parts(total: int) -> Iterator[tuple[int, int]]:
    """Cut so many rows into parts of the sizes that there are statements for."""
    start = 0
    for size in _ROWS:
        while total - start >= size:
            yield start, size
            start += size


def _admission(
    queue: int, path: Path, now: float, limits: Limits, take: Take | None
) -> Generator[Step, Any, tuple[Take | None, int, int, bool]]:
    """Return who may take new items, the last id, the room, and whether the file is full."""
    ((paused, ready, scheduled, claimed),) = yield _QUEUE, (queue,), False
    if take is not None and not (yield _IS_CONSUMER, (take.consumer,), False):
        take = None  # see `Session.claim`
    if take is not None and not paused and not ready:
        overtaken = (yield _IS_DUE, (queue, now), False) if scheduled else []
        take = None if overtaken else take
    else:
        take = None
    ((last_id,),) = yield _LAST_ID, (), False
    full = False
    if limits.max_file_bytes is not None:
        pages = yield _PAGES_IN_USE, (), False
        full = pages[0][0] + wal_size(path) >= limits.max_file_bytes
    return take, last_id, limits.max_depth - ready - scheduled - claimed, full


def joining_queue(name: str) -> Generator[Step, Any, tuple[int | None, str, int]]:
    """Return a queue's number, the file and the synchronous mode of a connection of the application's."""
    files = yield "PRAGMA database_list", (), False
    ((level,),) = yield "PRAGMA synchronous", (), False
    file = next(file for _, schema, file in files if schema == "main")
    if not (yield _HAS_TABLES, (), False):
        return None, file, level
    found = yield _QUEUE_ID, (name,), False
    return (found[0][0] if found else None), file, level


class _Insertion:
    """The rows of one enqueueing transaction, put together group by group."""

    def __init__(self, last_id: int) -> None:
        self.last_id = last_id
        self.rows: list[tuple[int, NewItem]] = []
        self.keys: dict[str, tuple[int, bytes]] = {}
        self._answers: list[list[Stored] | Exception] = []
        self._started = (0, last_id)
        self._ids: list[Stored] = []
        self._new_keys: list[str] = []

    @property
    def size(self) -> int:
        """Return how many rows the current group adds."""
        return len(self.rows) - self._started[0]

    def start(self) -> None:
        """Begin a group."""
        self._started = (len(self.rows), self.last_id)
        self._ids = []
        self._new_keys = []

    def add(self, item: NewItem, before: tuple[int, bytes] | None) -> None:
        """Add an item to the group, or repeat the id of the one that has its key already."""
        if before is not None:
            number, mark = before
            if mark != item.fingerprint:
                raise IdempotencyConflict(item.key or "", number)
            self._ids.append(Stored(number, repeated=True))
            return
        self.last_id += 1
        self.rows.append((self.last_id, item))
        self._ids.append(Stored(self.last_id))
        if item.key is not None:
            self.keys[item.key] = (self.last_id, item.fingerprint or b"")
            self._new_keys.append(item.key)

    def accept(self) -> None:
        """End the group."""
        self._answers.append(self._ids)

    def refuse(self, error: Exception) -> None:
        """End the group as if it had never been."""
        rows, self.last_id = self._started
        del self.rows[rows:]
        for key in self._new_keys:
            del self.keys[key]
        self._answers.append(error)

    def first(self, room: int) -> frozenset[int]:
        """Return the ids that a handler would get first, at most so many."""
        due = [(-item.priority, number) for number, item in self.rows if item.delay <= 0]
        if len(due) > room:
            due.sort()
        return frozenset(number for _, number in due[:room])

    def table(
        self, queue: int, now: float, take: Take | None, taken: frozenset[int]
    ) -> tuple[list[tuple[Any, ...]], list[int]]:
        """Return the rows for the disk, and how many there are in each state."""
        counts = [0] * len(State)
        rows = []
        for number, item in self.rows:
            payload, key, _, priority, delay, nonce, trace = item
            state, owner = (1, _NOBODY) if delay > 0 else (0, _NOBODY)
            if take is not None and number in taken:
                state, owner = 2, (1, take.consumer, take.claim)
            counts[state] += 1
            rows.append((number, queue, state, priority, now + delay, *owner, now, payload, key, nonce, trace))
        return rows, counts

    def stored(self, taken: frozenset[int]) -> list[list[Stored] | Exception]:
        """Return the answer for each group."""
        if not taken:
            return self._answers
        return [
            answer
            if isinstance(answer, Exception)
            else [
                stored._replace(taken=True) if stored.id in taken and not stored.repeated else stored
                for stored in answer
            ]
            for answer in self._answers
        ]


#: Attempts, consumer and claim of an item that no consumer has.
_NOBODY = (0, None, None)


def wal_size(path: Path) -> int:
    """Return the bytes of the write-ahead log."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        return 0
