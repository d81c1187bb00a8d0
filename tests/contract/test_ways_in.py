"""The ways in: ``submit``, ``submit_nowait`` with its pending, ``submit_many`` and its report."""

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
from support import BACKENDS, Gate, Recorder, counted, outcome, outcomes, run, tasks_alive, turns

from microbatch import (
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


pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


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
