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
HELD_BY = """SELECT consumer, sum(count), min(due) FROM microbatch_ranges
    WHERE state = 2 AND queue = ? GROUP BY consumer"""
