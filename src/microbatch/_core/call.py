"""One handler call, by what the handler is: a scope around it, a generator, a worker thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._loops.calling import call_in_thread
from microbatch._pure import checks
from microbatch._pure.exceptions import ResultCountError

from . import info

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microbatch._loops.protocol import Loop
    from microbatch._telemetry.observer import Observer

    from .giving_up import GivingUp
    from .room import Room
    from .rules import Rules
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


class Call:
    """Makes handler calls, each in its batch's own context.

    Args:
        rules: The settings: the handler, and what it is.
        room: Where it is seen whether anybody records.
        settler: Gives the items of a generator their outcomes.
        giving_up: Ends calls that take too long.
        prepare: Called before the handler is.
        observer: Tells of each call; None tells nobody.
        changed: Called when an item of a generator has its outcome.
    """

    __slots__ = (
        "_changed",
        "_giving_up",
        "_handler",
        "_handler_timeout",
        "_kind",
        "_loop",
        "_name",
        "_now",
        "_observer",
        "_prepare",
        "_room",
        "_scoped",
        "_settler",
    )

    def __init__(
        self,
        rules: Rules,
        *,
        room: Room,
        settler: Settler,
        giving_up: GivingUp,
        prepare: Callable[[Run], None] | None,
        observer: Observer | None,
        changed: Callable[[], None],
    ) -> None:
        # What every batch reads, once more: a look at the rules each time would cost a batch of one 1 %.
        self._name = rules.name
        self._handler = rules.handler
        self._handler_timeout = rules.handler_timeout
        self._kind = rules.kind
        self._scoped = rules.scoped
        self._room = room
        self._settler = settler
        self._giving_up = giving_up
        self._prepare = prepare
        self._observer = observer
        self._changed = changed
        self._loop: Loop
        self._now: Callable[[], float]

    def bind(self, loop: Loop) -> None:
        """Serve an event loop."""
        self._loop = loop
        self._now = loop.now

    def begin(self, run: Run) -> Any:
        """Begin the handler call; runs in the batch's own context."""
        run.outer = info.running()
        info.enter(run)
        if self._prepare is not None:
            self._prepare(run)
        observer = self._observer
        if observer is not None:
            if run.started >= observer.observe_at:
                self._room.observe()
            if observer.recorder is not None:
                observer.begin(run)
        if self._giving_up.stuck:
            self._giving_up.check(run, self._now())
        if self._handler_timeout is not None:
            run.timer = self._loop.call_at(
                run.started + self._handler_timeout, partial(self._giving_up.expire, run)
            )
        if self._kind == "async":
            call = self._handler(run.items)
        elif self._kind == "generator":
            call = iterate(run, self._handler, self._name, self._settler, self._told)
        else:
            call = in_thread(run, self._handler)
        return in_scope(run, call) if self._scoped else call

    def _told(self, run: Run) -> None:
        """An item of a generator has its outcome: it has left room, or is in back-off."""
        if self._room.lanes is not None:
            self._giving_up.cancel_if_abandoned(run)
            self._changed()
