"""Closing: draining, at once, twice, from elsewhere, by force, with a bound on its time."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
import sniffio
from support import Gate, Recorder, counted, outcome, tasks_alive, turns

from microbatch import Backoff, Batcher, BatcherClosed, HandlerCrashed, Retry

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


async def test_closing_with_five_pending_drains_them() -> None:
    """Leaving `async with` is how the last batch gets home."""
    handler = Recorder(seconds=1)
    before = tasks_alive()
    batcher = Batcher(handler, max_wait=1000)
    async with batcher:
        pendings = [batcher.submit_nowait(item) for item in range(5)]
    assert [await pending for pending in pendings] == [0, 10, 20, 30, 40]
    assert handler.reasons == ["close"]
    await turns()
    assert tasks_alive() == before
    stats = counted(batcher)
    assert (stats.pending, stats.items, stats.batches) == (0, 5, 1)


async def test_closing_at_once_ends_five_pending_with_batcher_closed() -> None:
    """drain_timeout=0 waits for nothing; nobody is left behind."""
    handler = Recorder()
    before = tasks_alive()
    batcher = Batcher(handler, max_wait=1000, name="gone")
    pendings = [batcher.submit_nowait(item) for item in range(5)]
    await batcher.aclose(drain_timeout=0)
    errors = [await outcome(pending) for pending in pendings]
    assert [type(error) for error in errors] == [BatcherClosed] * 5
    assert len(set(map(id, errors))) == 5
    assert str(errors[0]) == "batcher 'gone' is closed: this item was not handled"
    assert handler.batches == []
    await turns()
    assert tasks_alive() == before
    assert counted(batcher).pending == 0


async def test_after_closing_every_submit_says_closed() -> None:
    """smartbatch and dloader start again in silence."""
    batcher = Batcher(Recorder(), name="gone")
    assert await batcher.submit(1) == 10
    await batcher.aclose()
    text = "batcher 'gone' is closed: this item was not handled"
    assert str(await outcome(batcher.submit(1))) == text
    with pytest.raises(BatcherClosed, match=text):
        batcher.submit_nowait(1)
    assert str(await outcome(batcher.submit_many([1]))) == text
    assert str(await outcome(batcher.submit_many_report([1]))) == text
    assert counted(batcher).pending == 0


async def test_a_never_used_batcher_closes() -> None:
    """Start-up may fail before the first item."""
    batcher = Batcher(Recorder())
    await batcher.aclose()
    await batcher.aclose()
    async with Batcher(Recorder()):
        pass


async def test_closing_twice_is_closing_once() -> None:
    """Frameworks call shut-down hooks more than once."""
    handler = Recorder(seconds=1)
    batcher = Batcher(handler)
    async with batcher:
        pending = batcher.submit_nowait(1)
        await batcher.aclose()
        assert pending.done()
        await batcher.aclose()
    await batcher.aclose()
    assert await pending == 10


async def test_two_tasks_that_close_at_once_both_wait_for_the_end() -> None:
    """Neither may believe that all is written before it is."""
    handler = Recorder(seconds=5)
    batcher = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()
    ended: list[float] = []

    async def close() -> None:
        await batcher.aclose()
        ended.append(anyio.current_time())

    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close)
        tasks.start_soon(close)
    assert [end - start for end in ended] == pytest.approx([5, 5])
    assert await pending == 10


async def test_one_of_two_closers_that_is_cancelled_closes_at_once_for_both() -> None:
    """A cancelled aclose is an order to hurry."""
    handler = Recorder(seconds=20)
    batcher = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.aclose)
        await turns()
        with anyio.move_on_after(1):
            await batcher.aclose()
    assert anyio.current_time() - start == pytest.approx(1, abs=0.1)
    assert type(await outcome(pending)) is BatcherClosed


async def test_opened_in_one_task_and_closed_in_another() -> None:
    """FastAPI, Django and pytest run start-up and shut-down hooks in different tasks."""
    handler = Recorder(seconds=1)
    batcher: Any = Batcher(handler)

    async def leave() -> None:
        await batcher.__aexit__(None, None, None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.__aenter__)
    pending = batcher.submit_nowait(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
    assert await pending == 10
    with pytest.raises(BatcherClosed):
        await batcher.submit(2)


@pytest.mark.parametrize("how", ["exception", "cancellation", "cancelled aclose"])
async def test_leaving_by_force_ends_every_caller_there_and_then(how: str) -> None:
    """Buffered, in flight, in back-off or waiting for room: each ends with BatcherClosed, the handler is cancelled."""
    handler = Recorder(seconds=100)
    batcher: Batcher[int, int] = Batcher(handler, max_pending=4, max_batch_size=2, name="gone")
    before = tasks_alive()
    results: dict[int, Any] = {}

    async def call(item: int) -> None:
        results[item] = await outcome(batcher.submit(item))

    async with anyio.create_task_group() as tasks:
        start = anyio.current_time()
        with anyio.move_on_after(5 if how != "exception" else 1000):
            try:
                async with batcher:
                    for item in range(6):
                        tasks.start_soon(call, item)
                        await turns()
                    stats = counted(batcher)
                    assert (stats.in_flight, stats.buffered, stats.waiting) in (
                        (2, 2, 2),
                        (1, 3, 2),
                    )
                    if how == "exception":
                        raise LookupError
                    if how == "cancellation":
                        await anyio.sleep(1000)
                    await batcher.aclose()
            except LookupError:
                assert how == "exception"
        assert anyio.current_time() - start <= 5.1
        await turns()
        assert len(results) == 6
    assert all(type(result) is BatcherClosed for result in results.values())
    assert sum(result.started for result in results.values()) == len(handler.batches[0])
    assert handler.running == 0
    stats = counted(batcher)
    assert (stats.pending, stats.waiting) == (0, 0)
    await turns()
    assert tasks_alive() == before


async def test_the_drain_timeout_bounds_the_close() -> None:
    """What is not home by then gets BatcherClosed, and handlers are cancelled."""
    handler = Recorder(seconds=100)
    batcher = Batcher(handler, max_batch_size=1, drain_timeout=30.0)
    first, second = batcher.submit_nowait(1), batcher.submit_nowait(2)
    await turns()
    start = anyio.current_time()
    await batcher.aclose()
    assert anyio.current_time() - start == pytest.approx(30, abs=0.1)
    errors = [await outcome(first), await outcome(second)]
    assert [type(error) for error in errors] == [BatcherClosed] * 2
    assert [error.started for error in errors] == [True, False]
    assert handler.running == 0


async def test_aclose_may_set_a_drain_timeout_of_its_own() -> None:
    """Shut-down hooks know how long the platform lets them live."""
    batcher = Batcher(Recorder(seconds=100), drain_timeout=1000)
    pending = batcher.submit_nowait(1)
    await turns()
    start = anyio.current_time()
    await batcher.aclose(drain_timeout=2.0)
    assert anyio.current_time() - start == pytest.approx(2, abs=0.1)
    assert type(await outcome(pending)) is BatcherClosed


async def test_a_deaf_handler_delays_the_close_for_a_bounded_time() -> None:
    """It is cancelled and awaited, but not for ever."""

    async def handler(items: list[int]) -> list[int]:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5000)
        return items

    batcher = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()
    start = anyio.current_time()
    await batcher.aclose(drain_timeout=1.0)
    assert 1 <= anyio.current_time() - start < 60
    error = await outcome(pending)
    assert type(error) is BatcherClosed
    assert error.started


async def test_a_handler_may_clean_up_when_the_close_cancels_it() -> None:
    """Its finally clause runs to the end before aclose returns: it may have a transaction to roll back."""
    cleaned: list[float] = []

    async def handler(items: list[int]) -> list[int]:
        try:
            await anyio.sleep(1000)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)
                cleaned.append(anyio.current_time())
        return items

    batcher = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()
    await batcher.aclose(drain_timeout=0)
    assert len(cleaned) == 1
    assert type(await outcome(pending)) is BatcherClosed


async def test_a_forced_close_ends_callers_before_a_slow_handler_is_done() -> None:
    """There and then: they do not wait for the handler's clean-up."""
    ended: list[float] = []

    async def handler(items: list[int]) -> list[int]:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3)
        return items

    batcher = Batcher(handler)

    async def call() -> None:
        await outcome(batcher.submit(1))
        ended.append(anyio.current_time())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await turns()
        start = anyio.current_time()
        await batcher.aclose(drain_timeout=0)
    assert ended[0] - start < 0.1


