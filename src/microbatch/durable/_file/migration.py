"""From older versions, each in one transaction.

In version 1 each item was a row of a table ``microbatch_items``; version 2 knew nothing of jobs,
version 3 nothing of answers.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from microbatch.durable.errors import QueueUnavailable

from . import answer_sql, job_schema, schema, sql
from . import payloads as blobs
from .ranges import CANCELLED, CLAIMED, DEAD, DONE, READY, SCHEDULED, ended_well, merge, runs
from .records import Range, State
from .session import Session, run

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

_TABLES = ("schema", "queues", "items", "keys", "consumers")
_INDEXES = ("ready", "scheduled", "claimed", "done", "cancelled", "dead", "job", "keys_expires")

#: Its states, by number.
_STATES = (READY, SCHEDULED, CLAIMED, DONE, CANCELLED, DEAD)

_ITEMS = """SELECT id, queue, state, priority, due, attempts, suspect, consumer, claim, enqueued_at,
        ended_at, keep_until, payload, result, error, key, nonce, trace
    FROM microbatch_v1_items ORDER BY id"""

#: Items that are written at once.
_STEP = 1_000


def migrate(
    raw: sqlite3.Connection, path: Path, lives: Callable[[tuple[Any, ...]], bool], found: int
) -> None:
    """Turn the tables of an older version into those of this one, in the caller's transaction.

    Raises:
        QueueUnavailable: If a process with the older microbatch works on the file.
    """
    for consumer in raw.execute("SELECT id, lock_file, pid, born FROM microbatch_consumers"):
        if lives(consumer):
            reason = (
                f"process {consumer[2]} still works on it with an older microbatch: "
                "stop that first, then this version takes the file over"
            )
            raise QueueUnavailable(str(path), reason)
    if found == 1:
        _from_1(raw, path)
    else:
        for statement in (*(job_schema.UPGRADE if found == 2 else ()), *answer_sql.TABLES):
            raw.execute(statement)
        raw.execute("UPDATE microbatch_schema SET version = ?", (schema.SCHEMA_VERSION,))


def _from_1(raw: sqlite3.Connection, path: Path) -> None:
    """Write all items anew. What a dead process had claimed is ready afterwards."""
    _step_aside(raw)
    ((last_id,),) = raw.execute("SELECT last_id FROM microbatch_v1_schema").fetchall()
    schema.create(raw, last_id)
    queues = raw.execute("SELECT id, name, paused FROM microbatch_v1_queues").fetchall()
    raw.executemany("INSERT INTO microbatch_queues (id, name, paused) VALUES (?, ?, ?)", queues)
    raw.executemany(
        "INSERT INTO microbatch_lanes (queue, lane) VALUES (?, 0)", [row[:1] for row in queues]
    )
    items = raw.execute(_ITEMS)
    while rows := items.fetchmany(_STEP):
        for _, same in groupby(rows, key=lambda row: row[1]):  # a blob holds one queue's items
            _write(raw, list(same))
    # The key of an item that is gone, or was cancelled, is free.
    raw.execute(
        """INSERT INTO microbatch_keys SELECT k.queue, k.key, k.item, k.expires
        FROM microbatch_v1_keys AS k JOIN microbatch_ranges AS r
        ON r.first_id = k.item AND r.queue = k.queue AND r.key = k.key"""
    )
    for queue, _, _ in queues:
        _count(raw, queue)
    _take_back(raw, path)
    for table in _TABLES:
        raw.execute(f"DROP TABLE microbatch_v1_{table}")


def _step_aside(raw: sqlite3.Connection) -> None:
    """Give the old tables other names; what others wrote about them (views, say) keeps its text."""
    ((before,),) = raw.execute("PRAGMA legacy_alter_table").fetchall()
    raw.execute("PRAGMA legacy_alter_table = ON")
    for index in _INDEXES:
        raw.execute(f"DROP INDEX IF EXISTS microbatch_{index}")
    for table in _TABLES:
        raw.execute(f"ALTER TABLE microbatch_{table} RENAME TO microbatch_v1_{table}")
    raw.execute(f"PRAGMA legacy_alter_table = {before}")


def _write(raw: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write items of one queue, given by ascending ids."""
    found = [(_range(row), row) for row in rows]
    raw.executemany(sql.WRITE_RANGE, merge(one for one, _ in found))
    needed = {one.first: row for one, row in found if not ended_well(one)}
    for first, last in runs(needed):
        chosen = [needed[number] for number in range(first, last + 1)]
        steps = blobs.store(chosen[0][1], first, [r[12] for r in chosen], [r[17] for r in chosen])
        run(raw, steps)
    results = {row[0]: row[13] for one, row in found if one.state == DONE}
    run(raw, blobs.store_results(list(results), list(results.values())))
    errors = [(row[0], row[14]) for one, row in found if one.state != DONE and row[14] is not None]
    raw.executemany(sql.ERROR, errors)


