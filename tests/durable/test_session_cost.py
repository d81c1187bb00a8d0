"""What a transaction costs: no statement reads past rows that it does not want, and few pages are written."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from session_model import File

from microbatch.durable._file import answer_sql, job_sql, sql
from microbatch.durable._file.job_records import Chunk, NewJob
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.records import Demand, NewItem, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = Limits()

STATEMENTS = [
    (name, text)
    for module in (sql, job_sql, answer_sql)
    for name, value in vars(module).items()
    for text in (
        value
        if isinstance(value, tuple)
        else value.values()
        if isinstance(value, dict) and name == "MOVE"
        else (value,)
    )
    if isinstance(text, str)
    and not name.startswith("_")
    and name not in {"COLUMNS", "COUNTS", "ENDED_CLASS", "TABLES", "annotations"}
]
NAMED = re.compile(r":([a-z_]+)")
#: Tables of one row, or of a handful; rows that come from a parameter.
SMALL = (
    "SCAN microbatch_schema", "SCAN microbatch_consumers", "SCAN pragma_", "SCAN run VIRTUAL", "SCAN one VIRTUAL",
    "SCAN step", "SCAN sqlite_master", "SCAN json_each VIRTUAL", "SCAN CONSTANT ROW",
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "q.db")
    file.queue = file.write(lambda s: s.queue("q")).id
    file.consumer = file.write(lambda s: s.register(file.queue, 1, None))
    yield file
    file.raw.close()


@pytest.mark.parametrize(("name", "text"), STATEMENTS, ids=lambda value: value[:40])
def test_no_statement_scans_or_sorts(file: File, name: str, text: str) -> None:
    """A queue with a million done items must be as fast as an empty one."""
    named = NAMED.findall(text)
    values: Any = dict.fromkeys(named, 1) if named else ["[]"] * text.count("?")
    plan = [row[3] for row in file.raw.execute(f"EXPLAIN QUERY PLAN {text}", values)]
    assert [one for one in plan if one.startswith("SCAN") and not one.startswith(SMALL)] == [], name
    assert [one for one in plan if "TEMP B-TREE" in one] == [], name


def steps_of(file: File, work: Any) -> int:
    """Return how many of SQLite's own steps something takes, in tens."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    file.raw.set_progress_handler(tick, 10)
    try:
        file.write(work)
    finally:
        file.raw.set_progress_handler(None, 0)
    return count


def bulk(file: File, state: int, count: int, first: int, **columns: Any) -> None:
    """Write many ranges of one item each, straight into the table."""
    values = {
        "lane": 0,
        "priority": 0,
        "due": 1e12,
        "since": 0.0,
        "attempts": 0,
        "deaths": 0,
        "enqueued": 0.0,
    }
    values |= columns
    names, given = ", ".join(values), ", ".join(map(repr, values.values()))
    file.raw.execute(
        f"""INSERT INTO microbatch_ranges (first_id, count, queue, state, {names})
        WITH RECURSIVE n (id) AS (SELECT {first} UNION ALL SELECT id + 2 FROM n LIMIT {count})
        SELECT id, 1, 1, {state}, {given} FROM n"""
    )


def test_a_claim_costs_the_same_beside_tens_of_thousands(file: File) -> None:
    """Delayed, done, dead and less urgent items beside it are not looked at."""
    file.write(lambda s: s.append(file.queue, LIMITS, [b"x"] * 300, None, None))
    alone = steps_of(file, lambda s: s.claim(file.queue, Demand(file.consumer, 1, 1, 100)))
    with file.raw:
        bulk(file, 1, 20_000, 1_000_000)
        bulk(file, 1, 20_000, 2_000_000, priority=7)
        bulk(file, 0, 20_000, 3_000_000, priority=-1)
        bulk(file, 3, 20_000, 4_000_000, ended=1, ended_at=0.0, keep_until=1e12)
        bulk(file, 7, 20_000, 5_000_000, ended=1, ended_at=0.0)
        file.raw.execute(
            "UPDATE microbatch_queues SET ready = 20200, scheduled = 40000, done = 20000, dead = 20000"
        )
    beside = steps_of(file, lambda s: s.claim(file.queue, Demand(file.consumer, 2, 1, 100)))
    assert beside <= alone * 1.5 + 2
    settlement = Settlement(1, list(range(1, 101)), [b"r"] * 100, [])
    settling = steps_of(file, lambda s: s.settle(file.queue, LIMITS, file.consumer, [settlement]))
    assert settling <= alone * 2
    assert steps_of(file, lambda s: s.prune(file.queue, Limits(keep_done=30_000))) <= alone
    assert steps_of(file, lambda s: s.stats(file.queue)) <= alone
    assert steps_of(file, lambda s: s.next_due(file.queue)) <= 6


def test_a_batch_takes_few_statements(file: File) -> None:
    """Each costs some microseconds, which a hundred items share."""
    content = [b"x" * 500] * 100
    counts = []
    for work in (
        lambda s: s.append(file.queue, LIMITS, content, None, None),
        lambda s: s.claim(file.queue, Demand(file.consumer, 1, 1, 100)),
        lambda s: s.settle(
            file.queue,
            LIMITS,
            file.consumer,
            [Settlement(1, list(range(1, 101)), [b"r"] * 100, [])],
        ),
    ):
        file.statements.clear()
        file.write(work)
        counts.append(len(file.statements))
    # Row, ids, blob, range, lane, counts; row, consumer, lanes, ready, payloads, range, lane, counts;
    # row, held, around, range, result, errors, blobs, counts.
    assert counts == [6, 8, 8]


