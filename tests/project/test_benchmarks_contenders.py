"""Who takes part in the benchmarks does the work, and the runner pairs what belongs together."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import trio

from benchmarks import contenders, floor, latency, memory, runner, telemetry

CELLS = [
    (loop, name)
    for name, contender in contenders.ALL.items()
    for loop in contender.loops
    if contenders.installed(contender)
]
#: What the driver does not keep.
RETURN_NOTHING = {"bare task + future", "submit_many", "submit_from_thread"}
SEEN: dict[str, dict[int, int]] = {
    "bare task + future": {},  # the cost of what each of the others has: it has no handler
    # Eight threads, each with items of its own; four of them have one more.
    "submit_from_thread": {**dict.fromkeys(range(17), 8), 17: 4},
}


@pytest.mark.parametrize(("loop", "name"), CELLS)  # CI installs all peers for this test
def test_every_contender_handles_every_item_once(loop, name, monkeypatch):
    """A contender that loses or repeats work would look fast or slow for the wrong reason."""
    seen: Counter = Counter()

    async def counting(items):
        seen.update(items)
        return items

    monkeypatch.setattr(contenders, "echo", counting)
    contender = contenders.ALL[name]

    async def main():
        async with contender.open(10) as run:
            seen.clear()
            return await run(140)

    results = runner.run_on(loop, main)
    tasks_of_trio = loop == "trio" and contender.drive is contenders.tasks
    assert results == (None if name in RETURN_NOTHING or tasks_of_trio else list(range(140)))
    assert seen == SEEN.get(name, dict.fromkeys(range(140), 1))


def there(names):
    return [contender.name for contender in contenders.there(*names)]


@pytest.mark.parametrize("name", there(memory.WAITING))
def test_every_contender_lets_its_callers_wait(name):
    """What a waiting caller takes is measured for each, in a process of its own that does this."""
    assert isinstance(memory.caller(name, 300), float)


def test_a_lone_caller_meets_every_contender_at_its_own_defaults():
    """A peer is shown as its users find it."""
    found = latency.lone(rounds=1, calls=2)
    assert list(found) == there([*latency.LONE, *latency.LONE_WINDOWED])


@pytest.mark.parametrize("name", there(latency.WINDOWED))
def test_every_contender_with_a_window_makes_the_first_item_wait(name):
    """Who ignored the setting would seem to be the fastest."""
    found = latency.ages(latency.windowed(name, 0.02), seconds=0.1)
    assert found["max"] >= 15  # a timer of theirs may be some milliseconds early, or late


@pytest.mark.parametrize("contender", telemetry.ALL, ids=lambda one: one.name)
def test_with_and_without_telemetry_every_caller_has_its_result(contender):
    """Whoever does less is cheaper."""

    async def main():
        async with contender.open(10) as run:
            assert await run(35) == list(range(35))

    asyncio.run(main())


def test_the_floor_gives_each_caller_its_own_result():
    """A floor that does not do the work is no floor."""

    async def doubled(items):
        return [item * 2 for item in items]

    async def main():
        submit = floor.FloorBatcher(doubled, max_batch_size=4).submit
        return await asyncio.gather(*[submit(i) for i in range(10)])

    assert asyncio.run(main()) == [i * 2 for i in range(10)]


def test_the_floor_for_trio_gives_each_caller_its_own_result():
    """The same for the other event loop."""
    found = {}

    async def doubled(items):
        return [item * 2 for item in items]

    async def main():
        async with trio.open_nursery() as nursery:
            submit = floor.TrioFloorBatcher(doubled, nursery, max_batch_size=4).submit

            async def caller(i):
                found[i] = await submit(i)

            async with trio.open_nursery() as callers:
                for i in range(10):
                    callers.start_soon(caller, i)

    trio.run(main)
    assert found == {i: i * 2 for i in range(10)}


def test_ratios_pair_each_round_with_the_floor_of_that_round():
    """Else a slow minute would be charged to whoever ran in it."""
    figures = {"floor": [(1.0, 0), (2.0, 0), (4.0, 0)], "mine": [(0.5, 0), (1.0, 0), (2.0, 0)]}
    assert runner.ratios(figures, "floor")["mine"] == {
        "median": 0.5, "low": 0.5, "high": 0.5, "rounds": 3,
    }  # fmt: skip


def test_the_order_rotates_from_round_to_round():
    """Who comes first finds other caches than who comes last."""
    order = []
    ways = {name: lambda name=name: order.append(name) or name.upper() for name in "abc"}
    assert runner.in_turns(ways, 3) == {"a": ["A"] * 3, "b": ["B"] * 3, "c": ["C"] * 3}
    assert order == [*"abc", *"bca", *"cab"]
