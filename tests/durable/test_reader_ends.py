"""The end of a connection beside the writer's, whatever comes before it: nothing is left, and nobody waits."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time

import anyio
import anyio.to_thread
import pytest
from durable_support import LOOPS, NewThreads, until
from presence_support import in_child
from reader_support import Gate, count, insert, is_free, make_file, query, watched
from support import backend_options, run

from microbatch.durable import QueueUnavailable
from microbatch.durable._file import host, transactions
from microbatch.durable._file.guarded import Guarded
from microbatch.durable._file.reader import AsyncConnection

in_a_loop = pytest.mark.anyio
on_both = pytest.mark.parametrize("backend_name", LOOPS, indirect=True)
for_both = pytest.mark.parametrize("loop", LOOPS)


def new_loop(name):
    options = backend_options(name, real_time=True)[1]
    return options.get("loop_factory", asyncio.new_event_loop)()


def wait_for_end(threads):
    for thread in threads.running():
        thread.join(20)
    assert threads.running() == []


@in_a_loop
@on_both
async def test_nothing_is_left_once_it_is_closed(path, monkeypatch):
    """Neither a thread nor a lock, nor the connection; and to close it again does nothing."""
    monkeypatch.setattr(transactions, "GRACE", 60)  # a slow machine is no disk that hangs
    make_file(path)
    threads = NewThreads()
    connections = [
        await AsyncConnection.open(path, read_only=read_only) for read_only in (True, False)
    ]
    for one in connections:
        await one.run(count())
        await one.close()
        await one.close()
        one.stop()
        with pytest.raises(QueueUnavailable, match="ended meanwhile"):
            await one.run(count())
    assert threads.running() == []
    assert not path.with_name("queue.db-wal").exists()  # the last one to close removes it


@in_a_loop
async def test_a_connection_whose_disk_closes_it_late_is_closed_in_silence(path, monkeypatch):
    """Nobody waits for it any more, and nothing of it stays: neither its thread nor a traceback."""
    monkeypatch.setattr(transactions, "GRACE", 0.05)
    told, free, closed = [], threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "excepthook", told.append)

    class Late(Guarded):
        def close(self):
            assert free.wait(60)
            super().close()
            closed.set()

    make_file(path)
    threads = NewThreads()
    connection = await AsyncConnection.open(path, read_only=True, factory=Late)
    await connection.close()
    assert not closed.is_set()
    free.set()
    await until(lambda: threads.running() == [])
    assert closed.is_set()
    assert told == []


@in_a_loop
@on_both
async def test_closing_waits_for_what_is_under_way_and_what_waits(path):
    """Who called before it is answered."""
    make_file(path)
    gate = Gate()
    connection = await AsyncConnection.open(path, read_only=False)
    first = asyncio.ensure_future(connection.run(gate.steps(1)))
    second = asyncio.ensure_future(connection.run(insert(2, 3)))
    assert await anyio.to_thread.run_sync(gate.reached.wait, 20)
    closing = asyncio.ensure_future(connection.close())
    await asyncio.sleep(0)
    assert connection.ended
    gate.open.set()
    await closing
    assert (await first, await second) == (1, 2)


@in_a_loop
@on_both
async def test_a_cancelled_close_ends_it_at_once(path, monkeypatch):
    """What waits for the file's lock is not waited for, and hears that."""
    make_file(path)
    threads = NewThreads()
    holder = await AsyncConnection.open(path, read_only=False)
    connection = await AsyncConnection.open(path, read_only=False)
    gate = Gate()
    holding = asyncio.ensure_future(holder.run(gate.steps(1)))
    assert await anyio.to_thread.run_sync(gate.reached.wait, 20)
    running = asyncio.ensure_future(connection.run(insert(2)))
    waiting = asyncio.ensure_future(connection.run(insert(3)))
    await until(lambda: connection.lock_waits)
    with anyio.move_on_after(0.01) as scope:
        await connection.close()
    assert scope.cancelled_caught
    for one in (running, waiting):
        with pytest.raises(QueueUnavailable, match="ended meanwhile"):
            await one
    gate.open.set()
    assert await holding == 1
    await holder.close()
    await until(lambda: threads.running() == [])


