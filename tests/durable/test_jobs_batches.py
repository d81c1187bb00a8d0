"""Batches of a job's own, and in order."""

from __future__ import annotations

import asyncio
import signal

import pytest
from durable_support import Handler, Process, batcher, check_jobs, rows, until

from microbatch import Backoff, Retry
from microbatch.durable import DurableQueue

pytestmark = pytest.mark.anyio

SOON = Retry(on=ConnectionError, attempts=5, backoff=Backoff(initial=0.05, maximum=0.05, jitter=0))


async def test_jobs_share_batches_with_everybody(path):
    """Unless they ask not to: small ones would be slow otherwise."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        await durable.pause()
        jobs = [await durable.enqueue_job([n]) for n in range(5)]
        await durable.enqueue(5)
        await durable.resume()
        for job in jobs:
            await job.wait(20)
        assert handler.batches[0] == [0, 1, 2, 3, 4, 5]


async def test_a_job_with_a_batch_size_has_batches_of_its_own(path):
    """Sizes exact, the last one partial; nobody else's items among them."""
    handler = Handler()
    async with batcher(path, handler, max_batch_size=10) as durable:
        await durable.pause()
        before = await durable.enqueue_job(range(100, 103))
        job = await durable.enqueue_job(range(10), batch_size=4)
        large = await durable.enqueue_job(range(200, 225), batch_size=1_000)
        after = await durable.enqueue_job(range(300, 303))
        await durable.resume()
        for one in (before, job, large, after):
            await one.wait(20)
        assert handler.batches == [
            [100, 101, 102],
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9],
            list(range(200, 210)),
            list(range(210, 220)),
            list(range(220, 225)),
            [300, 301, 302],
        ]
        assert [info.job for info in handler.infos[1:4]] == [job.id] * 3
    check_jobs(path)


async def test_own_batches_run_beside_one_another(path):
    """`batch_size` alone promises no order."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_concurrency=3) as durable:
        job = await durable.enqueue_job(range(9), batch_size=2)
        await until(lambda: len(handler.batches) == 3)
        handler.free.set()
        await job.wait(20)
        assert sorted(map(len, handler.batches)) == [1, 2, 2, 2, 2]


async def test_priority_goes_before_own_batches(path):
    """A lane has its place among the others, whatever it is."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        await durable.pause()
        low = await durable.enqueue_job([1, 2], batch_size=1)
        high = await durable.enqueue_job([3, 4], batch_size=1, priority=5)
        await durable.enqueue(9, priority=3)
        await durable.resume()
        await low.wait(20)
        await high.wait(20)
        assert handler.items == [3, 4, 9, 1, 2]


# In order


async def test_an_ordered_job_goes_one_batch_at_a_time(path):
    """In the items' order, whatever slots are free."""
    handler = Handler()
    running = 0

    async def watched(items):
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0.002)
        result = await handler(items)
        running -= 1
        return result

    async with batcher(path, watched, max_concurrency=4, max_batch_size=5) as durable:
        job = await durable.enqueue_job(range(23), ordered=True)
        await job.wait(20)
        assert handler.batches == [list(range(n, min(n + 5, 23))) for n in range(0, 23, 5)]
        job = await durable.enqueue_job(range(7), ordered=True, batch_size=2)
        await job.wait(20)
        assert handler.batches[5:] == [[0, 1], [2, 3], [4, 5], [6]]
    check_jobs(path)


