"""_runtime: the same small primitives on asyncio, uvloop and trio."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import queue
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio
import trio.lowlevel
from support import Recorder, outcome, run, turns

from microbatch import Batcher
from microbatch._loops.context import in_context
from microbatch._loops.current import current_runtime
from microbatch._loops.on_asyncio import AsyncioRuntime
from microbatch._loops.waiting import ThreadWaiter

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


def on_trio() -> bool:
    return sniffio.current_async_library() == "trio"


def make_waiter(kind: str, cancelled: list[Any]) -> Any:
    runtime = current_runtime()
    if kind == "plain":
        return runtime.create_waiter()
    if kind == "watched":
        return runtime.watched_waiter(cancelled.append)
    waiter = runtime.create_waiter()
    runtime.watch(waiter, cancelled.append)
    return waiter


kinds = pytest.mark.parametrize("kind", ["plain", "watched", "watched later"])


# waiters


@kinds
async def test_a_waiter_hands_a_result_to_who_awaits_it(kind: str) -> None:
    """Whether it comes before or after the awaiting began."""
    cancelled: list[Any] = []
    early, late = make_waiter(kind, cancelled), make_waiter(kind, cancelled)
    assert not early.done()
    early.set_result(1)
    assert early.done()
    results: list[Any] = []

    async def wait(waiter: Any) -> None:
        results.append(await waiter)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, late)
        await turns()
        late.set_result(2)
        tasks.start_soon(wait, early)
    assert sorted(results) == [1, 2]
    assert not early.cancel()
    await turns()
    assert cancelled == []


@kinds
async def test_a_waiter_raises_an_exception_in_who_awaits_it(kind: str) -> None:
    """Before or after the awaiting began."""
    for early in (True, False):
        waiter = make_waiter(kind, [])
        error = KeyError("k")
        if early:
            waiter.set_exception(error)
            assert await outcome(waiter) is error
        else:
            found: list[Any] = []

            async def wait(waiter: Any = waiter, found: list[Any] = found) -> None:
                found.append(await outcome(waiter))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await turns()
                waiter.set_exception(error)
            assert found == [error]


@kinds
async def test_cancelling_the_awaiting_task_cancels_the_waiter(kind: str) -> None:
    """A waiter that is watched tells whose caller has gone."""
    cancelled: list[Any] = []
    waiter = make_waiter(kind, cancelled)
    with anyio.move_on_after(1):
        await waiter
    await turns()
    assert waiter.done()
    assert waiter.cancelled()
    assert cancelled == ([] if kind == "plain" else [waiter])
    assert not waiter.cancel()
    await turns()
    assert len(cancelled) <= 1


@kinds
async def test_a_waiter_can_be_cancelled_by_hand(kind: str) -> None:
    """`Pending.cancel`, with and without somebody who awaits it."""
    cancelled: list[Any] = []
    waiter = make_waiter(kind, cancelled)
    assert waiter.cancel()
    assert not waiter.cancel()
    await turns()
    assert cancelled == ([] if kind == "plain" else [waiter])

    awaited = make_waiter(kind, [])
    ended: list[Any] = []

    async def wait() -> None:
        try:
            await awaited
        except BaseException as error:
            ended.append(type(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await turns()
        assert awaited.cancel()
    assert ended == [RuntimeError if on_trio() else asyncio.CancelledError]


async def test_a_watched_waiter_tells_of_its_cancellation_there_and_then() -> None:
    """Counts are exact at every moment; asyncio by itself would tell one turn later."""
    cancelled: list[Any] = []
    waiter = current_runtime().watched_waiter(cancelled.append)
    waiter.cancel()
    assert cancelled == [waiter]
    done = current_runtime().watched_waiter(cancelled.append)
    done.set_result(1)
    assert not done.cancel()
    assert len(cancelled) == 1


async def test_what_has_no_future_inside_is_watched_by_attribute() -> None:
    """A blocked thread's waiter is no future of the loop."""
    waiter = ThreadWaiter()
    current_runtime().watch(waiter, print)
    assert waiter.on_cancel is print


def test_a_trio_waiter_has_one_awaiter() -> None:
    """A second task would wake no more."""

    async def main() -> None:
        waiter = current_runtime().create_waiter()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, waiter)
            await turns()
            with pytest.raises(RuntimeError, match="another task awaits it already"):
                await waiter
            waiter.set_result(1)

    run("trio", main)


