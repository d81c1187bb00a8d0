"""The wiring: what a batcher is made of, and what reaches several of its parts."""

from __future__ import annotations

import logging
import os
import weakref
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from microbatch._loops.current import current_runtime
from microbatch._loops.on_asyncio import running_loop
from microbatch._loops.waiting import end_item
from microbatch._pure.exceptions import BatcherClosed, WouldDeadlock
from microbatch._telemetry.log import write

from . import info
from .backoff import Backoffs
from .closing import Closing
from .dispatcher import Dispatcher
from .door import Door
from .entry import FLYING, SHARING, Entry, Mark
from .life import OPEN, Life
from .line import Feed, entry_of, priority_of
from .room import Room
from .settler import Settler
from .sizing import Sizing
from .tally import Tally
from .waiters import Group, Member, Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from microbatch._loops.protocol import Runtime
    from microbatch._telemetry.observer import Observer

    from .fifo import Fifo
    from .rules import Rules
    from .run import Run

_everyone: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_everything() -> None:
    for engine in list(_everyone):
        engine.forget()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_everything)


class Engine:
    """A batcher without its face. All of it runs in the thread of the event loop that it serves.

    Args:
        rules: The settings.
        prepare: Called in each batch's context before its handler is: the durable mode makes the
            handler's items of its own there.
        observer: Tells telemetry and the log; None for neither.

    Attributes:
        rules, door, tally, room, dispatcher, life: Its parts that others ask.
        runtime: The event loop that is served; None before the first call.
    """

    __slots__ = (
        "__weakref__",
        "_backoffs",
        "_closing",
        "_entered",
        "_ids",
        "_observer",
        "_settler",
        "dispatcher",
        "door",
        "life",
        "room",
        "rules",
        "runtime",
        "tally",
    )

    def __init__(
        self,
        rules: Rules,
        *,
        prepare: Callable[[Run], None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.rules: Rules = rules
        self._observer = observer
        self.life: Life = Life()
        self.door: Door = Door()
        self.tally: Tally = Tally()
        sizing = Sizing(rules)
        self._backoffs = Backoffs(rules, self.tally)
        self.room: Room = Room(
            rules,
            door=self.door,
            tally=self.tally,
            backoffs=self._backoffs,
            sizing=sizing,
            observer=observer,
        )
        self._settler = Settler(rules, self.tally, self._backoffs, observer)
        self.dispatcher: Dispatcher = Dispatcher(
            rules,
            door=self.door,
            tally=self.tally,
            backoffs=self._backoffs,
            room=self.room,
            settler=self._settler,
            sizing=sizing,
            life=self.life,
            prepare=prepare,
            observer=observer,
        )
        self._closing = Closing(
            rules,
            door=self.door,
            life=self.life,
            backoffs=self._backoffs,
            room=self.room,
            dispatcher=self.dispatcher,
            observer=observer,
        )
        self._ids = count()
        self._entered = False
        self.runtime: Runtime | None = None
        _everyone.add(self)

    # The event loop

    def bind(self) -> Runtime:
        """Make sure that the running event loop is the one that is served, and return it.

        Raises:
            RuntimeError: If none runs, or another one is served that is still alive.
        """
        runtime = self.runtime
        if runtime is None or not runtime.is_current():
            current = current_runtime()
            if runtime is not None:
                if not runtime.has_ended():
                    raise RuntimeError(
                        f"batcher {self.rules.name!r} serves another event loop that is still alive: "
                        "make one batcher for each event loop"
                    )
                self.lose_loop()
            self.runtime = runtime = current
            self.life.begin()
            self._backoffs.open = True
            self.door.loop = current.loop
            self.door.create_waiter = current.create_waiter
            self._settler.now = current.now
            self.room.bind(current)
            self.dispatcher.bind(current)
            self.room.look()
        return runtime

    def lose_loop(self) -> None:
        """Say what was lost with an event loop that has ended, and serve none."""
        lost = self.pending()
        if lost:
            write(
                logging.WARNING,
                "batcher %r: %d items ended with their event loop, unhandled or cut short",
                self.rules.name,
                lost,
            )
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone, or to the process that forked this one."""
        self.runtime = None
        self._entered = False
        self.door.close()
        self.tally.forget()
        self._backoffs.forget()
        self.room.forget()
        self.dispatcher.forget()
        self.life.forget()

    def enter_block(self) -> None:
        """Begin an ``async with``: batches run in copies of this context from now on.

        Raises:
            BatcherClosed: If the batcher is closed.
            RuntimeError: If one is under way, or another event loop is served that is still alive.
        """
        self.bind()
        self._check_open()
        if self._entered:
            raise RuntimeError(
                f"batcher {self.rules.name!r} was entered already: whoever leaves first would close it for "
                "the other, so enter it once, around all that use it"
            )
        self._entered = True
        self.dispatcher.context = copy_context()

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

    # In

    def enter(
        self, item: Any, priority: float = 0, *, wait: bool = True, waiter: Any = None
    ) -> Any:
        """Take an item in, or in line, and return who waits for it. The way for whatever is not usual."""
        runtime, door = self.runtime, self.door
        if runtime is None or running_loop() is not door.loop or door.loop is None:
            runtime = self.bind()
        if self.life.phase is not OPEN:  # not _check_open: a call is 0.2 % of a lone caller's way
            raise BatcherClosed(self.rules.name)
        rules, room, dispatcher = self.rules, self.room, self.dispatcher
        if dispatcher.books.telling:
            withdrawn = runtime.create_waiter()
            withdrawn.cancel()
            return withdrawn
        if priority or type(priority) is not int:  # spares a lone caller the call, 0.6 % of its way
            priority = priority_of(priority)
        if dispatcher.paused:  # somebody cancelled a task of ours, and the loop goes on after all
            dispatcher.resume()
        fifo = room.fifo
        if fifo is not None and not priority and (free := room.free()) > 0:
            if waiter is None:
                length = len(fifo.items)
                waiter = door.create_waiter()
                if (
                    room.fifo is not fifo
                    or len(fifo.items) != length
                    or self.life.phase is not OPEN
                ):
                    return self._enter_again(item, waiter, wait=wait)
            # Where a slot is free it waits for its turn alone, so nobody asks since when.
            timed = room.timed or dispatcher.slots.busy >= rules.max_concurrency
            fifo.open(free, room.now() if timed else None)
            fifo.items.append(item)
            fifo.waiters.append(waiter)
            door.fifo = fifo
            if len(fifo.items) >= fifo.limit:
                self.fill(fifo, waiter)
            elif rules.max_wait:
                dispatcher.pump()
            elif dispatcher.slots.busy < rules.max_concurrency and not dispatcher.slots.starting:
                dispatcher.start()  # what pump comes to here, at half its cost for a lone caller
            return waiter
        return self._enter_entry(runtime, entry_of(rules, item, priority), wait=wait, waiter=waiter)

    def enter_marked(self, item: Any, waiter: Any) -> None:
        """Take in an item of another thread, whose waiter comes with it; call it in its context."""
        self._mark(waiter)
        self.enter(item, waiter=waiter)

    def fill(self, fifo: Fifo, waiter: Any, *, wait: bool = True) -> Any:
        """React to a buffer that has reached its limit: a full batch, or a full room.

        Returns who waits for the last item.
        """
        max_wait, door, dispatcher = self.rules.max_wait, self.door, self.dispatcher
        if fifo is not door.fifo:
            fifo.waiters.pop()
            return self._enter_again(fifo.items.pop(), waiter, wait=wait)
        door.fifo = None
        if max_wait and self.room.free() <= 0:
            self._generalise(self.bind())  # no more company can come, so all is due
        if max_wait or dispatcher.slots.busy < self.rules.max_concurrency:
            dispatcher.pump()
        return waiter

    def _enter_again(self, item: Any, waiter: Any, *, wait: bool) -> Any:
        """Take an item in whose buffer was filled, emptied or replaced while its waiter was made.

        What makes a waiter may run code of others: a span processor, or a finalizer that logs. That may
        come back in here.
        """
        try:
            return self.enter(item, wait=wait, waiter=waiter)
        except Exception as error:
            end_item(waiter, error)
            raise

    def _enter_entry(self, runtime: Runtime, entry: Entry, *, wait: bool, waiter: Any) -> Any:
        room = self.room
        refuses = not wait or self.rules.rejects
        if refuses and not room.takes(entry):
            self._find_gone()
        self._generalise(runtime)
        lane, carrier = room.ranked.place(entry)
        # From here on no code of others runs and nothing leaves: all stays as it is.
        self._check_open()
        waits = carrier is None and not room.takes(entry)
        if waits and refuses:
            raise room.full()
        mine = waiter
        if not hasattr(waiter, "on_cancel"):
            mine = self._new_watched(runtime)
        mine.on_cancel = partial(self._cancelled, runtime, carrier or entry)
        if carrier is not None:
            room.share(carrier, mine, entry)
        else:
            entry.waiter = mine
            if waits:
                room.stand(entry)
            else:
                room.add(entry, lane)
            self.dispatcher.pump()
        if mine is not waiter:
            self._mark(mine)
        return mine

    def _check_open(self) -> None:
        if self.life.phase is not OPEN:
            raise BatcherClosed(self.rules.name)

    def _find_gone(self, refusals: int = 1) -> None:
        """Before refusing: do without items whose callers have gone. The buffer may turn into another one."""
        for entry in self.room.gone(refusals):
            self._left(entry, entry.waiter)

    def _generalise(self, runtime: Runtime) -> None:
        """Keep an entry for each item from now on, until the buffer is empty."""
        for entry in self.room.generalise():
            runtime.watch(entry.waiter, partial(self._cancelled, runtime, entry))

    def enter_many(self, items: list[Any], priority: float) -> Group:
        """Take in the items of a ``submit_many``, as far as there is room; the rest stands in line."""
        runtime, room, dispatcher = self.bind(), self.room, self.dispatcher
        self._check_open()
        priority = priority_of(priority)
        dispatcher.paused = False
        total = len(items)
        group = Group(total, next(self._ids))
        self._ids = count(group.first_id + total)
        waiter = group.waiter = self._new_watched(runtime)
        waiter.on_cancel = partial(self._group_cancelled, runtime, group)
        if total:  # a call without items has nothing to tell of
            self._mark(waiter)
            if self.life.phase is not OPEN:  # whom telemetry told has closed it
                end_item(waiter, None, cancelled=True)
                raise BatcherClosed(self.rules.name)
        position = 0
        if room.fifo is not None and not priority:
            position = room.extend(room.fifo, group, items)
            if self.rules.max_wait and room.free() <= 0:
                self._generalise(runtime)  # no more company can come, so all is due
        if position < total:
            if self.rules.rejects:
                self._find_gone(total - position)
            self._generalise(runtime)
            room.feed(Feed(group, items, position, priority))
        dispatcher.pump()
        return group

    async def enter_many_and_wait(self, items: Iterable[Any], priority: float) -> Group:
        """Take in many items and wait until all have their outcome."""
        group = self.enter_many(list(items), priority)
        if group.left:
            await group.waiter
        else:
            await anyio.lowlevel.checkpoint()
        return group

    def _new_watched(self, runtime: Runtime) -> Any:
        """Make a waiter that tells of its cancellation; who calls marks it."""
        observer = self._observer
        if observer is not None and observer.recorder is not None and observer.per_item:
            return runtime.item_waiter(None)
        return runtime.watched_waiter(None)

    def _mark(self, waiter: Any) -> None:
        """Let telemetry know whose waiter this is: of who calls here."""
        if self._observer is not None:
            self._observer.mark(waiter, self.room.now)

    # Out

    def _serves(self, runtime: Runtime) -> bool:
        """Tell whether an event loop is still the one that is served: what it left behind is nobody's."""
        return runtime is self.runtime and (runtime.is_current() or not runtime.has_ended())

    def _cancelled(self, runtime: Runtime, entry: Entry, waiter: Any) -> None:
        """A caller was cancelled."""
        if self._serves(runtime):
            self._left(entry, waiter)

    def _left(self, entry: Entry, waiter: Any) -> None:
        """A caller has gone; with an item's last one goes the item, if no handler has it."""
        if entry.state is SHARING:
            entry = entry.carrier  # type: ignore[assignment]
        if isinstance(entry.waiter, Shared):
            sharers = entry.waiter.waiters
            sharers.pop(waiter, None)
            if sharers:
                if entry.run is None:
                    entry.context = next(iter(sharers.values()))  # of one who is still there
                return
        if entry.state is FLYING:
            self.dispatcher.giving_up.abandon(entry.run)  # type: ignore[arg-type]
        elif self.room.withdraw(entry):
            self.dispatcher.changed()

    def _group_cancelled(self, runtime: Runtime, group: Group, _: Any) -> None:
        """The one caller of many items was cancelled."""
        if not self._serves(runtime):
            return
        self.room.withdraw_feed(group)
        entries, group.entries = group.entries, []
        for entry, index in entries:
            self._left(entry, Member((group, index)))
        self._watch_flushes(runtime)
        self.dispatcher.changed()

    # All of it

    def pending(self) -> int:
        """Return how many items were accepted and are not resolved."""
        return self.room.buffered() + self.tally.flying + self.tally.backing_off

    def sweep(self) -> None:
        """Drop the items of callers who were cancelled without notice yet."""
        if self.room.sweep():
            self.dispatcher.changed()

    async def flush(self) -> None:
        """Send what is buffered now and return when it is resolved."""
        done = anyio.Event()
        mark = Mark(done.set)
        mark.left = 1  # until all are counted
        runtime, room = self.bind(), self.room
        if room.fifo is not None:
            room.fifo.flush(mark)
            self._watch_flushes(runtime)
        else:
            room.ranked.flush(mark, room.now())
        self.dispatcher.resume()
        mark.release()
        await done.wait()

    def _watch_flushes(self, runtime: Runtime, _: Any = None) -> None:
        """See that the flat lists are looked at when the last caller whom a flush waits for goes."""
        fifo = self.room.fifo
        if fifo is not None:
            for waiter in fifo.unwatched():
                if not isinstance(waiter, Group | Member):  # those tell of it unasked
                    runtime.watch(waiter, partial(self._watch_flushes, runtime))

    async def aclose(self, seconds: float | None) -> None:
        """Close: finish what is pending for so many seconds, then end the rest at once."""
        self.bind()
        await self._closing.close(seconds)
