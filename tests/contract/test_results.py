"""How what a handler returns, raises or yields becomes each caller's own outcome."""

from __future__ import annotations

import array
from collections import deque
from typing import Any

import anyio
import numpy as np
import pytest
from support import counted, outcome, outcomes, turns

from microbatch import (
    Batcher,
    ItemError,
    ItemTooHeavy,
    ResultCountError,
    Skipped,
    current_batch,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]


@pytest.mark.parametrize("make", [
    pytest.param(list, id="list"),
    pytest.param(tuple, id="tuple"),
    pytest.param(deque, id="deque"),
    pytest.param(lambda values: array.array("i", values), id="array"),
    pytest.param(np.array, id="numpy"),
    pytest.param(lambda values: dict(enumerate(values)).values(), id="dict values"),
    pytest.param(lambda values: range(values[0], values[-1] + 1), id="range"),
])  # fmt: skip
async def test_any_sized_iterable_is_a_result(make: Any) -> None:
    """Whoever answers for the batch may answer with what it has."""

    async def handler(items: list[int]) -> Any:
        return make(items)

    async with Batcher(handler) as batcher:
        assert await outcomes(*map(batcher.submit_nowait, range(5))) == list(range(5))


async def test_rows_of_a_matrix_are_results() -> None:
    """A model's predictions: one row each."""

    async def handler(items: list[int]) -> Any:
        return np.arange(len(items) * 2).reshape(len(items), 2)

    async with Batcher(handler) as batcher:
        rows = await outcomes(*(batcher.submit_nowait(item) for item in range(3)))
    assert [row.tolist() for row in rows] == [[0, 1], [2, 3], [4, 5]]


async def test_a_handler_that_returns_none_gives_every_caller_none() -> None:
    """Writers have nothing to say but that it is done."""
    seen: list[int] = []

    async def handler(items: list[int]) -> None:
        seen.extend(items)

    async with Batcher(handler) as batcher:
        assert await outcomes(*map(batcher.submit, range(3))) == [None] * 3
        assert await batcher.submit_many([3, 4]) == [None, None]
        report = await batcher.submit_many_report([5])
        assert report[0].ok
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]


async def test_item_errors_and_skips_reach_their_own_caller() -> None:
    """A code, a field and a reason for one; its neighbours are fine."""

    async def handler(items: list[int]) -> list[Any]:
        return [
            items[0],
            ItemError("no such town", code="validation", field="town"),
            Skipped("known"),
        ]

    async with Batcher(handler) as batcher:
        first, second, third = await outcomes(*(batcher.submit_nowait(item) for item in range(3)))
    assert first == 0
    assert (second.code, second.field, str(second)) == ("validation", "town", "no such town")
    assert (type(third), third.reason) == (Skipped, "known")


async def test_a_skip_is_counted_apart_in_reports() -> None:
    """An import that finds half its rows known has not failed."""

    async def handler(items: list[int]) -> list[Any]:
        return [Skipped("known") if item % 2 else item for item in items]

    async with Batcher(handler) as batcher:
        report = await batcher.submit_many_report(range(6))
    assert (report.succeeded, report.failed, report.skipped, report.total) == (3, 0, 3, 6)


async def test_an_exception_class_is_a_value() -> None:
    """Only instances are raised."""

    async def handler(items: list[int]) -> list[Any]:
        return [ValueError for _ in items]

    async with Batcher(handler) as batcher:
        assert await batcher.submit(1) is ValueError


async def test_the_handlers_error_keeps_its_cause_for_each_caller() -> None:
    """`raise X from Y` is how handlers tell what the backend said."""

    async def handler(items: list[int]) -> list[int]:
        try:
            raise KeyError("backend")
        except KeyError as error:
            raise LookupError("handler") from error

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, range(3)))
    assert [repr(error.__cause__) for error in errors] == ["KeyError('backend')"] * 3


# --- weight -----------------------------------------------------------------------------------------------------


