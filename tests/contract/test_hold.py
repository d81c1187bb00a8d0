"""Hold: a backend that says "not now" is no item's failure, and is left in peace until it may be asked again."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hold_support import EXACT, Busy, holding
from support import counted, outcome, outcomes, turns

from microbatch import (
    Backoff,
    Batcher,
    ItemError,
    RateLimited,
    Retry,
    current_batch,
)
from microbatch.testing import no_backoff

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


async def sent(batcher: Any, items: Any, **settings: Any) -> list[Any]:
    """Submit items in their order, which tasks would not keep on trio, and return what became of them."""
    return await outcomes(*[batcher.submit_nowait(item, **settings) for item in items])


def gaps(handler: Busy) -> list[float]:
    """Return the seconds between one call and the next."""
    pairs = zip(handler.started, handler.started[1:], strict=False)
    return [after - before for before, after in pairs]


@pytest.mark.parametrize("returns", [False, True])
async def test_refused_items_wait_as_long_as_the_backend_says(returns: bool) -> None:
    """Raised for the batch, or returned in the items' places: nobody fails, no attempt is counted."""
    handler = Busy(0.5, 2.0, returns=returns)
    async with Batcher(handler, retry=holding()) as batcher:
        report = await batcher.submit_many_report([1, 2, 3])
        assert [one.value for one in report] == [10, 20, 30]
        assert [one.attempts for one in report] == [1, 1, 1]
        stats = counted(batcher)
    assert gaps(handler) == pytest.approx([0.5, 2.0])
    assert handler.batches == [[1, 2, 3]] * 3
    assert (stats.items, stats.failed, stats.batches) == (3, 0, 3)


async def test_a_handler_sees_no_other_attempt() -> None:
    """A refusal is not the item's: the next call is the same attempt."""
    attempts = []

    class Watching(Busy):
        async def __call__(self, items: list[Any]) -> list[Any]:
            batch = current_batch()
            assert batch is not None
            attempts.append(list(batch.attempts))
            return await super().__call__(items)

    async with Batcher(Watching(0.5, 0.5), retry=holding(attempts=1)) as batcher:
        assert await batcher.submit(1) == 10
    assert attempts == [[1], [1], [1]]


async def test_without_retry_it_is_an_error_like_any_other() -> None:
    """Who did not ask for it is not made to wait."""
    handler = Busy(5.0)
    async with Batcher(handler) as batcher:
        error = await outcome(batcher.submit(1))
        assert type(error) is RateLimited
        assert error.retry_after == 5.0
        start = anyio.current_time()
        assert await batcher.submit(2) == 20
        assert anyio.current_time() == start
        assert batcher.stats().held == 0


@pytest.mark.parametrize("after", [None, float("nan"), float("inf"), "5", True])
async def test_without_a_time_the_back_off_says_how_long(after: Any) -> None:
    """1, 2 and 4 seconds; what is no finite number says nothing."""
    handler = Busy(after, after, after)
    async with Batcher(handler, retry=holding()) as batcher:
        assert await batcher.submit(1) == 10
    assert gaps(handler) == pytest.approx([1, 2, 4])


@pytest.mark.parametrize(("after", "waits"), [(500, 60), (10**400, 60), (0, 0), (-3, 0)])
async def test_no_hold_is_longer_than_the_back_offs_maximum(after: Any, waits: float) -> None:
    """A backend that says "tomorrow" must not stop the program until then; one that says "now" is asked now."""
    handler = Busy(after)
    async with Batcher(handler, retry=holding()) as batcher:
        assert await batcher.submit(1) == 10
    assert gaps(handler) == pytest.approx([waits])


async def test_the_back_off_starts_anew_after_a_success() -> None:
    """In a row means without a success between them."""
    handler = Busy(None, None, "ok", None)
    async with Batcher(handler, retry=holding()) as batcher:
        assert await batcher.submit(1) == 10
        assert await batcher.submit(2) == 20
    assert gaps(handler) == pytest.approx([1, 2, 0, 1])


async def test_refused_items_go_first_and_in_their_order() -> None:
    """They go back to the front of the buffer, not behind what came meanwhile."""
    handler = Busy(1.0, seconds=0.1)
    async with Batcher(handler, max_batch_size=2, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(5)]
        await anyio.sleep(0.5)
        pendings += [batcher.submit_nowait(item) for item in (5, 6)]
        assert await outcomes(*pendings) == [item * 10 for item in range(7)]
    assert handler.batches == [[0, 1], [0, 1], [2, 3], [4, 5], [6]]


