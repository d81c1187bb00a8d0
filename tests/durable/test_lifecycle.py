# ruff: noqa: ASYNC222, PTH112, PTH208 - a forked child is waited for, /proc is looked at
"""Opening, closing, event loops, forks, and cancellation at every await."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import warnings

import anyio
import pytest
from durable_support import (
    Handler,
    NewThreads,
    batcher,
    check_counts,
    ends_loops,
    rows,
    states,
    until,
)
from support import run, scaled

from microbatch import BatcherClosed
from microbatch.durable import DurableBatcher, DurableQueue, QueueUnavailable

in_a_loop = pytest.mark.anyio


def test_it_says_at_once_that_it_needs_asyncio(path):
    """aiosqlite would fail with something about event loops."""

    async def main():
        with pytest.raises(RuntimeError, match="the durable mode needs asyncio: aiosqlite"):
            async with DurableQueue(path, item_type=int):
                pass
        with pytest.raises(RuntimeError, match="the durable mode needs asyncio"):
            await batcher(path, Handler()).submit(1)

    run("trio", main, real_time=True)
    assert not path.exists()


@in_a_loop
async def test_the_first_call_opens_it(path):
    """No set-up is needed, and calls at the same time open it once."""
    durable = batcher(path, Handler())
    assert "new" in repr(durable)
    assert await asyncio.gather(*(durable.submit(n) for n in range(5))) == [0, 2, 4, 6, 8]
    assert len(rows(path, "SELECT * FROM microbatch_consumers")) == 1
    await durable.aclose()
    assert "closed" in repr(durable)


@in_a_loop
async def test_after_closing_every_call_says_so(path):
    """And closing again is harmless, from several tasks too."""
    durable = batcher(path, Handler())
    await durable.submit(1)
    await asyncio.gather(*(durable.aclose() for _ in range(3)))
    await durable.aclose()
    for call, *arguments in (
        (durable.submit, 1),
        (durable.enqueue, 1),
        (durable.enqueue_many, [1]),
        (durable.result, 1),
        (durable.cancel, 1),
        (durable.stats,),
        (durable.pause,),
        (durable.resume,),
        (durable.dead_letters,),
        (durable.requeue, [1]),
        (durable.purge, [1]),
        (durable.__aenter__,),
    ):
        with pytest.raises(BatcherClosed):
            await call(*arguments)


@in_a_loop
async def test_closing_before_the_first_call(path):
    """There is nothing to close, and nothing is made."""
    durable = batcher(path, Handler())
    await durable.aclose()
    with pytest.raises(BatcherClosed):
        await durable.submit(1)
    assert not path.exists()


@in_a_loop
async def test_who_waits_for_a_result_is_told_when_it_closes(path):
    """The item stays."""
    async with DurableQueue(path, item_type=int) as queue:
        ticket = await queue.enqueue(1)

        async def wait():
            with pytest.raises(BatcherClosed):
                await queue.result(ticket)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.05)
            await queue.aclose()
    assert states(path) == {1: "ready"}


@in_a_loop
async def test_closing_leaves_no_thread_and_no_task(path):
    """aiosqlite's hazards end here."""
    before, threads = len(asyncio.all_tasks()), NewThreads()
    async with batcher(path, Handler()) as durable:
        await durable.submit(1)
    assert len(asyncio.all_tasks()) == before
    await until(lambda: not threads.running())
    assert sorted(p.name for p in path.parent.iterdir()) == ["queue.db", "queue.db-alive"]


@ends_loops
def test_one_object_serves_one_loop_after_the_other(path):
    """asyncio.run twice, with a close that never happened: the items go on."""
    handler = Handler()
    durable = batcher(path, handler)

    async def first():
        handler.hold()
        ticket = await durable.enqueue(1)
        await until(lambda: handler.batches)
        return ticket

    ticket = asyncio.run(first())
    gc.collect()

    async def second():
        handler.free = anyio.Event()
        handler.free.set()
        assert await durable.result(ticket, 20) == 2
        await durable.aclose()

    asyncio.run(second())
    assert handler.batches in ([[1]] * 2, [[1]] * 3)  # the first loop began it anew as it ended
    check_counts(path)


