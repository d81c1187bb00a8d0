"""When a batch is due after some of its callers have gone: by what is left, not by what was."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import Gate, counted, turns

from microbatch import Batcher

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

#: The plain buffer; the one with an entry for each item, from the start or from a first priority on.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lanes": {"partition": lambda _: "p"},
    "weights": {"weigh": lambda _: 1, "max_batch_weight": 3},
    "turned": {},
}


class Timed(Gate):
    async def __call__(self, items: list[Any]) -> list[Any]:
        self.started.append(anyio.current_time())
        return await super().__call__(items)


async def a_backlog(handler: Timed, kind: str, **settings: Any) -> tuple[Batcher[Any, Any], Any]:
    """Return a batcher whose only slot is busy, and three buffered items: a batch of the same size."""
    batcher: Batcher[Any, Any] = Batcher(
        handler, **{"max_batch_size": 3, "max_wait": 0.5, **KINDS[kind], **settings}
    )
    for item in (-1, -2, -3):
        batcher.submit_nowait(item)
    await turns()
    pendings = [batcher.submit_nowait(item) for item in (1, 2)]
    pendings.append(batcher.submit_nowait(3, priority=int(kind == "turned")))
    return batcher, pendings


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_that_is_no_longer_full_waits(
    kind: str, gone: int, seen: bool, late: bool
) -> None:
    """It left at once, as one that had waited max_wait; with one more in time it is full again."""
    handler = Timed()
    batcher, pendings = await a_backlog(handler, kind)
    begun = anyio.current_time()
    pendings.pop(gone).cancel()
    if seen:
        await turns()
        assert counted(batcher).buffered == 2
    handler.opened.set()
    await anyio.sleep(0.2)
    assert counted(batcher).buffered == 2
    if late:
        pendings.append(batcher.submit_nowait(4))
    for pending in pendings:
        await pending
    waited = handler.started[1] - begun
    assert (round(waited, 6), handler.reasons[1]) in (
        [(0.2, "size"), (0.2, "weight")] if late else [(0.5, "wait")]
    )
    await batcher.aclose()
    assert len(handler.batches) == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_large_backlog_of_which_most_have_gone_waits(kind: str) -> None:
    """Whoever is left of many batches makes one that is not full."""
    handler = Timed()
    batcher, pendings = await a_backlog(handler, kind)
    pendings += [batcher.submit_nowait(item) for item in range(4, 100)]
    for pending in pendings[:50] + pendings[51:-1]:
        pending.cancel()
    begun = anyio.current_time()
    handler.opened.set()
    assert [await pendings[50], await pendings[-1]] == [510, 990]
    assert (handler.batches[1:], handler.reasons[1:]) == ([[51, 99]], ["wait"])
    assert round(handler.started[1] - begun, 6) == 0.5
    await batcher.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_room_sends_at_once_and_a_room_with_a_place_does_not(kind: str) -> None:
    """While no company can come there is nothing to wait for; who leaves before the cut makes room for some."""
    for leaves in (False, True):
        handler = Timed()
        settings = KINDS[kind] | ({"max_batch_weight": 30} if kind == "weights" else {})
        batcher: Batcher[Any, Any] = Batcher(handler, max_wait=0.5, max_pending=4, **settings)
        begun = anyio.current_time()
        pendings = [
            batcher.submit_nowait(item, priority=int(kind == "turned" and item > 2))
            for item in range(4)
        ]
        if leaves:
            pendings.pop().cancel()
        handler.opened.set()
        for pending in pendings:
            await pending
        expected = (0.5, "wait") if leaves else (0, "idle")
        assert (round(handler.started[0] - begun, 6), handler.reasons[0]) == expected
        await batcher.aclose()
