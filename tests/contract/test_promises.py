"""The Batcher's promises, one test each: ways in, flushing, when a batch goes, concurrency, room, stats."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio
from support import BACKENDS, Gate, Recorder, counted, outcome, outcomes, run, tasks_alive, turns

from microbatch import (
    AdaptiveSize,
    Batcher,
    BatcherClosed,
    BatcherFull,
    BatchFailed,
    BatchReport,
    ItemError,
    Pending,
    Skipped,
    current_batch,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]


# --- ways in ----------------------------------------------------------------------------------------------------


async def test_two_hundred_and_fifty_callers_make_three_batches() -> None:
    """Callers stay single-item; the handler sees 100, 100 and 50, and each caller gets its own result."""
    handler = Recorder()
    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(250)))
    assert results == [item * 10 for item in range(250)]
    assert handler.sizes == [100, 100, 50]


def test_submit_is_a_coroutine_function_and_submit_nowait_is_not() -> None:
    """Task groups start coroutine functions; submit_nowait needs no task at all."""
    batcher = Batcher(Recorder())
    assert inspect.iscoroutinefunction(batcher.submit)
    assert not inspect.iscoroutinefunction(batcher.submit_nowait)


async def test_submit_works_from_the_first_call_on() -> None:
    """No start, no set-up, in whatever loop is running."""
    batcher = Batcher(Recorder())
    assert await batcher.submit(1) == 10
    await batcher.aclose()


async def test_a_pending_can_be_awaited_cancelled_and_asked() -> None:
    """It is a small promise, not a task."""
    handler = Gate()
    async with Batcher(handler) as batcher:
        before = tasks_alive()
        pending: Pending[int] = batcher.submit_nowait(1)
        assert tasks_alive() <= before + 1
        assert not pending.done()
        handler.opened.set()
        assert await pending == 10
        assert pending.done()


async def test_a_done_pending_is_awaited_without_waiting() -> None:
    """The result is kept until its awaiter comes."""
    async with Batcher(Recorder()) as batcher:
        pending = batcher.submit_nowait(1)
        await turns()
        assert pending.done()
        assert await pending == 10


async def test_cancelling_a_pending_withdraws_its_item() -> None:
    """The handler never sees it."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        first, second = batcher.submit_nowait(1), batcher.submit_nowait(2)
        first.cancel()
        first.cancel()
        assert first.done()
        assert counted(batcher).buffered == 1
        assert await second == 20
    assert handler.batches == [[2]]


async def test_cancelling_a_done_pending_changes_nothing() -> None:
    """Too late is too late."""
    async with Batcher(Recorder()) as batcher:
        pending = batcher.submit_nowait(1)
        await turns()
        pending.cancel()
        assert await pending == 10
        assert counted(batcher).pending == 0


async def test_cancelling_the_task_that_awaits_a_pending_withdraws_its_item() -> None:
    """Whoever waits is the caller, however it got the item in."""
    handler = Recorder()
    async with Batcher(handler, max_wait=5.0) as batcher:
        pending = batcher.submit_nowait(1)
        with anyio.move_on_after(1):
            await pending
        assert counted(batcher).pending == 0
    assert handler.batches == []


async def test_dropping_a_pending_leaves_its_item() -> None:
    """Fire and forget: the item is handled all the same."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        batcher.submit_nowait(1)
        gc.collect()
    assert handler.batches == [[1]]


@pytest.mark.asyncio_logs
def test_a_failure_that_nobody_awaited_is_logged_once(
    backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Fire and forget must not mean fail and forget; awaited, cancelled and successful ones are silent."""

    async def main() -> None:
        async with Batcher(Recorder(fails={1, 2}), name="silent", telemetry=False) as batcher:
            batcher.submit_nowait(1)
            awaited = batcher.submit_nowait(2)
            batcher.submit_nowait(3)
            batcher.submit_nowait(4).cancel()
            assert type(await outcome(awaited)) is ValueError
            del awaited
            await turns()
        gc.collect()
        await turns()

    run(backend_name, main)
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(records) == 1
    assert "ValueError: 1" in logging.Formatter().format(records[0])


