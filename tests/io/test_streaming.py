"""``map_batches``: bounded, in order, and gone without a trace whenever it is left."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import BACKENDS, run, tasks_alive, turns

import microbatch
from microbatch import Batcher, BatcherClosed, BatchFailed, ItemError, Outcome, Retry, Skipped
from microbatch.layers import bisecting, per_item, validated
from microbatch.streaming import OutcomeStream, Progress, map_batches

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


class Work:
    """A handler that doubles, remembers its batches and how many ran at once."""

    def __init__(self, seconds: float = 0.0, fails: Any = ()) -> None:
        self.seconds = seconds
        self.fails = fails
        self.batches: list[list[int]] = []
        self.running = self.peak = 0

    async def __call__(self, items: list[int]) -> list[Any]:
        self.batches.append(list(items))
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.running -= 1
        return [ItemError("bad", code="bad") if i in self.fails else i * 2 for i in items]


class Source:
    """Numbers, read one by one; it notes how many were read, and that it was closed."""

    def __init__(self, count: int, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.count = count
        self.error = error
        self.seconds = seconds
        self.read = 0
        self.closed = False

    def plain(self) -> Any:
        try:
            for number in range(self.count):
                self.read += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True

    async def asynchronous(self) -> Any:
        try:
            for number in range(self.count):
                await anyio.sleep(self.seconds)
                self.read += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True
            await anyio.lowlevel.checkpoint()

    def open(self, kind: str) -> Any:
        return getattr(self, kind)()


async def collect(stream: OutcomeStream[Any]) -> list[Any]:
    async with stream as outcomes:
        return [outcome async for outcome in outcomes]


# --- what comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_every_item_has_its_outcome_in_the_sources_order(kind: str) -> None:
    """Whole batches, and the partial one at the end."""
    source, handler = Source(25), Work()
    outcomes = await collect(map_batches(source.open(kind), handler, max_batch_size=10))
    assert outcomes == [Outcome(n, True, n * 2) for n in range(25)]
    assert [len(batch) for batch in handler.batches] == [10, 10, 5]
    assert source.closed


async def test_an_order_of_ending_is_kept_or_not_as_was_asked() -> None:
    """Ordered by default; unordered, a quick batch does not wait for a slow one before it."""

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(10 - items[0])
        return items

    for ordered, indices in ((True, [0, 1, 2, 3]), (False, [3, 2, 1, 0])):
        stream = map_batches(range(4), handler, max_batch_size=1, ordered=ordered)
        assert [outcome.index for outcome in await collect(stream)] == indices


async def test_unordered_outcomes_come_as_batches_end() -> None:
    """The first comes while the others still run."""

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(10 - items[0])
        return items

    began, came = anyio.current_time(), []
    async with map_batches(range(4), handler, max_batch_size=1, ordered=False) as outcomes:
        async for outcome in outcomes:
            came.append((outcome.index, anyio.current_time() - began))
    assert came == [(3, 7), (2, 8), (1, 9), (0, 10)]


async def test_a_handler_that_raises_fails_its_items_and_the_stream_goes_on() -> None:
    """Each item has an exception of its own; nothing is swallowed, nothing is missing."""

    async def handler(items: list[int]) -> list[int]:
        if 3 in items:
            raise RuntimeError("gone")
        return items

    outcomes = await collect(map_batches(range(6), handler, max_batch_size=2))
    assert [outcome.ok for outcome in outcomes] == [True, True, False, False, True, True]
    assert outcomes[2].error is not outcomes[3].error
    assert [str(outcomes[i].error) for i in (2, 3)] == ["gone", "gone"]


async def test_failed_and_skipped_items_are_told_apart() -> None:
    """In the outcomes and in the counts."""

    async def handler(items: list[int]) -> list[Any]:
        return [
            Skipped("old") if i % 3 == 0 else ItemError("x") if i % 3 == 1 else i for i in items
        ]

    async with map_batches(range(9), handler) as outcomes:
        kinds = Counter([(o.ok, o.skipped, o.code) async for o in outcomes])
    assert kinds == {
        (True, False, None): 3,
        (False, True, "skipped"): 3,
        (False, False, "item_error"): 3,
    }
    progress = outcomes.progress
    assert (progress.succeeded, progress.failed, progress.skipped, progress.done) == (3, 3, 3, 9)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([1], "result_count_error"),
        ("ab", "internal_error"),
        ({1: 2, 3: 4}, "internal_error"),
        (None, None),
        ((1, 2), None),
    ],
)
async def test_what_a_handler_may_return_is_as_under_a_batcher(
    returned: Any, expected: str | None
) -> None:
    """None means None for each; a wrong count or a thing without positions fails the batch."""

    async def handler(items: list[int]) -> Any:
        return returned

    codes = [o.code for o in await collect(map_batches([1, 2], handler))]
    assert codes == [expected] * 2


@pytest.mark.real_time
async def test_a_plain_handler_runs_in_a_thread() -> None:
    """So it may block; and one that returns an awaitable is awaited."""
    threads: set[int] = set()

    def handler(items: list[int]) -> list[int]:
        threads.add(threading.get_ident())
        return items

    async def double(items: list[int]) -> list[int]:
        return [item * 2 for item in items]

    assert len(await collect(map_batches(range(5), handler, max_batch_size=2))) == 5
    assert threading.get_ident() not in threads
    outcomes = await collect(map_batches(range(3), lambda items: double(items)))  # noqa: PLW0108
    assert [outcome.value for outcome in outcomes] == [0, 2, 4]


async def test_layers_find_their_batch_without_a_batcher() -> None:
    """What a layer told early holds, even if the call fails afterwards."""
    seen: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        batch = microbatch.current_batch()
        assert batch is not None
        seen.append((batch.size, batch.reason, batch.attempts))
        raise ConnectionError

    def check(item: int) -> None:
        if item < 0:
            raise ItemError("negative", code="negative")

    stream = map_batches([1, -1, 2, 3], validated(handler, check), max_batch_size=3)
    assert [o.code for o in await collect(stream)] == [
        "internal_error",
        "negative",
        "internal_error",
        "internal_error",
    ]
    assert seen == [(2, "size", (1, 1)), (1, "close", (1,))]
    assert microbatch.current_batch() is None


async def test_layers_do_their_work_in_a_stream() -> None:
    """One poison item of a thousand fails alone."""

    async def insert(items: list[int]) -> None:
        if 777 in items:
            raise ValueError(777)

    outcomes = await collect(map_batches(range(1000), bisecting(insert), max_batch_size=100))
    assert [o.index for o in outcomes if not o.ok] == [777]
    fetched = await collect(map_batches(range(5), per_item(abs_later), max_batch_size=2))
    assert [o.value for o in fetched] == [0, 1, 2, 3, 4]


async def abs_later(item: int) -> int:
    await anyio.sleep(1)
    return abs(item)


# trio's cannot be made by hand; test_layers takes one out of its scope.
by_hand = pytest.mark.parametrize(
    "backend_name", [name for name in BACKENDS if name != "trio"], indirect=True
)


@by_hand
async def test_a_cancellation_of_the_handlers_own_making_fails_its_batch() -> None:
    """It must not end the stream as if somebody had cancelled it."""

    async def handler(items: list[int]) -> list[int]:
        if 1 in items:
            raise asyncio.CancelledError
        return items

    outcomes = await collect(map_batches(range(3), handler, max_batch_size=1))
    assert [o.code for o in outcomes] == [None, "handler_crashed", None]


# --- a Batcher as the handler -----------------------------------------------------------------------------------


async def test_a_batcher_brings_its_own_batches_retries_and_bounds() -> None:
    """The stream feeds it, counts its attempts, and leaves it open."""
    handler = Work()
    tried: Counter[int] = Counter()

    async def flaky(items: list[int]) -> list[Any]:
        tried.update(items)
        return [ConnectionError() if i == 5 and tried[i] < 3 else i for i in await handler(items)]

    async with Batcher(flaky, max_batch_size=4, retry=Retry(on=ConnectionError)) as batcher:
        async with map_batches(range(10), batcher, max_batch_size=8, max_concurrency=1) as stream:
            outcomes = [outcome async for outcome in stream]
        assert [o.index for o in outcomes] == list(range(10))
        assert all(o.ok for o in outcomes)
        assert max(len(batch) for batch in handler.batches) == 4
        assert await batcher.submit(1) == 2


async def test_attempts_of_a_batchers_retries_are_in_the_outcomes() -> None:
    """The item that failed twice had three."""
    tried: Counter[int] = Counter()

    async def flaky(items: list[int]) -> list[Any]:
        tried.update(items)
        return [ConnectionError() if i == 5 and tried[i] < 3 else i for i in items]

    async with Batcher(flaky, retry=Retry(on=ConnectionError)) as batcher:
        outcomes = await collect(map_batches(range(10), batcher))
    assert [o.attempts for o in outcomes] == [1, 1, 1, 1, 1, 3, 1, 1, 1, 1]
    assert len({o.id for o in outcomes}) == 10


async def test_a_closed_batcher_fails_the_items() -> None:
    """They are not lost: each says why."""
    batcher = Batcher(Work())
    await batcher.aclose()
    outcomes = await collect(map_batches(range(3), batcher, max_batch_size=2))
    assert [type(o.error) for o in outcomes] == [BatcherClosed] * 3


# --- outcomes as the source -------------------------------------------------------------------------------------


async def test_outcomes_of_a_source_keep_their_place_and_their_id() -> None:
    """A failed one goes past the handler; of the others it gets the value."""
    bad = ItemError("line 3", code="bad_row")
    handler = Work()
    source = [
        Outcome(7, True, 10, id=2),
        Outcome(8, False, None, bad, id=3),
        Outcome(9, False, None, Skipped("x"), True, id=4),
        20,
    ]
    outcomes = await collect(map_batches(source, handler))
    assert outcomes == [
        Outcome(0, True, 20, id=2),
        Outcome(1, False, None, bad, id=3),
        Outcome(2, False, None, source[2].error, True, id=4),  # type: ignore[union-attr]
        Outcome(3, True, 40),
    ]
    assert handler.batches == [[10, 20]]


async def test_a_batch_of_failed_outcomes_only_never_reaches_the_handler() -> None:
    """An empty call would be a surprise to most handlers."""
    handler = Work()
    source = [Outcome(0, False, None, ValueError(1))]
    [outcome] = await collect(map_batches(source, handler))
    assert outcome.error is source[0].error
    assert handler.batches == []


async def test_a_batchers_outcomes_take_the_ids_of_the_source() -> None:
    """Line numbers say more than the batcher's count."""
    async with Batcher(Work()) as batcher:
        [outcome] = await collect(map_batches([Outcome(0, True, 1, id="line 1")], batcher))
    assert (outcome.value, outcome.id) == (2, "line 1")


