"""Whatever is cut short, by a close, a cancellation or a disk that hangs: nobody waits for ever, nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Self

import pytest
from durable_support import (
    Handler,
    NewThreads,
    batcher,
    check_counts,
    locked,
    rows,
    states,
    until,
    writer_of,
)
from jobs_support import check_jobs

from microbatch import BatcherClosed
from microbatch.durable import DurableQueue, QueueFull
from microbatch.durable._file.transactions import Transactions
from microbatch.durable._life.job_care import JobCare

pytestmark = pytest.mark.anyio


class Stop:
    """A thread that stands still, as if its disk did not answer."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.free = threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self.free.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free.set()


@contextlib.contextmanager
def writer_stops(durable):
    """The writer's thread stands still between two transactions."""
    with Stop() as stop:
        writer_of(durable).post(stop)
        yield stop


@pytest.fixture
def short_graces(monkeypatch):
    """Closing waits for a disk that hangs no longer than a moment."""
    monkeypatch.setattr("microbatch.durable._flow.service.CLOSE_GRACE", 0.05)
    monkeypatch.setattr("microbatch.durable._flow.consumer.SETTLE_GRACE", 0.05)
    monkeypatch.setattr("microbatch.durable._life.opening.START_GRACE", 0.05)


@pytest.fixture
def long_pause(monkeypatch):
    """What ended the program is not tried again here, however busy the machine is."""
    for module in ("settling", "verdicts"):
        monkeypatch.setattr(f"microbatch.durable._flow.{module}.FATAL_PAUSE", 600.0)


@pytest.fixture
def slow_opening(monkeypatch):
    """Connections that read stand still while they are opened."""
    opens = Transactions._open
    with Stop() as stop:

        async def stopped(self):
            stop()
            await opens(self)

        monkeypatch.setattr(Transactions, "_open", stopped)
        yield stop


@pytest.fixture
def nothing_stays(path):
    """No thread and no consumer is left, and the counts are right."""
    threads = NewThreads()

    async def check():
        await until(lambda: not threads.running(), 20)
        assert rows(path, "SELECT * FROM microbatch_consumers") == []
        check_counts(path)

    return check


async def reads(path, slow_opening):
    queue = DurableQueue(path, item_type=int)
    await queue.enqueue(1)
    reading = asyncio.ensure_future(queue.stats())
    await until(slow_opening.reached.is_set)
    return queue, reading


async def test_closing_while_a_reader_is_being_opened_leaves_none_open(
    path, slow_opening, nothing_stays
):
    """Its thread would stay until the queue is collected, if ever."""
    queue, reading = await reads(path, slow_opening)
    closing = asyncio.ensure_future(queue.aclose(0))
    await until(lambda: queue._service.store._readers.users == 0)
    slow_opening.free.set()
    await closing
    with pytest.raises(BatcherClosed):
        await asyncio.wait_for(reading, 20)
    await nothing_stays()


async def test_who_reads_from_a_disk_that_hangs_goes_on_when_the_queue_is_closed(
    path, slow_opening, short_graces, nothing_stays
):
    """Not only when the disk goes on, which may be never."""
    queue, reading = await reads(path, slow_opening)
    await queue.aclose(0)
    with pytest.raises(BatcherClosed):
        await asyncio.wait_for(reading, 20)
    slow_opening.free.set()
    await nothing_stays()


async def test_a_call_that_reads_on_after_the_close_opens_nothing_anew(path, nothing_stays):
    """Some calls read in many steps, and the close may come between two of them."""
    queue = DurableQueue(path, item_type=int)
    await queue.stats()
    service = queue._service
    await queue.aclose()
    with pytest.raises(BatcherClosed):
        await service.store.find([1])
    with pytest.raises(BatcherClosed):
        await service.store.jobs.statuses(["a job"])
    await nothing_stays()