async def test_submit_many_returns_results_in_order() -> None:
    """One await for many items, the cheapest way in."""
    handler = Recorder()
    async with Batcher(handler, max_batch_size=4) as batcher:
        assert await batcher.submit_many(range(10)) == [item * 10 for item in range(10)]
        assert await batcher.submit_many(iter([1, 2])) == [10, 20]
        assert await batcher.submit_many([]) == []
    assert handler.sizes == [4, 4, 2, 2]


async def test_submit_many_raises_batch_failed_with_the_report() -> None:
    """The good results are not lost with the bad."""
    async with Batcher(Recorder(fails={1, 3})) as batcher:
        with pytest.raises(BatchFailed) as caught:
            await batcher.submit_many(range(5))
    assert isinstance(caught.value, ExceptionGroup)
    assert [str(error) for error in caught.value.exceptions] == ["1", "3"]
    report = caught.value.report
    assert [one.value for one in report] == [0, None, 20, None, 40]
    assert (report.total, report.succeeded, report.failed) == (5, 3, 2)


async def test_submit_many_report_never_raises_for_an_item() -> None:
    """Failed, skipped and succeeded stand side by side and add up."""

    async def handler(items: list[int]) -> list[Any]:
        kinds: list[Any] = [
            ItemError("twice", code="duplicate"),
            Skipped("seen"),
            KeyError("secret"),
        ]
        return [kinds[item] if item < 3 else item for item in items]

    async with Batcher(handler) as batcher:
        report = await batcher.submit_many_report([0, 1, 2, 3, 0])
    assert isinstance(report, BatchReport)
    assert (report.total, report.succeeded, report.failed, report.skipped) == (5, 1, 3, 1)
    assert report.errors == {"duplicate": 2, "skipped": 1, "internal_error": 1}
    assert [one.index for one in report] == [0, 1, 2, 3, 4]
    assert [one.attempts for one in report] == [1] * 5
    assert report[2].as_dict()["error"] == {"code": "internal_error", "message": "internal error"}
    empty = await Batcher(handler).submit_many_report([])
    assert empty.total == 0


async def test_outcome_ids_grow_from_call_to_call() -> None:
    """Logs can tell two items of the same batcher apart, whatever the index."""
    async with Batcher(Recorder()) as batcher:
        ids = [one.id for one in await batcher.submit_many_report(range(100))]
        ids += [one.id for one in await batcher.submit_many_report(range(100))]
    assert ids == sorted(ids)
    assert len(set(ids)) == 200


async def test_submit_many_feeds_as_room_allows() -> None:
    """More items than room is no error: the rest follows as places free up."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_pending=3, max_batch_size=2) as batcher:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, counted(batcher).pending)
                await anyio.sleep(0.1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            assert await batcher.submit_many(range(10)) == [item * 10 for item in range(10)]
            tasks.cancel_scope.cancel()
    assert most == 3


async def test_rejected_items_are_outcomes_of_the_report() -> None:
    """Where full means reject, submit_many_report says which items there was no room for."""
    handler = Gate()
    async with Batcher(handler, max_pending=3, on_full="reject") as batcher:
        reports: list[Any] = []

        async def call() -> None:
            reports.append(await batcher.submit_many_report(range(5)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await turns()
            handler.opened.set()
    (report,) = reports
    assert [one.ok for one in report] == [True, True, True, False, False]
    assert type(report[4].error) is BatcherFull
    assert report[4].attempts == 0
    assert report.errors == {"batcher_full": 2}


async def test_cancelling_submit_many_withdraws_what_is_buffered() -> None:
    """What is in flight goes on, what waits for room is forgotten."""
    handler = Recorder(seconds=5)
    async with Batcher(handler, max_batch_size=2, max_pending=4) as batcher:
        with anyio.move_on_after(1):
            await batcher.submit_many(range(10))
        stats = counted(batcher)
        assert (stats.buffered, stats.in_flight, stats.waiting) == (0, 2, 0)
    assert handler.batches == [[0, 1]]


@pytest.mark.parametrize("on_full", ["wait", "reject"])
async def test_submit_nowait_has_nowhere_to_wait(on_full: Any) -> None:
    """Full is BatcherFull in both modes."""
    handler = Gate()
    async with Batcher(handler, max_pending=2, on_full=on_full, name="small") as batcher:
        batcher.submit_nowait(1)
        batcher.submit_nowait(2)
        with pytest.raises(BatcherFull, match="batcher 'small' is full: max_pending=2 is reached"):
            batcher.submit_nowait(3)
        handler.opened.set()
    assert handler.seen == {1: 1, 2: 1}


@pytest.mark.parametrize("refused", [False, True])
async def test_a_cancelled_item_frees_its_room_at_once(refused: bool) -> None:
    """Not a turn of the loop later: the very next call may need it."""
    handler = Recorder()
    async with Batcher(handler, max_pending=2) as batcher:
        first = batcher.submit_nowait(1)
        second = batcher.submit_nowait(2)
        if refused:
            with pytest.raises(BatcherFull):
                batcher.submit_nowait(3)
        first.cancel()
        third = batcher.submit_nowait(4)
        assert counted(batcher).pending == 2
        assert await outcomes(second, third) == [20, 40]
    assert handler.seen == {2: 1, 4: 1}


# --- when a batch goes ------------------------------------------------------------------------------------------


async def test_a_full_batch_goes_at_once() -> None:
    """The hundredth item sends it, without any time passing."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1000) as batcher:
        start = anyio.current_time()
        pendings = [batcher.submit_nowait(item) for item in range(100)]
        await turns()
        assert handler.sizes == [100]
        assert anyio.current_time() == start
        assert all(pending.done() for pending in pendings)
    assert handler.reasons == ["size"]


