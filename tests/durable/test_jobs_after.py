"""Ended jobs: told of, retried, kept for a while, and gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal

import anyio
import pytest
import time_machine
from durable_support import Handler, Process, batcher, check_jobs, execute, rows, until

from microbatch import Backoff, HandlerTimeout, ItemError, Retry
from microbatch.durable import DurableQueue, JobNotEnded, ResultsExpired, UnknownJob
from microbatch.durable._flow import telling

pytestmark = pytest.mark.anyio

# Telling


async def test_the_end_of_a_job_is_told(path):
    """After the transaction that ended it, with its last status."""
    told = []

    async def on_job_end(status):
        told.append(status)

    async with batcher(path, Handler(), on_job_end=on_job_end) as durable:
        jobs = [await durable.enqueue_job(range(n)) for n in range(4)]
        statuses = [await job.wait(20) for job in jobs]
        await until(lambda: len(told) == 4)
        assert sorted(told, key=lambda s: s.id) == sorted(statuses, key=lambda s: s.id)
        await until(lambda: not rows(path, "SELECT 1 FROM microbatch_jobs WHERE teller NOT NULL"))
        assert rows(path, "SELECT DISTINCT tell_at FROM microbatch_jobs") == [(None,)]
    check_jobs(path)


async def test_jobs_that_ended_while_nobody_listened_are_told_oldest_first(path):
    """Whoever comes with such a function gets them."""
    told = []

    async def on_job_end(status):
        told.append(status.id)

    async with batcher(path, Handler()) as durable:
        jobs = [await durable.enqueue_job([1]) for _ in range(4)]
        for job in jobs:
            await job.wait(20)
    async with batcher(path, Handler(), on_job_end=on_job_end):
        await until(lambda: len(told) == 4)
    assert told == [job.id for job in jobs]


async def test_telling_that_fails_is_tried_again(path, monkeypatch, caplog):
    """With a pause that doubles, ten times; then it is logged, and over."""
    monkeypatch.setattr(telling, "PAUSE_FIRST", 0.001)
    told = []

    async def on_job_end(status):
        told.append(status.id)
        if len(told) < 3:
            raise OSError("no receiver")

    async with batcher(path, Handler(), on_job_end=on_job_end) as durable:
        await durable.enqueue_job([])
        await until(lambda: rows(path, "SELECT tell_at FROM microbatch_jobs") == [(None,)])
    assert len(told) == 3
    assert "on_job_end failed" in caplog.text


async def test_telling_that_ends_in_a_cancellation_of_its_own_is_tried_again(path, monkeypatch):
    """Nobody cancelled the queue's task: whoever took it for that told of no job any more."""
    monkeypatch.setattr(telling, "PAUSE_FIRST", 0.001)
    told = []

    async def on_job_end(status):
        told.append(status.id)
        if len(told) == 1:
            other = asyncio.ensure_future(asyncio.sleep(3600))
            other.cancel()
            await other

    async with batcher(path, Handler(), on_job_end=on_job_end) as durable:
        first, second = [await durable.enqueue_job([]) for _ in range(2)]
        await until(lambda: rows(path, "SELECT tell_at FROM microbatch_jobs") == [(None,), (None,)])
    assert sorted(told) == sorted([first.id, first.id, second.id])


def test_pauses_between_tries_double_up_to_five_minutes() -> None:
    """Ten tries: a receiver may be away for a while."""
    pauses = [telling.pause_after(tries) for tries in range(1, 11)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, None]
    assert telling.PAUSE_MAX == 300


async def test_telling_ends_after_ten_tries(path, monkeypatch, caplog):
    """Not for ever."""
    monkeypatch.setattr(telling, "PAUSE_FIRST", 0.0)
    told = []

    async def on_job_end(status):
        told.append(status.id)
        raise OSError("no receiver")

    async with batcher(path, Handler(), on_job_end=on_job_end) as durable:
        await durable.enqueue_job([])
        await until(lambda: rows(path, "SELECT tell_at FROM microbatch_jobs") == [(None,)])
        assert len(told) == 10
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert "on_job_end failed 10 times" in errors[0].getMessage()
        caplog.clear()


