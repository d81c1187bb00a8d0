"""``map_batches(max_wait=...)``: a slow source's items leave in time; and what is no source at all."""

from __future__ import annotations

import functools
import operator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Recorder, turns

from microbatch import Batcher, current_batch
from microbatch.files import write_rows
from microbatch.streaming import map_batches

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


class Log:
    """A handler that notes what came, why, and when."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.reasons: list[str] = []
        self.times: list[float] = []
        self.began = anyio.current_time()

    async def __call__(self, items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        self.batches.append(list(items))
        self.reasons.append(batch.reason)
        self.times.append(round(anyio.current_time() - self.began, 6))
        await anyio.sleep(self.seconds)
        return items


class Pulse:
    """Numbers, each after a pause; it notes how many it gave and whether it was closed."""

    def __init__(self, *pauses: float, ends: bool = True) -> None:
        self.pauses = pauses
        self.ends = ends
        self.given = 0
        self.closed = False

    async def numbers(self) -> Any:
        try:
            for number, pause in enumerate(self.pauses):
                if pause:
                    await anyio.sleep(pause)
                self.given += 1
                yield number
            if not self.ends:
                await anyio.sleep_forever()
        finally:
            self.closed = True


async def values(stream: Any) -> list[Any]:
    async with stream as outcomes:
        return [outcome.value async for outcome in outcomes]


async def test_a_slow_sources_items_leave_after_max_wait() -> None:
    """Counted from the first item of each batch; else the first would wait for the thousandth."""
    handler = Log()
    source = Pulse(1, 0.3, 0.3, 10, 0, 0, 5)
    assert await values(map_batches(source.numbers(), handler, max_wait=0.5)) == list(range(7))
    assert handler.batches == [[0, 1], [2], [3, 4, 5], [6]]
    assert handler.times == [1.5, 2.1, 12.1, 16.6]
    assert handler.reasons == ["wait", "wait", "wait", "close"]


async def test_without_max_wait_a_batch_fills_up() -> None:
    """As ever: who reads a file wants full batches, however slow the disk."""
    handler = Log()
    source = Pulse(*[1] * 5)
    await values(map_batches(source.numbers(), handler, max_batch_size=4))
    assert handler.batches == [[0, 1, 2, 3], [4]]
    assert handler.times == [4, 5]


async def test_a_full_batch_waits_for_nobody() -> None:
    """The size counts first."""
    handler = Log()
    source = Pulse(*[0] * 5)
    await values(map_batches(source.numbers(), handler, max_batch_size=2, max_wait=3600))
    assert handler.batches == [[0, 1], [2, 3], [4]]
    assert handler.reasons == ["size", "size", "close"]
    assert handler.times == [0, 0, 0]


async def test_max_wait_0_takes_what_is_there() -> None:
    """Items that come without a pause travel together."""
    handler = Log()
    source = Pulse(1, 0, 0, 1, 0)
    await values(map_batches(source.numbers(), handler, max_wait=0))
    assert handler.batches == [[0, 1, 2], [3, 4]]
    assert handler.times == [1, 2]


async def test_outcomes_come_while_the_source_is_still_waited_for() -> None:
    """A consumer of a quiet source has what there is."""
    source = Pulse(1, 1, ends=False)
    stream = map_batches(source.numbers(), Log(), max_wait=0.1)
    found: list[Any] = []
    with anyio.move_on_after(60):
        async with stream as outcomes:
            began = anyio.current_time()
            async for outcome in outcomes:
                found.append((outcome.value, anyio.current_time() - began))
    assert [value for value, _ in found] == [0, 1]
    assert [seconds for _, seconds in found] == pytest.approx([1.1, 2.1])
    assert source.closed


async def test_a_batchers_own_max_wait_is_kept_once() -> None:
    """What has waited in the stream does not wait in the batcher again."""
    handler = Log()
    source = Pulse(1, 0.01, 10)
    async with Batcher(handler, max_wait=0.05) as batcher:
        assert await values(map_batches(source.numbers(), batcher)) == [0, 1, 2]
    assert handler.batches == [[0, 1], [2]]
    assert handler.times[0] == pytest.approx(1.05)


async def test_a_batcher_that_waits_for_nobody_leaves_the_stream_as_it_is() -> None:
    """Its batches fill while others run; a ``max_wait`` is to be said."""
    handler = Log()
    async with Batcher(handler) as batcher:
        await values(map_batches(Pulse(1, 1).numbers(), batcher))
        await values(map_batches(Pulse(1, 1).numbers(), batcher, max_wait=0.25))
    assert handler.batches == [[0, 1], [0], [1]]
    assert handler.times == pytest.approx([2, 3.25, 4])


async def test_others_items_keep_no_outcomes_back() -> None:
    """The stream asks the batcher to send what is there, and waits for its own items alone."""
    gate = anyio.Event()

    async def handler(items: list[int]) -> list[int]:
        if -1 in items:
            await gate.wait()
        return items

    async with Batcher(
        handler, max_wait=3600, max_concurrency=2, partition=lambda item: item < 0
    ) as batcher:
        other = batcher.submit_nowait(-1)
        source = Pulse(1, ends=False)
        async with map_batches(source.numbers(), batcher, max_wait=1) as outcomes:
            async for outcome in outcomes:
                assert outcome.value == 0
                assert not other.done()
                break
        gate.set()
        assert await other == -1


async def test_a_closed_batcher_fails_the_items_of_a_slow_source_too() -> None:
    """With its error and no group around it."""
    batcher = Batcher(Log(), max_wait=0.05)
    async with batcher:
        await batcher.submit(1)
    async with map_batches(Pulse(1, ends=False).numbers(), batcher) as outcomes:
        async for outcome in outcomes:
            assert type(outcome.error).__name__ == "BatcherClosed"
            break


async def test_no_more_than_one_item_is_read_beyond_the_bound() -> None:
    """The one that the source was asked for when the batch left. It begins the next batch."""
    source = Pulse(*[0.01] * 1000)
    handler = Log(seconds=3600)
    stream = map_batches(
        source.numbers(), handler, max_batch_size=10, max_wait=0.055, max_concurrency=2
    )
    async with stream as outcomes:
        await anyio.sleep(1800)
        assert source.given <= 3 * 10 + 1
        held = source.given
        async for _ in outcomes:
            break
        await anyio.sleep(1800)
        assert source.given == held
    assert source.closed
    assert functools.reduce(operator.iadd, handler.batches, []) == list(
        range(len(functools.reduce(operator.iadd, handler.batches, [])))
    )


async def test_an_item_that_waited_for_room_waits_for_company_all_the_same() -> None:
    """Else each batch of a fast source would be followed by one of a single item."""
    handler = Log(seconds=60)
    source = Pulse(*[0.1] * 20)
    stream = map_batches(source.numbers(), handler, max_batch_size=5, max_wait=1, max_concurrency=1)
    assert await values(stream) == list(range(20))
    assert [len(batch) for batch in handler.batches] == [5, 5, 5, 5]


@pytest.mark.parametrize("how", ["break", "error", "cancel"])
async def test_leaving_early_closes_a_source_that_is_waited_for(how: str) -> None:
    """Within the task that iterates it: it may have a task group of its own open."""
    closed = []

    async def numbers() -> Any:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            try:
                yield 1
                await anyio.sleep_forever()
            finally:
                closed.append(True)
                tasks.cancel_scope.cancel()

    with anyio.CancelScope() as scope:
        try:
            async with map_batches(numbers(), Log(), max_wait=0.1) as outcomes:
                async for _ in outcomes:
                    if how == "break":
                        break
                    if how == "error":
                        raise LookupError
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        except LookupError:
            assert how == "error"
    assert closed == [True]


async def test_a_slow_sources_error_comes_after_what_it_gave() -> None:
    """As without a ``max_wait``."""

    async def numbers() -> Any:
        yield 1
        await anyio.sleep(5)
        yield 2
        raise LookupError("no more")

    found: list[Any] = []
    with pytest.raises(LookupError, match="no more"):
        async with map_batches(numbers(), Log(), max_wait=1) as outcomes:
            async for outcome in outcomes:
                found.append(outcome.value)
    assert found == [1, 2]


async def test_a_source_that_is_left_before_it_began_is_closed_too() -> None:
    """And nothing hangs."""
    source = Pulse(1)
    async with map_batches(source.numbers(), Log(), max_wait=1):
        pass
    async with map_batches(source.numbers(), Log(), max_wait=1):
        await turns()
    assert source.closed


async def test_a_plain_source_is_looked_at_after_each_item(monkeypatch: Any) -> None:
    """It stops the event loop while it waits, so nothing can leave earlier."""
    now = 0.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)

    def numbers() -> Any:
        nonlocal now
        for number in range(5):
            now += 0.4
            yield number

    handler = Recorder()
    async with map_batches(numbers(), handler, max_wait=1, max_concurrency=1) as outcomes:
        found = [outcome.value async for outcome in outcomes]
    assert found == [0, 10, 20, 30, 40]
    assert handler.batches == [[0, 1, 2, 3], [4]]
    assert handler.reasons == ["wait", "close"]


async def test_all_of_a_plain_source_is_at_hand() -> None:
    """So with 0 its batches are full."""
    handler = Log()
    assert await values(map_batches(range(5), handler, max_batch_size=3, max_wait=0)) == [*range(5)]
    assert handler.batches == [[0, 1, 2], [3, 4]]


async def test_a_batchers_max_wait_costs_a_plain_source_nothing(monkeypatch: Any) -> None:
    """A look at the clock after each item costs more than the stream does; who wants it says so."""
    looks: list[int] = []
    now = anyio.current_time
    monkeypatch.setattr(anyio, "current_time", lambda: looks.append(1) or now())
    async with Batcher(Log(), max_wait=1) as batcher:
        await values(map_batches(range(1000), batcher))
    assert len(looks) < 100


@pytest.mark.parametrize(
    ("max_wait", "error", "message"),
    [
        (-1, ValueError, "max_wait must be at least 0, got -1"),
        ("1", TypeError, "max_wait must be a number, got '1'"),
    ],
)
async def test_a_bad_max_wait_is_refused(
    max_wait: Any, error: type[Exception], message: str
) -> None:
    """By its name."""
    with pytest.raises(error, match=message):
        map_batches([], Log(), max_wait=max_wait)


# --- what is no source ------------------------------------------------------------------------------------------


class Table:
    """Stands for a DataFrame: its length is its rows, and iterating gives the columns' names."""

    columns = ("a", "b")
    shape = (3, 2)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter(self.columns)


