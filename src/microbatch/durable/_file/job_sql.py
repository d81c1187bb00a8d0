"""The statements on the tables of `job_schema`. As in `sql`, every one of them finds its rows by an index."""

from __future__ import annotations

from .job_life import FOLLOWING, RATE_WINDOW, Event, before
from .sql import COLUMNS

_RANGES = f"SELECT {COLUMNS} FROM microbatch_ranges"  # noqa: S608 - made of constants, as are all here


def _move(event: Event, more: str, then: str = "uid") -> str:
    """Return the statement that moves a job on, and nothing else does: it changes no row of another life."""
    cases = " ".join(
        f"WHEN {int(life)} THEN {int(after)}"
        for (life, one), after in FOLLOWING.items()
        if one == event
    )
    lives = ", ".join(str(int(life)) for life in before(event))
    return f"""UPDATE microbatch_jobs SET life = CASE life {cases} END, changes = changes + 1, {more}
        WHERE id = :job AND life IN ({lives}) RETURNING {then}"""  # noqa: S608


MOVE = {
    Event.SHOWN: _move(
        Event.SHOWN,
        """consumer = NULL, total = :total, created_at = :now, deadline = :now + lasts,
        chore = 1, last_at = :now, mark_at = :now, before_at = :now""",
        "uid, priority, delay, batch_size, ordered, named, deadline",
    ),
    Event.BEGAN: _move(
        Event.BEGAN,
        """started_at = :now, last_at = :now, mark_at = :now, before_at = :now,
        mark_done = succeeded + failed + skipped + cancelled + expired,
        before_done = succeeded + failed + skipped + cancelled + expired""",
    ),
    Event.STOPPED: _move(
        Event.STOPPED, "stop = :state, chore = 2, paused = 0, deadline = NULL", "uid, queue"
    ),
    Event.FINISHED: _move(
        Event.FINISHED,
        """outcome = :outcome, ended_at = :now, tell_at = :now, paused = 0, chore = NULL,
        deadline = NULL""",
        "uid, created_at",
    ),
    Event.DELETED: _move(Event.DELETED, "chore = 4, keyed = 0, tell_at = NULL"),
    Event.ABANDONED: _move(Event.ABANDONED, "chore = 4, keyed = 0, consumer = NULL"),
}

# Coming in

BY_KEY = """SELECT id, uid, life, ended_at, fingerprint FROM microbatch_jobs
    WHERE queue = :queue AND ifnull(owner, '') = :owner AND key = :key AND keyed = 1"""
UNKEY = "UPDATE microbatch_jobs SET keyed = 0 WHERE id = ?"
MAKE = """INSERT INTO microbatch_jobs (queue, uid, priority, delay, lasts, batch_size, ordered, named,
        max_failures, consumer, owner, key, keyed, fingerprint, retry_of)
    VALUES (:queue, :uid, :priority, :delay, :lasts, :batch_size, :ordered, :named, :max_failures,
        :consumer, :owner, :key, :key IS NOT NULL, :fingerprint, :retry_of) RETURNING id"""
MAKE_DETAILS = "INSERT INTO microbatch_job_details (job, metadata) VALUES (?, ?)"
INCOMING = "SELECT life, consumer, priority, delay FROM microbatch_jobs WHERE id = ?"
FIND_INCOMING = "SELECT id FROM microbatch_jobs WHERE uid = ? AND queue = ? AND life = 0"
HAS_STAGED = """SELECT 1 WHERE EXISTS (SELECT 1 FROM microbatch_jobs WHERE consumer = :consumer)
    OR EXISTS (SELECT 1 FROM microbatch_ranges
               WHERE state = 8 AND queue = :queue AND consumer = :consumer)"""
STAGED_BY = "SELECT id FROM microbatch_jobs WHERE consumer = ?"
MAKE_LANE = """INSERT INTO microbatch_lanes (queue, lane, size, ordered, deadline, uid, named)
    VALUES (?, ?, ?, ?, ?, ?, ?)"""
REMOVE_LANE = "DELETE FROM microbatch_lanes WHERE queue = ? AND lane = ?"
WRITE_IDS = "INSERT INTO microbatch_item_ids VALUES (?, ?, ?, ?)"
#: The ids of some runs of positions: the parameter is a JSON list of [first, last].
IDS_OF = """SELECT i.position, i.ids FROM json_each(?) AS run CROSS JOIN microbatch_item_ids AS i
    ON i.job = ? AND i.position BETWEEN
        ifnull((SELECT max(b.position) FROM microbatch_item_ids AS b
                WHERE b.job = i.job AND b.position <= json_extract(run.value, '$[0]')), 0)
        AND json_extract(run.value, '$[1]')"""
#: A page of them, for who looks for one that comes twice.
IDS_FROM = """SELECT position, ids FROM microbatch_item_ids WHERE job = ? AND position >= ?
    ORDER BY position LIMIT ?"""

# Counting