async def test_the_oldest_item_waits_max_wait_and_no_longer() -> None:
    """Measured from the first item: a later one does not restart the window."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        start = anyio.current_time()
        for _ in range(4):
            batcher.submit_nowait(1)
            await anyio.sleep(0.3)
        await anyio.sleep(0.1)
    assert [moment - start for moment in handler.started] == pytest.approx([1.0])
    assert handler.reasons == ["wait"]


async def test_a_stale_timer_does_not_cut_the_next_batch_early() -> None:
    """After a batch left by size, the next one has its whole window."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0, max_batch_size=2) as batcher:
        start = anyio.current_time()
        batcher.submit_nowait(1)
        await anyio.sleep(0.8)
        batcher.submit_nowait(2)
        batcher.submit_nowait(3)
        await anyio.sleep(0.5)
        assert handler.sizes == [2]
        await anyio.sleep(2)
    assert [moment - start for moment in handler.started] == pytest.approx([0.8, 1.8])


async def test_a_window_begins_anew_when_all_of_it_was_withdrawn() -> None:
    """The oldest item is the oldest that still waits."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        batcher.submit_nowait(1).cancel()
        await anyio.sleep(0.7)
        start = anyio.current_time()
        pending = batcher.submit_nowait(2)
        assert await pending == 20
        assert handler.started[0] - start <= 1.0 + 1e-6
    assert handler.batches == [[2]]


async def test_a_window_that_ends_while_all_slots_are_busy_is_up_when_one_is_free() -> None:
    """A batch is cut only when a slot is free, and then holds all that came meanwhile."""
    handler = Recorder(seconds=5)
    async with Batcher(handler, max_wait=1.0) as batcher:
        start = anyio.current_time()
        batcher.submit_nowait(1)
        await anyio.sleep(2)
        for item in (2, 3, 4):
            batcher.submit_nowait(item)
            await anyio.sleep(1)
    assert handler.batches == [[1], [2, 3, 4]]
    assert [moment - start for moment in handler.started] == pytest.approx([1, 6])


async def test_calls_made_together_travel_together() -> None:
    """max_wait=0 is not batches of one: every runnable task has its turn first."""
    handler = Recorder()
    async with Batcher(handler) as batcher:
        start = anyio.current_time()
        await outcomes(*map(batcher.submit, range(50)))
        assert anyio.current_time() == start
    assert handler.sizes == [50]
    assert handler.reasons == ["idle"]


async def test_callers_woken_together_travel_together() -> None:
    """A batch's callers go on at the same moment, and their next calls are one batch again."""
    handler = Recorder(seconds=1)
    async with Batcher(handler) as batcher:

        async def chain(item: int) -> None:
            for _ in range(5):
                await batcher.submit(item)

        async with anyio.create_task_group() as tasks:
            for item in range(20):
                tasks.start_soon(chain, item)
    assert handler.sizes == [20] * 5


