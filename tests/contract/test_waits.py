"""How long items waited, in `current_batch()` and `stats()`; and every withdrawal counted once, whoever noticed it."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import anyio
import pytest
from opentelemetry.trace import NoOpTracerProvider
from support import Gate, outcome, outcomes, turns
from telemetry_support import Sdk

from microbatch import Batcher, Telemetry, current_batch
from microbatch.layers import atomic

pytestmark = pytest.mark.anyio


PLAIN: dict[str, Any] = {}


LANES: dict[str, Any] = {"partition": lambda _: 0}


class Waits:
    """A handler that notes how long the oldest item of each batch had waited."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.waits: list[float] = []

    async def __call__(self, items: list[Any]) -> list[Any]:
        batch = current_batch()
        assert batch is not None
        self.waits.append(batch.oldest_wait)
        await anyio.sleep(self.seconds)
        return items


async def after(seconds: float, submit: Any, *items: Any) -> Any:
    await anyio.sleep(seconds)
    return await submit(*items)


# --- How long items waited --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [PLAIN, LANES])
async def test_a_batch_knows_how_long_its_oldest_item_waited_for_company(settings: Any) -> None:
    """Full after one second, or small after two: why, stands beside it as the reason."""
    handler = Waits()
    async with Batcher(
        handler, max_batch_size=3, max_wait=2.0, telemetry=False, **settings
    ) as batcher:
        assert batcher.stats().oldest_wait is None
        await outcomes(*[after(seconds, batcher.submit, 1) for seconds in (0.0, 0.5, 1.0, 5.0)])
        assert batcher.stats().oldest_wait == pytest.approx(2.0)
    assert handler.waits == [pytest.approx(1.0), pytest.approx(2.0)]


@pytest.mark.parametrize("settings", [PLAIN, LANES])
async def test_a_batch_knows_how_long_its_oldest_item_waited_for_a_slot(settings: Any) -> None:
    """Without telemetry and max_wait too: a slow handler shows as waiting, a free slot as none."""
    handler = Waits(seconds=4.0)
    async with Batcher(handler, telemetry=False, **settings) as batcher:
        await outcomes(
            batcher.submit(1),
            after(1.0, batcher.submit, 2),
            after(3.0, batcher.submit, 3),
            after(5.0, batcher.submit_many, [4, 5]),
            after(20.0, batcher.submit, 6),
        )
    assert handler.waits == [0.0, pytest.approx(3.0), pytest.approx(3.0), 0.0]


async def test_with_more_than_a_batch_waiting_it_errs_by_a_handler_call_at_most() -> None:
    """Items are not stamped: each cut tells since when the next ones can wait at the most."""
    handler = Waits(seconds=1.0)
    came: dict[int, float] = {}
    waited: list[float] = []

    async def noting(items: list[int]) -> list[int]:
        waited.append(anyio.current_time() - came[items[0]])
        return await handler(items)

    async with Batcher(noting, max_batch_size=2, telemetry=False) as batcher:

        async def submit(item: int) -> None:
            await anyio.sleep(item * 0.3)
            came[item] = anyio.current_time()
            await batcher.submit(item)

        await outcomes(*[submit(item) for item in range(40)])
    assert len(waited) > 15
    assert max(waited) > 5.0
    for true, told in zip(waited, handler.waits, strict=True):
        assert true - 0.001 <= told <= true + 1.001


async def test_stats_tell_the_longest_wait_of_the_last_sixteen_batches() -> None:
    """One odd batch is seen for a while, not for ever."""
    handler = Waits(seconds=3.0)
    async with Batcher(handler, telemetry=False) as batcher:
        await outcomes(batcher.submit(1), after(1.0, batcher.submit, 2))
        for _ in range(15):
            assert batcher.stats().oldest_wait == pytest.approx(2.0)
            await batcher.submit(3)
        assert batcher.stats().oldest_wait == pytest.approx(2.0)
        await batcher.submit(3)
        assert batcher.stats().oldest_wait == 0.0


