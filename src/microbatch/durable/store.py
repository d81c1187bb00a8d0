"""The store: every SQL statement of the durable mode, the schema, and who may open it.

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

`session` runs these statements within a transaction, `inserting` those that new items need.
"""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING

from .errors import QueueUnavailable, SchemaTooNew
from .records import State

if TYPE_CHECKING:
    from pathlib import Path

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Raised with every change of the tables, together with a step in `MIGRATIONS`.
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

SCHEMA = (
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
MIGRATIONS: dict[int, tuple[str, ...]] = {}

#: Changes when another connection has committed, in whatever process.
DATA_VERSION = "PRAGMA data_version"

HAS_TABLES = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'microbatch_schema'"
QUEUE_ID = "SELECT id FROM microbatch_queues WHERE name = ?"
QUEUE = "SELECT paused, ready, scheduled, claimed FROM microbatch_queues WHERE id = ?"
LAST_ID = "SELECT last_id FROM microbatch_schema"
SET_LAST_ID = "UPDATE microbatch_schema SET last_id = ?"
#: Rows in one INSERT. One statement with many rows costs less than half of `executemany`, and lets the event
#: loop's thread run meanwhile, where executemany would ask for Python's lock once for each row.
ROWS = (64, 16, 4, 1)
COLUMNS = "(id, queue, state, priority, due, attempts, consumer, claim, enqueued_at, payload{})"
INSERT = {
    rows: "INSERT INTO microbatch_items "  # noqa: S608 - made of constants
    + COLUMNS.format(", key, nonce, trace")
    + " VALUES "
    + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"] * rows)
    for rows in ROWS
}
#: The same for items that have nothing but a payload. (Numbered parameters could bind once what the rows
#: share, but Python 3.12 takes them for named ones and warns.)
APPEND = {
    rows: "INSERT INTO microbatch_items "  # noqa: S608 - made of constants
    + COLUMNS.format("")
    + " VALUES "
    + ", ".join(["(?, ?, ?, 0, ?, ?, ?, ?, ?, ?)"] * rows)
    for rows in ROWS
}
KEY = "SELECT item, fingerprint FROM microbatch_keys WHERE queue = ? AND key = ? AND expires > ?"
SET_KEY = """INSERT INTO microbatch_keys (queue, key, item, fingerprint, expires)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT (queue, key) DO UPDATE
    SET item = excluded.item, fingerprint = excluded.fingerprint, expires = excluded.expires"""
IS_DUE = "SELECT 1 FROM microbatch_items WHERE state = 1 AND queue = ? AND due <= ? LIMIT 1"
NEXT_DUE = "SELECT min(due) FROM microbatch_items WHERE state = 1 AND queue = ?"
PROMOTE = """UPDATE microbatch_items SET state = 0 WHERE id IN (
    SELECT id FROM microbatch_items WHERE state = 1 AND queue = ? AND due <= ? ORDER BY due LIMIT ?)"""
NEXT = """SELECT id, payload, priority, attempts, suspect, key, job, trace FROM microbatch_items
    WHERE state = 0 AND queue = ? ORDER BY priority DESC, due, id LIMIT ?"""
CLAIM = """UPDATE microbatch_items SET state = 2, consumer = ?, claim = ?, attempts = attempts + 1
    WHERE id = ?"""
MINE = """SELECT id, claim, key FROM microbatch_items
    WHERE id IN (SELECT value FROM json_each(?)) AND consumer = ? AND state = 2"""
SETTLE = """UPDATE microbatch_items SET state = ?, result = ?,
    error = CASE ? WHEN 0 THEN error ELSE ? END, due = coalesce(?, due), ended_at = ?,
    keep_until = ?, attempts = attempts - ?, suspect = suspect * ?, consumer = NULL, claim = NULL
    WHERE id = ?"""
KEY_EXPIRES = "SELECT expires FROM microbatch_keys WHERE queue = ? AND key = ? AND item = ?"
COUNT = """UPDATE microbatch_queues SET ready = ready + ?, scheduled = scheduled + ?, claimed = claimed + ?,
    done = done + ?, cancelled = cancelled + ?, dead = dead + ? WHERE id = ?"""
CONSUMERS = "SELECT id, lock_file, pid, born FROM microbatch_consumers WHERE queue = ?"
REGISTER = "INSERT INTO microbatch_consumers (queue, lock_file, pid, born) VALUES (?, ?, ?, ?)"
MOVE_CONSUMER = "UPDATE microbatch_consumers SET lock_file = ? WHERE id = ?"
IS_CONSUMER = "SELECT 1 FROM microbatch_consumers WHERE id = ?"
FORGET = "DELETE FROM microbatch_consumers WHERE id = ?"
TAKE_BACK = """UPDATE microbatch_items SET state = 0, suspect = 1, consumer = NULL, claim = NULL
    WHERE id = ?"""
BURY = """UPDATE microbatch_items SET state = 5, error = ?, ended_at = ?, consumer = NULL, claim = NULL
    WHERE id = ?"""
PAUSE = "UPDATE microbatch_queues SET paused = ? WHERE id = ?"
HELD = (
    """SELECT id, attempts FROM microbatch_items WHERE state = 2 AND queue = ? AND consumer = ?"""
)
STATES = """SELECT id, state FROM microbatch_items
    WHERE queue = ? AND id IN (SELECT value FROM json_each(?))"""
ENDED = """SELECT id, state, result, error, attempts, nonce FROM microbatch_items
    WHERE queue = ? AND id IN (SELECT value FROM json_each(?))"""
DEAD = """SELECT id, payload, error, attempts, enqueued_at, ended_at FROM microbatch_items
    WHERE state = 5 AND queue = ? AND id > ? ORDER BY id LIMIT ?"""
REQUEUE = """UPDATE microbatch_items SET state = 0, due = ?, attempts = 0, suspect = 0, ended_at = NULL
    WHERE id = ?"""
CANCEL = """UPDATE microbatch_items SET state = 4, ended_at = ?, keep_until = ? WHERE id = ?"""
DELETE = "DELETE FROM microbatch_items WHERE id = ?"
EXPIRED = {
    State.DONE: """SELECT id FROM microbatch_items
        WHERE state = 3 AND queue = ? AND keep_until <= ? ORDER BY keep_until LIMIT ?""",
    State.CANCELLED: """SELECT id FROM microbatch_items
        WHERE state = 4 AND queue = ? AND keep_until <= ? ORDER BY keep_until LIMIT ?""",
}
OLDEST = {
    State.DONE: """SELECT id FROM microbatch_items
        WHERE state = 3 AND queue = ? ORDER BY keep_until LIMIT ?""",
    State.DEAD: "SELECT id FROM microbatch_items WHERE state = 5 AND queue = ? ORDER BY id LIMIT ?",
}
EXPIRE_KEYS = """DELETE FROM microbatch_keys WHERE queue = ? AND key IN (
    SELECT key FROM microbatch_keys WHERE queue = ? AND expires <= ? LIMIT ?)"""
# The oldest of each priority stands first in the index of ready items, so one step per priority does.
OLDEST_READY = """WITH RECURSIVE
    step (priority) AS (
        SELECT max(priority) FROM microbatch_items WHERE state = 0 AND queue = :queue
        UNION ALL
        SELECT (SELECT max(priority) FROM microbatch_items
                WHERE state = 0 AND queue = :queue AND priority < step.priority)
        FROM step WHERE step.priority IS NOT NULL LIMIT 1000)
    SELECT min((SELECT min(due) FROM microbatch_items
                WHERE state = 0 AND queue = :queue AND priority = step.priority))
    FROM step WHERE priority IS NOT NULL"""
PAGES_IN_USE = """SELECT (page_count - freelist_count) * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""
STATS = """SELECT ready, scheduled, claimed, done, dead, cancelled, paused
    FROM microbatch_queues WHERE id = ?"""
OLDEST_CLAIMED = "SELECT min(due) FROM microbatch_items WHERE state = 2 AND queue = ?"


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
    for statement in SCHEMA if version == 0 else ():
        raw.execute(statement)
    for step in range(max(version, 1), SCHEMA_VERSION):
        for statement in MIGRATIONS[step]:
            raw.execute(statement)
    raw.execute("UPDATE microbatch_schema SET version = ?", (SCHEMA_VERSION,))
    raw.execute("COMMIT")


def _version(raw: sqlite3.Connection) -> int:
    if raw.execute(HAS_TABLES).fetchone() is None:
        return 0
    (version,) = raw.execute("SELECT version FROM microbatch_schema").fetchone()
    return int(version)


_warned_of_wal_bug = False


def warn_of_wal_bug(path: Path) -> None:
    """Say once in a process that this SQLite has a bug which several processes on a file may meet.

    A warning and no refusal: distributions mend old versions too, and nobody ever met it outside a test.
    """
    global _warned_of_wal_bug  # noqa: PLW0603 - once for each process
    if sqlite3.sqlite_version_info < SQLITE_WITHOUT_WAL_BUG and not _warned_of_wal_bug:
        _warned_of_wal_bug = True
        logger.warning(
            "several processes use %s with SQLite %s, which has a rare bug that may damage the file when two "
            "of them write and checkpoint at the same moment: SQLite 3.51.3 or newer has not",
            path,
            sqlite3.sqlite_version,
        )


def empty_log(raw: sqlite3.Connection) -> None:
    """Move what is in the write-ahead log into the file, if no reader needs it, and cut the log."""
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def queue_id(raw: sqlite3.Connection, name: str) -> int:
    """Return the number of a named queue, which is made if there is none yet."""
    found = raw.execute(QUEUE_ID, (name,)).fetchone()
    if found is None:
        raw.execute(
            "INSERT INTO microbatch_queues (name) VALUES (?) ON CONFLICT DO NOTHING", (name,)
        )
        found = raw.execute(QUEUE_ID, (name,)).fetchone()
    return int(found[0])


def log_mark(path: Path) -> tuple[int, ...] | None:
    """Return what changes when the write-ahead log does; None if there is none."""
    try:
        log = path.with_name(f"{path.name}-wal").stat()
    except FileNotFoundError:
        return None
    return log.st_mtime_ns, log.st_size, log.st_ino


def wal_size(path: Path) -> int:
    """Return the bytes of the write-ahead log."""
    mark = log_mark(path)
    return 0 if mark is None else mark[1]