async def test_an_item_that_is_too_heavy_by_itself_is_refused() -> None:
    """It would never fit; nothing else is harmed."""
    sizes: list[int] = []

    async def handler(items: list[bytes]) -> None:
        sizes.append(sum(map(len, items)))

    async with Batcher(handler, weigh=len, max_batch_weight=10) as batcher:
        results = await outcomes(*map(batcher.submit, [b"x" * 4, b"x" * 11, b"x" * 10]))
        assert results[0] is results[2] is None
        error = results[1]
        assert type(error) is ItemTooHeavy
        assert isinstance(error, ValueError)
        assert (error.weight, error.allowed, error.limit) == (11, 10, "max_batch_weight")
        assert (
            str(error)
            == f"an item of weight 11 is over max_batch_weight=10 of batcher {batcher.name!r}"
        )
        with pytest.raises(ItemTooHeavy):
            batcher.submit_nowait(b"x" * 11)
        report = await batcher.submit_many_report([b"x" * 11, b"x"])
        assert report.errors == {"item_too_heavy": 1}
        assert report[0].attempts == 0
        assert counted(batcher).pending == 0
    assert max(sizes) <= 10


async def test_batches_of_heavy_items_are_as_large_as_the_weight_allows() -> None:
    """Items of 12 kB against 600 kB a call: fifty at a time."""
    sizes: list[int] = []

    async def handler(items: list[int]) -> None:
        sizes.append(len(items))

    async with Batcher(handler, weigh=lambda item: 12_000, max_batch_weight=600_000) as batcher:
        await batcher.submit_many(range(175))
    assert sizes == [50, 50, 50, 25]


class AlwaysEqual(type):
    """Overloads == as a query builder does: what comes of it is true, whatever is compared."""

    def __eq__(cls, other: object) -> bool:
        return True

    __hash__ = type.__hash__


class NeverCompared(type):
    def __eq__(cls, other: object) -> bool:
        raise TypeError("not to be compared")

    __hash__ = type.__hash__


class Unhashable(type):
    def __eq__(cls, other: object) -> bool:
        return cls is other

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("meta", [AlwaysEqual, NeverCompared, Unhashable])
async def test_a_results_class_may_compare_and_hash_as_it_likes(meta: type) -> None:
    """An exception among such results is still raised, in its own caller."""
    result = meta("Row", (), {})()

    async def handler(items: list[int]) -> list[Any]:
        return [ValueError("no") if item == 1 else result for item in items]

    async with Batcher(handler, max_batch_size=3) as batcher:
        first, second, third = await outcomes(*map(batcher.submit, range(3)))
        assert first is result
        assert type(second) is ValueError
        assert third is result
        assert await outcomes(batcher.submit(0), batcher.submit(2)) == [result, result]
        assert (counted(batcher).items, counted(batcher).failed) == (5, 1)


# --- generators -------------------------------------------------------------------------------------------------


async def test_each_caller_of_a_generator_handler_goes_on_with_its_own_pair() -> None:
    """A fast answer does not wait for a slow one of the same batch."""

    async def handler(items: list[str]) -> Any:
        for index in reversed(range(len(items))):
            await anyio.sleep(1)
            yield index, items[index] * 2

    done: dict[str, float] = {}
    async with Batcher(handler) as batcher:
        start = anyio.current_time()

        async def wait(pending: Any) -> None:
            result = await pending
            done[result] = anyio.current_time() - start

        async with anyio.create_task_group() as tasks:
            for item in "abc":
                tasks.start_soon(wait, batcher.submit_nowait(item))
    assert done == {"cc": pytest.approx(1), "bb": pytest.approx(2), "aa": pytest.approx(3)}


