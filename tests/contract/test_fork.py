"""In a forked child a batcher starts empty: the parent's items are the parent's."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support import Gate, Recorder, counted, outcomes, run, turns

from microbatch import Batcher

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here"),
    pytest.mark.filterwarnings(
        "ignore:.*fork.*:DeprecationWarning"
    ),  # threads and fork: that is the point
    pytest.mark.filterwarnings(
        "ignore:It looks like Trio:RuntimeWarning"
    ),  # trio in a child of trio
    pytest.mark.timeout(180),
]


def in_child(work: Any) -> str:
    """Fork, run ``work()`` in the child and return the text that it returned, or how it failed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, str(work()).encode())
            status = 0
        except BaseException as error:
            os.write(writing, repr(error).encode()[:4000])
        finally:
            os._exit(status)
    os.close(writing)
    text = b""
    ends = time.monotonic() + 60
    try:
        while select.select([reading], [], [], max(0.0, ends - time.monotonic()))[0]:
            part = os.read(reading, 65536)
            if not part:
                break
            text += part
        else:
            os.kill(child, signal.SIGKILL)
            text += b" and then it hung"
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    return text.decode()


def test_a_child_of_a_busy_parent_starts_empty(backend_name: str) -> None:
    """Buffered, in flight and waiting for room in the parent: none of it is the child's, and all of it comes home."""
    handler = Gate()
    batcher = Batcher(handler, max_pending=4, max_batch_size=2, max_wait=0.1)

    async def use_in_child() -> str:
        stats = counted(batcher)
        before = (stats.pending, stats.buffered, stats.in_flight, stats.waiting)
        handler.batches.clear()
        handler.opened = anyio.Event()
        handler.opened.set()
        results = await outcomes(*(batcher.submit(item) for item in (7, 8, 9)))
        await batcher.aclose()
        return f"{before} {results} {sorted(item for batch in handler.batches for item in batch)}"

    def child() -> str:
        return str(run(backend_name, use_in_child, real_time=True))

    async def parent() -> Any:
        results: list[Any] = []

        async def call(item: int) -> None:
            results.append(await batcher.submit(item))

        async with batcher, anyio.create_task_group() as tasks:
            for item in range(6):
                tasks.start_soon(call, item)
            await turns()
            assert counted(batcher).waiting == 2
            # From a worker thread, so that the child has no event loop in its only thread.
            said = await anyio.to_thread.run_sync(in_child, child)
            handler.opened.set()
        return said, sorted(results)

    said, results = run(backend_name, parent, real_time=True)
    assert said == "(0, 0, 0, 0) [70, 80, 90] [7, 8, 9]"
    assert results == [0, 10, 20, 30, 40, 50]
    assert counted(batcher).pending == 0


def test_a_child_may_use_a_batcher_whose_loop_lives_in_the_parent(backend_name: str) -> None:
    """Its first loop is not "a second one": the parent's is out of reach."""
    batcher = Batcher(Recorder())

    async def parent() -> str:
        assert await batcher.submit(1) == 10
        return await anyio.to_thread.run_sync(
            in_child, lambda: run(backend_name, batcher.submit_many, [2, 3], real_time=True)
        )

    assert run(backend_name, parent, real_time=True) == "[20, 30]"


def test_a_child_of_a_prefork_server_uses_the_module_level_batcher(backend_name: str) -> None:
    """gunicorn --preload: made in the parent, first used in each child."""
    batcher = Batcher(Recorder(), name="preloaded")
    for _ in range(2):
        assert in_child(lambda: run(backend_name, batcher.submit, 4, real_time=True)) == "40"
    assert run(backend_name, batcher.submit, 5, real_time=True) == 50


def test_plain_handlers_run_in_the_childs_own_threads(backend_name: str) -> None:
    """The parent's worker threads do not exist in the child: a pool kept across the fork would hang it."""

    def handler(items: list[int]) -> list[int]:
        assert threading.current_thread() is not threading.main_thread()
        return [os.getpid() for _ in items]

    batcher = Batcher(handler)
    assert run(backend_name, batcher.submit, 1, real_time=True) == os.getpid()
    said = in_child(lambda: run(backend_name, batcher.submit, 1, real_time=True) == os.getpid())
    assert said == "True"


def test_a_batcher_closed_in_the_parent_is_open_in_the_child() -> None:
    """Closing belongs to the loop that was served, and that one is the parent's."""
    batcher = Batcher(Recorder(), name="gone")

    async def use() -> None:
        await batcher.submit(1)
        await batcher.aclose()

    run("asyncio", use)
    assert in_child(lambda: run("asyncio", batcher.submit, 2, real_time=True)) == "20"


def test_importing_microbatch_starts_nothing() -> None:
    """No thread, no loop, no descriptor that a fork could break."""
    code = (
        "import os, threading\n"
        "before = set(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else set()\n"
        "import microbatch\n"
        "after = set(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else set()\n"
        "print(threading.active_count(), len(after) - len(before))\n"
    )
    import subprocess

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "0"]
