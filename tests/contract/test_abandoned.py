"""`cancel_abandoned`: what a handler that nobody waits for any more costs the others, and teaches."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.from_thread
import pytest
from support import Recorder, counted, outcome, outcomes, turns

from microbatch import AdaptiveSize, Batcher, HandlerTimeout, current_batch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


class Tidy(Recorder):
    """Takes its time to clean up when it is cancelled."""

    async def __call__(self, items: list[Any]) -> list[Any]:
        try:
            return await super().__call__(items)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(60)
            raise


async def abandon(batcher: Any, count: int) -> None:
    """Begin so many batches of one and leave each of them."""
    pending = [batcher.submit_nowait(item) for item in range(count)]
    await anyio.sleep(1)
    for one in pending:
        one.cancel()
    await turns()


@pytest.mark.parametrize("timeout", [None, 500.0])
async def test_abandoned_handlers_that_clean_up_are_not_stuck(timeout: float | None) -> None:
    """More than eight of them made every healthy batch fail, though each kept to its own slot."""
    handler = Tidy(seconds=200)
    async with Batcher(
        handler,
        max_batch_size=1,
        max_concurrency=20,
        cancel_abandoned=True,
        handler_timeout=timeout,
    ) as batcher:
        await abandon(batcher, 12)
        handler.seconds = 0
        assert await batcher.submit(1) == 10
        assert counted(batcher).failed == 0
    assert len(handler.batches) == 13


@pytest.mark.real_time
async def test_a_plain_handler_that_was_abandoned_keeps_its_slot_to_its_end() -> None:
    """A thread cannot be stopped: more of them than max_concurrency must not run."""
    free = threading.Event()
    started = anyio.Event()
    running, peak = 0, 0

    def handler(items: list[int]) -> list[int]:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        if items == [0]:
            anyio.from_thread.run_sync(started.set)
            free.wait(60)
        running -= 1
        return items

    async with Batcher(handler, cancel_abandoned=True) as batcher:
        first = batcher.submit_nowait(0)
        await started.wait()
        first.cancel()
        second = batcher.submit_nowait(1)
        await turns()
        assert batcher.stats().stuck_threads == 0
        free.set()
        assert await second == 1
    assert peak == 1


@pytest.mark.parametrize("way", ["resolve", "yield"])
async def test_a_handler_is_abandoned_when_the_last_caller_there_has_its_early_result(
    way: str,
) -> None:
    """Whoever waits for the rest has gone: the handler works for nobody."""
    cancelled = anyio.Event()
    go = anyio.Event()

    async def steps(items: list[int]) -> Any:
        await go.wait()
        yield 0, items[0]
        try:
            await anyio.sleep(500)
        except anyio.get_cancelled_exc_class():
            cancelled.set()
            raise

    async def resolving(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        async for index, result in steps(items):
            batch.resolve(index, result)
        return items

    handler: Any = resolving if way == "resolve" else steps
    async with Batcher[int, int](handler, cancel_abandoned=True) as batcher:
        stays, goes = batcher.submit_nowait(0), batcher.submit_nowait(1)
        await anyio.sleep(1)
        goes.cancel()
        await turns()
        go.set()
        assert await stays == 0
        await turns()
        assert cancelled.is_set()
        assert counted(batcher).pending == 0


async def test_a_handler_whose_callers_all_have_their_results_is_not_abandoned() -> None:
    """What it still does, such as closing a file, is nobody's to cut short."""
    ended = False

    async def handler(items: list[int]) -> list[int]:
        nonlocal ended
        batch = current_batch()
        assert batch is not None
        for index, item in enumerate(items):
            batch.resolve(index, item)
        await anyio.sleep(5)
        ended = True
        return items

    async with Batcher(handler, cancel_abandoned=True) as batcher:
        assert await outcomes(batcher.submit(1), batcher.submit(2)) == [1, 2]
    assert ended


class Pupil(AdaptiveSize):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(1, 64)
        self.told: list[tuple[int, float, bool]] = []

    __slots__ = ("told",)

    def record(self, size: int, seconds: float, *, failed: bool) -> None:
        self.told.append((size, seconds, failed))


async def test_a_call_that_was_cut_short_teaches_nothing() -> None:
    """An abandoned call was not fast, and one that closing ended did not fail."""
    pupil = Pupil()
    handler = Recorder(seconds=50)
    batcher = Batcher(handler, max_batch_size=pupil, cancel_abandoned=True)
    await abandon(batcher, 1)
    await turns()
    assert handler.running == 0
    assert pupil.told == []
    left = batcher.submit_nowait(1)
    await anyio.sleep(1)
    await batcher.aclose(0)
    await outcome(left)
    assert pupil.told == []


async def test_a_call_that_timed_out_teaches_that_it_failed() -> None:
    """The backend did not keep up: the one lesson of a call that was cut short."""
    pupil = Pupil()
    async with Batcher(Recorder(seconds=50), max_batch_size=pupil, handler_timeout=2.0) as batcher:
        assert type(await outcome(batcher.submit(1))) is HandlerTimeout
        await turns()
    assert pupil.told == [(1, 2.0, True)]


@pytest.mark.parametrize("when", ["at once", "half way"])
async def test_a_generator_that_raises_teaches_that_it_failed(when: str) -> None:
    """A size never came down where the handler was a generator, whatever it raised."""
    pupil = Pupil()

    async def handler(items: list[int]) -> Any:
        await anyio.sleep(3)
        if when == "half way":
            yield 0, items[0]
        if items:
            raise LookupError
        yield

    async with Batcher[int, int](handler, max_batch_size=pupil) as batcher:
        await outcome(batcher.submit(1))
        await turns()
    assert pupil.told == [(1, 3.0, True)]


async def test_a_size_backs_off_when_a_generator_fails() -> None:
    """The same by the real AdaptiveSize: from where it had grown to, half is left."""
    size = AdaptiveSize(1, 100)
    failing = False

    async def handler(items: list[int]) -> Any:
        await anyio.sleep(0.1)
        for index, item in enumerate(items):
            if failing:
                raise LookupError
            yield index, item

    async with Batcher[int, int](handler, max_batch_size=size) as batcher:
        await batcher.submit_many(range(300))
        grown = size.size
        failing = True
        await outcome(batcher.submit(1))
    assert grown >= 10
    assert size.size == grown // 2
