"""``map_batches``: every item has its outcome, in order, whatever its source and its handler are."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
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
import pytest
from streaming_support import Source, Work, collect
from support import BACKENDS

import microbatch
from microbatch import Batcher, BatcherClosed, ItemError, Outcome, Retry, Skipped
from microbatch.layers import bisecting, per_item, validated
from microbatch.streaming import map_batches

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


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


# trio's cannot be made by hand; test_per_item takes one out of its scope.
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
