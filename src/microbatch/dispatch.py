"""The machine inside a Batcher: room, slots, runs and outcomes.

An item's way: `_enter` takes it into the buffer, or into the line of those who wait for room; `_pump`
starts a task for every batch that is ready while slots are free; the task (`_work`) cuts its batch only
when it first runs, so that everybody who was runnable before has had a turn, calls the handler and gives
each waiter its outcome; `_end` frees the slot and lets the next ones in.

Everything here runs in the thread of the event loop that the batcher serves.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import random
import weakref
from functools import partial
from itertools import count, repeat
from typing import TYPE_CHECKING, Any, Literal

import anyio

from . import batch
from ._runtime import InvalidState, LoopGone, Runtime, current_runtime, in_context, running_loop
from ._waiters import Group, Member, Shared, dressed, group_of
from .buffer import Entry, Fifo, Lanes, Ranking
from .errors import (
    BatcherClosed,
    BatcherFull,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ItemTooHeavy,
    ResultCountError,
    Skipped,
    WouldDeadlock,
)
from .handler import Kind, call_in_thread, copy_exception, results_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from contextvars import Context

    from ._runtime import Handle
    from .adaptive import AdaptiveSize
    from .batch import Run
    from .retry import Retry

logger = logging.getLogger("microbatch")

#: Handler calls that may still run after their timeout before new batches are refused. A thread cannot
#: be killed; 8 is far from what exhausts a process and enough to ride out a hiccup (a choice).
STUCK_MAX = 8

#: Items that batches may start with in one turn of the loop, the first batch excepted. Their callers then
#: wake in the next turn, while they are still in the processor's cache: with 10,000 callers and batches of
#: 100 that takes a third off the whole cost of an item. And nobody else waits long for a turn.
TURN = 100

#: Seconds without a new batch after somebody else cancelled a task of ours, if nothing else happens.
PAUSE = 0.1

_UNBOUNDED = 1 << 62

_OWN_FRAMES = frozenset((__name__, in_context.__module__))

_everyone: weakref.WeakSet[Dispatch] = weakref.WeakSet()


def _forget_everything() -> None:
    for dispatch in list(_everyone):
        dispatch._forget()  # noqa: SLF001 - its own module


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_everything)


class _Slot:
    """The right to run batches, one at a time, held by a task that goes on while some are ready.

    Attributes:
        held: True while the slot counts as taken.
        starting: True while its task is about to cut a batch.
        handled: Items since the loop last had a turn.
    """

    __slots__ = ("handled", "held", "run", "starting", "task")

    def __init__(self) -> None:
        self.held = True
        self.starting = True
        self.handled = 0
        self.task: Handle | None = None
        self.run: Run | None = None


class _Feed:
    """What of a ``submit_many`` still waits for room."""

    __slots__ = ("group", "items", "position", "priority", "queued", "ready", "seq", "taken")

    def __init__(self, group: Group, items: list[Any], position: int, priority: float) -> None:
        self.group = group
        self.items = items
        self.position = position
        self.priority = priority
        self.ready: Entry | None = None  # the next item, weighed already
        self.taken = 0
        self.seq = 0
        self.queued = False


class Dispatch:
    """Everything of a Batcher but its face."""

    # Slots: more than 30 attributes, and every submit reads six of them.
    __slots__ = (
        "__weakref__",
        "_adaptive",
        "_backoff_seq",
        "_backoff_weight",
        "_backoffs",
        "_batches",
        "_breathe",
        "_busy",
        "_cancel_abandoned",
        "_capture_context",
        "_fast",
        "_coalesce",
        "_converted",
        "_on_start",
        "_paused",
        "_refused",
        "_drain_timeout",
        "_context",
        "_create_waiter",
        "_empty",
        "_failed",
        "_fatal",
        "_fifo",
        "_flying",
        "_flying_weight",
        "_handler",
        "_handler_timeout",
        "_idle",
        "_ids",
        "_in_backoff",
        "_is_plain",
        "_items",
        "_kind",
        "_lanes",
        "_line",
        "_line_seq",
        "_loop",
        "_max_batch_weight",
        "_max_concurrency",
        "_max_pending",
        "_max_pending_weight",
        "_max_wait",
        "_name",
        "_now",
        "_on_full",
        "_partition",
        "_partition_concurrency",
        "_reasons",
        "_retry",
        "_pace",
        "_scoped",
        "_running",
        "_runtime",
        "_size",
        "_slots",
        "_started",
        "_starting",
        "_state",
        "_stuck",
        "_timer",
        "_timer_at",
        "_weigh",
    )

    # Settings, checked and set by Batcher.
    _name: str
    _handler: Callable[[list[Any]], Any]
    _kind: Kind
    _size: int
    _adaptive: AdaptiveSize | None
    _max_wait: float
    _max_concurrency: int
    _max_pending: int | None
    _on_full: Literal["wait", "reject"]
    _weigh: Callable[[Any], float] | None
    _max_batch_weight: float | None
    _max_pending_weight: float | None
    _partition: Callable[[Any], Hashable] | None
    _partition_concurrency: int | None
    _coalesce: Callable[[Any], Hashable] | None
    _retry: Retry | None
    _handler_timeout: float | None
    _drain_timeout: float | None
    _cancel_abandoned: bool
    _capture_context: bool
    _scoped: bool  # a handler may be cancelled while others go on
    _is_plain: bool  # nothing is set that needs an entry for each item

    def _begin(self) -> None:
        """Set the state of a batcher that has nothing and serves no loop."""
        self._state: Literal["open", "closing", "closed"] = "open"
        self._pace = max(1, TURN // self._size)
        self._ids = count()
        self._fatal: BaseException | None = None
        #: Called in the batch's context before its handler is: what the durable worker prepares there.
        self._on_start: Callable[[Run], None] | None = None
        self._batches = self._items = self._failed = 0
        self._reasons: dict[str, int] = {}
        self._context: Context | None = None
        self._forget()
        _everyone.add(self)

    def _forget(self) -> None:
        """Drop what belonged to an event loop that is gone, or to the process that forked this one."""
        self._runtime: Runtime | None = None
        self._loop: Any = self  # no loop is this object: the fast path is shut
        self._fast: Fifo | None = None  # where items may be appended without asking
        self._fifo: Fifo | None = None
        self._lanes: Lanes | None = None
        self._line: Ranking[Any] = Ranking()
        self._line_seq = count(1)
        self._converted: list[Entry] = []  # entries made of chunks
        self._refused = 0  # calls since those were looked at
        self._paused = False  # somebody else cancelled our task: the loop may be ending
        self._slots: set[_Slot] = set()
        self._busy = 0  # slots taken
        self._starting = 0  # of them those whose task is about to cut a batch
        self._running = 0  # handler calls without an end
        self._flying = 0
        self._flying_weight = 0.0
        self._backoffs: list[tuple[float, int, Entry]] = []
        self._backoff_seq = count()
        self._in_backoff = 0
        self._backoff_weight = 0.0
        self._stuck: set[Run] = set()
        self._timer: Handle | None = None
        self._timer_at = 0.0
        self._idle: anyio.Event | None = None  # set when nothing is left to drain
        self._empty: anyio.Event | None = None  # set when no task is left
        self._reset_buffer()

    def _reset_buffer(self) -> None:
        if self._is_plain:
            self._fifo, self._lanes = Fifo(self._size, self._max_wait), None
        else:
            self._fifo, self._lanes = None, self._new_lanes()

    def _new_lanes(self) -> Lanes:
        return Lanes(
            self._current_size,
            self._max_wait,
            max_weight=self._max_batch_weight,
            lane_limit=self._partition_concurrency,
        )

    def _current_size(self) -> int:
        return self._size if self._adaptive is None else self._adaptive.size

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
            self._loop = current.loop
            self._create_waiter = current.create_waiter
            self._breathe = current.breathe
            self._started = current.started
            self._now = current.now
        return runtime

    def _lose_loop(self) -> None:
        lost = self._buffered() + self._flying + self._in_backoff
        if lost:
            logger.warning(
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

    # Entering

    def _enter(
        self, item: Any, priority: float = 0, *, wait: bool = True, waiter: Any = None
    ) -> Any:
        """Take an item in, or in line, and return who waits for it. The way for whatever is not usual."""
        runtime = self._runtime
        if runtime is None or running_loop() is not self._loop or self._loop is None:
            runtime = self._bind()
        if self._state != "open":
            raise BatcherClosed(self._name)
        _check_priority(priority)
        self._paused = False
        fifo = self._fifo
        if fifo is not None and not priority and (room := self._room()) > 0:
            if waiter is None:
                waiter = self._create_waiter()
            fifo.open(room, self._now() if self._max_wait else 0.0)
            fifo.items.append(item)
            fifo.waiters.append(waiter)
            self._fast = fifo
            if len(fifo.items) >= fifo.limit:
                self._fill()
            elif self._max_wait or self._busy < self._max_concurrency:
                self._pump()
            return waiter
        self._generalise()
        entry = self._weighed(item, priority)
        return self._enter_entry(runtime, entry, wait=wait, waiter=waiter)

    def _fill(self) -> None:
        """React to a buffer that has reached its limit: a full batch, or a full room."""
        self._fast = None
        if self._max_wait and self._room() <= 0:
            self._generalise()  # no more company can come, so all is due
        if self._max_wait or self._busy < self._max_concurrency:
            self._pump()

    def _weighed(self, item: Any, priority: float) -> Entry:
        """Ask the user's functions about an item; what they raise is the caller's."""
        weight: float = 0
        if self._weigh is not None:
            weight = self._weigh(item)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise TypeError(f"weigh must return a number, got {weight!r}")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weigh must return a finite number of at least 0, got {weight}")
            for name in ("max_batch_weight", "max_pending_weight"):
                allowed = getattr(self, f"_{name}")
                if allowed is not None and weight > allowed:
                    raise ItemTooHeavy(weight, allowed, name)
        entry = Entry(item, None, priority=priority, weight=weight)
        if self._partition is not None:
            entry.partition = self._partition(item)
            _check_hashable("partition", entry.partition)
        if self._coalesce is not None:
            key = self._coalesce(item)
            _check_hashable("coalesce", key)
            entry.key = (key,)  # a key of None is a key too
        if self._capture_context:
            entry.context = batch.copy_context()
        return entry

    def _enter_entry(
        self, runtime: Runtime, entry: Entry, *, wait: bool, waiter: Any
    ) -> Any:
        lanes = self._lanes
        assert lanes is not None  # noqa: S101
        sharer = None if entry.key is None else lanes.sharer(entry.partition, entry.key)
        line = sharer is None and (len(self._line) > 0 or not self._has_room(entry.weight))
        if line and (not wait or self._on_full == "reject"):
            self._find_gone()
            line = len(self._line) > 0 or not self._has_room(entry.weight)
            if line:
                raise self._full(entry.weight)
        target = entry if sharer is None else sharer
        if waiter is None:
            waiter = runtime.watched_waiter(partial(self._left, target))
        else:
            waiter.on_cancel = partial(self._left, target)
        if sharer is not None:
            self._share(sharer, waiter, entry.priority)
        elif line:
            entry.waiter = waiter
            entry.state = "waiting"
            entry.seq = next(self._line_seq)
            self._line.push(entry)
            self._pump()
        else:
            entry.waiter = waiter
            lanes.add(entry, self._now())
            self._pump()
        return waiter

    def _find_gone(self) -> None:
        """Before refusing: do without entries that were cancelled and whose notice comes a turn later.

        Only what once stood in chunks gives such notice. Looks at no more than 64 of them for each
        refusal.
        """
        self._refused += 1
        if not self._converted or 64 * self._refused < len(self._converted):
            return
        self._refused = 0
        converted = [entry for entry in self._converted if entry.state == "buffered"]
        self._converted = [entry for entry in converted if not entry.waiter.done()]
        for entry in converted:
            if entry.waiter.done():
                self._left(entry, entry.waiter)

    def _share(self, entry: Entry, waiter: Any, priority: float) -> None:
        """Let one more caller wait for an item that is buffered already."""
        if isinstance(entry.waiter, Shared):
            entry.waiter.waiters.append(waiter)
        else:
            entry.waiter = Shared([entry.waiter, waiter])
        if self._lanes is not None:
            self._lanes.promote(entry, priority)

    def _full(self, weight: float = 0) -> BatcherFull:
        if self._max_pending is not None and self._room() <= 0:
            return BatcherFull(self._name, "max_pending", self._max_pending)
        if self._max_pending_weight is not None and not self._has_room(weight):
            return BatcherFull(self._name, "max_pending_weight", self._max_pending_weight)
        limit = self._max_pending if self._max_pending is not None else self._max_pending_weight
        name = "max_pending" if self._max_pending is not None else "max_pending_weight"
        return BatcherFull(self._name, name, limit or 0)

    def _buffered(self) -> int:
        if self._fifo is not None:
            return self._fifo.count
        return self._lanes.count if self._lanes is not None else 0

    def _room(self) -> int:
        if self._max_pending is None:
            return _UNBOUNDED
        return self._max_pending - self._buffered() - self._flying - self._in_backoff

    def _has_room(self, weight: float) -> bool:
        if self._room() <= 0:
            return False
        if self._max_pending_weight is None or self._lanes is None:
            return True
        pending = self._lanes.weight + self._flying_weight + self._backoff_weight
        return pending + weight <= self._max_pending_weight

    def _generalise(self) -> None:
        """Keep an entry for each item from now on, until the buffer is empty."""
        fifo = self._fifo
        if fifo is None:
            return
        self._fast = self._fifo = None
        lanes = self._lanes = self._new_lanes()
        lanes.closing = fifo.closing
        for item, waiter, since in fifo.clear():
            entry = Entry(item, waiter)
            lanes.add(entry, since)
            if isinstance(waiter, Member):
                waiter[0].entries.append(entry)
            elif self._runtime is not None:
                self._runtime.watch(waiter, partial(self._left, entry))
                self._converted.append(entry)

    def _simplify(self) -> None:
        """Go back to chunks when nothing is left that needs more."""
        if self._is_plain and self._lanes is not None and not self._lanes.count and not self._line:
            self._reset_buffer()
            self._converted.clear()
            if self._fifo is not None:
                self._fifo.closing = self._state != "open"

    # Entering together

    def _enter_many(self, items: list[Any], priority: float) -> Group:
        """Take in the items of a ``submit_many``, as far as there is room; the rest stands in line."""
        runtime = self._bind()
        if self._state != "open":
            raise BatcherClosed(self._name)
        _check_priority(priority)
        self._paused = False
        total = len(items)
        group = Group(total, next(self._ids))
        self._ids = count(group.first_id + total)
        group.waiter = runtime.watched_waiter(partial(self._group_left, group))
        position = 0
        if self._fifo is not None and not priority:
            position = self._enter_fifo(self._fifo, group, items)
        if position < total:
            self._generalise()
            group.feed = _Feed(group, items, position, priority)
            group.feed.seq = next(self._line_seq)
            self._line.push(group.feed)
            if self._on_full == "reject" and self._line.oldest() is not group.feed:
                self._reject(group.feed)
            else:
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
            fifo.open(room, self._now() if self._max_wait else 0.0, taken)
            fifo.items += items[:taken]
            fifo.waiters += zip(repeat(group), range(taken))  # noqa: B905 - one has no end
        self._fast = None
        if self._max_wait and taken == room:
            self._generalise()
        return taken

    def _reject(self, feed: _Feed) -> None:
        """Give every item that found no room its error."""
        self._line.discard(feed)
        feed.group.feed = None
        for index in range(feed.position, len(feed.items)):
            feed.group.fail(index, self._full())

    def _next_of(self, feed: _Feed) -> Entry | None:
        """Return the feed's next item that its own functions accept; None at the end."""
        while feed.ready is None and feed.position < len(feed.items):
            index = feed.position
            try:
                entry = self._weighed(feed.items[index], feed.priority)
            except Exception as error:  # noqa: BLE001 - the user's: it is that item's outcome
                feed.position += 1
                feed.group.fail(index, error)
                continue
            entry.waiter = Member((feed.group, index))
            feed.ready = entry
        return feed.ready

    def _admit(self) -> None:
        """Let those in who wait for room: by priority, the oldest first."""
        lanes = self._lanes
        if lanes is None:
            return
        while (waiting := self._line.turn()()) is not None:
            entry = self._next_of(waiting) if isinstance(waiting, _Feed) else waiting
            if entry is None:
                self._line.discard(waiting)
                waiting.group.feed = None
                continue
            sharer = None if entry.key is None else lanes.sharer(entry.partition, entry.key)
            if sharer is None and not self._has_room(entry.weight):
                return
            if isinstance(waiting, _Feed):
                self._advance(waiting)
                waiting.group.entries.append(entry if sharer is None else sharer)
            else:
                self._line.discard(entry)
                if sharer is not None and not isinstance(entry.waiter, Member):
                    entry.waiter.on_cancel = partial(self._left, sharer)
            if sharer is not None:
                self._share(sharer, entry.waiter, entry.priority)
            else:
                lanes.add(entry, self._now())

    def _advance(self, feed: _Feed) -> None:
        """Step on after one item went in; after a batch of them let others go first."""
        feed.ready = None
        feed.position += 1
        feed.taken += 1
        if feed.taken % self._current_size() == 0 and len(self._line) > 1:
            self._line.discard(feed)
            feed.seq = next(self._line_seq)
            self._line.push(feed)

    # Leaving before the end

    def _left(self, entry: Entry, waiter: Any) -> None:
        """A caller was cancelled."""
        if isinstance(entry.waiter, Shared):
            sharers = entry.waiter.waiters
            if waiter in sharers:
                sharers.remove(waiter)
            if sharers:
                return
        state, lanes = entry.state, self._lanes
        if state == "buffered" and lanes is not None:
            lanes.withdraw(entry)
        elif state == "waiting":
            self._line.discard(entry)
        elif state == "backoff":
            self._in_backoff -= 1
            self._backoff_weight -= entry.weight
        else:
            if state == "flying" and entry.run is not None:
                self._abandon(entry.run)
            return
        entry.release()
        self._changed()

    def _abandon(self, run: Run) -> None:
        run.gone += 1
        if self._cancel_abandoned and run.gone >= run.left and not run.ended:
            self._cancel(run)

    def _group_left(self, group: Group, _: Any) -> None:
        if group.feed is not None:
            self._line.discard(group.feed)
            group.feed = None
        entries, group.entries = group.entries, []
        for entry in entries:
            if isinstance(entry.waiter, Shared):
                for member in [w for w in entry.waiter.waiters if isinstance(w, Member)]:
                    if member[0] is group:
                        self._left(entry, member)
            else:
                self._left(entry, entry.waiter)
        self._changed()

    def _changed(self) -> None:
        """Something left: let others in, start what is ready, see whether all is done."""
        if self._line:
            self._admit()
        self._simplify()
        self._pump()
        self._check_idle()

    # Starting

    def _pump(self, now: float | None = None) -> None:
        """Start a task for every batch that is ready while slots are free; else set the timer."""
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
                if self._line or self._room() <= 0:
                    self._lanes.press()  # type: ignore[union-attr]
            ready = buffer.ready(now)  # type: ignore[union-attr]
            when = buffer.deadline()  # type: ignore[union-attr]
            if when is not None and when <= now:
                when = None
        ready = min(ready, self._pace)
        while self._starting < ready and self._busy < self._max_concurrency:
            self._busy += 1
            self._starting += 1
            slot = _Slot()
            self._slots.add(slot)
            slot.task = runtime.spawn(self._work, slot, self._name)
        if self._backoffs and (when is None or self._backoffs[0][0] < when):
            when = self._backoffs[0][0]
        if when is not None and (self._timer is None or when < self._timer_at):
            self._set_timer(when)

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
        backoffs, lanes = self._backoffs, self._lanes
        while backoffs and backoffs[0][0] <= now:
            entry = heapq.heappop(backoffs)[2]
            if entry.state == "backoff" and lanes is not None:
                self._in_backoff -= 1
                self._backoff_weight -= entry.weight
                lanes.add(entry, now)
        self._pump(now)

    async def _work(self, slot: _Slot) -> None:
        """Hold a slot for one batch after the other, as long as one is ready."""
        forced = True
        try:
            await self._started()
            while (run := self._cut(slot)) is not None:
                try:
                    returned = await in_context(self._context, self._call, run)
                    results = results_of(returned, run.size)
                except Exception as error:  # noqa: BLE001 - the handler's: every caller gets it
                    self._fail(run, error)
                except BaseException as error:
                    if self._crash(run, slot, error):
                        raise
                else:
                    self._deliver(run, results)
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

    def _cut(self, slot: _Slot) -> Run | None:
        """Take the next batch out of the buffer into a slot; None if there is none."""
        if slot.starting:
            slot.starting = False
            self._starting -= 1
        now = self._now()
        fifo = self._fifo
        run = fifo.cut(now) if fifo is not None else self._lanes.cut(now)  # type: ignore[union-attr]
        if run is None:
            if fifo is None:
                self._changed()  # whoever was found gone has left room
            return None
        slot.run = run
        run.owner = self
        run.slot = slot
        run.started = now
        self._running += 1
        self._flying += run.size
        if fifo is None:
            self._flying_weight += run.weight
            self._changed()
        elif self._max_wait or not fifo.items:
            self._fast = None  # the next item asks, and wakes us
        if fifo is not None and fifo.items and self._busy < self._max_concurrency:
            self._pump(now)
        return run

    def _call(self, run: Run) -> Any:
        """Begin the handler call; runs in the batch's own context."""
        run.outer = batch.running()
        batch.enter(run)
        if self._on_start is not None:
            self._on_start(run)
        if self._stuck and (stuck := self._count_stuck()) > STUCK_MAX:
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

    def _keep(self, slot: _Slot) -> bool:
        """Keep the slot for the next batch if one is ready and it is still ours; tell whether.

        A full one may follow at once. Before one that can still grow, and after so many items, the loop
        has its turn: everybody who is runnable may join.
        """
        now = self._now() if self._max_wait or self._fifo is None else 0.0
        buffer = self._fifo if self._fifo is not None else self._lanes
        ready = min(self._pace, buffer.ready(now))  # type: ignore[union-attr]
        if not slot.held or self._starting >= ready:
            return False
        if slot.handled >= TURN or not buffer.is_full():  # type: ignore[union-attr]
            slot.handled = 0
            slot.starting = True
            self._starting += 1
        return True

    def _free(self, slot: _Slot) -> None:
        if slot.held:
            slot.held = False
            self._busy -= 1

    def _count_stuck(self) -> int:
        """Count the calls that go on after they were given up: threads at once, tasks after a while."""
        now, grace = self._now(), 2 * (self._handler_timeout or 0.0)
        for run in [run for run in self._stuck if run.slot is None and not run.threads]:
            self._stuck.discard(run)
        return sum(bool(run.threads) or now >= run.started + grace for run in self._stuck)

    async def _iterate(self, run: Run) -> None:
        """Run a generator handler: each (index, result) that it yields is an outcome at once."""
        generator = self._handler(run.items)
        size = run.size
        problem = ""
        try:
            async for pair in generator:
                if not (isinstance(pair, tuple) and len(pair) == 2):
                    raise TypeError(
                        f"a generator handler must yield (index, result) pairs, got {pair!r}"
                    )
                index, result = pair
                if isinstance(index, bool) or not isinstance(index, int):
                    raise TypeError(f"a generator handler must yield int indices, got {index!r}")
                if not 0 <= index < size:
                    problem = f"index {index} is out of range"
                elif run.waiters[index] is None and not run.ended:
                    problem = f"index {index} came twice"
                if problem:
                    raise ResultCountError(size, size - run.left, problem)
                if run.ended:
                    return
                self._settle(run, index, result)
            missing = [i for i, waiter in enumerate(run.waiters) if waiter is not None]
            if missing:
                raise ResultCountError(size, size - run.left, f"index {missing[0]} never came")
        except Exception as error:  # noqa: BLE001 - callers must not wait for the generator to close
            self._fail_waiters(run, error)
        finally:
            await generator.aclose()

    # Outcomes

    def _deliver(self, run: Run, results: list[Any]) -> None:
        """Give every item its result."""
        if run.ended:
            return
        if run.entries is not None or run.early:
            for index, waiter in enumerate(run.waiters):
                if waiter is not None:
                    self._settle(run, index, results[index])
        elif (group := group_of(run.waiters)) is not None and not _has_exception(results):
            group.settle_run(run.waiters[0][1], results)
            self._items += run.left
            self._flying -= run.left
            run.left = 0
        else:
            self._deliver_all(run, results)
            self._items += run.left
            self._flying -= run.left
            run.left = 0
        self._end(run)

    def _deliver_all(self, run: Run, results: list[Any]) -> None:
        if run.uniform and not _has_exception(results):
            # One C call an item: 400 instructions less than a loop that looks at each.
            calls = map(type(run.waiters[0]).set_result, run.waiters, results)
            while True:
                try:
                    for _ in calls:
                        pass
                except InvalidState:  # a caller has gone; the next ones are still to come
                    continue
                return
        for waiter, result in zip(dressed(run.waiters), results, strict=True):
            if isinstance(result, BaseException):
                self._raise_in(waiter, self._raisable(result))
            elif not waiter.done():
                waiter.set_result(result)

    def _settle(self, run: Run, index: int, result: Any) -> None:
        """Give one item its outcome, or send it into back-off."""
        if isinstance(result, BaseException):
            self._settle_error(run, index, self._raisable(result))
            return
        waiter, entry = self._take_out(run, index)
        self._items += 1
        if entry is not None:
            _note_attempts(waiter, entry.attempts)
        if not waiter.done():
            waiter.set_result(result)
        if entry is not None:
            entry.release()

    def _settle_error(self, run: Run, index: int, error: Exception) -> None:
        """The same with an exception that belongs to this item alone."""
        waiter, entry = self._take_out(run, index)
        if entry is not None and self._back_off(entry, error):
            return
        self._items += 1
        if entry is not None:
            _note_attempts(waiter, entry.attempts)
        self._raise_in(waiter, error)
        if entry is not None:
            entry.release()

    def _take_out(self, run: Run, index: int) -> tuple[Any, Entry | None]:
        waiter = run.waiters[index]
        if type(waiter) is tuple:
            waiter = Member(waiter)
        run.waiters[index] = None
        run.early = True
        run.left -= 1
        self._flying -= 1
        if run.entries is None:
            return waiter, None
        entry = run.entries[index]
        self._flying_weight -= entry.weight
        if run.gone and waiter.done():
            run.gone -= 1
        return waiter, entry

    def _raise_in(self, waiter: Any, error: Exception) -> None:
        if not isinstance(error, Skipped):
            self._failed += 1
        if not waiter.done():
            waiter.set_exception(error)

    def _raisable(self, error: BaseException) -> Exception:
        """Make of an exception one that may be raised in one caller, a copy of its own.

        Always a copy: handlers return constants too, in many batches.
        """
        if isinstance(error, StopIteration):  # no coroutine can raise it: as Python itself does
            stopped = RuntimeError("handler raised StopIteration")
            stopped.__cause__ = error
            return stopped
        if not isinstance(error, Exception):
            crashed = HandlerCrashed(self._name, type(error).__name__)
            crashed.__cause__ = error
            return crashed
        return copy_exception(error)

    def _back_off(self, entry: Entry, error: Exception) -> bool:
        """Send a failed item again later, if it may be; tell whether."""
        retry = self._retry
        if retry is None or entry.waiter.done() or self._state == "closed":
            return False
        if self._max_pending is not None and self._in_backoff >= max(1, self._max_pending // 2):
            return False
        try:
            delay = retry.delay(error, entry.attempts, random.random)
        except Exception:  # the user's predicate: the item fails with its own error
            logger.exception("batcher %r: Retry(on=...) raised; the item is not retried", self._name)
            return False
        if delay is None:
            return False
        entry.attempts += 1
        entry.state = "backoff"
        entry.run = entry.lane = None
        self._in_backoff += 1
        self._backoff_weight += entry.weight
        heapq.heappush(
            self._backoffs, (self._now() + delay, next(self._backoff_seq), entry)
        )
        return True

    def _fail(self, run: Run, error: BaseException) -> None:
        """Fail every item that has no outcome yet, and end the run."""
        self._fail_waiters(run, error)
        self._end(run, failed=True)

    def _fail_waiters(self, run: Run, error: BaseException) -> None:
        if run.ended:
            return
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals.get("__name__") in _OWN_FRAMES:
            trace = trace.tb_next  # how we came to call the handler tells nobody anything
        error.with_traceback(trace)
        for index, waiter in enumerate(run.waiters):
            if waiter is not None:
                self._settle_error(run, index, self._raisable(error))

    def _crash(self, run: Run, slot: _Slot, error: BaseException) -> bool:
        """Deal with what must not reach a caller, nor kill the loop; tell whether to raise it on."""
        runtime = self._runtime
        if runtime is None or isinstance(error, LoopGone):  # the loop is gone
            return True
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        outside = cancelled and runtime.was_cancelled(slot.task)  # else the handler made it up
        self._paused = self._paused or (outside and not run.cancelled)
        self._fail(run, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._fatal = error  # for aclose() to raise, if the loop does not
            if runtime.raises_fatal(error):
                self._fatal = None
                return True
        return outside

    def _give_up(self, run: Run, reason: Callable[[], Exception]) -> None:
        """End a run before its handler has: callers and slot go on, the handler is cancelled."""
        if run.ended:
            return
        for index, waiter in enumerate(run.waiters):
            if waiter is not None:
                self._settle_error(run, index, reason())
        self._cancel(run)
        if run.slot is not None:
            self._free(run.slot)
        self._end(run, failed=True)
        self._pump()

    def _expire(self, run: Run) -> None:
        """``handler_timeout`` has passed."""
        run.timer = None
        seconds = self._handler_timeout or 0.0
        self._give_up(run, lambda: HandlerTimeout(self._name, seconds))

    def _cancel(self, run: Run) -> None:
        """Cancel a running handler; what does not end is counted."""
        self._stuck.add(run)
        run.cancelled = True
        if run.scope is not None:
            run.scope.cancel()
        elif run.slot is not None and run.slot.task is not None:
            run.slot.task.cancel()

    def _resolve(self, run: Run, index: int, result: Any, shown: int) -> None:
        """``BatchInfo.resolve``: from the loop's thread at once, from the handler's by way of the loop."""
        runtime = self._runtime
        if run.ended or runtime is None or run.waiters[index] is None:
            raise RuntimeError(f"item {shown} of the batch has its outcome already")
        if runtime.is_current():
            self._settle_early(run, index, result)
        else:
            runtime.call_from_thread(partial(self._settle_early, run, index, result))

    def _settle_early(self, run: Run, index: int, result: Any) -> None:
        if not run.ended and run.waiters[index] is not None:
            self._settle(run, index, result)
            self._changed()

    def _end(self, run: Run, *, failed: bool = False) -> None:
        """Close the books on a run whose items all have their outcome."""
        if run.ended:
            return
        run.ended = True
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        self._running -= 1
        self._flying -= run.left
        self._batches += 1
        self._reasons[run.reason] = self._reasons.get(run.reason, 0) + 1
        if self._adaptive is not None:
            self._adaptive.record(run.size, self._now() - run.started, failed=failed)
        if run.slot is not None:
            run.slot.handled += run.size
        lane = run.lane
        run.items = run.waiters = run.entries = run.lane = None  # type: ignore[assignment]
        if self._lanes is not None:
            if lane is not None:
                self._lanes.landed(lane, self._now())
            if not self._flying:
                self._flying_weight = 0.0
            self._changed()

    def _vacate(self, slot: _Slot, *, forced: bool) -> None:
        """A slot's task is about to end; forced: by what others raised into it."""
        self._slots.discard(slot)
        run, slot.run = slot.run, None
        if slot.starting:
            slot.starting = False
            self._starting -= 1
        self._free(slot)
        if forced and (self._runtime is None or self._runtime.has_ended()):
            return
        if run is not None:
            run.slot = None
            if not run.ended:
                logger.error("batcher %r: a batch was cut short", self._name)
                self._fail(run, RuntimeError("the batch's task is gone"))
            self._part(run)
        if forced and not (run is not None and run.cancelled):
            # Mostly by a loop that is ending, where nothing new must begin.
            self._paused = True
            self._fast = None
            self._set_timer(self._now() + PAUSE)
        if self._fifo is None or self._fifo.items:
            self._pump()
        self._check_idle()

    # Closing

    def _sweep(self) -> None:
        """Drop the items of callers who were cancelled without notice yet."""
        buffer = self._fifo if self._fifo is not None else self._lanes
        before = self._buffered()
        buffer.sweep()  # type: ignore[union-attr]
        if self._buffered() < before:
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
        waiters: list[Any] = []
        if self._fifo is not None:
            waiters = [waiter for _, waiter, _ in self._fifo.clear()]
        elif self._lanes is not None:
            waiters = [self._let_go(entry) for entry in list(self._lanes.entries())]
        backoffs, self._backoffs = self._backoffs, []
        waiters += [self._let_go(entry) for _, _, entry in backoffs if entry.state == "backoff"]
        for waiter in waiters:
            if not waiter.done():
                dropped += 1
                waiter.set_exception(BatcherClosed(self._name))
        for run in [slot.run for slot in self._slots if slot.run is not None]:
            dropped += run.left
            self._give_up(run, lambda: BatcherClosed(self._name, started=True))
        self._check_idle()
        return dropped

    def _let_go(self, entry: Entry) -> Any:
        waiter = entry.waiter
        if entry.state == "backoff":
            self._in_backoff -= 1
            self._backoff_weight -= entry.weight
        elif self._lanes is not None:
            self._lanes.withdraw(entry)
        entry.release()
        return waiter

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


def _has_exception(results: list[Any]) -> bool:
    for kind in set(map(type, results)):  # noqa: SIM110 - not any(): a generator for each batch
        if issubclass(kind, BaseException):
            return True
    return False


def _note_attempts(waiter: Any, attempts: int) -> None:
    """Tell reports of more than one attempt."""
    if attempts == 1:
        return
    for one in waiter.waiters if isinstance(waiter, Shared) else (waiter,):
        if isinstance(one, Member):
            one[0].attempts[one[1]] = attempts


def _check_priority(priority: Any) -> None:
    if priority == 0 and type(priority) is int:  # nearly always
        return
    if isinstance(priority, bool) or not isinstance(priority, (int, float)) or math.isnan(priority):
        raise TypeError(f"priority must be a number, got {priority!r}")


def _check_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name} must return a hashable value, got {value!r}") from None
