"""Keys of jobs: the same call again is the same job; and what a dead process brought of one is no job."""

from __future__ import annotations

import asyncio
import signal

import anyio
import pytest
from durable_support import Handler, Process, batcher, check_jobs, rows, until
from jobs_support import NOTHING, left_of_jobs, nothing_is_left

from microbatch.durable import DurableQueue, IdempotencyConflict, UnknownJob

pytestmark = pytest.mark.anyio


async def test_the_same_key_again_is_the_same_job(path):
    """And its items are not even read."""

    def untouched():
        raise AssertionError
        yield

    async with batcher(path, Handler()) as durable:
        await durable.pause()
        job = await durable.enqueue_job([1, 2], key="k", fingerprint=b"a")
        again = await durable.enqueue_job(untouched(), key="k")
        same = await durable.enqueue_job(untouched(), key="k", fingerprint="a")
        assert again.id == same.id == job.id
        with pytest.raises(IdempotencyConflict, match=f"belongs to job {job.id}") as caught:
            await durable.enqueue_job(untouched(), key="k", fingerprint="b")
        assert (caught.value.key, caught.value.id) == ("k", job.id)
        other = await durable.enqueue_job([3], key="k", owner="me")
        assert other.id != job.id
        await durable.enqueue(5, key="k")  # items' keys are apart
        await durable.resume()
        await job.wait(20)
        assert (await durable.enqueue_job(untouched(), key="k")).id == job.id
        assert len((await durable.jobs()).jobs) == 2
    check_jobs(path)


async def test_a_key_is_free_once_its_time_is_over(path):
    """`key_ttl` from the job's end."""
    async with batcher(path, Handler(), key_ttl=0.2) as durable:
        await durable.pause()
        job = await durable.enqueue_job([1], key="k")
        await anyio.sleep(0.3)
        assert (await durable.enqueue_job([2], key="k")).id == job.id
        await durable.resume()
        await job.wait(20)
        await anyio.sleep(0.3)
        assert (await durable.enqueue_job([2], key="k")).id != job.id
        assert (await job.status()).key == "k"


async def test_a_second_call_waits_for_the_first(path, small_chunks):
    """Until that is seen, or gone: one job, whoever comes when."""
    goes = asyncio.Event()
    fails = False

    async def slowly():
        for number in range(15):
            yield number
        await goes.wait()
        if fails:
            raise OSError("no more lines")

    async with DurableQueue(path, item_type=int, poll_interval=0.02) as queue:
        for fails in (False, True):
            goes.clear()
            first = asyncio.ensure_future(queue.enqueue_job(slowly(), key=f"k{fails}"))
            await until(lambda: rows(path, "SELECT 1 FROM microbatch_jobs WHERE life = 0"))
            second = asyncio.ensure_future(queue.enqueue_job([1], key=f"k{fails}"))
            await anyio.sleep(0.1)
            assert not second.done()
            goes.set()
            if fails:
                with pytest.raises(OSError, match="no more lines"):
                    await first
                assert (await (await second).status()).total == 1
            else:
                assert (await second).id == (await first).id


# Processes that die


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("worker", [False, True])
async def test_what_a_killed_process_wrote_of_a_job_goes(path, worker, named):
    """kill -9 in the middle leaves nothing that anybody can see, and what lies on the disk goes soon."""
    async with Process(path, "bring_job", int(named)) as process:
        assert await process.hear() == ["staged"]
        uid = rows(path, "SELECT uid FROM microbatch_jobs")[0][0]
        process.signal(signal.SIGKILL)
        await process.end()
    assert left_of_jobs(path) != NOTHING
    handler = Handler()
    queue = batcher(path, handler) if worker else DurableQueue(path, item_type=int)
    async with queue:
        with pytest.raises(UnknownJob):
            await queue.job(uid).status()
        assert (await queue.jobs()).jobs == []
        with anyio.fail_after(20):
            job = await queue.enqueue_job([5], key="k")
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_jobs") == [(1,)])
        if worker:
            await job.wait(20)
            assert handler.items == [5]
    check_jobs(path)


async def test_it_goes_in_a_process_that_was_there_already(path):
    """A queue without a handler looks too."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.stats()
        async with Process(path, "bring_job", 0) as process:
            assert await process.hear() == ["staged"]
            process.signal(signal.SIGKILL)
            await process.end()
        await nothing_is_left(path)


async def test_it_goes_also_where_only_another_queue_is_open(path):
    """Whoever has the file open removes it: that queue may never be opened again."""
    async with DurableQueue(path, item_type=int, queue="other") as queue:
        await queue.stats()
        async with Process(path, "bring_job", 1) as process:
            assert await process.hear() == ["staged"]
            process.signal(signal.SIGKILL)
            await process.end()
        await nothing_is_left(path)


async def test_a_job_that_was_lost_meanwhile_is_not_shown(path, small_chunks):
    """A process that was taken for dead has lost what it had written: all or none."""
    async with DurableQueue(path, item_type=int) as queue:

        async def losing():
            for number in range(25):
                yield number
            (number,) = rows(path, "SELECT id FROM microbatch_jobs")[0]
            await queue._service.store.jobs.drop(number)
            for number in range(25):
                yield number

        with pytest.raises(Exception, match="enqueue it again"):
            await queue.enqueue_job(losing())
        await nothing_is_left(path)
