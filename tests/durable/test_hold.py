"""Hold in the durable mode: claims wait for a backend that takes nothing, and no attempt is counted on the disk."""

from __future__ import annotations

import asyncio
import itertools
import time

import anyio
import pytest
from durable_support import LOOPS, batcher, check_counts, rows, until
from telemetry_support import Sdk

from microbatch import Backoff, RateLimited, Retry, current_batch
from microbatch.durable import ItemFailed
from microbatch.testing import no_backoff

pytestmark = pytest.mark.anyio
#: Seconds by which timers may ring early.
EARLY = 0.01

both_loops = pytest.mark.parametrize("backend_name", LOOPS, indirect=True)


def holding(**settings) -> Retry:
    """Return a Retry that sends no failed item again; its holds are short unless the backend says otherwise."""
    backoff = Backoff(initial=0.05, maximum=3600, jitter=0.0)
    return Retry(**{"on": ZeroDivisionError, "backoff": backoff} | settings)


def attempts(path) -> list[int]:
    return [number for (number,) in rows(path, "SELECT attempts FROM microbatch_ranges")]


class Busy:
    """Refuses its first calls, as it is told: seconds, None, or "ok" for one that it does not."""

    def __init__(self, *refusals, returns: bool = False) -> None:
        self.refusals = list(refusals)
        self.returns = returns
        self.batches: list[list[int]] = []
        self.attempts: list[int] = []
        self.starts: list[float] = []

    async def __call__(self, items):
        self.batches.append(list(items))
        self.attempts += current_batch().attempts
        self.starts.append(anyio.current_time())
        refusal = self.refusals.pop(0) if self.refusals else "ok"
        if refusal == "ok":
            return [item * 10 for item in items]
        if self.returns:
            return [RateLimited(retry_after=refusal)] * len(items)
        raise RateLimited(retry_after=refusal)

    @property
    def gaps(self) -> list[float]:
        return [later - start for start, later in itertools.pairwise(self.starts)]


@both_loops
@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("count", [1, 7])
async def test_refused_items_wait_and_succeed_with_no_attempt_counted(path, returns, count):
    """Neither their callers nor the file see that the backend was busy."""
    handler = Busy(0.1, 0.2, returns=returns)
    async with batcher(path, handler, retry=holding(attempts=1)) as durable:
        tickets = await durable.enqueue_many(range(count))
        assert [await durable.result(ticket) for ticket in tickets] == [
            number * 10 for number in range(count)
        ]
        assert (await durable.stats()).dead == 0
    assert handler.batches == [[*range(count)]] * 3
    assert set(handler.attempts) == {1}
    assert handler.gaps[0] >= 0.1 - EARLY
    assert handler.gaps[1] >= 0.2 - EARLY
    assert set(attempts(path)) <= {1}
    check_counts(path)


async def test_nothing_is_claimed_while_the_backend_is_left_in_peace(path):
    """New items wait on the disk, where others may take them, and go when the time is over."""
    handler = Busy(3600)
    async with batcher(
        path, handler, max_batch_size=2, max_concurrency=4, retry=holding()
    ) as durable:
        await durable.enqueue_many([1, 2])
        await until(lambda: _called(handler, 1))
        for number in (3, 4, 5):
            await durable.enqueue(number)
        stats = await durable.stats()
        assert (stats.ready, stats.claimed) == (3, 2)
        assert handler.batches == [[1, 2]]
    check_counts(path)


async def test_what_came_meanwhile_goes_behind_what_was_refused(path):
    """One claim goes first when the time is over; then the others, in their order."""
    handler = Busy(0.1)
    async with batcher(path, handler, max_batch_size=2, retry=holding()) as durable:
        first = await durable.enqueue_many([1, 2])
        more = await durable.enqueue_many([3, 4, 5])
        results = [await durable.result(ticket) for ticket in (*first, *more)]
        assert results == [10, 20, 30, 40, 50]
    assert handler.batches[:2] == [[1, 2], [1, 2]]
    assert [item for batch in handler.batches[2:] for item in batch] == [3, 4, 5]
    check_counts(path)


async def _called(handler, times: int) -> bool:
    return len(handler.batches) >= times