def test_a_trio_waiter_ends_once() -> None:
    """The first outcome stands, as a future's does; a cancelled one says so; an error is raised once."""

    async def main() -> None:
        runtime = current_runtime()
        waiter = runtime.create_waiter()
        waiter.set_result(1)
        waiter.set_result(2)
        waiter.set_exception(KeyError())
        assert await waiter == 1
        assert await waiter == 1
        assert not waiter.cancelled()
        failed = runtime.create_waiter()
        failed.set_exception(KeyError("k"))
        assert type(await outcome(failed)) is KeyError
        with pytest.raises(RuntimeError, match="exception was raised already"):
            await failed
        gone = runtime.create_waiter()
        gone.cancel()
        with pytest.raises(RuntimeError, match="this Pending was cancelled"):
            await gone

    run("trio", main)


def test_a_trio_waiters_unseen_exception_is_logged_once(caplog: Any) -> None:
    """As asyncio does for a future: a failure must not end in silence."""

    async def main() -> None:
        runtime = current_runtime()
        unseen, seen, good = (runtime.create_waiter() for _ in range(3))
        unseen.set_exception(KeyError("lost"))
        seen.set_exception(KeyError("seen"))
        good.set_result(1)
        await outcome(seen)

    with caplog.at_level(logging.ERROR):
        run("trio", main)
        gc.collect()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["exception of a Pending was never retrieved"]
    assert caplog.records[0].name == "microbatch"
    assert "lost" in caplog.text


def test_a_trio_waiter_is_made_in_its_own_run_only() -> None:
    """Another run's scheduler could not wake it."""
    runtimes: list[Any] = []

    async def first() -> None:
        runtimes.append(current_runtime())

    async def second() -> None:
        with pytest.raises(RuntimeError, match="serves another run of trio"):
            runtimes[0].create_waiter()

    run("trio", first)
    run("trio", second)


# timers and threads


async def test_a_timer_rings_at_its_time_in_a_context_of_nobody() -> None:
    """Not in that of whoever happened to set it: that would keep a request's context alive."""
    runtime = current_runtime()
    rung: list[Any] = []
    variable.set("a caller's")
    start = anyio.current_time()
    assert runtime.now() == pytest.approx(start, abs=1e-3)
    runtime.call_at(start + 5, lambda: rung.append((runtime.now(), variable.get())))
    await anyio.sleep(4.9)
    assert rung == []
    await anyio.sleep(0.2)
    assert rung == [(pytest.approx(start + 5, abs=0.01), "nothing")]


async def test_a_cancelled_timer_does_not_ring() -> None:
    """Cancelled before, or while it is being set up."""
    runtime = current_runtime()
    rung: list[int] = []
    runtime.call_at(runtime.now() + 5, lambda: rung.append(1)).cancel()
    handle = runtime.call_at(runtime.now() + 5, lambda: rung.append(2))
    await anyio.sleep(1)
    handle.cancel()
    await anyio.sleep(10)
    assert rung == []


@pytest.mark.real_time
async def test_another_thread_calls_into_the_loop() -> None:
    """In the loop's thread, and in nobody's context."""
    runtime = current_runtime()
    called = anyio.Event()
    seen: list[Any] = []
    variable.set("a caller's")

    def call() -> None:
        seen.append((threading.current_thread() is threading.main_thread(), variable.get()))
        called.set()

    await anyio.to_thread.run_sync(runtime.call_from_thread, call)
    await called.wait()
    assert seen == [(True, "nothing")]


# which loop


async def test_a_runtime_knows_its_own_loop() -> None:
    """From anywhere in it, and from no other thread."""
    runtime = current_runtime()
    assert runtime.is_current()
    assert not runtime.has_ended()
    elsewhere: list[bool] = []
    thread = threading.Thread(target=lambda: elsewhere.append(runtime.is_current()))
    thread.start()
    thread.join()
    assert elsewhere == [False]


def test_a_runtime_knows_that_its_loop_has_ended(backend_name: str) -> None:
    """What was left in it is lost, and a batcher may serve the next one."""
    runtimes: list[Any] = []

    async def main() -> None:
        runtimes.append(current_runtime())

    run(backend_name, main)
    assert runtimes[0].has_ended()
    assert not runtimes[0].is_current()
    with pytest.raises(RuntimeError):
        runtimes[0].call_from_thread(print)


def test_without_an_event_loop_there_is_no_runtime() -> None:
    """The message says what to do."""
    with pytest.raises(RuntimeError, match=r"no event loop is running here.*submit_from_thread"):
        current_runtime()