COUNT = f"""UPDATE microbatch_jobs SET
    succeeded = succeeded + :succeeded, failed = failed + :failed, skipped = skipped + :skipped,
    cancelled = cancelled + :cancelled, expired = expired + :expired,
    last_at = CASE WHEN :more THEN :now ELSE last_at END,
    before_at = CASE WHEN :more AND :now - mark_at >= {RATE_WINDOW} THEN mark_at ELSE before_at END,
    before_done = CASE WHEN :more AND :now - mark_at >= {RATE_WINDOW} THEN mark_done
        ELSE before_done END,
    mark_done = CASE WHEN :more AND :now - mark_at >= {RATE_WINDOW}
        THEN succeeded + failed + skipped + cancelled + expired + :more ELSE mark_done END,
    mark_at = CASE WHEN :more AND :now - mark_at >= {RATE_WINDOW} THEN :now ELSE mark_at END,
    changes = changes + 1,
    chore = CASE WHEN life = 3 AND :back THEN 2 ELSE chore END
    WHERE id = :job
    RETURNING uid, life, total, succeeded, failed, skipped, cancelled, expired, max_failures, ordered"""  # noqa: S608
ERRORS = "SELECT errors FROM microbatch_job_details WHERE job = ?"
SET_ERRORS = "UPDATE microbatch_job_details SET errors = ? WHERE job = ?"

# Lanes

SHUT = (
    "UPDATE microbatch_lanes SET shut = shut | :why, open = 0 WHERE queue = :queue AND lane = :lane"
)
REOPEN = """UPDATE microbatch_lanes SET shut = shut & ~:why, open = (shut & ~:why) = 0
    WHERE queue = :queue AND lane = :lane"""
BEGIN_BATCH = """UPDATE microbatch_lanes SET shut = shut | 4, open = 0, bound = ifnull(bound, :bound)
    WHERE queue = :queue AND lane = :lane"""
END_BATCH = """UPDATE microbatch_lanes SET shut = shut & ~4, open = (shut & ~4) = 0, bound = :bound
    WHERE queue = :queue AND lane = :lane"""
BEGIN_LANE = "UPDATE microbatch_lanes SET begun = 1 WHERE queue = ? AND lane = ?"
END_DEADLINE = "UPDATE microbatch_lanes SET deadline = NULL WHERE queue = ? AND lane = ?"
LANE = "SELECT ordered, bound FROM microbatch_lanes WHERE queue = ? AND lane = ?"
HAS_CLAIMED = "SELECT 1 FROM microbatch_ranges WHERE job = ? AND state = 2 LIMIT 1"
#: Whether something up to a place waits: in a back-off (1) or not (0).
WAITS_UP_TO = """SELECT 1 FROM microbatch_ranges WHERE job = ? AND state = ? AND position <= ?
    LIMIT 1"""

BATCH_LEFT = f"""{_RANGES} WHERE job = ? AND state = 0 AND position <= ? ORDER BY position
    LIMIT ? OFFSET ?"""

# Acting on one

FIND = """SELECT id, life, paused, kept, ended_at, named FROM microbatch_jobs
    WHERE uid = :uid AND queue = :queue AND (:owner IS NULL OR owner = :owner) AND life BETWEEN 1 AND 4"""
PAUSE = """UPDATE microbatch_jobs SET paused = :paused, changes = changes + 1
    WHERE id = :job AND paused <> :paused AND life IN (1, 2) RETURNING uid"""
STOPPED_AMONG = """SELECT id FROM microbatch_jobs WHERE life = 3
    AND id IN (SELECT value FROM json_each(?))"""

# Chores

#: Of any queue: whose process has died may have nobody else.
CHORE = "SELECT id, queue FROM microbatch_jobs WHERE chore >= 1 LIMIT 1"
CHORE_OF = "SELECT chore, queue, stop, created_at, delay FROM microbatch_jobs WHERE id = ?"
END_CHORE = "UPDATE microbatch_jobs SET chore = NULL WHERE id = ? AND chore = ?"
STAGED_OF = f"{_RANGES} WHERE job = ? AND state = 8 ORDER BY position LIMIT ?"
#: When the last one may begin of those that wait, in a state, for their first time, and when it came.
LAST_WAITING = """SELECT due, enqueued FROM microbatch_ranges WHERE job = ? AND state = ? AND attempts = 0
    ORDER BY position DESC LIMIT 1"""
NOT_BEGUN = f"{_RANGES} WHERE job = ? AND state IN (0, 1, 8) LIMIT ?"
ALL_OF = f"{_RANGES} WHERE job = ? LIMIT ?"
SOME_IDS = "SELECT position FROM microbatch_item_ids WHERE job = ? LIMIT ?"
REMOVE_IDS = "DELETE FROM microbatch_item_ids WHERE job = ? AND position = ?"
REMOVE = "DELETE FROM microbatch_jobs WHERE id = ? AND life = 5"
REMOVE_DETAILS = "DELETE FROM microbatch_job_details WHERE job = ?"
OVERDUE = """SELECT id FROM microbatch_jobs WHERE queue = ? AND deadline IS NOT NULL AND deadline <= ?
    LIMIT 1"""
