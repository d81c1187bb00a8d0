"""One batcher and several event loops, one after the other: closing belongs to the loop that it served."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support import Gate, Recorder, counted, outcome, run, turns

from microbatch import Batcher, BatcherClosed, batched, current_batch

pytestmark = pytest.mark.timeout(180)


async def used(batcher: Any) -> None:
    assert await batcher.submit(1) == 10


async def used_within(batcher: Any) -> None:
    async with batcher:
        assert await batcher.submit_many([1, 2]) == [10, 20]


async def used_and_closed(batcher: Any) -> None:
    """Start-up, requests and shut-down of one application, each in a task of its own."""
    for hook in (batcher.__aenter__, lambda: used(batcher), batcher.aclose):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hook)
    assert isinstance(await outcome(batcher.submit(1)), BatcherClosed)


async def only_closed(batcher: Any) -> None:
    await batcher.aclose()
    await batcher.aclose()
    assert isinstance(await outcome(batcher.submit(1)), BatcherClosed)


async def left_with_items(batcher: Any) -> None:
    """The loop ends while an item is buffered, and the next one might be appended unasked."""
    batcher.submit_nowait(1)


async def closed_with_items(batcher: Any) -> None:
    pending = batcher.submit_nowait(1)
    await batcher.aclose(0)
    assert isinstance(await outcome(pending), BatcherClosed)


async def given_up(batcher: Any) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await batcher.aclose()


LIVES = [
    used,
    used_within,
    used_and_closed,
    only_closed,
    left_with_items,
    closed_with_items,
    given_up,
]


@pytest.mark.asyncio_logs  # of what its loop's end left
@pytest.mark.parametrize("second", LIVES, ids=lambda life: life.__name__)
@pytest.mark.parametrize("first", LIVES, ids=lambda life: life.__name__)
@pytest.mark.parametrize("max_wait", [0.0, 5.0])
def test_a_batcher_works_in_the_next_loop_whatever_the_last_one_did(
    max_wait: float, first: Any, second: Any, backend_name: str
) -> None:
    """A module's batcher, closed by a shut-down hook, is used by the next test's application."""
    batcher: Batcher[Any, Any] = Batcher(Recorder(), max_wait=max_wait)
    for life in (first, second, used_within):
        run(backend_name, life, batcher)
    assert counted(batcher).pending == 0


def test_a_batched_function_works_in_the_next_loop(backend_name: str) -> None:
    """It stands in a module, so it has no other life."""

    @batched(max_batch_size=5)
    async def tens(items: list[int]) -> list[int]:
        return [item * 10 for item in items]

    async def application() -> None:
        async with tens:
            assert await tens(1) == 10

    async def shut_down() -> None:
        assert await tens(2) == 20
        await tens.aclose()

    for main in (application, shut_down, application):
        run(backend_name, main)


def test_the_context_of_entry_ends_with_its_loop(backend_name: str) -> None:
    """The next application may not enter it: its batches then run in an empty context."""
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    async def handler(items: list[int]) -> list[int]:
        assert current_batch() is not None
        seen.append(tenant.get())
        return items

    batcher: Batcher[Any, Any] = Batcher(handler)

    async def entered() -> None:
        tenant.set("first")
        async with batcher:
            await batcher.submit(1)

    async def plain() -> None:
        await batcher.submit(1)

    run(backend_name, entered)
    run(backend_name, plain)
    assert seen == ["first", "nobody"]


@pytest.mark.parametrize("closed", [False, True])
def test_a_second_loop_is_refused_while_the_first_lives(closed: bool, backend_name: str) -> None:
    """Closed or not: whose futures these are is what matters."""
    batcher: Batcher[Any, Any] = Batcher(Recorder(), name="b", max_wait=0.01)
    errors: list[Any] = []

    async def other() -> None:
        for call in (batcher.submit, batcher.submit_many, batcher.submit_many_report):
            errors.append(await outcome(call([1])))
        for call in (batcher.flush, batcher.aclose, batcher.__aenter__):
            errors.append(await outcome(call()))

    async def first() -> None:
        pending = batcher.submit_nowait(1)
        if closed:
            await batcher.aclose()
        thread = threading.Thread(target=run, args=(backend_name, other))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        assert await pending == 10

    run(backend_name, first, real_time=True)
    assert len(errors) == 6
    for error in errors:
        assert isinstance(error, RuntimeError)
        assert "still alive" in str(error)


# --- closing ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["cancelled", "raised", "at once", "timeout"])
async def test_closing_at_once_ends_every_caller_there_and_then(way: str) -> None:
    """Buffered, in flight, waiting for room, alone or in bulk: nobody waits for the handler to give in."""
    handler, ends = Gate(), []
    release = anyio.Event()

    async def stubborn(items: list[int]) -> list[Any]:
        try:
            return await handler(items)
        finally:
            with anyio.CancelScope(shield=True):
                await release.wait()

    batcher: Batcher[Any, Any] = Batcher(stubborn, max_batch_size=1, max_pending=2)

    async def call(item: int) -> None:
        ends.append(await outcome(batcher.submit(item)))

    async def bulk() -> None:
        report = await batcher.submit_many_report([7, 8])
        ends.extend(one.error for one in report)

    async def close() -> None:
        if way == "cancelled":
            with anyio.CancelScope() as scope:
                scope.cancel()
                await batcher.aclose()
        elif way == "raised":
            with pytest.raises(KeyError):
                async with batcher:
                    raise KeyError
        else:
            await batcher.aclose(0 if way == "at once" else 3.0)

    async with anyio.create_task_group() as tasks:
        for item in range(4):
            tasks.start_soon(call, item)
            await turns(2)
        tasks.start_soon(bulk)
        await turns()
        assert (counted(batcher).pending, counted(batcher).waiting) == (2, 3)
        begun = anyio.current_time()
        tasks.start_soon(close)
        await turns()
        if way == "timeout":
            assert len(ends) == 4  # who waits for room is told at once
            await anyio.sleep(3.0)
            await turns()
        assert len(ends) == 6
        assert anyio.current_time() - begun == (3.0 if way == "timeout" else 0)
        await anyio.sleep(4.9)
        release.set()
    assert [type(end) for end in ends] == [BatcherClosed] * 6
    assert sum(end.started for end in ends) == 1


@pytest.mark.anyio
async def test_handlers_that_do_not_end_are_awaited_for_a_bounded_time() -> None:
    """Five seconds: enough for a rollback."""
    release = anyio.Event()

    async def handler(items: list[int]) -> None:
        with anyio.CancelScope(shield=True):
            while not release.is_set():
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    await release.wait()

    batcher: Batcher[Any, Any] = Batcher(handler)
    pending = batcher.submit_nowait(1)
    await turns()
    begun = anyio.current_time()
    await batcher.aclose(0)
    assert anyio.current_time() - begun == pytest.approx(5.0)
    assert isinstance(await outcome(pending), BatcherClosed)
    release.set()
    await turns()


# --- one after the other, and at the same time ------------------------------------------------------------------


def test_two_loops_one_after_the_other_simply_work(backend_name: str) -> None:
    """pytest gives every test a loop of its own; module-level batchers must bear it."""
    handler = Recorder()
    batcher = Batcher(handler)

    async def use() -> Any:
        return await batcher.submit_many([1, 2, 3])

    assert [run(backend_name, use) for _ in range(3)] == [[10, 20, 30]] * 3
    assert counted(batcher).items == 9


@pytest.mark.asyncio_logs
def test_a_batcher_whose_loop_ended_within_its_block_may_be_entered_in_the_next(
    backend_name: str,
) -> None:
    """Nobody can leave that block any more."""
    batcher = Batcher(Recorder())

    async def leave() -> None:
        await batcher.__aenter__()

    async def use() -> Any:
        async with batcher:
            return await batcher.submit(1)

    run(backend_name, leave)
    assert run(backend_name, use) == 10


def test_a_batcher_moves_from_one_kind_of_loop_to_another(backend_name: str) -> None:
    """Nothing of the first loop's kind may be remembered."""
    batcher = Batcher(Recorder())

    async def use() -> Any:
        return await batcher.submit_many([1, 2])

    assert [run(name, use) for name in ("asyncio", backend_name, "trio", backend_name)] == [
        [10, 20]
    ] * 4


