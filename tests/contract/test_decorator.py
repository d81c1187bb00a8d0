"""@batched: a bulk function or method that is called with one item."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import anyio
import pytest
from support import outcome, outcomes, turns

from microbatch import Batcher, BatcherClosed, BatcherFull, Skipped, batched

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


async def test_a_bulk_function_becomes_a_single_item_one() -> None:
    """Its callers stay as simple as before batching."""
    seen: list[list[int]] = []

    @batched(max_batch_size=10)
    async def double(items: list[int]) -> list[int]:
        """Double many."""
        seen.append(list(items))
        return [item * 2 for item in items]

    assert await outcomes(*map(double, range(25))) == [item * 2 for item in range(25)]
    assert [len(batch) for batch in seen] == [10, 10, 5]
    assert double.__name__ == "double"
    assert double.__doc__ == "Double many."
    assert isinstance(double.batcher, Batcher)
    assert double.batcher.stats().items == 25
    await double.aclose()
    assert type(await outcome(double(1))) is BatcherClosed


async def test_a_decorated_function_closes_with_async_with() -> None:
    """So that an application's start-up can own it."""

    @batched(max_wait=1000.0)
    async def echo(items: list[int]) -> list[int]:
        return items

    async with echo:
        pending = echo.batcher.submit_nowait(1)
    assert await pending == 1
    with pytest.raises(BatcherClosed):
        await echo(2)