async def test_claims_refused_at_the_same_time_are_one_hold(path):
    """The longest time counts, and one of them goes first."""
    starts: list[float] = []
    together = anyio.Event()

    async def handler(items):
        starts.append(anyio.current_time())
        if len(starts) == 3:
            together.set()
        if len(starts) <= 3:
            await together.wait()
            raise RateLimited(retry_after={0: 0.2, 2: 0.5, 4: 0.1}[items[0]])
        await anyio.sleep(0.05)
        return items

    async with batcher(
        path, handler, max_batch_size=2, max_concurrency=3, retry=holding()
    ) as durable:
        tickets = await durable.enqueue_many(range(6))
        assert [await durable.result(ticket) for ticket in tickets] == [*range(6)]
    assert len(starts) == 6
    probe, *others = starts[3:]
    assert probe - starts[2] >= 0.5 - EARLY
    assert all(other - probe >= 0.05 - EARLY for other in others)
    check_counts(path)


async def test_a_batch_that_is_taken_in_part_goes_again_in_part(path):
    """Who succeeded is settled; the rest stays claimed, uncounted."""
    calls: list[list[int]] = []

    async def handler(items):
        calls.append(list(items))
        first = len(calls) == 1
        return [RateLimited(retry_after=0.1) if first and item % 2 else item for item in items]

    async with batcher(path, handler, retry=holding()) as durable:
        tickets = await durable.enqueue_many(range(6))
        assert [await durable.result(ticket) for ticket in tickets] == [*range(6)]
    assert calls == [[0, 1, 2, 3, 4, 5], [1, 3, 5]]
    check_counts(path)


async def test_a_generator_may_refuse_some(path):
    """Early outcomes are outcomes."""
    calls: list[list[int]] = []

    async def handler(items):
        calls.append(list(items))
        for index, item in enumerate(items):
            yield index, RateLimited(retry_after=0.1) if len(calls) == 1 and index != 1 else item

    async with batcher(path, handler, retry=holding()) as durable:
        tickets = await durable.enqueue_many(range(3))
        assert [await durable.result(ticket) for ticket in tickets] == [0, 1, 2]
    assert calls == [[0, 1, 2], [0, 2]]


@pytest.mark.parametrize("count", [1, 3])
async def test_after_so_many_refusals_in_a_row_items_are_dead_letters(path, count):
    """With the reason, and one attempt: the last call was one."""
    handler = Busy(*[None] * 99)
    async with batcher(path, handler, retry=holding(holds=3)) as durable:
        with no_backoff():
            tickets = await durable.enqueue_many(range(count))
            for ticket in tickets:
                with pytest.raises(ItemFailed, match="RateLimited"):
                    await durable.result(ticket)
        dead = await durable.dead_letters()
        assert {letter.attempts for letter in dead} == {1}
        assert len(handler.batches) == 3
    check_counts(path)


async def test_an_item_that_is_refused_for_ever_ends_while_others_succeed(path):
    """Ten times ``holds`` as the first of what goes first."""

    async def handler(items):
        return [RateLimited() if item == 3 else item for item in items]

    async with batcher(path, handler, max_batch_size=4, retry=holding(holds=1)) as durable:
        with no_backoff():
            tickets = await durable.enqueue_many(range(8))
            results = []
            for ticket in tickets:
                try:
                    results.append(await durable.result(ticket))
                except ItemFailed as error:
                    results.append(str(error))
    assert [one for one in results if isinstance(one, int)] == [0, 1, 2, 4, 5, 6, 7]
    check_counts(path)


async def test_without_retry_a_refusal_is_a_failure_like_any_other(path):
    """A dead letter at once."""
    handler = Busy(0.1)
    async with batcher(path, handler) as durable:
        with pytest.raises(ItemFailed, match="RateLimited"):
            await durable.submit(1)
        assert await durable.submit(2) == 20


async def test_closing_while_held_gives_the_items_back_uncounted(path):
    """At once: whoever opens the file next goes on with them."""
    handler = Busy(600)
    async with batcher(path, handler, retry=holding()) as durable:
        await durable.enqueue_many(range(5))
        await until(lambda: _called(handler, 1))
        began = anyio.current_time()
    assert anyio.current_time() - began < 60
    assert set(attempts(path)) == {0}
    check_counts(path)
    handler = Busy()
    async with batcher(path, handler, retry=holding()) as durable:
        await until(lambda: _called(handler, 1))
    assert handler.batches == [[0, 1, 2, 3, 4]]
    assert set(handler.attempts) == {1}


