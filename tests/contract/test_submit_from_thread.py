# ruff: noqa: ASYNC110 - a thread cannot set an anyio.Event
"""``submit_from_thread`` and endpoints in threads that wait for their items. On the real clock."""

from __future__ import annotations

import functools
import threading
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from support import counted, outcome, run, stop_the_clock, turns

from microbatch import Batcher, BatcherClosed, BatcherFull

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]


def tens(items: list[int]) -> list[int]:
    return [item * 10 for item in items]


async def test_forty_sync_endpoints_do_not_starve_the_plain_handler() -> None:
    """Each holds one of anyio's 40 threads while it waits: a handler that wanted one of them would never run."""
    sizes: list[int] = []
    everybody = threading.Event()

    def handler(items: list[int]) -> list[int]:
        sizes.append(len(items))
        assert everybody.wait(60)
        return tens(items)

    together = threading.Barrier(40, timeout=60)

    def endpoint(number: int) -> None:
        together.wait()
        results[number] = batcher.submit_from_thread(number, timeout=60)

    results: dict[int, int] = {}
    async with Batcher(handler) as batcher, anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(anyio.to_thread.run_sync, endpoint, number)
        while counted(batcher).pending < 40:
            await anyio.sleep(0.001)
        everybody.set()
    assert results == {number: number * 10 for number in range(40)}
    assert sum(sizes) == 40
    assert len(sizes) <= 2  # those who came while the first call ran go together


async def test_endpoints_that_hold_all_threads_and_use_the_portal_get_their_results() -> None:
    """anyio.from_thread.run(batcher.submit, item) is what FastAPI's sync endpoints do."""

    def endpoint(number: int) -> None:
        results[number] = anyio.from_thread.run(batcher.submit, number)

    results: dict[int, int] = {}
    async with Batcher(tens) as batcher, anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(anyio.to_thread.run_sync, endpoint, number)
    assert results == {number: number * 10 for number in range(60)}


async def test_threads_of_all_kinds_may_submit() -> None:
    """Also those that know nothing of anyio, and many at once."""
    results: dict[int, int] = {}
    async with Batcher(tens, max_batch_size=10) as batcher:

        def work(start: int) -> None:
            for number in range(start, start + 20):
                results[number] = batcher.submit_from_thread(number, timeout=60)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 160, 20)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await anyio.sleep(0.005)
    assert results == {number: number * 10 for number in range(160)}
    stats = counted(batcher)
    assert (stats.items, stats.pending) == (160, 0)


async def test_submit_from_thread_raises_the_items_error() -> None:
    """As submit does."""

    def handler(items: list[int]) -> list[Any]:
        return [KeyError(item) for item in items]

    async with Batcher(handler) as batcher:
        with pytest.raises(KeyError):
            await anyio.to_thread.run_sync(batcher.submit_from_thread, 1)


async def test_submit_from_thread_waits_for_room() -> None:
    """It is a caller like any other: full means wait, or BatcherFull where full items are rejected."""
    hold = threading.Event()

    def handler(items: list[int]) -> list[int]:
        hold.wait(60)
        return items

    async with Batcher(handler, max_pending=1) as batcher:
        first = batcher.submit_nowait(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, batcher.submit_from_thread, 2)
            while not counted(batcher).waiting:
                await anyio.sleep(0.002)
            hold.set()
        assert await first == 1
    hold.clear()
    async with Batcher(handler, max_pending=1, on_full="reject") as batcher:
        first = batcher.submit_nowait(1)
        with pytest.raises(BatcherFull):
            await anyio.to_thread.run_sync(batcher.submit_from_thread, 2)
        hold.set()
        assert await first == 1


async def test_submit_from_thread_gives_up_after_its_timeout_and_withdraws() -> None:
    """The thread has gone on, so nobody wants the item any more."""
    seen: list[int] = []
    hold = anyio.Event()

    async def handler(items: list[int]) -> list[int]:
        seen.extend(items)
        await hold.wait()
        return items

    async with Batcher(handler) as batcher:
        first = batcher.submit_nowait(1)
        await turns()
        with pytest.raises(TimeoutError):
            await anyio.to_thread.run_sync(
                functools.partial(batcher.submit_from_thread, 2, timeout=0.02)
            )
        await turns()
        assert counted(batcher).buffered == 0
        hold.set()
        await first
    assert seen == [1]


async def test_submit_from_thread_refuses_the_loops_own_thread() -> None:
    """It would block the loop that has to answer it."""
    async with Batcher(tens, name="own") as batcher:
        await batcher.submit(1)
        with pytest.raises(RuntimeError, match="submit_from_thread"):
            batcher.submit_from_thread(2, timeout=1)
        assert counted(batcher).pending == 0


def test_submit_from_thread_needs_a_loop_that_the_batcher_serves(backend_name: str) -> None:
    """Before the first use and after the loop's end there is nobody to run the handler."""
    batcher = Batcher(tens, name="nowhere")
    with pytest.raises(RuntimeError, match="'nowhere'"):
        batcher.submit_from_thread(1, timeout=1)
    assert run(backend_name, batcher.submit, 1, real_time=True) == 10
    with pytest.raises(RuntimeError, match="'nowhere'"):
        batcher.submit_from_thread(1, timeout=1)


async def test_submit_from_thread_after_closing_says_closed() -> None:
    """Not "no loop", and never a hang."""
    batcher = Batcher(tens)
    await batcher.submit(1)
    await batcher.aclose()
    with pytest.raises(BatcherClosed):
        await anyio.to_thread.run_sync(functools.partial(batcher.submit_from_thread, 1, timeout=5))


async def test_a_thread_that_waits_when_the_batcher_closes_is_released() -> None:
    """Threads cannot be cancelled: one that waits for ever keeps the process from ending."""
    ended: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return items

    def call() -> None:
        try:
            batcher.submit_from_thread(1)
        except BatcherClosed as error:
            ended.append(error)

    batcher: Batcher[int, int] = Batcher(handler)
    async with batcher, anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(0)
        await turns()
        tasks.start_soon(anyio.to_thread.run_sync, call)
        while counted(batcher).pending < 2:
            await anyio.sleep(0.002)
        await batcher.aclose(drain_timeout=0)
        assert type(await outcome(first)) is BatcherClosed
    assert len(ended) == 1


@pytest.mark.asyncio_logs
def test_a_thread_that_waits_when_the_loop_ends_is_released(backend_name: str) -> None:
    """The loop ends without a close: nobody is left to answer, and the thread must learn it."""
    ended: list[Any] = []
    threads: list[threading.Thread] = []

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return items

    batcher: Batcher[int, int] = Batcher(handler)

    def call() -> None:
        try:
            batcher.submit_from_thread(1)
        except BaseException as error:
            ended.append(error)

    async def main() -> None:
        batcher.submit_nowait(0)
        await turns()
        thread = threading.Thread(target=call, daemon=True)
        threads.append(thread)
        thread.start()
        while counted(batcher).pending < 2:
            await anyio.sleep(0.002)
        stop_the_clock()  # else it jumps over the pause that follows a cancellation: another batch begins

    run(backend_name, main)
    threads[0].join(60)
    assert not threads[0].is_alive()
    assert len(ended) == 1
