"""A backend with a window that closes, in virtual time: nobody fails, and it is hardly ever asked in vain."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hold_support import Window, holding
from support import counted, outcomes

from microbatch import Batcher

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

SLOTS = 4


@pytest.mark.parametrize("size", [1, 10])
async def test_all_of_a_thousand_items_succeed_with_one_refused_call_for_a_slot_and_window(
    size: int,
) -> None:
    """Four slots, and a window that closes for half a second after every fifth call."""
    window = Window(every=5, seconds=0.5)
    async with Batcher(
        window, max_batch_size=size, max_concurrency=SLOTS, retry=holding()
    ) as batcher:
        report = await batcher.submit_many_report(range(1_000))
        stats = counted(batcher)
    assert report.values() == [item * 10 for item in range(1_000)]
    assert {one.attempts for one in report} == {1}
    assert (stats.items, stats.failed, stats.pending) == (1_000, 0, 0)
    assert window.taken == 1_000 // size
    assert window.refused
    assert max(Counter(window.refused).values()) <= SLOTS


async def test_each_partition_has_a_window_of_its_own() -> None:
    """Who is refused waits; the others go on as if nothing was."""
    windows = [Window(every=5, seconds=0.5 * (part + 1)) for part in range(3)]
    never = Window(every=10**9)

    async def handler(items: list[int]) -> list[int]:
        part = items[0] % 4
        return await (never if part == 3 else windows[part])(items)

    async with Batcher(
        handler,
        max_batch_size=5,
        max_concurrency=2 * SLOTS,
        partition=lambda item: item % 4,
        partition_concurrency=SLOTS,
        retry=holding(),
    ) as batcher:
        results = await outcomes(*[batcher.submit_nowait(item) for item in range(1_000)])
        assert counted(batcher).pending == 0
    assert results == [item * 10 for item in range(1_000)]
    for window in windows:
        assert window.taken == 50
        assert window.refused
        assert max(Counter(window.refused).values()) <= SLOTS
    assert not never.refused
    # 50 calls of 0.05 s in four slots, shared with others: never does it wait for anybody's half second.
    times = [time for time, _, _ in never.calls]
    assert max(later - time for time, later in itertools.pairwise(times)) < 0.5
