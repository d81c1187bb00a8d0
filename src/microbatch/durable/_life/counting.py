"""Counting: what the file holds, now and then, for whoever reads gauges."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from microbatch._telemetry.counted import Counted
from microbatch._telemetry.names import COUNT_INTERVAL
from microbatch.durable.errors import QueueUnavailable
from microbatch.durable.records import queue_stats

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from microbatch._loops.protocol import Handle, Loop
    from microbatch._telemetry.observer import Observer
    from microbatch.durable._file.store import Store

    from .opening import OwnTask

logger: logging.Logger = logging.getLogger("microbatch.durable")


class Counting:
    """Keeps a recent count of a queue, as long as somebody takes figures.

    Gauges are read in whatever thread a reader has, which must not wait for a file. So the queue counts
    every few seconds and they are told of that.

    Args:
        path: The queue's file.
        queue: The queue's name in the file.
        name: The queue's name for telemetry.
        store: The queue's store.
        observer: What tells whether somebody listens; None if nobody is to be told anything.
    """

    def __init__(
        self, *, path: Path, queue: str, name: str, store: Store, observer: Observer | None
    ) -> None:
        self._store = store
        self._observer = observer
        self._counted = Counted(name, (path, queue))
        self._timer: Handle | None = None
        self._task: OwnTask | None = None
        self._loop: Loop
        self._spawn: Callable[[Any, str], OwnTask]
        if observer is not None:
            observer.counted = self._counted

    def start(self, loop: Loop, spawn: Callable[[Any, str], OwnTask]) -> None:
        """Count from now on, now and then; nothing is done for nobody."""
        self._loop, self._spawn, self._task = loop, spawn, None
        if self._observer is not None:
            self._see(self._observer)  # at once: the very first item is told of
            self._timer = loop.call_at(loop.now(), self._ring)

    @staticmethod
    def _see(observer: Observer) -> None:
        if (now := time.time()) >= observer.observe_at:
            observer.observe(None, now)

    def _ring(self) -> None:
        observer = self._observer
        assert observer is not None  # noqa: S101 - else there is no timer
        self._see(observer)
        # A disk that hangs must not make them many.
        if observer.measuring and (self._task is None or self._task.ended.is_set()):
            self._task = self._spawn(self._count(), "counting")
        self._timer = self._loop.call_at(self._loop.now() + COUNT_INTERVAL, self._ring)

    async def _count(self) -> None:
        try:
            counts = await self._store.stats()
            jobs = await self._store.jobs.count_open()
        except QueueUnavailable as error:
            logger.debug("not counted: %s", error)
        else:
            self._counted.keep(queue_stats(counts, self._store.lock_waits), jobs)

    async def close(self) -> None:
        """Let gauges end: the queue is closed."""
        self.stop()
        task, self._task = self._task, None
        if task is not None:
            task.task.cancel()
            await task.ended.wait()
            self._counted.keep(None)

    def stop(self) -> None:
        """The same where its event loop is gone."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._counted.keep(None)
