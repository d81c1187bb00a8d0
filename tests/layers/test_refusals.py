"""Layers around a backend that says "not now": it is no item's fault, and the batcher's hold must hear of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import pytest
from layers_support import told
from support import outcomes

from microbatch import Backoff, Batcher, RateLimited, Retry
from microbatch.errors import BatchAborted, ItemError, Skipped
from microbatch.layers import atomic, bisecting, by_key, per_item, rate_limited, routed, validated

pytestmark = pytest.mark.anyio


def held(handler: Any, **settings: Any) -> Batcher[Any, Any]:
    """Return a batcher that waits for a backend and tries nothing else again."""
    retry = Retry(on=ZeroDivisionError, backoff=Backoff(initial=1.0, jitter=0.0))
    return Batcher(handler, retry=retry, **settings)


class Backend:
    """Refuses the calls that it is told to, by their number from 1; fails as a whole with an item below 0."""

    def __init__(self, *refused: int) -> None:
        self.refused = refused
        self.calls: list[list[int]] = []

    async def __call__(self, items: list[int]) -> list[int]:
        self.calls.append(list(items))
        if len(self.calls) in self.refused:
            raise RateLimited(retry_after=1.0)
        if any(item < 0 for item in items):
            raise ValueError(items)
        return [item * 10 for item in items]


async def test_a_refused_batch_is_not_halved() -> None:
    """Fourteen calls to a backend that asked for a pause would be fourteen too many."""
    backend = Backend(1)
    async with held(bisecting(backend)) as batcher:
        assert await batcher.submit_many(range(8)) == [item * 10 for item in range(8)]
    assert backend.calls == [[*range(8)]] * 2


async def test_when_a_part_is_refused_the_rest_is_not_tried() -> None:
    """The parts that are done are done; what is left waits and goes again together."""
    backend = Backend(3)
    async with held(bisecting(backend)) as batcher:
        results = await outcomes(*[batcher.submit_nowait(item) for item in (1, 2, -3, 4)])
    assert [type(one) for one in results] == [int, int, ValueError, int]
    assert backend.calls == [[1, 2, -3, 4], [1, 2], [-3, 4], [-3, 4], [-3], [4]]


async def test_a_refusal_that_says_nothing_of_itself_is_not_halved_either() -> None:
    """What counts is that the backend takes nothing, whatever ``retryable`` is."""

    class Odd(RateLimited):
        retryable = None

        def __init__(self) -> None:
            ItemError.__init__(self, "odd")

    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise Odd

    with pytest.raises(Odd):
        await bisecting(handler)([1, 2, 3, 4])
    assert calls == 1


async def test_per_item_passes_refusals_through() -> None:
    """Each item's own: the others have gone on."""
    seen: list[int] = []

    async def function(item: int) -> int:
        seen.append(item)
        if seen.count(item) == 1 and item % 2:
            raise RateLimited(retry_after=1.0)
        return item * 10

    async with held(per_item(function)) as batcher:
        assert await batcher.submit_many(range(4)) == [0, 10, 20, 30]
    assert sorted(seen) == [0, 1, 1, 2, 3, 3]


async def test_a_route_that_is_refused_waits_and_the_others_have_gone_on() -> None:
    """The batcher's hold is its partition's; give it ``partition=`` and each kind waits for itself."""
    evens, odds = Backend(1), Backend()
    handler = routed({0: evens, 1: odds}, by=lambda item: item % 2)
    async with held(handler) as batcher:
        assert await batcher.submit_many(range(4)) == [0, 10, 20, 30]
    assert (evens.calls, odds.calls) == ([[0, 2], [0, 2]], [[1, 3]])


async def test_a_read_by_key_may_be_refused_as_a_whole_or_for_some_keys() -> None:
    """Raised, or in the mapping in a row's place."""
    calls = 0

    async def read(keys: list[int]) -> dict[int, Any]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RateLimited(retry_after=1.0)
        busy = RateLimited(retry_after=1.0)
        return {key: busy if calls == 2 and key == 2 else key * 10 for key in keys}

    async with held(by_key(read)) as batcher:
        assert await batcher.submit_many([1, 2, 3]) == [10, 20, 30]
    assert calls == 3


async def test_a_rate_and_a_hold_go_together() -> None:
    """The layer keeps below the rate that is known; the hold is for what the backend says all the same."""
    backend = Backend(2)
    async with held(rate_limited(backend, 10), max_batch_size=2, max_concurrency=4) as batcher:
        assert await batcher.submit_many(range(8)) == [item * 10 for item in range(8)]
    assert len(backend.calls) == 5


async def test_what_validation_refuses_fails_and_what_the_backend_refuses_waits() -> None:
    """The bad ones know at once."""

    def positive(item: int) -> None:
        if item < 0:
            raise ValueError(item)

    backend = Backend(1)
    async with held(validated(backend, positive)) as batcher:
        results = await outcomes(*[batcher.submit_nowait(item) for item in (1, -2, 3)])
    assert [type(one) for one in results] == [int, ValueError, int]
    assert backend.calls == [[1, 3], [1, 3]]


async def test_a_batch_of_all_or_nothing_waits_as_a_whole() -> None:
    """One item refused: the transaction is rolled back, nobody fails, and all go again."""
    log: list[str] = []
    calls = 0

    @asynccontextmanager
    async def transaction() -> Any:
        try:
            yield
        except Exception as error:
            log.append(type(error).__name__)
            raise
        log.append("commit")

    async def handler(items: list[int]) -> list[Any]:
        nonlocal calls
        calls += 1
        refused = {1: {2}, 2: {1, 3}}.get(calls, set())
        return [
            RateLimited(retry_after=float(item)) if item in refused else item * 10 for item in items
        ]

    async with held(atomic(handler, transaction=transaction)) as batcher:
        assert await batcher.submit_many(range(4)) == [0, 10, 20, 30]
    assert log == ["RateLimited", "RateLimited", "commit"]


async def test_all_or_nothing_with_a_failure_and_a_refusal() -> None:
    """The failure is what undid the batch; the refused item keeps its own word, a skipped one too."""

    async def handler(items: list[int]) -> list[Any]:
        return [RateLimited(), Skipped("known"), ValueError("bad"), 4]

    results = await atomic(handler)([1, 2, 3, 4])
    assert told(results) == ["RateLimited", "Skipped", "ValueError", "BatchAborted"]
    assert isinstance(results[3], BatchAborted)
    assert results[3].index == 2

    async def refused(items: list[int]) -> list[Any]:
        return [RateLimited(retry_after=2.0), Skipped("known"), RateLimited(retry_after=3.0), 4]

    results = await atomic(refused)([1, 2, 3, 4])
    assert told(results) == ["RateLimited", "Skipped", "RateLimited", "RateLimited"]
    assert [getattr(one, "retry_after", None) for one in results] == [2.0, None, 3.0, 2.0]
    assert results[3] is not results[0]
