"""batcher, from_thread and forks, where only the inside lets a test come to the moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, counted, in_thread, turns

from microbatch import Batcher, BatcherClosed
from microbatch._core import engine, from_thread, room
from microbatch._core.batcher import engine_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.mark.real_time
async def test_a_thread_without_a_timeout_waits_as_long_as_it_takes(monkeypatch: Any) -> None:
    """It looks now and then whether the loop is still there."""
    monkeypatch.setattr(from_thread, "_PROBE_INTERVAL", 0.005)
    gate = Gate()
    async with Batcher(gate) as batcher:
        thread, results = in_thread(batcher.submit_from_thread, 1)
        await anyio.sleep(0.05)
        assert thread.is_alive()
        gate.opened.set()
        await anyio.to_thread.run_sync(thread.join)
    assert results == [10]


async def test_figures_are_read_in_another_thread_while_the_flat_lists_get_entries(
    monkeypatch: Any,
) -> None:
    """Readers of metrics come at any moment, also at the one in which neither was there."""
    seen: list[Any] = []
    make = room.Lanes

    def lanes(*args: Any, **settings: Any) -> Any:
        thread, results = in_thread(lambda: (batcher.stats(), engine_of(batcher).room.figures()))
        thread.join()
        seen.extend(results)
        return make(*args, **settings)

    monkeypatch.setattr(room, "Lanes", lanes)
    gate = Gate()
    async with Batcher(gate) as batcher:
        pendings = [batcher.submit_nowait(0)]
        await turns()
        pendings += [batcher.submit_nowait(item) for item in (1, 2)]
        pendings.append(batcher.submit_nowait(3, priority=1))
        ((stats, figures),) = seen
        assert (stats.buffered, stats.in_flight) == (2, 1)
        assert figures["microbatch.queue.size"] == 3
        gate.opened.set()
        assert [await one for one in pendings] == [0, 10, 20, 30]


def test_who_counts_in_another_thread_may_find_the_entries_gone() -> None:
    """It saw that there were no flat lists, and then nothing was left that needed more."""
    between: Any = SimpleNamespace(fifo=None, lanes=None)
    assert room.Room.buffered(between) == 0


@pytest.mark.real_time
async def test_a_loop_that_ends_between_a_look_and_a_call_is_a_closed_batcher(
    monkeypatch: Any,
) -> None:
    """The thread must not see how the loop says no."""
    handler = Recorder()
    async with Batcher(handler, name="orders") as batcher:

        def ended(callback: Any) -> None:
            raise RuntimeError("Event loop is closed")

        with monkeypatch.context() as patch:
            patch.setattr(engine_of(batcher).serving.loop, "call_from_thread", ended)
            thread, results = in_thread(batcher.submit_from_thread, 1)
            thread.join()
        assert type(results[0]) is BatcherClosed
        assert results[0].started is False


async def test_a_forked_childs_batcher_starts_empty() -> None:
    """test_fork forks; this is what runs in the child."""
    gate = Gate()
    batcher = Batcher(gate)
    pending = batcher.submit_nowait(1)
    await turns()
    engine._forget_everything()
    assert counted(batcher).pending == 0
    gate.opened.set()
    second = batcher.submit_nowait(2)
    assert await second == 20
    pending.cancel()
    await batcher.aclose()


@pytest.mark.asyncio_logs  # of the task that it takes along, if the collector comes by
async def test_a_bulk_that_a_fork_took_along_is_nobodys_when_it_is_cancelled() -> None:
    """As above: the child's books know nothing of it."""
    batcher = Batcher(Gate(), max_pending=1, max_wait=5.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher.submit_many, range(3))
        await turns()
        assert counted(batcher).waiting == 1
        engine._forget_everything()
        second = batcher.submit_nowait(2)
        tasks.cancel_scope.cancel()
    stats = counted(batcher)
    assert (stats.pending, stats.waiting) == (1, 0)
    assert second.cancel()
    await batcher.aclose()
