"""Which event loop a batcher serves: the first one that calls, until it has ended."""

from __future__ import annotations

import logging
from contextvars import copy_context
from typing import TYPE_CHECKING

from microbatch._loops.current import current_loop
from microbatch._pure.exceptions import BatcherClosed
from microbatch._telemetry.log import write

from .life import OPEN

if TYPE_CHECKING:
    from microbatch._loops.protocol import Loop

    from .backoff import Backoffs
    from .dispatcher import Dispatcher
    from .door import Door
    from .holding import Holder
    from .life import Life
    from .room import Room
    from .rules import Rules
    from .settler import Settler
    from .tally import Tally


class Serving:
    """Binds all parts of a batcher to one event loop at a time.

    Attributes:
        loop: The event loop that is served; None before the first call.
    """

    __slots__ = (
        "_backoffs",
        "_dispatcher",
        "_door",
        "_entered",
        "_holding",
        "_life",
        "_room",
        "_rules",
        "_settler",
        "_tally",
        "loop",
    )

    def __init__(
        self,
        rules: Rules,
        *,
        door: Door,
        tally: Tally,
        life: Life,
        backoffs: Backoffs,
        room: Room,
        settler: Settler,
        holding: Holder | None,
        dispatcher: Dispatcher,
    ) -> None:
        self._rules = rules
        self._door = door
        self._tally = tally
        self._life = life
        self._backoffs = backoffs
        self._room = room
        self._settler = settler
        self._holding = holding
        self._dispatcher = dispatcher
        self._entered = False
        self.loop: Loop | None = None

    def bind(self) -> Loop:
        """Make sure that the running event loop is the one that is served, and return it.

        Raises:
            RuntimeError: If none runs, or another one is served that is still alive.
        """
        loop = self.loop
        if loop is None or not loop.is_current():
            current = current_loop()
            if loop is not None:
                if not loop.has_ended():
                    raise RuntimeError(
                        f"batcher {self._rules.name!r} serves another event loop that is still alive: "
                        "make one batcher for each event loop"
                    )
                self.lose_loop()
            self.loop = loop = current
            self._life.begin()
            self._backoffs.open = True
            self._door.native = current.native
            self._door.create_waiter = current.create_waiter
            self._settler.now = current.now
            if self._holding is not None:
                self._holding.now = current.now
            self._room.bind(current)
            self._dispatcher.bind(current)
            self._room.observe()
        return loop

    def lose_loop(self) -> None:
        """Say what was lost with an event loop that has ended, and serve none."""
        lost = self.pending()
        if lost:
            write(
                logging.WARNING,
                "batcher %r: %d items ended with their event loop, unhandled or cut short",
                self._rules.name,
                lost,
            )
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone, or to the process that forked this one."""
        self.loop = None
        self._entered = False
        self._door.close()
        self._tally.forget()
        self._backoffs.forget()
        self._room.forget()
        self._dispatcher.forget()
        self._life.forget()

    def enter_block(self) -> None:
        """Begin an ``async with``: batches run in copies of this context from now on.

        Raises:
            BatcherClosed: If the batcher is closed.
            RuntimeError: If one is under way, or another event loop is served that is still alive.
        """
        self.bind()
        self.check_open()
        if self._entered:
            raise RuntimeError(
                f"batcher {self._rules.name!r} was entered already: whoever leaves first would close it for "
                "the other, so enter it once, around all that use it"
            )
        self._entered = True
        self._dispatcher.context = copy_context()

    def check_open(self) -> None:
        """Refuse what comes after the end.

        Raises:
            BatcherClosed: If the batcher is closed, or about to be.
        """
        if self._life.phase is not OPEN:
            raise BatcherClosed(self._rules.name)

    def serves(self, loop: Loop) -> bool:
        """Tell whether an event loop is still the one that is served: what it left behind is nobody's."""
        return loop is self.loop and (loop.is_current() or not loop.has_ended())

    def pending(self) -> int:
        """Return how many items were accepted and are not resolved."""
        return self._room.buffered() + self._tally.flying + self._tally.backing_off
