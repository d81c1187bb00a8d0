"""Telling the user's function of jobs that have ended: at least once, a few times if it fails."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._pure.exceptions import BatcherClosed
from microbatch.durable.errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microbatch._loops.protocol import Loop
    from microbatch.durable._file.job_records import JobRow
    from microbatch.durable._file.store import Store
    from microbatch.durable._life.opening import OwnTask

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: How often it is tried; seconds before the second time, which double up to a bound.
TRIES_MAX = 10
PAUSE_FIRST = 1.0
PAUSE_MAX = 300.0

#: Seconds for which closing waits for the function, once that is cancelled: as long as for handlers.
CLOSE_GRACE = 5.0

#: Seconds before the next attempt while the file cannot be used.
FILE_PAUSE = 0.25


def pause_after(tries: int) -> float | None:
    """Return the seconds until the next time after so many that failed; None if there is none."""
    if tries >= TRIES_MAX:
        return None
    return min(PAUSE_FIRST * 2.0 ** (tries - 1), PAUSE_MAX)


class Telling:
    """Calls the function, for one job at a time.

    Args:
        name: The queue's name, for people.
        store: Where the jobs are.
        function: The user's.
        status_of: Makes what it gets.
        spawn: Starts a task of the queue's own.
        loop: The event loop.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        function: Callable[[Any], Awaitable[None]],
        *,
        status_of: Callable[[JobRow], Any],
        spawn: Callable[[Any, str], OwnTask],
        loop: Loop,
    ) -> None:
        self._name = name
        self._store = store
        self._function = function
        self._status_of = status_of
        self._spawn = spawn
        self._loop = loop
        self._task: OwnTask | None = None
        self._closed = False

    def tell(self, uid: str, tries: int) -> None:
        """Tell of a job's end that was told so many times before, without success."""
        if self._closed:
            return
        own = self._task = self._spawn(self._tell(uid, tries), "on_job_end")

        def ended() -> None:
            if own.task.cancelled():  # by somebody else than us: nobody else would tell of it
                self.tell(uid, tries)

        own.on_end = ended

    async def _tell(self, uid: str, tries: int) -> None:
        row = await self._patiently(lambda: self._store.jobs.statuses([uid]))
        delay: float | None = None
        if row.get(uid) is not None:
            try:
                await self._function(self._status_of(row[uid]))
            except (Exception, anyio.get_cancelled_exc_class()) as error:
                assert self._task is not None  # noqa: S101 - it runs this
                if not isinstance(error, Exception) and self._loop.was_cancelled(self._task.task):
                    raise
                # Else nobody cancelled this: it comes from something that the user's function waited for.
                delay = pause_after(tries + 1)
                if delay is None:
                    logger.exception(
                        "queue %r: on_job_end failed %d times for job %s, and is not tried again",
                        self._name,
                        tries + 1,
                        uid,
                    )
                else:
                    logger.warning(
                        "queue %r: on_job_end failed for job %s, next try in %g s",
                        self._name,
                        uid,
                        delay,
                        exc_info=error,
                    )
        with contextlib.suppress(BatcherClosed):  # it went on after that
            await self._patiently(lambda: self._store.jobs.told(uid, delay))

    @staticmethod
    async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await ask()
            except QueueUnavailable:  # said already by whoever found out first
                await anyio.sleep(FILE_PAUSE)

    async def close(self) -> None:
        """End it: what was not told is told by the next one."""
        self._closed = True
        task = self._task
        if task is None or task.ended.is_set():
            return
        task.task.cancel()
        with anyio.move_on_after(CLOSE_GRACE):
            await task.ended.wait()
        if not task.ended.is_set():
            logger.warning("queue %r: on_job_end goes on after its queue was closed", self._name)
