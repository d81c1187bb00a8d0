"""What a batcher still holds when its event loop has ended without a close, at a time of the test's choice."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import Recorder, counted, run, turns

from microbatch import Backoff, Batcher, Retry
from microbatch._core.batcher import engine_of

pytestmark = pytest.mark.timeout(180)

STAYING: dict[str, dict[str, Any]] = {
    "buffered": {"max_wait": 50.0, "partition": lambda item: item},
    "with a priority": {"max_wait": 50.0},
    "shared": {"max_wait": 50.0, "coalesce": lambda item: "one"},
    "in back-off": {
        "retry": Retry(on=ValueError, attempts=5, backoff=Backoff(initial=50.0, jitter=0))
    },
}


@pytest.mark.asyncio_logs
@pytest.mark.parametrize("where", STAYING)
@pytest.mark.parametrize("used_again", [False, True])
def test_what_stayed_behind_in_an_ended_loop_may_be_cancelled(
    where: str, used_again: bool, backend_name: str
) -> None:
    """It is nobody's then: no count goes below zero, and no task is started in a loop that is gone."""
    handler = Recorder(fails={1, 2})
    batcher: Batcher[int, int] = Batcher(handler, name="stays", **STAYING[where])
    left: list[Any] = []

    async def leave() -> None:
        priority = int(where == "with a priority")
        left.extend(batcher.submit_nowait(item, priority=priority) for item in (1, 2))
        await turns()
        while where == "in back-off" and counted(batcher).in_backoff < 2:
            await turns(1)
        assert counted(batcher).pending == len(left) - (where == "shared")
        clock.append(anyio.current_time() + 100)

    async def go_on() -> None:
        handler.fails = ()
        pending = batcher.submit_nowait(3)
        assert counted(batcher).pending == 1
        assert [one.cancel() for one in left] == [True, True]
        assert counted(batcher).pending == 1
        await batcher.flush()
        assert await pending == 30
        assert counted(batcher).pending == 0
        await batcher.aclose()

    clock: list[float] = []
    run(backend_name, leave, real_time=True)
    if used_again:
        run(backend_name, go_on)
    else:
        engine_of(batcher).room.now = lambda: clock[0]  # whatever waited for its time is due by now
        batches = len(handler.batches)
        assert [one.cancel() for one in left] == [True, True]
        assert counted(batcher).pending == 0
        assert len(handler.batches) == batches