def test_trio_as_a_guest_of_asyncio_is_served_as_trio() -> None:
    """Its tasks are trio's, and the host's callbacks are asyncio's: both run in one thread."""
    seen: list[Any] = []

    async def guest() -> str:
        seen.append(type(current_runtime()).__name__)
        return "done"

    async def host() -> str:
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        seen.append(type(current_runtime()).__name__)
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        return (await ended).unwrap()  # type: ignore[no-any-return]

    assert asyncio.run(host()) == "done"
    assert seen == ["AsyncioRuntime", "TrioRuntime"]


async def test_a_breath_lets_everybody_have_a_turn() -> None:
    """A batch is cut after all who are runnable have put their item in; asyncio needs one turn."""
    runtime = current_runtime()
    seen: list[str] = []

    async def other() -> None:
        seen.append("other")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await runtime.breathe()
        seen.append("us")
    assert sorted(seen) == ["other", "us"]
    if not on_trio():  # trio shuffles, on purpose
        assert seen == ["other", "us"]


def test_the_clock_is_the_loops_own_be_it_replaced_by_a_test() -> None:
    """Timers are set by it, so what they are compared with must be the same clock."""
    loop = asyncio.new_event_loop()
    try:
        loop.time = lambda: 12345.0
        assert AsyncioRuntime(loop).now() == 12345.0
    finally:
        loop.close()


# in_context


def nothing() -> None:
    """Be told that a call waits, and not care."""


async def work(steps: list[Any]) -> str:
    steps.append(variable.get())
    variable.set("the work's")
    await anyio.sleep(1)
    steps.append(variable.get())
    try:
        await anyio.sleep(10)
    except BaseException as error:
        steps.append((type(error) is anyio.get_cancelled_exc_class(), variable.get()))
        raise
    return "done"


async def test_a_call_in_a_context_sees_that_context_only() -> None:
    """From its first step to its last; what it sets there stays there."""
    base = contextvars.copy_context()
    base.run(variable.set, "the base's")
    variable.set("ours")
    steps: list[Any] = []
    assert await in_context(base, work, steps, nothing) == "done"
    assert steps == ["the base's", "the work's"]
    assert variable.get() == "ours"
    assert base[variable] == "the base's"
    steps.clear()
    assert await in_context(None, work, steps, nothing) == "done"
    assert steps == ["nothing", "the work's"]


async def test_who_asks_is_told_when_a_call_in_a_context_first_waits() -> None:
    """Once, before anything else runs; not at all of a call that answers at once."""
    told: list[str] = []

    async def call(waits: int) -> str:
        told.append("called")
        for _ in range(waits):
            await anyio.lowlevel.checkpoint()
            told.append("resumed")
        return "done"

    assert await in_context(None, call, 0, lambda: told.append("waits")) == "done"
    assert told == ["called"]
    told.clear()
    assert await in_context(None, call, 2, lambda: told.append("waits")) == "done"
    assert told == ["called", "waits", "resumed", "resumed"]


async def test_a_cancellation_reaches_the_call_in_its_context() -> None:
    """It cleans up where it was."""
    steps: list[Any] = []
    with anyio.move_on_after(5):
        await in_context(None, work, steps, nothing)
    assert steps == ["nothing", "the work's", (True, "the work's")]


async def test_what_a_call_in_a_context_raises_comes_through() -> None:
    """At once, or after a while; and from an awaitable that is no coroutine."""

    async def fail(later: bool) -> None:
        if later:
            await anyio.lowlevel.checkpoint()
        raise KeyError(later)

    for later in (False, True):
        error = await outcome(in_context(None, fail, later, nothing))
        assert type(error) is KeyError
        assert error.args == (later,)

    class Awaitable:
        def __await__(self) -> Any:
            yield from anyio.lowlevel.checkpoint().__await__()
            return variable.get()

    assert await in_context(None, lambda _: Awaitable(), None, nothing) == "nothing"


def test_a_call_in_a_context_is_closed_with_who_awaits_it() -> None:
    """A loop that ends closes its coroutines: theirs is closed too, in its context."""
    steps: list[Any] = []

    class Forever:
        def __await__(self) -> Any:
            yield "waiting"

    async def call(_: Any) -> None:
        variable.set("the work's")
        try:
            await Forever()
        finally:
            steps.append(variable.get())

    async def outer() -> None:
        await in_context(None, call, None, nothing)

    coroutine = outer()
    assert coroutine.send(None) == "waiting"
    coroutine.close()
    assert steps == ["the work's"]
    with pytest.raises(RuntimeError, match="cannot reuse"):
        coroutine.send(None)


