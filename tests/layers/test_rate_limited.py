"""rate_limited: calls, items or costs by a token bucket."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers_support import echo
from support import programs, run, turns

from microbatch.layers import rate_limited
from microbatch.layers._rate_limited import TokenBucket

pytestmark = pytest.mark.anyio


async def schedule(limited: Any, batches: list[list[Any]], starts: list[float]) -> list[float]:
    """Call once for each batch, all at once; return how long after the beginning each call passed."""
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for batch in batches:
            tasks.start_soon(limited, batch)
            await turns(2)
    return [pytest.approx(start - began) for start in starts]


def clock() -> tuple[Any, list[float], list[Any]]:
    """A handler that notes when it was called, and for what."""
    starts: list[float] = []
    seen: list[Any] = []

    async def handler(items: list[Any]) -> list[Any]:
        starts.append(anyio.current_time())
        seen.append(items)
        return items

    return handler, starts, seen


async def test_fifty_calls_at_ten_a_second_start_a_tenth_apart() -> None:
    """With burst 1: 0, 0.1, ... 4.9 seconds, exactly, and in the order in which they came."""
    handler, starts, seen = clock()
    batches = [[number] for number in range(50)]
    assert await schedule(rate_limited(handler, 10), batches, starts) == [n / 10 for n in range(50)]
    assert seen == batches


async def test_a_burst_passes_at_once_and_is_paid_for_later() -> None:
    """Five at once, then one every half second."""
    handler, starts, _ = clock()
    batches = [[n] for n in range(9)]
    got = await schedule(rate_limited(handler, 2, burst=5), batches, starts)
    assert got == [0, 0, 0, 0, 0, 0.5, 1, 1.5, 2]


async def test_items_can_be_counted_instead_of_calls() -> None:
    """One call of 100 items uses 100 tokens: limits of APIs often count operations."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 100, burst=100, cost=lambda item: 1)
    assert await schedule(limited, [[0] * 100, [0] * 50, [0] * 100], starts) == [0, 0.5, 1.5]


async def test_each_item_may_have_a_cost_of_its_own() -> None:
    """Tokens of a language model, bytes, rows: 60 a minute, spent as 30 + 30, then 15, then 45."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 60, per=60.0, burst=60, cost=lambda item: item)
    assert await schedule(limited, [[30, 30], [15], [20, 25]], starts) == [0, 15, 60]


async def test_a_batch_costlier_than_the_burst_passes_late() -> None:
    """It could never find its tokens in the bucket; it waits until as many have come."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 10, burst=10, cost=lambda item: 1)
    assert await schedule(limited, [[0] * 30, [0] * 10], starts) == [2, 3]


async def test_idle_time_fills_the_bucket_but_no_further() -> None:
    """An hour of silence allows the burst, not an hour's worth of calls."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 1, burst=2)
    await schedule(limited, [[0]] * 3, starts)
    await anyio.sleep(3600)
    starts.clear()
    assert await schedule(limited, [[0]] * 4, starts) == [0, 0, 1, 2]


async def test_a_cancelled_call_takes_no_tokens_and_the_next_moves_up() -> None:
    """Cancelled at the head of the queue or within it."""
    handler, starts, seen = clock()
    limited = rate_limited(handler, 1)
    began = anyio.current_time()
    scopes = [anyio.CancelScope() for _ in range(5)]

    async def call(number: int) -> None:
        with scopes[number]:
            await limited([number])

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(call, number)
            await turns(2)
        await anyio.sleep(0.5)
        scopes[1].cancel()
        scopes[3].cancel()
    assert seen == [[0], [2], [4]]
    assert [start - began for start in starts] == pytest.approx([0, 1, 2])


async def test_a_failed_call_has_used_its_tokens() -> None:
    """The backend counted it."""
    starts: list[float] = []

    async def fails(items: list[int]) -> list[int]:
        starts.append(anyio.current_time())
        raise ConnectionError

    limited = rate_limited(fails, 1)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await limited([1])
    assert [b - a for a, b in itertools.pairwise(starts)] == pytest.approx([1, 1])


def test_each_event_loop_has_a_bucket_of_its_own() -> None:
    """A limited handler serves a second event loop after the first has ended."""
    handler, starts, _ = clock()
    limited = rate_limited(handler, 1)
    for _ in range(2):
        starts.clear()
        assert run("asyncio", schedule, limited, [[0]] * 2, starts) == [0, 1]


async def test_a_cost_that_is_none_fails_the_batch_by_name() -> None:
    """A wrong sum would let too much through."""
    limited = rate_limited(echo, 1, cost=lambda item: item)
    with pytest.raises(ValueError, match=r"cost\(item\) must be at least 0, got -1"):
        await limited([-1])
    with pytest.raises(TypeError, match=r"cost\(item\) must be a number, got 'x'"):
        await limited(["x"])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rate": 0}, ValueError, "rate must be greater than 0, got 0"),
        ({"rate": "1"}, TypeError, "rate must be a number, got '1'"),
        ({"rate": 1, "per": 0.0}, ValueError, "per must be greater than 0"),
        ({"rate": 1, "burst": 0}, ValueError, "burst must be greater than 0"),
        ({"rate": 1, "burst": float("inf")}, ValueError, "burst must be finite"),
        ({"rate": 1, "cost": 3}, TypeError, "cost must be a function or None, got 3"),
    ],
)
def test_rate_limited_refuses_bad_settings(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    """By name, with the rule and the value."""
    with pytest.raises(error, match=message):
        rate_limited(echo, **settings)


@given(
    rate=st.floats(0.1, 100),
    burst=st.floats(0.1, 50),
    calls=programs(st.tuples(st.floats(0, 10), st.floats(0, 100), st.floats(0, 5)), 30),
)
def test_no_window_sees_more_than_its_share(
    rate: float, burst: float, calls: list[tuple[float, float, float]]
) -> None:
    """Between any two starts the cost is at most burst plus rate times the time, or one batch's own.

    However late the event loop wakes up whoever waits.
    """
    bucket = TokenBucket(rate, burst)
    now = 0.0
    passed: list[tuple[float, float]] = []
    for pause, tokens, delay in calls:
        now += pause
        start = bucket.start(now, tokens)
        assert start >= now
        start = start if start == now else start + delay
        bucket.take(now, tokens, start)
        passed.append((start, tokens))
        now = start
    for i, (first, heaviest) in enumerate(passed):
        spent = 0.0
        for last, tokens in passed[i:]:
            spent += tokens
            allowed = max(burst, heaviest) + rate * (last - first)
            assert spent <= allowed * (1 + 1e-9) + 1e-6