@ends_loops
def test_another_object_takes_over_from_an_ended_loop(path):
    """The process still holds the lock: its consumers are told apart in memory.

    Nothing of the first one is left running, though nobody closed it.
    """
    handler = Handler()
    handler.hold()
    dead = batcher(path, handler)

    async def first():
        await dead.enqueue(1)
        await until(lambda: handler.batches)

    asyncio.run(first())

    async def second():
        async with batcher(path, Handler()) as durable:
            assert await durable.result(1, 20) == 2

    asyncio.run(second())


@in_a_loop
async def test_another_loop_that_lives_is_refused(path):
    """One queue for each loop."""
    async with DurableQueue(path, item_type=int) as queue:

        def other():
            async def main():
                with pytest.raises(
                    RuntimeError, match="serves another event loop that is still alive"
                ):
                    await queue.enqueue(1)

            asyncio.run(main())

        await anyio.to_thread.run_sync(other)
        await queue.enqueue(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@in_a_loop
async def test_a_forked_child_may_not_use_it(path):
    """Every call raises before it touches the parent's descriptors."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            try:
                calls = [
                    durable.submit(1), durable.enqueue(1), durable.stats(), durable.result(1), durable.aclose(), durable.pause()
                ]  # fmt: skip
                for call in calls:
                    with pytest.raises(
                        RuntimeError, match="belongs to another process, which forked this one"
                    ):
                        call.send(None)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await durable.submit(2) == 4
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


CALLS = {
    "open": lambda durable: durable.__aenter__(),
    "submit": lambda durable: durable.submit(5),
    "enqueue": lambda durable: durable.enqueue(5),
    "enqueue_many": lambda durable: durable.enqueue_many([5, 6]),
    "result": lambda durable: durable.result(1),
    "cancel": lambda durable: durable.cancel(1),
    "stats": lambda durable: durable.stats(),
    "pause": lambda durable: durable.pause(),
    "dead_letters": lambda durable: durable.dead_letters(),
    "requeue": lambda durable: durable.requeue([1]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("native", [False, True], ids=["scope", "task"])
@in_a_loop
async def test_cancellation_at_every_await_leaves_no_transaction_open(path, name, native):
    """Another process could not write for ever; and the queue goes on working."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
    durable = batcher(path, Handler())
    if name != "open":
        await durable.stats()
    steps = 0
    while steps < 30:
        if name == "open":
            durable = batcher(path, Handler())
        cancelled = await (cancel_task if native else cancel_scope)(CALLS[name](durable), steps)
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)  # the disk may be busy
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        connection.close()
        if name == "open":
            await durable.aclose()
        if not cancelled:
            break
        steps += 1 if steps < 3 else 4
    if name == "open":
        durable = batcher(path, Handler())
    async with durable:
        await durable.resume()
        assert await durable.submit(7) == 14
    check_counts(path)
    gc.collect()


async def cancel_task(call, steps):
    """Cancel a call's own task after so many turns of the loop; return whether it came to that."""
    task = asyncio.ensure_future(call)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