@pytest.mark.parametrize("id", [None, 7])
async def test_outcomes_of_a_stream_are_outcomes_like_any(id: int | None) -> None:  # noqa: A002
    """Equal, hashed, shown, copied, pickled and serialised as others are, though made in another way."""
    [outcome] = await collect(map_batches([Outcome(3, True, 1, id=id)], Work()))
    other = Outcome(0, True, 2, id=id)
    assert outcome == other
    assert other == outcome
    assert outcome != Outcome(0, True, 3, id=id)
    assert outcome != 2
    assert hash(outcome) == hash(other)
    assert repr(outcome) == repr(other)
    assert type(pickle.loads(pickle.dumps(outcome))) is Outcome
    assert pickle.loads(pickle.dumps(outcome)) == copy.copy(outcome) == other
    assert dataclasses.replace(outcome, index=5) == Outcome(5, True, 2, id=id)
    assert outcome.as_dict() == other.as_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.value = 1


# --- bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_no_more_is_held_than_the_batches_in_flight_and_one(kind: str, ordered: bool) -> None:
    """Counted at every outcome and in every call: what was read and has not been taken yet."""
    source = Source(1000)
    taken = 0
    held: list[int] = []

    async def handler(items: list[int]) -> list[int]:
        held.append(source.read - taken)
        await anyio.sleep(items[0] % 7)
        return items

    stream = map_batches(
        source.open(kind), handler, max_batch_size=10, max_concurrency=3, ordered=ordered
    )
    async with stream as outcomes:
        async for _ in outcomes:
            held.append(source.read - taken)
            taken += 1
            await anyio.sleep(0.01)
    assert taken == 1000
    assert 30 < max(held) <= 40