NEXT_DEADLINE = "SELECT min(deadline) FROM microbatch_jobs WHERE queue = ? AND deadline IS NOT NULL"
NEEDS_MEND = """SELECT 1 FROM microbatch_jobs WHERE queue = ? AND deadline IS NOT NULL
    AND created_at > ? LIMIT 1"""
#: What was written in a wrong future counts from now.
MEND = """UPDATE microbatch_jobs SET deadline = :now + (deadline - created_at), created_at = :now
    WHERE queue = :queue AND deadline IS NOT NULL AND created_at > :future RETURNING id, deadline"""
MEND_LANE = "UPDATE microbatch_lanes SET deadline = ? WHERE queue = ? AND lane = ?"
MEND_ENDED = """UPDATE microbatch_jobs SET ended_at = :now WHERE queue = :queue AND kept IN (0, 1)
    AND keyed IN (0, 1) AND life = 4 AND ended_at IS NOT NULL AND ended_at > :future"""
#: Ended jobs whose outcomes are there (1) or gone (0), that have their key (1) or not (0), by when they ended.
PAST = """SELECT id FROM microbatch_jobs WHERE queue = ? AND kept = ? AND keyed = ? AND life = 4
    AND ended_at IS NOT NULL AND ended_at <= ? LIMIT 1"""
FORGET_OUTCOMES = """UPDATE microbatch_jobs SET kept = 0, chore = 3, changes = changes + 1
    WHERE id = ? AND kept = 1 AND life = 4 RETURNING uid"""

# Telling

NEXT_TELL = """SELECT min(tell_at) FROM microbatch_jobs
    WHERE queue = ? AND tell_at IS NOT NULL AND teller IS NULL"""
TAKE_TELL = """UPDATE microbatch_jobs SET teller = :consumer WHERE id = (
        SELECT id FROM microbatch_jobs WHERE queue = :queue AND tell_at IS NOT NULL AND teller IS NULL
        AND (tell_at <= :now OR tell_at > :future) ORDER BY tell_at LIMIT 1) RETURNING uid, tell_tries"""
TOLD = """UPDATE microbatch_jobs SET tell_at = :at, tell_tries = tell_tries + 1, teller = NULL
    WHERE uid = :uid AND teller = :consumer"""
GIVE_BACK_TELLS = "UPDATE microbatch_jobs SET teller = NULL WHERE teller = ?"

# Reading

_ROW = """j.id, j.uid, j.owner, j.key, d.metadata, j.retry_of, j.life, j.outcome, j.paused, j.total,
    j.succeeded, j.failed, j.skipped, j.cancelled, j.expired, d.errors, j.created_at, j.started_at, j.ended_at,
    j.last_at, j.before_at, j.before_done, j.changes, j.kept, j.named"""
_FROM = "FROM microbatch_jobs AS j LEFT JOIN microbatch_job_details AS d ON d.job = j.id"
STATUS = f"""SELECT {_ROW} {_FROM} WHERE j.uid = :uid AND j.queue = :queue
    AND (:owner IS NULL OR j.owner = :owner) AND j.life BETWEEN 1 AND 4"""
LIST = f"""SELECT {_ROW} {_FROM} WHERE j.queue = :queue AND j.life = :life AND j.id < :before
    ORDER BY j.id DESC LIMIT :limit"""
LIST_OWNED = f"""SELECT {_ROW} {_FROM} WHERE j.queue = :queue AND j.owner = :owner AND j.life = :life
    AND j.id < :before ORDER BY j.id DESC LIMIT :limit"""
CHANGES = """SELECT j.uid, j.changes FROM json_each(?) AS one CROSS JOIN microbatch_jobs AS j
    ON j.uid = one.value AND j.life BETWEEN 1 AND 4"""
OPEN = """SELECT life, count(*) FROM microbatch_jobs WHERE queue = ? AND life IN (1, 2, 3)
    GROUP BY life"""
STOPPED = "SELECT uid FROM microbatch_jobs WHERE queue = ? AND life = 3"
#: The ranges of a job in one state from a position on, the one that it is in included.
PAGE = f"""{_RANGES} WHERE job = :job AND state = :state AND position >= ifnull(
        (SELECT max(position) FROM microbatch_ranges
         WHERE job = :job AND state = :state AND position <= :position), 0)
    ORDER BY position LIMIT :limit"""  # noqa: S608
#: What a copy takes over of the job that it is made of.
RECIPE = """SELECT id, life, kept, ended_at, owner, priority, batch_size, ordered, named, max_failures,
    (SELECT metadata FROM microbatch_job_details WHERE job = microbatch_jobs.id)
    FROM microbatch_jobs WHERE uid = :uid AND queue = :queue
    AND (:owner IS NULL OR owner = :owner) AND life BETWEEN 1 AND 4"""
