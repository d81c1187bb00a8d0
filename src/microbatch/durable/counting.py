"""Counting: what the file holds, now and then, for whoever reads gauges; and what became of items."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from microbatch._telemetry.counted import Counted
from microbatch._telemetry.kinds import counted, kind_of
from microbatch._telemetry.names import COUNT_INTERVAL

from .records import State

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from microbatch._telemetry.kinds import Kind
    from microbatch._telemetry.observer import Observer

    from .clock import Clock
    from .file_store import Store
    from .outcomes import Outcome


class Counting:
    """Keeps a recent count of a queue, as long as somebody takes figures.

    Gauges are read in whatever thread a reader has, which must not wait for a file. So the queue's own
    task counts every few seconds and they are told of that.

    Args:
        path: The queue's file.
        queue: The queue's name in the file.
        name: The queue's name for telemetry.
        store: The queue's store.
        observer: What tells whether somebody listens; None if nobody is to be told anything.
        clock: The queue's clock.
    """

    def __init__(
        self,
        *,
        path: Path,
        queue: str,
        name: str,
        store: Store,
        observer: Observer | None,
        clock: Clock,
    ) -> None:
        self._store = store
        self._observer = observer
        self._clock = clock
        self._next = 0.0
        self._counted = Counted(name, (path, queue))
        if observer is not None:
            observer.counted = self._counted

    def see(self) -> None:
        """See whether somebody listens, if it is time to ask again."""
        observer = self._observer
        if observer is not None and (now := self._clock.now()) >= observer.observe_at:
            observer.observe(None, now)

    def due_in(self) -> float | None:
        """Return the seconds until the next count; None while nobody would read it."""
        self.see()
        if self._observer is None or not self._observer.measuring:
            return None
        return max(0.0, self._next - self._clock.now())

    async def look(self) -> None:
        """Count, if it is time to."""
        if self.due_in() == 0.0:
            self._next = self._clock.now() + COUNT_INTERVAL
            self._counted.keep(await self._store.stats())

    def settled(self, outcomes: Sequence[Outcome], settled: set[int]) -> None:
        """Count what became of items, now that it is on the disk.

        Not when their batch ends: there it is open still whether a failed one goes again, and one that
        was cut short goes back.
        """
        observer = self._observer
        if observer is None or not observer.measuring:
            return
        succeeded = skipped = 0
        failed: dict[Kind, int] | None = None
        retried: dict[Kind, int] | None = None
        for outcome in outcomes:
            state, error = outcome.settlement.state, cast("Exception", outcome.error)
            if outcome.entry.id not in settled:
                continue
            if state == State.DEAD:
                failed = counted(failed, error)
            elif state == State.SCHEDULED:
                retried = counted(retried, error)
            elif state == State.DONE:
                skipped += outcome.error is not None
                succeeded += outcome.error is None
        observer.settled(succeeded, skipped, failed, retried)

    def refused(self, error: Exception, items: int) -> None:
        """Count items that were not stored."""
        observer = self._observer
        if observer is not None and observer.measuring:
            observer.settled(0, 0, {kind_of(error): items}, None)

    def forget(self) -> None:
        """Let gauges end: the queue is closed, or its event loop is gone."""
        self._next = 0.0
        self._counted.keep(None)
