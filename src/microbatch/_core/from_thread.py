"""A submit from another thread than the loop's: it blocks until the result is there."""

from __future__ import annotations

import contextlib
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from microbatch._loops.waiting import ThreadWaiter, end_item
from microbatch._pure import checks
from microbatch._pure.exceptions import BatcherClosed

from .life import CLOSED

if TYPE_CHECKING:
    from .engine import Engine

#: Seconds after which a blocked thread probes whether its event loop still lives.
_PROBE_INTERVAL = 0.5


def submit_from_thread(engine: Engine, item: Any, timeout: float | None) -> Any:
    """Hand in one item and block; `Batcher.submit_from_thread` says what it raises."""
    if timeout is not None:
        checks.number("timeout", timeout, minimum=0)
    engine.guard("submit_from_thread")
    name, loop = engine.rules.name, engine.serving.loop
    if loop is not None and loop.is_current():
        raise RuntimeError(
            f"submit_from_thread() would block the event loop of batcher {name!r}: await submit() instead"
        )
    if engine.life.phase is CLOSED:
        raise BatcherClosed(name)
    if loop is None or loop.has_ended():
        raise RuntimeError(
            f"batcher {name!r} serves no event loop: "
            "submit_from_thread() needs one, so open it with `async with` there first"
        )
    waiter = ThreadWaiter()
    context = copy_context()

    def enter() -> None:
        if waiter.done():  # timed out before the loop had a turn
            return
        try:
            context.run(engine.entrance.enter_from_thread, item, waiter)
        except Exception as error:  # noqa: BLE001 - the calling thread's to raise
            waiter.set_exception(error)

    def withdraw() -> None:
        end_item(waiter, None, cancelled=True)
        if waiter.on_cancel is not None:
            waiter.on_cancel(waiter)

    try:
        loop.call_from_thread(enter)
    except RuntimeError:
        raise BatcherClosed(name) from None
    ends = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _PROBE_INTERVAL if ends is None else max(0.0, ends - time.monotonic())
        if waiter.wait(min(left, _PROBE_INTERVAL)):
            return waiter.result()
        if ends is not None and time.monotonic() >= ends and waiter.cancel():
            with contextlib.suppress(RuntimeError):  # the loop has ended: nothing to withdraw from
                loop.call_from_thread(withdraw)
            raise TimeoutError(f"batcher {name!r} gave no result within timeout={timeout} s")
        if loop.has_ended() and waiter.cancel():
            raise BatcherClosed(name, started=True)
