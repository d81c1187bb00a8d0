"""Rare ways of jobs: large ones, damaged ones, files in trouble, and what is asked in an odd order."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from durable_support import (
    Handler,
    batcher,
    check_jobs,
    execute,
    locked_out,
    rows,
    until,
)

from microbatch import BatcherClosed, ItemError
from microbatch.durable import DurableQueue, ItemFailed, QueueUnavailable, UnknownJob
from microbatch.durable._file import job_pages

pytestmark = pytest.mark.anyio


async def test_others_have_a_turn_while_a_source_is_read(path):
    """A generator that never waits must not stop the event loop for the whole of it."""
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def coming():
        for number in range(4_000):
            yield number

    async with DurableQueue(path, item_type=int) as queue:
        counting = asyncio.ensure_future(count())
        for source in (range(4_000), coming()):
            turns = 0
            job = await queue.enqueue_job(source)
            assert turns >= 4
        counting.cancel()
        assert (await job.status()).total == 4_000


async def test_a_page_of_large_results_ends_early(path, monkeypatch):
    """In bounded memory, whatever the limit; the cursor goes on where it ended."""
    monkeypatch.setattr(job_pages, "PAGE_BYTES", 1_000)

    async def handler(items):
        return ["x" * 400 for _ in items]

    async with batcher(path, handler, result_type=str) as durable:
        job = await durable.enqueue_job(range(10))
        await job.wait(20)
        page = await job.results()
        assert [outcome.index for outcome in page.outcomes] == [0, 1, 2, 3]
        assert page.cursor == 3
        assert [outcome.index async for outcome in job.outcomes()] == list(range(10))


async def test_large_payloads_are_copied_in_parts(path, monkeypatch):
    """A retry takes no more memory than an import."""
    monkeypatch.setattr(job_pages, "COPIED_BYTES", 1_000)

    async def fails(items):
        return [ItemError("no", retryable=True) for _ in items]

    async with batcher(path, fails, item_type=str) as durable:
        job = await durable.enqueue_job([str(n) * 300 for n in range(9)], item_id=lambda s: s[0])
        await job.wait(20)
        again = await job.retry_failed()
        assert (await again.wait(20)).total == 9
        assert [o.id async for o in again.outcomes()] == [str(n) for n in range(9)]
    check_jobs(path)


async def test_outcomes_go_on_over_many_pages(path, monkeypatch):
    """Each page is asked for when the one before has been read."""
    monkeypatch.setattr("microbatch.durable.job.OUTCOMES_READ", 7)
    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job(range(50))
        await job.wait(20)
        assert [outcome.index async for outcome in job.outcomes()] == list(range(50))


async def test_a_result_that_no_longer_decodes_fails_alone(path):
    """Results of an older version of the program: the page tells of it, and of the others."""
    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job([1, 2])
        await job.wait(20)
    async with DurableQueue(path, item_type=int, result_type=str) as queue:
        page = await queue.job(job.id).results()
        errors = [outcome.error for outcome in page.outcomes]
        assert [type(error) for error in errors] == [ItemFailed] * 2
        assert "no longer decode" in errors[0].message


async def test_telling_bears_a_file_that_is_away(path):
    """The status is read, and what was told is noted, once it is back."""
    told, begun, free = [], asyncio.Event(), asyncio.Event()

    async def on_job_end(status):
        begun.set()
        await free.wait()
        told.append(status.id)

    async with batcher(path, Handler(), on_job_end=on_job_end) as durable:
        job = await durable.enqueue_job([])
        await begun.wait()
        with locked_out(path):
            free.set()
            await until(lambda: told)
            await asyncio.sleep(0.1)
        await until(lambda: rows(path, "SELECT tell_at FROM microbatch_jobs") == [(None,)])
        assert told == [job.id]


async def test_the_end_of_a_job_that_is_gone_is_not_told(path):
    """It was deleted between the claim and the look."""
    told = []

    async def on_job_end(status):
        told.append(status.id)

    async with batcher(path, Handler(), on_job_end=on_job_end) as durable:
        jobs = durable._service.store.jobs
        statuses = jobs.statuses

        async def gone(uids):
            for uid in uids:
                await jobs.delete(uid, None)
            return await statuses(uids)

        jobs.statuses = gone
        await durable.enqueue_job([])
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_jobs") == [(0,)])
        await until(lambda: not durable._service.store._client.telling)
        assert told == []
    check_jobs(path)


async def test_looking_after_jobs_bears_a_statement_that_fails(path):
    """It is tried again, and nobody else is kept waiting."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(0)
        execute(
            path,
            "CREATE TRIGGER odd BEFORE UPDATE ON microbatch_jobs WHEN new.life = 3 "
            "BEGIN SELECT RAISE(ABORT, 'unlucky'); END",
        )
        await durable.pause()
        job = await durable.enqueue_job([1], deadline=0.05)
        await asyncio.sleep(0.2)
        assert (await job.status()).life == "queued"
        await durable.resume()
        assert await durable.submit(5) == 10
        execute(path, "DROP TRIGGER odd")
        assert (await job.wait(20)).outcome == "expired"
    check_jobs(path)


