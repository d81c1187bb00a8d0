"""Event loops that end without asking: what was there is nobody's, and the next loop starts empty."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import anyio
import pytest
from support import (
    Gate,
    Recorder,
    VirtualLoop,
    counted,
    leaves,
    outcome,
    outcomes,
    run,
    stop_the_clock,
    turns,
)

from microbatch import Batcher, HandlerCrashed

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.mark.asyncio_logs
def test_a_loop_that_ends_without_a_close_is_forgotten(backend_name: str) -> None:
    """Scripts and tests do it all the time: the next loop finds an empty batcher, not a dead one."""
    handler = Recorder(seconds=1)
    batcher = Batcher(handler, max_batch_size=2, max_pending=5)

    async def leave() -> None:
        for item in range(5):
            batcher.submit_nowait(item)
        await turns()
        assert counted(batcher).in_flight >= 1

    async def go_on() -> Any:
        stats = counted(batcher)
        assert (stats.pending, stats.waiting) == (0, 0)
        return await outcomes(*(batcher.submit(item) for item in (7, 8)))

    for _ in range(3):
        run(backend_name, leave)
        assert run(backend_name, go_on) == [70, 80]


@pytest.mark.asyncio_logs
def test_a_loop_that_ends_without_a_close_starts_nothing_more(
    backend_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop cancels the batch in flight: that must not send the next one."""
    handler = Gate()
    batcher = Batcher(handler, max_batch_size=2)

    async def leave() -> None:
        for item in range(5):
            batcher.submit_nowait(item)
        await turns()
        assert handler.sizes == [2]
        stop_the_clock()  # else it jumps over the pause that follows a cancellation

    run(backend_name, leave)
    assert handler.sizes == [2]
    gc.collect()
    assert "Task was destroyed" not in caplog.text


@pytest.mark.asyncio_logs
def test_a_loop_that_ends_while_callers_wait_for_room_leaves_no_room_taken(
    backend_name: str,
) -> None:
    """Their places and their turn in the queue belong to the loop that is gone."""
    batcher: Batcher[int, int] = Batcher(Recorder(seconds=100), max_pending=1)

    async def leave() -> None:
        with anyio.move_on_after(1):
            await outcomes(*map(batcher.submit, range(4)))

    async def crowd() -> None:
        for item in range(4):
            if item == 0:
                batcher.submit_nowait(item)
        await turns()
        assert counted(batcher).pending == 1

    for _ in range(2):
        run(backend_name, leave)
        run(backend_name, crowd)


def stopped_in_a_batch(batcher: Batcher[int, int], items: int) -> tuple[Any, list[Any]]:
    """Return a loop that was stopped while a handler worked, and what was handed in there."""
    loop = VirtualLoop()
    pending: list[Any] = []

    async def leave() -> None:
        pending.extend(map(batcher.submit_nowait, range(items)))
        await turns()

    loop.run_until_complete(leave())
    return loop, pending


@pytest.mark.asyncio_logs
def test_a_task_of_a_closed_loop_that_is_collected_later_changes_nothing() -> None:
    """Without asyncio.run nobody cancels it: it ends when the garbage collector comes, in the next loop's time."""
    gate = Gate()
    batcher = Batcher(gate, max_batch_size=1)
    gc.collect()
    gc.disable()
    try:
        loop, pending = stopped_in_a_batch(batcher, 3)
        loop.close()
        del loop

        async def go_on() -> None:
            gate.opened = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(batcher.submit_many, range(5))
                await turns()
                before = counted(batcher)
                assert (before.pending, before.in_flight) == (5, 1)
                pending.clear()
                gc.collect()
                await turns()
                assert counted(batcher) == before
                gate.opened.set()
            assert (counted(batcher).pending, counted(batcher).batches) == (0, 5)
            await batcher.aclose()

        run("asyncio", go_on)
    finally:
        gc.enable()


def destroy(task: Any) -> None:
    """Do what the garbage collector does; it would also say that the task was pending, in a later test."""
    task._log_destroy_pending = False  # noqa: SLF001 - asyncio's
    task.get_coro().close()


@pytest.mark.parametrize("closed", [False, True])
def test_a_batch_whose_task_is_destroyed_fails_its_callers(closed: bool) -> None:
    """In a loop that merely stopped they still wait, and the batcher goes on; in a closed one nobody does."""
    gate = Gate()
    batcher = Batcher(gate, max_batch_size=1)
    loop, pending = stopped_in_a_batch(batcher, 2)
    (task,) = asyncio.all_tasks(loop)
    if closed:
        loop.close()
    destroy(task)
    if closed:
        assert not pending[0].done()
        return

    async def go_on() -> None:
        error = await outcome(pending[0])
        assert (type(error), str(error)) == (RuntimeError, "the batch's task is gone")
        gate.opened.set()
        assert await pending[1] == 10
        await batcher.aclose()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is not None

    loop.run_until_complete(go_on())
    loop.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.asyncio_logs
def test_an_interrupt_in_the_handler_goes_where_it_belongs(backend_name: str, kind: Any) -> None:
    """Ctrl-C while the handler runs must end the program, and the callers must not be left hanging."""
    ended: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(0.01)
        raise kind

    async def main() -> None:
        async with Batcher(handler) as batcher:
            try:
                ended.append(await outcome(batcher.submit(1)))
            finally:
                ended.append("left")
            await anyio.sleep(1)
            ended.append("survived")

    with pytest.raises(BaseException) as caught:
        run(backend_name, main)

    assert kind in {type(leaf) for leaf in leaves(caught.value)}
    assert "left" in ended
    if len(ended) >= 2:
        assert type(ended[0]) is HandlerCrashed
    # trio lets nothing but Ctrl-C out of a task that is nobody's child: SystemExit waits for the close.
    assert "survived" not in ended or (backend_name, kind) == ("trio", SystemExit)