@pytest.mark.parametrize(("pairs", "detail"), [
    pytest.param([(0, "a"), (1, "b")], "2", id="missing"),
    pytest.param([(0, "a"), (0, "b"), (1, "c"), (2, "d")], "0", id="twice"),
    pytest.param([(0, "a"), (3, "b")], "3", id="beyond"),
    pytest.param([(0, "a"), (-1, "b")], "-1", id="negative"),
])  # fmt: skip
async def test_a_wrong_index_from_a_generator_is_named_and_fails_those_still_waiting(
    pairs: Any, detail: str
) -> None:
    """Who has its result keeps it; the generator is stopped."""
    stopped = []

    async def handler(items: list[int]) -> Any:
        try:
            for pair in pairs:
                yield pair
            if detail != "2":
                await anyio.sleep_forever()
        finally:
            stopped.append(True)

    async with Batcher(handler) as batcher:
        results = [
            await outcome(pending) for pending in [batcher.submit_nowait(item) for item in range(3)]
        ]
        assert results[0] == "a"
        errors = [result for result in results if isinstance(result, Exception)]
        assert len(errors) == (1 if detail == "2" else 2)
        for error in errors:
            assert type(error) is ResultCountError
            assert detail in str(error)
            assert error.expected == 3
        await turns()
        assert stopped == [True]
        assert counted(batcher).pending == 0


@pytest.mark.parametrize(
    "rubbish", [None, 5, "ab", (1,), (0, 1, 2), ("0", "a"), (None, "a"), (True, "a"), (0.0, "a")]
)
async def test_what_is_not_a_pair_from_a_generator_is_a_type_error(rubbish: Any) -> None:
    """The callers are told what was expected; nobody hangs."""

    async def handler(items: list[int]) -> Any:
        yield rubbish

    async with Batcher(handler) as batcher:
        errors = await outcomes(*map(batcher.submit, range(2)))
        assert {type(error) for error in errors} <= {TypeError, ResultCountError}
        assert any(
            repr(part) in str(errors[0])
            for part in (rubbish, *(rubbish if isinstance(rubbish, tuple) else ()))
        )


async def test_an_exception_yielded_for_an_index_is_raised_in_its_caller() -> None:
    """The same rule as for lists."""

    async def handler(items: list[int]) -> Any:
        yield 0, ValueError("mine")
        yield 1, "fine"

    async with Batcher(handler) as batcher:
        results = [
            await outcome(pending) for pending in [batcher.submit_nowait(item) for item in range(2)]
        ]
    assert type(results[0]) is ValueError
    assert results[1] == "fine"


async def test_a_pair_from_a_generator_leaves_room_at_once() -> None:
    """Who waits for room need not wait for the rest of the batch."""

    async def handler(items: list[int]) -> Any:
        for index, item in enumerate(items):
            yield index, item
            await anyio.sleep(1)

    async with (
        Batcher(handler, max_pending=2) as batcher,
        anyio.create_task_group() as tasks,
    ):
        for item in range(3):
            tasks.start_soon(batcher.submit, item)
        await anyio.sleep(0.5)
        assert (counted(batcher).waiting, counted(batcher).pending) == (0, 2)


async def test_a_generator_is_iterated_and_closed_in_one_task() -> None:
    """Cancel scopes and task groups inside it demand it."""
    tasks_seen: set[int] = set()

    async def handler(items: list[int]) -> Any:
        try:
            async with anyio.create_task_group():
                with anyio.CancelScope():
                    for index in range(len(items)):
                        tasks_seen.add(anyio.get_current_task().id)
                        yield index, index
        finally:
            tasks_seen.add(anyio.get_current_task().id)

    async with Batcher(handler) as batcher:
        assert await outcomes(*(batcher.submit_nowait(item) for item in range(4))) == [0, 1, 2, 3]
        await turns()
    assert len(tasks_seen) == 1


async def test_a_generator_that_goes_on_after_its_last_pair_is_run_to_its_end() -> None:
    """It may have a cursor to close; the slot is its own until then."""
    events: list[str] = []

    async def handler(items: list[int]) -> Any:
        for index, item in enumerate(items):
            yield index, item
        await anyio.sleep(1)
        events.append("end")

    async with Batcher(handler) as batcher:
        assert await batcher.submit(1) == 1
        assert events == []
    assert events == ["end"]


async def test_a_generator_handler_obeys_the_timeout() -> None:
    """What was yielded in time stands."""

    async def handler(items: list[int]) -> Any:
        yield 0, "in time"
        await anyio.sleep_forever()

    async with Batcher(handler, handler_timeout=2.0) as batcher:
        results = [
            await outcome(pending) for pending in [batcher.submit_nowait(item) for item in range(2)]
        ]
        assert results[0] == "in time"
        assert isinstance(results[1], TimeoutError)


