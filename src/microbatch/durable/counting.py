"""Counting what the file holds, now and then, for whoever reads gauges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microbatch.telemetry import COUNT_INTERVAL, Counted

if TYPE_CHECKING:
    from pathlib import Path

    from microbatch.telemetry import Observer

    from .clock import Clock
    from .file_store import Store


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

    def due_in(self) -> float | None:
        """Return the seconds until the next count; None while nobody would read it."""
        observer = self._observer
        if observer is None:
            return None
        now = self._clock.now()
        if now >= observer.look_at:
            observer.look(None, now)
        return max(0.0, self._next - now) if observer.measuring else None

    async def look(self) -> None:
        """Count, if it is time to."""
        if self.due_in() == 0.0:
            self._next = self._clock.now() + COUNT_INTERVAL
            self._counted.keep(await self._store.stats())

    def forget(self) -> None:
        """Let gauges end: the queue is closed, or its event loop is gone."""
        self._next = 0.0
        self._counted.keep(None)
