"""The tables, who may open them, and the way from older versions.

All are named ``microbatch_*`` because the file may be the application's own (``application_id`` and
``user_version`` belong to it):

- ``microbatch_schema``: one row: the schema's version and the last id given, which is never given again.
- ``microbatch_queues``: one row for each named queue: whether it is paused, how many items are in each state,
  how many transactions ended or removed items, and the latest reading of the clock that stands in its ranges.
  Kept by the transactions that change them, so that nothing ever counts rows.
- ``microbatch_lanes``: where the ready ranges of a queue stand, and which of them goes first.
- ``microbatch_blobs``: payloads of items that came together, never changed but once (`keeping.tidy`).
- ``microbatch_ranges``: consecutive items in one state. Partial indexes, so that nothing reads past others.
- ``microbatch_results``, ``microbatch_errors``: of items that have one.
- ``microbatch_keys``: idempotency keys apart, so that only keyed items pay for them.
- ``microbatch_consumers``: who may hold claimed items. Its ids are the bytes of the lock file.
- ``microbatch_jobs`` and what belongs to them: see `job_schema`.
- ``microbatch_answers``: what requests were answered with, by their keys: see `answer_sql`.

The view ``microbatch_items`` shows each item whose payload is there.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from typing import TYPE_CHECKING, Any

from microbatch.durable.errors import QueueUnavailable, SchemaTooNew

from . import answer_sql, job_schema, sql

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Raised with every change of the tables, together with a step in `prepare`.
SCHEMA_VERSION = 4

#: The oldest SQLite that is tested; json_each is always built in since 3.38.
SQLITE_MINIMUM = (3, 38, 0)

#: Two connections that write and checkpoint at the same moment may damage the file before this version.
SQLITE_WITHOUT_WAL_BUG = (3, 51, 3)

SYNCHRONOUS = {"normal": 1, "full": 2, "extra": 3}

PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    # The log is truncated to this after a burst, once everything in it is in the file.
    "PRAGMA journal_size_limit = 16777216",
    "PRAGMA fullfsync = ON",  # macOS only: there fsync alone does not reach the medium
    "PRAGMA checkpoint_fullfsync = ON",
    "PRAGMA foreign_keys = OFF",
    # Deleted payloads are overwritten where that costs no write of its own.
    "PRAGMA secure_delete = FAST",
)

SCHEMA = (
    "CREATE TABLE microbatch_schema (version INTEGER NOT NULL, last_id INTEGER NOT NULL)",
    f"""CREATE TABLE microbatch_queues (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        paused INTEGER NOT NULL DEFAULT 0,
        ready INTEGER NOT NULL DEFAULT 0,
        scheduled INTEGER NOT NULL DEFAULT 0,
        claimed INTEGER NOT NULL DEFAULT 0,
        done INTEGER NOT NULL DEFAULT 0,
        skipped INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0,
        expired INTEGER NOT NULL DEFAULT 0,
        dead INTEGER NOT NULL DEFAULT 0,
        staged INTEGER NOT NULL DEFAULT 0,
        ended INTEGER NOT NULL DEFAULT 0,
        removed INTEGER NOT NULL DEFAULT 0,
        latest REAL NOT NULL DEFAULT 0,
        {", ".join(job_schema.QUEUE_COLUMNS)}
    )""",
    f"""CREATE TABLE microbatch_lanes (
        queue INTEGER NOT NULL,
        lane INTEGER NOT NULL,
        open INTEGER NOT NULL DEFAULT 1,
        priority INTEGER,
        due REAL,
        first_id INTEGER,
        {", ".join(job_schema.LANE_COLUMNS)},
        PRIMARY KEY (queue, lane)
    ) WITHOUT ROWID""",
    # Lane 0 is read with the queue's row: an entry here would be a page more for each lone item.
    """CREATE INDEX microbatch_lane_heads ON microbatch_lanes (queue, priority DESC, due, first_id)
        WHERE lane > 0 AND open = 1 AND first_id IS NOT NULL""",
    """CREATE TABLE microbatch_blobs (
        first_id INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        queue INTEGER NOT NULL,
        lengths TEXT NOT NULL,
        traces TEXT,
        payloads BLOB NOT NULL
    )""",
    """CREATE TABLE microbatch_ranges (
        first_id INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        queue INTEGER NOT NULL,
        lane INTEGER NOT NULL,
        state INTEGER NOT NULL,
        priority INTEGER NOT NULL,
        due REAL NOT NULL,
        since REAL NOT NULL,
        attempts INTEGER NOT NULL,
        deaths INTEGER NOT NULL,
        apart INTEGER,
        consumer INTEGER,
        claim INTEGER,
        ticket INTEGER,
        job INTEGER,
        position INTEGER,
        key TEXT,
        enqueued REAL NOT NULL,
        ended_at REAL,
        keep_until REAL,
        ended INTEGER
    )""",
    """CREATE INDEX microbatch_ready ON microbatch_ranges (queue, lane, priority DESC, due)
        WHERE state = 0""",
    """CREATE INDEX microbatch_apart ON microbatch_ranges (queue, apart)
        WHERE state = 0 AND apart IS NOT NULL""",
    """CREATE INDEX microbatch_scheduled ON microbatch_ranges (queue, priority DESC, due)
        WHERE state = 1""",
    "CREATE INDEX microbatch_due ON microbatch_ranges (queue, due) WHERE state = 1",
    "CREATE INDEX microbatch_claimed ON microbatch_ranges (queue, consumer, claim) WHERE state = 2",
    "CREATE INDEX microbatch_staged ON microbatch_ranges (queue, consumer, claim) WHERE state = 8",
    job_schema.ENDED_INDEX,
    """CREATE INDEX microbatch_keyed ON microbatch_ranges (queue, keep_until)
        WHERE key IS NOT NULL AND ended IS NOT NULL""",
    "CREATE INDEX microbatch_dead ON microbatch_ranges (queue) WHERE state = 7",
    *job_schema.RANGE_INDEXES,
    """CREATE TABLE microbatch_results (
        first_id INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        lengths TEXT NOT NULL,
        results BLOB NOT NULL
    )""",
    "CREATE TABLE microbatch_errors (id INTEGER PRIMARY KEY, error BLOB NOT NULL)",
    """CREATE TABLE microbatch_keys (
        queue INTEGER NOT NULL,
        key TEXT NOT NULL,
        item INTEGER NOT NULL,
        expires REAL NOT NULL,
        PRIMARY KEY (queue, key)
    ) WITHOUT ROWID""",
    """CREATE TABLE microbatch_consumers (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        queue INTEGER NOT NULL,
        lock_file TEXT NOT NULL,
        pid INTEGER NOT NULL,
        born TEXT
    )""",
    *job_schema.TABLES,
    *answer_sql.TABLES,
    # A payload that was dropped has a length of null. Offsets before payloads: the sum runs over numbers alone.
    """CREATE VIEW microbatch_items AS
        SELECT i.id, q.name AS queue,
            CASE r.state WHEN 0 THEN 'ready' WHEN 1 THEN 'scheduled' WHEN 2 THEN 'claimed'
                WHEN 3 THEN 'done' WHEN 4 THEN 'skipped' WHEN 5 THEN 'cancelled' WHEN 6 THEN 'expired'
                WHEN 7 THEN 'dead' ELSE 'staged' END AS state,
            r.priority, r.due, r.attempts, r.key, r.enqueued AS enqueued_at,
            substr(p.payloads, i.before + 1, i.length) AS payload
        FROM (SELECT b.first_id AS blob, b.first_id + j.key AS id, j.value AS length,
                ifnull(sum(j.value) OVER (PARTITION BY b.first_id ORDER BY j.key
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
              FROM microbatch_blobs AS b, json_each(b.lengths) AS j) AS i
        JOIN microbatch_ranges AS r
            ON r.first_id = (SELECT max(first_id) FROM microbatch_ranges WHERE first_id <= i.id)
            AND i.id < r.first_id + r.count
        JOIN microbatch_queues AS q ON q.id = r.queue
        JOIN microbatch_blobs AS p ON p.first_id = i.blob
        WHERE i.length IS NOT NULL""",
)


def begin_to_write(raw: sqlite3.Connection) -> None:
    """Begin a transaction that writes."""
    raw.execute("BEGIN IMMEDIATE")


def prepare(
    raw: sqlite3.Connection,
    path: Path,
    synchronous: str,
    lives: Callable[[tuple[Any, ...]], bool],
    begin: Callable[[sqlite3.Connection], object] = begin_to_write,
) -> None:
    """Set up a new connection that writes, and check the schema; create or migrate it.

    Args:
        raw: The connection, without a transaction.
        path: The file, for messages.
        synchronous: A key of `SYNCHRONOUS`.
        lives: Tells whether a consumer of an older version lives: its id, lock file, process and birth.
        begin: Begins a transaction that writes; it may wait until nobody else does.

    Raises:
        QueueUnavailable: If SQLite is too old, or refused WAL or the synchronous mode, or if a process with an
            older microbatch works on the file.
        SchemaTooNew: If a newer microbatch made the tables.
    """
    if sqlite3.sqlite_version_info < SQLITE_MINIMUM:
        needed = ".".join(map(str, SQLITE_MINIMUM))
        reason = f"microbatch needs SQLite {needed}, this Python has {sqlite3.sqlite_version}"
        raise QueueUnavailable(str(path), reason)
    for pragma in PRAGMAS:
        raw.execute(pragma).fetchall()
    raw.execute(f"PRAGMA synchronous = {SYNCHRONOUS[synchronous]}")
    (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
    (level,) = raw.execute("PRAGMA synchronous").fetchone()
    if mode != "wal" or level != SYNCHRONOUS[synchronous]:
        reason = f"asked for WAL and synchronous={synchronous}, got {mode} and {level}: a network file system?"
        raise QueueUnavailable(str(path), reason)
    if version(raw) == SCHEMA_VERSION:
        return
    begin(raw)
    try:
        found = version(raw)  # again: another process may have been first
        if found > SCHEMA_VERSION:
            raise SchemaTooNew(str(path), found, SCHEMA_VERSION)
        if found == 0:
            create(raw, 0)
        elif found < SCHEMA_VERSION:
            from .migration import migrate  # noqa: PLC0415 - needed once in a file's life

            migrate(raw, path, lives, found)
    except BaseException:
        with contextlib.suppress(sqlite3.OperationalError):  # SQLite may have done it already
            raw.execute("ROLLBACK")
        raise
    raw.execute("COMMIT")


def create(raw: sqlite3.Connection, last_id: int) -> None:
    """Make the tables."""
    for statement in SCHEMA:
        raw.execute(statement)
    raw.execute("INSERT INTO microbatch_schema VALUES (?, ?)", (SCHEMA_VERSION, last_id))


def version(raw: sqlite3.Connection) -> int:
    """Return the schema's version; 0 without one."""
    if raw.execute(sql.HAS_TABLES).fetchone() is None:
        return 0
    (found,) = raw.execute("SELECT version FROM microbatch_schema").fetchone()
    return int(found)


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


def wal_size(path: Path) -> int:
    """Return the bytes of the write-ahead log."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except FileNotFoundError:
        return 0
