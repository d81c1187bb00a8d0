"""The buffer: how much room there is, who is in, who goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import BatcherFull
from microbatch._telemetry.kinds import CANCELLED, FULL

from .entry import BACKOFF, BUFFERED, WAITING, Entry
from .fifo import Fifo
from .lanes import Lanes
from .ranking import Ranking
from .waiters import Member, Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._loops.protocol import Loop
    from microbatch._telemetry.kinds import Kind
    from microbatch._telemetry.observer import Observer

    from .backoff import Backoffs
    from .door import Door
    from .lane import Lane
    from .rules import Rules
    from .sizing import Sizing
    from .tally import Tally
    from .waiters import Group

_UNBOUNDED = 1 << 62


class Room:
    """What a batcher holds that is in no handler call: a `Fifo` or `Lanes`, and the line before it.

    Attributes:
        fifo: The flat lists, while nothing asks for more.
        lanes: An entry for each item, while something does; there is always one of both.
        line: Who waits for room: entries and feeds.
        admitting: True while they are being let in.
        timed: True if it matters since when exactly items wait.
        now: The loop's clock.
        observer: Tells telemetry; None for nobody.
    """

    __slots__ = (
        "__weakref__",
        "_backoffs",
        "_converted",
        "_door",
        "_loop",
        "_refusals",
        "_rules",
        "_sizing",
        "_tally",
        "admitting",
        "fifo",
        "lanes",
        "line",
        "now",
        "observer",
        "timed",
    )

    def __init__(
        self,
        rules: Rules,
        *,
        door: Door,
        tally: Tally,
        backoffs: Backoffs,
        sizing: Sizing,
        observer: Observer | None,
    ) -> None:
        self._rules = rules
        self._sizing = sizing
        self._door = door
        self._tally = tally
        self._backoffs = backoffs
        self.observer: Observer | None = observer
        self.now: Callable[[], float]
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone."""
        self._loop: Loop | None = None
        self.fifo: Fifo | None = None
        self.lanes: Lanes | None = None
        self.line: Ranking[Any] = Ranking()
        self.admitting: bool = False
        self._converted: list[Entry] = []  # entries made of what stood in the flat lists
        self._refusals = 0  # since those were looked at
        self.timed: bool = self._rules.max_wait > 0
        self._reset()

    def bind(self, loop: Loop) -> None:
        """Serve an event loop."""
        self._loop = loop
        self.now = loop.now

    # Telemetry

    def observe(self) -> None:
        """See whether anybody records: then it matters who submits, and since when items wait."""
        observer, loop = self.observer, self._loop
        if observer is None or loop is None:
            return
        observer.observe(self, self.now())
        if observer.recorder is not None:
            self.timed = True
            if self.fifo is not None:
                self.fifo.timed = True
            self._door.create_waiter = observer.creator(loop, self.now)

    def tell_refused(self, kind: Kind, number: int = 1) -> None:
        """Tell telemetry of items that end before any handler saw them."""
        if self.observer is not None:
            self.observer.refused(kind, number)

    def tell_withdrawn(self, buffer: Fifo | Lanes) -> None:
        """Tell telemetry of the items that a buffer dropped because their callers had gone."""
        withdrawn, buffer.withdrawn = buffer.withdrawn, 0
        if withdrawn:
            self.tell_refused(CANCELLED, withdrawn)

    # The buffer

    def _reset(self) -> None:
        rules = self._rules
        if rules.is_plain:
            self.fifo, self.lanes = Fifo(rules.size, rules.max_wait), None
            self.fifo.timed = self.timed
        else:
            self.fifo, self.lanes = None, self._new_lanes()

    def _new_lanes(self) -> Lanes:
        rules = self._rules
        return Lanes(
            self._sizing.current,
            rules.max_wait,
            max_weight=rules.max_batch_units,
            lane_limit=rules.partition_concurrency,
        )

    @property
    def ranked(self) -> Lanes:
        """Return the lanes, where there are no flat lists."""
        assert self.lanes is not None  # noqa: S101
        return self.lanes

    def buffer(self) -> Fifo | Lanes:
        """Return the one that is in use."""
        return self.fifo if self.fifo is not None else self.ranked

    def generalise(self) -> list[Entry]:
        """Keep an entry for each item from now on, until the buffer is empty.

        Returns:
            The entries whose waiters do not tell yet when their callers go.
        """
        fifo = self.fifo
        if fifo is None:
            return []
        # First: who counts in another thread finds one of both.
        lanes = self.lanes = self._new_lanes()
        self._door.fifo = self.fifo = None
        lanes.closing = fifo.closing
        unwatched = []
        for item, waiter, since, marks in fifo.clear(self.now()):
            entry = Entry(item, waiter)
            entry.count(marks)
            lanes.add(entry, since)
            if isinstance(waiter, Member):
                waiter[0].entries.append((entry, waiter[1]))
            else:
                unwatched.append(entry)
        self._converted += unwatched
        self.tell_withdrawn(fifo)
        return unwatched

    def simplify(self) -> None:
        """Go back to flat lists when nothing is left that needs more."""
        lanes = self.lanes
        if lanes is not None and not lanes.count and self._rules.is_plain and not self.line:
            self._reset()
            self._converted.clear()

    def sweep(self) -> bool:
        """Drop the items of callers who were cancelled without notice yet; tell whether there were any."""
        buffer = self.buffer()
        buffer.sweep()
        if not buffer.withdrawn:
            return False
        self.tell_withdrawn(buffer)
        self._door.fifo = None
        return True

    # How much room there is

    def buffered(self) -> int:
        """Return how many items wait for a batch. From any thread."""
        fifo, lanes = self.fifo, self.lanes
        if fifo is not None:
            return fifo.count
        return 0 if lanes is None else lanes.count  # they have gone in this moment, empty

    def held(self) -> float:
        """Return for how many seconds a partition is held still: the longest of all. From any thread."""
        lanes = self.lanes
        last = None if lanes is None else lanes.holds.last()
        return 0.0 if last is None else max(0.0, last - self.now())

    def weight(self) -> int:
        """Return what all pending items weigh, in units; only where there are lanes do they."""
        tally = self._tally
        return self.ranked.weight + tally.flying_weight + tally.backing_off_weight

    def free(self) -> int:
        """Return how many more items may come in."""
        most = self._rules.max_pending
        if most is None:
            return _UNBOUNDED
        fifo = self.fifo
        if fifo is not None:  # not its count: a call is 0.2 % of a lone caller's way
            return most - len(fifo.items) + fifo.head - self._tally.flying
        return most - self.ranked.count - self._tally.flying - self._tally.backing_off

    def has_room(self, units: int) -> bool:
        """Tell whether one more item of this weight may come in."""
        if self.free() <= 0:
            return False
        most = self._rules.max_pending_units
        return most is None or self.weight() + units <= most

    def takes(self, entry: Entry) -> bool:
        """Tell whether an entry may go into the buffer: there is room, and nobody waits for it.

        While those in line are let in, only a function that they brought along can ask.
        """
        return (not self.line or self.admitting) and self.has_room(entry.weight)

    def press(self) -> None:
        """Tell the lanes whether any company can come."""
        self.ranked.press(bool(self.line) or self.free() <= 0)

    def full(self) -> BatcherFull:
        """Return what to tell who finds no room, and count it; those in line wait for the same."""
        self.tell_refused(FULL)
        rules = self._rules
        name = "max_pending" if self.free() <= 0 else "max_pending_weight"
        return BatcherFull(rules.name, name, getattr(rules, name))

    def gone(self, refusals: int = 1) -> list[Entry]:
        """Before refusing: return entries that were cancelled and whose notice comes a turn later.

        Only what once stood in flat lists gives such notice. Looks at no more than 64 of them for each
        refusal.
        """
        self._refusals += refusals
        if not self._converted or 64 * self._refusals < len(self._converted):
            return []
        self._refusals = 0
        converted = [entry for entry in self._converted if entry.state is BUFFERED]
        self._converted = [entry for entry in converted if not entry.waiter.done()]
        return [entry for entry in converted if entry.waiter.done()]

    # In

    def share(self, carrier: Entry, waiter: Any, entry: Entry) -> None:
        """Let the caller of an entry wait for an equal item that is buffered already."""
        if not isinstance(carrier.waiter, Shared):
            carrier.waiter = Shared({carrier.waiter: carrier.context})
        carrier.waiter.waiters[waiter] = entry.context
        self.ranked.promote(carrier, entry.priority)

    def add(self, entry: Entry, lane: Lane) -> None:
        """Buffer an entry."""
        self.ranked.add(entry, self.now(), lane)

    def extend(self, fifo: Fifo, group: Group, items: list[Any], now: float | None) -> int:
        """Append as many of a group's items as there is room for; return how many that were."""
        room = self.free()
        taken = max(0, min(room, len(items)))
        if taken:
            fifo.open(room, now, taken)
            fifo.items += items[:taken]
            fifo.waiters += [group] * taken
        self._door.fifo = None
        return taken

    # Out

    def withdraw(self, entry: Entry) -> bool:
        """Do without an item whose callers have gone, if no handler has it; tell whether it was there."""
        if entry.state is BUFFERED:
            self.ranked.withdraw(entry)
        elif entry.state is WAITING:
            self.line.discard(entry)
        elif entry.state is BACKOFF:
            self.call_back(entry)
        else:
            return False
        self.tell_refused(CANCELLED)
        entry.release()
        return True

    def call_back(self, entry: Entry) -> Lane:
        """Count an item out of back-off; return its lane."""
        self._backoffs.leave(entry)
        return self.ranked.call_back(entry)

    def clear(self) -> list[tuple[Any, int]]:
        """Take everything out of the buffer, and out of back-off.

        Returns:
            Who waits for each item, and how many handler calls had it.
        """
        if self.fifo is not None:
            waiters = [(waiter, 0) for _, waiter, _, _ in self.fifo.clear()]
            self.tell_withdrawn(self.fifo)
            return waiters
        waiters = []
        for entry in [*self.ranked.entries(), *self._backoffs.clear()]:
            waiters.append((entry.waiter, entry.attempts - 1))
            if entry.state is BACKOFF:
                self.call_back(entry)
            else:
                self.ranked.withdraw(entry)
            entry.release()
        self.ranked.holds.clear()
        return waiters

    # For gauges

    @property
    def name(self) -> str:
        """Return the batcher's name."""
        return self._rules.name

    def figures(self) -> dict[str, float | None]:
        """Return what gauges tell of a batcher; nothing while it serves no event loop. From any thread."""
        rules, tally, loop = self._rules, self._tally, self._loop
        if loop is None or loop.has_ended():
            return {}
        return {
            "microbatch.queue.size": self.buffered() + tally.flying + tally.backing_off,
            "microbatch.queue.capacity": rules.max_pending,
            "microbatch.item.inflight": tally.flying,
            "microbatch.queue.weight": (
                None if rules.weigh is None else rules.scale.weight(self.weight())
            ),
        }
