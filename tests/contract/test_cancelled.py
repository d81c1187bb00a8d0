"""Callers that are cancelled, at any moment and in any place: nobody else is harmed, the counts stay exact."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import Gate, Recorder, counted, outcome, outcomes, tasks_alive, turns

from microbatch import Backoff, Batcher, Retry

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


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
