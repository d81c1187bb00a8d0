"""Functions of users that raise fail the one submit that they were asked for."""

from __future__ import annotations

from typing import Any

import pytest
from support import Recorder, counted, outcomes

from microbatch import Batcher, Retry

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.mark.parametrize("setting", ["weigh", "partition", "coalesce"])
async def test_a_user_callback_that_raises_fails_that_one_submit(setting: str) -> None:
    """The item is not accepted; nothing else changes."""

    def callback(item: int) -> int:
        if item == 1:
            raise LookupError(setting)
        return item if setting == "coalesce" else 1

    handler = Recorder()
    settings: dict[str, Any] = {setting: callback}
    if setting == "weigh":
        settings["max_batch_weight"] = 100
    async with Batcher(handler, **settings) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert [results[0], results[2]] == [0, 20]
        assert type(results[1]) is LookupError
        with pytest.raises(LookupError, match=setting):
            batcher.submit_nowait(1)
        report = await batcher.submit_many_report([0, 1, 2])
        assert [outcome.ok for outcome in report] == [True, False, True]
        stats = counted(batcher)
        assert (stats.pending, stats.items, stats.failed) == (0, 4, 0)
    assert 1 not in handler.seen


@pytest.mark.parametrize("setting", ["partition", "coalesce"])
async def test_an_unhashable_key_fails_that_one_submit(setting: str) -> None:
    """A key must be hashable; a TypeError says so before anything is accepted."""
    handler = Recorder()
    settings: Any = {setting: lambda item: [item] if item == 1 else item}
    async with Batcher(handler, **settings) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert [results[0], type(results[1]), results[2]] == [0, TypeError, 20]
        assert counted(batcher).pending == 0


@pytest.mark.parametrize("weight", [-1, float("nan"), "3", None], ids=str)
async def test_a_weight_that_is_no_weight_fails_that_one_submit(weight: Any) -> None:
    """NaN would make every later comparison false: the batch would never be full."""
    handler = Recorder()
    settings: Any = {"weigh": lambda item: weight if item == 1 else 1, "max_batch_weight": 10}
    async with Batcher(handler, **settings) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert [results[0], results[2]] == [0, 20]
        assert type(results[1]) in (TypeError, ValueError)
        assert repr(weight) in str(results[1])
        assert counted(batcher).pending == 0


async def test_a_retry_predicate_that_raises_hangs_nobody() -> None:
    """The callers are waiting while the predicate runs: they must end, with the item's error or the predicate's."""

    def on(error: Exception) -> bool:
        raise LookupError("predicate")

    handler = Recorder(fails={1})
    async with Batcher(handler, retry=Retry(on=on)) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert [results[0], results[2]] == [0, 20]
        assert type(results[1]) in (ValueError, LookupError)
        assert await batcher.submit(5) == 50
        assert counted(batcher).pending == 0