async def test_among_priorities_the_oldest_is_not_the_first() -> None:
    """The urgent item came last and leads the batch."""
    gate, handler = Gate(), Waits()

    async def both(items: list[int]) -> list[int]:
        await handler(items)
        return await gate(items)

    async with Batcher(both, telemetry=False) as batcher:
        first = batcher.submit_nowait(1)
        await turns()
        calm = batcher.submit_nowait(2, priority=-1)
        await anyio.sleep(2.0)
        urgent = batcher.submit_nowait(3, priority=5)
        await anyio.sleep(1.0)
        gate.opened.set()
        assert [await pending for pending in (first, calm, urgent)] == [10, 20, 30]
    assert gate.batches == [[1], [3, 2]]
    assert handler.waits == [0.0, pytest.approx(3.0)]


async def test_a_layer_that_runs_a_batch_within_the_batch_keeps_the_wait() -> None:
    """What the handler knows of its batch is the same."""
    handler = Waits(seconds=4.0)
    async with Batcher(atomic(handler), telemetry=False) as batcher:
        await outcomes(batcher.submit(1), after(1.0, batcher.submit, 2))
    assert handler.waits == [0.0, pytest.approx(3.0)]


# --- Withdrawals ------------------------------------------------------------------------------------------------


def counted(sdk: Sdk) -> dict[str | None, int]:
    return sdk.counts("microbatch.items")


async def notice(batcher: Batcher[Any, Any], gate: Gate, way: str) -> None:
    """Let the batcher find out that some callers have gone."""
    if way == "a sweep":
        batcher.stats()
    elif way == "a flush":
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batcher.flush)
            await turns()
            gate.opened.set()
    elif way == "a priority":
        batcher.submit_nowait(99, priority=1).cancel()
    elif way == "closing at once":
        await batcher.aclose(0)
    gate.opened.set()


@pytest.mark.parametrize(
    "way", ["a cut", "a sweep", "a flush", "a priority", "closing at once", "a late notice"]
)
@pytest.mark.parametrize("settings", [PLAIN, LANES])
async def test_a_withdrawal_is_counted_once_whatever_notices_it(way: str, settings: Any) -> None:
    """In the flat buffer nobody is told of a cancellation: it shows when somebody looks."""
    sdk = Sdk()
    gate = Gate()
    async with Batcher(gate, telemetry=sdk.telemetry(), **settings) as batcher:
        running = batcher.submit_nowait(0)
        await turns()
        if way == "a late notice":  # asyncio calls back a turn later, when its item is out already
            batcher.submit_nowait(99, priority=1).cancel()
        waiting = [batcher.submit_nowait(item) for item in range(1, 11)]
        for pending in waiting[::2]:
            assert pending.cancel()
            assert not pending.cancel()
        await notice(batcher, gate, way)
        await outcomes(running, *waiting[1::2])
        await turns()
    others = {"closed": 6} if way == "closing at once" else {None: 6}
    extra = way in {"a priority", "a late notice"}
    assert counted(sdk) == {**others, "cancelled": 5 + extra}
    assert [item for batch in gate.batches for item in batch if item % 2] == []


@pytest.mark.parametrize("way", ["a cut", "a sweep", "closing at once"])
async def test_a_withdrawal_is_counted_once_though_its_notice_comes_late(way: str) -> None:
    """asyncio tells of a cancellation a turn later: by then its item may have been dropped already."""
    sdk = Sdk()
    gate = Gate()
    async with Batcher(gate, max_batch_size=3, telemetry=sdk.telemetry()) as batcher:
        running = batcher.submit_nowait(0)
        await turns()
        waiting = [batcher.submit_nowait(item) for item in range(1, 11)]
        urgent = batcher.submit_nowait(99, priority=-1)  # from now on there is an entry for each
        if way == "a cut":
            gate.opened.set()  # its turn comes before the notices
        assert all(pending.cancel() for pending in waiting[::2])
        if way == "a sweep":
            batcher.stats()
        elif way == "closing at once":
            await batcher.aclose(0)
        gate.opened.set()
        await outcomes(running, urgent, *waiting[1::2])
        await turns()
    ended = "closed" if way == "closing at once" else None
    assert counted(sdk) == {ended: 7, "cancelled": 5}


