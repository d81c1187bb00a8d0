"""Jobs of a file that others open too: who comes finds what was left to do, whoever was there before."""

from __future__ import annotations

import pytest
from durable_support import Handler, batcher, check_jobs, execute, looked, rows, until

from microbatch.durable import DurableQueue

pytestmark = pytest.mark.anyio


async def test_what_is_left_half_removed_goes_once_its_queue_is_open(path):
    """A process died while it deleted a job; another queue of the file was open here before that job's."""
    async with batcher(path, Handler(), queue="late") as durable:
        job = await durable.enqueue_job(range(10), item_id=str)
        await job.wait(20)
    execute(path, "UPDATE microbatch_jobs SET life = 5, chore = 4, tell_at = NULL")
    async with DurableQueue(path, item_type=int, queue="early") as early:
        await looked(early)
        async with DurableQueue(path, item_type=int, queue="late"):
            await until(lambda: not rows(path, "SELECT 1 FROM microbatch_jobs"))
    check_jobs(path)
    assert rows(path, "SELECT count(*) FROM microbatch_ranges") == [(0,)]


async def test_who_comes_with_a_function_hears_of_ends_that_nobody_here_told(path):
    """It may share the process, and the queue, with one that has none."""
    told = []

    async def on_job_end(status):
        told.append(status.id)

    async with batcher(path, Handler()) as silent:
        job = await silent.enqueue_job([1])
        await job.wait(20)
        await looked(silent)
        async with batcher(path, Handler(), on_job_end=on_job_end):
            await until(lambda: told == [job.id])


async def test_a_job_with_a_key_says_when_it_goes(path):
    """Not before its key, however short rows are kept."""
    async with batcher(path, Handler(), job_ttl=60, key_ttl=3600) as durable:
        for key, seconds in (("k", 3600), (None, 60)):
            job = await durable.enqueue_job([1], key=key)
            status = await job.wait(20)
            assert (status.expires_at - status.ended_at).total_seconds() == pytest.approx(seconds)
