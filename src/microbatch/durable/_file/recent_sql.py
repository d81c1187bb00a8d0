"""The statements of those who look at what is newest: nothing of the durable mode's own work runs them."""

from __future__ import annotations

from .job_schema import ENDED_CLASS
from .sql import COLUMNS

#: Ranges in some states, a JSON list, that begin before an id, the newest first. It reads past those in other
#: states: ranges that ended are merged, so there are few of them.
LISTED_BACK = f"""SELECT {COLUMNS} FROM microbatch_ranges NOT INDEXED WHERE queue = :queue
    AND first_id < :before AND state IN (SELECT value FROM json_each(:states))
    ORDER BY first_id DESC LIMIT :limit"""  # noqa: S608 - made of constants
#: The same for dead letters alone, which have an index.
DEAD_BACK = f"""SELECT {COLUMNS} FROM microbatch_ranges INDEXED BY microbatch_dead WHERE queue = :queue
    AND state = 7 AND first_id < :before ORDER BY first_id DESC LIMIT :limit"""  # noqa: S608

#: How many items of a state and a class ended between which two slots of time, the newest ranges alone. A slot
#: before the first one is -1.
ENDED_LATELY = f"""SELECT max(-1, CAST((since - :start) / :slot AS INTEGER)) AS begun,
        CAST((ended_at - :start) / :slot AS INTEGER) AS over, sum(count)
    FROM (SELECT since, ended_at, count FROM microbatch_ranges WHERE queue = :queue AND state = :state
          AND {ENDED_CLASS} = :class AND ended IS NOT NULL ORDER BY ended DESC LIMIT :limit)
    WHERE ended_at >= :start GROUP BY begun, over"""  # noqa: S608
