"""What jobs cost: a batch one more statement for each job in it, and queues without jobs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from session_model import File

from microbatch.durable._file.job_records import Chunk, NewJob
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.records import Demand, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMITS = Limits()


class Counted:
    """A queue in a file, whose statements are counted."""

    def __init__(self, path: Path) -> None:
        self.file = File(path)
        self.queue = self.file.write(lambda s: s.queue("q")).id
        self.consumer = self.file.write(lambda s: s.register(self.queue, 1, None))
        self.claim = 0

    def job(self, number: int, size: int) -> None:
        """Bring a job that nobody has begun."""
        new = NewJob(uid=f"job {number}")
        begun = self.file.write(lambda s: s.jobs.begin(self.queue, new, self.consumer, LIMITS))
        chunk = Chunk(0, [b"item"] * size, {}, None)
        self.file.write(
            lambda s: s.jobs.stage(self.queue, LIMITS, begun.number, chunk, self.consumer)
        )
        self.file.write(lambda s: s.jobs.show(self.queue, begun.number, size, self.consumer))

    def batch(self, size: int) -> tuple[int, int, set[int | None]]:
        """Claim and settle a batch; return the statements of both, and whose items were in it."""
        self.claim += 1
        demand = Demand(self.consumer, self.claim, 1, size)
        self.file.statements.clear()
        [claim], _ = self.file.write(lambda s: s.claim(self.queue, demand))
        claiming = len(self.file.statements)
        ids = [one.first + n for one in claim.ranges for n in range(one.count)]
        assert len(ids) == size
        settlement = Settlement(self.claim, sorted(ids), [b"result"] * size, [])
        self.file.statements.clear()
        self.file.write(lambda s: s.settle(self.queue, LIMITS, self.consumer, [settlement]))
        return claiming, len(self.file.statements), {one.job for one in claim.ranges}


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    counted = Counted(tmp_path / "q.db")
    yield counted
    counted.file.raw.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The statements of claiming and settling a batch in a file without jobs."""
    counted = Counted(tmp_path / "plain.db")
    counted.file.write(lambda s: s.append(counted.queue, LIMITS, [b"item"] * 300, None, None))
    counted.batch(100)
    yield counted.batch(100)[:2]
    counted.file.raw.close()


def test_a_batch_of_one_job_costs_one_more_statement(
    counted: Counted, plain: tuple[int, int]
) -> None:
    """The counts of its row: a claim costs what it costs without, but for the first of a job."""
    counted.job(1, 300)
    first, _, _ = counted.batch(100)
    assert first <= plain[0] + 2  # the job begins, once
    claiming, settling, jobs = counted.batch(100)
    assert len(jobs) == 1
    assert (claiming, settling) == (plain[0], plain[1] + 1)


def test_a_batch_of_many_jobs_costs_one_more_statement_to_settle_for_each(
    counted: Counted, plain: tuple[int, int]
) -> None:
    """Beside that, each job's own range is what is written: as with so many ranges without jobs."""
    for number in range(10):
        counted.job(number, 30)
    counted.file.raw.execute("UPDATE microbatch_ranges SET due = first_id")  # one after the other
    first = counted.batch(100)
    settled = counted.batch(100)
    assert len(first[2]) == 4
    ranges = 3  # more runs of items than one: each is looked up beside its neighbours
    assert settled[1] <= plain[1] + len(settled[2]) + 2 * ranges


def test_items_without_a_job_cost_no_statement_more_beside_jobs(
    counted: Counted, plain: tuple[int, int]
) -> None:
    """Nor do jobs that are over, or that wait behind them."""
    counted.job(1, 100)
    counted.batch(100)
    counted.file.write(lambda s: s.append(counted.queue, LIMITS, [b"item"] * 300, None, None))
    counted.batch(100)
    assert counted.batch(100) == (*plain, {None})


def test_a_clock_that_is_mended_lets_no_item_go_before_those_that_stand_before_it(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordered job became ready in part under a clock that was ahead; its deadline counts from now since."""
    monkeypatch.setattr("microbatch.durable._file.job_steps.STEP", 1)
    file, queue = counted.file, counted.queue
    new = NewJob(uid="job", ordered=True, lasts=60.0)
    begun = file.write(lambda s: s.jobs.begin(queue, new, counted.consumer, LIMITS))
    for position in (0, 2, 4):
        chunk = Chunk(position, [b"item"] * 2, {}, None)
        file.write(
            lambda s, c=chunk: s.jobs.stage(queue, LIMITS, begun.number, c, counted.consumer)
        )
    file.write(lambda s: s.jobs.show(queue, begun.number, 6, counted.consumer))
    file.now -= 5.0
    file.write(lambda s: s.jobs.expire(queue))
    while file.write(lambda s: s.jobs.step(begun.number)):
        pass
    file.now += 5.0
    [claim], _ = file.write(lambda s: s.claim(queue, Demand(counted.consumer, 1, 1, 10)))
    assert [one.position for one in claim.ranges] == sorted(one.position for one in claim.ranges)
    assert len(claim.payloads) == 6
