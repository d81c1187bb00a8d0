# ruff: noqa: ASYNC110 - a thread cannot set an anyio.Event
"""Plain handlers in worker threads, and threads that never come back. On the real clock."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import numpy as np
import pytest
from support import counted, outcome, outcomes

from microbatch import (
    Batcher,
    BatcherClosed,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ResultCountError,
    WouldDeadlock,
    current_batch,
)

pytestmark = [pytest.mark.anyio, pytest.mark.real_time, pytest.mark.timeout(180)]


def tens(items: list[int]) -> list[int]:
    return [item * 10 for item in items]


async def test_a_plain_handler_runs_in_a_thread() -> None:
    """It may block: the loop goes on meanwhile, here to let it go."""
    threads: list[int] = []
    blocked, go = threading.Event(), threading.Event()

    def handler(items: list[int]) -> list[int]:
        threads.append(threading.get_ident())
        blocked.set()
        assert go.wait(60)
        return tens(items)

    async with Batcher(handler) as batcher, anyio.create_task_group() as tasks:

        async def release() -> None:
            while not blocked.is_set():
                await anyio.sleep(0.001)
            go.set()

        tasks.start_soon(release)
        assert await outcomes(*map(batcher.submit, range(5))) == [0, 10, 20, 30, 40]
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


class Callable:
    def __call__(self, items: list[int]) -> list[int]:
        assert threading.current_thread() is not threading.main_thread()
        return tens(items)

    def method(self, items: list[int]) -> list[int]:
        return self(items)


@pytest.mark.parametrize("handler", [
    pytest.param(functools.partial(lambda factor, items: [item * factor for item in items], 10), id="partial"),
    pytest.param(Callable(), id="object"),
    pytest.param(Callable().method, id="method"),
    pytest.param(functools.partial(Callable()), id="partial object"),
    pytest.param(lambda items: tuple(tens(items)), id="tuple"),
    pytest.param(lambda items: np.array(items) * 10, id="numpy"),
])  # fmt: skip
async def test_any_plain_callable_is_a_handler(handler: Any) -> None:
    """Partials, objects, methods, lambdas; NumPy arrays come back as results."""
    async with Batcher(handler) as batcher:
        assert await outcomes(*map(batcher.submit, range(3))) == [0, 10, 20]


async def test_a_plain_callable_that_returns_an_awaitable_is_awaited_in_the_loop() -> None:
    """A lambda around a coroutine function does not look like one."""
    main = threading.get_ident()

    async def real(items: list[int]) -> list[int]:
        assert threading.get_ident() == main
        await anyio.lowlevel.checkpoint()
        return tens(items)

    async with Batcher(real) as batcher:
        assert await outcomes(*map(batcher.submit, range(3))) == [0, 10, 20]


async def test_a_plain_handlers_failures_are_those_of_an_async_one() -> None:
    """Raised, returned, rubbish: the contract does not ask where it ran."""

    def handler(items: list[Any]) -> Any:
        if "raise" in items:
            raise LookupError("thread")
        if "short" in items:
            return []
        if "stop" in items:
            raise StopIteration
        return [ValueError(item) if item == "bad" else item for item in items]

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, ["raise", 1]))
        assert [type(error) for error in errors] == [LookupError, LookupError]
        assert errors[0] is not errors[1]
        results = await outcomes(*map(batcher.submit, ["bad", 1]))
        assert [type(results[0]), results[1]] == [ValueError, 1]
        assert type(await outcome(batcher.submit("short"))) is ResultCountError
        assert isinstance(await outcome(batcher.submit("stop")), Exception)
        assert await batcher.submit("good") == "good"


@pytest.mark.parametrize("kind", [GeneratorExit, type("Boom", (BaseException,), {})])
async def test_a_base_exception_in_a_thread_is_a_crash(kind: Any) -> None:
    """It must end neither the loop nor the worker thread's pool."""

    def handler(items: list[int]) -> list[int]:
        if 0 in items:
            raise kind
        return items

    async with Batcher(handler) as batcher:
        error = await outcome(batcher.submit(0))
        assert type(error) is HandlerCrashed
        assert error.kind == kind.__name__
        assert await batcher.submit(1) == 1


async def test_a_plain_handler_knows_its_batch() -> None:
    """current_batch() and early results work from the worker thread, too."""
    seen: list[Any] = []
    go_on = threading.Event()

    def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        seen.append((batch.size, batch.reason))
        batch.resolve(0, "early")
        go_on.wait(60)
        return items

    async with Batcher(handler) as batcher:
        first, second = batcher.submit_nowait(1), batcher.submit_nowait(2)
        assert await first == "early"
        assert not second.done()
        go_on.set()
        assert await second == 2
    assert seen == [(2, "idle")]