async def test_a_forced_close_leaves_no_timer_behind() -> None:
    """Neither the handler's timeout nor a window or a back-off may keep the loop awake for a closed batcher."""
    before = tasks_alive()
    retry = Retry(on=ConnectionError, backoff=Backoff(initial=5000.0, maximum=5000.0, jitter=0.0))
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError
        await anyio.sleep_forever()
        return items

    batcher = Batcher(handler, handler_timeout=5000.0, max_wait=1.0, retry=retry)
    failed = batcher.submit_nowait(1)
    await anyio.sleep(2)
    running = batcher.submit_nowait(2)
    await anyio.sleep(2)
    buffered = batcher.submit_nowait(3)
    stats = counted(batcher)
    assert (stats.in_backoff, stats.in_flight, stats.buffered) == (1, 1, 1)
    await batcher.aclose(drain_timeout=0)
    for pending in (failed, running, buffered):
        assert type(await outcome(pending)) is BatcherClosed
    await turns()
    assert tasks_alive() == before
    if sniffio.current_async_library() == "asyncio":
        timers = asyncio.get_running_loop().timers()  # type: ignore[attr-defined]
        assert [timer for timer in timers if timer.when() < 50_000] == []


async def test_closing_refuses_callers_that_wait_for_room_and_drains_the_others() -> None:
    """Their items were never accepted; whoever was accepted gets a result."""
    handler = Gate()
    batcher = Batcher(handler, max_pending=2, name="gone")
    held = [batcher.submit_nowait(item) for item in range(2)]
    refused: list[Any] = []

    async def call(item: int) -> None:
        refused.append(await outcome(batcher.submit(item)))

    async with anyio.create_task_group() as tasks:
        for item in (2, 3, 4):
            tasks.start_soon(call, item)
        await turns()
        assert counted(batcher).waiting == 3
        tasks.start_soon(batcher.aclose)
        await turns()
        assert [type(error) for error in refused] == [BatcherClosed] * 3
        assert not refused[0].started
        assert counted(batcher).waiting == 0
        assert not held[0].done()
        with pytest.raises(BatcherClosed):
            await batcher.submit(5)
        handler.opened.set()
    assert [await pending for pending in held] == [0, 10]
    assert set(handler.seen) == {0, 1}