async def cancel_scope(call, steps):
    """The same by a scope, which cancels again and again until it is left."""
    ended = []

    async def run():
        await call
        ended.append(True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    return not ended


@ends_loops
def test_a_dropped_worker_holds_no_items_for_ever(path):
    """Nobody closed it and nobody has it any more: it goes on while its loop lives, and no longer."""
    handler = Handler()

    async def first():
        await batcher(path, handler).submit(1)
        gc.collect()
        async with DurableQueue(path, item_type=int, result_type=int) as queue:
            assert await queue.submit(2) == 4
            handler.hold()
            ticket = await queue.enqueue(3)
            await until(lambda: handler.batches[2:])
            return ticket

    ticket = asyncio.run(first())

    async def second():
        async with batcher(path, Handler()) as durable:
            assert await durable.result(ticket, 20) == 6

    asyncio.run(second())


@in_a_loop
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not tell")
async def test_many_queues_leave_no_descriptors(path):
    """The lock file is closed when nobody in the process holds anything in it."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with batcher(path, Handler()) as durable:
            await durable.submit(1)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


@in_a_loop
@pytest.mark.parametrize("bound", [{"keep_done": 10}, {"result_ttl": 0}], ids=["count", "age"])
async def test_retention_keeps_the_file_small(path, bound):
    """What is done goes away, by count and by age, without anybody asking, and its pages are used again."""
    used, size = await _sizes_after_rounds(path, 6, bound)
    # An item is a kilobyte, a round 300 of them; what is kept is ten at most.
    assert max(used) - min(used) < 100_000, used
    assert size[-1] - size[0] < 300_000, size


@in_a_loop
@pytest.mark.soak
async def test_retention_keeps_the_file_small_for_a_long_time(path):
    """The same at length: 60,000 items of a kilobyte, ten kept."""
    used, size = await _sizes_after_rounds(path, scaled(200), {"keep_done": 10})
    assert max(used) - min(used) < 100_000, used
    assert max(size) - size[0] < 600_000, size


async def _sizes_after_rounds(path, rounds, bound):
    """Handle 300 items of a kilobyte a round; return after each the bytes in use and the file's."""

    async def handler(items):
        return [len(item) for item in items]

    kept = bound.get("keep_done", 0)
    used, size = [], []
    for _ in range(rounds):  # closing brings the log into the file
        async with batcher(path, handler, item_type=bytes, **bound) as durable:
            await asyncio.gather(*(durable.submit(bytes(1000)) for _ in range(300)))
            await until(lambda: _done(durable, kept))
            used.append((await durable.stats()).file_bytes)
        size.append(path.stat().st_size)
        check_counts(path)
    return used, size


async def _done(durable, count):
    return (await durable.stats()).done == count


@in_a_loop
async def test_errors_name_the_file(path):
    """Somebody reads them in a log, far away."""
    path.mkdir()
    with pytest.raises(QueueUnavailable) as caught:
        await DurableQueue(path, item_type=int).stats()
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_depth": 0}, ValueError, "max_depth must be at least 1, got 0"),
        ({"max_file_bytes": 0}, ValueError, "max_file_bytes must be at least 1, got 0"),
        ({"key_ttl": -1}, ValueError, "key_ttl must be at least 0, got -1"),
        ({"result_ttl": -1}, ValueError, "result_ttl must be at least 0, got -1"),
        ({"keep_dead": -1}, ValueError, "keep_dead must be at least 0, got -1"),
        ({"keep_done": 1.5}, TypeError, "keep_done must be an int, got 1.5"),
        ({"poll_interval": 0}, ValueError, "poll_interval must be greater than 0, got 0"),
        (
            {"synchronous": "off"},
            ValueError,
            "synchronous must be 'full', 'extra' or 'normal', got 'off'",
        ),
        (
            {"queue": "a\ud800"},
            ValueError,
            "queue must not have lone surrogates, which have no UTF-8 form, got 'a\\ud800'",
        ),
        ({"queue": ""}, TypeError, "queue must be a str that is not empty, got ''"),
        ({"name": 5}, TypeError, "name must be a str that is not empty, got 5"),
        ({"retry": 3}, TypeError, "retry must be a Retry or None, got 3"),
        ({"partition": 3}, TypeError, "partition must be a function or None, got 3"),
        ({"on_settle": 3}, TypeError, "on_settle must be a function or None, got 3"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size must be at least 1, got 0"),
        ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1, got 0"),
        (
            {"item_type": list[int] | set[int]},
            TypeError,
            "item_type must be a type that msgspec can decode",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(path, settings, error, message):
    """In the constructor, with the rule and the value."""
    with pytest.raises(error) as caught:
        DurableBatcher(path, Handler(), **{"item_type": int} | settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (":memory:", "a queue in memory would not be durable: in tests, use a file"),
        ("file:queue.db?mode=rwc", "give the path itself, not a URI"),
        ("queue\0.db", "it has a NUL in it"),
    ],
)
def test_a_path_that_is_none_is_refused_by_name(place, reason):
    """In the constructor; SQLite would make a file of that name, or lose all of it at the end."""
    with pytest.raises(ValueError, match="path must name a file, got") as caught:
        DurableBatcher(place, Handler(), item_type=int)
    assert reason in str(caught.value)


@in_a_loop
async def test_a_result_that_does_not_come_says_what_was_waited_for(path):
    """An empty TimeoutError in a log tells nobody anything."""
    async with DurableQueue(path, item_type=int) as queue:
        await queue.enqueue(1)
        with pytest.raises(TimeoutError, match=r"^item 1 has not ended within 0\.05 s$"):
            await queue.result(1, timeout=0.05)
        assert not queue._service.callers


@in_a_loop
async def test_with_no_time_at_all_there_is_one_look(path):
    """Whether something has ended is asked without waiting for it."""
    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job([1])
        ticket = await durable.enqueue(2)
        await job.wait()
        assert await durable.result(ticket) == 4
        assert await durable.result(ticket, timeout=0) == 4
        assert (await job.wait(timeout=0)).succeeded == 1
        await durable.pause()
        ticket = await durable.enqueue(3)
        with pytest.raises(TimeoutError, match="has not ended within 0 s"):
            await durable.result(ticket, timeout=0)
        with pytest.raises(TimeoutError, match="has not ended within 0 s"):
            await (await durable.enqueue_job([4])).wait(timeout=0)
        assert not durable._service.callers
        await durable.resume()


@in_a_loop
async def test_what_gives_something_else_than_items_is_no_source(path):
    """A text would be stored letter by letter."""
    async with DurableQueue(path, item_type=str) as queue:
        for call in (queue.enqueue_job, queue.enqueue_many):
            for source, gives in (("hello", "characters"), ({"a": 1}, "keys"), (b"ab", "bytes")):
                with pytest.raises(TypeError, match=f"^items must be .* which gives its {gives}$"):
                    await call(source)
            with pytest.raises(TypeError, match=r"^items must be an iterable .*, got 5$"):
                await call(5)
        assert (await queue.stats()).depth == 0


@in_a_loop
async def test_bad_arguments_are_refused_by_name(path):
    """Before anything is stored."""
    async with DurableQueue(path, item_type=int) as queue:
        for arguments, error, message in (
            ({"priority": 1.5}, TypeError, "priority must be an int, got 1.5"),
            ({"priority": False}, TypeError, "priority must be an int, got False"),
            ({"priority": 2**63}, ValueError, "priority must fit into 64 bits"),
            ({"delay": -1}, ValueError, "delay must be at least 0, got -1"),
        ):
            with pytest.raises(error, match=message):
                await queue.enqueue(1, **arguments)
        for call, error, message in (
            (lambda: queue.result("x"), TypeError, "ticket must be a Ticket or an id, got str"),
            (lambda: queue.result(1, -1), ValueError, "timeout must be at least 0"),
            (lambda: queue.dead_letters(limit=0), ValueError, "limit must be at least 1"),
            (lambda: queue.dead_letters(limit=10_001), ValueError, "limit must be at most 10000"),
            (lambda: queue.dead_letters(-1), ValueError, "cursor must be at least 0"),
            (lambda: queue.aclose(-1), ValueError, "drain_timeout must be at least 0"),
        ):
            with pytest.raises(error, match=message):
                await call()
        assert await queue.enqueue_many([]) == []
        assert (await queue.stats()).depth == 0
