"""A coroutine stepped in a context of its own."""

from __future__ import annotations

import contextvars
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator


@types.coroutine
def in_context(
    base: contextvars.Context | None,
    function: Callable[[Any], Awaitable[Any]],
    argument: Any,
    on_wait: Callable[[], object],
) -> Generator[Any, Any, Any]:
    """Await ``function(argument)`` in a fresh copy of a context, an empty one if base is None.

    A task has one context for life, so this steps the coroutine by hand. A new task for every batch
    would do too, and costs 15,000 instructions more. When it first has to wait, ``on_wait`` is called.
    """
    context = contextvars.Context() if base is None else base.copy()
    run = context.run
    steps: Any = run(function, argument)
    send = getattr(steps, "send", None)
    if send is None:  # no coroutine
        steps = run(steps.__await__)
        send = steps.send
    try:
        yielded = run(send, None)
        on_wait()
        while True:
            try:
                sent = yield yielded
            except GeneratorExit:
                run(steps.close)
                raise
            except BaseException as error:  # noqa: BLE001 - the coroutine's to handle
                yielded = run(steps.throw, error)
            else:
                yielded = run(send, sent)
    except StopIteration as stop:
        return stop.value
    finally:
        # From 3.12 on a finished frame keeps the one before it: what came through here would close a ring.
        sent = yielded = None
