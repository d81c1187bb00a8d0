"""In which context handlers run, and what they can learn about their batch."""

from __future__ import annotations

import contextvars
from typing import Any

import anyio
import pytest
from support import outcomes, turns

from microbatch import Backoff, Batcher, BatchInfo, Retry, current_batch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class Watching:
    """A handler that notes whose context it runs in, and tries to leave something behind."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.seen.append(tenant.get())
        tenant.set("handler")
        await anyio.sleep(0.1)
        self.seen.append(tenant.get())
        return items


async def test_a_batch_never_runs_in_a_submitters_context() -> None:
    """Persistent workers run every later batch in the first caller's: a leaked tenant, a wrong trace."""
    handler = Watching()
    batcher = Batcher(handler)
    for name in ("first", "second"):
        tenant.set(name)
        await batcher.submit(1)
        assert tenant.get() == name
    await batcher.aclose()
    assert handler.seen == ["nobody", "handler"] * 2


async def test_a_batch_runs_in_a_fresh_copy_of_the_context_of_entry() -> None:
    """`async with` is where an application sets up what its handlers need; batches do not see each other's changes."""
    handler = Watching()
    tenant.set("application")
    batcher = Batcher(handler)
    async with batcher:
        tenant.set("caller")
        await batcher.submit(1)
        await batcher.submit(2)
    assert handler.seen == ["application", "handler"] * 2


@pytest.mark.parametrize("way", ["wait", "retry", "room", "close"])
async def test_batches_started_by_timers_and_by_other_batches_keep_the_context(way: str) -> None:
    """Whoever happens to start a batch lends it nothing."""
    seen: list[str] = []
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        seen.append(tenant.get())
        tenant.set("handler")
        await anyio.sleep(0.1)
        if way == "retry" and calls == 1:
            raise ConnectionError
        return items

    settings: dict[str, Any] = {
        "wait": {"max_wait": 1.0},
        "retry": {"retry": Retry(on=ConnectionError, backoff=Backoff(initial=1, jitter=0))},
        "room": {"max_pending": 1},
        "close": {"max_wait": 1000.0},
    }[way]
    tenant.set("application")
    batcher: Batcher[int, int] = Batcher(handler, **settings)
    async with batcher:
        tenant.set("caller")
        if way == "close":
            batcher.submit_nowait(1)
        else:
            await outcomes(batcher.submit(1), batcher.submit(2))
    assert set(seen) == {"application"}


async def test_a_batch_knows_its_size_reason_partition_and_attempts() -> None:
    """For logs, for layers, and for handlers that tread more softly at the second attempt."""
    seen: list[Any] = []

    async def handler(items: list[str]) -> list[str]:
        for _ in range(2):
            batch = current_batch()
            assert isinstance(batch, BatchInfo)
            seen.append((batch.size, batch.reason, batch.partition, list(batch.attempts)))
            await anyio.sleep(1)
        return items

    async with Batcher(handler, partition=len, max_batch_size=2) as batcher:
        await outcomes(*(batcher.submit_nowait(item) for item in ("a", "b", "cc")))
    one, two = (1, "idle", 2, [1]), (2, "size", 1, [1, 1])
    assert sorted(seen) == [one, one, two, two]


async def test_without_a_partition_the_partition_is_none() -> None:
    """There is only one."""
    seen: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        seen.append(batch.partition)
        return items

    async with Batcher(handler) as batcher:
        await batcher.submit(1)
    assert seen == [None]


async def test_capture_context_gives_the_handler_each_callers_own() -> None:
    """So that a row can be written as its own tenant."""
    seen: list[list[str]] = []

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        assert batch.contexts is not None
        seen.append([context[tenant] for context in batch.contexts])
        assert tenant.get() == "nobody"
        return items

    async with Batcher(handler, capture_context=True, max_wait=1.0) as batcher:

        async def call(name: str) -> None:
            tenant.set(name)
            await batcher.submit(1)

        async with anyio.create_task_group() as tasks:
            for name in ("a", "b", "c"):
                tasks.start_soon(call, name)
                await turns()
        tenant.set("many")
        await batcher.submit_many([1, 2])
        batcher.submit_nowait(3)
        tenant.set("later")
    assert seen == [["a", "b", "c"], ["many", "many"], ["many"]]


async def test_contexts_follow_their_items_through_priority_cancellation_and_retry() -> None:
    """Parallel lists that get out of step would show one tenant's row to another."""
    calls = 0

    async def handler(items: list[str]) -> list[Any]:
        nonlocal calls
        calls += 1
        batch = current_batch()
        assert batch is not None
        assert batch.contexts is not None
        assert [context[tenant] for context in batch.contexts] == [item[0] for item in items]
        return [ConnectionError() if calls == 1 and item[0] in "bd" else item for item in items]

    retry = Retry(on=ConnectionError, backoff=Backoff(initial=1.0, jitter=0.0))
    async with Batcher(
        handler, capture_context=True, max_wait=1.0, retry=retry, partition=lambda item: item[1]
    ) as batcher:
        pendings = []
        for number, name in enumerate("abcdefgh"):
            tenant.set(name)
            pendings.append(batcher.submit_nowait(f"{name}{number % 2}", priority=number % 3))
        pendings.pop(4).cancel()
        results = await outcomes(*pendings)
    assert [result[0] for result in results] == list("abcdfgh")


async def test_without_capture_context_nothing_is_captured() -> None:
    """It costs; the default does not pay for it."""
    seen: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        seen.append(batch.contexts)
        return items

    async with Batcher(handler) as batcher:
        await batcher.submit(1)
    assert seen in ([None], [()], [[]])