async def test_a_slow_consumer_stops_the_reading() -> None:
    """And nothing is read on while it thinks."""
    source = Source(10_000)
    async with map_batches(
        source.plain(), Work(), max_batch_size=10, max_concurrency=2
    ) as outcomes:
        await anyio.sleep(3600)
        assert source.read == 30
        async for _ in outcomes:
            break
        await anyio.sleep(3600)
        assert source.read == 30


async def test_a_slow_handler_stops_the_reading() -> None:
    """However eager the consumer."""
    source, handler = Source(10_000), Work(seconds=60)
    with anyio.move_on_after(100):
        await collect(map_batches(source.plain(), handler, max_batch_size=10, max_concurrency=2))
    assert handler.peak == 2
    assert source.read == 50


async def test_handlers_run_side_by_side_up_to_the_limit() -> None:
    """Twelve batches of one second, four at a time: three seconds."""
    handler = Work(seconds=1)
    began = anyio.current_time()
    await collect(map_batches(range(12), handler, max_batch_size=1))
    assert handler.peak == 4
    assert anyio.current_time() - began == pytest.approx(3)


async def test_reading_goes_on_while_handlers_run() -> None:
    """A slow source and a slow handler overlap: 5 batches take 6 seconds, not 10."""
    source, handler = Source(5, seconds=1), Work(seconds=1)
    began = anyio.current_time()
    await collect(map_batches(source.asynchronous(), handler, max_batch_size=1, max_concurrency=1))
    assert anyio.current_time() - began == pytest.approx(6)