async def test_a_lone_caller_pays_no_waiting_time() -> None:
    """The default adds no latency when nothing else is going on."""
    async with Batcher(Recorder()) as batcher:
        start = anyio.current_time()
        for item in range(10):
            await batcher.submit(item)
        assert anyio.current_time() == start


async def test_while_all_slots_are_busy_the_next_batch_keeps_filling() -> None:
    """Group commit: under load batches grow by themselves."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_batch_size=10) as batcher:
        await batcher.submit(0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batcher.submit, 1)
            for item in range(2, 7):
                await anyio.sleep(0.1)
                tasks.start_soon(batcher.submit, item)
    assert handler.sizes == [1, 1, 5]


async def test_an_item_submitted_while_the_handler_runs_is_in_the_next_batch() -> None:
    """The list that a handler works on is not added to."""
    handler = Gate()
    async with Batcher(handler) as batcher:
        first = batcher.submit_nowait(1)
        await turns()
        second = batcher.submit_nowait(2)
        await turns()
        handler.opened.set()
        assert [await first, await second] == [10, 20]
    assert handler.batches == [[1], [2]]


async def test_three_hundred_and_fifty_queued_items_go_in_full_batches() -> None:
    """100, 100, 100, 50: none dropped, order kept."""
    handler = Recorder(seconds=1)
    async with Batcher(handler) as batcher:
        for item in range(350):
            batcher.submit_nowait(item)
    assert handler.sizes == [100, 100, 100, 50]
    assert [item for batch in handler.batches for item in batch] == list(range(350))


async def test_an_idle_batcher_never_wakes() -> None:
    """Timers run only while something waits: no polling, no free-running interval."""

    class Count(trio.abc.Instrument):
        polls = 0

        def after_io_wait(self, timeout: float) -> None:
            self.polls += 1

    if sniffio.current_async_library() == "trio":
        loop: Any = Count()
        trio.lowlevel.add_instrument(loop)
    else:
        loop = asyncio.get_running_loop()  # support.py's count their own polls

    async def wakes_in_hours() -> int:
        before = loop.polls
        await anyio.sleep(20_000)
        return int(loop.polls - before)

    async with Batcher(Recorder(), max_wait=1.0) as batcher:
        await batcher.submit(1)
        await anyio.sleep(10)
        with_it = await wakes_in_hours()
    assert with_it <= await wakes_in_hours()


async def test_the_reason_of_each_batch_is_counted() -> None:
    """ "Why is my batch small?" is what users of every batcher ask."""
    handler = Recorder()
    async with Batcher(
        handler, max_batch_size=3, max_wait=1.0, max_batch_weight=10, weigh=int
    ) as batcher:
        for item in (1, 1, 1):
            batcher.submit_nowait(item)
        await turns()
        for item in (6, 5):
            batcher.submit_nowait(item)
        await turns()
        await anyio.sleep(2)
        batcher.submit_nowait(1)
        await batcher.flush()
        batcher.submit_nowait(1)
    assert handler.reasons == ["size", "weight", "wait", "flush", "close"]
    assert handler.batches == [[1, 1, 1], [6], [5], [1], [1]]
    assert dict(batcher.stats().reasons) == {
        "size": 1,
        "weight": 1,
        "wait": 1,
        "flush": 1,
        "close": 1,
    } | {reason: 0 for reason in batcher.stats().reasons if reason == "idle"}


async def test_a_handler_that_never_yields_leaves_the_loop_its_turns() -> None:
    """Batch after batch without an await: other tasks must run in between, for a health check's sake."""
    ticks = 0

    async def handler(items: list[int]) -> list[int]:
        return items

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.lowlevel.checkpoint()

    async with (
        Batcher(handler, max_batch_size=1, max_pending=None) as batcher,
        anyio.create_task_group() as tasks,
    ):
        pendings = [batcher.submit_nowait(item) for item in range(5000)]
        tasks.start_soon(tick)
        assert await pendings[-1] == 4999
        tasks.cancel_scope.cancel()
    assert ticks >= 10


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"] if "uvloop" in BACKENDS else ["asyncio"])
def test_on_asyncio_a_pending_fits_asyncios_own_functions(backend: str) -> None:
    """gather over submit_nowait is the cheapest way in; wait_for, wait and shield work as with any future."""
    handler = Recorder(seconds=1)

    async def main() -> None:
        async with Batcher(handler, max_wait=0.5) as batcher:
            assert await asyncio.gather(*map(batcher.submit_nowait, range(5))) == [
                0,
                10,
                20,
                30,
                40,
            ]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(batcher.submit_nowait(6), 0.1)
            assert counted(batcher).pending == 0
            shielded = batcher.submit_nowait(7)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(shielded), 0.1)
            done, _ = await asyncio.wait([shielded])
            assert done.pop().result() == 70

    run(backend, main)
    assert handler.batches == [[0, 1, 2, 3, 4], [7]]