async def test_what_is_being_told_at_a_close_is_told_by_the_next(path):
    """At least once."""
    begun = asyncio.Event()
    told = []

    async def hangs(status):
        begun.set()
        await asyncio.sleep(600)

    async def on_job_end(status):
        told.append(status.id)

    durable = batcher(path, Handler(), on_job_end=hangs)
    job = await durable.enqueue_job([])
    await begun.wait()
    await durable.aclose()
    async with batcher(path, Handler(), on_job_end=on_job_end):
        await until(lambda: told)
    assert told == [job.id]


async def test_what_a_dead_process_was_to_tell_is_told_by_another(path):
    """It is claimed under the consumer's number, and given back with it."""
    told = []

    async def on_job_end(status):
        told.append(status.id)

    async with Process(path, "tell_and_hang") as process:
        ((word, uid),) = [await process.hear()]
        assert word == "telling"
        async with batcher(path, Handler(), on_job_end=on_job_end):
            await anyio.sleep(0.2)
            assert told == []
            process.signal(signal.SIGKILL)
            await process.end()
            await until(lambda: told)
    assert told == [uid]


# Again


async def test_what_failed_goes_again_in_a_new_job(path):
    """Only what may do better, unless told otherwise; with ids, metadata, owner and all."""
    works, goes = False, anyio.Event()

    async def handler(items):
        await goes.wait()
        answers = {
            1: ItemError("later", retryable=True),
            2: ItemError("never", retryable=False),
            3: ConnectionError("named by retry"),
            4: OSError("not named"),
        }
        return [item if works or item not in answers else answers[item] for item in items]

    retry = Retry(on=ConnectionError, attempts=1)
    async with batcher(path, handler, retry=retry) as durable:
        job = await durable.enqueue_job(
            range(6),
            item_id=lambda n: f"row {n}",
            owner="me",
            metadata={"a": 1},
            priority=7,
            batch_size=2,
            ordered=True,
            max_failures=9,
            deadline=600,
        )
        with pytest.raises(JobNotEnded):
            await job.retry_failed()
        goes.set()
        assert (await job.wait(20)).failed == 4
        retryable = [outcome.error.retryable async for outcome in job.outcomes("failed")]
        assert retryable == [True, False, True, False]
        works = True
        again = await job.retry_failed()
        status = await again.wait(20)
        assert (status.total, status.succeeded) == (2, 2)
        assert (status.retry_of, status.owner, status.metadata) == (job.id, "me", {"a": 1})
        assert [(o.index, o.id, o.value) async for o in again.outcomes()] == [
            (0, "row 1", 1),
            (1, "row 3", 3),
        ]
        columns = "priority, batch_size, ordered, max_failures, lasts, delay"
        recipes = rows(path, f"SELECT {columns} FROM microbatch_jobs ORDER BY id")
        assert recipes == [(7, 2, 1, 9, 600.0, 0.0), (7, 2, 1, 9, None, 0.0)]
        everything = await job.retry_failed(retryable_only=False)
        assert [o.value async for o in everything.outcomes()] == [1, 2, 3, 4] or (
            await everything.wait(20)
        ).succeeded == 4
        await everything.wait(20)
        nothing = await again.retry_failed()
        assert (await nothing.status()).outcome == "succeeded"
        assert (await nothing.status()).total == 0
    check_jobs(path)


async def test_cancelled_items_go_again(path):
    """Cancelled at a third, the rest done by `retry_failed`."""
    handler = Handler()
    async with batcher(path, handler, max_batch_size=10) as durable:
        job = await durable.enqueue_job(range(90))
        async for status in job.progress(0):
            if status.done >= 30:
                await job.cancel()
        first = await job.status()
        again = await (await job.retry_failed()).wait(20)
        assert first.succeeded + again.succeeded == 90
        assert sorted(handler.items) == list(range(90))
    check_jobs(path)


