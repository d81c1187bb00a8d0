"""Slots, the tasks that hold them, and the handler calls that they make."""

from __future__ import annotations

import contextvars
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._loops.context import in_context
from microbatch._pure.handler import FATAL, find, received
from microbatch._telemetry.log import write

from .books import Books
from .call import Call
from .early import Early
from .giving_up import GivingUp
from .life import OPEN
from .rules import TURN
from .slots import Slot, Slots
from .timer import Timer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microbatch._loops.protocol import Loop
    from microbatch._telemetry.hook import Hook
    from microbatch._telemetry.observer import Observer

    from .admission import Admission
    from .backoff import Backoffs
    from .door import Door
    from .life import Life
    from .room import Room
    from .rules import Rules
    from .run import Run
    from .settler import Settler
    from .sizing import Sizing
    from .tally import Tally

#: Seconds without a new batch after somebody else cancelled a task of ours, if nothing else happens.
PAUSE = 0.1


class Dispatcher:
    """Runs batches, as many at a time as there are slots.

    Attributes:
        slots: Who holds one.
        timer: Rings when something is due.
        books: Where runs end.
        giving_up: Ends them before their time.
        resolve: ``BatchInfo.resolve``, of each run's owner.
        paused: True after somebody else cancelled a task of ours: the loop may be ending.
        context: What batches run in copies of; None for empty ones.
        fatal: What a handler raised for the whole program, where the loop did not take it.
    """

    __slots__ = (
        "_admission",
        "_backoffs",
        "_breathe",
        "_door",
        "_life",
        "_loop",
        "_max_concurrency",
        "_max_wait",
        "_now",
        "_pace",
        "_room",
        "_rules",
        "_settler",
        "_sizing",
        "_started",
        "_tally",
        "begin",
        "books",
        "call",
        "context",
        "early",
        "fatal",
        "giving_up",
        "name",
        "paused",
        "resolve",
        "slots",
        "timer",
    )

    def __init__(
        self,
        rules: Rules,
        *,
        door: Door,
        tally: Tally,
        backoffs: Backoffs,
        room: Room,
        admission: Admission,
        settler: Settler,
        sizing: Sizing,
        life: Life,
        prepare: Callable[[Run], None] | None,
        observer: Observer | None,
    ) -> None:
        self._rules = rules
        # What every batch reads, once more: a look at the rules each time would cost a batch of one 1 %.
        self.name: str = rules.name
        self._max_concurrency = rules.max_concurrency
        self._max_wait = rules.max_wait
        self._pace = rules.pace
        self._door = door
        self._tally = tally
        self._backoffs = backoffs
        self._room = room
        self._admission = admission
        self._settler = settler
        self._sizing = sizing
        self._life = life
        hook = None if observer is None else observer.hook
        self.slots: Slots = Slots()
        self.timer: Timer = Timer(self._ring)
        self.books: Books = Books(
            door=door,
            tally=tally,
            room=room,
            settler=settler,
            sizing=sizing,
            observer=observer,
            changed=self.changed,
            hooked=None if hook is None else partial(self._tell, hook),
        )
        self.giving_up: GivingUp = GivingUp(rules, self.slots, settler, self.books, self.changed)
        self.call: Call = Call(
            rules,
            room=room,
            settler=settler,
            giving_up=self.giving_up,
            prepare=prepare,
            observer=observer,
            changed=self.changed,
        )
        self.begin: Callable[[Run], Any] = self.call.begin
        self.early: Early = Early(rules.name, settler, self.giving_up, self.changed)
        self.resolve: Callable[[Run, int, Any, int], None] = self.early.resolve
        self._now: Callable[[], float]
        self._breathe: Callable[[], Awaitable[None]]
        self._started: Callable[[], Awaitable[None]]
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone."""
        self._loop: Loop | None = None
        self.context: contextvars.Context | None = None
        self.fatal: BaseException | None = None
        self.paused: bool = False
        self.slots.forget()
        self.timer.forget()
        self.books.forget()
        self.giving_up.forget()
        self.early.bind(None)

    def bind(self, loop: Loop) -> None:
        """Serve an event loop."""
        self._loop = loop
        self._now = loop.now
        self._breathe = loop.breathe
        self._started = loop.started
        self.timer.bind(loop)
        self.books.bind(loop)
        self.call.bind(loop)
        self.early.bind(loop)

    # Starting

    def changed(self) -> None:
        """Something left: let others in, start what is ready, see whether all is done."""
        room = self._room
        if room.line:
            self._admission.admit()
        room.simplify()
        self.pump()
        if self._life.phase is not OPEN:
            self.check_idle()

    def resume(self) -> None:
        """Go on: somebody cancelled a task of ours, and the loop did not end after all."""
        self.paused = False
        self.pump()

    def pump(self, now: float | None = None, most: int = 1) -> None:
        """If a batch is ready and a slot is free, see that so many tasks are about to start; set the timer.

        One is enough: should its handler have to wait, it starts the others beside it (`_pump_more`).
        """
        if self._loop is None or self.paused:
            return
        room = self._room
        buffer: Any = room.fifo
        when: float | None = None
        if buffer is not None and not self._max_wait:
            ready = buffer.ready(0.0)
        else:
            now = self._now() if now is None else now
            if buffer is None:
                buffer = room.ranked
                room.press()
            ready = buffer.ready(now)
            when = buffer.deadline()
            if when is not None and when <= now:
                when = None
        ready, slots = min(ready, most), self.slots
        while slots.starting < ready and slots.busy < self._max_concurrency:
            self.start()
        if self._backoffs:
            due = self._backoffs.deadline()
            if when is None or due < when:  # type: ignore[operator]
                when = due
        if when is not None:
            self.timer.at_latest(when)

    def start(self) -> None:
        """Take a slot, and start a task that will cut a batch when it has its turn."""
        slots, slot = self.slots, Slot()
        slots.busy += 1
        slots.starting += 1
        slots.held.add(slot)
        slot.task = self._loop.spawn(self._work, slot, self.name)  # type: ignore[union-attr]

    def _ring(self, now: float) -> None:
        """The timer: something is due."""
        self.paused = False
        for entry in self._backoffs.due(now):
            self._room.ranked.add(entry, now, self._room.call_back(entry))
        self.pump(now)

    # A slot's task

    async def _work(self, slot: Slot) -> None:
        """Hold a slot for one batch after the other, as long as one is ready."""
        forced = True
        try:
            await self._started()
            while (run := self._cut(slot)) is not None:
                try:
                    returned = await in_context(self.context, self.begin, run, self._pump_more)
                    results, mixed = received(returned, run.size, self.name)
                except Exception as error:  # noqa: BLE001 - the handler's: every caller gets it
                    self.books.fail(run, error)
                    if not run.cancelled and self._is_cancelled(slot):
                        return  # the handler made another error of its cancellation
                except BaseException as error:  # noqa: BLE001 - what must be raised on, is
                    if (ending := self._crash(run, slot, error)) is not None:
                        raise ending from ending.__cause__
                else:
                    self._settler.deliver(run, results, mixed=mixed)
                    if self._sizing.adaptive is not None:
                        self.books.learn(run)
                    self.books.close(run)
                    del returned, results
                slot.run = run.slot = None
                if run.cancelled:
                    self.giving_up.part(run)
                    break
                if not self._keep(slot):
                    break
                if slot.starting:
                    await self._breathe()
            forced = False
        finally:
            self._vacate(slot, forced=forced)

    def _cut(self, slot: Slot) -> Run | None:
        """Take the next batch out of the buffer into a slot; None if there is none."""
        if slot.starting:
            slot.starting = False
            self.slots.starting -= 1
        now = self._now()
        room, door, tally = self._room, self._door, self._tally
        fifo = room.fifo
        buffer: Any = fifo
        if fifo is None:
            buffer = room.ranked
            room.press()
        run: Run | None = buffer.cut(now)
        if buffer.withdrawn:
            room.tell_withdrawn(buffer)
        if run is None:
            door.fifo = None  # we end: the next item must wake another task
            if fifo is None:
                self.changed()  # whoever was found gone has left room
            return None
        slot.run = run
        run.owner = self
        run.slot = slot
        run.started = now
        tally.waits.append(now - run.since)
        tally.flying += run.size
        door.running += 1
        if fifo is None:
            tally.flying_weight += run.weight
            self.changed()
            return run
        if self._max_wait or not fifo.items:
            door.fifo = None  # the next item asks, and wakes us
        return run

    def _pump_more(self) -> None:
        """A handler has begun to wait: others may run beside it.

        Not before: batches whose handler answers without waiting follow one another in one task, which
        saves a task for each. (Lanes let a second one start at the cut, where they see who else may come.)
        """
        fifo = self._room.fifo
        if (fifo is None or fifo.items) and self.slots.busy < self._max_concurrency:
            self.pump(most=self._pace)

    def _keep(self, slot: Slot) -> bool:
        """Keep the slot for the next batch if one is ready and it is still ours; tell whether.

        A full one may follow at once. Before one that can still grow, and after so many items, the loop
        has its turn: everybody who is runnable may join.
        """
        fifo, starting = self._room.fifo, self.slots.starting
        if (fifo is not None and not fifo.items) or starting >= self._pace or not slot.held:
            return False
        buffer: Any = fifo if fifo is not None else self._room.ranked
        # Without a wait whatever there is makes a batch, so nothing needs to be counted for the first.
        if (starting or self._max_wait or fifo is None) and starting >= buffer.ready(self._now()):
            return False
        if slot.handled >= TURN or not buffer.is_full():
            slot.handled = 0
            slot.starting = True
            self.slots.starting += 1
        return True

    def _vacate(self, slot: Slot, *, forced: bool) -> None:
        """A slot's task is about to end; forced: by what others raised into it."""
        slots = self.slots
        try:
            slots.held.remove(slot)
        except KeyError:  # of an event loop that is gone, and forgotten with it: its counts are too
            return
        run, slot.run = slot.run, None
        if slot.starting:
            slot.starting = False
            slots.starting -= 1
        if slot.held:  # not slots.free: a call is 0.2 % of a lone caller's way
            slots.busy -= 1
        if forced and self._loop.has_ended():  # type: ignore[union-attr]
            return
        if run is not None:
            run.slot = None
            if not run.ended:
                write(logging.ERROR, "batcher %r: a batch was cut short", self.name)
                run.teaches = False
                self.books.fail(run, RuntimeError("the batch's task is gone"))
            self.giving_up.part(run)
        if forced and not (run is not None and run.cancelled):
            # Mostly by a loop that is ending, where nothing new must begin.
            self.paused = True
            self._door.fifo = None
            self.timer.set(self._now() + PAUSE)
        fifo = self._room.fifo
        if fifo is None or fifo.items:
            self.pump()
        if self._life.phase is not OPEN:
            self.check_idle()

    def check_idle(self) -> None:
        """While closing: tell when nothing is left to do."""
        life, room = self._life, self._room
        if (
            life.drained is not None
            and not (room.buffered() or self._tally.backing_off)
            and all(slot.run is not None and slot.run.cancelled for slot in self.slots.held)
        ):
            life.drained.set()
        if life.quiet is not None and not self.slots.held:
            life.quiet.set()

    def _is_cancelled(self, slot: Slot) -> bool:
        """Tell whether somebody else cancelled a task of ours: mostly a loop that is ending."""
        return self._loop is not None and self._loop.was_cancelled(slot.task)

    def _tell(self, hook: Hook, run: Run, now: float) -> None:
        """Tell the program's own function of a run that has ended, in a context as batches have."""
        context = contextvars.Context() if self.context is None else self.context.copy()
        fatal = context.run(hook.tell, run, now)
        if fatal is not None:  # not from here: others have their outcomes still to come
            self.fatal = fatal  # for aclose() to raise, if the loop does not
            self._loop.raise_fatal_soon(fatal, self._raise_fatal)  # type: ignore[union-attr]

    def _raise_fatal(self) -> None:
        """Raise it in the loop, unless aclose() has."""
        fatal, self.fatal = self.fatal, None
        if fatal is not None:
            raise fatal

    def _crash(self, run: Run, slot: Slot, error: BaseException) -> BaseException | None:
        """Deal with what must not reach a caller, nor kill the loop; return what to raise on.

        Task groups wrap what ends them, so a cancellation and what is fatal are looked for within groups.
        """
        loop = self._loop
        if loop is None or slot not in self.slots.held or not loop.is_current():
            return error  # its event loop is gone, and this is the garbage collector closing it
        cancelled = find(error, anyio.get_cancelled_exc_class())
        if cancelled is not None and not loop.was_cancelled(slot.task):
            cancelled = None  # the handler made it up
        self.paused = self.paused or (cancelled is not None and not run.cancelled)
        run.teaches = run.teaches and cancelled is None
        self.books.fail(run, error)
        fatal = find(error, FATAL)
        if fatal is not None:
            self.fatal = fatal  # for aclose() to raise, if the loop does not
            if loop.raises_fatal(fatal, slot.task):
                self.fatal = None
                return fatal
        return cancelled
