"""Long runs: memory stays flat and nothing is left behind. Marked ``soak``; MICROBATCH_SOAK scales the numbers (`support.scaled`)."""

from __future__ import annotations

import gc
import itertools
import os
import tracemalloc
import weakref
from typing import Any

import anyio
import pytest
from support import Recorder, counted, outcomes, scaled, tasks_alive, turns

from microbatch import Backoff, Batcher, BatcherFull, Retry

pytestmark = [pytest.mark.anyio, pytest.mark.soak, pytest.mark.timeout(300)]


def traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def resident_bytes() -> int:
    """Return the memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


async def echo(items: list[Any]) -> list[Any]:
    return items


@pytest.mark.parametrize("way", ["submit_nowait", "submit_many", "tasks"])
async def test_a_million_items_go_through_one_batcher_in_flat_memory(way: str) -> None:
    """Less than a byte an item may remain: a service runs for months."""
    total, wave = scaled(1_000_000 if way != "tasks" else 100_000), 1000
    async with Batcher(echo) as batcher:

        async def one_wave(start: int) -> None:
            items = range(start, start + wave)
            if way == "submit_nowait":
                pendings = [batcher.submit_nowait(item) for item in items]
                assert [await pending for pending in pendings] == list(items)
            elif way == "submit_many":
                assert await batcher.submit_many(items) == list(items)
            else:
                assert await outcomes(*map(batcher.submit, items)) == list(items)

        for start in range(0, 20 * wave, wave):
            await one_wave(start)
        resident = resident_bytes()
        tracemalloc.start()
        try:
            await one_wave(0)
            before = traced_bytes()
            for start in range(0, total, wave):
                await one_wave(start)
            grown = traced_bytes() - before
        finally:
            tracemalloc.stop()
        assert counted(batcher).items == total + 21 * wave
        assert grown < total, f"{grown} bytes more after {total} items"
        # Python did not allocate all that there is; of the process itself the system tells in large steps.
        assert resident_bytes() - resident < 40_000_000


async def test_the_ids_of_a_million_outcomes_grow_and_none_comes_twice() -> None:
    """Logs tell items apart by them, for as long as the batcher lives, whichever way they came in."""
    total, last = scaled(1_000_000), -1
    async with Batcher(echo, max_batch_size=1000) as batcher:
        for start in range(0, total, 10_000):
            ids = [outcome.id for outcome in await batcher.submit_many_report(range(10_000))]
            assert ids[0] > last, start
            assert all(one < other for one, other in itertools.pairwise(ids)), start
            last = ids[-1]
            assert await batcher.submit(start) == start
    assert last >= total - 1


async def test_a_hundred_thousand_partitions_leave_nothing_behind() -> None:
    """batch-aint-one had to learn it: idle keys leaked memory."""
    total = scaled(100_000)
    async with Batcher(
        echo, partition=lambda item: ("tenant", item), partition_concurrency=1, max_concurrency=50
    ) as batcher:
        await batcher.submit_many(range(1000))
        gc.collect()
        before = len(gc.get_objects())
        for start in range(0, total, 5000):
            await batcher.submit_many(range(start, min(start + 5000, total)))
        await turns()
        gc.collect()
        assert len(gc.get_objects()) - before < 1000
        assert counted(batcher).items == total + 1000


async def test_a_hundred_thousand_coalescing_keys_leave_nothing_behind() -> None:
    """A key lives as long as its item is buffered."""
    total = scaled(100_000)
    async with Batcher(echo, coalesce=lambda item: ("key", item)) as batcher:
        await batcher.submit_many(range(1000))
        gc.collect()
        before = len(gc.get_objects())
        for start in range(0, total, 5000):
            await batcher.submit_many(range(start, min(start + 5000, total)))
        await turns()
        gc.collect()
        assert len(gc.get_objects()) - before < 1000


async def test_a_hundred_thousand_cancelled_items_leave_nothing_behind() -> None:
    """Cancellation is where other batchers leak: buffered, waiting for room and in flight alike."""
    rounds = scaled(200)
    tasks_before = tasks_alive()
    handler = Recorder(seconds=1)
    handler.batches = _Forgetful()
    handler.reasons = _Forgetful()
    handler.started = _Forgetful()
    async with Batcher(handler, max_batch_size=10, max_pending=150) as batcher:

        async def one_round() -> None:
            with anyio.move_on_after(0.5):
                await outcomes(*map(batcher.submit, range(250)))
            counted(batcher)

        for _ in range(20):
            await one_round()
        await anyio.sleep(5)
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(rounds):
            await one_round()
        await anyio.sleep(5)
        gc.collect()
        assert len(gc.get_objects()) - before < 1000
        stats = counted(batcher)
        assert (stats.pending, stats.waiting) == (0, 0)
    await turns()
    assert tasks_alive() == tasks_before


class _Forgetful(list[Any]):
    """A list that keeps nothing."""

    def append(self, value: Any) -> None:
        pass


async def test_a_producer_ten_times_faster_than_the_handler_is_held_back() -> None:
    """Bounded memory: what is accepted fits into the room, however much there is to come and however large it is."""
    total, room, size = scaled(20_000), 500, 10_000
    most = refused = 0
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Payload:
        def __init__(self) -> None:
            alive.add(self)
            self.data = bytes(size)

    async def handler(items: list[Payload]) -> list[int]:
        await anyio.sleep(0.01)
        return [len(item.data) for item in items]

    before, grown = resident_bytes(), 0
    async with Batcher(handler, max_pending=room, max_batch_size=50) as batcher:
        for number in range(total):
            payload = Payload()
            while True:
                try:
                    pending = batcher.submit_nowait(payload)
                    break
                except BatcherFull:
                    refused += 1
                    await anyio.sleep(0.001)
            del payload
            most = max(most, len(alive))
            if number % 50 == 0:
                assert counted(batcher).pending <= room
                grown = max(grown, resident_bytes() - before)
                await anyio.sleep(0.001)  # 50 items in 1 ms; the handler takes 10 ms for them
        assert await pending == size
        del pending
        assert counted(batcher).items == total
    assert refused > total / 50
    assert most <= room + 50 + 1  # what has just been handled, and the one in the producer's hands
    assert grown < 4 * room * size, f"{grown} bytes more for a room of {room * size}"
    await turns()
    gc.collect()
    assert len(alive) == 0


async def test_callers_beyond_the_room_wait_in_line_and_are_all_served() -> None:
    """Ten times as many callers as there is room: never is more accepted, and nobody is forgotten."""
    count, room = scaled(20_000), scaled(2_000)
    handler = Recorder(seconds=0.01)
    most, longest = 0, 0

    async def watch() -> None:
        nonlocal most, longest
        while True:
            stats = counted(batcher)
            most, longest = max(most, stats.pending), max(longest, stats.waiting)
            await anyio.sleep(0.005)

    async with Batcher(handler, max_pending=room) as batcher, anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        results = await outcomes(*map(batcher.submit, range(count)))
        tasks.cancel_scope.cancel()
    assert results == [item * 10 for item in range(count)]
    assert (most, longest) == (room, count - room)


async def test_failures_and_retries_for_a_long_time_leave_nothing_behind() -> None:
    """Exceptions hold frames; back-off holds items: neither may pile up."""
    rounds = scaled(500)
    calls = 0

    async def handler(items: list[int]) -> list[Any]:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise ConnectionError("down")
        return [ValueError(item) if item % 10 == 3 else item for item in items]

    retry = Retry(on=ConnectionError, attempts=2, backoff=Backoff(initial=0.5, jitter=1.0))
    async with Batcher(handler, max_batch_size=20, retry=retry, handler_timeout=10.0) as batcher:
        await batcher.submit_many_report(range(1000))
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(rounds):
            report = await batcher.submit_many_report(range(100))
            assert report.total == 100
        await anyio.sleep(5)
        gc.collect()
        assert len(gc.get_objects()) - before < 1000
        assert counted(batcher).pending == 0


async def test_handlers_that_time_out_for_a_long_time_leave_nothing_behind() -> None:
    """Timers and cancelled tasks are the other half of what can pile up."""
    rounds = scaled(3000)

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return items

    async with Batcher(handler, handler_timeout=0.5, max_concurrency=4) as batcher:

        async def some(count: int) -> None:
            for _ in range(count):
                await batcher.submit_many_report(range(5))

        await some(50)
        gc.collect()
        before, tasks_before = len(gc.get_objects()), tasks_alive()
        await some(rounds)
        await anyio.sleep(100)
        gc.collect()
        assert len(gc.get_objects()) - before < 1000
        assert tasks_alive() <= tasks_before
        assert counted(batcher).failed == 5 * (rounds + 50)


async def test_an_item_waiting_costs_little() -> None:
    """A caller that waits costs its task and future, and little more."""
    count = scaled(20_000)
    opened = anyio.Event()

    async def handler(items: list[int]) -> list[int]:
        await opened.wait()
        return items

    tracemalloc.start()
    try:
        async with Batcher(handler, max_pending=None) as batcher:
            before = traced_bytes()
            pendings = [batcher.submit_nowait(item) for item in range(count)]
            await turns()
            each = (traced_bytes() - before) / count
            opened.set()
            assert [await pending for pending in pendings] == list(range(count))
    finally:
        tracemalloc.stop()
    # A native future is 150 to 200 bytes; an item in two lists is 16 more.
    assert each < 400, f"{each:.0f} bytes for each waiting item"


async def test_a_hundred_thousand_callers_at_once_are_served() -> None:
    """Nothing quadratic: ten times the callers take about ten times as long."""
    import time

    async def seconds_for(count: int) -> float:
        async with Batcher(echo, max_pending=None) as batcher:
            start = time.process_time()  # others may have the processor meanwhile
            assert len(await outcomes(*map(batcher.submit, range(count)))) == count
            return time.process_time() - start

    await seconds_for(scaled(5_000))
    small = min([await seconds_for(scaled(10_000)) for _ in range(3)])
    large = await seconds_for(scaled(100_000))
    assert large < 10 * max(small, 0.005) * 4, f"{large:.2f} s for ten times {small:.2f} s"


@pytest.mark.parametrize("settings", [{}, {"max_wait": 0.5}, {"weigh": lambda item: 1, "max_batch_weight": 1e9}], ids=["chunks", "window", "lanes"])  # fmt: skip
async def test_cancelling_a_hundred_thousand_buffered_items_is_not_quadratic(settings: Any) -> None:
    """A disconnecting proxy cancels all its callers at once."""
    import time

    async def seconds_for(count: int) -> float:
        opened = anyio.Event()

        async def handler(items: list[int]) -> list[int]:
            await opened.wait()
            return items

        async with Batcher(handler, max_pending=None, max_batch_size=100, **settings) as batcher:
            first = batcher.submit_nowait(-1)
            await anyio.sleep(1)
            pendings = [batcher.submit_nowait(item) for item in range(count)]
            start = time.process_time()  # others may have the processor meanwhile
            for number, pending in enumerate(pendings):
                pending.cancel()
                if number % (count // 10) == 0:
                    counted(batcher)
            await turns()
            assert counted(batcher).buffered == 0
            spent = time.process_time() - start
            opened.set()
            assert await first == -1
            return spent

    await seconds_for(scaled(5_000))
    small = min([await seconds_for(scaled(10_000)) for _ in range(3)])
    large = await seconds_for(scaled(100_000))
    assert large < 10 * max(small, 0.005) * 4, f"{large:.2f} s for ten times {small:.2f} s"
