"""Jobs that are stopped: cancelled, paused, past a deadline, given up after too many failures."""

from __future__ import annotations

import asyncio
import signal

import anyio
import pytest
import time_machine
from durable_support import LOOPS, Handler, Process, batcher, check_jobs, rows, until

from microbatch import Backoff, ItemError, Retry
from microbatch.durable import DurableQueue, ItemCancelled, ItemExpired, ItemFailed
from microbatch.durable._file import job_steps
from microbatch.durable._file.session import Session

pytestmark = pytest.mark.anyio

LATER = Retry(on=ConnectionError, backoff=Backoff(initial=600, maximum=600, jitter=0))


@pytest.mark.parametrize("backend_name", LOOPS, indirect=True)
async def test_cancel_ends_what_has_not_begun(path):
    """The running batch finishes, and counts."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=3) as durable:
        job = await durable.enqueue_job(range(10))
        await until(lambda: handler.batches)
        await job.cancel()
        status = await job.status()
        assert (status.life, status.outcome) == ("cancelling", None)
        assert (status.cancelled, status.pending) == (7, 3)
        handler.free.set()
        status = await job.wait(20)
        assert (status.life, status.outcome) == ("ended", "cancelled")
        assert (status.succeeded, status.cancelled) == (3, 7)
        assert handler.items == [0, 1, 2]
        gone = [outcome async for outcome in job.outcomes("cancelled")]
        assert [outcome.index for outcome in gone] == list(range(3, 10))
        assert isinstance(gone[0].error, ItemCancelled)
        assert gone[0].error.__cause__ is None
        assert (gone[0].kind, gone[0].attempts, gone[0].ok) == ("cancelled", 0, False)
        for call in (job.cancel, job.pause, job.resume):  # of an ended one: nothing
            await call()
        assert await job.status() == status
    check_jobs(path)


async def test_cancel_takes_steps_of_bounded_length(path, monkeypatch):
    """However many ranges a job has; the counts hold at every look."""
    monkeypatch.setattr(job_steps, "STEP", 3)
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([1, "x"] * 20, invalid="fail")
        await until(lambda: rows(path, "SELECT ready FROM microbatch_queues") == [(20,)])
        await job.cancel()
        seen = [status async for status in job.progress(0)]
        # How often one looks meanwhile is a matter of pace.
        assert {status.life for status in seen[:-1]} <= {"cancelling"}
        assert (seen[-1].life, seen[-1].outcome) == ("ended", "cancelled")
        counts = [status.cancelled for status in seen]
        assert counts == sorted(counts)
        assert counts[-1] == 20
        assert all(status.done + status.pending == 40 for status in seen)
    check_jobs(path)


async def test_a_cancelled_item_in_back_off_keeps_its_last_error(path):
    """What was tried, and how often, is told."""

    async def fails(items):
        raise ConnectionError("not now")

    async with batcher(path, fails, retry=LATER) as durable:
        job = await durable.enqueue_job([1, 2])
        await until(lambda: rows(path, "SELECT scheduled FROM microbatch_queues") == [(2,)])
        status = await job.status()
        assert (status.life, status.pending, status.failed) == ("running", 2, 0)
        await job.cancel()
        status = await job.wait(20)
        assert (status.cancelled, status.outcome, status.errors) == (2, "cancelled", {})
        for outcome in [outcome async for outcome in job.outcomes()]:
            assert outcome.attempts == 1
            cause = outcome.error.__cause__
            assert isinstance(cause, ItemFailed)
            assert (cause.kind, cause.message, cause.retryable) == (
                "ConnectionError",
                "not now",
                True,
            )
    check_jobs(path)


async def test_a_retryable_failure_in_a_cancelled_job_is_final(path):
    """It will not go again, so it has failed; and who waits for the item is told."""
    free = asyncio.Event()
    begun = asyncio.Event()

    async def fails(items):
        begun.set()
        await free.wait()
        raise ConnectionError("not now")

    async with batcher(path, fails, retry=LATER) as durable:
        job = await durable.enqueue_job([1])
        await begun.wait()
        (number,) = rows(path, "SELECT first_id FROM microbatch_ranges")[0]
        waiting = asyncio.ensure_future(durable.result(number))
        await job.cancel()
        free.set()
        status = await job.wait(20)
        assert (status.failed, status.outcome, status.cancelled) == (1, "failed", 0)
        assert status.errors == {"internal_error": 1}
        with pytest.raises(ItemFailed):
            await asyncio.wait_for(waiting, 20)
    check_jobs(path)


async def test_what_no_handler_has_yet_is_given_back(path):
    """Of a claim in several partitions only some are in a handler: the others have not begun."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=9, partition=lambda item: item % 3) as durable:
        job = await durable.enqueue_job(range(9))
        other = None
        await until(lambda: handler.batches)
        await job.cancel()
        await until(lambda: rows(path, "SELECT cancelled FROM microbatch_queues") == [(6,)])
        handler.free.set()
        status = await job.wait(20)
        assert (status.succeeded, status.cancelled) == (3, 6)
        assert handler.items == [0, 3, 6]
        assert other is None
    check_jobs(path)