async def test_items_in_back_off_wait_it_out_when_closing() -> None:
    """Draining means finishing, retries included."""
    failures = 2

    async def handler(items: list[int]) -> list[int]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise ConnectionError
        return items

    retry = Retry(on=ConnectionError, backoff=Backoff(initial=1.0, jitter=0.0))
    batcher = Batcher(handler, retry=retry)
    pending = batcher.submit_nowait(1)
    await turns()
    assert counted(batcher).in_backoff == 1
    start = anyio.current_time()
    await batcher.aclose()
    assert anyio.current_time() - start == pytest.approx(3.0, abs=0.01)
    assert await pending == 1


async def test_items_in_back_off_end_when_the_drain_is_over() -> None:
    """The back-off may be longer than the platform's patience."""

    async def handler(items: list[int]) -> list[int]:
        raise ConnectionError

    retry = Retry(on=ConnectionError, backoff=Backoff(initial=50.0, jitter=0.0))
    before = tasks_alive()
    batcher = Batcher(handler, retry=retry)
    pending = batcher.submit_nowait(1)
    await turns()
    start = anyio.current_time()
    await batcher.aclose(drain_timeout=5.0)
    assert anyio.current_time() - start == pytest.approx(5.0, abs=0.1)
    assert type(await outcome(pending)) is BatcherClosed
    assert counted(batcher).pending == 0
    await turns()
    assert tasks_alive() == before


async def test_items_submitted_by_the_handler_while_closing_are_refused() -> None:
    """Closing must end; what the last batch finds is the crawler's to keep."""
    refused: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(1)
        try:
            batcher.submit_nowait(5)
        except BatcherClosed as error:
            refused.append(error)
        return items

    batcher: Batcher[int, int] = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()
    await batcher.aclose()
    assert await pending == 1
    assert len(refused) == 1


async def test_a_crash_while_closing_ends_the_close() -> None:
    """The callers are told, aclose returns."""

    class Boom(BaseException):
        pass

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(1)
        raise Boom

    batcher = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()
    await batcher.aclose()
    assert type(await outcome(pending)) is HandlerCrashed


async def test_submit_many_ends_when_the_batcher_closes_below_it() -> None:
    """What was accepted is drained, what was not is refused, one outcome each."""
    handler = Recorder(seconds=1)
    batcher = Batcher(handler, max_pending=3, max_batch_size=3)
    reports: list[Any] = []

    async def call() -> None:
        reports.append(await batcher.submit_many_report(range(10)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await turns()
        await batcher.aclose()
    (report,) = reports
    assert report.total == 10
    assert report.succeeded == len(handler.seen) >= 3
    assert report.errors == {"batcher_closed": 10 - report.succeeded}


# --- entering ---------------------------------------------------------------------------------------------------


async def test_a_batcher_is_entered_once() -> None:
    """Whoever left the inner block would close it for the outer one, in the midst of its work."""
    handler = Recorder()
    async with Batcher(handler, name="orders") as batcher:
        with pytest.raises(
            RuntimeError, match=r"^batcher .orders. was entered already: .* enter it once"
        ):
            async with batcher:
                raise AssertionError
        assert await batcher.submit(1) == 10
    with pytest.raises(BatcherClosed, match=r"^batcher .orders. is closed"):
        async with batcher:
            raise AssertionError
    assert handler.batches == [[1]]


async def test_a_batcher_that_was_used_may_still_be_entered() -> None:
    """submit() works from the first call on; who enters later drains what is there."""
    batcher = Batcher(Recorder(), max_wait=1.0)
    pending = batcher.submit_nowait(1)
    async with batcher:
        pass
    assert await pending == 10