async def test_an_object_with_a_generator_call_is_a_generator_handler() -> None:
    """Partials and __call__ are looked through."""
    import functools

    class Handler:
        async def __call__(self, items: list[int]) -> Any:
            for index, item in enumerate(items):
                yield index, item * 2

    async def with_factor(factor: int, items: list[int]) -> Any:
        for index, item in enumerate(items):
            yield index, item * factor

    async with Batcher(Handler()) as batcher:
        assert await batcher.submit(4) == 8
    async with Batcher(functools.partial(with_factor, 3)) as batcher:
        assert await batcher.submit(4) == 12


# --- resolving early --------------------------------------------------------------------------------------------


async def test_a_handler_may_resolve_an_item_early() -> None:
    """Its caller goes on at once; what is returned in its place later is not looked at."""
    hold = anyio.Event()

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        batch.resolve(1, "early")
        await hold.wait()
        return [item * 2 for item in items]

    async with Batcher(handler) as batcher:
        first, second = batcher.submit_nowait("a"), batcher.submit_nowait("b")
        assert await second == "early"
        assert not first.done()
        stats = counted(batcher)
        assert (stats.in_flight, stats.items) == (1, 1)
        hold.set()
        assert await first == "aa"
        assert counted(batcher).items == 2


async def test_an_item_resolved_with_an_exception_fails_early() -> None:
    """Layers hand over what they know, failures included; a later crash of the batch changes nothing for it."""

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        batch.resolve(0, KeyError("early"))
        await anyio.sleep(1)
        raise ValueError("late")

    async with Batcher(handler) as batcher:
        pendings = [batcher.submit_nowait(item) for item in "ab"]
        start = anyio.current_time()
        error = await outcome(pendings[0])
        assert type(error) is KeyError
        assert anyio.current_time() == start
        assert type(await outcome(pendings[1])) is ValueError
        assert counted(batcher).failed == 2


@pytest.mark.parametrize("index", [2, -1, 99])
async def test_resolving_an_index_that_is_not_there_is_refused(index: int) -> None:
    """The handler that miscounts learns it there and then."""
    errors: list[Any] = []

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        try:
            batch.resolve(index, "x")
        except Exception as error:
            errors.append(error)
        return items

    async with Batcher(handler) as batcher:
        assert await outcomes(*(batcher.submit_nowait(item) for item in "ab")) == ["a", "b"]
    assert len(errors) == 1
    assert str(index) in str(errors[0])


async def test_resolving_after_the_batch_is_over_changes_nothing() -> None:
    """A stray task of the handler may still hold the batch."""
    kept: list[Any] = []

    async def handler(items: list[str]) -> list[str]:
        kept.append(current_batch())
        return items

    async with Batcher(handler) as batcher:
        pending = batcher.submit_nowait("a")
        await turns()
        before = counted(batcher)
        await outcome(_resolve(kept[0]))
        assert await pending == "a"
        assert counted(batcher) == before


async def _resolve(batch: Any) -> None:
    batch.resolve(0, "stray")


async def test_an_early_result_frees_room() -> None:
    """Resolved items no longer count as pending: the next caller may come in."""
    hold = anyio.Event()

    async def handler(items: list[str]) -> list[str]:
        batch = current_batch()
        assert batch is not None
        batch.resolve(0, "early")
        await hold.wait()
        return items

    async with Batcher(handler, max_pending=1) as batcher:
        assert await batcher.submit("a") == "early"
        pending = batcher.submit_nowait("b")
        assert counted(batcher).pending == 1
        hold.set()
        assert await pending == "early"


async def test_a_mix_of_early_and_returned_results_fits_many_batches() -> None:
    """Each caller gets its own, whichever way it came."""

    async def handler(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        for index, item in enumerate(items):
            if item % 3 == 0:
                batch.resolve(index, -item)
        await anyio.sleep(1)
        return items

    async with Batcher(handler, max_batch_size=7, max_concurrency=3) as batcher:
        results = await outcomes(*map(batcher.submit, range(100)))
    assert results == [-item if item % 3 == 0 else item for item in range(100)]