async def test_withdrawals_are_counted_once_while_the_lists_are_compacted() -> None:
    """Beyond a thousand items that have left, places are given back: nobody may count as gone twice."""
    sdk = Sdk()
    handler = Waits(seconds=1.0)
    async with Batcher(handler, max_batch_size=100, telemetry=sdk.telemetry()) as batcher:
        pendings = [batcher.submit_nowait(item) for item in range(5000)]
        gone = 0
        for second in range(20):
            await anyio.sleep(1.0)
            gone += sum(pending.cancel() for pending in pendings[4000 + second :: 20])
            if second % 5 == 0:
                batcher.stats()  # it sweeps
    assert gone == 1000
    assert counted(sdk) == {None: 4000, "cancelled": 1000}


@pytest.mark.parametrize("settings", [PLAIN, LANES])
async def test_a_cancelled_submit_many_counts_what_no_handler_saw(settings: Any) -> None:
    """What was buffered, and what still waited for room."""
    sdk = Sdk()
    gate = Gate()
    async with Batcher(
        gate, max_batch_size=10, max_pending=30, telemetry=sdk.telemetry(), **settings
    ) as batcher:
        with anyio.move_on_after(1):
            await batcher.submit_many(range(100))
        gate.opened.set()
    assert counted(sdk) == {None: 10, "cancelled": 90}


async def test_callers_of_a_blocked_thread_and_in_line_are_counted() -> None:
    """One in the buffer, one that waits for room."""
    sdk = Sdk()
    gate = Gate()
    async with Batcher(gate, max_pending=2, telemetry=sdk.telemetry()) as batcher:
        running = batcher.submit_nowait(0)
        await turns()
        with anyio.move_on_after(1):
            await outcomes(batcher.submit(1), batcher.submit(2), batcher.submit(3))
        gate.opened.set()
        await running
    assert counted(sdk) == {None: 1, "cancelled": 3}


@pytest.mark.parametrize("closed_at_once", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        LANES,
        {"max_wait": 2.0},
        {"coalesce": lambda item: item},
        {"max_pending": 40},
        {"max_pending": 40, "on_full": "reject", "weigh": lambda _: 1, "max_batch_weight": 99},
    ],
)
async def test_every_item_is_counted_exactly_once(settings: Any, closed_at_once: bool) -> None:
    """Whatever its end: handled, withdrawn, refused or closed; and handled ones are those that a handler saw."""
    sdk = Sdk()
    figures_only = Telemetry(
        tracer_provider=NoOpTracerProvider(), meter_provider=sdk.meter_provider
    )
    chance = random.Random(7)
    handler = Waits(seconds=1.0)
    seen = 0

    async def counting(items: list[int]) -> list[int]:
        nonlocal seen
        seen += len(items)
        return await handler(items)

    total = 0

    async def patient(submit: Any, count: int) -> None:
        nonlocal total
        total += count
        with anyio.move_on_after(chance.choice([0.0, 0.5, 3.0, 1000.0])):
            await outcome(submit())

    async with (
        Batcher(counting, max_batch_size=7, telemetry=figures_only, **settings) as batcher,
        anyio.create_task_group() as tasks,
    ):
        for number in range(120):
            if chance.random() < 0.1:
                many = range(number * 1000, number * 1000 + 20)
                tasks.start_soon(patient, partial(batcher.submit_many_report, many), 20)
            else:
                priority = chance.choice([0, 0, 0, 0, 0, 1])
                one = partial(batcher.submit, number, priority=priority)
                tasks.start_soon(patient, one, 1)
            if chance.random() < 0.3:
                await anyio.sleep(chance.random())
            if chance.random() < 0.05:
                batcher.stats()
        await turns()  # calls after the close are none of its items
        if closed_at_once:
            await batcher.aclose(0)
    counts = counted(sdk)
    assert sum(counts.values()) == total
    assert counts.get(None, 0) + counts.get("closed", 0) >= seen >= counts.get(None, 0)
    assert counts["cancelled"] > 10