def _range(row: tuple[Any, ...]) -> Range:
    number, queue, state, priority, due, attempts, suspect, consumer, claim, enqueued = row[:10]
    ended_at, keep_until, _, _, _, key, nonce, _ = row[10:]
    state = _STATES[state]
    has_ended = state in (DONE, CANCELLED, DEAD)
    if state == CLAIMED:
        attempts -= 1  # version 1 counted an attempt when it began
    return Range(
        first=number,
        count=1,
        queue=queue,
        lane=0,
        state=state,
        priority=priority,
        due=0.0 if has_ended else due,
        since=(ended_at or enqueued) if has_ended else enqueued,
        attempts=attempts,
        deaths=0,  # it may have died in company
        apart=number if suspect and state in (READY, CLAIMED) else None,
        consumer=consumer if state == CLAIMED else None,
        claim=claim if state == CLAIMED else None,
        ticket=nonce,
        job=None,
        position=None,
        key=None if state == CANCELLED else key,
        enqueued=enqueued,
        ended_at=(ended_at or enqueued) if has_ended else None,
        keep_until=keep_until if has_ended and state != DEAD else None,
        ended=1 if has_ended else None,
    )


def _count(raw: sqlite3.Connection, queue: int) -> None:
    """Write a queue's counts, and the head of its lane."""
    counts = [0] * len(State)
    for state, count in raw.execute(
        "SELECT state, sum(count) FROM microbatch_ranges WHERE queue = ? GROUP BY state", (queue,)
    ):
        counts[state] = count
    ((paused,),) = raw.execute("SELECT paused FROM microbatch_queues WHERE id = ?", (queue,))
    ((latest,),) = raw.execute(
        "SELECT max(since) FROM microbatch_ranges WHERE queue = ? AND state IN (0, 1, 2)", (queue,)
    )
    raw.execute(sql.SET_QUEUE, (paused, 1, 0, latest or 0.0, *counts, 0, 0, queue))
    for head in raw.execute(sql.HEAD, (queue, 0)).fetchall():
        raw.execute(sql.SET_HEAD, (*head, queue, 0))


def _take_back(raw: sqlite3.Connection, path: Path) -> None:
    """Make ready what was claimed: nobody lives who could settle it."""
    held = raw.execute("SELECT DISTINCT queue, consumer FROM microbatch_ranges WHERE state = 2")
    for queue, consumer in held.fetchall():
        session = Session(path=path, now=_now(raw), ticket=None, wal_size=int)
        more = True
        while more:
            # How many attempts there are is not known here: the next one to take it will see.
            _, more = run(raw, session.take_back(queue, consumer, 1_000_000))
        run(raw, session.finish())


def _now(raw: sqlite3.Connection) -> float:
    ((now,),) = raw.execute("SELECT (julianday('now') - 2440587.5) * 86400.0")
    return float(now)