async def test_who_waits_for_a_writer_that_hangs_goes_on_when_the_queue_is_closed(
    path, short_graces, nothing_stays
):
    """Whatever he asked for: he learns that nobody knows whether it is done."""
    queue = DurableQueue(path, item_type=int)
    await queue.enqueue(1)
    with writer_stops(queue):
        calls = [
            asyncio.ensure_future(call)
            for call in (queue.pause(), queue.requeue([1]), queue.enqueue_job([1]), queue.cancel(1))
        ]
        await until(lambda: len(queue._service.store._client._calls) == len(calls))
        await queue.aclose(0)
        for call in calls:
            with pytest.raises(BatcherClosed):
                await asyncio.wait_for(call, 20)
    await nothing_stays()
    check_jobs(path)


async def test_closing_while_it_is_being_opened_does_not_wait_for_a_disk_that_hangs(
    path, short_graces, nothing_stays
):
    """Nor does who opens it."""
    async with DurableQueue(path, item_type=int, queue="first") as first:
        second = DurableQueue(path, item_type=int)
        with writer_stops(first):
            opening = asyncio.ensure_future(second.enqueue(1))
            await until(second._opening._lock.locked)
            await asyncio.wait_for(second.aclose(0), 20)
            with pytest.raises(BatcherClosed):
                await asyncio.wait_for(opening, 20)

            third = DurableQueue(path, item_type=int)
            opening = asyncio.ensure_future(third.enqueue(1))
            await until(third._opening._lock.locked)
            closing = asyncio.ensure_future(third.aclose(None))
            await asyncio.sleep(0)
            closing.cancel()  # closes at once
            with pytest.raises(BatcherClosed):
                await asyncio.wait_for(opening, 20)
    await nothing_stays()


async def test_a_job_that_is_shown_after_its_caller_went_begins_all_the_same(path):
    """He was cancelled while the writer was at something else: nobody else would let it begin here."""
    async with batcher(path, Handler()) as durable:
        jobs, posted = durable._service.store.jobs, asyncio.Event()
        show, stop = jobs.show, Stop()

        async def shows(*arguments):
            writer_of(durable).post(stop)
            posted.set()
            await show(*arguments)

        jobs.show = shows
        with stop:
            call = asyncio.ensure_future(durable.enqueue_job([1, 2]))
            await posted.wait()
            await until(lambda: durable._service.store._client._calls)
            call.cancel()
            await asyncio.wait([call])
            for _ in range(3):
                await asyncio.sleep(0)
        await durable.requeue([])  # behind it
        [status] = (await durable.jobs()).jobs
        assert (await durable.job(status.id).wait(20)).outcome == "succeeded"


async def test_a_job_of_a_call_that_went_before_it_had_begun_frees_its_key(path):
    """Else the next call with this key would wait for the first one for ever."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        with writer_stops(queue):
            call = asyncio.ensure_future(queue.enqueue_job([1], key="a key"))
            await until(lambda: queue._service.store._client._calls)
            call.cancel()
            await asyncio.wait([call])
        job = await asyncio.wait_for(queue.enqueue_job([1, 2], key="a key"), 20)
        assert (await job.status()).total == 2
    check_jobs(path)


async def test_a_job_that_is_half_removed_when_the_queue_closes_is_removed_by_that(
    path, small_chunks, monkeypatch
):
    """Its items count for the next process's bounds until somebody looks."""
    monkeypatch.setattr("microbatch.durable._file.job_steps.STEP", 1)
    monkeypatch.setattr(JobCare, "due", lambda care, now: None)  # before it looks again
    async with DurableQueue(path, item_type=int) as queue:
        await queue.stats()
        client = queue._service.store._client
        calls = client.call

        async def late(*arguments, **settings):
            more = await calls(*arguments, **settings)
            if more is True and not client._parting:
                await until(lambda: client._parting)  # closing was faster
            return more

        async def items():
            for number in range(35):
                yield number
            client.call = late
            call.cancel()
            await asyncio.sleep(60)

        call = asyncio.ensure_future(queue.enqueue_job(items()))
        await asyncio.wait([call])
        await until(lambda: rows(path, "SELECT * FROM microbatch_jobs WHERE life = 5"))
    assert rows(path, "SELECT * FROM microbatch_jobs") == []
    assert states(path) == {}