async def test_a_retry_with_a_key_is_made_once(path):
    """And the key of another job's retry is refused, not answered."""

    async def fails(items):
        return [ItemError("no") for _ in items]

    async with batcher(path, fails) as durable:
        jobs = [await durable.enqueue_job([n]) for n in range(2)]
        for job in jobs:
            await job.wait(20)
        first = await jobs[0].retry_failed(retryable_only=False, key="again")
        second = await jobs[0].retry_failed(retryable_only=False, key="again")
        assert first.id == second.id
        with pytest.raises(Exception, match="whose fingerprint is another one"):
            await jobs[1].retry_failed(retryable_only=False, key="again")
        await first.wait(20)


async def test_timeouts_and_deaths_are_retryable(path):
    """Nothing is said against the item then."""

    async def slow(items):
        await asyncio.sleep(600)

    retry = Retry(on=OSError, backoff=Backoff(initial=0))
    async with batcher(path, slow, handler_timeout=0.05, retry=retry) as durable:
        job = await durable.enqueue_job([1])
        assert (await job.wait(20)).errors == {"handler_timeout": 1}
        (outcome,) = (await job.results()).outcomes
        assert outcome.error.retryable
        assert outcome.error.kind == HandlerTimeout.__name__
    async with DurableQueue(path, item_type=int, queue="deadly") as queue:
        job = await queue.enqueue_job([13])
    for _ in range(2):
        async with Process(path, "suicide", "deadly") as process:
            await process.end()
    async with batcher(path, Handler(), queue="deadly") as durable:
        job = durable.job(job.id)
        assert (await job.wait(20)).errors == {"process_died": 1}
        (outcome,) = (await job.results()).outcomes
        assert outcome.error.retryable
        assert (await (await job.retry_failed()).wait(20)).succeeded == 1
    check_jobs(path)


# Kept, and gone


@pytest.fixture
def traveller():
    """Moves the wall clock, by which all is kept: who waits for it races with the machine."""
    with time_machine.travel("2026-01-01 12:00Z") as moved:
        yield moved


async def test_outcomes_go_after_their_time_and_the_row_after_its_own(path, traveller):
    """`result_ttl` and `job_ttl`, from the job's end."""
    async with batcher(path, Handler(), result_ttl=60, job_ttl=6_000) as durable:
        job = await durable.enqueue_job(range(5), item_id=str)
        status = await job.wait(20)
        assert len((await job.results()).outcomes) == 5
        traveller.shift(61)
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_ranges") == [(0,)])
        for call in (job.results, job.outcomes().__anext__, job.retry_failed):
            with pytest.raises(ResultsExpired, match="past result_ttl"):
                await call()
        kept = await job.status()
        assert (kept.succeeded, kept.total, kept.outcome) == (5, 5, "succeeded")
        assert kept.created_at == status.created_at
        check_jobs(path)
        traveller.shift(6_000)
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_jobs") == [(0,)])
        with pytest.raises(UnknownJob):
            await job.status()
    check_jobs(path)


async def test_a_job_that_runs_keeps_its_outcomes(path, traveller):
    """However long it takes: the time counts from its end."""
    handler = Handler()
    async with batcher(path, handler, max_batch_size=2, result_ttl=60, job_ttl=60) as durable:
        await durable.pause()
        job = await durable.enqueue_job(range(4))
        handler.hold()
        await durable.resume()
        await until(lambda: len(handler.batches) == 1)
        await durable.enqueue_job([])
        traveller.shift(61)
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_jobs") == [(1,)])
        assert (await job.status()).pending == 4
        handler.free.set()
        await job.wait(20)
    check_jobs(path)


