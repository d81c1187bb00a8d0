"""Waiters: a result, an exception or a cancellation for who awaits it, alike on every loop."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
from support import outcome, run, turns

from microbatch._loops.current import current_loop
from microbatch._loops.waiting import ThreadWaiter

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


def on_trio() -> bool:
    return sniffio.current_async_library() == "trio"


def make_waiter(kind: str, cancelled: list[Any]) -> Any:
    loop = current_loop()
    if kind == "plain":
        return loop.create_waiter()
    if kind == "watched":
        return loop.watched_waiter(cancelled.append)
    waiter = loop.create_waiter()
    loop.watch(waiter, cancelled.append)
    return waiter


kinds = pytest.mark.parametrize("kind", ["plain", "watched", "watched later"])


@kinds
async def test_a_waiter_hands_a_result_to_who_awaits_it(kind: str) -> None:
    """Whether it comes before or after the awaiting began."""
    cancelled: list[Any] = []
    early, late = make_waiter(kind, cancelled), make_waiter(kind, cancelled)
    assert not early.done()
    early.set_result(1)
    assert early.done()
    results: list[Any] = []

    async def wait(waiter: Any) -> None:
        results.append(await waiter)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, late)
        await turns()
        late.set_result(2)
        tasks.start_soon(wait, early)
    assert sorted(results) == [1, 2]
    assert not early.cancel()
    await turns()
    assert cancelled == []


@kinds
async def test_a_waiter_raises_an_exception_in_who_awaits_it(kind: str) -> None:
    """Before or after the awaiting began."""
    for early in (True, False):
        waiter = make_waiter(kind, [])
        error = KeyError("k")
        if early:
            waiter.set_exception(error)
            assert await outcome(waiter) is error
        else:
            found: list[Any] = []

            async def wait(waiter: Any = waiter, found: list[Any] = found) -> None:
                found.append(await outcome(waiter))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await turns()
                waiter.set_exception(error)
            assert found == [error]


@kinds
async def test_cancelling_the_awaiting_task_cancels_the_waiter(kind: str) -> None:
    """A waiter that is watched tells whose caller has gone."""
    cancelled: list[Any] = []
    waiter = make_waiter(kind, cancelled)
    with anyio.move_on_after(1):
        await waiter
    await turns()
    assert waiter.done()
    assert waiter.cancelled()
    assert cancelled == ([] if kind == "plain" else [waiter])
    assert not waiter.cancel()
    await turns()
    assert len(cancelled) <= 1


@kinds
async def test_a_waiter_can_be_cancelled_by_hand(kind: str) -> None:
    """`Pending.cancel`, with and without somebody who awaits it."""
    cancelled: list[Any] = []
    waiter = make_waiter(kind, cancelled)
    assert waiter.cancel()
    assert not waiter.cancel()
    await turns()
    assert cancelled == ([] if kind == "plain" else [waiter])

    awaited = make_waiter(kind, [])
    ended: list[Any] = []

    async def wait() -> None:
        try:
            await awaited
        except BaseException as error:
            ended.append(type(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await turns()
        assert awaited.cancel()
    assert ended == [RuntimeError if on_trio() else asyncio.CancelledError]


async def test_a_watched_waiter_tells_of_its_cancellation_there_and_then() -> None:
    """Counts are exact at every moment; asyncio by itself would tell one turn later."""
    cancelled: list[Any] = []
    waiter = current_loop().watched_waiter(cancelled.append)
    waiter.cancel()
    assert cancelled == [waiter]
    done = current_loop().watched_waiter(cancelled.append)
    done.set_result(1)
    assert not done.cancel()
    assert len(cancelled) == 1


async def test_what_has_no_future_inside_is_watched_by_attribute() -> None:
    """A blocked thread's waiter is no future of the loop."""
    waiter = ThreadWaiter()
    current_loop().watch(waiter, print)
    assert waiter.on_cancel is print


def test_a_trio_waiter_has_one_awaiter() -> None:
    """A second task would wake no more."""

    async def main() -> None:
        waiter = current_loop().create_waiter()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome, waiter)
            await turns()
            with pytest.raises(RuntimeError, match="another task awaits it already"):
                await waiter
            waiter.set_result(1)

    run("trio", main)


def test_a_trio_waiter_ends_once() -> None:
    """The first outcome stands, as a future's does; a cancelled one says so; an error is raised once."""

    async def main() -> None:
        loop = current_loop()
        waiter = loop.create_waiter()
        waiter.set_result(1)
        waiter.set_result(2)
        waiter.set_exception(KeyError())
        assert await waiter == 1
        assert await waiter == 1
        assert not waiter.cancelled()
        failed = loop.create_waiter()
        failed.set_exception(KeyError("k"))
        assert type(await outcome(failed)) is KeyError
        with pytest.raises(RuntimeError, match="exception was raised already"):
            await failed
        gone = loop.create_waiter()
        gone.cancel()
        with pytest.raises(RuntimeError, match="this Pending was cancelled"):
            await gone

    run("trio", main)


def test_a_trio_waiters_unseen_exception_is_logged_once(caplog: Any) -> None:
    """As asyncio does for a future: a failure must not end in silence."""

    async def main() -> None:
        loop = current_loop()
        unseen, seen, good = (loop.create_waiter() for _ in range(3))
        unseen.set_exception(KeyError("lost"))
        seen.set_exception(KeyError("seen"))
        good.set_result(1)
        await outcome(seen)

    with caplog.at_level(logging.ERROR):
        run("trio", main)
        gc.collect()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["exception of a Pending was never retrieved"]
    assert caplog.records[0].name == "microbatch"
    assert "lost" in caplog.text


def test_a_trio_waiter_is_made_in_its_own_run_only() -> None:
    """Another run's scheduler could not wake it."""
    loops: list[Any] = []

    async def first() -> None:
        loops.append(current_loop())

    async def second() -> None:
        with pytest.raises(RuntimeError, match="serves another run of trio"):
            loops[0].create_waiter()

    run("trio", first)
    run("trio", second)