# a blocked thread's waiter


def test_a_threads_waiter_takes_the_first_outcome() -> None:
    """A second one, or one that comes after its thread has gone, changes nothing."""
    waiter = ThreadWaiter()
    assert not waiter.wait(0)
    assert not waiter.done()
    waiter.set_result(1)
    waiter.set_result(2)
    waiter.set_exception(KeyError())
    assert waiter.done()
    assert waiter.wait(0)
    assert waiter.result() == 1
    assert not waiter.cancel()
    assert not waiter.cancelled()

    failed = ThreadWaiter()
    failed.set_exception(KeyError("k"))
    failed.set_result(1)
    with pytest.raises(KeyError, match="k"):
        failed.result()

    gone = ThreadWaiter()
    assert gone.cancel()
    assert gone.cancelled()
    gone.set_result(1)
    gone.set_exception(KeyError())
    assert gone.done()
    assert gone.cancelled()


def test_a_threads_waiter_wakes_its_thread() -> None:
    """As soon as there is an answer, whatever it would have waited."""
    waiter = ThreadWaiter()
    threading.Timer(0.01, waiter.set_result, ["x"]).start()
    assert waiter.wait(10)
    assert waiter.result() == "x"


def test_nothing_leaves_a_system_task_of_trio(caplog: Any) -> None:
    """It would end the whole run: whatever it is, it is logged and the others go on."""

    async def main() -> str:
        runtime = current_runtime()

        async def fail(argument: Any) -> None:
            await runtime.started()
            raise KeyError(argument)

        runtime.spawn(fail, "lost", "orders")
        await turns()
        return "alive"

    with caplog.at_level(logging.ERROR, logger="microbatch"):
        assert run("trio", main) == "alive"
    assert [record.getMessage() for record in caplog.records] == [
        "a task of batcher 'orders' failed"
    ]
    assert "KeyError: 'lost'" in caplog.text


def test_a_callback_of_whoever_hosts_trio_is_served_as_trio() -> None:
    """A button's, where trio runs as the guest of a GUI: no task of trio's, and no loop of asyncio's."""
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ended: list[Any] = []

    async def guest() -> Any:
        batcher: Batcher[int, int] = Batcher(Recorder())
        pressed: list[Any] = []
        todo.put(lambda: pressed.append(batcher.submit_nowait(1)))
        while not pressed:
            await trio.lowlevel.checkpoint()
        return await pressed[0]

    trio.lowlevel.start_guest_run(
        guest, run_sync_soon_threadsafe=todo.put, done_callback=ended.append
    )
    while not ended:
        todo.get(timeout=10)()
    assert ended[0].unwrap() == 10


async def test_a_waiter_tells_its_end_once() -> None:
    """For a record of each item: cancelling what has ended is no second end."""
    ends: list[Any] = []
    for end in ("set_result", "set_exception", "cancel"):
        waiter = current_runtime().item_waiter(None)
        waiter.on_end = lambda error, cancelled: ends.append((error, cancelled))
        argument = {"set_result": [1], "set_exception": [KeyError()], "cancel": []}[end]
        getattr(waiter, end)(*argument)
        assert not waiter.cancel()
        await outcome(waiter) if end != "cancel" else None
    assert [(type(error), cancelled) for error, cancelled in ends] == [
        (type(None), False),
        (KeyError, False),
        (type(None), True),
    ]


def test_on_trio_a_callback_that_raises_is_logged_and_ends_nothing(caplog: Any) -> None:
    """asyncio goes on too; out of a system task it would end the whole program."""

    def fail() -> None:
        raise LookupError("callback")

    async def main() -> None:
        runtime = current_runtime()
        runtime.call_at(runtime.now() + 1, fail)
        runtime.call_from_thread(fail)
        await anyio.sleep(5)

    run("trio", main)
    assert caplog.text.count("a callback of a batcher failed") == 2


def test_a_trio_items_waiter_tells_of_its_end_once() -> None:
    """Its span is ended by the first outcome, as its caller is."""
    ended: list[Any] = []

    async def main() -> None:
        waiter = current_runtime().item_waiter(None)
        waiter.on_end = lambda error, cancelled: ended.append(error)
        waiter.set_result(1)
        waiter.set_exception(LookupError())
        assert await waiter == 1

    run("trio", main)
    assert ended == [None]
