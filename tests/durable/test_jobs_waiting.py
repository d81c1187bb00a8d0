"""Waiting for jobs and their progress: woken where they are settled, noticed elsewhere, one look for all."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import anyio
import pytest
from durable_support import LOOPS, Handler, Process, batcher, check_jobs, locked, rows, until

from microbatch import BatcherClosed, WouldDeadlock
from microbatch.durable import DurableQueue

pytestmark = pytest.mark.anyio


def counted_looks(durable) -> list[int]:
    """Note each look at jobs: how many it reads."""
    looks: list[int] = []
    jobs = durable._service.store.jobs
    statuses = jobs.statuses

    async def noted(uids):
        looks.append(len(uids))
        return await statuses(uids)

    jobs.statuses = noted
    return looks


class Watched(Handler):
    """Begins no batch before all that it handled was seen, so however slow the watcher is, it misses none."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self._news = anyio.Event()

    async def __call__(self, items):
        handled = len(self.items)
        while not self.seen or self.seen[-1].done < handled:
            await self._news.wait()
        return await super().__call__(items)

    async def statuses(self, job):
        async for status in job.progress(0):
            self.seen.append(status)
            self._news.set()
            self._news = anyio.Event()
        return self.seen


@pytest.mark.parametrize("backend_name", LOOPS, indirect=True)
async def test_progress_tells_of_every_change_and_ends(path):
    """At once first, never backwards, ended last."""
    handler = Watched()
    async with batcher(path, handler, max_batch_size=3) as durable:
        job = await durable.enqueue_job(range(20))
        seen = await handler.statuses(job)
        assert seen[0].done == 0
        assert (seen[-1].life, seen[-1].done, seen[-1].fraction) == ("ended", 20, 1.0)
        done = [status.done for status in seen]
        assert done == sorted(done)
        assert {*done} == {0, 3, 6, 9, 12, 15, 18, 20}
        assert {status.life for status in seen[:-1]} <= {"queued", "running"}
        assert all(status.done + status.pending == 20 for status in seen)
        assert [status.life async for status in job.progress()] == ["ended"]


async def test_progress_is_told_no_more_often_than_is_wanted(path, monkeypatch):
    """What came between is in the next one."""
    slept = []
    real = anyio.sleep

    async def noted(seconds):
        if seconds == 7.5:
            slept.append(seconds)
            await durable.job(job.id).wait(20)  # all comes between
        else:
            await real(seconds)

    async with batcher(path, Handler(), max_batch_size=1) as durable:
        job = await durable.enqueue_job(range(50))
        monkeypatch.setattr(anyio, "sleep", noted)
        seen = [status.done async for status in job.progress(min_interval=7.5)]
        assert seen[-1] == 50
        assert len(seen) <= 2
        assert len(slept) == len(seen) - 1
    check_jobs(path)


async def test_progress_shows_rate_and_eta(path):
    """Once something has ended, and until all has."""
    handler = Watched()
    async with batcher(path, handler, max_batch_size=5) as durable:
        job = await durable.enqueue_job(range(50))
        rated = [s for s in await handler.statuses(job) if s.life == "running" and s.done]
        assert rated
        assert all(status.rate > 0 for status in rated if status.done > 5)
        assert all(s.eta == pytest.approx(s.pending / s.rate) for s in rated if s.rate)
        assert all(status.fraction == status.done / 50 for status in rated)


async def test_waiting_takes_no_polling_where_the_job_is_settled(path):
    """Woken by the transaction itself, however seldom others are looked at."""
    async with batcher(path, Handler(), poll_interval=600) as durable:
        with anyio.fail_after(20):
            for _ in range(5):
                job = await durable.enqueue_job(range(10))
                assert (await job.wait()).succeeded == 10


async def test_waiting_notices_what_other_processes_settle(path):
    """Within `poll_interval` and a little."""
    async with (
        Process(path, "hold") as process,
        DurableQueue(path, item_type=int, poll_interval=0.02) as queue,
    ):
        assert await process.hear() == ["ready"]
        job = await queue.enqueue_job(range(10))
        progress = job.progress(0)
        while (await progress.__anext__()).life == "queued":
            pass
        process.tell()
        with anyio.fail_after(20):
            assert (await job.wait()).succeeded == 10
            assert [status.life async for status in progress][-1] == "ended"
        process.tell()


async def test_another_queue_of_the_process_is_woken_too(path):
    """The writer knows all queues of its file."""
    async with (
        batcher(path, Handler(), poll_interval=600) as durable,
        DurableQueue(path, item_type=int, poll_interval=600) as queue,
    ):
        job = await queue.enqueue_job(range(10))
        with anyio.fail_after(20):
            await job.wait()
            await durable.job(job.id).wait()