async def test_others_in_the_same_claim_go_on(path):
    """Only the stopped job's items are given back."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=9, partition=lambda item: item % 3) as durable:
        await durable.pause()
        job = await durable.enqueue_job(range(6))
        stays = await durable.enqueue_job(range(6, 9))
        await durable.resume()
        await until(lambda: handler.batches)
        await job.cancel()
        await until(lambda: rows(path, "SELECT cancelled FROM microbatch_queues") == [(4,)])
        handler.free.set()
        assert (await job.wait(20)).cancelled == 4
        assert (await stays.wait(20)).succeeded == 3
        assert sorted(handler.items) == [0, 3, 6, 7, 8]
    check_jobs(path)


async def test_an_item_of_a_job_is_cancelled_alone(path):
    """By its ticket, as any other; it counts."""
    async with batcher(path, Handler()) as durable:
        await durable.pause()
        job = await durable.enqueue_job(range(3))
        (number,) = rows(path, "SELECT first_id FROM microbatch_ranges")[0]
        assert await durable.cancel(number + 1) is True
        assert (await job.status()).cancelled == 1
        await durable.resume()
        status = await job.wait(20)
        assert (status.cancelled, status.succeeded, status.outcome) == (1, 2, "cancelled")
        assert await durable.cancel(number) is False
    check_jobs(path)


async def test_cancelling_all_items_one_by_one_ends_the_job(path):
    """The transaction that ends the last one ends the job, whichever that is."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job(range(3))
        (number,) = rows(path, "SELECT first_id FROM microbatch_ranges")[0]
        for offset in range(3):
            await queue.cancel(number + offset)
        status = await job.status()
        assert (status.life, status.outcome, status.started_at) == ("ended", "cancelled", None)
    check_jobs(path)


# Pausing


async def test_a_paused_job_waits_and_goes_on(path):
    """For every process, and over a restart; others are not held up."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        await durable.pause()
        job = await durable.enqueue_job(range(3))
        await job.pause()
        assert (await job.status()).paused
        await job.pause()
        other = await durable.enqueue_job([7])
        await durable.resume()
        await other.wait(20)
        assert await durable.submit(9) == 18
        assert handler.items == [7, 9]
    async with batcher(path, handler) as durable:
        assert await durable.submit(8) == 16
        handle = durable.job(job.id)
        status = await handle.status()
        assert (status.paused, status.life, status.eta) == (True, "queued", None)
        await handle.resume()
        status = await handle.wait(20)
        assert (status.succeeded, status.paused) == (3, False)
    check_jobs(path)


async def test_a_paused_job_can_be_cancelled(path):
    """The reasons for which a lane is closed do not undo one another."""
    async with batcher(path, Handler()) as durable:
        await durable.pause()  # so that nothing begins before the job is paused
        job = await durable.enqueue_job([1] * 5)
        await job.pause()
        await durable.resume()
        await job.cancel()
        await job.resume()
        status = await job.wait(20)
        assert (status.cancelled, status.paused) == (5, False)
    check_jobs(path)


async def test_a_worker_rests_beside_a_paused_job(path, monkeypatch):
    """What cannot be claimed must not be looked for again and again, whatever is due some day."""
    async with batcher(path, Handler()) as durable:
        await durable.pause()
        job = await durable.enqueue_job(range(10))
        await job.pause()
        await durable.enqueue(1, delay=600)
        await durable.resume()
        assert await durable.submit(5) == 10
        looks = 0
        real = Session.claim

        def counted(self, *arguments):
            nonlocal looks
            looks += 1
            return real(self, *arguments)

        monkeypatch.setattr(Session, "claim", counted)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert looks < 10
        await job.resume()
        assert (await job.wait(20)).succeeded == 10


# Deadlines


async def test_what_has_not_begun_expires_at_the_deadline(path):
    """In a process without a handler too."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job(range(3), deadline=0.2)
        status = await job.wait(20)
        assert (status.outcome, status.expired) == ("expired", 3)
        outcome = (await job.results()).outcomes[0]
        assert isinstance(outcome.error, ItemExpired)
        assert (outcome.kind, outcome.code) == ("expired", "item_expired")
        assert (status.ended_at - status.created_at).total_seconds() >= 0.2
    check_jobs(path)


