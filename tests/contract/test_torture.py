"""What breaks other batchers: cancellation, crashes, rubbish results, hangs. Every caller must end exactly once."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, counted, outcome, outcomes, tasks_alive, turns

from microbatch import (
    Backoff,
    Batcher,
    BatcherClosed,
    BatcherFull,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ResultCountError,
    Retry,
    WouldDeadlock,
    current_batch,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]


class Boom(BaseException):
    """Not an Exception: nothing that catches Exception sees it."""


# --- cancelled callers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_caller_cancelled_before_the_flush_withdraws_its_item(victim: int) -> None:
    """Others send it all the same; async-batcher and async-cache then hang the third caller."""
    handler = Recorder()
    results: dict[int, Any] = {}
    scopes = [anyio.CancelScope() for _ in range(3)]
    batcher = Batcher(handler, max_wait=1.0)

    async def call(item: int) -> None:
        with scopes[item]:
            results[item] = await batcher.submit(item)

    async with batcher, anyio.create_task_group() as tasks:
        for item in range(3):
            tasks.start_soon(call, item)
        await turns()
        assert counted(batcher).buffered == 3
        scopes[victim].cancel()
        await turns()
        assert counted(batcher).buffered == counted(batcher).pending == 2
    left = {0, 1, 2} - {victim}
    assert len(handler.batches) == 1
    assert set(handler.batches[0]) == left
    assert results == {item: item * 10 for item in left}
    assert counted(batcher).items == 2


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_caller_cancelled_during_the_handler_harms_nobody(victim: int) -> None:
    """concresce cancels all when the first goes, async-batcher hangs the others."""
    handler = Gate()
    results: dict[int, Any] = {}
    scopes = [anyio.CancelScope() for _ in range(3)]

    async with Batcher(handler, max_wait=1.0) as batcher:

        async def call(item: int) -> None:
            with scopes[item]:
                results[item] = await batcher.submit(item)

        async with anyio.create_task_group() as tasks:
            for item in range(3):
                tasks.start_soon(call, item)
            await anyio.sleep(2)
            assert counted(batcher).in_flight == 3
            scopes[victim].cancel()
            await turns()
            counted(batcher)
            handler.opened.set()
        left = {0, 1, 2} - {victim}
        assert results == {item: item * 10 for item in left}
        assert counted(batcher).pending == 0
        assert await batcher.submit(9) == 90
    assert len(handler.batches) == 2


async def test_all_callers_cancelled_during_the_handler_let_it_finish() -> None:
    """By default what was begun is finished: a half-written bulk insert helps nobody."""
    handler = Recorder(seconds=5)
    async with Batcher(handler) as batcher:
        with anyio.move_on_after(1):
            await outcomes(batcher.submit(1), batcher.submit(2))
        assert handler.running == 1
        assert await batcher.submit(3) == 30
    assert handler.peak == 1
    assert handler.seen == {1: 1, 2: 1, 3: 1}


async def test_cancel_abandoned_cancels_a_handler_that_nobody_waits_for() -> None:
    """Opt-in: work whose callers are all gone is dropped, and the slot is free at once."""
    handler = Recorder(seconds=50)
    async with Batcher(handler, cancel_abandoned=True) as batcher:
        started = anyio.current_time()
        with anyio.move_on_after(1):
            await outcomes(batcher.submit(1), batcher.submit(2))
        await turns()
        assert handler.running == 0
        assert counted(batcher).pending == 0
        handler.seconds = 0
        assert await batcher.submit(3) == 30
        assert anyio.current_time() - started == pytest.approx(1)


async def test_cancel_abandoned_leaves_a_handler_with_one_caller_left_alone() -> None:
    """Only the last caller's going ends the batch."""
    handler = Recorder(seconds=5)
    async with Batcher(handler, cancel_abandoned=True) as batcher:
        stays = batcher.submit_nowait(1)
        goes = batcher.submit_nowait(2)
        await anyio.sleep(1)
        goes.cancel()
        await turns()
        assert handler.running == 1
        assert await stays == 10


