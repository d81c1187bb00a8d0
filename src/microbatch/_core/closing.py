"""Closing: nobody comes in any more, what is there goes to its end, or ends at once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from microbatch._pure.exceptions import BatcherClosed
from microbatch._telemetry.kinds import CANCELLED, CLOSED
from microbatch._telemetry.log import write

from .life import CLOSING, OPEN, Phase
from .settler import note_attempts

if TYPE_CHECKING:
    from microbatch._telemetry.observer import Observer

    from .admission import Admission
    from .backoff import Backoffs
    from .dispatcher import Dispatcher
    from .door import Door
    from .life import Life
    from .room import Room
    from .rules import Rules

#: Seconds that closing at once waits for cancelled handlers to end: enough for a rollback, and a bound.
CLOSE_GRACE = 5.0


class Closing:
    """Brings a batcher to its end."""

    __slots__ = (
        "_admission",
        "_backoffs",
        "_dispatcher",
        "_door",
        "_life",
        "_observer",
        "_room",
        "_rules",
    )

    def __init__(
        self,
        rules: Rules,
        *,
        door: Door,
        life: Life,
        backoffs: Backoffs,
        room: Room,
        admission: Admission,
        dispatcher: Dispatcher,
        observer: Observer | None,
    ) -> None:
        self._rules = rules
        self._door = door
        self._life = life
        self._backoffs = backoffs
        self._room = room
        self._admission = admission
        self._dispatcher = dispatcher
        self._observer = observer

    async def close(self, seconds: float | None) -> None:
        """Finish what is pending for so many seconds, end the rest at once, and be closed."""
        try:
            if seconds != 0:
                drained = self._start()
                with anyio.move_on_after(seconds):
                    await drained.wait()
        finally:
            await self._finish()
        fatal, self._dispatcher.fatal = self._dispatcher.fatal, None
        if fatal is not None:
            raise fatal

    def _start(self) -> anyio.Event:
        """Let nobody in any more and send off what is there; return what tells that all is done."""
        life, room, dispatcher = self._life, self._room, self._dispatcher
        if life.drained is None:
            life.drained = anyio.Event()
        if life.phase is OPEN:
            life.become(CLOSING)
            self._door.fifo = None
            self._admission.close()
            if room.fifo is not None:
                room.fifo.closing = True
            else:
                room.ranked.closing = True
                room.ranked.flush(None, room.now())
            dispatcher.resume()
        dispatcher.check_idle()
        return life.drained

    async def _finish(self) -> None:
        """End what is left, wait within bounds for the handlers' tasks, and be closed."""
        life, dispatcher = self._life, self._dispatcher
        self._admission.close()
        dropped = self._drop()
        if self._observer is not None:
            self._observer.close(self._room)
        if dropped:
            write(
                logging.WARNING,
                "batcher %r: closed while %d items were pending",
                self._rules.name,
                dropped,
            )
        if dispatcher.slots.held:
            if life.quiet is None:
                life.quiet = anyio.Event()
            with anyio.move_on_after(CLOSE_GRACE, shield=True):
                await life.quiet.wait()

    def _drop(self) -> int:
        """End every caller there and then; return how many there were."""
        name, room, dispatcher = self._rules.name, self._room, self._dispatcher
        self._life.become(Phase.CLOSED)
        self._backoffs.open = False
        self._door.fifo = None
        dispatcher.timer.stop()
        dropped = 0
        for waiter, attempts in room.clear():
            gone = waiter.done()  # cancelled, and its notice is still on the way
            room.tell_refused(CANCELLED if gone else CLOSED)
            if not gone:
                dropped += 1
                note_attempts(waiter, attempts)
                waiter.set_exception(BatcherClosed(name, started=attempts > 0))
        for run in [slot.run for slot in dispatcher.slots.held if slot.run is not None]:
            dropped += run.left
            dispatcher.giving_up.give_up(run, lambda: BatcherClosed(name, started=True))
        dispatcher.check_idle()
        return dropped
