"""Retries: only failed and retryable items go again, nobody else waits for them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import Recorder, counted, outcome, outcomes, tasks_alive, turns

from microbatch import Backoff, Batcher, HandlerTimeout, ItemError, Retry, current_batch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

EXACT = Backoff(initial=1.0, factor=2.0, jitter=0.0)


class Flaky(Recorder):
    """Fails each item as often as it was told to, then doubles it by ten."""

    def __init__(self, failures: dict[int, int], error: Any = ConnectionError) -> None:
        super().__init__()
        self.failures = dict(failures)
        self.error = error

    async def __call__(self, items: list[int]) -> list[Any]:
        results: list[Any] = await super().__call__(items)
        for index, item in enumerate(items):
            if self.failures.get(item, 0) > 0:
                self.failures[item] -= 1
                results[index] = self.error()
        return results


async def test_only_the_failed_items_go_again() -> None:
    """Ten, then four, then one; each success is its caller's at once."""
    handler = Flaky({1: 1, 2: 1, 3: 1, 4: 2})
    done: dict[int, float] = {}
    async with Batcher(
        handler, retry=Retry(on=ConnectionError, attempts=3, backoff=EXACT)
    ) as batcher:
        start = anyio.current_time()

        async def call(item: int) -> None:
            assert await batcher.submit(item) == item * 10
            done[item] = anyio.current_time() - start

        async with anyio.create_task_group() as tasks:
            for item in range(10):
                tasks.start_soon(call, item)
    assert handler.sizes == [10, 4, 1]
    assert [done[item] for item in (0, 1, 4)] == pytest.approx([0, 1, 3])
    stats = counted(batcher)
    assert (stats.batches, stats.items, stats.failed, stats.pending) == (3, 10, 0, 0)


async def test_delays_grow_exponentially() -> None:
    """1, 2, 4 and 8 seconds, then it is over."""
    handler = Flaky({1: 9})
    async with Batcher(
        handler, retry=Retry(on=ConnectionError, attempts=5, backoff=EXACT)
    ) as batcher:
        error = await outcome(batcher.submit(1))
        assert type(error) is ConnectionError
        assert counted(batcher).failed == 1
    gaps = [
        after - before for before, after in zip(handler.started, handler.started[1:], strict=False)
    ]
    assert gaps == pytest.approx([1, 2, 4, 8])


async def test_delays_have_a_maximum() -> None:
    """Exponential growth passes any patience within a few attempts."""
    handler = Flaky({1: 9})
    backoff = Backoff(initial=1.0, factor=10.0, maximum=5.0, jitter=0.0)
    async with Batcher(
        handler, retry=Retry(on=ConnectionError, attempts=4, backoff=backoff)
    ) as batcher:
        await outcome(batcher.submit(1))
    gaps = [
        after - before for before, after in zip(handler.started, handler.started[1:], strict=False)
    ]
    assert gaps == pytest.approx([1, 5, 5])


@pytest.mark.parametrize(("retry_after", "expected"), [(3.0, 3.0), (0.0, 0.0), (500.0, 60.0), (float("nan"), 1.0), (float("inf"), 1.0), (None, 1.0)])  # fmt: skip
async def test_delays_follow_the_errors_retry_after(retry_after: Any, expected: float) -> None:
    """The backend knows best, within the maximum; what is not finite says nothing."""
    handler = Flaky({1: 1}, lambda: ItemError("busy", retryable=True, retry_after=retry_after))
    async with Batcher(handler, retry=Retry(on=ConnectionError, backoff=EXACT)) as batcher:
        assert await batcher.submit(1) == 10
    assert handler.started[1] - handler.started[0] == pytest.approx(expected)


async def test_attempts_count_handler_calls() -> None:
    """attempts=1 is one call."""
    handler = Flaky({1: 5})
    async with Batcher(handler, retry=Retry(on=ConnectionError, attempts=1)) as batcher:
        assert type(await outcome(batcher.submit(1))) is ConnectionError
    assert handler.sizes == [1]


async def test_an_error_that_is_not_named_is_not_retried() -> None:
    """A duplicate key stays a duplicate, however often it is sent."""
    handler = Flaky({1: 1}, KeyError)
    async with Batcher(handler, retry=Retry(on=(ConnectionError, TimeoutError))) as batcher:
        assert type(await outcome(batcher.submit(1))) is KeyError
    assert handler.sizes == [1]