@pytest.mark.parametrize("settings", [
    pytest.param({}, id="natural"),
    pytest.param({"max_wait": 2.0}, id="waiting"),
    pytest.param({"max_pending": 2}, id="without room"),
    pytest.param({"retry": Retry(on=ValueError, backoff=Backoff(initial=2.0, jitter=0.0))}, id="failing"),
    pytest.param({"coalesce": lambda item: "same"}, id="sharing"),
    pytest.param({"partition": lambda item: item % 2, "max_concurrency": 2}, id="partitioned"),
    pytest.param({"cancel_abandoned": True}, id="abandoned"),
])  # fmt: skip
async def test_cancelled_after_any_number_of_turns_the_books_balance(
    settings: dict[str, Any],
) -> None:
    """The victim is cancelled at every await that it can be at; all others get their own result."""
    for turn in range(40):
        victim = turn % 4
        handler = Recorder(seconds=1, fails={2} if "retry" in settings else ())
        batcher: Batcher[int, int] = Batcher(handler, **settings)
        scopes = [anyio.CancelScope() for _ in range(4)]
        ended: dict[int, Any] = {}

        async def call(
            item: int, batcher: Any = batcher, scopes: Any = scopes, ended: Any = ended
        ) -> None:
            with scopes[item]:
                ended[item] = await outcome(batcher.submit(item))

        before = tasks_alive()
        async with batcher:
            async with anyio.create_task_group() as tasks:
                for item in range(4):
                    tasks.start_soon(call, item)
                # First turn by turn, through every await of the way in, then in steps of a fifth of a second
                # through handler calls and back-off.
                await turns(min(turn, 20))
                if turn > 20:
                    await anyio.sleep((turn - 20) / 5)
                scopes[victim].cancel()
                counted(batcher)
                await anyio.lowlevel.checkpoint()
                counted(batcher)
                await turns(5)
                counted(batcher)
            # What is in flight for nobody may still run.
            await anyio.sleep(30)
            stats = counted(batcher)
            assert (stats.pending, stats.waiting) == (0, 0)
        for item in {0, 1, 2, 3} - {victim}:
            assert item in ended
            if not (item == 2 and "retry" in settings):
                assert ended[item] in ((0, 10, 20, 30) if "coalesce" in settings else (item * 10,))
        attempts = 3 if "retry" in settings else 1
        assert all(times <= attempts for times in handler.seen.values())
        await turns()
        assert tasks_alive() == before


async def test_a_caller_cancelled_at_the_very_moment_its_result_comes_ends_once() -> None:
    """The result is set, the caller not yet resumed, and then it is cancelled: it must see one of the two."""
    for order in range(2):
        handler = Gate()
        async with Batcher(handler) as batcher:
            seen: list[Any] = []
            scope = anyio.CancelScope()

            async def call(
                batcher: Any = batcher, seen: list[Any] = seen, scope: Any = scope
            ) -> None:
                with scope:
                    seen.append(await batcher.submit(1))
                seen.append("ended")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await turns()
                if order:
                    scope.cancel()
                    handler.opened.set()
                else:
                    handler.opened.set()
                    await anyio.lowlevel.checkpoint()
                    scope.cancel()
            assert seen in (["ended"], [10, "ended"])
            await turns()
            assert counted(batcher).pending == 0
            assert counted(batcher).items == 1


async def test_a_cancelled_flush_leaves_the_items_alone() -> None:
    """flush() waits for others' items; they do not belong to it."""
    handler = Recorder(seconds=5)
    async with Batcher(handler, max_wait=100) as batcher:
        pending = batcher.submit_nowait(1)
        with anyio.move_on_after(1) as scope:
            await batcher.flush()
        assert scope.cancelled_caught
        assert await pending == 10


async def test_thousands_of_cancelled_items_cost_the_rest_nothing() -> None:
    """Withdrawn items must not be counted as company, nor scanned again and again."""
    handler = Recorder()
    async with Batcher(handler, max_batch_size=100, max_wait=1.0) as batcher:
        doomed = [batcher.submit_nowait(item) for item in range(99)]
        for _ in range(50):
            for pending in doomed:
                pending.cancel()
            assert counted(batcher).pending == 0
            doomed = [batcher.submit_nowait(item) for item in range(99)]
            await turns(2)
            assert counted(batcher).buffered == 99
        assert handler.batches == []
    assert handler.sizes == [99]


