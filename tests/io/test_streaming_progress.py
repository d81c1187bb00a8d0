"""``map_batches(on_progress=...)``: how far, how fast, how long still."""

from __future__ import annotations

import pytest
from streaming_support import Source, Work, collect

from microbatch.streaming import Progress, map_batches

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


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
