"""Whose context an item has, and whose its user's functions run in: always that of who handed it in."""

from __future__ import annotations

import contextvars
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support import counted, turns

from microbatch import Batcher, current_batch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


class Tenants:
    """A handler and user's functions; items are pairs of a tenant and a number."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.handled: list[tuple[str, str]] = []
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, items: list[tuple[str, int]]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        assert batch.contexts is not None
        self.handled += [
            (item[0], context[tenant] if context is not None else "none")
            for item, context in zip(items, batch.contexts, strict=True)
        ]
        await self.opened.wait()
        return [number for _, number in items]

    def asked_for(self, item: tuple[str, int], answer: Any = 1) -> Any:
        self.asked.append((item[0], tenant.get()))
        return answer

    def batcher(self, **settings: Any) -> Batcher[Any, Any]:
        return Batcher(
            self,
            capture_context=True,
            weigh=self.asked_for,
            max_pending_weight=100,
            partition=self.asked_for,
            coalesce=lambda item: self.asked_for(item, item),
            **settings,
        )


@pytest.mark.parametrize("max_pending", [1, 2, 5])
@pytest.mark.parametrize("way", ["handled", "cancelled", "looked"])
async def test_items_of_a_bulk_that_wait_for_room_keep_their_callers_context(
    way: str, max_pending: int
) -> None:
    """Who makes room lets them in: another tenant's context, or none, would be handed to the handler."""
    handler = Tenants()
    batcher = handler.batcher(max_batch_size=2, max_pending=max_pending)

    async def bulk(name: str, count: int) -> None:
        tenant.set(name)
        assert await batcher.submit_many([(name, i) for i in range(count)]) == list(range(count))

    async with batcher, anyio.create_task_group() as tasks:
        tenant.set("main")
        pendings = [batcher.submit_nowait(("main", i)) for i in range(max_pending)]
        await turns()
        for name, count in [("a", 7), ("b", 3)]:
            tasks.start_soon(bulk, name, count)
            await turns()
        assert counted(batcher).waiting == 2
        tenant.set("somebody")
        if way == "cancelled":
            pendings[-1].cancel()
        elif way == "looked":
            counted(batcher)
        handler.opened.set()
    for seen in (handler.handled, handler.asked):
        assert {owner for owner, _ in seen} == {"main", "a", "b"}
        assert [owner for owner, _ in seen] == [context for _, context in seen]


@pytest.mark.real_time
@pytest.mark.parametrize("max_pending", [1, 100])
async def test_an_item_from_a_thread_has_its_threads_context(max_pending: int) -> None:
    """A worker thread serves one request after the other, each under a tenant of its own."""
    handler = Tenants()
    handler.opened.set()

    async with handler.batcher(max_pending=max_pending) as batcher:

        def call(name: str) -> int:
            tenant.set(name)
            return batcher.submit_from_thread((name, 7))

        async with anyio.create_task_group() as tasks:
            for name in ("a", "b", "c"):
                tasks.start_soon(anyio.to_thread.run_sync, call, name)
    for seen in (handler.handled, handler.asked):
        assert sorted(set(seen)) == [("a", "a"), ("b", "b"), ("c", "c")]
