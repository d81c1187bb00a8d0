"""calling: plain functions in threads, whose end is told however they end."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from support import outcome

from microbatch._loops.calling import call_in_thread


def plain(items: list[Any]) -> list[Any]:
    return items


@pytest.mark.anyio
@pytest.mark.real_time
async def test_a_plain_handler_that_returns_an_awaitable_is_awaited_in_the_loop() -> None:
    """A lambda around a coroutine function is no coroutine function."""
    seen: list[bool] = []

    async def inside(items: list[Any]) -> list[Any]:
        seen.append(threading.current_thread() is threading.main_thread())
        return items

    assert await call_in_thread(inside, [1]) == [1]
    assert seen == [True]


@pytest.mark.anyio
@pytest.mark.real_time
async def test_the_end_of_a_thread_is_told_however_it_ends() -> None:
    """Stuck threads are counted by it."""
    ended: list[str] = []
    assert await call_in_thread(plain, [1], lambda: ended.append("returned")) == [1]
    error = await outcome(
        call_in_thread(lambda _: 1 / 0, [1], lambda: ended.append("raised"))  # type: ignore[arg-type,return-value]
    )
    assert type(error) is ZeroDivisionError
    assert ended == ["returned", "raised"]


@pytest.mark.anyio
@pytest.mark.real_time
async def test_a_call_that_was_given_up_before_its_thread_began_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would count as a stuck thread for ever, and nine of them end all work."""
    called: list[Any] = []
    ended: list[str] = []
    late: list[Any] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call_in_thread(called.append, [1], lambda: ended.append("given up"))
    assert (called, ended) == ([], ["given up"])

    async def run_sync(work: Any, **_: Any) -> None:
        late.append(work)
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_sync)
    with anyio.move_on_after(0.01):
        await call_in_thread(called.append, [1], lambda: ended.append("again"))
    with anyio.move_on_after(0.01):
        await call_in_thread(called.append, [1])
    assert [work() for work in late] == [[], []]  # a thread takes it up after all
    assert (called, ended) == ([], ["given up", "again"])


@pytest.mark.anyio
@pytest.mark.real_time
async def test_handlers_threads_take_no_token_of_anyios_default_limiter() -> None:
    """Sync web endpoints hold those while they wait for a batch."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    async with anyio.create_task_group() as tasks:
        hold = threading.Event()
        for _ in range(int(limiter.total_tokens)):
            tasks.start_soon(anyio.to_thread.run_sync, hold.wait)
        await anyio.wait_all_tasks_blocked()
        try:
            assert limiter.available_tokens == 0
            with anyio.fail_after(60):
                assert await call_in_thread(plain, [1]) == [1]
        finally:
            hold.set()
