"""Callers who go before their items have an outcome, and what goes with them."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from .entry import FLYING, SHARING, Entry
from .waiters import Group, Member, Shared

if TYPE_CHECKING:
    from microbatch._loops.protocol import Loop

    from .admission import Admission
    from .dispatcher import Dispatcher
    from .room import Room
    from .serving import Serving


class Leaving:
    """What waiters are told to call when their callers are cancelled."""

    __slots__ = ("_admission", "_dispatcher", "_room", "_serving")

    def __init__(
        self, serving: Serving, room: Room, admission: Admission, dispatcher: Dispatcher
    ) -> None:
        self._serving = serving
        self._room = room
        self._admission = admission
        self._dispatcher = dispatcher

    def cancelled(self, loop: Loop, entry: Entry, waiter: Any) -> None:
        """A caller was cancelled."""
        if self._serving.serves(loop):
            self.left(entry, waiter)

    def left(self, entry: Entry, waiter: Any) -> None:
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
            self._dispatcher.giving_up.abandon(entry.run)  # type: ignore[arg-type]
        elif self._room.withdraw(entry):
            self._dispatcher.changed()

    def group_cancelled(self, loop: Loop, group: Group, _: Any) -> None:
        """The one caller of many items was cancelled."""
        if not self._serving.serves(loop):
            return
        self._admission.withdraw_feed(group)
        entries, group.entries = group.entries, []
        for entry, index in entries:
            self.left(entry, Member((group, index)))
        self.watch_flushes(loop)
        self._dispatcher.changed()

    def member_left(self, loop: Loop, group: Group, index: int) -> None:
        """Nobody waits for one item of a group any more; who waits for the others is still there.

        Flat lists find it out by themselves, when they are asked whose callers have gone; so they are turned
        into entries: nobody is to wait for a batch to know how much room there is.
        """
        if not self._serving.serves(loop):
            return
        if self._room.fifo is None:
            if (entry := entry_of_member(group, index)) is not None:
                self.left(entry, Member((group, index)))
        elif index >= group.taken:
            self.generalise(loop)
            self._dispatcher.changed()

    def generalise(self, loop: Loop) -> None:
        """Keep an entry for each item from now on, until the buffer is empty."""
        for entry in self._room.generalise():
            loop.watch(entry.waiter, partial(self.cancelled, loop, entry))

    def watch_flushes(self, loop: Loop, _: Any = None) -> None:
        """See that the flat lists are looked at when the last caller whom a flush waits for goes."""
        fifo = self._room.fifo
        if fifo is not None:
            for waiter in fifo.unwatched():
                if not isinstance(waiter, Group | Member):  # those tell of it unasked
                    loop.watch(waiter, partial(self.watch_flushes, loop))


def entry_of_member(group: Group, index: int) -> Entry | None:
    """Return the entry of one of a group's items; None while it has none."""
    entries = group.entries
    place = bisect_left(entries, index, key=itemgetter(1))
    return entries[place][0] if place < len(entries) and entries[place][1] == index else None