class Interchange:
    """Stands for any table that offers the interchange protocol."""

    def __dataframe__(self) -> Any: ...

    def __iter__(self) -> Any:
        return iter(["a"])


@pytest.mark.parametrize(
    ("source", "got"),
    [
        ("rows.csv", "a str, which gives its characters"),
        (b"rows", "a bytes, which gives its bytes"),
        (bytearray(b"rows"), "a bytearray, which gives its bytes"),
        (memoryview(b"rows"), "a memoryview, which gives its bytes"),
        ({"a": 1}, "a dict, which gives its keys"),
        (Table(), "a Table, which gives its columns"),
        (Interchange(), "a Interchange, which gives its columns"),
        (7, "7"),
    ],
)
async def test_what_gives_something_else_than_one_would_think_is_no_source(
    source: Any, got: str, tmp_path: Any
) -> None:
    """Letters, keys and columns are not items; in a list each of them is one."""
    with pytest.raises(TypeError, match=f"source must be an iterable or async .* items, got {got}"):
        map_batches(source, Log())
    with pytest.raises(TypeError, match=f"rows must be an iterable or async .* items, got {got}"):
        await write_rows(tmp_path / "rows.ndjson", source)
    assert list(tmp_path.iterdir()) == []
    assert len(await values(map_batches([source], Log()))) == 1
