"""Dispatch: slots, the tasks that hold them, and the handler calls that they make."""

from __future__ import annotations

import heapq
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from . import _checks, batch
from ._log import write
from ._runtime import in_context
from .errors import HandlerStuck, ResultCountError
from .handler import FATAL, call_in_thread, find, has_exceptions, listed
from .outcomes import Outcomes
from .state import TURN, Slot

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ._fifo import Fifo
    from ._runtime import Runtime
    from .batch import Run
    from .buffer import Lanes

#: Handler calls that may still run after their timeout before new batches are refused. A thread cannot
#: be killed; 8 is far from what exhausts a process and enough to ride out a hiccup (a choice).
STUCK_MAX = 8

#: Seconds without a new batch after somebody else cancelled a task of ours, if nothing else happens.
PAUSE = 0.1


class Dispatch(Outcomes):
    """Runs batches, as many at a time as there are slots."""

    __slots__ = ()

    def _pump(self, now: float | None = None, most: int = 1) -> None:
        """If a batch is ready and a slot is free, see that so many tasks are about to start; set the timer.

        One is enough: should its handler have to wait, it starts the others beside it (`_pump_more`).
        """
        runtime = self._runtime
        if runtime is None or self._paused:
            return
        buffer = self._fifo
        when: float | None = None
        if buffer is not None and not self._max_wait:
            ready = buffer.ready(0.0)
        else:
            now = self._now() if now is None else now
            if buffer is None:
                buffer = self._lanes  # type: ignore[assignment]
                self._press()
            ready = buffer.ready(now)  # type: ignore[union-attr]
            when = buffer.deadline()  # type: ignore[union-attr]
            if when is not None and when <= now:
                when = None
        ready = min(ready, most)
        while self._starting < ready and self._busy < self._max_concurrency:
            self._start(runtime)
        if self._backoffs and (when is None or self._backoffs[0][0] < when):
            when = self._backoffs[0][0]
        if when is not None and (self._timer is None or when < self._timer_at):
            self._set_timer(when)

    def _press(self) -> None:
        """Tell the lanes whether any company can come."""
        self._ranked.press(bool(self._line) or self._room() <= 0)

    def _start(self, runtime: Runtime) -> None:
        """Take a slot, and start a task that will cut a batch when it has its turn."""
        self._busy += 1
        self._starting += 1
        slot = Slot()
        self._slots.add(slot)
        slot.task = runtime.spawn(self._work, slot, self._name)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._runtime.call_at(when, self._ring)  # type: ignore[union-attr]

    def _ring(self) -> None:
        """The timer: something is due."""
        self._timer = None
        self._paused = False
        now = max(self._now(), self._timer_at)  # loops may ring a clock's tick early
        backoffs = self._backoffs
        while backoffs and backoffs[0][0] <= now:
            entry = heapq.heappop(backoffs)[2]
            if entry.state == "backoff":
                self._ranked.add(entry, now, self._end_backoff(entry))
        self._pump(now)

    async def _work(self, slot: Slot) -> None:
        """Hold a slot for one batch after the other, as long as one is ready."""
        forced = True
        try:
            await self._started()
            while (run := self._cut(slot)) is not None:
                try:
                    returned = await in_context(self._context, self._call, run, self._pump_more)
                    results = listed(returned, run.size, self._name)
                    mixed = has_exceptions(results, self._name)
                except Exception as error:  # noqa: BLE001 - the handler's: every caller gets it
                    self._fail(run, error)
                    if not run.cancelled and self._is_cancelled(slot):
                        return  # the handler made another error of its cancellation
                except BaseException as error:  # noqa: BLE001 - what must be raised on, is
                    if (ending := self._crash(run, slot, error)) is not None:
                        raise ending from ending.__cause__
                else:
                    self._deliver(run, results, mixed=mixed)
                    del returned, results
                slot.run = run.slot = None
                if run.cancelled:
                    self._part(run)
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
            self._starting -= 1
        now = self._now()
        fifo = self._fifo
        buffer: Fifo | Lanes
        if fifo is None:
            buffer = self._ranked
            self._press()
        else:
            buffer = fifo
        run = buffer.cut(now)
        if buffer.withdrawn:
            self._tell_withdrawn(buffer)
        if run is None:
            self._fast = None  # we end: the next item must wake another task
            if fifo is None:
                self._changed()  # whoever was found gone has left room
            return None
        slot.run = run
        run.owner = self
        run.slot = slot
        run.started = now
        self._waits.append(now - run.since)
        self._running += 1
        self._flying += run.size
        if fifo is None:
            self._flying_weight += run.weight
            self._changed()
            return run
        if self._max_wait or not fifo.items:
            self._fast = None  # the next item asks, and wakes us
        return run

    def _pump_more(self) -> None:
        """A handler has begun to wait: others may run beside it.

        Not before: batches whose handler answers without waiting follow one another in one task, which
        saves a task for each. (Lanes let a second one start at the cut, where they see who else may come.)
        """
        if (self._fifo is None or self._fifo.items) and self._busy < self._max_concurrency:
            self._pump(most=self._pace)

    def _call(self, run: Run) -> Any:
        """Begin the handler call; runs in the batch's own context."""
        run.outer = batch.running()
        batch.enter(run)
        if self._on_start is not None:
            self._on_start(run)
        observer = self._observer
        if observer is not None:
            if run.started >= observer.look_at:
                self._look(observer)
            if observer.recorder is not None:
                observer.begin(run)
        if self._stuck and (stuck := self._count_stuck()) > STUCK_MAX:
            run.teaches = False
            raise HandlerStuck(self._name, stuck, STUCK_MAX)
        if self._handler_timeout is not None:
            run.timer = self._runtime.call_at(  # type: ignore[union-attr]
                run.started + self._handler_timeout, partial(self._expire, run)
            )
        if self._kind == "async":
            call = self._handler(run.items)
        elif self._kind == "generator":
            call = self._iterate(run)
        else:
            run.threads = 1
            call = call_in_thread(self._handler, run.items, partial(setattr, run, "threads", 0))
        return self._in_scope(run, call) if self._scoped else call

    async def _in_scope(self, run: Run, call: Awaitable[Any]) -> Any:
        """Await a call that may be cancelled, so that its shielded parts are respected on asyncio too.

        Not for every call: a scope costs more than all the rest of a batch.
        """
        with anyio.CancelScope() as run.scope:
            return await call
        return None  # cancelled: nobody waits for what it would have returned

    def _part(self, run: Run) -> None:
        """A handler that was told to stop has come back."""
        if not run.threads:
            self._stuck.discard(run)

    def _keep(self, slot: Slot) -> bool:
        """Keep the slot for the next batch if one is ready and it is still ours; tell whether.

        A full one may follow at once. Before one that can still grow, and after so many items, the loop
        has its turn: everybody who is runnable may join.
        """
        fifo, starting = self._fifo, self._starting
        if (fifo is not None and not fifo.items) or starting >= self._pace or not slot.held:
            return False
        buffer: Fifo | Lanes = fifo if fifo is not None else self._ranked
        # Without a wait whatever there is makes a batch, so nothing needs to be counted for the first.
        if (starting or self._max_wait or fifo is None) and starting >= buffer.ready(self._now()):
            return False
        if slot.handled >= TURN or not buffer.is_full():
            slot.handled = 0
            slot.starting = True
            self._starting += 1
        return True

    def _free(self, slot: Slot) -> None:
        if slot.held:
            slot.held = False
            self._busy -= 1

    def _count_stuck(self) -> int:
        """Count the calls that go on after they were given up: threads at once, tasks after a while.

        One that was cancelled and not given up still has its slot, so it needs no other bound.
        """
        now, grace = self._now(), 2 * (self._handler_timeout or 0.0)
        for run in [run for run in self._stuck if run.slot is None and not run.threads]:
            self._stuck.discard(run)
        return sum(
            run.ended and (bool(run.threads) or now >= run.started + grace) for run in self._stuck
        )

    async def _iterate(self, run: Run) -> None:
        """Run a generator handler: each (index, result) that it yields is an outcome at once."""
        generator = self._handler(run.items)
        size, name = run.size, self._name
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
                if _checks.is_awaitable(type(result)):
                    whose = f"the generator handler of batcher {name!r}"
                    _checks.refuse_awaitable(f"{whose} must yield results, but {index}'s", result)
                self._settle(run, index, result)
                if self._lanes is not None:
                    self._cancel_if_abandoned(run)
                    self._changed()  # it has left room, or is in back-off
            missing = [i for i, waiter in enumerate(run.waiters) if waiter is not None]
            if missing:
                raise ResultCountError(
                    size, size - run.left, f"index {missing[0]} never came", name
                )
        except Exception as error:  # noqa: BLE001 - callers must not wait for the generator to close
            self._fail_waiters(run, error)
        finally:
            await generator.aclose()

    def _is_cancelled(self, slot: Slot) -> bool:
        """Tell whether somebody else cancelled a task of ours: mostly a loop that is ending."""
        return self._runtime is not None and self._runtime.was_cancelled(slot.task)

    def _crash(self, run: Run, slot: Slot, error: BaseException) -> BaseException | None:
        """Deal with what must not reach a caller, nor kill the loop; return what to raise on.

        Task groups wrap what ends them, so a cancellation and what is fatal are looked for within groups.
        """
        runtime = self._runtime
        if runtime is None or slot not in self._slots or not runtime.is_current():
            return error  # its event loop is gone, and this is the garbage collector closing it
        cancelled = find(error, anyio.get_cancelled_exc_class())
        if cancelled is not None and not runtime.was_cancelled(slot.task):
            cancelled = None  # the handler made it up
        self._paused = self._paused or (cancelled is not None and not run.cancelled)
        run.teaches = run.teaches and cancelled is None
        self._fail(run, error)
        fatal = find(error, FATAL)
        if fatal is not None:
            self._fatal = fatal  # for aclose() to raise, if the loop does not
            if runtime.raises_fatal(fatal, slot.task):
                self._fatal = None
                return fatal
        return cancelled

    def _vacate(self, slot: Slot, *, forced: bool) -> None:
        """A slot's task is about to end; forced: by what others raised into it."""
        try:
            self._slots.remove(slot)
        except KeyError:  # of an event loop that is gone, and forgotten with it: its counts are too
            return
        run, slot.run = slot.run, None
        if slot.starting:
            slot.starting = False
            self._starting -= 1
        self._free(slot)
        if forced and self._runtime.has_ended():  # type: ignore[union-attr]
            return
        if run is not None:
            run.slot = None
            if not run.ended:
                write(logging.ERROR, "batcher %r: a batch was cut short", self._name)
                run.teaches = False
                self._fail(run, RuntimeError("the batch's task is gone"))
            self._part(run)
        if forced and not (run is not None and run.cancelled):
            # Mostly by a loop that is ending, where nothing new must begin.
            self._paused = True
            self._fast = None
            self._set_timer(self._now() + PAUSE)
        if self._fifo is None or self._fifo.items:
            self._pump()
        if self._state != "open":
            self._check_idle()

    def _check_idle(self) -> None:
        """While closing: tell when nothing is left to do."""
        if (
            self._idle is not None
            and not (self._buffered() or self._in_backoff)
            and all(slot.run is not None and slot.run.cancelled for slot in self._slots)
        ):
            self._idle.set()
        if self._empty is not None and not self._slots:
            self._empty.set()
