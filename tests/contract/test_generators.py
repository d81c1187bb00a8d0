"""Handlers that yield pairs: each caller goes on with its own, whatever comes of the others."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support import counted, outcome, outcomes, turns

from microbatch import Batcher, ResultCountError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


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