@pytest.mark.parametrize("native", [False, True], ids=["scope", "task"])
@in_a_loop
@on_both
async def test_an_opening_that_is_cancelled_leaves_nothing_open(path, native):
    """aiosqlite forgets what it was opening, and never closes it."""
    make_file(path)
    threads = NewThreads()
    connection = watched()
    if native:
        task = asyncio.ensure_future(AsyncConnection.open(path, factory=connection, read_only=True))
        assert await anyio.to_thread.run_sync(connection.opening.wait, 20)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    else:
        async with anyio.create_task_group() as tasks:

            async def opening():
                await AsyncConnection.open(path, factory=connection, read_only=True)

            tasks.start_soon(opening)
            assert await anyio.to_thread.run_sync(connection.opening.wait, 20)
            tasks.cancel_scope.cancel()
    assert not connection.closed.is_set()
    connection.may_open.set()
    await until(lambda: threads.running() == [])
    assert connection.closed.is_set()


@in_a_loop
@on_both
async def test_one_that_is_dropped_ends_by_itself(path):
    """Nobody is left to close it."""
    make_file(path)
    threads = NewThreads()
    connection = await AsyncConnection.open(path, read_only=True)
    assert await connection.run(count()) == 0
    del connection
    gc.collect()
    await until(lambda: threads.running() == [])


@for_both
def test_an_event_loop_that_ends_leaves_the_rest_to_whoever_stops_it(path, loop):
    """Its answer is for nobody then, and no traceback of a thread's is worth reading."""
    make_file(path)
    threads = NewThreads()
    gate = Gate()
    opened = []

    async def main():
        opened.append(await AsyncConnection.open(path, read_only=False))
        opened.append(asyncio.ensure_future(opened[0].run(gate.steps(1))))
        assert await anyio.to_thread.run_sync(gate.reached.wait, 20)

    run(loop, main, real_time=True)
    connection, running = opened
    assert running.cancelled()
    gate.open.set()
    assert gate.closed.wait(20)
    connection.stop()
    wait_for_end(threads)
    assert is_free(path)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@for_both
def test_an_event_loop_that_is_closed_without_a_word_leaves_no_transaction_open(path, loop):
    """Some frameworks do. Whoever drops the connection then ends it, too."""
    make_file(path)
    threads = NewThreads()
    gate = Gate()
    event_loop = new_loop(loop)
    opened = []

    async def main():
        connection = await AsyncConnection.open(path, read_only=False)
        opened.append(asyncio.ensure_future(connection.run(gate.steps(1))))
        assert await anyio.to_thread.run_sync(gate.reached.wait, 20)

    event_loop.run_until_complete(main())
    event_loop.run_until_complete(event_loop.shutdown_default_executor())
    opened[0]._log_destroy_pending = False
    event_loop.close()
    gate.open.set()
    assert gate.closed.wait(20)
    opened.clear()
    ends = time.monotonic() + 20
    while threads.running() and time.monotonic() < ends:
        gc.collect()  # the answer, which is on its way still, holds the task

    assert threads.running() == []
    assert is_free(path)


