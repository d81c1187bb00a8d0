"""Waiting on the own batcher inside its handler is refused; submitting, and waiting on another, is not."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import counted, outcome, outcomes

from microbatch import Batcher, WouldDeadlock

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.mark.parametrize("call", ["submit", "submit_many", "submit_many_report", "flush", "aclose"])
async def test_waiting_on_the_own_batcher_is_refused_at_once(call: str) -> None:
    """A deadlock in other batchers: the batch waits for the slot that it holds."""
    refusals: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        arguments = {"submit": (5,), "submit_many": ([5],), "submit_many_report": ([5],)}.get(
            call, ()
        )
        refusals.append(await outcome(getattr(batcher, call)(*arguments)))
        return items

    batcher: Batcher[int, int] = Batcher(handler, name="self")
    async with batcher:
        assert await batcher.submit(1) == 1
        assert await batcher.submit(2) == 2
    assert [type(refusal) for refusal in refusals] == [WouldDeadlock, WouldDeadlock]
    assert isinstance(refusals[0], RuntimeError)
    assert refusals[0].call == call
    assert f"{call}() inside a handler of batcher 'self'" in str(refusals[0])
    assert counted(batcher).items == 2


async def test_leaving_async_with_inside_the_own_handler_is_refused() -> None:
    """`async with` closes, and closing waits."""
    refusals: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        try:
            async with batcher:
                pass
        except WouldDeadlock as error:
            refusals.append(error)
        return items

    batcher: Batcher[int, int] = Batcher(handler)
    assert await batcher.submit(1) == 1
    assert len(refusals) == 1
    await batcher.aclose()


async def test_a_task_started_by_the_handler_is_refused_while_the_batch_runs_and_free_after_it() -> (
    None
):
    """Detached tasks outlive their batch: then they are callers like any other."""
    seen: list[Any] = []

    async def later(task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        seen.append(await outcome(batcher.submit(5)))
        await anyio.sleep(10)
        seen.append(await outcome(batcher.submit(6)))

    async def handler(items: list[int]) -> list[int]:
        if 1 in items:
            tasks.start_soon(later)
            await anyio.sleep(1)
        return [item * 10 for item in items]

    batcher: Batcher[int, int] = Batcher(handler)
    async with batcher, anyio.create_task_group() as tasks:
        assert await batcher.submit(1) == 10
    assert [type(seen[0]), seen[1]] == [WouldDeadlock, 60]


async def test_a_crawler_may_submit_what_it_finds() -> None:
    """submit_nowait does not wait, so it is allowed inside the handler; nothing is lost when the batcher closes."""
    visited: list[int] = []

    async def handler(items: list[int]) -> None:
        visited.extend(items)
        for item in items:
            if item < 50:
                batcher.submit_nowait(2 * item)
                batcher.submit_nowait(2 * item + 1)
        await anyio.sleep(1)

    batcher: Batcher[int, None] = Batcher(handler, max_batch_size=7)
    async with batcher:
        await batcher.submit(1)
        await anyio.sleep(100)
    assert sorted(visited) == list(range(1, 100))


async def test_another_batchers_handler_may_wait_on_this_one() -> None:
    """Chains are fine, only waiting for oneself is refused."""

    async def inner(items: list[int]) -> list[int]:
        return [item + 1 for item in items]

    async def outer(items: list[int]) -> list[int]:
        return await second.submit_many(items)

    second: Batcher[int, int] = Batcher(inner)
    async with second, Batcher(outer) as first:
        assert await outcomes(*map(first.submit, range(5))) == [1, 2, 3, 4, 5]


async def test_a_cycle_through_two_batchers_is_ended_by_the_timeout() -> None:
    """Not detected, but not for ever either."""

    async def ping(items: list[int]) -> list[int]:
        return await second.submit_many(items)

    async def pong(items: list[int]) -> list[int]:
        return await first.submit_many(items)

    first: Batcher[int, int] = Batcher(ping, handler_timeout=5.0)
    second: Batcher[int, int] = Batcher(pong)
    error = await outcome(first.submit(1))
    assert isinstance(error, Exception)
    await first.aclose(drain_timeout=1.0)
    await second.aclose(drain_timeout=1.0)