if sys.version_info >= (3, 12):

    def test_an_eager_task_factory_changes_nothing() -> None:
        """Eager tasks run up to their first wait at once: calls made together must still travel together."""
        handler = Recorder()

        async def main() -> None:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            async with Batcher(handler) as batcher, asyncio.TaskGroup() as tasks:
                started = [tasks.create_task(batcher.submit(item)) for item in range(50)]
            assert [task.result() for task in started] == [item * 10 for item in range(50)]

        run("asyncio", main)
        assert handler.sizes == [50]


# --- flush ------------------------------------------------------------------------------------------------------


async def test_flush_sends_what_is_buffered_and_returns_when_it_is_resolved() -> None:
    """The window is cut short, the handler awaited."""
    handler = Recorder(seconds=2)
    async with Batcher(handler, max_wait=1000) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(3)]
        start = anyio.current_time()
        await batcher.flush()
        assert anyio.current_time() - start == pytest.approx(2)
        assert all(pending.done() for pending in pendings)
    assert handler.reasons == ["flush"]


async def test_flush_on_an_empty_batcher_does_nothing() -> None:
    """No handler call for nothing, before the first item and after."""
    handler = Recorder()
    async with Batcher(handler, max_wait=1.0) as batcher:
        await batcher.flush()
        assert handler.batches == []
        await batcher.submit(1)
        await batcher.flush()
    await Batcher(handler).flush()
    assert handler.batches == [[1]]


async def test_flush_does_not_wait_for_batches_in_flight() -> None:
    """They are on their way already."""
    handler = Recorder(seconds=20)
    async with Batcher(handler, max_concurrency=2, max_wait=1.0) as batcher:
        batcher.submit_nowait(1)
        await anyio.sleep(2)
        handler.seconds = 1
        start = anyio.current_time()
        await batcher.flush()
        assert anyio.current_time() == start
        batcher.submit_nowait(2)
        await batcher.flush()
        assert anyio.current_time() - start == pytest.approx(1)


async def test_flush_sends_more_than_a_batch() -> None:
    """Everything buffered at the call, in as many batches as it takes."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_batch_size=2, max_wait=1000) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(5)]
        await batcher.flush()
        assert all(pending.done() for pending in pendings)
    assert handler.sizes == [2, 2, 1]


async def test_items_that_come_after_a_flush_wait_their_own_time() -> None:
    """They may ride along; the flush does not wait for those that do not."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_wait=100) as batcher:
        batcher.submit_nowait(1)
        async with anyio.create_task_group() as tasks:
            start = anyio.current_time()
            tasks.start_soon(batcher.flush)
            await anyio.sleep(0.5)
            late = batcher.submit_nowait(2)
        assert anyio.current_time() - start == pytest.approx(1)
        assert not late.done()
        assert await late == 20
        assert handler.started[1] - start == pytest.approx(100.5)


