"""Keys of partitions and of coalescing whose own ``__eq__`` or ``__hash__`` fails: nobody else notices."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import Gate, counted, outcome, turns

from microbatch import Backoff, Batcher, Retry

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


by_either = pytest.mark.parametrize("setting", ["partition", "coalesce"])


class Bad:
    """A key that cannot be compared; 1 has the same hash and can."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        raise LookupError("no comparison")


class Unhashable:
    def __hash__(self) -> int:
        raise LookupError("no hash")


def batcher_of(handler: Any, setting: str, **settings: Any) -> Batcher[Any, Any]:
    """Return a batcher whose items, numbers above 9, stand for their last digit; others for themselves."""

    def key(item: Any) -> Any:
        return item[1] if isinstance(item, tuple) else item % 10

    return Batcher(handler, max_batch_size=1, **{setting: key}, **settings)


def odd_items(handler: Gate) -> int:
    return sum(isinstance(item, tuple) for batch in handler.batches for item in batch)


@by_either
@pytest.mark.parametrize("bad", [Bad(), Unhashable()])
@pytest.mark.parametrize("way", ["submit", "submit_nowait", "submit_many_report"])
async def test_a_key_that_cannot_be_compared_fails_its_own_submit(
    way: str, bad: Any, setting: str
) -> None:
    """It stood in a dict beside the others' keys, where each search met it."""
    handler = Gate()
    async with batcher_of(handler, setting) as batcher:
        others = [batcher.submit_nowait(0)]
        await turns()
        others += [batcher.submit_nowait(item) for item in (11, 2)]
        before = counted(batcher).buffered

        async def enter() -> Any:
            if way == "submit_many_report":
                return (await batcher.submit_many_report([(5, bad)]))[0].error
            return await getattr(batcher, way)((5, bad))

        assert isinstance(await outcome(enter()), LookupError)
        assert counted(batcher).buffered == before
        handler.opened.set()
        assert [await pending for pending in others] == [0, 110, 20]
    assert odd_items(handler) == 0


@by_either
async def test_a_bad_key_that_is_known_hurts_nobody_who_comes_later(setting: str) -> None:
    """The first of its hash is compared with nothing; the next one must not get its error."""
    handler = Gate()
    async with batcher_of(handler, setting) as batcher:
        first = batcher.submit_nowait(0)
        await turns()
        bad = batcher.submit_nowait((5, Bad()))
        good = batcher.submit_nowait(11)
        assert counted(batcher).buffered == 2
        assert bad.cancel()  # taken out from beside the other, uncompared
        assert counted(batcher).buffered == 1
        handler.opened.set()
        assert (await first, await good) == (0, 110)
    assert handler.batches == [[0], [11]]


async def test_a_key_found_bad_when_there_is_room_fails_its_own_caller() -> None:
    """A caller in line is compared again, with who came meanwhile: the line goes on behind it."""
    handler = Gate()
    results: dict[str, Any] = {}
    async with batcher_of(handler, "coalesce", max_pending=2) as batcher:
        pendings = [batcher.submit_nowait(0)]
        await turns()
        pendings.append(batcher.submit_nowait(2))

        async def call(name: str, item: Any) -> None:
            results[name] = await outcome(batcher.submit(item))

        async with anyio.create_task_group() as tasks:
            for name, item in [("first", 11), ("bad", (5, Bad())), ("last", 3)]:
                tasks.start_soon(call, name, item)
                await turns(2)
            assert counted(batcher).waiting == 3
            pendings[1].cancel()
            await turns()
            assert isinstance(results["bad"], LookupError)
            handler.opened.set()
    assert (results["first"], results["last"]) == (110, 30)
    assert odd_items(handler) == 0


async def test_an_item_comes_back_from_back_off_uncompared() -> None:
    """Its lane is kept for it: a timer of the batcher's runs no code of users."""
    key, calls = Counting(), []

    async def handler(items: list[Any]) -> list[Any]:
        calls.append(key.compared)
        return [ValueError(item) for item in items]

    retry = Retry(on=ValueError, attempts=3, backoff=Backoff(initial=1.0, jitter=0))
    async with Batcher(handler, partition=lambda _: key, retry=retry) as batcher:
        pendings = [batcher.submit_nowait(item) for item in (1, 2)]
        asked = key.compared
        assert [type(await outcome(pending)) for pending in pendings] == [ValueError] * 2
    assert calls == [asked] * 3


class Counting:
    """A key that counts how often it is asked for its hash."""

    def __init__(self) -> None:
        self.compared = 0

    def __hash__(self) -> int:
        self.compared += 1
        return 1


async def test_a_key_of_none_is_a_key_too() -> None:
    """Whoever wants no sharing sets no ``coalesce``."""
    handler = Gate()
    async with Batcher(handler, coalesce=lambda _: None) as batcher:
        pendings = [batcher.submit_nowait(item) for item in (1, 2)]
        handler.opened.set()
        assert [await pending for pending in pendings] == [10, 10]