async def test_batches_refused_at_the_same_time_are_one_hold_and_the_longest_time_counts() -> None:
    """Four slots, four refusals: one wait, items in their order, one probe, then the others."""
    handler = Busy(1.0, 3.0, 2.0, None, seconds=0.1)
    async with Batcher(handler, max_batch_size=1, max_concurrency=4, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(6)]
        await anyio.sleep(0.5)
        stats = counted(batcher)
        assert (stats.in_flight, stats.buffered) == (0, 6)
        assert stats.held == pytest.approx(0.1 + 3.0 - 0.5)
        assert await outcomes(*pendings) == [item * 10 for item in range(6)]
    assert handler.batches == [[0], [1], [2], [3], [0], [1], [2], [3], [4], [5]]
    assert handler.started == pytest.approx([0] * 4 + [3.1] + [3.2] * 4 + [3.3])


async def test_while_the_probe_is_under_way_no_other_batch_begins() -> None:
    """A backend that has just recovered is asked once, not by every slot."""
    handler = Busy(1.0, 1.0, "ok", seconds=0.25)
    async with Batcher(handler, max_batch_size=1, max_concurrency=3, retry=holding()) as batcher:
        first = batcher.submit_nowait(0)
        await anyio.sleep(0.5)
        others = [batcher.submit_nowait(item) for item in range(1, 5)]
        assert await outcomes(first, *others) == [0, 10, 20, 30, 40]
    # Refused, the first probe refused, the second not: then three beside one another.
    assert handler.started == pytest.approx([0, 1.25, 2.5, 2.75, 2.75, 2.75, 3.0])


async def test_a_probe_that_fails_otherwise_lets_the_others_go() -> None:
    """It has come back without a refusal: the backend works, though not for this item."""
    handler = Busy(1.0, fails={1})
    async with Batcher(handler, max_batch_size=1, retry=holding()) as batcher:
        results = await sent(batcher, [1, 2])
    assert [type(one) for one in results] == [ValueError, int]
    assert handler.batches == [[1], [1], [2]]


async def test_a_late_refusal_is_not_a_further_one_in_a_row() -> None:
    """The back-off doubles with each refused probe, not with each slot that was under way before."""
    refused = {0: 0.1, 1: 0.3, 2: 0.5}  # item: when its first call is refused
    starts: list[tuple[int, float]] = []

    async def handler(items: list[int]) -> list[int]:
        starts.append((items[0], anyio.current_time()))
        if items[0] in refused:
            await anyio.sleep(refused.pop(items[0]))
            raise RateLimited
        return items

    async with Batcher(handler, max_batch_size=1, max_concurrency=3, retry=holding()) as batcher:
        assert await sent(batcher, range(3)) == [0, 1, 2]
    assert starts[3][0] == 0
    assert [start for _, start in starts[3:]] == pytest.approx([1.1, 1.1, 1.1])


async def test_a_late_refusal_may_make_the_hold_longer() -> None:
    """While the probe is under way, too: then another one goes when that time is over."""
    seconds = {0: [0.1, 0.5], 1: [1.3]}
    starts: list[tuple[int, float]] = []

    async def handler(items: list[int]) -> list[int]:
        starts.append((items[0], anyio.current_time()))
        refused = len(starts) <= 2
        if seconds.get(items[0]):
            await anyio.sleep(seconds[items[0]].pop(0))
        if refused:
            raise RateLimited(retry_after=1.0 if items[0] == 0 else 2.0)
        return items

    async with Batcher(handler, max_batch_size=1, max_concurrency=3, retry=holding()) as batcher:
        waiting = [batcher.submit_nowait(item) for item in (0, 1)]
        await anyio.sleep(0.5)
        waiting += [batcher.submit_nowait(item) for item in (2, 3)]
        assert await outcomes(*waiting) == [0, 1, 2, 3]
    assert [item for item, _ in starts[2:]] == [0, 1, 2, 3]
    assert [start for _, start in starts[2:]] == pytest.approx([1.1, 3.3, 3.3, 3.3])


async def test_a_refusal_later_than_the_hold_begins_another_one() -> None:
    """The hold that it belongs to is over, so it begins one of its own: the first in a row."""
    seconds = {0: [0.1], 1: [5.0]}
    starts: list[tuple[int, float]] = []

    async def handler(items: list[int]) -> list[int]:
        starts.append((items[0], anyio.current_time()))
        first = seconds.pop(items[0], None)
        if first:
            await anyio.sleep(first[0])
            raise RateLimited
        return items

    async with Batcher(handler, max_batch_size=1, max_concurrency=2, retry=holding()) as batcher:
        assert await sent(batcher, [0, 1]) == [0, 1]
    assert [item for item, _ in starts[2:]] == [0, 1]
    assert [start for _, start in starts[2:]] == pytest.approx([1.1, 6.0])