async def test_a_plain_handler_that_waits_on_its_own_batcher_is_refused() -> None:
    """From its thread the ways back are the portal and submit_from_thread: both would wait for themselves."""
    refusals: list[Any] = []

    def handler(items: list[int]) -> list[int]:
        for call in (
            functools.partial(batcher.submit_from_thread, 5, timeout=60),
            functools.partial(anyio.from_thread.run, batcher.submit, 5),
        ):
            try:
                call()
            except RuntimeError as error:
                refusals.append(error)
        return items

    batcher: Batcher[int, int] = Batcher(handler)
    async with batcher:
        assert await batcher.submit(1) == 1
    assert type(refusals[0]) is WouldDeadlock
    assert len(refusals) == 2


async def test_a_thread_that_never_returns_frees_its_slot_on_time() -> None:
    """Threads cannot be killed: the callers get their timeout, the next batch gets a thread of its own."""
    hold, began = threading.Event(), threading.Event()

    def handler(items: list[int]) -> list[int]:
        if 0 in items:
            began.set()
            hold.wait(120)
        return items

    try:
        async with Batcher(handler, handler_timeout=0.05) as batcher:
            # A busy machine may not start a thread in time: then it is not stuck.
            calls = 0
            while not began.is_set():
                calls += 1
                assert type(await outcome(batcher.submit(0))) is HandlerTimeout
            assert 1 <= batcher.stats().stuck_threads <= calls  # it has not returned
            await answers(batcher)
            hold.set()
            while batcher.stats().stuck_threads:
                await anyio.sleep(0.005)
    finally:
        hold.set()


async def test_stuck_threads_are_bounded() -> None:
    """With more than eight new batches fail, rather than take a thread more each."""
    hold = threading.Event()
    started = 0

    def handler(items: list[int]) -> list[int]:
        nonlocal started
        started += 1
        hold.wait(120)
        return items

    try:
        async with Batcher(handler, handler_timeout=0.02, max_batch_size=1) as batcher:
            kinds: list[type] = []
            while HandlerStuck not in kinds:
                assert len(kinds) < 1000
                kinds.append(type(await outcome(batcher.submit(0))))
            # More than nine calls where a machine is too busy to start a thread in time: it is not stuck.
            assert kinds.count(HandlerTimeout) >= 9
            assert set(kinds) == {HandlerTimeout, HandlerStuck}
            while started < batcher.stats().stuck_threads:
                await anyio.sleep(0.005)
            assert started == batcher.stats().stuck_threads == 9
            assert [type(await outcome(batcher.submit(0))) for _ in range(3)] == [HandlerStuck] * 3
            assert counted(batcher).pending == 0
            hold.set()
            while batcher.stats().stuck_threads:
                await anyio.sleep(0.005)
            await answers(batcher)
    finally:
        hold.set()


async def answers(batcher: Batcher[int, int]) -> None:
    """See that a batcher works, however often its short timeout is over first on a busy machine."""
    while (result := await outcome(batcher.submit(1))) != 1:
        assert type(result) is HandlerTimeout


async def test_closing_does_not_wait_for_ever_for_a_thread() -> None:
    """aclose returns after its drain and a bounded grace; the callers are told."""
    hold = threading.Event()

    def handler(items: list[int]) -> list[int]:
        hold.wait(120)
        return items

    batcher = Batcher(handler)
    try:
        pending = batcher.submit_nowait(1)
        await anyio.sleep(0.02)
        start = time.monotonic()
        await batcher.aclose(drain_timeout=0.05)
        assert time.monotonic() - start < 60
        error = await outcome(pending)
        assert type(error) is BatcherClosed
        assert error.started
    finally:
        hold.set()


async def test_max_concurrency_bounds_the_threads() -> None:
    """As many plain handlers at once as there are slots, and not fewer."""
    lock, running, peak = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=60)

    def handler(items: list[int]) -> list[int]:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        together.wait()
        with lock:
            running -= 1
        return items

    async with Batcher(handler, max_batch_size=1, max_concurrency=3) as batcher:
        assert await outcomes(*map(batcher.submit, range(6))) == list(range(6))
    assert peak == 3


async def test_context_variables_do_not_leak_into_the_thread() -> None:
    """The first caller's tenant must not be the handler's."""
    import contextvars

    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    def handler(items: list[int]) -> list[int]:
        seen.append(tenant.get())
        tenant.set("handler")
        return items

    batcher = Batcher(handler)
    for name in ("first", "second"):
        tenant.set(name)
        await batcher.submit(1)
    assert seen == ["nobody", "nobody"]
    assert tenant.get() == "second"
    await batcher.aclose()