async def test_count_bounds_leave_jobs_alone(path):
    """`keep_done` and `keep_dead` are for single items; those are still bounded beside a job's."""

    async def odd(items):
        return [ItemError("no") if item % 2 else item for item in items]

    async with batcher(path, odd, keep_done=1, keep_dead=1) as durable:
        job = await durable.enqueue_job(range(10))
        await job.wait(20)
        await durable.enqueue_many(range(100, 110))
        query = "SELECT done, dead FROM microbatch_queues"
        await until(lambda: rows(path, query) == [(6, 6)])
        assert len([outcome async for outcome in job.outcomes()]) == 10
    check_jobs(path)


async def test_a_key_outlives_its_jobs_row_if_it_was_promised_to(path, traveller):
    """`key_ttl` after the job's end, at least: else the same import would run twice."""
    async with batcher(path, Handler(), result_ttl=60, job_ttl=60, key_ttl=6_000) as durable:
        keyed = await durable.enqueue_job([1], key="k")
        plain = await durable.enqueue_job([1])
        for job in (keyed, plain):
            await job.wait(20)
        traveller.shift(61)
        await until(lambda: rows(path, "SELECT uid FROM microbatch_jobs") == [(keyed.id,)])
        assert (await durable.enqueue_job([1], key="k")).id == keyed.id
        with pytest.raises(UnknownJob):
            await plain.status()
        traveller.shift(6_000)
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_jobs") == [(0,)])
    check_jobs(path)


async def test_a_retry_of_what_goes_meanwhile_is_refused(path):
    """Not half of it: nobody would notice what is missing."""

    async def fails(items):
        return [ItemError("no") for _ in items]

    async with batcher(path, fails) as durable:
        job = await durable.enqueue_job(range(5))
        await job.wait(20)
        jobs = durable._service.store.jobs
        leftovers = jobs.leftovers

        async def late(*arguments, **named):
            found = await leftovers(*arguments, **named)
            await durable.delete_job(job.id)
            return found

        jobs.leftovers = late
        with pytest.raises(ResultsExpired):
            await job.retry_failed(retryable_only=False)
        assert (await durable.jobs()).jobs == []
    check_jobs(path)


async def test_an_end_that_was_written_in_a_wrong_future_is_told(path):
    """A clock that was set back must not keep it for a year."""
    told = []

    async def on_job_end(status):
        told.append(status.id)

    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([])
    execute(path, "UPDATE microbatch_jobs SET tell_at = tell_at + 1e7")
    async with batcher(path, Handler(), on_job_end=on_job_end):
        await until(lambda: told)
    assert told == [job.id]


async def test_closing_does_not_wait_for_an_on_job_end_that_cannot_be_cancelled(
    path, monkeypatch, caplog
):
    """It is told so; the end is told again, by the next one."""
    monkeypatch.setattr("microbatch.durable._flow.telling.CLOSE_GRACE", 0.05)
    free, tasks = asyncio.Event(), []

    async def on_job_end(status):
        tasks.append(asyncio.current_task())
        while not free.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await free.wait()

    durable = batcher(path, Handler(), on_job_end=on_job_end)
    await durable.enqueue_job([1])
    await until(lambda: tasks)
    await asyncio.wait_for(durable.aclose(0), 20)
    assert "goes on after its queue was closed" in caplog.text
    free.set()
    await asyncio.wait(tasks)


async def test_on_job_end_is_called_again_if_somebody_cancels_it(path):
    """Nobody else would tell of this job, or of any later one, as long as this process lives."""
    calls, again = [], asyncio.Event()

    async def on_job_end(status):
        calls.append(asyncio.current_task())
        if len(calls) > 1:
            again.set()
        else:
            await asyncio.sleep(60)

    async with batcher(path, Handler(), on_job_end=on_job_end) as durable:
        await durable.enqueue_job([1])
        await until(lambda: calls)
        calls[0].cancel()
        await asyncio.wait_for(again.wait(), 20)
