"""The line before the room: who stands in it, who is let in next, who is sent away."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import BatcherClosed
from microbatch._telemetry.kinds import CANCELLED, CLOSED

from .entry import SHARING, WAITING, Entry
from .line import Feed

if TYPE_CHECKING:
    from .room import Room
    from .rules import Rules
    from .sizing import Sizing
    from .waiters import Group


class Admission:
    """Lets in those who wait for room."""

    __slots__ = ("_numbers", "_room", "_rules", "_sizing")

    def __init__(self, rules: Rules, room: Room, sizing: Sizing) -> None:
        self._rules = rules
        self._room = room
        self._sizing = sizing
        self._numbers = count(1)

    def stand(self, entry: Entry) -> None:
        """Let an entry wait for room."""
        entry.state = WAITING
        entry.seq = next(self._numbers)
        self._room.line.push(entry)

    def feed(self, feed: Feed) -> None:
        """Let in of a group's items what finds room; the rest waits for it, or is refused."""
        feed.group.feed = feed
        feed.seq = next(self._numbers)
        self._room.line.push(feed)
        self.admit()
        if feed.group.feed is not None and self._rules.rejects:
            self._take_away(feed)
            for index in range(feed.position, len(feed.items)):
                feed.group.fail(index, self._room.full())

    def admit(self) -> None:
        """Let those in who wait for room: by priority, one in ten by age."""
        room = self._room
        if room.admitting:  # by a function of the user's: whoever called that goes on
            return
        room.admitting = True
        try:
            while (waiting := self._room.line.turn()()) is not None and self._let_in(waiting):
                pass
        finally:
            room.admitting = False

    def _let_in(self, waiting: Any) -> bool:
        """Let in who is the next in line, if there is room; tell whether to look at the line again.

        The user's functions may do anything meanwhile, so after them it is looked at anew.
        """
        feed = waiting if isinstance(waiting, Feed) else None
        if feed is not None and feed.ready is None:
            self._weigh_next(feed)
            return True
        entry: Any = waiting if feed is None else feed.ready
        try:
            lane, carrier = self._room.ranked.place(entry)
        except Exception as error:  # noqa: BLE001 - a key's comparison: its own caller's
            self._turn_away(waiting, error)
            return True
        if not waiting.queued:
            return True
        if carrier is None and not self._room.has_room(entry.weight):
            return False
        if feed is not None:
            self._advance(feed)
            feed.group.entries.append((carrier or entry, entry.waiter[1]))
        else:
            self._room.line.turned()
            self._room.line.discard(entry)
        if carrier is None:
            self._room.add(entry, lane)
        else:
            entry.state, entry.carrier = SHARING, carrier
            self._room.share(carrier, entry.waiter, entry)
        return True

    def _weigh_next(self, feed: Feed) -> None:
        """Ask the user's functions about a feed's next item."""
        try:
            feed.weigh_next(self._rules)
        except Exception as error:  # noqa: BLE001 - the user's: it is that item's outcome
            self._turn_away(feed, error)

    def _turn_away(self, waiting: Any, error: Exception) -> None:
        """Fail who is the next in line, if it still is in line."""
        if not waiting.queued:
            return
        if isinstance(waiting, Feed):
            waiting.refuse_next(error)
            if not waiting.left:
                self._take_away(waiting)
        else:
            self._room.line.discard(waiting)
            waiter = waiting.waiter
            waiting.release()
            waiter.set_exception(error)

    def _advance(self, feed: Feed) -> None:
        """Step on after one item went in; after a batch of them let others go first."""
        self._room.line.turned()
        feed.advance()
        if not feed.left:  # its caller waits for room no more
            self._take_away(feed)
        elif feed.taken % self._sizing.current() == 0 and len(self._room.line) > 1:
            self._room.line.discard(feed)
            feed.seq = next(self._numbers)
            self._room.line.push(feed)

    def withdraw_feed(self, group: Group) -> None:
        """Do without what of a group still waits for room: its caller has gone."""
        feed = group.feed
        if feed is not None:
            self._take_away(feed)
            self._room.tell_refused(CANCELLED, feed.left)

    def _take_away(self, feed: Feed) -> None:
        self._room.line.discard(feed)
        feed.group.feed = None

    def close(self) -> None:
        """End all who wait for room: none will come."""
        for waiting in list(self._room.line):
            if not waiting.queued:  # whom telemetry told of another's end has cancelled this one
                continue
            left = 1
            if isinstance(waiting, Feed):
                self._take_away(waiting)
                left = waiting.left
                for index in range(waiting.position, len(waiting.items)):
                    waiting.group.fail(index, BatcherClosed(self._rules.name))
            else:
                self._room.line.discard(waiting)
                waiter = waiting.waiter
                waiting.release()
                waiter.set_exception(BatcherClosed(self._rules.name))
            self._room.tell_refused(CLOSED, left)