async def test_a_deadline_that_was_set_by_a_wrong_clock_counts_from_now(path):
    """A reading that was wrong for a moment delays nothing by more than that moment."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([1], deadline=0.3)
        execute(
            path,
            "UPDATE microbatch_jobs SET created_at = created_at + 1e6, deadline = deadline + 1e6",
            "UPDATE microbatch_lanes SET deadline = deadline + 1e6 WHERE lane > 0",
        )
        assert (await job.wait(20)).outcome == "expired"


async def test_an_unlucky_call_leaves_nothing(path):
    """A statement that fails in the middle is told to the caller, and what was written goes."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.stats()
        execute(
            path,
            "CREATE TRIGGER odd BEFORE INSERT ON microbatch_item_ids "
            "BEGIN SELECT RAISE(ABORT, 'unlucky'); END",
        )
        with pytest.raises(QueueUnavailable, match="unlucky"):
            await queue.enqueue_job(range(10), item_id=str, key="k")
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_jobs") == [(0,)])
        execute(path, "DROP TRIGGER odd")
        assert (
            await (await queue.enqueue_job(range(10), item_id=str, key="k")).status()
        ).total == 10
    check_jobs(path)


async def test_a_job_is_asked_for_while_it_goes(path):
    """Nobody sees one that is being removed; and who waits for another is not kept."""
    async with batcher(path, Handler()) as durable:
        gone = await durable.enqueue_job([1])
        stays = await durable.enqueue_job([2], delay=0.2)
        await gone.wait(20)
        waiting = asyncio.ensure_future(stays.wait())
        await durable.delete_job(gone.id)
        with pytest.raises(UnknownJob):
            await gone.results()
        assert (await asyncio.wait_for(waiting, 20)).succeeded == 1


async def waited_for(durable, callers):
    """The one job that is waited for, once so many callers have seen how it is and wait for news."""

    def waits():
        return [
            len(one.waiters) for one in durable._service.watching._by_uid.values() if one.row
        ] == [callers]

    await until(waits)
    (watched,) = durable._service.watching._by_uid.values()
    return watched


async def test_what_waited_for_a_job_is_told_once(path):
    """A waiter that was cancelled in the very turn in which the answer comes."""
    async with batcher(path, Handler()) as durable:
        await durable.pause()
        job = await durable.enqueue_job([1])
        waiting = [asyncio.ensure_future(job.wait()) for _ in range(3)]
        watched = await waited_for(durable, 3)
        watched.waiters[0].cancel()
        durable._service.watching._tell_of(watched, watched.row)
        await durable.resume()
        with anyio.fail_after(20):
            results = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(one, asyncio.CancelledError) for one in results) == 1


async def test_who_is_cancelled_as_the_queue_closes_is_not_told_twice(path):
    """Nor does it cost the others their answer."""
    queue = DurableQueue(path, item_type=int)
    job = await queue.enqueue_job([1])
    waiting = [asyncio.ensure_future(job.wait()) for _ in range(2)]
    watched = await waited_for(queue, 2)
    closing = queue._service.watching.close
    waiters = list(watched.waiters)

    async def cancel_and_close():
        waiters[0].cancel()
        await closing()

    queue._service.watching.close = cancel_and_close
    await queue.aclose()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in results] == [asyncio.CancelledError, BatcherClosed]


async def test_waiting_bears_a_file_that_is_away(path):
    """It goes on once that is back."""
    async with batcher(path, Handler()) as durable:
        await durable.pause()
        job = await durable.enqueue_job([1])
        with locked_out(path):
            waiting = asyncio.ensure_future(job.wait())
            await asyncio.sleep(0.1)
            assert not waiting.done()
        await durable.resume()
        assert (await asyncio.wait_for(waiting, 20)).succeeded == 1


async def test_a_result_of_none_is_one(path):
    """A handler that gives nothing back has succeeded."""

    async def silent(items):
        return None

    async with batcher(path, silent, result_type=None) as durable:
        job = await durable.enqueue_job([1])
        assert (await job.wait(20)).succeeded == 1
        (outcome,) = (await job.results()).outcomes
        assert (outcome.ok, outcome.value) == (True, None)


async def test_items_of_a_job_that_a_damaged_file_has_lost_go_on(path):
    """Its row is gone: they are handled all the same, and nothing stands still behind them."""
    handler = Handler()
    async with batcher(path, handler, max_batch_size=2) as durable:
        await durable.pause()
        await durable.enqueue_job(range(4), ordered=True, item_id=str)
        execute(path, "DELETE FROM microbatch_jobs", "DELETE FROM microbatch_lanes WHERE lane > 0")
        execute(
            path,
            "INSERT INTO microbatch_lanes (queue, lane, priority, due, first_id) "
            "SELECT queue, lane, priority, due, first_id FROM microbatch_ranges",
        )
        await durable.resume()
        await durable.submit(9)
        await until(lambda: len(handler.items) == 5)
