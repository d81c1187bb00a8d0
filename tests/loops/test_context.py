"""context: a call in a context of its own."""

from __future__ import annotations

import contextvars
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support import outcome

from microbatch._loops.context import in_context

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


def nothing() -> None:
    """Be told that a call waits, and not care."""


async def work(steps: list[Any]) -> str:
    steps.append(variable.get())
    variable.set("the work's")
    await anyio.sleep(1)
    steps.append(variable.get())
    try:
        await anyio.sleep(10)
    except BaseException as error:
        steps.append((type(error) is anyio.get_cancelled_exc_class(), variable.get()))
        raise
    return "done"


async def test_a_call_in_a_context_sees_that_context_only() -> None:
    """From its first step to its last; what it sets there stays there."""
    base = contextvars.copy_context()
    base.run(variable.set, "the base's")
    variable.set("ours")
    steps: list[Any] = []
    assert await in_context(base, work, steps, nothing) == "done"
    assert steps == ["the base's", "the work's"]
    assert variable.get() == "ours"
    assert base[variable] == "the base's"
    steps.clear()
    assert await in_context(None, work, steps, nothing) == "done"
    assert steps == ["nothing", "the work's"]


async def test_who_asks_is_told_when_a_call_in_a_context_first_waits() -> None:
    """Once, before anything else runs; not at all of a call that answers at once."""
    told: list[str] = []

    async def call(waits: int) -> str:
        told.append("called")
        for _ in range(waits):
            await anyio.lowlevel.checkpoint()
            told.append("resumed")
        return "done"

    assert await in_context(None, call, 0, lambda: told.append("waits")) == "done"
    assert told == ["called"]
    told.clear()
    assert await in_context(None, call, 2, lambda: told.append("waits")) == "done"
    assert told == ["called", "waits", "resumed", "resumed"]


async def test_a_cancellation_reaches_the_call_in_its_context() -> None:
    """It cleans up where it was."""
    steps: list[Any] = []
    with anyio.move_on_after(5):
        await in_context(None, work, steps, nothing)
    assert steps == ["nothing", "the work's", (True, "the work's")]


async def test_what_a_call_in_a_context_raises_comes_through() -> None:
    """At once, or after a while; and from an awaitable that is no coroutine."""

    async def fail(later: bool) -> None:
        if later:
            await anyio.lowlevel.checkpoint()
        raise KeyError(later)

    for later in (False, True):
        error = await outcome(in_context(None, fail, later, nothing))
        assert type(error) is KeyError
        assert error.args == (later,)

    class Awaitable:
        def __await__(self) -> Any:
            yield from anyio.lowlevel.checkpoint().__await__()
            return variable.get()

    assert await in_context(None, lambda _: Awaitable(), None, nothing) == "nothing"


def test_a_call_in_a_context_is_closed_with_who_awaits_it() -> None:
    """A loop that ends closes its coroutines: theirs is closed too, in its context."""
    steps: list[Any] = []

    class Forever:
        def __await__(self) -> Any:
            yield "waiting"

    async def call(_: Any) -> None:
        variable.set("the work's")
        try:
            await Forever()
        finally:
            steps.append(variable.get())

    async def outer() -> None:
        await in_context(None, call, None, nothing)

    coroutine = outer()
    assert coroutine.send(None) == "waiting"
    coroutine.close()
    assert steps == ["the work's"]
    with pytest.raises(RuntimeError, match="cannot reuse"):
        coroutine.send(None)
