"""Many callers who share one coalesced item: how they leave, and whose it is then."""

from __future__ import annotations

import contextvars
import sys
import time
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import SpanProcessor
from support import Gate, counted, outcome, turns
from telemetry_support import Sdk

from microbatch import Batcher, current_batch

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")

MANY = 16_000
#: Seconds of this process's own work. It takes a tenth of them; a search through a list for each took ten times as
#: long as these.
SECONDS = 1.5


def one_key(_: Any) -> str:
    return "key"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("flying", [False, True])
async def test_sharers_who_leave_one_by_one_cost_as_much_as_they_are(
    flying: bool, order: int
) -> None:
    """A page that everybody waits for, and a proxy that gives up on all of them."""
    handler = Gate()
    batcher: Batcher[Any, Any] = Batcher(handler, coalesce=one_key, max_wait=0 if flying else 1.0)
    pendings = [batcher.submit_nowait(0) for _ in range(MANY)]
    if flying:
        await turns()
    begun = time.process_time()
    for pending in pendings[::order]:
        assert pending.cancel()
    assert time.process_time() - begun < SECONDS
    assert counted(batcher).pending == flying
    handler.opened.set()
    await batcher.aclose()
    assert handler.batches == ([[0]] if flying else [])


@pytest.mark.parametrize("bulks", [1, 1_000])
async def test_bulks_that_share_one_item_leave_as_fast(bulks: int) -> None:
    """Each of a bulk's members is found at once, in one bulk of many or in many bulks of one: counted in calls."""
    scopes = [anyio.CancelScope() for _ in range(bulks)]
    handler = Gate()
    batcher: Batcher[Any, Any] = Batcher(handler, coalesce=one_key, max_wait=1000.0)
    calls = 0

    async def call(scope: anyio.CancelScope) -> None:
        with scope:
            await batcher.submit_many([0] * (1_000 // bulks))

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    async with anyio.create_task_group() as tasks:
        for scope in scopes:
            tasks.start_soon(call, scope)
        await turns()
        assert counted(batcher).buffered == 1
        profiled = sys.getprofile()
        sys.setprofile(count)
        for scope in scopes:
            scope.cancel()
        sys.setprofile(profiled)
    assert 1_000 < calls < 200 * 1_000
    assert counted(batcher).pending == 0
    await batcher.aclose()
    assert handler.batches == []


async def test_a_shared_item_has_the_context_of_one_who_still_waits() -> None:
    """When the first tenant has gone, the handler works for the second: under the second's name."""
    seen: list[str] = []

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        assert batch.contexts is not None
        seen.extend(context[tenant] for context in batch.contexts if context is not None)
        return items

    async with Batcher(handler, coalesce=one_key, capture_context=True, max_wait=1.0) as batcher:
        pendings = []
        for name in ("a", "b", "c"):
            tenant.set(name)
            pendings.append(batcher.submit_nowait(5))
        pendings[2].cancel()
        pendings[0].cancel()
        assert await pendings[1] == 5
    assert seen == ["b"]


@pytest.mark.parametrize("fails", [(), {0}])
async def test_one_sharers_end_may_make_another_leave(fails: Any) -> None:
    """A span processor that cancels, while results are given out: the others still get theirs."""
    sdk, handler = Sdk(), Gate(fails=fails)
    batcher: Batcher[Any, Any] = Batcher(
        handler, coalesce=one_key, telemetry=sdk.telemetry(trace_items=True)
    )
    pendings = [batcher.submit_nowait(0) for _ in range(4)]

    class Cancels(SpanProcessor):
        def on_end(self, span: Any) -> None:
            pendings[1].cancel()

    sdk.tracer_provider.add_span_processor(Cancels())
    handler.opened.set()
    ends = [await outcome(pendings[i]) for i in (0, 2, 3)]
    assert [repr(end) for end in ends] == [repr(ValueError(0) if fails else 0)] * 3
    await batcher.aclose()
    assert counted(batcher).pending == 0