def pages(file: File, work: Any) -> int:
    """Return how many pages a transaction writes to the log."""
    log = file.path.with_name(f"{file.path.name}-wal")
    before = log.stat().st_size
    file.write(work)
    return (log.stat().st_size - before) // 4_120


def test_a_lone_item_writes_ten_pages_from_enqueue_to_done(file: File) -> None:
    """41 KB of log for an item of 1 KB: each index that it stands in is a page more."""
    file.raw.execute("PRAGMA wal_autocheckpoint = 0")
    written = []
    for number in range(1, 30):
        demand = Demand(file.consumer, number, 1, 100)
        there = pages(
            file, lambda s, d=demand: s.append(file.queue, LIMITS, [b"x" * 1_000], None, d)
        )
        settlement = Settlement(number, [number], [b"r" * 20], [])
        done = pages(
            file,
            lambda s, one=settlement: s.settle(file.queue, LIMITS, file.consumer, [one]),
        )
        written.append((there, done))
    assert written[-1] == (4, 6)


def test_an_item_that_waits_writes_sixteen(file: File) -> None:
    """The ready index and the lane's head are three pages more, the claim as many again."""
    file.raw.execute("PRAGMA wal_autocheckpoint = 0")
    written = []
    for number in range(1, 30):
        group = [[NewItem(b"x" * 1_000)]]
        there = pages(file, lambda s, g=group: s.enqueue(file.queue, LIMITS, g, None))
        demand = Demand(file.consumer, number, 1, 100)
        claimed = pages(file, lambda s, d=demand: s.claim(file.queue, d))
        settlement = Settlement(number, [number], [b"r" * 20], [])
        done = pages(
            file,
            lambda s, one=settlement: s.settle(file.queue, LIMITS, file.consumer, [one]),
        )
        written.append((there, claimed, done))
    assert written[-1] == (5, 5, 6)


def statements_of(file: File, first: int, claim: int) -> list[tuple[int, int]]:
    """Return how many statements it takes to claim and to settle 500 items, 100 at a time."""
    counts = []
    for number in range(claim, claim + 5):
        demand = Demand(file.consumer, number, 1, 100)
        numbers = list(range(first, first + 100))
        settlement = Settlement(number, numbers, [b"r"] * 100, [])
        file.statements.clear()
        file.write(lambda s, demand=demand: s.claim(file.queue, demand))
        claiming = len(file.statements)
        file.statements.clear()
        file.write(lambda s, one=settlement: s.settle(file.queue, LIMITS, file.consumer, [one]))
        counts.append((claiming, len(file.statements)))
        first += 100
    return counts


def test_a_batch_of_a_job_takes_one_statement_more(file: File) -> None:
    """Counts are kept by the transaction that settles; the first claim begins the job, and the last ends it."""
    content = [b"x" * 500] * 500
    file.write(lambda s: s.append(file.queue, LIMITS, content, None, None))
    plain = statements_of(file, 1, 1)

    def bring(session: Any) -> Any:
        begun = yield from session.jobs.begin(file.queue, NewJob("u"), file.consumer, LIMITS)
        chunk = Chunk(0, content, {}, None)
        yield from session.jobs.stage(file.queue, LIMITS, begun.number, chunk, file.consumer)
        yield from session.jobs.show(file.queue, begun.number, 500, file.consumer)

    file.write(bring)
    of_job = statements_of(file, 501, 11)
    more = [(c - a, d - b) for (a, b), (c, d) in zip(plain, of_job, strict=True)]
    assert more == [(2, 1), (0, 1), (0, 1), (0, 1), (0, 3)]


def read_page(session: Any, job: int, after: int) -> Any:
    return session.jobs.page(job, True, [3, 4, 5, 6, 7], after, 100)


def test_a_page_of_a_job_costs_the_same_wherever_it_is(file: File) -> None:
    """By keyset, whatever the job's size."""
    costs = []
    for total in (1_000, 100_000):

        def bring(session: Any, total: int = total) -> Any:
            new = NewJob(f"u{total}", named=True)
            begun = yield from session.jobs.begin(file.queue, new, file.consumer, LIMITS)
            for at in range(0, total, 1_000):
                ids = [str(n) for n in range(at, at + 1_000)]
                chunk = Chunk(at, [b"x"] * 1_000, {}, ids)
                yield from session.jobs.stage(
                    file.queue, LIMITS, begun.number, chunk, file.consumer
                )
            return begun.number

        job = file.write(bring)
        file.raw.execute("UPDATE microbatch_ranges SET state = 3, ended = 1 WHERE job = ?", (job,))
        for after in (-1, total // 2, total - 101):
            work = partial(read_page, job=job, after=after)
            costs.append(steps_of(file, work))
    assert max(costs) <= min(costs) * 1.5
