"""batcher: the rare ways through its face; test_contract and test_torture have the others."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, counted, outcome, turns

from microbatch import Batcher, BatcherClosed
from microbatch import batcher as batcher_module

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]


def test_a_batchers_name_is_its_handlers_unless_told_otherwise() -> None:
    """It stands in every error and log."""

    async def load(items: list[int]) -> list[int]:
        return items

    assert Batcher(load).name.endswith("<locals>.load")
    batcher = Batcher(load, name="orders")
    assert batcher.name == "orders"
    assert repr(batcher) == "<Batcher 'orders' open>"


async def test_two_forced_closings_at_once_both_wait_for_the_handler() -> None:
    """Whoever closes may rely on it that nothing of the batcher runs any more."""
    ended: list[str] = []

    async def handler(items: list[int]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            ended.append("handler")

    batcher = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()

    async def close() -> None:
        await batcher.aclose(0)
        ended.append("close")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close)
        tasks.start_soon(close)
    assert type(await outcome(pending)) is BatcherClosed
    assert ended == ["handler", "close", "close"]


# submit_from_thread


def in_thread(function: Any, *args: Any) -> tuple[threading.Thread, list[Any]]:
    """Start a thread; its result, or the exception, comes into the list."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(function(*args))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results


@pytest.mark.real_time
async def test_a_thread_that_gives_up_before_the_loop_had_a_turn_leaves_nothing() -> None:
    """A loop that is busy must not take in later what nobody waits for any more."""
    handler = Recorder()
    async with Batcher(handler) as batcher:
        thread, results = in_thread(batcher.submit_from_thread, 1, 0.01)
        thread.join()  # the loop stands still meanwhile
        assert type(results[0]) is TimeoutError
        assert str(results[0]) == "no result within timeout=0.01 s"
        await turns()
        assert counted(batcher).pending == 0
    assert handler.batches == []


@pytest.mark.real_time
async def test_a_thread_that_gives_up_withdraws_its_item_there_and_then() -> None:
    """With an entry for each item its room is free at once."""
    gate = Gate()
    async with Batcher(gate, max_batch_size=1, partition=lambda _: "one") as batcher:
        first = batcher.submit_nowait(0)
        await turns()
        thread, results = in_thread(batcher.submit_from_thread, 1, 0.05)
        await anyio.to_thread.run_sync(thread.join)
        assert type(results[0]) is TimeoutError
        await anyio.sleep(0.01)
        assert batcher._buffered() == 0
        gate.opened.set()
        assert await first == 0
    assert gate.batches == [[0]]


@pytest.mark.real_time
async def test_a_thread_without_a_timeout_waits_as_long_as_it_takes(monkeypatch: Any) -> None:
    """It looks now and then whether the loop is still there."""
    monkeypatch.setattr(batcher_module, "_THREAD_GLANCE", 0.005)
    gate = Gate()
    async with Batcher(gate) as batcher:
        thread, results = in_thread(batcher.submit_from_thread, 1)
        await anyio.sleep(0.05)
        assert thread.is_alive()
        gate.opened.set()
        await anyio.to_thread.run_sync(thread.join)
    assert results == [10]


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
            patch.setattr(batcher._runtime, "call_from_thread", ended)
            thread, results = in_thread(batcher.submit_from_thread, 1)
            thread.join()
        assert type(results[0]) is BatcherClosed
        assert results[0].started is False
