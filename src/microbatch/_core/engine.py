"""The wiring: what a batcher is made of, and what reaches several of its parts."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._pure.exceptions import WouldDeadlock

from . import info
from .admission import Admission
from .backoff import Backoffs
from .closing import Closing
from .dispatcher import Dispatcher
from .door import Door
from .entrance import Entrance
from .flushes import Mark
from .holding import Holding
from .leaving import Leaving
from .life import Life
from .room import Room
from .serving import Serving
from .settler import Settler
from .sizing import Sizing
from .tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._telemetry.observer import Observer

    from .holding import Holder
    from .rules import Rules
    from .run import Run

_everyone: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_everything() -> None:
    for engine in list(_everyone):
        engine.serving.forget()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_everything)


class Engine:
    """A batcher without its face. All of it runs in the thread of the event loop that it serves.

    Args:
        rules: The settings.
        prepare: Called in each batch's context before its handler is: the durable mode makes the
            handler's items of its own there.
        observer: Tells telemetry and the log; None for neither.
        holding: Takes back what a backend refused, where ``retry`` of the rules does not.

    Attributes:
        rules, door, tally, life, room, dispatcher, serving, entrance: Its parts that others ask.
    """

    __slots__ = (
        "__weakref__",
        "_closing",
        "_leaving",
        "dispatcher",
        "door",
        "entrance",
        "life",
        "room",
        "rules",
        "serving",
        "tally",
    )

    def __init__(
        self,
        rules: Rules,
        *,
        prepare: Callable[[Run], None] | None = None,
        observer: Observer | None = None,
        holding: Holder | None = None,
    ) -> None:
        self.rules: Rules = rules
        self.life: Life = Life()
        self.door: Door = Door()
        self.tally: Tally = Tally()
        sizing = Sizing(rules)
        backoffs = Backoffs(rules, self.tally)
        self.room: Room = Room(
            rules,
            door=self.door,
            tally=self.tally,
            backoffs=backoffs,
            sizing=sizing,
            observer=observer,
        )
        admission = Admission(rules, self.room, sizing)
        if rules.retry is not None:
            holding = Holding(rules.name, rules.retry, self.room, backoffs)
        settler = Settler(rules, self.tally, backoffs, holding=holding, observer=observer)
        self.dispatcher: Dispatcher = Dispatcher(
            rules,
            door=self.door,
            tally=self.tally,
            backoffs=backoffs,
            room=self.room,
            admission=admission,
            settler=settler,
            sizing=sizing,
            life=self.life,
            prepare=prepare,
            observer=observer,
        )
        self._closing = Closing(
            rules,
            door=self.door,
            life=self.life,
            backoffs=backoffs,
            room=self.room,
            admission=admission,
            dispatcher=self.dispatcher,
            observer=observer,
        )
        self.serving: Serving = Serving(
            rules,
            door=self.door,
            tally=self.tally,
            life=self.life,
            backoffs=backoffs,
            room=self.room,
            settler=settler,
            holding=holding,
            dispatcher=self.dispatcher,
        )
        self._leaving = Leaving(self.serving, self.room, admission, self.dispatcher)
        self.entrance: Entrance = Entrance(
            rules,
            door=self.door,
            life=self.life,
            room=self.room,
            admission=admission,
            dispatcher=self.dispatcher,
            serving=self.serving,
            leaving=self._leaving,
            observer=observer,
        )
        _everyone.add(self)

    def guard(self, call: str) -> None:
        """Refuse to wait inside a running batch of this very batcher.

        Raises:
            WouldDeadlock: If this is one.
        """
        run = info.running()
        while run is not None:
            if run.owner is self.dispatcher and not run.ended:
                raise WouldDeadlock(self.rules.name, call)
            run = run.outer

    def unfold(self, run: Run, items: list[Any], group: Any) -> None:
        """Make of a run of one item that stands for many a run of these: for ``prepare``.

        Args:
            run: A run of one.
            items: What the handler gets.
            group: Takes their outcomes, as a `Group` does.
        """
        count = len(items)
        self.tally.flying += count - run.size
        run.items, run.size, run.left = items, count, count
        run.waiters = [group] * count
        run.group, run.first, run.uniform = group, 0, True

    def is_stuck(self) -> bool:
        """Tell whether so many handlers went on after they were given up that new batches are refused."""
        loop = self.serving.loop
        return loop is not None and self.dispatcher.giving_up.is_stuck(loop.now())

    def sweep(self) -> None:
        """Drop the items of callers who were cancelled without notice yet."""
        if self.room.sweep():
            self.dispatcher.changed()

    async def flush(self) -> None:
        """Send what is buffered now and return when it is resolved."""
        done = anyio.Event()
        mark = Mark(done.set)
        mark.left = 1  # until all are counted
        loop, room = self.serving.bind(), self.room
        if room.fifo is not None:
            room.fifo.flush(mark)
            self._leaving.watch_flushes(loop)
        else:
            room.ranked.flush(mark, room.now())
        self.dispatcher.resume()
        mark.release()
        await done.wait()

    async def aclose(self, seconds: float | None) -> None:
        """Close: finish what is pending for so many seconds, then end the rest at once."""
        self.serving.bind()
        await self._closing.close(seconds)