async def test_a_flush_ends_when_its_items_are_withdrawn() -> None:
    """It waits for items, and a withdrawn one will never be handled."""
    handler = Gate()
    ended: list[bool] = []
    async with Batcher(handler) as batcher, anyio.create_task_group() as tasks:
        first = batcher.submit_nowait(1)
        await turns()
        pending = batcher.submit_nowait(2)

        async def flush() -> None:
            await batcher.flush()
            ended.append(True)

        tasks.start_soon(flush)
        await turns()
        assert not ended
        pending.cancel()
        await turns()
        in_time = bool(ended)
        handler.opened.set()
        assert await first == 10
    assert in_time


async def test_two_flushes_at_once_both_end() -> None:
    """One by each of two requests is normal."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_wait=100) as batcher:
        batcher.submit_nowait(1)
        await outcomes(batcher.flush(), batcher.flush(), batcher.flush())
        assert counted(batcher).pending == 0
    assert handler.sizes == [1]


async def test_a_flush_ends_under_a_steady_stream_of_urgent_items() -> None:
    """It waits for what was there at the call, and that is not starved."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_batch_size=1) as batcher, anyio.create_task_group() as tasks:
        batcher.submit_nowait(-1)

        async def stream() -> None:
            while True:
                batcher.submit_nowait(1, priority=5)
                await anyio.sleep(1)

        tasks.start_soon(stream)
        await anyio.sleep(0.5)
        batcher.submit_nowait(-2)
        start = anyio.current_time()
        await batcher.flush()
        assert anyio.current_time() - start < 50
        tasks.cancel_scope.cancel()


async def test_a_failed_batch_does_not_fail_the_flush() -> None:
    """The error is its caller's."""

    async def handler(items: list[int]) -> list[int]:
        raise LookupError

    async with Batcher(handler, max_wait=100) as batcher:
        pending = batcher.submit_nowait(1)
        await batcher.flush()
        assert type(await outcome(pending)) is LookupError


# --- concurrency and room ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_no_more_batches_are_in_flight_than_max_concurrency(limit: int) -> None:
    """The connection pool behind the handler has only so many; and no slot stays idle under load."""
    handler = Recorder(seconds=1)
    async with Batcher(handler, max_concurrency=limit, max_batch_size=3) as batcher:
        await outcomes(*map(batcher.submit, range(60)))
    assert handler.peak == limit
    assert handler.sizes == [3] * 20


WAYS_TO_BUFFER: list[Any] = [
    {},
    {"max_wait": 1},
    {"weigh": lambda item: 1, "max_batch_weight": 1e9},
]


async def test_batches_whose_handler_answers_without_waiting_share_a_task() -> None:
    """A task for each would gain nothing: no two of them are ever under way at the same time."""
    seen = set()

    async def handler(items: list[int]) -> list[int]:
        seen.add(anyio.get_current_task().id)
        return items

    async with Batcher(handler, max_batch_size=10, max_concurrency=8) as batcher:
        assert await outcomes(*map(batcher.submit, range(500))) == list(range(500))
    assert len(seen) == 1


@pytest.mark.parametrize("settings", WAYS_TO_BUFFER, ids=["chunks", "window", "lanes"])
async def test_a_batch_that_waits_holds_up_nobody_behind_it(settings: Any) -> None:
    """Some answer at once, as out of a cache, and one among them does not."""
    opened = anyio.Event()

    async def handler(items: list[int]) -> list[int]:
        if 3 in items:
            await opened.wait()
        return items

    async with Batcher(handler, max_batch_size=1, max_concurrency=2, **settings) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(10)]
        await anyio.sleep(2)
        assert [pending.done() for pending in pendings] == [item != 3 for item in range(10)]
        opened.set()
        assert await pendings[3] == 3


async def test_slots_are_given_back_whatever_the_handler_does() -> None:
    """A slot lost to an error would be lost for good."""

    async def handler(items: list[int]) -> Any:
        if items[0] % 3 == 0:
            raise ValueError
        if items[0] % 3 == 1:
            raise BaseException
        return []

    async with Batcher(handler, max_concurrency=2, max_batch_size=1) as batcher:
        results = await outcomes(*map(batcher.submit, range(30)))
        assert all(isinstance(result, Exception) for result in results)
        assert counted(batcher).batches == 30


