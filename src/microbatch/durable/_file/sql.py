"""The statements that run on the tables of `schema`. Every one of them finds its rows by an index.

States stand in them as numbers, as `State` has them: a partial index is only used by a statement whose text
implies its condition.
"""

from __future__ import annotations

from .job_schema import ENDED_CLASS

#: Changes when another connection has committed, in whatever process.
DATA_VERSION = "PRAGMA data_version"
HAS_TABLES = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'microbatch_schema'"
PAGES_IN_USE = """SELECT (page_count - freelist_count) * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""
RESERVE = "UPDATE microbatch_schema SET last_id = last_id + ? RETURNING last_id"

# Queues

QUEUE_ID = "SELECT id FROM microbatch_queues WHERE name = ?"
QUEUE_NAME = "SELECT name FROM microbatch_queues WHERE id = ?"
MAKE_QUEUE = "INSERT INTO microbatch_queues (name) VALUES (?) RETURNING id"
MAKE_LANE = "INSERT INTO microbatch_lanes (queue, lane) VALUES (?, 0)"
COUNTS = "ready, scheduled, claimed, done, skipped, cancelled, expired, dead, staged"
QUEUE = f"""SELECT q.paused, q.ended, q.removed, q.latest, {COUNTS}, l.open, l.priority, l.due, l.first_id,
        q.watched_done, q.watched_dead
    FROM microbatch_queues AS q JOIN microbatch_lanes AS l ON l.queue = q.id AND l.lane = 0
    WHERE q.id = ?"""  # noqa: S608 - made of constants
SET_QUEUE = """UPDATE microbatch_queues SET paused = ?, ended = ?, removed = ?, latest = ?,
    ready = ?, scheduled = ?, claimed = ?, done = ?, skipped = ?, cancelled = ?, expired = ?, dead = ?,
    staged = ?, watched_done = ?, watched_dead = ? WHERE id = ?"""

# Lanes

HEAD = """SELECT priority, due, first_id FROM microbatch_ranges
    WHERE state = 0 AND queue = ? AND lane = ? ORDER BY priority DESC, due, first_id LIMIT 1"""
SET_HEAD = """UPDATE microbatch_lanes SET priority = ?, due = ?, first_id = ?
    WHERE queue = ? AND lane = ?"""
NO_HEAD = """UPDATE microbatch_lanes SET priority = NULL, due = NULL, first_id = NULL
    WHERE queue = ? AND lane = ?"""
LANES = "SELECT lane FROM microbatch_lanes WHERE queue = ? AND lane > 0"
#: Those that a claim may read, in order: not one whose job is past its deadline.
OTHER_LANES = """SELECT priority, due, first_id, lane, size, ordered, bound, uid, named, begun,
        (SELECT key FROM microbatch_jobs WHERE id = lane)
    FROM microbatch_lanes INDEXED BY microbatch_lane_heads
    WHERE queue = ? AND lane > 0 AND open = 1 AND first_id IS NOT NULL
    AND (deadline IS NULL OR deadline > ?) ORDER BY priority DESC, due, first_id LIMIT ?"""

#: Whether something stands ready in a lane that a claim may read.
IS_CLAIMABLE = """SELECT 1 FROM microbatch_lanes
    WHERE queue = :queue AND lane = 0 AND open = 1 AND first_id IS NOT NULL
    UNION ALL SELECT 1 FROM microbatch_lanes INDEXED BY microbatch_lane_heads
    WHERE queue = :queue AND lane > 0 AND open = 1 AND first_id IS NOT NULL
    AND (deadline IS NULL OR deadline > :now) LIMIT 1"""

# Ranges

COLUMNS = """first_id, count, queue, lane, state, priority, due, since, attempts, deaths, apart, consumer,
    claim, ticket, job, position, key, enqueued, ended_at, keep_until, ended"""
_RANGES = f"SELECT {COLUMNS} FROM microbatch_ranges"  # noqa: S608
WRITE_RANGE = "INSERT OR REPLACE INTO microbatch_ranges VALUES ({})".format(  # noqa: S608
    ", ".join("?" * 21)
)
#: Most columns of most ranges are NULL, and a None among the parameters takes sqlite3 3,000 instructions. Here
#: the columns 10 to 12, 14 and 15, 16, and 18 to 20 are parameters only in the statements whose number has a
#: bit for them: 8 if somebody has claimed the range, 4 if it has a job, 2 if it has a key, 1 if it has ended.
WRITE_RANGES = tuple(
    "INSERT OR REPLACE INTO microbatch_ranges VALUES ({})".format(  # noqa: S608
        ", ".join(
            ["?"] * 10
            + ["?" if number & 8 else "NULL"] * 3
            + ["?"]
            + ["?" if number & 4 else "NULL"] * 2
            + ["?" if number & 2 else "NULL"]
            + ["?"]
            + ["?" if number & 1 else "NULL"] * 3
        )
    )
    for number in range(16)
)
REMOVE_RANGE = "DELETE FROM microbatch_ranges WHERE first_id = ?"
#: The ranges with the ids of some runs: the parameter is a JSON list of [first, last].
RANGES_OF = f"""SELECT {", ".join("r." + name.strip() for name in COLUMNS.split(","))}
    FROM json_each(?) AS run CROSS JOIN microbatch_ranges AS r ON r.first_id BETWEEN
        ifnull((SELECT max(b.first_id) FROM microbatch_ranges AS b
                WHERE b.first_id <= json_extract(run.value, '$[0]')), 0)
        AND json_extract(run.value, '$[1]')"""  # noqa: S608
#: The ranges from one to another id, with the neighbour before them.
AROUND = f"""{_RANGES} WHERE first_id BETWEEN
    ifnull((SELECT max(first_id) FROM microbatch_ranges WHERE first_id < ?), 0) AND ?
    ORDER BY first_id"""  # noqa: S608
READY = f"""{_RANGES} WHERE state = 0 AND queue = ? AND lane = ?
    ORDER BY priority DESC, due, first_id LIMIT ? OFFSET ?"""
APART = f"{_RANGES} WHERE state = 0 AND queue = ? AND apart = ? AND lane = ?"
HELD = f"{_RANGES} WHERE state = 2 AND queue = ? AND consumer = ? AND claim = ? ORDER BY first_id"
HELD_ALL = f"{_RANGES} WHERE state = 2 AND queue = ? AND consumer = ? ORDER BY claim, first_id"
HELD_OF = f"""SELECT {", ".join("r." + name.strip() for name in COLUMNS.split(","))}
    FROM json_each(?) AS one CROSS JOIN microbatch_ranges AS r
    ON r.state = 2 AND r.queue = ? AND r.consumer = ? AND r.claim = one.value"""  # noqa: S608
STAGED = f"{_RANGES} WHERE state = 8 AND queue = ? AND consumer = ? AND claim = ? ORDER BY first_id"
STAGED_ALL = f"{_RANGES} WHERE state = 8 AND queue = ? AND consumer = ? ORDER BY claim LIMIT ?"

# Time

OVERDUE = f"{_RANGES} WHERE state = 1 AND queue = ? AND due <= ? ORDER BY due LIMIT ?"
NEXT_DUE = "SELECT min(due) FROM microbatch_ranges WHERE state = 1 AND queue = ?"
IS_DUE = "SELECT 1 FROM microbatch_ranges WHERE state = 1 AND queue = ? AND due <= ? LIMIT 1"
TOP_PRIORITY = """SELECT max(priority) FROM microbatch_ranges
    INDEXED BY microbatch_scheduled WHERE state = 1 AND queue = ?"""
NEXT_PRIORITY = """SELECT max(priority) FROM microbatch_ranges
    INDEXED BY microbatch_scheduled WHERE state = 1 AND queue = ? AND priority < ?"""
OVERDUE_OF = f"""SELECT {COLUMNS} FROM microbatch_ranges INDEXED BY microbatch_scheduled
    WHERE state = 1 AND queue = ? AND priority = ? AND due <= ? ORDER BY due, first_id LIMIT ?"""  # noqa: S608
#: For one state each: what was written while the clock was in the future.
REPAIR = tuple(
    f"""UPDATE microbatch_ranges SET due = ? + (due - since), since = ?
    WHERE state = {state} AND queue = ? AND since > ?"""  # noqa: S608
    for state in (0, 1)
)

# Payloads

STORE = "INSERT INTO microbatch_blobs VALUES (?, ?, ?, ?, NULL, ?)"
STORE_TRACED = "INSERT INTO microbatch_blobs VALUES (?, ?, ?, ?, ?, ?)"
#: The greatest payloads that are read with the others; greater ones are read one by one.
INLINE = 65_536
#: The blobs with the ids from one to another.
BLOBS = f"""SELECT first_id, lengths, traces,
        CASE WHEN length(payloads) <= {INLINE} THEN payloads END FROM microbatch_blobs
    WHERE first_id BETWEEN
        ifnull((SELECT max(first_id) FROM microbatch_blobs WHERE first_id <= ?), 0) AND ?
    ORDER BY first_id LIMIT 64"""  # noqa: S608
PAYLOADS = "SELECT payloads FROM microbatch_blobs WHERE first_id = ?"
#: Removes the blobs with ids from one to another that no item needs: none that is there and not ended well.
RELEASE = """DELETE FROM microbatch_blobs WHERE first_id BETWEEN
        ifnull((SELECT max(b.first_id) FROM microbatch_blobs AS b WHERE b.first_id <= ?), 0) AND ?
    AND NOT EXISTS (SELECT 1 FROM microbatch_ranges AS r WHERE r.first_id BETWEEN
            ifnull((SELECT max(n.first_id) FROM microbatch_ranges AS n
                    WHERE n.first_id <= microbatch_blobs.first_id), 0)
            AND microbatch_blobs.first_id + microbatch_blobs.count - 1
        AND r.first_id + r.count > microbatch_blobs.first_id
        AND NOT (r.state IN (3, 4) AND r.key IS NULL))"""
BLOB_AT = """SELECT first_id, count, lengths, traces FROM microbatch_blobs
    WHERE first_id <= ? ORDER BY first_id DESC LIMIT 1"""
THIN = "UPDATE microbatch_blobs SET lengths = ?, payloads = ? WHERE first_id = ?"

# Results and errors

RESULT = "INSERT INTO microbatch_results VALUES (?, ?, ?, ?)"
RESULTS_OF = """SELECT r.first_id, r.count, r.lengths, r.results
    FROM json_each(?) AS run CROSS JOIN microbatch_results AS r ON r.first_id BETWEEN
        ifnull((SELECT max(b.first_id) FROM microbatch_results AS b
                WHERE b.first_id <= json_extract(run.value, '$[0]')), 0)
        AND json_extract(run.value, '$[1]')"""
RESULTS_WITHIN = """DELETE FROM microbatch_results
    WHERE first_id BETWEEN ? AND ? AND first_id + count - 1 <= ?"""
RESULTS_AROUND = """SELECT first_id, lengths, results FROM microbatch_results
    WHERE first_id BETWEEN ifnull((SELECT max(first_id) FROM microbatch_results WHERE first_id <= ?), 0)
    AND ? AND first_id + count > ?"""
REMOVE_RESULT = "DELETE FROM microbatch_results WHERE first_id = ?"
ERROR = "INSERT OR REPLACE INTO microbatch_errors VALUES (?, ?)"
ERROR_OF = "SELECT error FROM microbatch_errors WHERE id = ?"
ERRORS_OF = """SELECT e.id, e.error FROM json_each(?) AS run CROSS JOIN microbatch_errors AS e
    ON e.id BETWEEN json_extract(run.value, '$[0]') AND json_extract(run.value, '$[1]')"""
REMOVE_ERRORS = "DELETE FROM microbatch_errors WHERE id BETWEEN ? AND ?"

# Keys

KEY = "SELECT item, expires FROM microbatch_keys WHERE queue = ? AND key = ?"
#: Of those in a JSON list that are known: one statement for all that come together.
KEYS = """SELECT k.key, k.item, k.expires FROM json_each(?) AS one CROSS JOIN microbatch_keys AS k
    ON k.queue = ? AND k.key = one.value"""
SET_KEY = "INSERT OR REPLACE INTO microbatch_keys (queue, key, item, expires) VALUES (?, ?, ?, ?)"
REMOVE_KEY = "DELETE FROM microbatch_keys WHERE queue = ? AND key = ? AND item = ?"

# Consumers

CONSUMERS = "SELECT id, queue, lock_file, pid, born FROM microbatch_consumers"
REGISTER = """INSERT INTO microbatch_consumers (queue, lock_file, pid, born) VALUES (?, '', ?, ?)
    RETURNING id"""
PLACE = "UPDATE microbatch_consumers SET lock_file = ? WHERE id = ?"
IS_CONSUMER = "SELECT 1 FROM microbatch_consumers WHERE id = ?"
FORGET = "DELETE FROM microbatch_consumers WHERE id = ?"

# What has ended

#: Each for a state and a class, unkeyed (0), keyed (1) or a job's (2), in the order in which they ended.
ENDED = f"""{_RANGES} WHERE queue = ? AND state = ? AND {ENDED_CLASS} = ?
    AND ended IS NOT NULL AND ended > ? ORDER BY ended, first_id LIMIT ?"""
#: What ended while the clock was in the future: kept as long as if it had ended now.
MEND_ENDED = """UPDATE microbatch_ranges
    SET keep_until = ? + (keep_until - ended_at), since = min(since, ?), ended_at = ?
    WHERE queue = ? AND state = ? AND ended IS NOT NULL AND ended_at > ?"""
ENDED_SINCE = f"""SELECT first_id, count FROM microbatch_ranges WHERE queue = ?
    AND state IN (3, 4, 5, 6, 7) AND {ENDED_CLASS} IN (0, 1, 2) AND ended IS NOT NULL AND ended > ?"""  # noqa: S608
KEYED_EXPIRED = f"""{_RANGES} WHERE queue = ? AND key IS NOT NULL AND ended IS NOT NULL AND keep_until <= ?
    ORDER BY keep_until LIMIT ?"""
DEAD = f"{_RANGES} WHERE state = 7 AND queue = ? AND first_id >= ? ORDER BY first_id LIMIT ?"
#: Those that are no job's.
DEAD_ALONE = f"""{_RANGES} WHERE state = 7 AND queue = ? AND job IS NULL
    ORDER BY first_id LIMIT ?"""
DEAD_BEFORE = """SELECT max(first_id) FROM microbatch_ranges
    WHERE state = 7 AND queue = ? AND first_id <= ?"""

# Figures

#: The oldest of each lane and priority stands first in the index of ready items, so one step for each does.
OLDEST_READY = """WITH RECURSIVE step (lane, priority) AS (
        SELECT lane, priority FROM microbatch_lanes WHERE queue = :queue AND first_id IS NOT NULL
        UNION ALL
        SELECT lane, (SELECT max(priority) FROM microbatch_ranges WHERE state = 0 AND queue = :queue
                      AND lane = step.lane AND priority < step.priority)
        FROM step WHERE step.priority IS NOT NULL)
    SELECT min((SELECT min(due) FROM microbatch_ranges WHERE state = 0 AND queue = :queue
                AND lane = step.lane AND priority = step.priority))
    FROM step WHERE priority IS NOT NULL"""
OLDEST_CLAIMED = "SELECT min(due) FROM microbatch_ranges WHERE state = 2 AND queue = ?"