@pytest.mark.parametrize("call", ["submit", "submit_nowait", "submit_many", "flush", "aclose"])
def test_a_second_loop_at_the_same_time_is_told_so(backend_name: str, call: str) -> None:
    """async-batcher, smartbatch and ray hang in silence."""
    handler = Recorder()
    batcher = Batcher(handler, name="shared")
    busy, done = threading.Event(), threading.Event()
    first: list[Any] = []

    async def hold() -> None:
        first.append(await batcher.submit(1))
        busy.set()
        await anyio.to_thread.run_sync(done.wait)
        first.append(await batcher.submit(2))

    async def intrude() -> None:
        arguments = {"submit": (5,), "submit_nowait": (5,), "submit_many": ([5],)}.get(call, ())
        result = getattr(batcher, call)(*arguments)
        if call != "submit_nowait":
            await result

    thread = threading.Thread(target=run, args=(backend_name, hold), kwargs={"real_time": True})
    thread.start()
    try:
        assert busy.wait(60)
        with pytest.raises(RuntimeError, match="loop") as caught:
            run(backend_name, intrude, real_time=True)
        assert "'shared'" in str(caught.value)
    finally:
        done.set()
        thread.join(60)
    assert first == [10, 20]
    assert 5 not in handler.seen
    assert run(backend_name, batcher.submit, 3) == 30


@pytest.mark.parametrize("first", ["asyncio", "trio"])
@pytest.mark.parametrize("second", ["asyncio", "trio", None])
def test_another_kind_of_loop_or_none_is_told_so_too(first: str, second: str | None) -> None:
    """A trio program, an asyncio program and a plain thread in one process; a fast path must not mistake them."""
    batcher = Batcher(Recorder(), name="shared")
    busy, done = threading.Event(), threading.Event()

    async def hold() -> Any:
        batcher.submit_nowait(0)  # the buffer is open: the way in is at its shortest
        busy.set()
        await anyio.to_thread.run_sync(done.wait)
        return await batcher.submit(1)

    async def intrude() -> None:
        batcher.submit_nowait(5)

    with ThreadPoolExecutor() as pool:
        held = pool.submit(run, first, hold, real_time=True)
        assert busy.wait(60)
        try:
            with pytest.raises(RuntimeError):
                if second is None:
                    batcher.submit_nowait(5)
                else:
                    run(second, intrude, real_time=True)
        finally:
            done.set()
        assert held.result(60) == 10
    assert counted(batcher).items == 2
