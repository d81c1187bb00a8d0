"""Weights add up exactly, whatever comes and goes, and no user's weight breaks the buffer."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import anyio
import numpy as np
import pytest
from support import Gate, Recorder, counted, outcome, turns

from microbatch import Backoff, Batcher, BatcherFull, ItemTooHeavy, Retry

pytestmark = [pytest.mark.timeout(180)]


on_every_loop = pytest.mark.anyio


RETRY = Retry(on=ConnectionError, attempts=3, backoff=Backoff(initial=1.0, jitter=0))


def itself(item: Any) -> Any:
    return item


@on_every_loop
async def test_an_idle_batcher_takes_an_item_of_exactly_the_room() -> None:
    """A residue of 1e-16 after retries kept it waiting for ever."""

    async def handler(items: list[float]) -> list[Any]:
        return [ConnectionError() if item < 1 else item for item in items]

    async with Batcher(handler, weigh=itself, max_pending_weight=1.2, retry=RETRY) as batcher:
        for _ in range(6):
            ends = [batcher.submit_nowait(item) for item in (0.1, 0.2, 0.3)]
            assert [type(await outcome(end)) for end in ends] == [ConnectionError] * 3
        with anyio.fail_after(1):
            assert await batcher.submit(1.2) == 1.2


@on_every_loop
async def test_the_room_beside_what_is_pending_is_exact_too() -> None:
    """0.1 and 0.2 are 0.3, also with 0.1 in flight all the time, and more is too much."""
    gate, handler = Gate(), Recorder()

    async def both(items: list[float]) -> Any:
        return await (gate if 0.1 in items else handler)(items)

    async with Batcher(
        both, max_batch_size=1, max_concurrency=2, weigh=itself, max_pending_weight=0.3
    ) as batcher:
        held = batcher.submit_nowait(0.1)
        await turns()
        for item in (0.2, 0.15, 0.05, 0.2):
            with anyio.fail_after(1):
                await batcher.submit(item)
        last = batcher.submit_nowait(0.2)
        with pytest.raises(BatcherFull, match="max_pending_weight=0"):
            batcher.submit_nowait(1e-12)
        gate.opened.set()
        assert (await held, await last) == (1.0, 2.0)


@on_every_loop
@pytest.mark.parametrize("weight", [0.1, Fraction(1, 10), np.float64(0.1)])
async def test_ten_tenths_make_one_batch(weight: Any) -> None:
    """As they are written, though the float is a little more than a tenth."""
    handler = Recorder()
    async with Batcher(
        handler, weigh=lambda _: weight, max_batch_weight=1.0, max_wait=9
    ) as batcher:
        await batcher.submit_many(range(20))
    assert (handler.sizes, handler.reasons) == ([10, 10], ["weight", "weight"])


@on_every_loop
@pytest.mark.parametrize(("weight", "kept"), [(1, 5), (2, 2), (2.5, 2), (5, 1), (6, 0), (10, 0)])
async def test_back_off_holds_at_most_half_the_weight(weight: float, kept: int) -> None:
    """A backend that is down must not fill the room with few heavy items either; the others fail now."""

    async def down(items: list[Any]) -> None:
        raise ConnectionError

    async with Batcher(
        down, weigh=lambda _: weight, max_pending_weight=10, max_pending=100, retry=RETRY
    ) as batcher:
        ends = [batcher.submit_nowait(item) for item in range(int(10 // weight))]
        await turns()
        assert counted(batcher).in_backoff == kept
        assert [end.done() for end in ends].count(False) == kept
        for end in ends:
            assert isinstance(await outcome(end), ConnectionError)


@on_every_loop
@pytest.mark.parametrize("heavy", [10**400, 1e308, Fraction(21, 2), 10.000001])
@pytest.mark.parametrize("limit", ["max_batch_weight", "max_pending_weight"])
async def test_a_weight_beyond_all_bounds_is_refused_alone(limit: str, heavy: Any) -> None:
    """It was added to a float half-way into the buffer."""
    handler = Recorder()
    settings: dict[str, Any] = {limit: 10}
    async with Batcher(handler, weigh=lambda item: item or heavy, **settings) as batcher:
        pendings = [batcher.submit_nowait(item) for item in (1, 2)]
        with pytest.raises(ItemTooHeavy, match=f"over {limit}=10"):
            await batcher.submit(0)
        report = await batcher.submit_many_report([3, 0, 4])
        assert [one.ok for one in report] == [True, False, True]
        assert [await pending for pending in pendings] == [10, 20]
        assert counted(batcher).pending == 0


@on_every_loop
async def test_the_error_names_the_limit_that_was_reached() -> None:
    """Who raises max_pending because of it, where the weight was the reason, is none the wiser."""
    handler = Gate()
    async with (
        Batcher(handler, max_pending=5, weigh=itself, max_pending_weight=10, name="b") as batcher,
        anyio.create_task_group() as tasks,
    ):
        batcher.submit_nowait(6)
        tasks.start_soon(batcher.submit, 5)
        await turns()
        assert counted(batcher).waiting == 1
        for item in (1, 5):  # the first would fit, but who came before it waits
            with pytest.raises(BatcherFull, match="max_pending_weight=10"):
                batcher.submit_nowait(item)
        handler.opened.set()
    batcher = Batcher(handler, max_pending=2, weigh=itself, max_pending_weight=10, name="b")
    async with batcher:
        pendings = [batcher.submit_nowait(1) for _ in range(2)]
        with pytest.raises(BatcherFull, match="max_pending=2"):
            batcher.submit_nowait(1)
        assert [await pending for pending in pendings] == [10, 10]
