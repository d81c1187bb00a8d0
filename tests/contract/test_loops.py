"""One batcher and several event loops, one after the other: closing belongs to the loop that it served."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support import Gate, Recorder, counted, outcome, run, turns

from microbatch import Batcher, BatcherClosed, batched, current_batch

pytestmark = pytest.mark.timeout(30)


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
