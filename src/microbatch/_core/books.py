"""A run's end: what is counted then, and who is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._loops.protocol import Loop
    from microbatch._telemetry.observer import Observer

    from .door import Door
    from .room import Room
    from .run import Run
    from .settler import Settler
    from .sizing import Sizing
    from .tally import Tally


class Books:
    """Closes the books on runs.

    Args:
        door: Counts the calls that run.
        tally: Counts their items.
        room: Where partitions have their batches in flight.
        settler: Gives outcomes to those who have none yet.
        sizing: Learns from each.
        observer: Tells of each; None tells nobody.
        changed: Called when items have left room, where somebody may wait for that.
        hooked: Tells the program's own function of each, and when it ended; None if there is none.

    Attributes:
        telling: True while the log is told of failed items: whoever submits now hands us our own line.
    """

    __slots__ = (
        "_changed",
        "_door",
        "_hooked",
        "_now",
        "_observer",
        "_room",
        "_settler",
        "_sizing",
        "_tally",
        "telling",
    )

    def __init__(
        self,
        *,
        door: Door,
        tally: Tally,
        room: Room,
        settler: Settler,
        sizing: Sizing,
        observer: Observer | None,
        changed: Callable[[], None],
        hooked: Callable[[Run, float], None] | None,
    ) -> None:
        self._door = door
        self._tally = tally
        self._room = room
        self._settler = settler
        self._sizing = sizing
        self._observer = observer
        self._changed = changed
        self._hooked = hooked
        self._now: Callable[[], float]
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone."""
        self.telling: bool = False

    def bind(self, loop: Loop) -> None:
        """Serve an event loop."""
        self._now = loop.now

    def close(self, run: Run) -> None:
        """Close the books on a run whose items all have their outcome."""
        if run.ended:
            return
        run.ended = True
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        room, tally = self._room, self._tally
        self._door.running -= 1
        tally.flying -= run.left
        tally.reasons[run.reason] += 1
        if run.slot is not None:
            run.slot.handled += run.size
        fallen: Any = None
        if run.errors is not None:
            fallen, run.fallen = [run.waiters, run.fallen], None
        run.items = run.waiters = run.group = run.contexts = lane = None  # type: ignore[assignment]
        if run.entries is not None:
            lane, run.lane, run.entries = run.lane, None, None
        if room.lanes is not None:
            if lane is not None:
                room.lanes.landed(lane, self._now(), run)
            self._changed()
        # Last, since it runs foreign code.
        observer = self._observer
        if run.errors is None:
            if observer is not None and run.record is not None:
                observer.end(run, self._now())
        else:
            self._tell_failures(run, fallen)
        if self._hooked is not None:
            self._hooked(run, self._now())

    def _tell_failures(self, run: Run, fallen: list[Any]) -> None:
        """Tell telemetry and the log of a run with failed items, and let those go who waited for them.

        Waiters whose Pending was dropped say so as they go; a log handler that hands such lines to this
        very batcher would keep it busy for ever.
        """
        self.telling = True
        self._door.fifo = None
        try:
            if self._observer is not None:
                self._observer.end(run, self._now())
            fallen.clear()
        finally:
            self.telling = False

    def fail(self, run: Run, error: BaseException) -> None:
        """Fail every item that has no outcome yet, and close the books on the run."""
        self._settler.fail_waiters(run, error)
        self.learn(run)
        self.close(run)

    def learn(self, run: Run, *, failed: bool = False) -> None:
        """Let an ``AdaptiveSize`` learn from a run."""
        if self._sizing.adaptive is not None:
            self._sizing.learn(run, self._now(), failed=failed)