async def test_an_item_error_decides_for_itself() -> None:
    """retryable=False is final even if `on` matches; True goes again even if it does not."""
    never = Flaky({1: 1}, lambda: ItemError("no", retryable=False))
    async with Batcher(never, retry=Retry(on=Exception, backoff=EXACT)) as batcher:
        assert type(await outcome(batcher.submit(1))) is ItemError
    assert never.sizes == [1]
    again = Flaky({1: 1}, lambda: ItemError("yes", retryable=True))
    async with Batcher(again, retry=Retry(on=KeyError, backoff=EXACT)) as batcher:
        assert await batcher.submit(1) == 10
    assert again.sizes == [1, 1]


async def test_a_predicate_may_decide() -> None:
    """Status codes are not types."""
    handler = Flaky({1: 1, 2: 1}, lambda: OSError(111, "refused"))
    retry = Retry(on=lambda error: isinstance(error, OSError) and error.errno == 111, backoff=EXACT)
    async with Batcher(handler, retry=retry) as batcher:
        assert await batcher.submit_many([1, 2]) == [10, 20]
    assert handler.sizes == [2, 2]


async def test_a_batch_that_fails_as_a_whole_is_retried_as_a_whole() -> None:
    """A deadlock in the database, twice, then fine."""
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise ConnectionError("deadlock")
        return items

    async with Batcher(handler, retry=Retry(on=ConnectionError, backoff=EXACT)) as batcher:
        assert await batcher.submit_many(range(5)) == list(range(5))
    assert calls == 3


async def test_a_handler_timeout_is_retried_only_if_named() -> None:
    """It may have done its work: TimeoutError, OSError or Exception do not mean it."""
    for on, expected in ((TimeoutError, 1), (Exception, 1), ((KeyError, HandlerTimeout), 3)):
        calls: list[int] = []

        async def handler(items: list[int], calls: list[int] = calls) -> list[int]:
            calls.append(len(items))
            await anyio.sleep_forever()
            return items

        retry = Retry(on=on, backoff=EXACT)  # type: ignore[arg-type]
        async with Batcher(handler, handler_timeout=1.0, retry=retry) as batcher:
            assert type(await outcome(batcher.submit(1))) is HandlerTimeout
        assert len(calls) == expected


async def test_no_slot_is_held_during_back_off() -> None:
    """New batches go meanwhile, and callers of the good items have long gone on."""
    handler = Flaky({1: 1})
    async with Batcher(
        handler, retry=Retry(on=ConnectionError, backoff=Backoff(initial=10, jitter=0))
    ) as batcher:
        start = anyio.current_time()
        pending = batcher.submit_nowait(1)
        await turns()
        assert counted(batcher).in_backoff == 1
        assert await batcher.submit(2) == 20
        assert anyio.current_time() == start
        assert await pending == 10
        assert anyio.current_time() - start == pytest.approx(10)


async def test_retried_items_ride_along_with_new_ones() -> None:
    """They go back to the buffer: no call of their own if there is company."""
    handler = Flaky({1: 1})
    async with Batcher(
        handler, max_wait=0.5, retry=Retry(on=ConnectionError, backoff=EXACT)
    ) as batcher:
        first = batcher.submit_nowait(1)
        await anyio.sleep(1.4)
        second = batcher.submit_nowait(2)
        assert await outcomes(first, second) == [10, 20]
    assert len(handler.batches) == 2
    assert sorted(handler.batches[1]) == [1, 2]


async def test_jitter_spreads_the_delays() -> None:
    """Between nothing and the full delay, not all at the same moment."""
    handler = Flaky(dict.fromkeys(range(50), 1))
    backoff = Backoff(initial=10.0, jitter=1.0)
    async with Batcher(handler, retry=Retry(on=ConnectionError, backoff=backoff)) as batcher:
        await batcher.submit_many(range(50))
    gaps = [moment - handler.started[0] for moment in handler.started[1:]]
    assert len(gaps) >= 10
    assert 0 <= min(gaps) < 3
    assert 7 < max(gaps) <= 10.001


async def test_back_off_holds_at_most_half_the_room() -> None:
    """A backend that is down must not fill the batcher with items that wait for it."""
    handler = Flaky(dict.fromkeys(range(100), 99))
    async with Batcher(
        handler,
        max_pending=10,
        retry=Retry(on=ConnectionError, attempts=50, backoff=Backoff(initial=30, jitter=0)),
    ) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(10)]
        await turns()
        assert counted(batcher).in_backoff == 5
        assert [pending.done() for pending in pendings].count(True) == 5
        handler.failures.clear()
        results = await outcomes(*pendings)
        assert [type(result) for result in results].count(ConnectionError) == 5
        assert counted(batcher).failed == 5


