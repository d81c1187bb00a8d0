"""The tables of jobs, and what the others have for them.

- ``microbatch_jobs``: one row for each job, kept by the transactions that change its items. Small, for it is
  written with every batch; what is long stands in ``microbatch_job_details``.
- ``microbatch_item_ids``: the clients' own ids of a job's items, by runs of them.
"""

from __future__ import annotations

#: Which items that ended stand together, in the order in which they did: without a key, with one, a job's.
ENDED_CLASS = "CASE WHEN job IS NOT NULL THEN 2 ELSE key IS NOT NULL END"

ENDED_INDEX = f"""CREATE INDEX microbatch_ended ON microbatch_ranges (queue, state, {ENDED_CLASS}, ended)
    WHERE ended IS NOT NULL"""

#: What a lane has beside its place among the others: why it is closed, and what a claim is to know of its job.
LANE_COLUMNS = (
    "shut INTEGER NOT NULL DEFAULT 0",
    "size INTEGER",
    "ordered INTEGER NOT NULL DEFAULT 0",
    "bound INTEGER",
    "deadline REAL",
    "uid TEXT",
    "named INTEGER NOT NULL DEFAULT 0",
    "begun INTEGER NOT NULL DEFAULT 0",
)

#: How many of a queue's items that ended are jobs': neither ``keep_done`` nor ``keep_dead`` counts them.
QUEUE_COLUMNS = (
    "watched_done INTEGER NOT NULL DEFAULT 0",
    "watched_dead INTEGER NOT NULL DEFAULT 0",
)

RANGE_INDEXES = (
    """CREATE INDEX microbatch_job_items ON microbatch_ranges (job, state, position)
        WHERE job IS NOT NULL""",
    "CREATE INDEX microbatch_dead_alone ON microbatch_ranges (queue) WHERE state = 7 AND job IS NULL",
)

TABLES = (
    """CREATE TABLE microbatch_jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        queue INTEGER NOT NULL,
        uid TEXT NOT NULL UNIQUE,
        life INTEGER NOT NULL DEFAULT 0,
        outcome TEXT,
        paused INTEGER NOT NULL DEFAULT 0,
        stop INTEGER,
        chore INTEGER,
        kept INTEGER NOT NULL DEFAULT 1,
        total INTEGER NOT NULL DEFAULT 0,
        succeeded INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0,
        skipped INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0,
        expired INTEGER NOT NULL DEFAULT 0,
        changes INTEGER NOT NULL DEFAULT 0,
        created_at REAL,
        started_at REAL,
        ended_at REAL,
        last_at REAL,
        mark_at REAL,
        mark_done INTEGER NOT NULL DEFAULT 0,
        before_at REAL,
        before_done INTEGER NOT NULL DEFAULT 0,
        priority INTEGER NOT NULL,
        delay REAL NOT NULL,
        lasts REAL,
        deadline REAL,
        batch_size INTEGER,
        ordered INTEGER NOT NULL,
        named INTEGER NOT NULL,
        max_failures INTEGER,
        consumer INTEGER,
        tell_at REAL,
        tell_tries INTEGER NOT NULL DEFAULT 0,
        teller INTEGER,
        owner TEXT,
        key TEXT,
        keyed INTEGER NOT NULL DEFAULT 0,
        fingerprint BLOB,
        retry_of TEXT
    )""",
    "CREATE INDEX microbatch_job_lives ON microbatch_jobs (queue, life)",
    """CREATE INDEX microbatch_job_owners ON microbatch_jobs (queue, owner, life)
        WHERE owner IS NOT NULL""",
    """CREATE UNIQUE INDEX microbatch_job_keys ON microbatch_jobs (queue, ifnull(owner, ''), key)
        WHERE keyed = 1""",
    "CREATE INDEX microbatch_job_chores ON microbatch_jobs (chore) WHERE chore IS NOT NULL",
    """CREATE INDEX microbatch_job_deadlines ON microbatch_jobs (queue, deadline)
        WHERE deadline IS NOT NULL""",
    """CREATE INDEX microbatch_job_tells ON microbatch_jobs (queue, tell_at)
        WHERE tell_at IS NOT NULL AND teller IS NULL""",
    "CREATE INDEX microbatch_job_tellers ON microbatch_jobs (teller) WHERE teller IS NOT NULL",
    "CREATE INDEX microbatch_job_consumers ON microbatch_jobs (consumer) WHERE consumer IS NOT NULL",
    """CREATE INDEX microbatch_job_ends ON microbatch_jobs (queue, kept, keyed, ended_at)
        WHERE ended_at IS NOT NULL AND life = 4""",
    """CREATE TABLE microbatch_job_details (
        job INTEGER PRIMARY KEY,
        errors TEXT NOT NULL DEFAULT '{}',
        metadata TEXT
    )""",
    """CREATE TABLE microbatch_item_ids (
        job INTEGER NOT NULL,
        position INTEGER NOT NULL,
        count INTEGER NOT NULL,
        ids TEXT NOT NULL,
        PRIMARY KEY (job, position)
    ) WITHOUT ROWID""",
)

#: From version 2.
UPGRADE = (
    *(f"ALTER TABLE microbatch_lanes ADD COLUMN {column}" for column in LANE_COLUMNS),
    *(f"ALTER TABLE microbatch_queues ADD COLUMN {column}" for column in QUEUE_COLUMNS),
    "DROP INDEX microbatch_ended",
    ENDED_INDEX,
    *RANGE_INDEXES,
    *TABLES,
)
