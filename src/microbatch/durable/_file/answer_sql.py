"""Answers to requests by their keys: the table, and the statements on it.

``microbatch_answers`` has a row for each key: with a consumer while what came with it runs, with a number and
an answer once that has ended. Numbers grow in the order in which answers came, so that the oldest go first.
"""

from __future__ import annotations

#: Rowids, and the answer last: it may be long, and is read for one key at a time.
TABLES = (
    """CREATE TABLE microbatch_answers (
        queue INTEGER NOT NULL,
        key TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        token INTEGER NOT NULL,
        consumer INTEGER,
        number INTEGER,
        expires REAL,
        answer BLOB
    )""",
    "CREATE UNIQUE INDEX microbatch_answer_keys ON microbatch_answers (queue, key)",
    """CREATE INDEX microbatch_answer_order ON microbatch_answers (queue, number)
        WHERE number IS NOT NULL""",
    """CREATE INDEX microbatch_answer_consumers ON microbatch_answers (consumer)
        WHERE consumer IS NOT NULL""",
)

FIND_ANSWER = """SELECT fingerprint, consumer, expires, answer FROM microbatch_answers
    WHERE queue = ? AND key = ?"""
CONSUMER = "SELECT id, queue, lock_file, pid, born FROM microbatch_consumers WHERE id = ?"
DROP_ANSWER = "DELETE FROM microbatch_answers WHERE queue = ? AND key = ?"
BEGIN_ANSWER = """INSERT INTO microbatch_answers (queue, key, fingerprint, token, consumer)
    VALUES (?, ?, ?, ?, ?)"""
#: Whoever has the key by another token keeps it.
FINISH_ANSWER = """INSERT INTO microbatch_answers (queue, key, fingerprint, token, number, expires, answer)
    VALUES (:queue, :key, :fingerprint, :token, :number, :expires, :answer)
    ON CONFLICT (queue, key) DO UPDATE
    SET consumer = NULL, number = excluded.number, expires = excluded.expires, answer = excluded.answer
    WHERE token = excluded.token"""
RELEASE_ANSWER = "DELETE FROM microbatch_answers WHERE queue = ? AND key = ? AND token = ?"
NEWEST_ANSWER = """SELECT number FROM microbatch_answers
    WHERE queue = ? AND number IS NOT NULL ORDER BY number DESC LIMIT 1"""
OLDEST_ANSWERS = """SELECT number, expires FROM microbatch_answers
    WHERE queue = ? AND number IS NOT NULL ORDER BY number LIMIT ?"""
DROP_OLDEST = """DELETE FROM microbatch_answers
    WHERE queue = ? AND number IS NOT NULL AND number <= ?"""
#: What a consumer that is gone had begun.
DROP_BEGUN = "DELETE FROM microbatch_answers WHERE consumer = ?"