async def test_a_call_that_is_refused_while_closing_gives_its_items_back(path):
    """There is no waiting for a backend any more."""
    entered, go_on = anyio.Event(), anyio.Event()

    async def handler(items):
        entered.set()
        await go_on.wait()
        raise RateLimited(retry_after=600)

    async with batcher(path, handler, retry=holding()) as durable:
        await durable.enqueue_many(range(3))
        await entered.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(durable.aclose)
            await anyio.sleep(0.05)
            go_on.set()
    assert set(attempts(path)) == {0}
    check_counts(path)


async def test_each_partition_waits_for_itself(path):
    """Claims are parted here, so their parts wait here; the others go on."""
    calls: list[str] = []

    async def handler(items):
        calls.append(items[0][0])
        if items[0][0] == "a" and calls.count("a") <= 2:
            raise RateLimited(retry_after=0.2 if calls.count("a") == 1 else 0.1)
        return [item[1] for item in items]

    async with batcher(
        path,
        handler,
        item_type=tuple[str, int],
        max_batch_size=2,
        partition=lambda item: item[0],
        retry=holding(),
    ) as durable:
        first = await durable.enqueue_many([("a", 1), ("b", 2), ("a", 3), ("b", 4)])
        await until(lambda: _has(calls, "b"))
        later = await durable.enqueue_many([("b", 5), ("b", 6)])
        assert [await durable.result(ticket) for ticket in later] == [5, 6]
        more = await durable.enqueue_many([("a", 7), ("b", 8)])
        assert [await durable.result(ticket) for ticket in (*first, *more)] == [1, 2, 3, 4, 7, 8]
    assert calls.count("a") >= 4
    check_counts(path)


async def _has(calls, part: str) -> bool:
    return part in calls


async def test_a_partition_whose_backend_fails_otherwise_goes_on(path):
    """The probe came back without a refusal, so the others follow."""
    calls: list[list[int]] = []

    async def handler(items):
        calls.append([item[1] for item in items])
        if len(calls) == 1:
            raise RateLimited(retry_after=0.05)
        if len(calls) == 2:
            raise ValueError("bad")
        return [item[1] for item in items]

    async with batcher(
        path,
        handler,
        item_type=tuple[str, int],
        max_batch_size=2,
        partition=lambda item: item[0],
        retry=holding(),
    ) as durable:
        tickets = await durable.enqueue_many([("a", number) for number in range(4)])
        for ticket in tickets[:2]:
            with pytest.raises(ItemFailed, match="ValueError"):
                await durable.result(ticket)
        assert [await durable.result(ticket) for ticket in tickets[2:]] == [2, 3]
    check_counts(path)


async def test_an_error_whose_time_raises_ends_its_item_alone(path):
    """A subclass's own code must not stop the worker."""

    class Odd(RateLimited):
        retry_after = property(lambda self: 1 / 0)

        def __init__(self) -> None:
            Exception.__init__(self, "odd")

        def __str__(self) -> str:
            return "odd"

    async def handler(items):
        return [Odd() if item == 1 else item for item in items]

    async with batcher(path, handler, retry=holding()) as durable:
        tickets = await durable.enqueue_many([1, 2])
        with pytest.raises(ItemFailed):
            await durable.result(tickets[0])
        assert await durable.result(tickets[1]) == 2
    check_counts(path)


async def test_a_row_goes_on_where_a_probe_failed_otherwise(path):
    """Neither refused nor a success: two more refusals, and it is the third in a row."""
    calls = 0

    async def handler(items):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ValueError("bad")
        raise RateLimited

    async with batcher(path, handler, max_batch_size=2, retry=holding(holds=3)) as durable:
        with no_backoff():
            for numbers in ([1, 2], [3, 4]):
                for ticket in await durable.enqueue_many(numbers):
                    with pytest.raises(ItemFailed):
                        await durable.result(ticket)
    assert calls == 4


async def test_partitions_that_end_while_they_wait_are_forgotten(path):
    """Whoever comes when the time is over begins anew."""
    handler = Busy(0.05, 0.05, 0.05)
    async with batcher(
        path, handler, partition=lambda item: item % 2 + 1, retry=holding(holds=1)
    ) as durable:
        for number in (1, 2):
            with pytest.raises(ItemFailed, match="RateLimited"):
                await durable.submit(number)
        with pytest.raises(ItemFailed, match="RateLimited"):
            await durable.submit(3)
        await anyio.sleep(0.2)
        assert await durable.submit(4) == 40
        assert await durable.submit(5) == 50