async def test_after_so_many_refusals_in_a_row_the_refused_items_fail() -> None:
    """What a backend refuses for ever must end; the error is the handler's own, and says so."""
    handler = Busy(*[None] * 99)
    async with Batcher(handler, max_batch_size=2, retry=holding(holds=3)) as batcher:
        results = await sent(batcher, range(3))
        stats = counted(batcher)
        assert [type(one) for one in results] == [RateLimited] * 3
        assert len({id(one) for one in results}) == 3
        (note,) = results[0].__notes__
        assert repr(batcher.name) in note
    # Three calls for the first two items; the third one is refused in the same row, so it fails at once.
    assert handler.batches == [[0, 1], [0, 1], [0, 1], [2]]
    assert gaps(handler) == pytest.approx([1, 2, 4])
    assert (stats.failed, stats.pending) == (3, 0)


async def test_a_success_between_them_begins_a_new_row() -> None:
    """A row ends where the backend takes something, be it a part of a batch."""
    handler = Busy(0.1, 0.1, "ok", 0.1, 0.1, "ok")
    async with Batcher(handler, retry=holding(holds=3)) as batcher:
        assert [await batcher.submit(1), await batcher.submit(2)] == [10, 20]


async def test_a_partition_that_has_nothing_left_forgets_its_refusals() -> None:
    """An hour later a lone item is not given up at its first refusal."""
    handler = Busy(*[0.1] * 5)
    async with Batcher(handler, retry=holding(holds=3)) as batcher:
        assert type(await outcome(batcher.submit(1))) is RateLimited
        await anyio.sleep(3600)
        assert await batcher.submit(2) == 20


async def test_one_hold_is_none() -> None:
    """``holds=1``: the first refusal fails its items; the others wait all the same."""
    handler = Busy(5.0)
    async with Batcher(handler, retry=holding(holds=1)) as batcher:
        error = await outcome(batcher.submit(1))
        assert type(error) is RateLimited
        assert batcher.stats().held == pytest.approx(5.0)
        assert await batcher.submit(2) == 20
    assert gaps(handler) == pytest.approx([5.0])


async def test_what_is_refused_too_often_is_not_retried() -> None:
    """``on`` is not asked about a refusal, nor is its ``retryable``: it has waited ten times already."""
    handler = Busy(*[0.1] * 9)
    retry = Retry(on=ItemError, attempts=9, holds=2, backoff=EXACT)
    async with Batcher(handler, retry=retry) as batcher:
        assert type(await outcome(batcher.submit(1))) is RateLimited
    assert handler.sizes == [1, 1]


async def test_a_batch_that_is_taken_in_part() -> None:
    """The rest goes again at the front; who succeeded has long gone on, who failed has failed."""
    calls: list[list[int]] = []

    async def handler(items: list[int]) -> list[Any]:
        calls.append(items)
        if len(calls) > 1:
            return items
        return [0, RateLimited(retry_after=1.0), ValueError(2), RateLimited(retry_after=4.0)]

    async with Batcher(handler, max_batch_size=4, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(4)]
        await turns()
        assert [pending.done() for pending in pendings] == [True, False, True, False]
        stats = counted(batcher)
        assert (stats.buffered, stats.in_flight, stats.items, stats.failed) == (2, 0, 2, 1)
        assert stats.held == pytest.approx(4.0)
        pendings.append(batcher.submit_nowait(4))
        results = await outcomes(*pendings)
    assert [repr(one) for one in results] == ["0", "1", "ValueError(2)", "3", "4"]
    assert calls == [[0, 1, 2, 3], [1, 3, 4]]