async def test_an_ended_loop_lets_a_job_begin_that_it_had_brought_in(path, ended_loops):
    """Its call never came to its end, which is when the job may begin in this process."""
    async with batcher(path, Handler()) as durable:
        await durable.stats()

        def brings():
            queue = DurableQueue(path, item_type=int)

            async def bring():
                await queue.stats()
                queue._service.release_job_soon = lambda job: None  # as if the loop ended before
                return (await queue.enqueue_job([1])).id

            loop = asyncio.new_event_loop()
            try:
                return loop.run_until_complete(bring())
            finally:
                loop.close()

        uid = await asyncio.to_thread(brings)
        assert (await durable.job(uid).wait(20)).outcome == "succeeded"


async def test_a_consumer_is_registered_though_the_transaction_before_was_rolled_back(
    path, monkeypatch
):
    """What it stages would be nobody's: if this process died, nobody would ever remove it."""
    monkeypatch.setattr("microbatch.durable._life.neighbours.ALIVE_INTERVAL", 3600.0)
    monkeypatch.setattr("microbatch.durable._life.neighbours.IDLE_INTERVAL", 3600.0)
    monkeypatch.setattr("microbatch.durable._flow.many.HANDED_ITEMS", 10)
    async with DurableQueue(path, item_type=int, max_depth=15) as queue:
        ticket = (await queue.enqueue_many(range(8)))[0]
        with pytest.raises(QueueFull):
            await queue.enqueue_many(range(12))
        for number in range(8):
            await queue.cancel(ticket.id + number)
        consumers = []

        def items():
            for number in range(12):
                if number == 11:
                    consumers.extend(rows(path, "SELECT id FROM microbatch_consumers"))
                yield number

        assert len(await queue.enqueue_many(items())) == 12
        assert len(consumers) == 1
    check_counts(path)


async def test_claims_that_come_after_a_drain_was_cut_short_go_back_in_order(
    path, caplog, monkeypatch
):
    """Closing waits once more until no more of them can come."""
    monkeypatch.setattr("microbatch.durable._flow.consumer.SETTLE_GRACE", 60.0)
    monkeypatch.setattr("microbatch.durable._flow.service.CLOSE_GRACE", 60.0)
    handler = Handler()
    async with DurableQueue(path, item_type=int) as others:
        durable = batcher(path, handler)
        await durable.stats()
        await until(lambda: durable._service.store._client.want)
        with locked(path):
            coming = asyncio.ensure_future(others.enqueue(1))
            await until(lambda: writer_of(others).lock_waits)
            closing = asyncio.ensure_future(durable.aclose(0))
            await asyncio.sleep(0.1)  # however far it comes
        await closing
        await coming
    assert handler.batches == []
    assert "dropped" not in caplog.text
    assert rows(path, "SELECT state, attempts FROM microbatch_items") == [("ready", 0)]


async def test_closing_goes_to_its_end_though_somebody_cancels_all_tasks(path, nothing_stays):
    """As `asyncio.run` does, and some servers: before its first step, and at each later one."""
    handler = Handler()
    handler.hold()
    for turns in range(12):
        handler.batches.clear()
        durable = batcher(path, handler)
        await durable.enqueue(1)
        await until(lambda: handler.batches)
        closing = asyncio.ensure_future(durable.aclose(0))
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_name().endswith("closing"):
                task.cancel()
        await asyncio.wait([closing])
        await nothing_stays()
        assert set(states(path).values()) == {"ready"}


