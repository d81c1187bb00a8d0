"""What a batcher holds: settings, counts, the buffer, slots and timers; and how much room there is.

A batcher is four classes on top of one another, each in a file of its own: `State` holds, `Outcomes` gives
each waiter its result, `Dispatch` runs batches, `Entrance` takes items in and lets callers go. On top of
them stands `Batcher`, the face. An item's way: `_enter` takes it into the buffer, or into the line of those
who wait for room; `_pump` starts a task if a batch is ready and a slot is free; the task (`_work`) cuts its
batch only when it first runs, so that everybody who was runnable before has had a turn, calls the handler,
which when it has to wait starts the next task (`_pump_more`), and gives each waiter its outcome; then it goes
on with the next batch that is ready, or ends.

All of it runs in the thread of the event loop that the batcher serves.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import defaultdict, deque
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from ._fifo import Fifo
from ._log import write
from .buffer import Entry, Lanes, Ranking, Scale
from .telemetry import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from contextvars import Context

    import anyio

    from ._runtime import Handle, Runtime
    from .adaptive import AdaptiveSize
    from .batch import Run
    from .buffer import Lane
    from .handler import Kind
    from .retry import Retry
    from .telemetry import Observer

#: Items that batches may start with in one turn of the loop, the first batch excepted. Their callers then
#: wake in the next turn, while they are still in the processor's cache: with 10,000 callers and batches of
#: 100 that takes a third off the whole cost of an item. And nobody else waits long for a turn.
TURN = 100

#: Batches of which stats tell how long their oldest item waited: enough to see past a single odd one.
WAITS_KEPT = 16

_UNBOUNDED = 1 << 62

_everyone: weakref.WeakSet[State] = weakref.WeakSet()


def _forget_everything() -> None:
    for state in list(_everyone):
        state._forget()  # noqa: SLF001 - its own module


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_forget_everything)


class Slot:
    """The right to run batches, one at a time, held by a task that goes on while some are ready.

    Attributes:
        held: True while the slot counts as taken.
        starting: True while its task is about to cut a batch.
        handled: Items since the loop last had a turn.
    """

    __slots__ = ("handled", "held", "run", "starting", "task")

    def __init__(self) -> None:
        self.held: bool = True
        self.starting: bool = True
        self.handled: int = 0
        self.task: Handle | None = None
        self.run: Run | None = None


class State:
    """What a batcher holds."""

    # Slots: more than 30 attributes, and every submit reads six of them.
    __slots__ = (
        "__weakref__",
        "_adaptive",
        "_admitting",
        "_backoff_seq",
        "_backoff_weight",
        "_backoffs",
        "_breathe",
        "_busy",
        "_cancel_abandoned",
        "_capture_context",
        "_coalesce",
        "_context",
        "_converted",
        "_create_waiter",
        "_drain_timeout",
        "_empty",
        "_entered",
        "_failed",
        "_fast",
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
        "_max_pending_units",
        "_max_pending_weight",
        "_max_wait",
        "_name",
        "_now",
        "_observer",
        "_on_full",
        "_on_start",
        "_pace",
        "_partition",
        "_partition_concurrency",
        "_paused",
        "_reasons",
        "_refused",
        "_retry",
        "_running",
        "_runtime",
        "_scale",
        "_scoped",
        "_size",
        "_slots",
        "_started",
        "_starting",
        "_state",
        "_stuck",
        "_telling",
        "_timed",
        "_timer",
        "_timer_at",
        "_waits",
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
    _max_pending_units: int | None
    _scale: Scale
    _partition: Callable[[Any], Hashable] | None
    _partition_concurrency: int | None
    _coalesce: Callable[[Any], Hashable] | None
    _retry: Retry | None
    _handler_timeout: float | None
    _drain_timeout: float | None
    _cancel_abandoned: bool
    _capture_context: bool
    _observer: Observer | None  # tells telemetry and the log; None for neither
    _scoped: bool  # a handler may be cancelled while others go on
    _is_plain: bool  # nothing is set that needs an entry for each item

    # Of the event loop that is served.
    _now: Callable[[], float]
    _create_waiter: Callable[[], Any]
    _breathe: Callable[[], Awaitable[None]]
    _started: Callable[[], Awaitable[None]]

    def _begin(self) -> None:
        """Set the state of a batcher that has nothing and serves no loop."""
        self._state: Literal["open", "closing", "closed"] = "open"
        self._pace = max(1, TURN // self._size)
        self._ids = count()
        #: Called in the batch's context before its handler is: what the durable worker prepares there.
        self._on_start: Callable[[Run], None] | None = None
        self._items = self._failed = 0
        self._reasons: dict[str, int] = defaultdict(int)  # batches that ended, by why they left
        #: Seconds that the oldest item of each of the last batches waited.
        self._waits: deque[float] = deque(maxlen=WAITS_KEPT)
        self._forget()
        _everyone.add(self)

    def _forget(self) -> None:
        """Drop what belonged to an event loop that is gone, or to the process that forked this one."""
        self._runtime: Runtime | None = None
        self._context: Context | None = None
        self._fatal: BaseException | None = None
        self._loop: Any = self  # no loop is this object: the fast path is shut
        self._fast: Fifo | None = None  # where items may be appended without asking
        self._fifo: Fifo | None = None
        self._lanes: Lanes | None = None
        self._line: Ranking[Any] = Ranking()
        self._line_seq = count(1)
        self._admitting = False  # those in line are being let in
        self._converted: list[Entry] = []  # entries made of chunks
        self._refused = 0  # calls since those were looked at
        self._paused = False  # somebody else cancelled our task: the loop may be ending
        self._telling = (
            False  # of failed items: whoever submits now hands us our own line in the log
        )
        self._entered = False  # an `async with` of it is under way
        self._slots: set[Slot] = set()
        self._busy = 0  # slots taken
        self._starting = 0  # of them those whose task is about to cut a batch
        self._running = 0  # handler calls without an end
        self._flying = 0
        self._flying_weight = 0
        self._backoffs: list[tuple[float, int, Entry]] = []
        self._backoff_seq = count()
        self._in_backoff = 0
        self._backoff_weight = 0
        self._stuck: set[Run] = set()
        self._timer: Handle | None = None
        self._timer_at = 0.0
        self._idle: anyio.Event | None = None  # set when nothing is left to drain
        self._empty: anyio.Event | None = None  # set when no task is left
        self._timed = self._max_wait > 0  # whether it matters since when exactly items wait
        self._reset_buffer()

    def _look(self, observer: Observer) -> None:
        """See whether anybody records: then it matters who submits, and since when items wait."""
        observer.look(self, self._now())
        if observer.recorder is not None:
            self._timed = True
            if self._fifo is not None:
                self._fifo.timed = True
            self._create_waiter = observer.creator(self._runtime, self._now)

    def _reset_buffer(self) -> None:
        if self._is_plain:
            self._fifo, self._lanes = Fifo(self._size, self._max_wait), None
            self._fifo.timed = self._timed
        else:
            self._fifo, self._lanes = None, self._new_lanes()

    def _new_lanes(self) -> Lanes:
        return Lanes(
            self._current_size,
            self._max_wait,
            max_weight=self._in_units(self._max_batch_weight),
            lane_limit=self._partition_concurrency,
        )

    def _current_size(self) -> int:
        adaptive = self._adaptive
        if adaptive is None:
            return self._size
        try:
            return max(1, min(int(adaptive.size), self._size))
        except Exception as error:  # noqa: BLE001 - a subclass's own
            return self._stop_adapting(error)

    def _stop_adapting(self, error: Exception) -> int:
        """Go on with batches of one size, the maximum: what a size that learns does fails no batch."""
        self._adaptive = None
        write(
            logging.ERROR,
            "batcher %r: its AdaptiveSize failed; from now on max_batch_size is %d",
            self._name,
            self._size,
            exc_info=error,
        )
        return self._size

    @property
    def _ranked(self) -> Lanes:
        """Return the lanes, where there are no flat lists: there is always one of both."""
        assert self._lanes is not None  # noqa: S101
        return self._lanes

    def _buffered(self) -> int:
        if self._fifo is not None:
            return self._fifo.count
        return self._ranked.count

    def _in_units(self, limit: float | None) -> int | None:
        return None if limit is None else self._scale.units(limit)

    def _pending_units(self) -> int:
        return self._ranked.weight + self._flying_weight + self._backoff_weight

    def _pending_weight(self) -> float:
        """Return what all pending items weigh, as their users count."""
        return self._scale.weight(self._pending_units())

    def _room(self) -> int:
        if self._max_pending is None:
            return _UNBOUNDED
        if self._fifo is not None:
            return self._max_pending - self._fifo.count - self._flying
        return self._max_pending - self._buffered() - self._flying - self._in_backoff

    def _has_room(self, units: int) -> bool:
        if self._room() <= 0:
            return False
        most = self._max_pending_units
        return most is None or self._pending_units() + units <= most

    def _end_backoff(self, entry: Entry) -> Lane:
        """Count an entry out of back-off; return the lane that it came from."""
        self._in_backoff -= 1
        self._backoff_weight -= entry.weight
        return self._ranked.call_back(entry)

    def _simplify(self) -> None:
        """Go back to chunks when nothing is left that needs more."""
        if self._is_plain and self._lanes is not None and not self._lanes.count and not self._line:
            self._reset_buffer()
            self._converted.clear()

    def _tell_withdrawn(self, buffer: Fifo | Lanes) -> None:
        """Tell telemetry of the items that a buffer dropped because their callers had gone."""
        withdrawn, buffer.withdrawn = buffer.withdrawn, 0
        if withdrawn and self._observer is not None:
            self._observer.refused(CANCELLED, withdrawn)

    # What the classes below need of those above.

    def _pump(self, now: float | None = None) -> None:
        raise NotImplementedError

    def _changed(self) -> None:
        raise NotImplementedError

    def _free(self, slot: Slot) -> None:
        raise NotImplementedError