async def test_callers_wait_for_room_first_come_first_served() -> None:
    """The queue for room is fair, and the count of pending items never passes the limit."""
    handler = Recorder(seconds=1)
    async with (
        Batcher(handler, max_pending=4, max_batch_size=2) as batcher,
        anyio.create_task_group() as tasks,
    ):
        for item in range(12):
            tasks.start_soon(batcher.submit, item)
            await turns(3)
            assert counted(batcher).pending <= 4
        assert counted(batcher).waiting == 8
    assert [item for batch in handler.batches for item in batch] == list(range(12))


async def test_a_latecomer_does_not_take_the_room_of_those_that_wait() -> None:
    """A place that becomes free belongs to the oldest waiter from that moment on."""
    handler = Gate()
    async with Batcher(handler, max_pending=2) as batcher, anyio.create_task_group() as tasks:
        batcher.submit_nowait(1)
        await turns()
        buffered = batcher.submit_nowait(2)
        tasks.start_soon(batcher.submit, 3)
        await turns()
        assert counted(batcher).waiting == 1
        buffered.cancel()
        with pytest.raises(BatcherFull):
            batcher.submit_nowait(4)
        handler.opened.set()
    assert [item for batch in handler.batches for item in batch] == [1, 3]


async def test_unbounded_room_is_available_on_request() -> None:
    """max_pending=None: whoever asks for it has a bound elsewhere."""
    handler = Gate()
    async with Batcher(handler, max_pending=None) as batcher:
        for item in range(20_000):
            batcher.submit_nowait(item)
        await turns()
        assert counted(batcher).pending == 20_000
        handler.opened.set()
    assert counted(batcher).items == 20_000


async def test_room_smaller_than_a_batch_is_no_deadlock() -> None:
    """With room for three and batches of ten, three are all that can ever come together."""
    handler = Recorder()
    async with Batcher(handler, max_pending=3, max_batch_size=10, max_wait=5.0) as batcher:
        assert await outcomes(*map(batcher.submit, range(10))) == [item * 10 for item in range(10)]
    assert max(handler.sizes) == 3


# --- stats ------------------------------------------------------------------------------------------------------


async def test_stats_are_exact_at_every_moment() -> None:
    """Through the whole life of four items: buffered, in flight, early result, back-off, done."""
    from microbatch import Backoff, Retry

    gates = [anyio.Event() for _ in range(3)]
    calls = 0

    async def handler(items: list[str]) -> list[Any]:
        nonlocal calls
        gate = gates[calls]
        calls += 1
        await gate.wait()
        return [ConnectionError() if item == "flaky" and calls == 1 else item for item in items]

    def books() -> tuple[int, ...]:
        stats = counted(batcher)
        return (
            stats.buffered,
            stats.in_flight,
            stats.in_backoff,
            stats.batches,
            stats.items,
            stats.failed,
        )

    retry = Retry(on=ConnectionError, backoff=Backoff(initial=1.0, jitter=0.0))
    batcher: Batcher[str, str] = Batcher(handler, max_batch_size=2, retry=retry)
    async with batcher:
        assert books() == (0, 0, 0, 0, 0, 0)
        good, flaky = batcher.submit_nowait("good"), batcher.submit_nowait("flaky")
        third = batcher.submit_nowait("third")
        assert counted(batcher).pending == 3
        await turns()
        assert books() == (1, 2, 0, 0, 0, 0)
        gates[0].set()
        await turns()
        assert good.done()
        assert books() == (0, 1, 1, 1, 1, 0)
        gates[1].set()
        await turns()
        assert third.done()
        assert books() == (0, 0, 1, 2, 2, 0)
        await anyio.sleep(1.5)
        assert books() == (0, 1, 0, 2, 2, 0)
        gates[2].set()
        assert await flaky == "flaky"
        assert books() == (0, 0, 0, 3, 3, 0)
        assert batcher.stats().oldest_in_flight in (None, 0.0)


async def test_withdrawn_and_rejected_items_are_in_no_count() -> None:
    """They were never handled; each withdrawal is counted off once."""
    handler = Gate()
    async with Batcher(handler, max_pending=5) as batcher:
        held = batcher.submit_nowait(0)
        await turns()
        others = [batcher.submit_nowait(item) for item in range(1, 5)]
        with pytest.raises(BatcherFull):
            batcher.submit_nowait(9)
        for pending in others:
            pending.cancel()
            pending.cancel()
        assert counted(batcher).pending == 1
        handler.opened.set()
        await held
    stats = counted(batcher)
    assert (stats.batches, stats.items, stats.failed, stats.pending) == (1, 1, 0, 0)