async def test_nothing_begins_past_a_deadline(path, monkeypatch):
    """Also before anybody has looked: a claim does not read such a lane."""
    handler = Handler()
    monkeypatch.setattr("microbatch.durable._life.job_care.JobCare.due", lambda *_: None)
    async with batcher(path, handler) as durable:
        await durable.pause()
        await durable.enqueue_job([1], deadline=0.05)
        await anyio.sleep(0.1)
        await durable.resume()
        assert await durable.submit(5) == 10
        assert handler.items == [5]


async def test_running_batches_finish_past_the_deadline(path):
    """What has begun is not cut short; in back-off it has not."""
    handler = Handler()
    handler.hold()
    with time_machine.travel("2026-01-01 12:00Z") as traveller:
        async with batcher(path, handler, max_batch_size=2) as durable:
            job = await durable.enqueue_job(range(5), deadline=60)
            await until(lambda: handler.batches)
            traveller.shift(61)
            await until(lambda: rows(path, "SELECT expired FROM microbatch_queues") == [(3,)])
            handler.free.set()
            status = await job.wait(20)
            assert (status.succeeded, status.expired, status.outcome) == (2, 3, "expired")
    check_jobs(path)


async def test_a_job_that_ends_in_time_does_not_expire(path):
    """Its deadline goes with it."""
    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job([1], deadline=60)
        assert (await job.wait(20)).outcome == "succeeded"
        assert rows(path, "SELECT deadline FROM microbatch_jobs") == [(None,)]


# Failures


async def test_too_many_failures_stop_a_job(path):
    """What has not begun is cancelled once more than so many have failed."""

    async def fails(items):
        return [ItemError("no", code="bad") for _ in items]

    async with batcher(path, fails, max_batch_size=2) as durable:
        job = await durable.enqueue_job(range(20), max_failures=4)
        status = await job.wait(20)
        assert (status.failed, status.cancelled, status.outcome) == (6, 14, "cancelled")
        job = await durable.enqueue_job(range(20), max_failures=0)
        assert (await job.wait(20)).failed == 2
    check_jobs(path)


async def test_as_many_failures_as_are_allowed_stop_nothing(path):
    """More than so many, not so many."""

    async def fails(items):
        return [ItemError("no") if item < 3 else item for item in items]

    async with batcher(path, fails, max_batch_size=1) as durable:
        job = await durable.enqueue_job(range(10), max_failures=3)
        assert (await job.wait(20)).succeeded == 7
    check_jobs(path)


# Other processes


async def test_a_job_is_cancelled_from_another_process(path):
    """In every process within `poll_interval`; what it has in hand finishes."""
    async with (
        Process(path, "hold") as process,
        DurableQueue(path, item_type=int, poll_interval=0.02) as queue,
    ):
        assert await process.hear() == ["ready"]
        job = await queue.enqueue_job(range(250))
        assert (await process.hear())[0] == "handling"
        await job.cancel()
        assert (await job.status()).cancelled == 150
        process.tell()
        status = await job.wait(20)
        assert (status.succeeded, status.cancelled) == (100, 150)
        process.tell()
    check_jobs(path)


async def test_what_a_dead_process_had_of_a_cancelled_job_is_cancelled(path):
    """It comes back, and has not begun."""
    async with Process(path, "hold") as process:
        assert await process.hear() == ["ready"]
        handler = Handler()
        handler.hold()
        async with batcher(path, handler) as durable:
            job = await durable.enqueue_job(range(250))
            assert (await process.hear())[0] == "handling"
            await until(lambda: handler.batches)
            await job.cancel()
            process.signal(signal.SIGKILL)
            await process.end()
            handler.free.set()
            status = await job.wait(20)
            assert (status.outcome, status.succeeded, status.cancelled) == ("cancelled", 100, 150)
    check_jobs(path)


async def test_requeue_and_purge_leave_a_jobs_items_alone(path):
    """They belong to it: retry_failed and delete_job are for them. They are shown all the same."""

    async def fails(items):
        return [ItemError("no") for _ in items]

    async with batcher(path, fails, keep_dead=0, keep_done=0) as durable:
        job = await durable.enqueue_job([1, 2])
        await job.wait(20)
        letters = await durable.dead_letters()
        assert [letter.item for letter in letters] == [1, 2]
        assert (await durable.stats()).dead == 2
        ids = [letter.id for letter in letters]
        assert await durable.requeue(ids) == 0
        assert await durable.purge(ids) == 0
        await durable.enqueue(3)
        await until(lambda: rows(path, "SELECT dead FROM microbatch_queues") == [(2,)])
        assert [outcome.kind async for outcome in job.outcomes()] == ["failed"] * 2
    check_jobs(path)