async def test_a_thousand_who_wait_cost_one_look(path):
    """For the same job; and none costs a task of its own in the store."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        job = await durable.enqueue_job(range(10))
        await until(lambda: handler.batches)
        looks = counted_looks(durable)
        waiting = [asyncio.ensure_future(durable.job(job.id).wait()) for _ in range(1_000)]
        await asyncio.sleep(0.1)
        first = len(looks)
        assert first <= 3
        handler.free.set()
        statuses = await asyncio.gather(*waiting)
        assert {status.succeeded for status in statuses} == {10}
        assert len(looks) - first <= 3


async def test_who_is_cancelled_while_waiting_leaves_nothing(path):
    """The others go on."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        job = await durable.enqueue_job([1])
        gone = asyncio.ensure_future(job.wait())
        stays = asyncio.ensure_future(job.wait())
        await until(lambda: durable._service.watching)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        handler.free.set()
        assert (await stays).succeeded == 1
        assert not durable._service.watching


async def test_waiting_has_its_limit(path):
    """The job goes on."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([1])
        with pytest.raises(TimeoutError, match=f"job '{job.id}' has not ended within 0.05 s"):
            await job.wait(0.05)
        with pytest.raises(TimeoutError):
            await job.wait(0)
        assert not queue._service.watching


async def test_closing_ends_those_who_wait(path):
    """Nobody would tell them any more."""
    queue = DurableQueue(path, item_type=int)
    job = await queue.enqueue_job([1])
    waiting = asyncio.ensure_future(job.wait())
    progress = job.progress(0)
    await progress.__anext__()
    told = asyncio.ensure_future(progress.__anext__())
    await until(lambda: queue._service.watching)
    await asyncio.sleep(0.05)
    await queue.aclose()
    for one in (waiting, told):
        with pytest.raises(BatcherClosed):
            await asyncio.wait_for(one, 20)
    with pytest.raises(BatcherClosed):
        await job.status()


async def test_progress_ends_if_the_queue_closes_between_two_looks(path):
    """Nobody would tell it of anything any more."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([1])
        statuses = job.progress(0.3)
        assert (await anext(statuses)).total == 1
        goes_on = asyncio.ensure_future(anext(statuses))
        await asyncio.sleep(0)
        assert not queue._service.watching._by_uid[job.id].waiters  # it pauses
    with pytest.raises(BatcherClosed):
        await asyncio.wait_for(goes_on, 20)


async def test_waiting_inside_a_batch_is_refused(path):
    """It would wait for itself."""
    errors = []

    async def handler(items):
        job = durable.job(items[0])
        for call in (job.wait, job.progress().__anext__):
            try:
                await call()
            except WouldDeadlock as error:
                errors.append(str(error))
        return items

    async with batcher(path, handler, item_type=str, result_type=str) as durable:
        job = await durable.enqueue_job(iter(["x"]))
        await job.wait(20)
    assert ["wait()" in errors[0], "progress()" in errors[1]] == [True, True]


async def test_who_waits_bears_a_locked_file(path):
    """It is looked at again until it can be read."""
    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job([1])
        await job.wait(20)
        watching = durable._service.watching
        jobs = durable._service.store.jobs
        tries = itertools.count()
        statuses = jobs.statuses

        async def fails(uids):
            if next(tries) < 2:
                raise OSError("odd")
            return await statuses(uids)

        jobs.statuses = fails
        with locked(path), anyio.fail_after(20):
            await job.wait()
        assert next(tries) >= 3
        assert not watching


async def test_who_comes_behind_a_look_asks_for_one_of_his_own(path):
    """What changed between that look and his coming was told to nobody: he would wait for ever."""
    read, told = asyncio.Event(), asyncio.Event()
    async with batcher(path, Handler(), poll_interval=600) as durable:
        await durable.pause()
        job = await durable.enqueue_job([1])
        jobs = durable._service.store.jobs
        statuses = jobs.statuses

        async def slowly(uids):
            rows = await statuses(uids)
            jobs.statuses = statuses
            read.set()
            await told.wait()
            return rows

        jobs.statuses = slowly
        gone = asyncio.ensure_future(job.wait())
        await read.wait()
        gone.cancel()
        await durable.resume()
        await until(lambda: rows(path, "SELECT life FROM microbatch_jobs") == [(4,)])
        waiting = asyncio.ensure_future(job.wait())
        await asyncio.sleep(0)
        told.set()
        assert (await asyncio.wait_for(waiting, 20)).succeeded == 1