@pytest.mark.parametrize("front", [True, False])
async def test_a_backend_that_takes_a_few_of_each_batch_ends_nobody(front: bool) -> None:
    """Progress is made, however slowly: five of a hundred at a time are no refusals in a row."""
    calls = 0

    async def handler(items: list[int]) -> list[Any]:
        nonlocal calls
        calls += 1
        few = range(5) if front else [*range(0, len(items), max(1, len(items) // 5))][:5]
        return [
            item if place in few else RateLimited(retry_after=0.1)
            for place, item in enumerate(items)
        ]

    async with Batcher(handler, retry=holding(holds=3)) as batcher:
        assert await batcher.submit_many(range(100)) == list(range(100))
    assert calls == 20


async def test_an_item_that_is_refused_for_ever_while_others_succeed_ends_too() -> None:
    """Ten times ``holds`` as the first of a probe: a bound, far from what bad luck brings about."""
    calls: list[list[int]] = []

    async def handler(items: list[int]) -> list[Any]:
        calls.append(items)
        return [RateLimited(retry_after=0.1) if item in {3, 5} else item * 10 for item in items]

    async with Batcher(handler, max_batch_size=3, retry=holding(holds=2)) as batcher:
        results = await sent(batcher, range(100))
    assert [type(one) for one in results if type(one) is not int] == [RateLimited] * 2
    assert [one for one in results if type(one) is int] == [
        item * 10 for item in range(100) if item not in {3, 5}
    ]
    # The first call; then 20 probes begin with it.
    assert sum(3 in items for items in calls) == 21
    assert sum(5 in items for items in calls) == 41


async def test_handler_timeouts_of_a_probe_let_the_others_go() -> None:
    """It is no refusal; who waits must not wait for a backend that hangs."""
    calls: list[list[int]] = []

    async def handler(items: list[int]) -> list[int]:
        calls.append(items)
        if len(calls) == 1:
            raise RateLimited(retry_after=1.0)
        if len(calls) == 2:
            await anyio.sleep_forever()
        return items

    async with Batcher(handler, max_batch_size=1, handler_timeout=2.0, retry=holding()) as batcher:
        results = await sent(batcher, [1, 2])
        assert anyio.current_time() == pytest.approx(3.0)
    assert [type(one).__name__ for one in results] == ["HandlerTimeout", "int"]
    assert calls == [[1], [1], [2]]


async def test_items_go_at_once_when_the_hold_is_over_whatever_max_wait_says() -> None:
    """They have waited for company before."""
    handler = Busy(1.0)
    async with Batcher(handler, max_batch_size=2, max_wait=100.0, retry=holding()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(2)]
        results = await outcomes(*pendings)
        assert results == [0, 10]
        assert anyio.current_time() == pytest.approx(1.0)
    assert handler.reasons == ["size", "size"]
    handler = Busy(returns=True)

    async def partly(items: list[int]) -> list[Any]:
        results = await handler(items)
        return [results[0], RateLimited(retry_after=1.0)] if len(handler.batches) == 1 else results

    async with Batcher(partly, max_batch_size=2, max_wait=100.0, retry=holding()) as batcher:
        start = anyio.current_time()
        assert await sent(batcher, range(2)) == [0, 10]
        assert anyio.current_time() - start == pytest.approx(1.0)
    assert handler.reasons == ["size", "wait"]


async def test_stats_tell_how_long_it_takes_still() -> None:
    """For whoever asks why nothing goes."""
    handler = Busy(2.0, seconds=0.5)
    async with Batcher(handler, retry=holding()) as batcher:
        assert batcher.stats().held == 0
        pending = batcher.submit_nowait(1)
        await anyio.sleep(1.0)
        assert batcher.stats().held == pytest.approx(1.5)
        await anyio.sleep(1.6)
        assert counted(batcher).in_flight == 1
        assert batcher.stats().held == 0
        assert await pending == 10
        assert batcher.stats().held == 0


async def test_in_a_users_tests_holds_take_no_time() -> None:
    """Nor does a back-off: nobody's test waits for a backend that is made up."""
    handler = Busy(50.0, None, 50.0)
    with no_backoff():
        async with Batcher(handler, retry=holding()) as batcher:
            assert await batcher.submit(1) == 10
    assert gaps(handler) == [0, 0, 0]


async def test_a_retried_item_meets_a_hold() -> None:
    """Back-off and hold are apart: what is due joins those who wait."""
    calls: list[list[int]] = []

    async def handler(items: list[int]) -> list[Any]:
        calls.append(items)
        if len(calls) == 1:
            return [ConnectionError() if item == 1 else item for item in items]
        if len(calls) == 2:
            raise RateLimited(retry_after=3.0)
        return items

    retry = Retry(on=ConnectionError, backoff=Backoff(initial=1.0, jitter=0.0))
    async with Batcher(handler, max_batch_size=1, retry=retry) as batcher:
        first = batcher.submit_nowait(1)
        await turns()
        second = batcher.submit_nowait(2)
        await anyio.sleep(2.0)
        stats = counted(batcher)
        assert (stats.in_backoff, stats.buffered) == (0, 2)
        assert await outcomes(first, second) == [1, 2]
        assert anyio.current_time() == pytest.approx(3.0)
    assert calls == [[1], [2], [2], [1]]