async def test_items_that_share_a_crash_are_counted_as_failed() -> None:
    """failed counts items, batches counts calls."""

    async def handler(items: list[int]) -> list[int]:
        raise ValueError

    async with Batcher(handler, max_batch_size=3) as batcher:
        await outcomes(*map(batcher.submit, range(7)))
        stats = counted(batcher)
    assert (stats.batches, stats.items, stats.failed) == (3, 7, 7)


async def test_stats_are_a_snapshot() -> None:
    """What was read does not change afterwards."""
    async with Batcher(Recorder()) as batcher:
        before = batcher.stats()
        await batcher.submit(1)
        assert (before.items, dict(before.reasons).get("idle", 0)) == (0, 0)
        with pytest.raises(AttributeError):
            before.items = 5  # type: ignore[misc]


# --- a size that learns -----------------------------------------------------------------------------------------


async def test_an_adaptive_size_settles_near_the_knee() -> None:
    """Up to 30 items a call gets cheaper per item; beyond, dearer: the size finds it by itself, and stays."""
    sizes: list[int] = []

    async def handler(items: list[int]) -> list[int]:
        size = len(items)
        sizes.append(size)
        await anyio.sleep(0.03 + 0.001 * size + max(0, size - 30) * 0.01)
        return items

    size = AdaptiveSize(1, 200, target=1.0)
    async with Batcher(handler, max_batch_size=size, max_pending=None) as batcher:
        await batcher.submit_many(range(6_000))
    settled = sizes[len(sizes) // 2 : -1]
    assert len(settled) > 100
    assert all(20 <= size <= 36 for size in settled), settled


async def test_an_adaptive_size_halves_on_an_error_burst() -> None:
    """A failing backend is helped by smaller calls, not larger ones."""
    failing = False

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(0.1)
        if failing:
            raise ConnectionError
        return items

    size = AdaptiveSize(1, 1000, target=10.0)
    async with Batcher(handler, max_batch_size=size, max_pending=None) as batcher:
        await batcher.submit_many(range(2000))
        before = size.size
        assert before > 20
        failing = True
        await outcomes(batcher.submit_many(range(before)))
        assert size.size <= before / 2
        assert size.size >= 1


async def test_an_adaptive_size_stays_under_its_latency_target() -> None:
    """Throughput is not everything: a call slower than the target shrinks the next."""
    slowest = 0.0

    async def handler(items: list[int]) -> list[int]:
        nonlocal slowest
        seconds = 0.1 + 0.1 * len(items)
        slowest = max(slowest, seconds)
        await anyio.sleep(seconds)
        return items

    size = AdaptiveSize(1, 1_000, target=1.0)
    async with Batcher(handler, max_batch_size=size, max_pending=None) as batcher:
        await batcher.submit_many(range(2_000))
    assert slowest < 3.0
    assert size.size <= 30


async def test_batches_are_never_larger_than_the_adaptive_maximum() -> None:
    """maximum is a promise to the backend."""
    handler = Recorder()
    async with Batcher(handler, max_batch_size=AdaptiveSize(2, 8), max_pending=None) as batcher:
        await batcher.submit_many(range(500))
    assert max(handler.sizes) <= 8
    assert handler.sizes[0] == 2


# --- closed -----------------------------------------------------------------------------------------------------


async def test_entering_a_closed_batcher_is_refused() -> None:
    """Closed is closed: a new start is a new batcher."""
    batcher = Batcher(Recorder(), name="gone")
    await batcher.aclose()
    with pytest.raises(BatcherClosed, match="'gone'"):
        async with batcher:
            pass


async def test_outside_of_a_batch_there_is_no_current_batch() -> None:
    """Layers work without a Batcher: they ask, and get None."""
    assert current_batch() is None
    async with Batcher(Recorder()) as batcher:
        await batcher.submit(1)
        assert current_batch() is None
