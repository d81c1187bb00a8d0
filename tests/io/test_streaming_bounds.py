"""``map_batches``: how much is held, read and run at once; a law for drawn streams, and a million items."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import anyio.lowlevel
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streaming_support import Source, Work, collect
from support import run

from microbatch.streaming import map_batches

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


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
