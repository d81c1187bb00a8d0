"""What users are promised of jobs, each by a whole example: steps, forecasts, codes, sizes, transactions, dry runs."""

from __future__ import annotations

import json
import sqlite3
import uuid

import anyio
import pytest
from durable_support import Handler, Order, batcher, check_jobs
from job_model import JobFile

from microbatch import ItemError, current_batch
from microbatch.durable import DurableQueue, JobRejected
from microbatch.durable._flow.job_ids import JobIds
from microbatch.durable.job_status import status_of

pytestmark = pytest.mark.anyio


async def test_ten_thousand_items_in_batches_of_a_thousand_are_ten_steps(path):
    """Who follows a job sees every batch that it waits for, exactly once, and then the end."""
    seen: list[int] = []
    looked = anyio.Event()

    async def handler(items):
        nonlocal looked
        await looked.wait()
        looked = anyio.Event()
        return items

    async with batcher(path, handler, max_batch_size=1_000, max_depth=20_000) as durable:
        job = await durable.enqueue_job(range(10_000), batch_size=1_000)
        async for status in job.progress(min_interval=0):
            if not seen or status.done != seen[-1]:
                seen.append(status.done)
                looked.set()
        assert (status.life, status.fraction) == ("ended", 1.0)
    assert seen == list(range(0, 10_001, 1_000))


def test_the_forecast_is_right_while_the_pace_is_steady(tmp_path):
    """Within a fifth, from the third batch on to the last; rate and time left are of one moment."""
    jobs = JobFile(tmp_path / "queue.db")
    jobs.job([2_000], set())
    begun = jobs.file.now
    for number in range(1, 20):
        jobs.claim(0, 1, 100)
        jobs.file.now += 1.0
        jobs.settle(jobs.claims, ["done"])
        row = jobs.file.write(lambda s: s.jobs.status(jobs.queue, jobs.uids[0], None))
        status = status_of(row, "q", 600.0, jobs.file.now)
        assert (status.done, status.life) == (100 * number, "running")
        if number >= 3:
            left = begun + 20.0 - jobs.file.now
            assert status.eta == pytest.approx(left, rel=0.2)
            assert status.rate == pytest.approx(100.0, rel=0.2)
    jobs.file.raw.close()


async def test_errors_are_counted_by_their_codes(path):
    """Two duplicates and one that is invalid are just that; outcomes have the same codes."""
    codes = {1: "duplicate", 2: "validation", 3: "duplicate"}

    async def handler(items):
        return [ItemError("no", code=codes[n]) if n in codes else n for n in items]

    async with batcher(path, handler) as durable:
        job = await durable.enqueue_job(range(5))
        status = await job.wait(20)
        assert status.errors == {"duplicate": 2, "validation": 1}
        assert [o.code async for o in job.outcomes("failed")] == [
            "duplicate",
            "validation",
            "duplicate",
        ]


async def test_what_an_error_says_is_kept_up_to_a_bound(path):
    """A driver that puts the whole statement into its message must not fill the file."""

    async def handler(items):
        raise ValueError("x" * 1_000_000)

    async with batcher(path, handler) as durable:
        job = await durable.enqueue_job([1])
        await job.wait(20)
        (outcome,) = (await job.results()).outcomes
        assert 0 < len(outcome.error.message) < 20_000
        assert "in handler" in outcome.error.traceback
        assert len(outcome.error.traceback) < 20_000
        assert (await durable.stats()).file_bytes < 500_000


async def test_a_status_is_as_small_for_a_large_job_as_for_a_small_one(path):
    """It has counts, and never items, outcomes or messages; none of these before the end, either."""

    async def handler(items):
        return [ItemError("a long story " * 50, code="bad") for _ in items]

    async with batcher(path, handler, max_batch_size=1_000) as durable:
        await durable.pause()
        jobs = [await durable.enqueue_job(range(count)) for count in (1, 3_000)]
        for job in jobs:
            status = await job.status()
            assert (status.outcome, status.ended_at, status.errors) == (None, None, {})
        await durable.resume()
        small, large = [repr(await job.wait(20)) for job in jobs]
        assert abs(len(large) - len(small)) < 50
        assert "story" not in large


