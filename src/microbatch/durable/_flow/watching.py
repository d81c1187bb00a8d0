"""Who waits for a job to change: one look at the disk for all who wait for the same."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import BatcherClosed
from microbatch.durable.errors import QueueUnavailable, UnknownJob

from .wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from microbatch._loops.protocol import Loop
    from microbatch.durable._file.job_records import JobRow
    from microbatch.durable._file.store import Store
    from microbatch.durable._life.opening import OwnTask

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds before the next look while the file cannot be used.
LOOK_PAUSE = 0.25


class Watched:
    """A job that somebody waits for.

    Attributes:
        uid: Its id.
        users: How many wait, or read what comes.
        row: How it was at the last look; None before it.
    """

    __slots__ = ("_watching", "row", "uid", "users", "waiters")

    def __init__(self, watching: Watching, uid: str) -> None:
        self._watching = watching
        self.uid = uid
        self.users = 0
        self.row: JobRow | None = None
        self.waiters: list[Any] = []

    async def newer(self, changes: int) -> JobRow:
        """Wait until the job has changed more often than so many times; return how it is then.

        Raises:
            UnknownJob: If it is gone, or never was.
            BatcherClosed: If the queue is closed meanwhile.
        """
        while self.row is None or self.row.changes <= changes:
            if self.row is None:
                self._watching.wanted.ask((self.uid,))
            waiter = self._watching.new_waiter()
            self.waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self.waiters:
                    self.waiters.remove(waiter)
        return self.row


class Watching:
    """All jobs of a queue that somebody waits for here.

    Args:
        name: The queue's name, for people.
        queue: Its name in the file, for errors.
        loop: The event loop.
        store: Where the jobs are.
        spawn: Starts a task of the queue's own.

    Attributes:
        wanted: Looks at jobs soon, once for all who wait.
    """

    def __init__(
        self,
        name: str,
        queue: str,
        loop: Loop,
        store: Store,
        spawn: Callable[[Any, str], OwnTask],
    ) -> None:
        self._name = name
        self._queue = queue
        self._store = store
        self._loop = loop
        self._by_uid: dict[str, Watched] = {}
        self.wanted: Wanted[str] = Wanted(
            "look at jobs", spawn, read=self._read, tell=self._tell, failed=self._say_why_later
        )
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._by_uid)

    def uids(self) -> list[str]:
        """Return which jobs somebody waits for; in whatever thread."""
        return list(self._by_uid)

    @contextlib.contextmanager
    def on(self, uid: str) -> Iterator[Watched]:
        """Give a job to who will wait for it."""
        watched = self._by_uid.get(uid)
        if watched is None:
            watched = self._by_uid[uid] = Watched(self, uid)
        watched.users += 1
        self._store.wake_if_asleep()
        try:
            yield watched
        finally:
            watched.users -= 1
            if not watched.users:
                del self._by_uid[uid]

    def new_waiter(self) -> Any:
        """Return what is woken by the next look.

        Raises:
            BatcherClosed: If there is none any more.
        """
        if self._closed:
            raise BatcherClosed(self._name)
        return self._loop.create_waiter()

    def changed(self, uids: Collection[str]) -> None:
        """Hear that jobs may have changed."""
        self.wanted.ask(uid for uid in uids if uid in self._by_uid)

    async def _read(self, uids: list[str]) -> list[tuple[Watched, JobRow | None]]:
        watched = [self._by_uid.get(uid) for uid in uids]
        rows = await self._store.jobs.statuses(uids)
        return [(one, rows.get(one.uid)) for one in watched if one is not None]

    def _tell(self, uids: list[str], found: list[tuple[Watched, JobRow | None]]) -> None:
        for watched, row in found:
            # Nobody would tell who came later of what changed between this look and his coming.
            if self._by_uid.get(watched.uid) is watched:
                self._tell_of(watched, row)

    def _say_why_later(self, error: Exception) -> float:
        if not isinstance(error, QueueUnavailable):
            logger.warning("queue %r: jobs are looked at again later", self._name, exc_info=error)
        return LOOK_PAUSE

    def _tell_of(self, watched: Watched, row: JobRow | None) -> None:
        watched.row = row
        waiters, watched.waiters = watched.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if row is None:
                waiter.set_exception(UnknownJob(watched.uid, self._queue))
            else:
                waiter.set_result(None)

    # Closing

    async def close(self) -> None:
        """Tell all who wait, and who will, that nobody tells them any more."""
        self._closed = True
        await self.wanted.end()
        for watched in list(self._by_uid.values()):
            waiters, watched.waiters = watched.waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(BatcherClosed(self._name))