# --- the end, and early ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_a_sources_error_comes_after_the_outcomes_of_what_was_read(
    kind: str, ordered: bool
) -> None:
    """Unwrapped; the partial batch before it is handled too."""
    error = OSError("torn off")
    source, handler = Source(25, error), Work(seconds=1)
    taken: list[int] = []
    with pytest.raises(OSError, match="torn off") as caught:
        async with map_batches(
            source.open(kind), handler, max_batch_size=10, ordered=ordered
        ) as outcomes:
            async for outcome in outcomes:
                taken.append(outcome.index)
    assert caught.value is error
    assert sorted(taken) == list(range(25))
    assert source.closed


async def test_a_source_that_cannot_even_begin_is_an_error_of_the_stream() -> None:
    """It is raised as it is."""

    class Broken:
        def __iter__(self) -> Any:
            raise OSError("no such table")

    with pytest.raises(OSError, match="no such table"):
        await collect(map_batches(Broken(), Work()))


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
@pytest.mark.parametrize("how", ["break", "error", "cancel"])
async def test_leaving_early_ends_handlers_and_closes_the_source(kind: str, how: str) -> None:
    """No task is left, and the consumer's own error comes unwrapped."""
    before = tasks_alive()
    source, handler = Source(10_000), Work(seconds=1)
    ended: list[str] = []

    async def consume() -> None:
        async with map_batches(source.open(kind), handler, max_batch_size=10) as outcomes:
            async for outcome in outcomes:
                if outcome.index < 15:
                    continue
                assert handler.running
                if how == "break":
                    break
                if how == "error":
                    raise KeyError("mine")
                await anyio.sleep_forever()
        ended.append("normally")

    if how == "error":
        with pytest.raises(KeyError, match="mine"):
            await consume()
    else:
        with anyio.move_on_after(100) as scope:
            await consume()
        assert scope.cancelled_caught == (how == "cancel")
    assert ended == (["normally"] if how == "break" else [])
    assert source.closed
    assert handler.running == 0
    await turns()
    assert tasks_alive() == before


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_leaving_at_once_is_fine(kind: str) -> None:
    """Before anything was read, or with everything waiting for room."""
    for seconds in (0, 10):
        source = Source(1000)
        async with map_batches(source.open(kind), Work(), max_batch_size=10):
            await anyio.sleep(seconds)
        assert source.closed or not source.read