@pytest.mark.parametrize("steps", [0, 1])
async def test_who_waits_is_told_though_somebody_cancels_the_tasks_that_look(path, steps):
    """A cancelled task may not even have begun: the next one does its work."""
    handler = Handler()
    async with batcher(path, handler) as durable, DurableQueue(path, item_type=int) as queue:
        job = await durable.enqueue_job([1])
        await job.wait(20)
        waiting = asyncio.ensure_future(queue.job(job.id).wait())
        watching = queue._service.watching
        while watching.wanted.looking is None:  # noqa: ASYNC110 - it looks for a few turns only
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        watching.wanted.looking.task.cancel()
        assert (await asyncio.wait_for(waiting, 20)).outcome == "succeeded"

        handler.hold()
        ticket = await durable.enqueue(1)
        waiting = asyncio.ensure_future(queue.result(ticket))
        await until(lambda: queue._service.callers and not queue._service.lookups.stats().pending)
        handler.free.set()
        await until(lambda: states(path)[ticket.id] == "done")
        service = queue._service
        service._wanted.ask([ticket.id])
        for _ in range(steps):
            await asyncio.sleep(0)
        service._wanted.looking.task.cancel()
        assert await asyncio.wait_for(waiting, 20) == 2


@pytest.mark.parametrize("begun", [False, True])
async def test_effects_happen_once_though_somebody_cancels_their_task(path, begun):
    """Who waits for the result would wait for ever, and closing as long as it may."""
    inside, done = asyncio.Event(), []

    async def on_settle(connection, items, results):
        inside.set()
        if begun and not done:
            done.append(0)
            await asyncio.sleep(60)
        done.extend(items)

    async with batcher(path, Handler(), on_settle=on_settle) as durable:
        settling = durable._service.consumer.settling
        spawn, spawned = settling._spawn, asyncio.Event()

        def spawns(*arguments):
            task = spawn(*arguments)
            if not begun and not spawned.is_set():
                task.task.cancel()
            spawned.set()
            return task

        settling._spawn = spawns
        result = asyncio.ensure_future(durable.submit(1))
        if begun:
            await inside.wait()
            settling._task.task.cancel()
        assert await asyncio.wait_for(result, 20) == 2
        assert done[-1:] == [1]
    check_counts(path)


async def test_system_exit_in_on_settle_fails_its_items_and_closes_soon(path, caplog, long_pause):
    """As in a handler: closing must not wait for outcomes that nobody brings."""

    async def on_settle(connection, items, results):
        raise SystemExit(3)

    async def main():
        async with batcher(path, Handler(), on_settle=on_settle) as durable:
            await durable.submit(1)

    with pytest.raises(SystemExit):
        await asyncio.to_thread(lambda: asyncio.run(main()))
    assert set(states(path).values()) == {"scheduled"}
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    caplog.clear()  # that it ended the task was told


async def test_an_on_settle_that_would_end_the_program_again_lets_it_close(
    path, caplog, long_pause
):
    """It must not be called again while the queue closes: that would cut the closing off."""
    calls = []

    def program():
        inside = asyncio.Event()

        async def handle(items):
            if items != [1]:
                await inside.wait()
            return items

        async def on_settle(connection, items, results):
            calls.append(items)
            inside.set()
            settling = durable._service.consumer.settling
            await until(lambda: settling._effects or len(calls) > 1)
            raise SystemExit(3)

        settings = {"max_batch_size": 1, "max_concurrency": 3, "on_settle": on_settle}
        durable = batcher(path, handle, **settings)

        async def main():
            async with durable:
                await durable.enqueue_many([1, 2, 3])
                await asyncio.sleep(60)

        asyncio.run(main())

    with pytest.raises(SystemExit):
        await asyncio.to_thread(program)
    assert len(calls) == 1
    assert "ended without aclose()" not in caplog.text
    assert rows(path, "SELECT * FROM microbatch_consumers") == []
    check_counts(path)
    caplog.clear()  # that it ended the task was told
