"""virtual: a clock that jumps, what holds it, and the end of a loop in which nothing will happen any more."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
import time
import types
import weakref
from typing import Any

import anyio
import pytest
import trio

from microbatch._loops import virtual
from microbatch._loops.calling import run_in_thread
from microbatch._loops.virtual import VirtualLoop, thread_at_work, trio_clock

pytestmark = pytest.mark.timeout(180)

LOOPS = ["asyncio", "trio"]

#: Longer than any test, however slow the machine: in real time nothing waits so long.
HOURS = 100 * 3600.0


def run(name: str, main: Any) -> Any:
    options = {"clock": trio_clock()} if name == "trio" else {"loop_factory": VirtualLoop}
    return anyio.run(main, backend=name, backend_options=options)


async def limited(function: Any, seconds: float = HOURS) -> Any:
    """Call a function in a thread; None if the clock came to the limit first."""
    limiter = anyio.CapacityLimiter(1)
    with anyio.move_on_after(seconds):
        return await run_in_thread(function, limiter=limiter, abandon_on_cancel=True)


@pytest.mark.parametrize("name", LOOPS)
def test_the_clock_jumps_to_each_timer_in_its_order(name: str) -> None:
    """At its exact time, whatever else there is to do."""
    seen: list[Any] = []

    async def note(hours: int) -> None:
        await anyio.sleep(hours * 3600)
        seen.append((hours, (anyio.current_time() - began) / 3600))

    async def main() -> None:
        nonlocal began
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for hours in (30, 1, 500, 2):
                tasks.start_soon(note, hours)

    began = 0.0
    run(name, main)
    assert [hours for hours, _ in seen] == [1, 2, 30, 500]
    assert [at for _, at in seen] == pytest.approx([1, 2, 30, 500])


@pytest.mark.parametrize("name", LOOPS)
def test_the_clock_does_not_jump_past_a_thread(name: str) -> None:
    """Every timeout that guards a plain handler would be over before the thread had begun."""
    go = threading.Event()

    def work() -> str:
        go.wait(20)
        return "done"

    async def main() -> tuple[Any, float]:
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                limited, lambda: None
            )  # the first to end does not let go for the other
            threading.Timer(0.1, go.set).start()
            result = await limited(work)
        waited = anyio.current_time() - began
        await anyio.sleep(HOURS)  # and then it jumps again
        return result, waited

    result, waited = run(name, main)
    assert result == "done"
    assert 0 < waited < HOURS


@pytest.mark.parametrize("name", LOOPS)
def test_time_passes_while_a_thread_works(name: str) -> None:
    """Or nothing would ever end a thread that hangs."""
    go = threading.Event()

    async def main() -> Any:
        try:
            return await limited(lambda: go.wait(20), seconds=0.05)
        finally:
            go.set()

    assert run(name, main) is None


def test_asyncios_own_threads_hold_the_clock_too() -> None:
    """``asyncio.to_thread`` is what an application uses."""
    go = threading.Event()

    async def main() -> Any:
        threading.Timer(0.1, go.set).start()
        return await asyncio.wait_for(asyncio.to_thread(go.wait, 20), HOURS)

    assert run("asyncio", main) is True


def test_the_clock_does_not_jump_past_threads_that_the_loop_waits_for_in_the_end() -> None:
    """``asyncio.run`` gives them five minutes, from Python 3.12 on, and warns of those that are left."""

    async def main() -> None:
        given_up = asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.2)
        await asyncio.sleep(0)
        given_up.cancel()

    run("asyncio", main)


def test_in_real_time_nothing_is_held() -> None:
    """On any loop, and where a virtual clock of trio's exists that does not run here."""
    clock = trio_clock()

    async def main() -> str:
        with thread_at_work():
            return "within"

    assert anyio.run(main) == anyio.run(main, backend="trio") == "within"
    assert clock.autojump_threshold == 0


def test_a_clock_of_somebody_elses_is_left_alone() -> None:
    """Who steps trio's clock by hand wants it to stand still."""
    clock = trio.testing.MockClock()

    async def main() -> float:
        with thread_at_work():
            return clock.rate

    assert trio.run(main, clock=clock) == 0


def test_trios_clocks_are_freed() -> None:
    """One is made for each test of a suite."""
    clock = trio_clock()
    gone = weakref.ref(clock)
    del clock
    gc.collect()
    assert gone() is None


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were the one thread: a test runner has more. The patience is short, for nothing comes."""
    monkeypatch.setattr(virtual, "PATIENCE", 0.05)
    monkeypatch.setattr(threading, "active_count", lambda: 1)


@types.coroutine
def stepped() -> Any:
    yield from asyncio.Event().wait().__await__()


async def forever() -> None:
    await stepped()


@pytest.mark.usefixtures("alone")
def test_a_loop_in_which_nothing_can_happen_ends_with_an_error_that_says_where_it_waits() -> None:
    """In place of a hang."""

    async def main() -> None:
        task = asyncio.create_task(forever(), name="the task")
        await task

    with pytest.raises(RuntimeError) as raised:
        run("asyncio", main)
    text = str(raised.value)
    assert text.startswith("nothing can happen any more in virtual time: no task can run, no timer")
    assert "\n  the task: forever (test_virtual.py:" in text
    assert " > stepped (test_virtual.py:" in text
    assert "more" not in text.partition("What waits:")[2]


@pytest.mark.usefixtures("alone")
def test_the_error_tells_of_ten_tasks_and_how_many_more() -> None:
    """A thousand lines are read by nobody."""

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(forever)

    with pytest.raises(RuntimeError, match=r"\n  and 3 more$") as raised:
        run("asyncio", main)
    assert str(raised.value).count("\n  ") == 11


@pytest.mark.usefixtures("alone")
def test_what_comes_late_after_all_is_taken() -> None:
    """A thread that Python does not know may still wake the loop, as one does that tokio has started."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        late = threading.Timer(0.2, loop.call_soon_threadsafe, (woken.set,))
        late.start()
        await woken.wait()
        late.join()

    virtual.PATIENCE = 20.0  # undone by the fixture
    run("asyncio", main)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("by", ["socket", "signal", "thread", "held"])
def test_a_loop_that_somebody_may_wake_waits_for_it(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that has nothing to do, or that is told to stop by a signal, is no deadlock."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        ours, theirs = socket.socketpair()
        wake = lambda: loop.call_soon_threadsafe(woken.set)  # noqa: E731
        if by == "socket":
            loop.add_reader(ours, woken.set)
            wake = lambda: theirs.send(b"x")  # noqa: E731
        elif by == "signal":
            loop.add_signal_handler(signal.SIGUSR1, woken.set)
            wake = lambda: signal.raise_signal(signal.SIGUSR1)  # noqa: E731
        elif by == "thread":
            monkeypatch.setattr(threading, "active_count", lambda: 2)
        late = threading.Timer(10 * virtual.PATIENCE, wake)
        late.start()
        if by == "held":
            with thread_at_work():
                await woken.wait()
        else:
            await woken.wait()
        loop.remove_reader(ours)
        late.join()
        ours.close()
        theirs.close()

    run("asyncio", main)