async def test_leaving_while_the_source_is_waited_for_cancels_it() -> None:
    """The generator's own clean-up runs."""
    source = Source(10, seconds=3600)
    with anyio.move_on_after(1):
        async with map_batches(source.asynchronous(), Work()) as outcomes:
            async for _ in outcomes:
                pass
    assert source.closed
    assert source.read == 0


async def test_a_source_that_does_not_close_holds_nobody_for_long() -> None:
    """Five seconds, then it is left alone."""

    async def stubborn() -> Any:
        try:
            while True:
                yield 1
        finally:
            await anyio.sleep(3600)

    began = anyio.current_time()
    async with map_batches(stubborn(), Work(), max_batch_size=2) as outcomes:
        async for _ in outcomes:
            break
    assert anyio.current_time() - began == pytest.approx(5)


async def test_only_generators_are_closed() -> None:
    """An open file, or an iterator that goes on elsewhere, belongs to whoever made it."""

    class Numbers:
        closed = False

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            self.closed = True

    class AsyncNumbers(Numbers):
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> int:
            return 1

    for numbers in (Numbers(), AsyncNumbers()):
        async with map_batches(numbers, Work()) as outcomes:
            async for _ in outcomes:
                break
        assert not numbers.closed


@pytest.mark.real_time
async def test_leaving_waits_for_a_plain_handlers_thread() -> None:
    """No thread of it runs on unseen."""
    running = threading.Event()
    ended: list[int] = []

    def handler(items: list[int]) -> list[int]:
        running.set()
        threading.Event().wait(0.1)
        ended.append(1)
        return items

    async with map_batches(range(100), handler, max_batch_size=1, max_concurrency=2):
        while not running.is_set():  # noqa: ASYNC110 - a thread sets it
            await anyio.sleep(0.001)
    assert ended


async def test_an_iteration_that_was_broken_off_can_be_taken_up_again() -> None:
    """Within the same ``async with``: nothing is lost in between."""
    async with map_batches(range(20), Work(), max_batch_size=3) as outcomes:
        first = []
        async for outcome in outcomes:
            first.append(outcome.index)
            if outcome.index == 7:
                break
        rest = [outcome.index async for outcome in outcomes]
    assert first + rest == list(range(20))


async def test_what_is_no_exception_ends_the_stream_as_it_is() -> None:
    """From the handler: not in a group, and the consumer does not wait for ever."""

    class Stop(BaseException):
        pass

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(1)
        raise Stop

    with pytest.raises(Stop):
        await collect(map_batches(range(10), handler))


async def test_two_handlers_that_end_the_stream_together_end_it_in_a_group() -> None:
    """Neither is dropped."""

    class Stop(BaseException):
        pass

    async def handler(items: list[int]) -> list[int]:
        try:
            await anyio.sleep(items[0] * 10 + 1)
        finally:
            raise Stop(items)

    with pytest.raises(BaseExceptionGroup) as caught:
        await collect(map_batches(range(2), handler, max_batch_size=1))
    assert caught.group_contains(Stop)


@by_hand
async def test_a_cancellation_of_the_sources_own_making_is_its_error() -> None:
    """It must not look as if somebody had cancelled the consumer."""

    async def source() -> Any:
        yield 1
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="the source raised CancelledError of its own"):
        await collect(map_batches(source(), Work()))


async def test_stop_on_error_finishes_what_was_read_and_raises() -> None:
    """Nothing more is read; every item that was read has its outcome; the group holds the errors."""
    source, handler = Source(1000), Work(seconds=1, fails={15, 17})
    taken: list[Any] = []
    with pytest.raises(BatchFailed, match="2 of 10 items of a batch failed") as caught:
        async with map_batches(
            source.plain(), handler, max_batch_size=10, max_concurrency=2, stop_on_error=True
        ) as outcomes:
            async for outcome in outcomes:
                taken.append(outcome)
    assert [outcome.index for outcome in taken] == list(range(source.read))
    assert 20 <= source.read <= 40
    assert [type(error) for error in caught.value.exceptions] == [ItemError] * 2
    assert [o.index for o in caught.value.report if not o.ok] == [15, 17]


