"""Entrance: how items come in, wait for room, and leave before their end."""

from __future__ import annotations

import logging
import numbers
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from . import batch
from ._asyncio import running_loop
from ._log import write
from ._runtime import Runtime, current_runtime
from ._waiters import Group, Member, Shared, end_item
from .buffer import Entry
from .dispatch import Dispatch
from .errors import BatcherClosed, BatcherFull, ItemTooHeavy, WouldDeadlock
from .outcomes import note_attempts
from .telemetry import CANCELLED, CLOSED, FULL

if TYPE_CHECKING:
    from ._fifo import Fifo
    from .batch import Run
    from .buffer import Lanes


class _Feed:
    """What of a ``submit_many`` still waits for room."""

    __slots__ = (
        "context",
        "group",
        "items",
        "position",
        "priority",
        "queued",
        "ready",
        "seq",
        "taken",
    )

    def __init__(self, group: Group, items: list[Any], position: int, priority: float) -> None:
        self.group = group
        self.context = batch.copy_context()  # the caller's: who makes room later is somebody else
        self.items = items
        self.position = position
        self.priority = priority
        self.ready: Entry | None = None  # the next item, weighed already
        self.taken = 0
        self.seq = 0
        self.queued = False


class Entrance(Dispatch):
    """Takes items in, and lets callers go."""

    __slots__ = ()

    def _bind(self) -> Runtime:
        """Make sure that the running event loop is the one that is served, and return it."""
        runtime = self._runtime
        if runtime is None or not runtime.is_current():
            current = current_runtime()
            if runtime is not None:
                if not runtime.has_ended():
                    raise RuntimeError(
                        f"batcher {self._name!r} serves another event loop that is still alive: "
                        "make one batcher for each event loop"
                    )
                self._lose_loop()
            self._runtime = runtime = current
            self._state = "open"  # closing belongs to the loop that was served then
            self._loop = current.loop
            self._create_waiter = current.create_waiter
            self._breathe = current.breathe
            self._started = current.started
            self._now = current.now
            if self._observer is not None:
                self._look(self._observer)
        return runtime

    def _new_watched(self, runtime: Runtime) -> Any:
        """Make a waiter that tells of its cancellation; who calls marks it."""
        observer = self._observer
        if observer is not None and observer.recorder is not None and observer.per_item:
            return runtime.item_waiter(None)
        return runtime.watched_waiter(None)

    def _mark(self, waiter: Any) -> None:
        """Let telemetry know whose waiter this is: of who calls here."""
        if self._observer is not None:
            self._observer.mark(waiter, self._now)

    def _lose_loop(self) -> None:
        lost = self._buffered() + self._flying + self._in_backoff
        if lost:
            write(
                logging.WARNING,
                "batcher %r: %d items ended with their event loop, unhandled or cut short",
                self._name,
                lost,
            )
        self._forget()

    def _guard(self, call: str) -> None:
        """Refuse to wait inside a running batch of this very batcher."""
        run = batch.running()
        while run is not None:
            if run.owner is self and not run.ended:
                raise WouldDeadlock(self._name, call)
            run = run.outer

    def _enter(
        self, item: Any, priority: float = 0, *, wait: bool = True, waiter: Any = None
    ) -> Any:
        """Take an item in, or in line, and return who waits for it. The way for whatever is not usual."""
        runtime = self._runtime
        if runtime is None or running_loop() is not self._loop or self._loop is None:
            runtime = self._bind()
        if self._state != "open":  # not _check_open: a call is 0.2 % of a lone caller's way
            raise BatcherClosed(self._name)
        if self._telling:
            withdrawn = runtime.create_waiter()
            withdrawn.cancel()
            return withdrawn
        if priority or type(priority) is not int:  # spares a lone caller the call, 0.6 % of its way
            priority = _priority(priority)
        if self._paused:  # somebody cancelled a task of ours, and the loop goes on after all
            self._paused = False
            self._pump()
        fifo = self._fifo
        if fifo is not None and not priority and (room := self._room()) > 0:
            if waiter is None:
                length = len(fifo.items)
                waiter = self._create_waiter()
                if self._fifo is not fifo or len(fifo.items) != length or self._state != "open":
                    return self._enter_again(item, waiter, wait=wait)
            # Where a slot is free it waits for its turn alone, so nobody asks since when.
            timed = self._timed or self._busy >= self._max_concurrency
            fifo.open(room, self._now() if timed else None)
            fifo.items.append(item)
            fifo.waiters.append(waiter)
            self._fast = fifo
            if len(fifo.items) >= fifo.limit:
                self._fill(fifo, waiter)
            elif self._max_wait:
                self._pump()
            elif self._busy < self._max_concurrency and not self._starting:
                self._start(runtime)  # what _pump comes to here, at half its cost for a lone caller
            return waiter
        return self._enter_entry(runtime, self._weighed(item, priority), wait=wait, waiter=waiter)

    def _enter_marked(self, item: Any, waiter: Any) -> None:
        """Take in an item of another thread, whose waiter comes with it."""
        self._mark(waiter)
        self._enter(item, waiter=waiter)

    def _fill(self, fifo: Fifo, waiter: Any, *, wait: bool = True) -> Any:
        """React to a buffer that has reached its limit: a full batch, or a full room.

        Returns who waits for the last item.
        """
        if fifo is not self._fast:
            fifo.waiters.pop()
            return self._enter_again(fifo.items.pop(), waiter, wait=wait)
        self._fast = None
        if self._max_wait and self._room() <= 0:
            self._generalise(self._bind())  # no more company can come, so all is due
        if self._max_wait or self._busy < self._max_concurrency:
            self._pump()
        return waiter

    def _enter_again(self, item: Any, waiter: Any, *, wait: bool) -> Any:
        """Take an item in whose buffer was filled, emptied or replaced while its waiter was made.

        What makes a waiter may run code of others: a span processor, or a finalizer that logs. That may
        come back in here.
        """
        try:
            return self._enter(item, wait=wait, waiter=waiter)
        except Exception as error:
            end_item(waiter, error)
            raise

    def _weighed(self, item: Any, priority: float) -> Entry:
        """Ask the user's functions about an item; what they raise is the caller's."""
        units = 0
        if self._weigh is not None:
            weight = self._weigh(item)
            if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
                raise TypeError(f"weigh must return a number, got {weight!r}")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weigh must return a finite number of at least 0, got {weight}")
            for name in ("max_batch_weight", "max_pending_weight"):
                allowed = getattr(self, f"_{name}")
                if allowed is not None and weight > allowed:
                    raise ItemTooHeavy(weight, allowed, name, self._name)
            units = self._scale.units(weight)
        entry = Entry(item, None, priority=priority, weight=units)
        if self._partition is not None:
            entry.partition = self._partition(item)
            _check_hashable("partition", entry.partition)
        if self._coalesce is not None:
            key = self._coalesce(item)
            _check_hashable("coalesce", key)
            entry.key = (key,)
        if self._capture_context:
            entry.context = batch.copy_context()
        return entry

    def _enter_entry(self, runtime: Runtime, entry: Entry, *, wait: bool, waiter: Any) -> Any:
        refuses = not wait or self._on_full == "reject"
        if refuses and not self._takes(entry):
            self._find_gone()
        self._generalise(runtime)
        lanes = self._ranked
        lane, sharer = lanes.place(entry)
        # From here on no code of others runs and nothing leaves: all stays as it is.
        self._check_open()
        line = sharer is None and not self._takes(entry)
        if line and refuses:
            raise self._full()
        target = entry if sharer is None else sharer
        mine = waiter
        if not hasattr(waiter, "on_cancel"):
            mine = self._new_watched(runtime)
        mine.on_cancel = partial(self._cancelled, runtime, target)
        if sharer is not None:
            self._share(sharer, mine, entry)
        elif line:
            entry.waiter = mine
            entry.state = "waiting"
            entry.seq = next(self._line_seq)
            self._line.push(entry)
            self._pump()
        else:
            entry.waiter = mine
            lanes.add(entry, self._now(), lane)
            self._pump()
        if mine is not waiter:
            self._mark(mine)
        return mine

    def _check_open(self) -> None:
        if self._state != "open":
            raise BatcherClosed(self._name)

    def _takes(self, entry: Entry) -> bool:
        """Tell whether an entry may go into the buffer: there is room, and nobody waits for it.

        While those in line are let in, only a function that they brought along can ask.
        """
        return (not self._line or self._admitting) and self._has_room(entry.weight)

    def _find_gone(self, refusals: int = 1) -> None:
        """Before refusing: do without entries that were cancelled and whose notice comes a turn later.

        Only what once stood in chunks gives such notice. Looks at no more than 64 of them for each
        refusal. With the last entry the buffer may turn into another one.
        """
        self._refused += refusals
        if not self._converted or 64 * self._refused < len(self._converted):
            return
        self._refused = 0
        converted = [entry for entry in self._converted if entry.state == "buffered"]
        self._converted = [entry for entry in converted if not entry.waiter.done()]
        for entry in converted:
            if entry.waiter.done():
                self._left(entry, entry.waiter)

    def _share(self, sharer: Entry, waiter: Any, entry: Entry) -> None:
        """Let the caller of an entry wait for an equal item that is buffered already."""
        if not isinstance(sharer.waiter, Shared):
            sharer.waiter = Shared({sharer.waiter: sharer.context})
        sharer.waiter.waiters[waiter] = entry.context
        self._ranked.promote(sharer, entry.priority)

    def _full(self) -> BatcherFull:
        """Make the error of who finds no room; those in line wait for the same."""
        if self._observer is not None:
            self._observer.refused(FULL)
        name = "max_pending" if self._room() <= 0 else "max_pending_weight"
        return BatcherFull(self._name, name, getattr(self, f"_{name}"))

    def _generalise(self, runtime: Runtime) -> None:
        """Keep an entry for each item from now on, until the buffer is empty."""
        fifo = self._fifo
        if fifo is None:
            return
        self._fast = self._fifo = None
        lanes = self._lanes = self._new_lanes()
        lanes.closing = fifo.closing
        for item, waiter, since in fifo.clear(self._now()):
            entry = Entry(item, waiter)
            lanes.add(entry, since)
            if isinstance(waiter, Member):
                waiter[0].entries.append((entry, waiter[1]))
            else:
                runtime.watch(waiter, partial(self._cancelled, runtime, entry))
                self._converted.append(entry)
        self._tell_withdrawn(fifo)

    def _enter_many(self, items: list[Any], priority: float) -> Group:
        """Take in the items of a ``submit_many``, as far as there is room; the rest stands in line."""
        runtime = self._bind()
        self._check_open()
        priority = _priority(priority)
        self._paused = False
        total = len(items)
        group = Group(total, next(self._ids))
        self._ids = count(group.first_id + total)
        waiter = group.waiter = self._new_watched(runtime)
        waiter.on_cancel = partial(self._group_cancelled, runtime, group)
        if total:  # a call without items has nothing to tell of
            self._mark(waiter)
            if self._state != "open":  # whom telemetry told has closed it
                end_item(waiter, None, cancelled=True)
                raise BatcherClosed(self._name)
        position = 0
        if self._fifo is not None and not priority:
            position = self._enter_fifo(self._fifo, group, items)
        if position < total:
            if self._on_full == "reject":
                self._find_gone(total - position)
            self._generalise(runtime)
            group.feed = _Feed(group, items, position, priority)
            group.feed.seq = next(self._line_seq)
            self._line.push(group.feed)
            self._admit()
            if group.feed is not None and self._on_full == "reject":
                self._reject(group.feed)
        self._pump()
        return group

    def _enter_fifo(self, fifo: Fifo, group: Group, items: list[Any]) -> int:
        """Append as many of a group's items as there is room for; return how many that were."""
        room = self._room()
        taken = max(0, min(room, len(items)))
        if taken:
            fifo.open(room, self._now(), taken)
            fifo.items += items[:taken]
            fifo.waiters += [group] * taken
        self._fast = None
        if self._max_wait and taken == room:
            self._generalise(self._bind())
        return taken

    def _reject(self, feed: _Feed) -> None:
        """Give every item that found no room its error."""
        self._line.discard(feed)
        feed.group.feed = None
        for index in range(feed.position, len(feed.items)):
            feed.group.fail(index, self._full())

    def _admit(self) -> None:
        """Let those in who wait for room: by priority, one in ten by age."""
        if self._admitting:  # by a function of the user's: whoever called that goes on
            return
        self._admitting = True
        try:
            while (waiting := self._line.turn()()) is not None and self._let_in(waiting):
                pass
        finally:
            self._admitting = False

    def _let_in(self, waiting: Any) -> bool:
        """Let in who is the next in line, if there is room; tell whether to look at the line again.

        The user's functions may do anything meanwhile, so after them it is looked at anew.
        """
        feed = waiting if isinstance(waiting, _Feed) else None
        if feed is not None and feed.ready is None:
            self._weigh_next(feed)
            return True
        entry: Any = waiting if feed is None else feed.ready
        lanes = self._ranked
        try:
            lane, sharer = lanes.place(entry)
        except Exception as error:  # noqa: BLE001 - a key's comparison: its own caller's
            self._turn_away(waiting, error)
            return True
        if not waiting.queued:
            return True
        if sharer is None and not self._has_room(entry.weight):
            return False
        if feed is not None:
            self._advance(feed)
            feed.group.entries.append((sharer or entry, entry.waiter[1]))
        else:
            self._line.turned()
            self._line.discard(entry)
            if sharer is not None:
                entry.waiter.on_cancel = partial(self._cancelled, self._runtime, sharer)  # type: ignore[arg-type]
        if sharer is not None:
            self._share(sharer, entry.waiter, entry)
        else:
            lanes.add(entry, self._now(), lane)
        return True

    def _weigh_next(self, feed: _Feed) -> None:
        """Ask the user's functions about a feed's next item."""
        index = feed.position
        try:
            entry = feed.context.run(self._weighed, feed.items[index], feed.priority)
        except Exception as error:  # noqa: BLE001 - the user's: it is that item's outcome
            self._turn_away(feed, error)
            return
        entry.waiter = Member((feed.group, index))
        feed.ready = entry

    def _turn_away(self, waiting: Any, error: Exception) -> None:
        """Fail who is the next in line, if it still is in line."""
        if not waiting.queued:
            return
        if isinstance(waiting, _Feed):
            waiting.ready = None
            waiting.position += 1
            waiting.group.fail(waiting.position - 1, error)
            self._end_feed(waiting)
        else:
            self._line.discard(waiting)
            waiter = waiting.waiter
            waiting.release()
            waiter.set_exception(error)

    def _advance(self, feed: _Feed) -> None:
        """Step on after one item went in; after a batch of them let others go first."""
        self._line.turned()
        feed.ready = None
        feed.position += 1
        feed.taken += 1
        if self._end_feed(feed):
            return
        if feed.taken % self._current_size() == 0 and len(self._line) > 1:
            self._line.discard(feed)
            feed.seq = next(self._line_seq)
            self._line.push(feed)

    def _end_feed(self, feed: _Feed) -> bool:
        """Take a feed out of the line if it has no more items: its caller waits for room no more."""
        if feed.position < len(feed.items):
            return False
        self._line.discard(feed)
        feed.group.feed = None
        return True

    def _cancelled(self, runtime: Runtime, entry: Entry, waiter: Any) -> None:
        """A caller was cancelled."""
        if self._serves(runtime):
            self._left(entry, waiter)

    def _group_cancelled(self, runtime: Runtime, group: Group, waiter: Any) -> None:
        if self._serves(runtime):
            self._group_left(group, waiter)

    def _serves(self, runtime: Runtime) -> bool:
        """Tell whether an event loop is still the one that is served: what it left behind is nobody's."""
        return runtime is self._runtime and (runtime.is_current() or not runtime.has_ended())

    def _left(self, entry: Entry, waiter: Any) -> None:
        """A caller has gone."""
        if isinstance(entry.waiter, Shared):
            sharers = entry.waiter.waiters
            sharers.pop(waiter, None)
            if sharers:
                if entry.run is None:
                    entry.context = next(iter(sharers.values()))  # of one who is still there
                return
        state = entry.state
        if state == "buffered":
            self._ranked.withdraw(entry)
        elif state == "waiting":
            self._line.discard(entry)
        elif state == "backoff":
            self._end_backoff(entry)
        else:
            if state == "flying" and entry.run is not None:
                self._abandon(entry.run)
            return
        if self._observer is not None:
            self._observer.refused(CANCELLED)
        entry.release()
        self._changed()

    def _abandon(self, run: Run) -> None:
        run.gone += 1
        self._cancel_if_abandoned(run)

    def _group_left(self, group: Group, _: Any) -> None:
        feed = group.feed
        if feed is not None:
            self._line.discard(feed)
            group.feed = None
            if self._observer is not None:
                self._observer.refused(CANCELLED, len(feed.items) - feed.position)
        entries, group.entries = group.entries, []
        for entry, index in entries:
            self._left(entry, Member((group, index)))
        self._changed()

    def _changed(self) -> None:
        """Something left: let others in, start what is ready, see whether all is done."""
        if self._line:
            self._admit()
        self._simplify()
        self._pump()
        self._check_idle()

    def _sweep(self) -> None:
        """Drop the items of callers who were cancelled without notice yet."""
        buffer: Fifo | Lanes = self._fifo if self._fifo is not None else self._ranked
        buffer.sweep()
        if buffer.withdrawn:
            self._tell_withdrawn(buffer)
            self._fast = None
            self._changed()

    def _drop(self) -> int:
        """Close at once: end every caller there and then; return how many there were."""
        self._state = "closed"
        self._fast = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        dropped = 0
        waiters: list[tuple[Any, int]] = []  # each with the attempts that there were
        if self._fifo is not None:
            waiters = [(waiter, 0) for _, waiter, _ in self._fifo.clear()]
            self._tell_withdrawn(self._fifo)
        else:
            waiters = [self._let_go(entry) for entry in list(self._ranked.entries())]
        backoffs, self._backoffs = self._backoffs, []
        waiters += [self._let_go(entry) for _, _, entry in backoffs if entry.state == "backoff"]
        for waiter, attempts in waiters:
            gone = waiter.done()  # cancelled, and its notice is still on the way
            if self._observer is not None:
                self._observer.refused(CANCELLED if gone else CLOSED)
            if not gone:
                dropped += 1
                note_attempts(waiter, attempts)
                waiter.set_exception(BatcherClosed(self._name, started=attempts > 0))
        for run in [slot.run for slot in self._slots if slot.run is not None]:
            dropped += run.left
            self._give_up(run, lambda: BatcherClosed(self._name, started=True))
        self._check_idle()
        return dropped

    def _let_go(self, entry: Entry) -> tuple[Any, int]:
        waiter, attempts = entry.waiter, entry.attempts - 1
        if entry.state == "backoff":
            self._end_backoff(entry)
        else:
            self._ranked.withdraw(entry)
        entry.release()
        return waiter, attempts


def _priority(value: Any) -> float:
    """Return a priority as a plain number, which compares without code of others."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"priority must be a number, got {value!r}")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if number != number:  # noqa: PLR0124 - NaN, which is in no order to any other
        raise TypeError(f"priority must be a number, got {value!r}")
    return number


def _check_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name} must return a hashable value, got {value!r}") from None
