"""One handler call, by what the handler is: a scope around it, a generator, a worker thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._loops.calling import call_in_thread
from microbatch._pure import checks
from microbatch._pure.exceptions import ResultCountError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .run import Run
    from .settler import Settler


async def in_scope(run: Run, call: Awaitable[Any]) -> Any:
    """Await a call that may be cancelled, so that its shielded parts are respected on asyncio too.

    Not for every call: a scope costs more than all the rest of a batch.
    """
    with anyio.CancelScope() as run.scope:
        return await call
    return None  # cancelled: nobody waits for what it would have returned


def in_thread(run: Run, handler: Callable[[list[Any]], Any]) -> Awaitable[Any]:
    """Call a plain handler in a worker thread."""
    run.threads = 1
    return call_in_thread(handler, run.items, partial(setattr, run, "threads", 0))


async def iterate(
    run: Run,
    handler: Callable[[list[Any]], Any],
    name: str,
    settler: Settler,
    told: Callable[[Run], None],
) -> None:
    """Run a generator handler: each (index, result) that it yields is an outcome at once.

    ``told`` is called after each.
    """
    generator = handler(run.items)
    size = run.size
    problem = ""
    try:
        async for pair in generator:
            if run.ended:  # given up, and it went on all the same
                return
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise TypeError(
                    f"the generator handler of batcher {name!r} must yield (index, result) pairs, "
                    f"got {pair!r}"
                )
            index, result = pair
            if isinstance(index, bool) or not isinstance(index, int):
                raise TypeError(
                    f"the generator handler of batcher {name!r} must yield int indices, got {index!r}"
                )
            if not 0 <= index < size:
                problem = f"index {index} is out of range"
            elif run.waiters[index] is None or index in run.promised:
                problem = f"index {index} came twice"
            if problem:
                raise ResultCountError(size, size - run.left, problem, name)
            if checks.is_awaitable(type(result)):
                whose = f"the generator handler of batcher {name!r}"
                checks.refuse_awaitable(f"{whose} must yield results, but {index}'s", result)
            settler.settle(run, index, result)
            told(run)
        missing = [i for i, waiter in enumerate(run.waiters) if waiter is not None]
        if missing:
            raise ResultCountError(size, size - run.left, f"index {missing[0]} never came", name)
    except Exception as error:  # noqa: BLE001 - callers must not wait for the generator to close
        settler.fail_waiters(run, error)
    finally:
        await generator.aclose()