async def test_a_decorator_works_without_parentheses() -> None:
    """As decorators do that need no settings."""

    @batched
    async def double(items: list[int]) -> list[int]:
        return [item * 2 for item in items]

    class Half:
        @batched
        async def get(self, items: list[int]) -> list[int]:
            return [item // 2 for item in items]

    half = Half()
    assert await outcomes(double(1), half.get(6)) == [2, 3]
    await double.aclose()
    await half.get.aclose()


async def test_what_is_no_function_is_refused_without_parentheses_too() -> None:
    """A setting in the wrong place must not fail in silence until the first call."""
    with pytest.raises(TypeError, match="handler must be a function that takes a list of items"):
        batched(100)  # type: ignore[call-overload]


class Repository:
    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[list[int]] = []

    @batched(max_batch_size=5)
    async def get(self, items: list[int]) -> list[str]:
        """Get many."""
        self.calls.append(list(items))
        return [f"{self.name}{item}" for item in items]

    @batched()
    @classmethod
    async def of_class(cls, items: list[int]) -> list[str]:
        return [f"{cls.__name__}{item}" for item in items]

    @batched()
    @staticmethod
    async def of_nobody(items: list[int]) -> list[int]:
        return [-item for item in items]


class Derived(Repository):
    pass


async def test_each_instance_has_a_batcher_of_its_own() -> None:
    """Calls on two connections must never share a batch."""
    first, second = Repository("a"), Repository("b")
    results = await outcomes(
        *(repository.get(item) for item in range(3) for repository in (first, second))
    )
    assert results == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert sorted(first.calls[0]) == sorted(second.calls[0]) == [0, 1, 2]
    assert first.get.batcher is first.get.batcher
    assert first.get.batcher is not second.get.batcher
    await first.get.aclose()
    assert await second.get(7) == "b7"
    await second.get.aclose()


async def test_class_and_static_methods_work() -> None:
    """Called on the class or on an instance; a subclass has its own."""
    assert await Repository.of_class(1) == "Repository1"
    assert await Derived.of_class(1) == "Derived1"
    assert await Repository("x").of_class(2) == "Repository2"
    assert await Repository.of_nobody(3) == -3
    assert await Repository("x").of_nobody(4) == -4


async def test_instances_are_kept_by_identity() -> None:
    """Equal is not the same, and unhashable is no obstacle."""

    class Same:
        __hash__ = None  # type: ignore[assignment]

        def __init__(self, name: str) -> None:
            self.name = name

        def __eq__(self, other: object) -> bool:
            return True

        @batched()
        async def get(self, items: list[int]) -> list[str]:
            return [self.name for _ in items]

    first, second = Same("a"), Same("b")
    assert await outcomes(first.get(1), second.get(1)) == ["a", "b"]
    await first.get.aclose()
    await second.get.aclose()


async def test_an_instances_batcher_is_freed_with_it() -> None:
    """One per request must not pile up."""
    alive = []
    for _ in range(3):
        repository = Repository("gone")
        assert await repository.get(1) == "gone1"
        alive += [weakref.ref(repository), weakref.ref(repository.get.batcher)]
        del repository
    await turns()
    gc.collect()
    await turns()
    gc.collect()
    assert [reference() for reference in alive] == [None] * 6


async def test_an_instance_lives_while_a_call_of_its_method_is_on_its_way() -> None:
    """A call on a temporary object is fine."""
    assert await Repository("short").get(1) == "short1"


async def test_an_instance_that_is_gone_fails_its_items_by_name() -> None:
    """Fire and forget on a temporary object: there is no `self` left to call the method on."""
    pending = Repository("gone").get.batcher.submit_nowait(1)
    gc.collect()
    error = await outcome(pending)
    assert type(error) is ReferenceError
    assert "'get'" in str(error)


async def test_slots_without_weakref_are_refused_by_name() -> None:
    """The batcher could not be freed with the instance: better said than leaked."""

    class Slotted:
        __slots__ = ("name",)

        @batched()
        async def get(self, items: list[int]) -> list[int]:
            return items

    with pytest.raises(TypeError, match="__weakref__") as caught:
        await Slotted().get(1)
    assert "Slotted" in str(caught.value)

    class Better:
        __slots__ = ("__weakref__",)

        @batched()
        async def get(self, items: list[int]) -> list[int]:
            return items

    better = Better()
    assert await better.get(1) == 1
    await better.get.aclose()


async def test_settings_are_checked_when_decorating() -> None:
    """Not at the first call in production."""
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, got 0"):

        @batched(max_batch_size=0)
        async def echo(items: list[int]) -> list[int]:
            return items


async def test_settings_reach_the_batcher() -> None:
    """Every keyword of Batcher is one of the decorator."""

    @batched(max_pending=1, on_full="reject", name="narrow")
    async def echo(items: list[int]) -> list[Any]:
        return [Skipped("no")] if items == [2] else items

    async with echo:
        pending = echo.batcher.submit_nowait(1)
        with pytest.raises(BatcherFull, match="'narrow'"):
            await echo(2)
        assert await pending == 1
        assert type(await outcome(echo(2))) is Skipped


async def test_a_call_takes_a_priority() -> None:
    """As submit does."""
    seen: list[int] = []

    @batched(max_batch_size=1)
    async def note(items: list[int]) -> None:
        seen.extend(items)
        await anyio.sleep(1)

    async with note, anyio.create_task_group() as tasks:
        tasks.start_soon(note, 1)
        await turns()
        tasks.start_soon(note, 2)
        await turns()
        tasks.start_soon(lambda: note(3, priority=1))
        await turns()
    assert seen == [1, 3, 2]


@pytest.mark.real_time
async def test_plain_functions_and_methods_are_decorated_too() -> None:
    """They run in a thread as any plain handler."""
    import threading

    class Model:
        @batched()
        def predict(self, items: list[int]) -> list[bool]:
            return [threading.current_thread() is threading.main_thread() for _ in items]

    model = Model()
    assert await model.predict(1) is False
    await model.predict.aclose()


async def test_generator_functions_are_decorated_too() -> None:
    """Each caller goes on with its own pair."""

    @batched()
    async def slow(items: list[int]) -> Any:
        for index, item in enumerate(items):
            yield index, item * 2

    async with slow:
        assert await outcomes(*map(slow, range(3))) == [0, 2, 4]


async def test_generator_methods_are_decorated_too() -> None:
    """The instance is kept alive by who calls, not by the batcher."""

    class Slow:
        @batched()
        async def get(self, items: list[int]) -> Any:
            for index, item in enumerate(items):
                yield index, item * 2

    slow = Slow()
    assert await outcomes(*map(slow.get, range(3))) == [0, 2, 4]
    await slow.get.aclose()


async def test_a_method_can_be_called_through_its_class() -> None:
    """``Repository.get(repository, 1)`` is what ``repository.get(1)`` means, priority included."""
    repository = Repository("a")
    assert await Repository.get(repository, 1) == "a1"
    assert await Repository.get(repository, 2, priority=1) == "a2"
    assert repository.get.batcher.stats().items == 2
    await repository.get.aclose()


async def test_a_decorated_function_keeps_its_name_as_an_attribute_of_a_class() -> None:
    """Errors name the attribute that was called."""

    async def load(items: list[int]) -> list[int]:
        return items

    class Slotted:
        __slots__ = ()
        get = batched()(load)

    with pytest.raises(TypeError, match="'get'"):
        await Slotted().get(1)
