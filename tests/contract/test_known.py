"""What a batch knows of itself it knows to its end: through early outcomes, retries and every layer."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
from support import outcomes

from microbatch import Backoff, Batcher, Retry, current_batch
from microbatch.layers import atomic, bisecting, per_item, routed, validated

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def tenants() -> list[str | None]:
    """Whose items the batch that runs here has."""
    batch = current_batch()
    assert batch is not None
    assert batch.contexts is not None
    return [context and context.get(tenant) for context in batch.contexts]


async def submit_as(batcher: Any, *names: str) -> list[Any]:
    """Submit one item for each tenant, in its own context."""
    pending = []
    for name in names:
        context = contextvars.copy_context()
        context.run(tenant.set, name)
        pending.append(context.run(batcher.submit_nowait, name))
    return await outcomes(*pending)


async def test_contexts_outlast_the_outcomes_of_single_items() -> None:
    """A handler that resolved its first item could not tell any more whose the others were."""
    seen: list[Any] = []

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        for index in range(len(items)):
            batch.resolve(index, items[index])
            seen.append(tenants())
        return items

    async with Batcher(handler, capture_context=True) as batcher:
        assert await submit_as(batcher, "a", "b", "c") == ["a", "b", "c"]
    assert seen == [["a", "b", "c"]] * 3


async def test_contexts_outlast_what_a_generator_yielded() -> None:
    """The same for the other way of early outcomes."""
    seen: list[Any] = []

    async def handler(items: list[str]) -> Any:
        for index, item in enumerate(items):
            yield index, item
            seen.append(tenants())

    async with Batcher[str, str](handler, capture_context=True) as batcher:
        await submit_as(batcher, "a", "b")
    assert seen == [["a", "b"]] * 2


async def _bulk(items: list[str]) -> list[Any]:
    return [(item, *tenants()) for item in items]


async def _one(item: str) -> Any:
    return (item, *tenants())


def _refuse_bad(item: str) -> None:
    if item == "bad":
        raise ValueError(item)


async def _poisoned(items: list[str]) -> list[Any]:
    if "bad" in items:
        raise ValueError(items)
    return await _bulk(items)


@pytest.mark.parametrize("layered", [
    pytest.param(per_item(_one, max_concurrency=1), id="per_item"),
    pytest.param(validated(per_item(_one), _refuse_bad), id="validated"),
    pytest.param(bisecting(_poisoned), id="bisecting"),
    pytest.param(routed({False: per_item(_one), True: _poisoned}, by="bad".__eq__), id="routed"),
    pytest.param(atomic(per_item(_one)), id="atomic"),
    pytest.param(validated(atomic(per_item(_one)), _refuse_bad), id="validated atomic"),
])  # fmt: skip
async def test_each_item_keeps_its_own_context_through_every_layer(layered: Any) -> None:
    """One tenant's row must never be written with another's rights."""
    async with Batcher(layered, capture_context=True) as batcher:
        found = await submit_as(batcher, "bad", "a", "b")
    assert [(name, name in seen) for name, *seen in found[1:]] == [("a", True), ("b", True)]


async def test_attempts_are_those_of_this_call_to_its_end() -> None:
    """An item that failed early is counted for its next call, not for the one that still runs."""
    seen: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        if batch.attempts == (1, 1, 1):
            batch.resolve(0, OSError())
            again = current_batch()
            assert again is not None
            seen.append(again.attempts)
        seen.append(batch.attempts)
        return items

    retry = Retry(on=OSError, backoff=Backoff(jitter=0))
    async with Batcher(handler, retry=retry) as batcher:
        assert await outcomes(*map(batcher.submit, range(3))) == [0, 1, 2]
    assert seen == [(1, 1, 1), (1, 1, 1), (2,)]


async def test_inside_atomic_the_attempts_are_the_batchs_own() -> None:
    """An all-or-nothing handler may act otherwise on a second attempt."""
    seen: list[Any] = []

    async def handler(items: list[int]) -> list[Any]:
        batch = current_batch()
        assert batch is not None
        seen.append(batch.attempts)
        return [OSError() if attempt == 1 else 1 for attempt in batch.attempts]

    retry = Retry(on=OSError, backoff=Backoff(jitter=0))
    async with Batcher(atomic(handler), retry=retry) as batcher:
        assert await outcomes(*map(batcher.submit, range(2))) == [1, 1]
    assert seen == [(1, 1), (2, 2)]
