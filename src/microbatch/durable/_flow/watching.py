"""Who waits for a job to change: one look at the disk for all who wait for the same."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._pure.exceptions import BatcherClosed
from microbatch.durable.errors import QueueUnavailable, UnknownJob

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from microbatch._loops.protocol import Loop
    from microbatch.durable._file.job_records import JobRow
    from microbatch.durable._file.store import Store
    from microbatch.durable._life.opening import OwnTask

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds before the next look while the file cannot be used.
LOOK_PAUSE = 0.25

#: Jobs that are read in one look.
LOOKED_AT = 1_000


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
                self._watching.look_at((self.uid,))
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
        self._spawn = spawn
        self._loop = loop
        self._by_uid: dict[str, Watched] = {}
        self._wanted: dict[str, None] = {}
        self._looking: OwnTask | None = None
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
        self.look_at(uid for uid in uids if uid in self._by_uid)

    def look_at(self, uids: Any) -> None:
        """Have jobs looked at soon, once for all who wait."""
        self._wanted |= dict.fromkeys(uids)
        if self._wanted and self._looking is None and not self._closed:
            self._looking = self._spawn(self._look(), "look at jobs")
            self._looking.on_end = self._looked

    def _looked(self) -> None:
        """Go on if something came meanwhile, or somebody cancelled the task."""
        self._looking = None
        self.look_at(())

    async def _look(self) -> None:
        while self._wanted:
            uids = list(self._wanted)[:LOOKED_AT]
            for uid in uids:  # who asks from here on asks for a later state
                del self._wanted[uid]
            watched = [self._by_uid.get(uid) for uid in uids]
            try:
                rows = await self._store.jobs.statuses(uids)
            except BaseException as error:
                self._wanted |= dict.fromkeys(uids)
                if not isinstance(error, Exception):
                    raise
                if not isinstance(error, QueueUnavailable):
                    logger.warning(
                        "queue %r: jobs are looked at again later", self._name, exc_info=error
                    )
                await anyio.sleep(LOOK_PAUSE)
                continue
            for one in watched:
                # Nobody would tell who came later of what changed between this look and his coming.
                if one is not None and self._by_uid.get(one.uid) is one:
                    self._tell(one, rows.get(one.uid))

    def _tell(self, watched: Watched, row: JobRow | None) -> None:
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
        looking = self._looking
        if looking is not None:
            looking.task.cancel()
            await looking.ended.wait()
        for watched in list(self._by_uid.values()):
            waiters, watched.waiters = watched.waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(BatcherClosed(self._name))