async def test_cancelled_waiters_for_room_leave_the_queue() -> None:
    """A caller that gives up while waiting for room frees its place, and its item is never seen."""
    handler = Gate()
    async with Batcher(handler, max_pending=2) as batcher:
        held = [batcher.submit_nowait(item) for item in range(2)]
        async with anyio.create_task_group() as tasks:
            results: dict[int, Any] = {}

            async def call(item: int) -> None:
                results[item] = await batcher.submit(item)

            tasks.start_soon(call, 2)
            await turns()
            with anyio.move_on_after(1):
                await batcher.submit(3)
            assert counted(batcher).waiting == 1
            assert counted(batcher).pending == 2
            tasks.start_soon(call, 4)
            await turns()
            assert counted(batcher).waiting == 2
            handler.opened.set()
        assert [await pending for pending in held] == [0, 10]
        assert results == {2: 20, 4: 40}
    assert 3 not in handler.seen


async def test_room_freed_by_a_cancelled_item_goes_to_the_oldest_waiter() -> None:
    """Cancellation frees room like a result does; nobody may wait beside an empty place."""
    handler = Gate()
    async with Batcher(handler, max_pending=2) as batcher:
        batcher.submit_nowait(0)
        await turns()
        buffered = batcher.submit_nowait(1)
        async with anyio.create_task_group() as tasks:
            results: dict[int, Any] = {}

            async def call(item: int) -> None:
                results[item] = await batcher.submit(item)

            for item in (2, 3):
                tasks.start_soon(call, item)
                await turns()
            assert counted(batcher).waiting == 2
            buffered.cancel()
            await turns()
            stats = counted(batcher)
            assert (stats.waiting, stats.buffered, stats.in_flight) == (1, 1, 1)
            handler.opened.set()
        assert results == {2: 20, 3: 30}
    assert [item for batch in handler.batches for item in batch] == [0, 2, 3]


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize(
    "settings",
    [{}, {"max_wait": 0.5}, {"retry": Retry(on=ConnectionError)}],
    ids=["natural", "window", "retry"],
)
async def test_a_waiter_is_let_in_when_the_only_item_is_cancelled_before_its_cut(
    turn: int, settings: dict[str, Any]
) -> None:
    """The cut finds nobody left: the room is free again, and whoever waits for it must learn so."""
    async with Batcher(Recorder(), max_pending=1, **settings) as batcher:
        scopes = [anyio.CancelScope() for _ in range(3)]
        results: list[Any] = []

        async def call(item: int) -> None:
            with scopes[item]:
                results.append(await batcher.submit(item))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, 0)
            await turns(turn // 3)
            scopes[0].cancel()
            await turns(turn % 3)
            tasks.start_soon(call, 1)
            tasks.start_soon(call, 2)
        assert sorted(results)[-2:] == [10, 20]


@pytest.mark.parametrize("turn", range(6))
async def test_a_caller_after_one_who_was_cancelled_before_the_cut_is_served(turn: int) -> None:
    """The cut finds nobody and its task ends: the next item must wake another."""
    async with Batcher(Recorder()) as batcher:
        scope = anyio.CancelScope()

        async def leave() -> None:
            with scope:
                await batcher.submit(0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
            await turns(turn // 2)
            scope.cancel()
            await turns(turn % 2)
        first = batcher.submit_nowait(1)
        first.cancel()
        await turns(3)
        with anyio.fail_after(5):
            assert await batcher.submit(2) == 20


# --- handlers that crash ----------------------------------------------------------------------------------------


async def stolen_cancellation() -> BaseException:
    """Return a cancellation that belongs to a scope already left: what badly written libraries raise."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class() as error:
            stolen = error
            raise
    return stolen


@pytest.mark.parametrize(
    "make", [Boom, GeneratorExit, asyncio.CancelledError], ids=lambda make: make.__name__
)
async def test_a_base_exception_from_the_handler_fails_its_callers_and_nothing_else(
    make: Any,
) -> None:
    """Of 13 peers 9 hang all callers here, two of them for good."""

    async def handler(items: list[int]) -> list[int]:
        await anyio.lowlevel.checkpoint()
        if 0 in items:
            raise make("away")
        return items

    async with Batcher(handler) as batcher:
        errors = await outcomes(*(batcher.submit(item) for item in (0, 1, 2)))
        for error in errors:
            assert type(error) is HandlerCrashed
            assert error.kind == make.__name__
            assert type(error.__cause__) is make
        assert len(set(map(id, errors))) == 3
        assert await batcher.submit(3) == 3
        assert counted(batcher).failed == 3


async def test_a_cancellation_of_the_handlers_own_making_is_a_crash() -> None:
    """A driver that leaks its own cancellation must cancel neither the callers nor the batcher."""

    async def handler(items: list[int]) -> list[int]:
        if 0 in items:
            raise await stolen_cancellation()
        return items

    async with Batcher(handler) as batcher:
        errors = await outcomes(batcher.submit(0), batcher.submit(0))
        assert [type(error) for error in errors] == [HandlerCrashed, HandlerCrashed]
        assert isinstance(errors[0].__cause__, anyio.get_cancelled_exc_class())
        assert await batcher.submit(3) == 3


async def test_a_base_exception_group_from_the_handler_is_a_crash() -> None:
    """Task groups inside a handler wrap what crashed in a group."""

    async def handler(items: list[int]) -> list[int]:
        raise BaseExceptionGroup("several", [Boom("one"), ValueError("two")])

    async with Batcher(handler) as batcher:
        error = await outcome(batcher.submit(0))
        assert type(error) is HandlerCrashed
        assert type(error.__cause__) is BaseExceptionGroup


async def test_a_crash_of_a_generator_handler_fails_only_those_still_waiting() -> None:
    """What it yielded before stands."""

    async def handler(items: list[int]) -> Any:
        yield 1, "first"
        raise Boom

    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        kinds = [type(result) for result in results]
        assert sorted(kinds, key=str) == sorted([str, HandlerCrashed, HandlerCrashed], key=str)
        assert counted(batcher).failed == 2


@pytest.mark.real_time
async def test_a_handler_that_raises_before_its_first_await_fails_its_callers() -> None:
    """graphql/dataloader had to learn that a synchronous throw must reject, not crash."""

    def plain(items: list[int]) -> Any:
        raise LookupError("at once")

    async def immediate(items: list[int]) -> Any:
        raise LookupError("at once")

    for handler in (plain, immediate, immediate):
        async with Batcher(handler) as batcher:
            error = await outcome(batcher.submit(1))
            assert type(error) is LookupError
            assert error.args == ("at once",)


# --- handlers that return rubbish -------------------------------------------------------------------------------


class Liar:
    """Says it has three results and gives two."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter([1, 2])


class Thrower:
    """Breaks when looked at."""

    def __len__(self) -> int:
        raise LookupError("length")

    def __iter__(self) -> Any:
        raise LookupError("iteration")


@pytest.mark.parametrize("rubbish", [
    pytest.param([1, 2], id="short"),
    pytest.param([1, 2, 3, 4], id="long"),
    pytest.param([], id="empty"),
    pytest.param("abc", id="str"),
    pytest.param(b"abc", id="bytes"),
    pytest.param(bytearray(b"abc"), id="bytearray"),
    pytest.param({1: 1, 2: 2, 3: 3}, id="mapping"),
    pytest.param({1, 2, 3}, id="set"),
    pytest.param(frozenset({1, 2, 3}), id="frozenset"),
    pytest.param(3, id="number"),
    pytest.param(object(), id="object"),
    pytest.param(iter([1, 2, 3]), id="iterator"),
    pytest.param(Liar(), id="liar"),
    pytest.param(Thrower(), id="thrower"),
    pytest.param(ValueError("returned"), id="exception"),
])  # fmt: skip
async def test_rubbish_from_the_handler_ends_every_caller_with_a_reason(rubbish: Any) -> None:
    """async-cache answers None in silence, pybatcher and the bare loop hang the third caller."""

    async def handler(items: list[Any]) -> Any:
        return rubbish if len(items) == 3 else items

    async with Batcher(handler) as batcher:
        errors = await outcomes(*(batcher.submit(item) for item in range(3)))
        assert {type(error) for error in errors} <= {ResultCountError, TypeError, LookupError}
        assert len(set(map(id, errors))) == 3
        if isinstance(rubbish, list):
            assert (
                str(errors[0])
                == f"the handler of batcher {batcher.name!r} must give one result for each of its 3 items, "
                f"got {len(rubbish)}"
            )
            assert (errors[0].expected, errors[0].got) == (3, len(rubbish))
        elif not isinstance(rubbish, Thrower | Liar):
            assert type(errors[0]) is TypeError
            assert type(rubbish).__name__ in str(errors[0])
            assert repr(batcher.name) in str(errors[0])
        assert await batcher.submit("next") == "next"
        assert counted(batcher).failed == 3


async def test_the_item_list_is_the_handlers_to_change() -> None:
    """A handler that empties, reorders or returns its list changes nothing for the callers."""

    async def handler(items: list[int]) -> list[int]:
        assert type(items) is list
        results = [item * 10 for item in items]
        items.clear()
        return results

    async with Batcher(handler) as batcher:
        assert await outcomes(*map(batcher.submit, range(5))) == [0, 10, 20, 30, 40]

    async def echo(items: list[int]) -> list[int]:
        return items

    async with Batcher(echo) as batcher:
        assert await outcomes(*map(batcher.submit, range(5))) == [0, 1, 2, 3, 4]


class Odd:
    """No truth, no equality, no hash: what NumPy arrays and ORM rows are like."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


@pytest.mark.parametrize(
    "settings", [{}, {"max_pending": 2}, {"retry": Retry(on=LookupError)}], ids=str
)
async def test_items_and_results_are_never_compared_hashed_or_tested(
    settings: dict[str, Any],
) -> None:
    """Only their identity counts; also while items are cancelled and waited for."""
    items = [Odd() for _ in range(6)]

    async def handler(batch: list[Odd]) -> list[Odd]:
        await anyio.sleep(1)
        return batch

    async with Batcher(handler, **settings) as batcher:
        with anyio.move_on_after(0.5):
            await outcomes(*map(batcher.submit, items))
        results = await outcomes(*map(batcher.submit, items))
    assert list(map(id, results)) == list(map(id, items))


@pytest.mark.parametrize(
    "item", [None, False, 0, "", ..., NotImplemented, ValueError("an item"), StopIteration()]
)
async def test_any_object_is_an_item(item: Any) -> None:
    """aiodataloader refuses None; an exception is a fine item, too."""

    async def handler(items: list[Any]) -> list[Any]:
        return [repr(item) for item in items]

    async with Batcher(handler) as batcher:
        assert await batcher.submit(item) == repr(item)


# --- one bad among many ----------------------------------------------------------------------------------------


async def test_one_bad_item_of_a_hundred_fails_alone() -> None:
    """Returned in its place, an exception is its own caller's; smartbatch needs 101 calls for it."""
    handler = Recorder(fails={13})
    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(100)))
    assert type(results.pop(13)) is ValueError
    assert results == [item * 10 for item in range(100) if item != 13]
    assert handler.sizes == [100]
    stats = counted(batcher)
    assert (stats.batches, stats.items, stats.failed) == (1, 100, 1)


async def test_a_failed_batch_fails_alone() -> None:
    """The batches before and after are other callers' affair."""

    async def handler(items: list[int]) -> list[int]:
        if 1 in items:
            raise ValueError("batch")
        return items

    async with Batcher(handler, max_batch_size=1) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert [results[0], type(results[1]), results[2]] == [0, ValueError, 2]


@pytest.mark.parametrize(
    "kind", [StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, Boom]
)
async def test_an_unraisable_result_ends_its_own_caller_alone(kind: Any) -> None:
    """asyncio refuses StopIteration in a future, and gather(return_exceptions=True) returns cancellations."""

    async def handler(items: list[int]) -> list[Any]:
        return [kind("odd") if item == 1 else item for item in items]

    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert (results[0], results[2]) == (0, 2)
        if issubclass(kind, Exception):
            assert isinstance(
                results[1], Exception
            )  # PEP 479 makes a RuntimeError of StopIteration
        assert await batcher.submit(5) == 5
        assert counted(batcher).pending == 0


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
async def test_a_raised_stop_iteration_ends_every_caller(kind: Any) -> None:
    """next() on an empty iterator in a handler is a common slip."""

    async def handler(items: list[int]) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        raise kind("odd")

    async with Batcher(handler) as batcher:
        results = await outcomes(*map(batcher.submit, range(3)))
        assert all(isinstance(result, Exception) for result in results)


# --- handlers that hang -----------------------------------------------------------------------------------------


async def test_a_handler_that_hangs_is_ended_by_its_timeout() -> None:
    """Its callers get a TimeoutError on time and the next batch runs; 5 of 13 peers are stuck here."""

    async def handler(items: list[int]) -> list[int]:
        if 0 in items:
            await anyio.sleep_forever()
        return items

    async with Batcher(handler, handler_timeout=30.0, name="slow") as batcher:
        start = anyio.current_time()
        errors = await outcomes(batcher.submit(0), batcher.submit(1))
        assert anyio.current_time() - start == pytest.approx(30.0, abs=0.01)
        assert all(
            type(error) is HandlerTimeout and isinstance(error, TimeoutError) for error in errors
        )
        assert (
            str(errors[0])
            == "the handler of batcher 'slow' took longer than handler_timeout=30.0 s"
        )
        assert errors[0] is not errors[1]
        assert await batcher.submit(2) == 2
        stats = counted(batcher)
        assert (stats.batches, stats.items, stats.failed, stats.pending) == (2, 3, 2, 0)


async def test_without_a_timeout_a_hanging_handler_shows_in_the_stats() -> None:
    """Nothing else can be known about it; others still run while slots are free."""

    async def handler(items: list[int]) -> list[int]:
        if 0 in items:
            await anyio.sleep_forever()
        return items

    async with Batcher(handler, max_concurrency=2, drain_timeout=5.0) as batcher:
        pending = batcher.submit_nowait(0)
        await anyio.sleep(50)
        assert await batcher.submit(1) == 1
        await anyio.sleep(50)
        assert batcher.stats().oldest_in_flight == pytest.approx(100)
        assert counted(batcher).in_flight == 1
        start = anyio.current_time()
    assert 5 <= anyio.current_time() - start < 60
    error = await outcome(pending)
    assert type(error) is BatcherClosed
    assert error.started


async def test_a_timeout_holds_even_if_the_handler_ignores_its_cancellation() -> None:
    """The slot is free on time: one deaf handler must not stop the service."""

    async def handler(items: list[int]) -> list[int]:
        if 0 in items:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(500)
        return items

    async with Batcher(handler, handler_timeout=1.0) as batcher:
        start = anyio.current_time()
        assert type(await outcome(batcher.submit(0))) is HandlerTimeout
        assert await batcher.submit(1) == 1
        assert anyio.current_time() - start == pytest.approx(1.0, abs=0.01)
        await anyio.sleep(600)
        assert counted(batcher).pending == 0


async def test_deaf_handlers_are_counted_and_bounded() -> None:
    """Each holds memory, a connection, perhaps a thread: past eight new batches fail, until some of them end."""
    calls = 0

    async def handler(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if 0 in items:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(500)
        return items

    async with Batcher(handler, handler_timeout=1.0, name="deaf") as batcher:
        kinds = [type(await outcome(batcher.submit(0))) for _ in range(15)]
        # A task that is slow to clean up is not called deaf at once, so a few more than nine may start.
        assert kinds[:8] == [HandlerTimeout] * 8
        assert kinds[11:] == [HandlerStuck] * 4
        assert calls <= 11
        error = await outcome(batcher.submit(1))
        assert type(error) is HandlerStuck
        assert error.stuck > error.allowed == 8
        assert "'deaf'" in str(error)
        await anyio.sleep(600)
        assert await batcher.submit(1) == 1
        assert counted(batcher).failed == 16


async def test_what_a_handler_returns_after_its_timeout_reaches_nobody() -> None:
    """Its callers have their answer; a second one must not disturb anything."""

    async def handler(items: list[int]) -> list[int]:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        current_batch().resolve(0, "late")
        return items

    async with Batcher(handler, handler_timeout=1.0) as batcher:
        assert type(await outcome(batcher.submit(0))) is HandlerTimeout
        before = counted(batcher)
        await anyio.sleep(10)
        after = counted(batcher)
        assert (after.batches, after.items, after.failed) == (
            before.batches,
            before.items,
            before.failed,
        )


async def test_an_error_that_the_handler_raises_on_its_cancellation_does_not_replace_the_timeout() -> (
    None
):
    """Rolling back may fail too; the callers were promised a HandlerTimeout."""

    async def handler(items: list[int]) -> list[int]:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("rollback")

    async with Batcher(handler, handler_timeout=1.0) as batcher:
        assert type(await outcome(batcher.submit(0))) is HandlerTimeout


# --- waiting on the own batcher ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["submit", "submit_many", "submit_many_report", "flush", "aclose"])
async def test_waiting_on_the_own_batcher_is_refused_at_once(call: str) -> None:
    """A deadlock in other batchers: the batch waits for the slot that it holds."""
    refusals: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        arguments = {"submit": (5,), "submit_many": ([5],), "submit_many_report": ([5],)}.get(
            call, ()
        )
        refusals.append(await outcome(getattr(batcher, call)(*arguments)))
        return items

    batcher: Batcher[int, int] = Batcher(handler, name="self")
    async with batcher:
        assert await batcher.submit(1) == 1
        assert await batcher.submit(2) == 2
    assert [type(refusal) for refusal in refusals] == [WouldDeadlock, WouldDeadlock]
    assert isinstance(refusals[0], RuntimeError)
    assert refusals[0].call == call
    assert f"{call}() inside a handler of batcher 'self'" in str(refusals[0])
    assert counted(batcher).items == 2


async def test_leaving_async_with_inside_the_own_handler_is_refused() -> None:
    """`async with` closes, and closing waits."""
    refusals: list[Any] = []

    async def handler(items: list[int]) -> list[int]:
        try:
            async with batcher:
                pass
        except WouldDeadlock as error:
            refusals.append(error)
        return items

    batcher: Batcher[int, int] = Batcher(handler)
    assert await batcher.submit(1) == 1
    assert len(refusals) == 1
    await batcher.aclose()


async def test_a_task_started_by_the_handler_is_refused_while_the_batch_runs_and_free_after_it() -> (
    None
):
    """Detached tasks outlive their batch: then they are callers like any other."""
    seen: list[Any] = []

    async def later(task_status: Any = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        seen.append(await outcome(batcher.submit(5)))
        await anyio.sleep(10)
        seen.append(await outcome(batcher.submit(6)))

    async def handler(items: list[int]) -> list[int]:
        if 1 in items:
            tasks.start_soon(later)
            await anyio.sleep(1)
        return [item * 10 for item in items]

    batcher: Batcher[int, int] = Batcher(handler)
    async with batcher, anyio.create_task_group() as tasks:
        assert await batcher.submit(1) == 10
    assert [type(seen[0]), seen[1]] == [WouldDeadlock, 60]


async def test_a_crawler_may_submit_what_it_finds() -> None:
    """submit_nowait does not wait, so it is allowed inside the handler; nothing is lost when the batcher closes."""
    visited: list[int] = []

    async def handler(items: list[int]) -> None:
        visited.extend(items)
        for item in items:
            if item < 50:
                batcher.submit_nowait(2 * item)
                batcher.submit_nowait(2 * item + 1)
        await anyio.sleep(1)

    batcher: Batcher[int, None] = Batcher(handler, max_batch_size=7)
    async with batcher:
        await batcher.submit(1)
        await anyio.sleep(100)
    assert sorted(visited) == list(range(1, 100))


async def test_another_batchers_handler_may_wait_on_this_one() -> None:
    """Chains are fine, only waiting for oneself is refused."""

    async def inner(items: list[int]) -> list[int]:
        return [item + 1 for item in items]

    async def outer(items: list[int]) -> list[int]:
        return await second.submit_many(items)

    second: Batcher[int, int] = Batcher(inner)
    async with second, Batcher(outer) as first:
        assert await outcomes(*map(first.submit, range(5))) == [1, 2, 3, 4, 5]


async def test_a_cycle_through_two_batchers_is_ended_by_the_timeout() -> None:
    """Not detected, but not for ever either."""

    async def ping(items: list[int]) -> list[int]:
        return await second.submit_many(items)

    async def pong(items: list[int]) -> list[int]:
        return await first.submit_many(items)

    first: Batcher[int, int] = Batcher(ping, handler_timeout=5.0)
    second: Batcher[int, int] = Batcher(pong)
    error = await outcome(first.submit(1))
    assert isinstance(error, Exception)
    await first.aclose(drain_timeout=1.0)
    await second.aclose(drain_timeout=1.0)


# --- callbacks that raise ---------------------------------------------------------------------------------------


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


# --- coalesced callers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [(0,), (2,), (0, 1), (1, 2), (0, 2)], ids=str)
@pytest.mark.parametrize("phase", ["buffered", "in flight"])
async def test_a_cancelled_sharer_leaves_the_slot_to_the_others(
    gone: tuple[int, ...], phase: str
) -> None:
    """In aiodataloader, strawberry and dloader one cancelled caller cancels every sharer of its key."""
    handler = Gate()
    async with Batcher(handler, coalesce=str, max_wait=1.0) as batcher:
        scopes = [anyio.CancelScope() for _ in range(3)]
        results: dict[int, Any] = {}

        async def call(index: int) -> None:
            with scopes[index]:
                results[index] = await batcher.submit(7)

        async with anyio.create_task_group() as tasks:
            for index in range(3):
                tasks.start_soon(call, index)
                await turns()
            if phase == "in flight":
                await anyio.sleep(2)
            assert counted(batcher).pending == 1
            for index in gone:
                scopes[index].cancel()
            await turns()
            assert counted(batcher).pending == 1
            handler.opened.set()
        assert results == {index: 70 for index in range(3) if index not in gone}
    assert handler.batches == [[7]]


async def test_the_last_cancelled_sharer_withdraws_the_item() -> None:
    """Nobody waits for it any more; the key can be joined afresh."""
    handler = Recorder()
    async with Batcher(handler, coalesce=str, max_wait=1.0) as batcher:
        sharers = [batcher.submit_nowait(7) for _ in range(3)]
        other = batcher.submit_nowait(8)
        for left, sharer in zip((2, 2, 1), sharers, strict=True):
            sharer.cancel()
            await turns()
            assert counted(batcher).pending == left
        again = batcher.submit_nowait(7)
        assert counted(batcher).pending == 2
        assert [await again, await other] == [70, 80]
    assert handler.seen == {7: 1, 8: 1}


async def test_a_handler_is_abandoned_when_the_last_sharer_is_gone() -> None:
    """cancel_abandoned counts callers: one sharer left is a caller left."""
    handler = Recorder(seconds=50)
    async with Batcher(handler, coalesce=str, cancel_abandoned=True) as batcher:
        first, second = batcher.submit_nowait(7), batcher.submit_nowait(7)
        await anyio.sleep(1)
        first.cancel()
        await turns()
        assert handler.running == 1
        second.cancel()
        await turns()
        assert handler.running == 0
        assert counted(batcher).pending == 0


async def test_sharers_of_a_failure_get_a_copy_each() -> None:
    """One of them may add a note or raise it further."""
    handler = Recorder(fails={7})
    async with Batcher(handler, coalesce=str) as batcher:
        errors = await outcomes(*(batcher.submit(7) for _ in range(3)))
    assert [type(error) for error in errors] == [ValueError] * 3
    errors[0].add_note("mine")
    assert not hasattr(errors[1], "__notes__")
    assert len({id(error) for error in errors}) == 3
    assert handler.sizes == [1]


# --- full ------------------------------------------------------------------------------------------------------


async def test_a_full_batcher_rejects_and_recovers() -> None:
    """Rejected items are not counted, not handled and leave nothing behind."""
    handler = Gate()
    async with Batcher(handler, max_pending=3, on_full="reject", name="small") as batcher:
        held = [batcher.submit_nowait(item) for item in range(3)]
        for _ in range(100):
            with pytest.raises(BatcherFull) as caught:
                await batcher.submit(9)
        assert str(caught.value) == "batcher 'small' is full: max_pending=3 is reached"
        assert counted(batcher).pending == 3
        handler.opened.set()
        assert [await pending for pending in held] == [0, 10, 20]
        assert await batcher.submit(9) == 90
    assert handler.seen == {0: 1, 1: 1, 2: 1, 9: 1}