async def test_a_hold_and_a_timeout_of_what_goes_first(path, monkeypatch):
    """A probe that hangs is no refusal: its items fail by the timeout, the others go."""
    loop = asyncio.get_running_loop()
    calls: list[list[int]] = []

    async def handler(items):
        calls.append(list(items))
        if len(calls) == 1:
            raise RateLimited(retry_after=0.01)
        if len(calls) == 2:
            monkeypatch.setattr(loop, "time", lambda: time.monotonic() + 31)
            await anyio.sleep_forever()
        return items

    async with batcher(
        path, handler, max_batch_size=2, handler_timeout=30, retry=holding()
    ) as durable:
        tickets = await durable.enqueue_many(range(4))
        for ticket in tickets[:2]:
            with pytest.raises(ItemFailed, match="HandlerTimeout"):
                await durable.result(ticket)
        assert [await durable.result(ticket) for ticket in tickets[2:]] == [2, 3]


async def test_telemetry_counts_holds_of_a_queue(path):
    """One for all refusals at the same time; its items are counted when they have their outcome."""
    sdk = Sdk()
    handler = Busy(0.05, 0.05)
    async with batcher(path, handler, retry=holding(), telemetry=sdk.telemetry()) as durable:
        for ticket in await durable.enqueue_many(range(3)):
            await durable.result(ticket)
    assert [point.value for point in sdk.points("microbatch.holds")] == [2]
    assert sdk.counts("microbatch.items") == {None: 3}
    assert sdk.counts("microbatch.retries") == {}


async def test_what_was_to_begin_next_of_a_refused_partition_waits_too(path):
    """More parts were claimed than there are slots: those of the refused partition do not begin."""
    calls: list[int] = []

    async def handler(items):
        calls.extend(item[1] for item in items)
        if calls.count(1) == 1 and items[0][1] == 1:
            raise RateLimited(retry_after=0.2)
        return [item[1] for item in items]

    async with batcher(
        path,
        handler,
        item_type=tuple[str, int],
        max_concurrency=2,
        max_batch_size=1,
        partition=lambda item: item[0],
        retry=holding(),
    ) as durable:
        tickets = await durable.enqueue_many(zip("abcabc", range(1, 7), strict=True))
        assert [await durable.result(ticket) for ticket in tickets] == [1, 2, 3, 4, 5, 6]
    first, second = (place for place, number in enumerate(calls) if number == 1)
    assert first == 0
    assert calls.index(4) > second
    assert sorted(calls) == [1, 1, 2, 3, 4, 5, 6]
    check_counts(path)


@pytest.mark.parametrize("partition", [None, lambda item: item % 1])
async def test_a_job_that_is_cancelled_while_held_ends_at_once(path, partition, monkeypatch):
    """Nothing of it goes again when the time is over; what is not of it does."""
    loop = asyncio.get_running_loop()
    handler = Busy(30)
    async with batcher(
        path, handler, max_batch_size=3, max_concurrency=2, partition=partition, retry=holding()
    ) as durable:
        job = await durable.enqueue_job(range(7))
        await until(lambda: handler.batches)
        await job.cancel()
        status = await job.wait(20)
        assert (status.life, status.outcome) == ("ended", "cancelled")
        seen = len(handler.batches)
        monkeypatch.setattr(loop, "time", lambda: time.monotonic() + 31)
        assert await durable.submit(100) == 1_000
        assert handler.batches[seen:] == [[100]]
    assert status.cancelled + status.succeeded == 7
    check_counts(path)


@pytest.mark.parametrize("partition", [None, lambda item: item % 1])
async def test_a_job_is_held_like_anything_else(path, partition):
    """And ends with all that it has, no attempt counted."""
    handler = Busy(0.05, 0.05)
    async with batcher(
        path, handler, max_batch_size=3, partition=partition, retry=holding(attempts=1)
    ) as durable:
        job = await durable.enqueue_job(range(7))
        status = await job.wait(20)
        assert (status.succeeded, status.failed) == (7, 0)
    assert set(handler.attempts) == {1}
    check_counts(path)