async def test_stop_on_error_is_about_failures_not_about_skipped_items() -> None:
    """A duplicate does not end an import."""

    async def handler(items: list[int]) -> list[Any]:
        return [Skipped("old") for _ in items]

    outcomes = await collect(map_batches(range(30), handler, max_batch_size=10, stop_on_error=True))
    assert len(outcomes) == 30


async def test_the_first_failed_batch_is_told_whatever_fails_later() -> None:
    """Two fail: the one that ended first."""

    async def handler(items: list[int]) -> list[int]:
        await anyio.sleep(10 - items[0])
        raise ValueError(items[0])

    with pytest.raises(BatchFailed) as caught:
        await collect(map_batches(range(2), handler, max_batch_size=1, stop_on_error=True))
    assert [error.args for error in caught.value.exceptions] == [(1,)]


# --- progress ---------------------------------------------------------------------------------------------------


async def test_progress_is_told_every_so_many_items_and_at_the_end() -> None:
    """10,500 items, every 1,000: ten calls and the final one; monotone, ending at exactly the total."""
    told: list[Progress] = []
    stream = map_batches(
        range(10_500), Work(seconds=1), max_batch_size=100, on_progress=told.append
    )
    await collect(stream)
    assert [progress.done for progress in told] == [*range(1000, 10_001, 1000), 10_500]
    assert told[-1] == stream.progress
    assert (told[-1].fraction, told[-1].eta) == (1.0, 0.0)
    assert all(p.done == p.succeeded + p.failed + p.skipped for p in told)


async def test_the_last_call_is_not_made_twice() -> None:
    """10,000 items, every 1,000: ten calls."""
    told: list[int] = []
    await collect(
        map_batches(
            range(10_000), Work(), max_batch_size=500, on_progress=lambda p: told.append(p.done)
        )
    )
    assert told == list(range(1000, 10_001, 1000))


async def test_rate_and_eta_follow_the_clock() -> None:
    """40 batches of 10 items, 1 second each, one at a time: 10 items a second."""
    seen: list[tuple[float, float | None]] = []
    async with map_batches(
        range(400),
        Work(seconds=1),
        max_batch_size=10,
        max_concurrency=1,
        progress_every=100,
        on_progress=lambda p: seen.append((p.rate, p.eta)),
    ) as outcomes:
        assert (outcomes.progress.rate, outcomes.progress.eta) == (0.0, None)
        async for _ in outcomes:
            pass
    assert seen == [(10, 30), (10, 20), (10, 10), (10, 0)]


async def test_the_total_may_be_given_or_unknown() -> None:
    """A length that turns out wrong is capped at all; unknown, there is no share and no end in sight."""
    stream = map_batches(iter(range(10)), Work(seconds=1), total=5)
    await collect(stream)
    assert (stream.progress.total, stream.progress.fraction, stream.progress.eta) == (5, 1.0, 0.0)
    stream = map_batches(iter(range(10)), Work(seconds=1))
    await collect(stream)
    assert (stream.progress.total, stream.progress.fraction, stream.progress.eta) == (
        None,
        None,
        None,
    )
    stream = map_batches([], Work())
    await collect(stream)
    assert stream.progress == Progress(total=0)
    assert stream.progress.fraction == 1.0


async def test_what_the_progress_callback_raises_ends_the_stream() -> None:
    """As it is, and at once: an error that only a bar shows would be swallowed."""
    source = Source(100_000)

    def fails(progress: Progress) -> None:
        raise LookupError("no terminal")

    with pytest.raises(LookupError, match="no terminal"):
        await collect(map_batches(source.plain(), Work(), max_batch_size=100, on_progress=fails))
    assert source.closed
    assert source.read < 2000

    with pytest.raises(LookupError, match="no terminal"):
        await collect(map_batches(range(10), Work(), on_progress=fails))


