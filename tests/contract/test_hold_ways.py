"""Hold beside everything else: cancelled callers, flush, close, room, weights, priorities, keys, partitions."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hold_support import Busy, holding
from support import (
    VirtualLoop,
    counted,
    outcome,
    outcomes,
    run,
    tasks_alive,
    turns,
)

from microbatch import (
    AdaptiveSize,
    Batcher,
    BatcherClosed,
    BatcherFull,
    RateLimited,
    current_batch,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


# Cancelled callers


async def test_a_caller_cancelled_while_held_withdraws_its_item() -> None:
    """The handler never sees it again, and the counts say so at once."""
    handler = Busy(2.0)
    async with Batcher(handler, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(3)]
        await turns()
        assert counted(batcher).buffered == 3
        pendings[1].cancel()
        stats = counted(batcher)
        assert (stats.buffered, stats.pending) == (2, 2)
        assert await outcomes(pendings[0], pendings[2]) == [0, 20]
        assert counted(batcher).items == 2
    assert handler.batches == [[0, 1, 2], [0, 2]]


async def test_when_all_callers_have_gone_nothing_goes() -> None:
    """The probe needs an item: the next one that comes, whenever that is."""
    handler = Busy(2.0)
    before = tasks_alive()
    async with Batcher(handler, retry=holding()) as batcher:
        pending = batcher.submit_nowait(1)
        await turns()
        pending.cancel()
        assert counted(batcher).pending == 0
        assert batcher.stats().held == pytest.approx(2.0)
        await anyio.sleep(10)
        assert handler.batches == [[1]]
        assert batcher.stats().held == 0
        assert await batcher.submit(2) == 20
        await turns()
        assert tasks_alive() == before


async def test_new_items_meet_the_hold_that_others_left_behind() -> None:
    """The backend said when it may be asked, not for whom."""
    handler = Busy(2.0)
    async with Batcher(handler, retry=holding()) as batcher:
        pending = batcher.submit_nowait(1)
        await turns()
        pending.cancel()
        await anyio.sleep(0.5)
        assert await batcher.submit(2) == 20
    assert handler.started == pytest.approx([0, 2.0])


async def test_a_refused_item_whose_caller_has_gone_does_not_come_back() -> None:
    """It was cancelled in flight: nobody waits for it, but its partition waits."""
    handler = Busy(2.0, seconds=1.0)
    async with Batcher(handler, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(2)]
        await anyio.sleep(0.5)
        pendings[0].cancel()
        assert await pendings[1] == 10
        assert counted(batcher).pending == 0
    assert handler.batches == [[0, 1], [1]]


async def test_a_cancelled_submit_many_withdraws_what_was_refused() -> None:
    """Its caller is one, its items are many."""
    handler = Busy(5.0)
    async with Batcher(handler, max_batch_size=3, max_pending=5, retry=holding()) as batcher:
        with anyio.move_on_after(1.0):
            await batcher.submit_many(range(9))
        assert counted(batcher).pending == 0
    assert handler.batches == [[0, 1, 2]]


async def test_submit_many_waits_like_anybody() -> None:
    """All of it succeeds in the end, in its order."""
    handler = Busy(1.0, "ok", 1.0, 1.0, returns=True)
    async with Batcher(handler, max_batch_size=3, max_pending=5, retry=holding()) as batcher:
        assert await batcher.submit_many(range(9)) == [item * 10 for item in range(9)]
    assert handler.batches == [
        [0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5], [3, 4, 5], [6, 7, 8],
    ]  # fmt: skip


# Flush and close


async def test_flush_waits_for_what_was_refused() -> None:
    """Resolved means resolved; what is due goes when the hold is over."""
    handler = Busy(2.0, 1.0)
    async with Batcher(handler, max_wait=1000, retry=holding()) as batcher:
        pending = batcher.submit_nowait(1)
        await batcher.flush()
        assert pending.done()
        assert anyio.current_time() == pytest.approx(3.0)
    assert handler.reasons == ["flush"] * 3


async def test_a_flush_does_not_break_a_hold() -> None:
    """It makes items due, and due is not "now, whatever the backend says"."""
    handler = Busy(2.0)
    async with Batcher(handler, max_wait=1000, max_batch_size=1, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(3)]
        await anyio.sleep(0.5)
        await batcher.flush()
        assert all(pending.done() for pending in pendings)
    assert handler.started == pytest.approx([0, 2, 2, 2])


async def test_closing_waits_for_the_hold() -> None:
    """As for a back-off: what was accepted goes home."""
    handler = Busy(5.0)
    batcher = Batcher(handler, retry=holding())
    pendings = [batcher.submit_nowait(item) for item in range(3)]
    await turns()
    await batcher.aclose()
    assert anyio.current_time() == pytest.approx(5.0)
    assert await outcomes(*pendings) == [0, 10, 20]
    assert handler.reasons == ["idle", "close"]


async def test_closing_waits_no_longer_than_it_was_told() -> None:
    """Each caller ends once, and is told that nothing was done for it."""
    handler = Busy(50.0)
    batcher = Batcher(handler, retry=holding())
    pendings = [batcher.submit_nowait(item) for item in range(3)]
    await turns()
    await batcher.aclose(drain_timeout=2.0)
    assert anyio.current_time() == pytest.approx(2.0)
    ends = await outcomes(*pendings)
    assert [type(end) for end in ends] == [BatcherClosed] * 3
    assert [end.started for end in ends] == [False] * 3
    assert counted(batcher).pending == 0
    assert batcher.stats().held == 0
    assert handler.sizes == [3]


async def test_a_refusal_while_closing_is_held_too() -> None:
    """The drain ends when the backend takes the rest."""
    handler = Busy("ok", 1.0, 1.0, seconds=0.5)
    batcher = Batcher(handler, max_batch_size=2, retry=holding())
    pendings = [batcher.submit_nowait(item) for item in range(4)]
    await turns()
    await batcher.aclose()
    assert await outcomes(*pendings) == [0, 10, 20, 30]
    assert handler.batches == [[0, 1], [2, 3], [2, 3], [2, 3]]


async def test_what_is_refused_after_the_end_changes_nothing() -> None:
    """A handler that goes on after the close may say what it likes."""

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        with anyio.CancelScope(shield=True):
            await anyio.sleep(2.0)
        raise RateLimited(retry_after=1.0)

    batcher = Batcher(handler, retry=holding())
    pending = batcher.submit_nowait(1)
    await turns()
    await batcher.aclose(drain_timeout=1.0)
    assert type(await outcome(pending)) is BatcherClosed
    assert counted(batcher).pending == 0
    assert batcher.stats().held == 0


# Room, weights, priorities, keys, partitions


async def test_held_items_keep_their_room() -> None:
    """A backend that takes nothing must not let a batcher fill without bound."""
    handler = Busy(2.0)
    async with Batcher(handler, max_pending=3, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(3)]
        await turns()
        assert counted(batcher).buffered == 3
        with pytest.raises(BatcherFull):
            batcher.submit_nowait(3)
        start = anyio.current_time()
        assert await batcher.submit(4) == 40
        assert anyio.current_time() - start == pytest.approx(2.0)
        assert await outcomes(*pendings) == [0, 10, 20]


async def test_held_items_keep_their_weight() -> None:
    """The same by weight, and a batch is cut at the same weight again."""
    handler = Busy(2.0)
    async with Batcher(
        handler,
        weigh=lambda item: item,
        max_batch_weight=5,
        max_pending_weight=9,
        retry=holding(),
    ) as batcher:
        pendings = [batcher.submit_nowait(item) for item in (2, 3, 4)]
        await turns()
        with pytest.raises(BatcherFull, match="max_pending_weight"):
            batcher.submit_nowait(1)
        assert await outcomes(*pendings) == [20, 30, 40]
    assert handler.batches == [[2, 3], [2, 3], [4]]


async def test_urgent_items_go_before_what_was_refused() -> None:
    """At the front among its own priority: strict order, as if it had never been sent."""
    handler = Busy(2.0, seconds=0.1)
    async with Batcher(handler, max_batch_size=2, retry=holding()) as batcher:
        pendings = [
            batcher.submit_nowait(item, priority=priority)
            for item, priority in [(0, 0), (1, 1), (2, 0), (3, 1)]
        ]
        await anyio.sleep(0.5)
        pendings += [batcher.submit_nowait(4, priority=1), batcher.submit_nowait(5, priority=2)]
        assert await outcomes(*pendings) == [item * 10 for item in range(6)]
    assert handler.batches == [[1, 3], [5, 1], [3, 4], [0, 2]]


async def test_an_equal_item_shares_the_slot_of_one_that_waits() -> None:
    """It is buffered again, and its load has not begun: a later caller may join it."""
    handler = Busy(2.0)
    async with Batcher(handler, coalesce=lambda item: item, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(7), batcher.submit_nowait(7)]
        await turns()
        pendings.append(batcher.submit_nowait(7))
        assert counted(batcher).pending == 1
        pendings[0].cancel()
        assert await outcomes(*pendings[1:]) == [70, 70]
    assert handler.batches == [[7], [7]]


async def test_a_hold_is_its_partitions() -> None:
    """One tenant's limit is nobody else's."""
    starts: list[tuple[str, float]] = []

    async def handler(items: list[str]) -> list[str]:
        starts.append((items[0], anyio.current_time()))
        if items[0] == "a" and len(starts) == 1:
            raise RateLimited(retry_after=2.0)
        return items

    async with Batcher(
        handler, max_batch_size=1, partition=lambda item: item, retry=holding()
    ) as batcher:
        pendings = [batcher.submit_nowait(item) for item in "aabb"]
        await anyio.sleep(1.0)
        assert [pending.done() for pending in pendings] == [False, False, True, True]
        assert batcher.stats().held == pytest.approx(1.0)
        assert await outcomes(*pendings) == [*"aabb"]
    assert [item for item, _ in starts] == [*"abbaa"]
    assert [start for _, start in starts] == pytest.approx([0, 0, 0, 2, 2])


async def test_the_order_within_a_partition_holds() -> None:
    """One batch at a time in each: a refused one goes again before its followers."""
    handled: dict[str, list[int]] = {"a": [], "b": []}
    calls = 0

    async def handler(items: list[tuple[str, int]]) -> list[int]:
        nonlocal calls
        calls += 1
        await anyio.sleep(0.1)
        if calls % 3 == 0:
            raise RateLimited(retry_after=0.25)
        handled[items[0][0]].extend(number for _, number in items)
        return [number for _, number in items]

    async with Batcher(
        handler,
        max_batch_size=3,
        max_concurrency=4,
        partition=lambda item: item[0],
        partition_concurrency=1,
        retry=holding(),
    ) as batcher:
        items = [(part, number) for number in range(30) for part in "ab"]
        await outcomes(*[batcher.submit_nowait(item) for item in items])
    assert handled == {"a": [*range(30)], "b": [*range(30)]}


async def test_partitions_that_have_waited_are_forgotten() -> None:
    """A million tenants, each refused once, leave nothing behind."""

    async def handler(items: list[int]) -> list[int]:
        raise RateLimited(retry_after=1.0)

    batcher = Batcher(
        handler, partition=lambda item: item, max_concurrency=100, retry=holding(holds=1)
    )
    assert {type(one) for one in await outcomes(*map(batcher.submit, range(100)))} == {RateLimited}
    assert batcher.stats().held == pytest.approx(1.0)
    await anyio.sleep(2.0)
    assert batcher.stats().held == 0
    await batcher.aclose()


# Outcomes before the end of a call


async def test_a_generator_gives_some_results_and_refusals_for_the_rest() -> None:
    """What is refused is back in the buffer at once; the generator goes on for the others."""
    calls: list[list[int]] = []

    async def handler(items: list[int]) -> Any:
        calls.append(items)
        first = len(calls) == 1
        for index, item in enumerate(items):
            await anyio.sleep(0.5)
            yield index, RateLimited(retry_after=2.0) if first and index % 2 else item

    async with Batcher(handler, max_batch_size=4, max_concurrency=2, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(4)]
        await anyio.sleep(1.2)
        stats = counted(batcher)
        assert (stats.buffered, stats.in_flight, stats.items) == (1, 2, 1)
        assert batcher.stats().held == pytest.approx(1.8)
        assert await outcomes(*pendings) == [0, 1, 2, 3]
    assert calls == [[0, 1, 2, 3], [1, 3]]


async def test_a_handler_resolves_some_and_raises_for_the_rest() -> None:
    """What was told early stands."""
    calls: list[list[int]] = []

    async def handler(items: list[int]) -> list[int]:
        calls.append(items)
        batch = current_batch()
        assert batch is not None
        if len(calls) == 1:
            batch.resolve(1, 10)
            batch.resolve(2, RateLimited(retry_after=1.0))
            await turns()
            assert counted(batcher).buffered == 1
            raise RateLimited(retry_after=3.0)
        return [item * 10 for item in items]

    async with Batcher(handler, retry=holding()) as batcher:
        assert await sent(batcher, range(4)) == [0, 10, 20, 30]
        assert anyio.current_time() == pytest.approx(3.0)
    assert calls == [[0, 1, 2, 3], [0, 2, 3]]


@pytest.mark.real_time
async def test_a_plain_handler_in_a_thread_may_refuse() -> None:
    """The same from a worker thread, returned, raised or resolved."""
    calls: list[list[int]] = []

    def handler(items: list[int]) -> list[Any]:
        calls.append(items)
        batch = current_batch()
        assert batch is not None
        if len(calls) == 1:
            batch.resolve(0, RateLimited(retry_after=0.01))
            return [None, RateLimited(retry_after=0.01), items[2]]
        if len(calls) == 2:
            raise RateLimited(retry_after=0.01)
        return items

    async with Batcher(handler, retry=holding()) as batcher:
        assert await sent(batcher, range(3)) == [0, 1, 2]
    assert calls == [[0, 1, 2], [0, 1], [0, 1]]


async def test_a_probe_that_refuses_early_does_not_let_the_others_go_at_its_end() -> None:
    """Its refusal began another hold, which its own end is not the end of."""
    starts: list[float] = []

    async def handler(items: list[int]) -> Any:
        starts.append(anyio.current_time())
        call = len(starts)
        if call == 1:
            raise RateLimited(retry_after=1.0)
        for index, item in enumerate(items):
            yield index, RateLimited(retry_after=5.0) if call == 2 and index == 0 else item
            await anyio.sleep(0.25)

    async with Batcher(handler, max_batch_size=2, retry=holding()) as batcher:
        assert await sent(batcher, range(4)) == [0, 1, 2, 3]
    assert starts == pytest.approx([0, 1.0, 6.0, 6.5])


async def sent(batcher: Any, items: Any) -> list[Any]:
    """Submit items in their order, which tasks would not keep on trio, and return what became of them."""
    return await outcomes(*[batcher.submit_nowait(item) for item in items])


# What learns, what wakes, what lies


async def test_a_refused_call_teaches_an_adaptive_size_nothing() -> None:
    """It is over at once, whatever its size is: neither fast nor a failure of it."""
    seen: list[tuple[int, bool]] = []
    record = AdaptiveSize.record

    class Watched(AdaptiveSize):
        def record(self, size: int, seconds: float, *, failed: bool = False) -> None:
            seen.append((size, failed))
            record(self, size, seconds, failed=failed)

    size = Watched(8, 64)
    handler = Busy(0.1, 0.1, seconds=0.1)
    async with Batcher(handler, max_batch_size=size, retry=holding()) as batcher:
        await batcher.submit_many(range(8))
    assert handler.sizes == [8, 8, 8]
    assert seen == [(8, False)]


def test_a_batcher_with_nothing_in_it_wakes_once_at_the_end_of_its_hold() -> None:
    """One timer, however many items wait, and none afterwards."""

    async def main() -> None:
        import asyncio

        loop: Any = asyncio.get_running_loop()
        outer = set(loop.timers())
        handler = Busy(5.0)
        async with Batcher(handler, retry=holding()) as batcher:
            pendings = [batcher.submit_nowait(item) for item in range(50)]
            await turns()
            (timer,) = set(loop.timers()) - outer
            assert timer.when() == pytest.approx(5.0)
            for pending in pendings:
                pending.cancel()
            await anyio.sleep(10)
            assert set(loop.timers()) - outer == set()
            polls = loop.polls
            await anyio.sleep(1000)
            assert loop.polls - polls <= 2

    assert VirtualLoop is not None
    run("asyncio", main)


async def test_a_refusal_that_lies_about_its_time_ends_its_item_alone() -> None:
    """A property that raises is the subclass's own: its item fails with it, and the batcher goes on."""

    class Odd(RateLimited):
        retry_after = property(lambda self: 1 / 0)  # type: ignore[assignment]

        def __init__(self) -> None:
            Exception.__init__(self, "odd")

        def __str__(self) -> str:
            return "odd"

    calls = 0

    async def handler(items: list[int]) -> list[Any]:
        nonlocal calls
        calls += 1
        return [Odd()] if calls == 1 else items

    async with Batcher(handler, retry=holding()) as batcher:
        assert type(await outcome(batcher.submit(1))) is Odd
        assert await batcher.submit(2) == 2
        assert counted(batcher).pending == 0