async def test_a_caller_cancelled_during_back_off_withdraws_its_item() -> None:
    """It does not go again, and its timer is nobody's."""
    handler = Flaky({1: 9})
    before = tasks_alive()
    async with Batcher(handler, retry=Retry(on=ConnectionError, backoff=EXACT)) as batcher:
        with anyio.move_on_after(0.5):
            await batcher.submit(1)
        assert counted(batcher).pending == 0
        await anyio.sleep(10)
    assert handler.sizes == [1]
    await turns()
    assert tasks_alive() == before


async def test_flush_waits_for_retries() -> None:
    """Resolved means resolved: back-off included."""
    handler = Flaky({1: 2})
    async with Batcher(
        handler, max_wait=1000, retry=Retry(on=ConnectionError, backoff=EXACT)
    ) as batcher:
        pending = batcher.submit_nowait(1)
        start = anyio.current_time()
        await batcher.flush()
        assert pending.done()
        assert anyio.current_time() - start == pytest.approx(3)


async def test_attempts_are_told_to_the_handler_and_the_report() -> None:
    """A handler may be more careful the third time; a report shows who was."""
    seen: list[list[int]] = []

    class Watching(Flaky):
        async def __call__(self, items: list[int]) -> list[Any]:
            batch = current_batch()
            assert batch is not None
            seen.append(list(batch.attempts))
            return await super().__call__(items)

    async with Batcher(Watching({1: 2}), retry=Retry(on=ConnectionError, backoff=EXACT)) as batcher:
        report = await batcher.submit_many_report([0, 1])
    assert seen == [[1, 1], [2], [3]]
    assert [one.attempts for one in report] == [1, 3]


async def test_permanent_and_exhausted_failures_are_both_in_the_report() -> None:
    """Neither may be forgotten because the other was retried."""
    handler = Flaky({1: 9, 2: 0, 3: 1})
    handler.fails = {4}
    async with Batcher(
        handler, retry=Retry(on=ConnectionError, attempts=2, backoff=EXACT)
    ) as batcher:
        report = await batcher.submit_many_report([1, 2, 3, 4])
    assert [type(one.error).__name__ for one in report] == [
        "ConnectionError",
        "NoneType",
        "NoneType",
        "ValueError",
    ]
    assert [one.attempts for one in report] == [2, 1, 2, 1]
    assert (report.succeeded, report.failed, report.total) == (2, 2, 4)


async def test_an_item_resolved_early_with_a_retryable_error_goes_again() -> None:
    """Early or returned: an error is judged alike."""
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            batch = current_batch()
            assert batch is not None
            batch.resolve(0, ConnectionError("early"))
        return items

    async with Batcher(handler, retry=Retry(on=ConnectionError, backoff=EXACT)) as batcher:
        assert await batcher.submit(1) == 1
    assert calls == 2


async def test_a_generators_failed_item_goes_again_while_the_generator_goes_on() -> None:
    """Its back-off does not wait for the others of its batch."""
    calls: list[float] = []

    async def handler(items: list[int]) -> Any:
        calls.append(anyio.current_time())
        first = len(calls) == 1
        await anyio.sleep(0.5)
        for index, item in enumerate(items):
            yield index, ConnectionError() if first and item == 1 else item
        await anyio.sleep(10)

    async with Batcher(
        handler,
        max_batch_size=2,
        max_concurrency=2,
        retry=Retry(on=ConnectionError, backoff=Backoff(initial=1, jitter=0)),
    ) as batcher:
        assert await outcomes(batcher.submit(1), batcher.submit(2)) == [1, 2]
        assert calls[1] - calls[0] == pytest.approx(1.5)


async def test_a_generators_failed_items_go_again() -> None:
    """Also when the generator breaks in the middle: what it yielded stands."""
    calls: list[int] = []

    async def handler(items: list[int]) -> Any:
        calls.append(len(items))
        yield 0, items[0]
        if len(calls) == 1:
            raise ConnectionError("middle")
        for index, item in enumerate(items[1:], 1):
            yield index, item

    async with Batcher(handler, retry=Retry(on=ConnectionError, backoff=EXACT)) as batcher:
        assert await batcher.submit_many([1, 2, 3]) == [1, 2, 3]
    assert calls == [3, 2]


async def test_a_hundred_retried_items_keep_one_timer() -> None:
    """Not a task for each: a failing backend must not multiply them."""
    handler = Flaky(dict.fromkeys(range(500), 1))
    async with Batcher(
        handler, max_batch_size=500, retry=Retry(on=ConnectionError, backoff=EXACT)
    ) as batcher:
        before = tasks_alive()
        pendings = [batcher.submit_nowait(item) for item in range(500)]
        await turns()
        assert counted(batcher).in_backoff == 500
        assert tasks_alive() <= before + 3
        assert await outcomes(*pendings) == [item * 10 for item in range(500)]