@pytest.mark.parametrize("under_way", ["nothing", "a read", "a settle"])
@for_both
def test_one_that_is_never_closed_keeps_no_program_from_exiting(path, loop, under_way):
    """aiosqlite's own thread would, for ever."""
    make_file(path)
    program = f"""
import asyncio, pathlib, sys, threading
sys.path[:0] = ['tests', 'tests/durable']
from reader_support import Gate, insert
from support import backend_options
from microbatch.durable._file.reader import AsyncConnection

async def main():
    connection = await AsyncConnection.open(pathlib.Path(sys.argv[1]), read_only=False)
    gate = Gate()
    if {under_way!r} == 'a read':
        asyncio.ensure_future(connection.run(gate.steps()))
        await asyncio.to_thread(gate.reached.wait, 20)
    elif {under_way!r} == 'a settle':
        inside = asyncio.Event()
        async def settle(connection, result):
            await connection.execute('INSERT INTO numbers VALUES (2)')
            inside.set()
            await asyncio.sleep(60)
        task = asyncio.ensure_future(connection.around(insert(1), settle, timeout=60))
        await inside.wait()
    else:
        await connection.run(insert(1))
    print('done', flush=True)
    globals().update(kept=locals())

loop = backend_options({loop!r}, real_time=True)[1].get('loop_factory', asyncio.new_event_loop)()
asyncio.set_event_loop(loop)
loop.run_until_complete(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0)
    assert "Traceback" not in done.stderr
    assert is_free(path)


@in_a_loop
async def test_a_forked_child_stops_nothing(path):
    """It has none of the threads, and shares the descriptors that wake them."""
    make_file(path)
    connection = await AsyncConnection.open(path, read_only=True)
    told = []
    connection._host.tell = told.append

    def child():
        connection.stop()
        return told == [] and not connection.ended

    assert in_child(child)
    connection._host._process += 1  # as it is in a child
    connection.stop()
    connection._host._process -= 1
    assert told == []
    assert not connection.ended
    del connection._host.tell
    assert await connection.run(count()) == 0
    await connection.close()


@in_a_loop
async def test_a_thread_that_hangs_is_left_to_close_its_own_connection(path, monkeypatch):
    """The disk does not answer: nobody waits for it, and nobody closes what it is using."""
    make_file(path)
    monkeypatch.setattr(transactions, "GRACE", 0.05)
    monkeypatch.setattr(threading, "excepthook", lambda said: None)
    begun, answers = threading.Event(), threading.Event()
    connection = await AsyncConnection.open(path, read_only=True)

    def hang():
        begun.set()
        return answers.wait(20)

    await connection._host.transactions.connection.create_function("hang", 0, hang)
    running = asyncio.ensure_future(connection.run(query("SELECT hang()")))
    assert await anyio.to_thread.run_sync(begun.wait, 20)
    worker = connection._host.transactions.worker
    connection.stop()
    with pytest.raises(QueueUnavailable, match="ended meanwhile"):
        await running
    await connection.close()
    assert worker.is_alive()
    answers.set()
    worker.join(20)
    assert not worker.is_alive()


@in_a_loop
async def test_a_system_without_threads_is_named(path, monkeypatch):
    """Neither ours nor aiosqlite's."""
    make_file(path)
    threads = NewThreads()

    def refuse(thread, start=threading.Thread.start):
        if refused in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    refused = "microbatch beside"
    with pytest.raises(QueueUnavailable, match="no thread for it: can't start new thread"):
        await AsyncConnection.open(path, read_only=True)
    refused = "_connection_worker_thread"
    with pytest.raises(QueueUnavailable, match="cannot be opened: can't start new thread"):
        await AsyncConnection.open(path, read_only=True)
    monkeypatch.undo()
    await until(lambda: threads.running() == [])


@in_a_loop
async def test_a_system_without_an_event_loop_is_named(path, monkeypatch):
    """It may be out of descriptors."""

    def refuse(*arguments, **settings):
        raise OSError("Too many open files")

    monkeypatch.setattr(host.anyio, "run", refuse)
    with pytest.raises(QueueUnavailable, match="no event loop for it: Too many open files"):
        await AsyncConnection.open(path, read_only=True)


@pytest.mark.asyncio_logs
@in_a_loop
async def test_what_ends_the_thread_ends_who_waits_for_it(path, monkeypatch):
    """A bug, or an exit in somebody's generator: no caller may hang, and no transaction stay open."""
    make_file(path)
    threads = NewThreads()
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def exits():
        yield from insert(1)
        raise SystemExit

    connection = await AsyncConnection.open(path, read_only=False)
    with pytest.raises(QueueUnavailable, match="ended meanwhile"):
        await connection.run(exits())
    await until(lambda: threads.running() == [])
    assert connection.ended
    assert is_free(path)