def test_a_hundred_thousand_ids_are_unique_and_sort_by_age():
    """Also of two that draw in the same millisecond, and whatever the clock does; 62 bits of each are drawn."""
    draw = JobIds().draw
    ids = [draw() for _ in range(100_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 100_000
    found = [uuid.UUID(one) for one in ids[:1_000]]
    assert {(one.version, one.variant) for one in found} == {(7, uuid.RFC_4122)}
    lows = {one.int & ((1 << 62) - 1) for one in found}
    assert len(lows) == 1_000
    assert set(map(int.bit_count, lows)) & set(range(20, 43))


async def test_the_rows_of_a_batch_stay_when_the_next_one_fails(path, tmp_path):
    """A handler call is a transaction; each row is stamped with its job and its batch's place."""
    target = sqlite3.connect(tmp_path / "target.db", isolation_level=None)
    target.execute("CREATE TABLE rows (number INTEGER CHECK (number <> 5), job TEXT, id TEXT)")

    async def handler(items):
        info = current_batch()
        target.execute("BEGIN")
        try:
            target.executemany(
                "INSERT INTO rows VALUES (?, ?, ?)",
                [(n, info.job, one) for n, one in zip(items, info.item_ids, strict=True)],
            )
        except BaseException:
            target.execute("ROLLBACK")
            raise
        target.execute("COMMIT")

    async with batcher(path, handler) as durable:
        job = await durable.enqueue_job(
            range(12), ordered=True, batch_size=4, item_id=lambda n: f"row {n}"
        )
        status = await job.wait(20)
        assert (status.succeeded, status.failed) == (8, 4)
        assert status.errors == {"internal_error": 4}
    stored = target.execute("SELECT number, job, id FROM rows ORDER BY number").fetchall()
    target.close()
    assert stored == [(n, job.id, f"row {n}") for n in (0, 1, 2, 3, 8, 9, 10, 11)]
    check_jobs(path)


async def test_what_is_left_out_after_a_failure_stands_in_the_results(path):
    """Who stops at the first failure still gets an outcome for every item."""

    async def handler(items):
        return [ItemError("no") if n == 2 else n for n in items]

    async with batcher(path, handler) as durable:
        job = await durable.enqueue_job(range(8), ordered=True, batch_size=1, max_failures=0)
        await job.wait(20)
        kinds = [outcome.kind async for outcome in job.outcomes()]
    assert kinds == ["succeeded"] * 2 + ["failed"] + ["cancelled"] * 5


@pytest.mark.parametrize("bad", [{}, {3: "x", 70: None}])
async def test_a_dry_run_in_a_file_of_its_own_says_what_the_real_one_would(path, tmp_path, bad):
    """No handler is called and nothing is stored where the real queue is; the errors are the same."""
    source = [{"number": bad.get(n, n), "name": f"n{n}"} for n in range(100)]
    handler = Handler()

    async def told(queue) -> object:
        try:
            job = await queue.enqueue_job(source, item_id=lambda order: order["name"])
        except JobRejected as error:
            return error.invalid, error.errors
        return (await job.status()).total

    async with batcher(path, handler, item_type=Order, result_type=None) as durable:
        await durable.pause()
        async with DurableQueue(tmp_path / "dry.db", item_type=Order) as dry:
            found = await told(dry)
        assert (await durable.jobs()).jobs == []
        assert found == await told(durable)
        if bad:
            invalid, errors = found
            assert invalid == 2
            assert [(index, one) for index, one, _ in errors] == [(3, "n3"), (70, "n70")]
            assert all("$.number" in message for *_, message in errors)
        assert handler.batches == []


async def test_owners_see_nothing_of_each_other(path):
    """Their lists, their jobs, their keys: the whole way of two tenants through one queue."""
    async with batcher(path, Handler()) as durable:
        made = {
            owner: await durable.enqueue_job(
                [1], owner=owner, key="the same", metadata={"of": owner}
            )
            for owner in ("ada", "bob")
        }
        for owner, job in made.items():
            await job.wait(20)
            listed = await durable.jobs(owner=owner)
            assert [(one.id, one.owner, one.metadata) for one in listed.jobs] == [
                (job.id, owner, {"of": owner})
            ]
            assert owner not in json.dumps(
                [one.owner for one in (await durable.jobs(owner=f"{owner}x")).jobs]
            )
        await durable.delete_job(made["ada"].id, owner="ada")
        assert (await durable.jobs(owner="ada")).jobs == []
        assert (await made["bob"].status()).succeeded == 1
