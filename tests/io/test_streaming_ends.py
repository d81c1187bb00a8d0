"""``map_batches``: the end and early ends; gone without a trace whenever it is left."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from streaming_support import Source, Work, collect
from support import BACKENDS, tasks_alive, turns

from microbatch import BatchFailed, ItemError, Skipped
from microbatch.streaming import map_batches

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


# trio's cannot be made by hand; test_per_item takes one out of its scope.
by_hand = pytest.mark.parametrize(
    "backend_name", [name for name in BACKENDS if name != "trio"], indirect=True
)


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