async def test_others_are_not_held_up_by_an_ordered_job(path):
    """Its lane is closed while its batch runs, not the queue."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_concurrency=2) as durable:
        job = await durable.enqueue_job(range(4), ordered=True, batch_size=2)
        await until(lambda: handler.batches)
        other = await durable.enqueue_job([7])
        await until(lambda: len(handler.batches) == 2)
        assert handler.batches == [[0, 1], [7]]
        handler.free.set()
        await job.wait(20)
        await other.wait(20)


@pytest.mark.parametrize("delay", [0, 0.05])
async def test_an_item_in_back_off_holds_an_ordered_job(path, delay):
    """It goes again before the next batch; it holds no slot meanwhile."""
    tries = {}
    handled = []

    async def flaky(items):
        handled.append(list(items))
        results = []
        for item in items:
            tries[item] = tries.get(item, 0) + 1
            bad = (item == 1 and tries[item] < 3) or (item == 2 and tries[item] < 2)
            results.append(ConnectionError("not now") if bad else item)
        return results

    async with batcher(path, flaky, retry=SOON, max_concurrency=2) as durable:
        job = await durable.enqueue_job(range(8), ordered=True, batch_size=4, delay=delay)
        if not delay:
            await until(lambda: handled)
            assert await durable.submit(77) == 77
        status = await job.wait(20)
        assert status.succeeded == 8
        mine = [batch for batch in handled if batch != [77]]
        assert mine == [[0, 1, 2, 3], [1, 2], [1], [4, 5, 6, 7]]
    check_jobs(path)


async def test_an_ordered_job_that_was_cut_short_goes_on_where_it_was(path):
    """A close gives the batch back: it goes again before all later ones."""
    handler = Handler()
    handler.hold()
    durable = batcher(path, handler)
    job = await durable.enqueue_job(range(6), ordered=True, batch_size=3)
    await until(lambda: handler.batches)
    await durable.aclose(0)
    second = Handler()
    async with batcher(path, second, max_concurrency=3) as durable:
        assert (await durable.job(job.id).wait(20)).succeeded == 6
        assert second.batches == [[0, 1, 2], [3, 4, 5]]
    check_jobs(path)


async def test_a_batch_of_a_dead_process_goes_again_in_order(path):
    """Its parts one after the other, before all later ones."""
    async with (
        Process(path, "hold") as process,
        DurableQueue(path, item_type=int, poll_interval=0.02) as queue,
    ):
        assert await process.hear() == ["ready"]
        job = await queue.enqueue_job(range(60), ordered=True, batch_size=20)
        assert await process.hear() == ["handling", *map(str, range(20))]
        process.signal(signal.SIGKILL)
        await process.end()
        handler = Handler(seconds=0.001)
        async with batcher(path, handler, max_concurrency=4):
            status = await job.wait(20)
        assert status.succeeded == 60
        assert handler.items == list(range(60))
        assert [len(batch) for batch in handler.batches] == [2] * 10 + [20, 20]
    check_jobs(path)


async def test_an_ordered_job_is_one_batch_at_a_time_over_processes(path):
    """The lane is closed for all of them."""
    async with (
        Process(path, "hold") as process,
        batcher(path, handler := Handler(), max_concurrency=2) as durable,
    ):
        assert await process.hear() == ["ready"]
        await durable.pause()
        job = await durable.enqueue_job(range(4), ordered=True, batch_size=2)
        await durable.resume()

        async def one_batch_is_out():
            claimed = (await durable.stats()).claimed
            assert claimed <= 2
            return claimed == 2 or handler.items

        await until(one_batch_is_out)  # either of them may have it
        process.tell()  # from now on it handles what it gets at once
        assert (await job.wait(60)).succeeded == 4
        process.tell()
    check_jobs(path)


async def test_an_ordered_job_stops_and_pauses_between_batches(path):
    """What closes its lane for another reason keeps it closed when the batch is over."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        job = await durable.enqueue_job(range(6), ordered=True, batch_size=2)
        await until(lambda: handler.batches)
        await job.pause()
        handler.free.set()
        assert await durable.submit(50) == 100
        await until(lambda: len(handler.batches) == 2)
        assert (await job.status()).succeeded == 2
        await job.resume()
        assert (await job.wait(20)).succeeded == 6
    check_jobs(path)


async def test_an_item_that_held_the_batch_up_is_cancelled(path):
    """Then nothing holds it up any more."""
    tries = 0

    async def flaky(items):
        nonlocal tries
        tries += 1
        return [ConnectionError("not now") if item == 1 else item for item in items]

    late = Retry(on=ConnectionError, backoff=Backoff(initial=600, maximum=600, jitter=0))
    async with batcher(path, flaky, retry=late) as durable:
        job = await durable.enqueue_job(range(4), ordered=True, batch_size=2)
        await until(lambda: rows(path, "SELECT scheduled FROM microbatch_queues") == [(1,)])
        (number,) = rows(path, "SELECT first_id FROM microbatch_ranges WHERE state = 1")[0]
        assert await durable.submit(7) == 7
        assert (await job.status()).done == 1
        await durable.cancel(number)
        status = await job.wait(20)
        assert (status.succeeded, status.cancelled) == (3, 1)
    check_jobs(path)


@pytest.mark.parametrize("batch_size", [None, 3])
async def test_an_ordered_job_keeps_its_order_over_partitions(path, batch_size):
    """A claim may bring items of several: they go one run after the other."""
    running = 0
    batches = []

    async def handler(items):
        nonlocal running
        running += 1
        assert running == 1
        batches.append(items)
        await asyncio.sleep(0.001)
        running -= 1
        return items

    async with batcher(
        path, handler, max_batch_size=4, max_concurrency=3, partition=lambda item: item // 5 % 2
    ) as durable:
        job = await durable.enqueue_job(range(22), ordered=True, batch_size=batch_size)
        status = await job.wait(20)
        assert status.succeeded == 22
        assert [item for batch in batches for item in batch] == list(range(22))
        assert all(len({item // 5 % 2 for item in batch}) == 1 for batch in batches)
        assert max(map(len, batches)) == (batch_size or 4)
        assert {o.attempts async for o in job.outcomes()} == {1}
    check_jobs(path)


async def test_an_ordered_job_is_claimed_a_call_at_a_time_over_partitions_too(path):
    """What is claimed beyond that would be decoded, parted and given back, again and again."""
    asked = 0

    def partition(item):
        nonlocal asked
        asked += 1
        return 0

    async with batcher(path, Handler(), max_batch_size=5, partition=partition) as durable:
        job = await durable.enqueue_job(range(100), ordered=True)
        assert (await job.wait(20)).succeeded == 100
    assert asked == 100


async def test_an_ordered_job_bears_a_partition_that_raises(path):
    """Those items fail alone, as everywhere; the others keep their order."""

    def partition(item):
        if item % 4 == 0:
            raise ValueError(item)

    handler = Handler()
    async with batcher(path, handler, partition=partition) as durable:
        job = await durable.enqueue_job(range(9), ordered=True)
        status = await job.wait(20)
        assert (status.succeeded, status.failed) == (6, 3)
        assert handler.items == [1, 2, 3, 5, 6, 7]
        assert (await (await durable.enqueue_job([0, 4], ordered=True)).wait(20)).failed == 2
    check_jobs(path)
