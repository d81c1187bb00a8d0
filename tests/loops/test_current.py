"""What a loop's loop gives: timers, calls from threads, the clock, and which loop it is."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio
import trio.lowlevel
from support import run, turns

from microbatch._loops.current import current_loop
from microbatch._loops.on_asyncio import AsyncioLoop

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


def on_trio() -> bool:
    return sniffio.current_async_library() == "trio"


# --- timers and threads -----------------------------------------------------------------------------------------


async def test_a_timer_rings_at_its_time_in_a_context_of_nobody() -> None:
    """Not in that of whoever happened to set it: that would keep a request's context alive."""
    loop = current_loop()
    rung: list[Any] = []
    variable.set("a caller's")
    start = anyio.current_time()
    assert loop.now() == pytest.approx(start, abs=1e-3)
    loop.call_at(start + 5, lambda: rung.append((loop.now(), variable.get())))
    await anyio.sleep(4.9)
    assert rung == []
    await anyio.sleep(0.2)
    assert rung == [(pytest.approx(start + 5, abs=0.01), "nothing")]


async def test_a_cancelled_timer_does_not_ring() -> None:
    """Cancelled before, or while it is being set up."""
    loop = current_loop()
    rung: list[int] = []
    loop.call_at(loop.now() + 5, lambda: rung.append(1)).cancel()
    handle = loop.call_at(loop.now() + 5, lambda: rung.append(2))
    await anyio.sleep(1)
    handle.cancel()
    await anyio.sleep(10)
    assert rung == []


@pytest.mark.real_time
async def test_a_timer_that_is_cancelled_just_before_its_time_does_not_ring() -> None:
    """Though its time has come before the loop has its next turn."""
    loop = current_loop()
    rung: list[int] = []
    handle = loop.call_at(loop.now() + 0.05, lambda: rung.append(1))
    handle.cancel()
    time.sleep(0.1)  # noqa: ASYNC251 - the loop is busy meanwhile
    await turns()
    assert rung == []


@pytest.mark.real_time
async def test_another_thread_calls_into_the_loop() -> None:
    """In the loop's thread, and in nobody's context."""
    loop = current_loop()
    called = anyio.Event()
    seen: list[Any] = []
    variable.set("a caller's")

    def call() -> None:
        seen.append((threading.current_thread() is threading.main_thread(), variable.get()))
        called.set()

    await anyio.to_thread.run_sync(loop.call_from_thread, call)
    await called.wait()
    assert seen == [(True, "nothing")]


# --- which loop -------------------------------------------------------------------------------------------------


async def test_a_runtime_knows_its_own_loop() -> None:
    """From anywhere in it, and from no other thread."""
    loop = current_loop()
    assert loop.is_current()
    assert not loop.has_ended()
    elsewhere: list[bool] = []
    thread = threading.Thread(target=lambda: elsewhere.append(loop.is_current()))
    thread.start()
    thread.join()
    assert elsewhere == [False]


def test_a_runtime_knows_that_its_loop_has_ended(backend_name: str) -> None:
    """What was left in it is lost, and a batcher may serve the next one."""
    loops: list[Any] = []

    async def main() -> None:
        loops.append(current_loop())

    run(backend_name, main)
    assert loops[0].has_ended()
    assert not loops[0].is_current()
    with pytest.raises(RuntimeError):
        loops[0].call_from_thread(print)


def test_without_an_event_loop_there_is_no_runtime() -> None:
    """The message says what to do."""
    with pytest.raises(RuntimeError, match=r"no event loop is running here.*submit_from_thread"):
        current_loop()


def test_trio_as_a_guest_of_asyncio_is_served_as_trio() -> None:
    """Its tasks are trio's, and the host's callbacks are asyncio's: both run in one thread."""
    seen: list[Any] = []

    async def guest() -> str:
        seen.append(type(current_loop()).__name__)
        return "done"

    async def host() -> str:
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        seen.append(type(current_loop()).__name__)
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        return (await ended).unwrap()  # type: ignore[no-any-return]

    assert asyncio.run(host()) == "done"
    assert seen == ["AsyncioLoop", "TrioLoop"]


async def test_a_breath_lets_everybody_have_a_turn() -> None:
    """A batch is cut after all who are runnable have put their item in; asyncio needs one turn."""
    loop = current_loop()
    seen: list[str] = []

    async def other() -> None:
        seen.append("other")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await loop.breathe()
        seen.append("us")
    assert sorted(seen) == ["other", "us"]
    if not on_trio():  # trio shuffles, on purpose
        assert seen == ["other", "us"]


def test_the_clock_is_the_loops_own_be_it_replaced_by_a_test() -> None:
    """Timers are set by it, so what they are compared with must be the same clock."""
    loop = asyncio.new_event_loop()
    try:
        loop.time = lambda: 12345.0
        assert AsyncioLoop(loop).now() == 12345.0
    finally:
        loop.close()
