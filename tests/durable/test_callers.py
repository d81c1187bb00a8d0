"""Who waits for which item's end: each is told once, and who has gone is in nobody's way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from microbatch.durable._file.codec import Codec
from microbatch.durable._flow.callers import Callers

pytestmark = pytest.mark.anyio

#: The ways in which items end, for those who wait for item 1.
ENDINGS = {
    "succeed": lambda callers: callers.succeed(1, "tea"),
    "succeed_all": lambda callers: callers.succeed_all([1], ["tea"]),
    "fail": lambda callers: callers.fail(1, LookupError),
}


async def waiting(count):
    """Callers of item 1, and the futures that so many of them wait with."""
    callers = Callers(Codec(Any, "result_type"), "default", lambda numbers: None)
    waiters = [asyncio.get_running_loop().create_future() for _ in range(count)]
    for waiter in waiters:
        callers.add(1, waiter)
    return callers, waiters


@pytest.mark.parametrize("ending", ENDINGS)
async def test_who_was_cancelled_just_now_keeps_nobody_from_being_told(ending):
    """Its task has not run since, so its future is there still."""
    callers, (gone, other) = await waiting(2)
    gone.cancel()
    ENDINGS[ending](callers)
    if ending == "fail":
        with pytest.raises(LookupError):
            await other
    else:
        assert await other == "tea"
    assert gone.cancelled()
    assert not callers


async def test_one_of_two_who_leaves_does_not_take_the_other_along():
    """Two callers with one key wait for one item."""
    callers, (first, second) = await waiting(2)
    callers.leave(1, first)
    assert callers.items() == [1]
    callers.succeed(1, "tea")
    assert first.cancelled()
    assert await second == "tea"