# --- misuse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": 3}, TypeError, "source must be an iterable or async iterable of items, got 3"),
        ({"handler": 3}, TypeError, "handler must be a function that takes a list of items, got 3"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size must be at least 1, got 0"),
        ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1, got 0"),
        ({"ordered": 1}, TypeError, "ordered must be True or False, got 1"),
        ({"total": -1}, ValueError, "total must be at least 0, got -1"),
        ({"on_progress": 3}, TypeError, "on_progress must be a function or None, got 3"),
        ({"progress_every": 0}, ValueError, "progress_every must be at least 1, got 0"),
        ({"stop_on_error": None}, TypeError, "stop_on_error must be True or False, got None"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """At once, not at the first item."""
    with pytest.raises(error, match=message):
        map_batches(**({"source": [], "handler": Work()} | arguments))


async def test_a_generator_handler_belongs_in_a_batcher() -> None:
    """Which hands out what it yields."""

    async def handler(items: list[int]) -> Any:
        for index, item in enumerate(items):
            yield index, item * 2

    with pytest.raises(TypeError, match=r"a generator handler is not allowed here, got .*handler"):
        map_batches([], handler)  # type: ignore[call-overload]
    async with Batcher(handler) as batcher:
        outcomes = await collect(map_batches(range(3), batcher))
    assert [outcome.value for outcome in outcomes] == [0, 2, 4]


async def test_a_stream_must_be_entered_and_only_once() -> None:
    """Each mistake is named."""
    stream = map_batches([1], Work())
    with pytest.raises(RuntimeError, match=r"enter the stream first: async with map_batches"):
        async for _ in stream:
            pass
    await collect(stream)
    with pytest.raises(RuntimeError, match="a stream can be entered once: call map_batches again"):
        await collect(stream)


def test_only_files_need_msgspec() -> None:
    """Who neither reads files nor keeps batches on disk does not pay for its import."""
    code = (
        "import sys, microbatch, microbatch.layers, microbatch.streaming; "
        "assert 'msgspec' not in sys.modules; "
        "import microbatch.files; assert 'msgspec' in sys.modules"
    )
    source = str(Path(microbatch.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": source}
    )


# --- laws -------------------------------------------------------------------------------------------------------


@given(
    count=st.integers(0, 60),
    size=st.integers(1, 12),
    concurrency=st.integers(1, 4),
    ordered=st.booleans(),
    pauses=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    bad=st.sets(st.integers(0, 60)),
)
def test_every_item_has_exactly_one_outcome(
    *, count: int, size: int, concurrency: int, ordered: bool, pauses: list[int], bad: set[int]
) -> None:
    """Whatever the sizes, the pauses of the handler and the failures."""
    sizes: list[int] = []

    async def handler(items: list[int]) -> list[Any]:
        sizes.append(len(items))
        await anyio.sleep(pauses[items[0] % len(pauses)])
        return [ValueError(i) if i in bad else i for i in items]

    async def main() -> list[Any]:
        stream = map_batches(
            iter(range(count)),
            handler,
            max_batch_size=size,
            max_concurrency=concurrency,
            ordered=ordered,
        )
        outcomes = await collect(stream)
        assert stream.progress.done == count
        return outcomes

    outcomes = run("asyncio", main)
    indices = [outcome.index for outcome in outcomes]
    assert (indices if ordered else sorted(indices)) == list(range(count))
    for outcome in outcomes:
        assert outcome.ok == (outcome.index not in bad)
        assert outcome.value == (None if outcome.index in bad else outcome.index)
    assert sum(sizes) == count
    assert sorted(sizes, reverse=True)[: count // size] == [size] * (count // size)


# --- a million --------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ordered", [True, False])
async def test_memory_stays_flat_over_a_million_items(ordered: bool) -> None:
    """What the process holds after 1,000,000 items of 200 bytes is what it held after 20,000."""

    async def handler(items: list[bytes]) -> list[int]:
        await anyio.lowlevel.checkpoint()
        return [len(item) for item in items]

    resident: list[int] = []
    count = 0
    source = (b"%200d" % n for n in range(1_000_000))
    async with map_batches(source, handler, ordered=ordered) as outcomes:
        async for outcome in outcomes:
            assert outcome.value == 200
            count += 1
            if count in {20_000, 1_000_000}:
                gc.collect()
                resident.append(psutil.Process().memory_info().rss)
    assert count == 1_000_000
    assert resident[1] - resident[0] < 10_000_000  # all of it would be 250 MB and more
