"""The ways in: of an item that needs more than two appends, of one by thread, of many."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from microbatch._loops.on_asyncio import running_loop
from microbatch._loops.waiting import end_item
from microbatch._pure.exceptions import BatcherClosed

from .life import OPEN
from .line import Feed, entry_of, priority_of
from .waiters import Group

if TYPE_CHECKING:
    from microbatch._loops.protocol import Loop
    from microbatch._telemetry.observer import Observer

    from .admission import Admission
    from .dispatcher import Dispatcher
    from .door import Door
    from .entry import Entry
    from .fifo import Fifo
    from .leaving import Leaving
    from .life import Life
    from .room import Room
    from .rules import Rules
    from .serving import Serving
    from .window import Window


class Entrance:
    """Takes items in, or in line, or refuses them."""

    __slots__ = (
        "_admission",
        "_dispatcher",
        "_door",
        "_leaving",
        "_life",
        "_next_id",
        "_observer",
        "_room",
        "_rules",
        "_serving",
        "_slots",
    )

    def __init__(
        self,
        rules: Rules,
        *,
        door: Door,
        life: Life,
        room: Room,
        admission: Admission,
        dispatcher: Dispatcher,
        serving: Serving,
        leaving: Leaving,
        observer: Observer | None,
    ) -> None:
        self._rules = rules
        self._door = door
        self._life = life
        self._room = room
        self._admission = admission
        self._dispatcher = dispatcher
        self._slots = dispatcher.slots
        self._serving = serving
        self._leaving = leaving
        self._observer = observer
        self._next_id = 0

    def enter(
        self, item: Any, priority: float = 0, *, wait: bool = True, waiter: Any = None
    ) -> Any:
        """Take an item in, or in line, and return who waits for it. The way for whatever is not usual."""
        door = self._door
        if running_loop() is not door.native or door.native is None:
            self._serving.bind()
        rules, room, dispatcher = self._rules, self._room, self._dispatcher
        if self._life.phase is not OPEN:  # not check_open: a call is 0.2 % of a lone caller's way
            raise BatcherClosed(rules.name)
        if dispatcher.books.telling:
            withdrawn = self._serving.bind().create_waiter()
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
                    or self._life.phase is not OPEN
                ):
                    return self._enter_again(item, waiter, wait=wait)
            # Where a slot is free it waits for its turn alone, so nobody asks since when.
            slots = self._slots
            timed = room.timed or slots.busy >= rules.max_concurrency
            fifo.open(free, room.now() if timed else None)
            fifo.items.append(item)
            fifo.waiters.append(waiter)
            door.fifo = fifo
            if len(fifo.items) >= fifo.limit:
                self.fill(fifo, waiter)
            elif rules.max_wait:
                dispatcher.pump()
            elif slots.busy < rules.max_concurrency and not slots.starting:
                dispatcher.start()  # what pump comes to here, at half its cost for a lone caller
            return waiter
        return self._enter_entry(entry_of(rules, item, priority), wait=wait, waiter=waiter)

    def enter_from_thread(self, item: Any, waiter: Any) -> None:
        """Take in an item of another thread, whose waiter comes with it; call it in its context."""
        self._note_caller(waiter)
        self.enter(item, waiter=waiter)

    def fill(self, fifo: Fifo, waiter: Any, *, wait: bool = True) -> Any:
        """React to a buffer that has reached its limit: a full batch, or a full room.

        Returns who waits for the last item.
        """
        max_wait, door, dispatcher = self._rules.max_wait, self._door, self._dispatcher
        if fifo is not door.fifo:
            fifo.waiters.pop()
            return self._enter_again(fifo.items.pop(), waiter, wait=wait)
        door.fifo = None
        if max_wait and self._room.free() <= 0:
            self._leaving.generalise(
                self._serving.bind()
            )  # no more company can come, so all is due
        if max_wait or self._slots.busy < self._rules.max_concurrency:
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

    def _enter_entry(self, entry: Entry, *, wait: bool, waiter: Any) -> Any:
        loop, room = self._serving.bind(), self._room
        refuses = not wait or self._rules.rejects
        if refuses and not room.takes(entry):
            self._find_gone()
        self._leaving.generalise(loop)
        lane, carrier = room.ranked.place(entry)
        # From here on no code of others runs and nothing leaves: all stays as it is.
        self._serving.check_open()
        waits = carrier is None and not room.takes(entry)
        if waits and refuses:
            raise room.full()
        mine = waiter
        if not hasattr(waiter, "on_cancel"):
            mine = self._new_watched(loop)
        mine.on_cancel = partial(self._leaving.cancelled, loop, carrier or entry)
        if carrier is not None:
            room.share(carrier, mine, entry)
        else:
            entry.waiter = mine
            if waits:
                self._admission.stand(entry)
            else:
                room.add(entry, lane)
            self._dispatcher.pump()
        if mine is not waiter:
            self._note_caller(mine)
        return mine

    def _find_gone(self, refusals: int = 1) -> None:
        """Before refusing: do without items whose callers have gone. The buffer may turn into another one."""
        for entry in self._room.gone(refusals):
            self._leaving.left(entry, entry.waiter)

    def enter_window(self, window: Window) -> None:
        """Take in what was loaded together, as far as there is room; the rest stands in line.

        Raises:
            BatcherClosed: If the batcher is closed.
        """
        loop = self._serving.bind()
        self._serving.check_open()
        self._dispatcher.paused = False
        window.entered, window.leaving, window.first_id = True, self._leaving, self._next_id
        self._next_id += window.left
        if self._observer is not None and self._observer.recorder is not None:
            window.waiter = self._new_watched(loop)
            self._note_caller(window.waiter)
            self._serving.check_open()  # whom telemetry told may have closed it
        self._enter_group(loop, window, window.items, 0)

    def enter_many(self, items: list[Any], priority: float) -> Group:
        """Take in the items of a ``submit_many``, as far as there is room; the rest stands in line."""
        rules, door = self._rules, self._door
        if running_loop() is not door.native or door.native is None:
            self._serving.bind()
        if self._life.phase is not OPEN:
            raise BatcherClosed(rules.name)
        if priority or type(priority) is not int:
            priority = priority_of(priority)
        self._dispatcher.paused = False
        loop: Any = self._serving.loop
        total = len(items)
        group = Group(total, self._next_id)
        self._next_id += total
        waiter = group.waiter = self._new_watched(loop)
        waiter.on_cancel = partial(self._leaving.group_cancelled, loop, group)
        if total:  # a call without items has nothing to tell of
            self._note_caller(waiter)
            if self._life.phase is not OPEN:  # whom telemetry told has closed it
                end_item(waiter, None, cancelled=True)
                raise BatcherClosed(self._rules.name)
        self._enter_group(loop, group, items, priority)
        return group

    def _enter_group(self, loop: Loop, group: Group, items: list[Any], priority: float) -> None:
        rules, room, dispatcher = self._rules, self._room, self._dispatcher
        position, total = 0, len(items)
        if room.fifo is not None and not priority:
            # As for one item: where a slot is free nobody asks since when they wait.
            timed = room.timed or self._slots.busy >= rules.max_concurrency
            position = room.extend(room.fifo, group, items, room.now() if timed else None)
            if rules.max_wait and room.free() <= 0:
                self._leaving.generalise(loop)  # no more company can come, so all is due
        if position < total:
            if rules.rejects:
                self._find_gone(total - position)
            self._leaving.generalise(loop)
            self._admission.feed(Feed(group, items, position, priority))
        if rules.max_wait or not 0 < position == total:
            dispatcher.pump()
        elif self._slots.busy < rules.max_concurrency and not self._slots.starting:
            dispatcher.start()

    def _new_watched(self, loop: Loop) -> Any:
        """Make a waiter that tells of its cancellation; who calls marks it."""
        observer = self._observer
        if observer is not None and observer.recorder is not None and observer.per_item:
            return loop.item_waiter(None)
        return loop.watched_waiter(None)

    def _note_caller(self, waiter: Any) -> None:
        """Let telemetry know whose waiter this is: of who calls here."""
        if self._observer is not None and self._observer.recorder is not None:
            self._observer.note_caller(waiter, self._room.now)
