"""The statements of those who only look: nothing of the durable mode's own work runs them."""

from __future__ import annotations

from .sql import COLUMNS

NAMES = "SELECT id, name FROM microbatch_queues ORDER BY name"

#: Ranges in some states, a JSON list, from the one that an id is in on. It reads past those in other
#: states: ranges that ended are merged, so there are few of them.
LISTED = f"""SELECT {COLUMNS} FROM microbatch_ranges NOT INDEXED WHERE queue = :queue
    AND first_id >= ifnull((SELECT max(first_id) FROM microbatch_ranges WHERE first_id <= :from), 0)
    AND first_id + count > :from AND state IN (SELECT value FROM json_each(:states))
    ORDER BY first_id LIMIT :limit"""  # noqa: S608 - made of constants

#: What each consumer has claimed: how many items, and when the first of them was due.
HELD_BY = """SELECT consumer, sum(count), min(due), max(claim) FROM microbatch_ranges
    WHERE state = 2 AND queue = ? GROUP BY consumer"""

JOB_UID = "SELECT uid FROM microbatch_jobs WHERE id = ?"

# What must hold: see `checking`

#: The first faults that SQLite finds in its pages; one row of "ok" without any.
PAGES = "PRAGMA quick_check(5)"
COUNTED = "SELECT state, sum(count) FROM microbatch_ranges WHERE queue = ? GROUP BY state"
JOBS = """SELECT id, uid, total, succeeded, failed, skipped, cancelled, expired FROM microbatch_jobs
    WHERE queue = ? AND kept = 1 AND life BETWEEN 1 AND 4"""
COUNTED_OF_JOBS = """SELECT job, state, sum(count) FROM microbatch_ranges
    WHERE queue = ? AND job IS NOT NULL GROUP BY job, state"""
LANES = "SELECT lane, priority, due, first_id FROM microbatch_lanes WHERE queue = ?"
#: Keys that stand for no item.
LOST_KEYS = """SELECT count(*) FROM microbatch_keys AS k WHERE k.queue = ? AND NOT EXISTS (
    SELECT 1 FROM microbatch_ranges AS r
    WHERE r.first_id = (SELECT max(first_id) FROM microbatch_ranges WHERE first_id <= k.item)
    AND k.item < r.first_id + r.count)"""
#: Items that may be handled yet, and how many of them lie in a blob.
NEEDED = "SELECT sum(count) FROM microbatch_ranges WHERE queue = ? AND state IN (0, 1, 2, 7)"
THERE = """SELECT sum(min(r.first_id + r.count, b.first_id + b.count) - max(r.first_id, b.first_id))
    FROM microbatch_ranges AS r JOIN microbatch_blobs AS b ON b.first_id BETWEEN
        ifnull((SELECT max(first_id) FROM microbatch_blobs WHERE first_id <= r.first_id), 0)
        AND r.first_id + r.count - 1
    WHERE r.queue = ? AND r.state IN (0, 1, 2, 7) AND b.first_id + b.count > r.first_id"""
#: The latest reading of a clock: when something was due from, ended, or came.
LATEST = """SELECT max(max(since), max(enqueued), ifnull(max(ended_at), 0)) FROM microbatch_ranges
    WHERE queue = ?"""
