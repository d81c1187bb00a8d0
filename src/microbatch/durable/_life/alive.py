"""Who lives is the operating system's word: a record lock on a byte of its own for each consumer.

The kernel drops a process's record locks when it dies, however it dies, and not before. So nobody has to
renew a lease, and no clock is asked. What was rejected: leases (a long handler or a stopped process loses
its items while it still works on them), ``flock`` (it belongs to the open file, so a forked child keeps it
alive), locks on the database itself (SQLite closes it when it likes, and any close drops them all).

Any close of the lock file in this process drops its locks, be it a backup program's. So every consumer takes
its lock anew at each look, and who is found without one is given time for that while his process runs.
Consumers of one process, which a record lock does not tell apart, are known in memory.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from microbatch.durable.errors import QueueUnavailable

from .lock_file import files, identity_at, lock_file_unavailable
from .processes import birth_of, is_running, own_birth

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from microbatch.durable._file.records import ConsumerRow

    from .lock_file import LockFile

__all__ = ["Presence", "birth_of", "is_held"]

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds for which a consumer may be without its lock while its process runs, or while nobody can tell: four
#: looks, of which each takes the lock anew.
GRACE = 1.0

#: Seconds until a consumer is gone whose lock file is gone and of whose process nothing can be told, which
#: takes another pid namespace. A living one follows to the new lock file at its next look.
DOUBT = 30.0

#: How often a lock is asked for before it counts as another process's: who probes has it for microseconds.
_HOLD_ATTEMPTS = 5


class Presence:
    """One consumer's sign of life in ``<path>-alive``, and its eyes for the others'. Thread-safe.

    Args:
        path: The queue's file, resolved; the lock file beside it gets its permissions.
        lives: Tells the consumers of this same process whether this one still works: its event loop may
            have ended under it.
        monotonic: The time in seconds.

    Attributes:
        path: The lock file's.
        lives: As given.
    """

    def __init__(
        self,
        path: Path,
        lives: Callable[[], bool] = lambda: True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path: Path = lock_path(path)
        self.lives: Callable[[], bool] = lives
        self._database = path
        self._monotonic = monotonic
        self._process = os.getpid()
        self._byte = 0
        # The current one last. Before it the one that it followed from: whoever reads the consumer's row
        # looks there until the row has been written anew.
        self._held_in: list[LockFile] = []
        self._moved = False
        self._warned = False
        self._doubts: dict[ConsumerRow, float] = {}

    @property
    def identity(self) -> str:
        """Return which lock file this is; empty if nothing is held. No other can be it while it is open."""
        held_in = self._holding()
        return held_in[-1].identity if held_in else ""

    def take(self, byte: int) -> str | None:
        """Hold a byte, in whatever file stands at the path now, in place of what was held.

        Returns:
            The file's identity; None if another consumer holds the byte.

        Raises:
            QueueUnavailable: If the lock file can be neither opened nor made; it names that file.
        """
        with files.mutex:
            return self._take(byte, [])

    def hold(self) -> bool:
        """Take the lock anew, which does nothing if it is there.

        Returns:
            Whether it is this consumer's. If not, another process has the byte or nothing was taken: the
            consumer must start over as a new one.
        """
        for attempt in range(_HOLD_ATTEMPTS):
            if attempt:
                time.sleep(0.002)
            with files.mutex:
                held_in = self._holding()
                if not held_in:
                    return False
                try:
                    if self._hold(held_in[-1]):
                        return True
                except (OSError, QueueUnavailable) as error:
                    # The system has run out of locks, say. What became of this consumer stands in its row.
                    self._warn(error)
                    return True
        return False

    def _hold(self, current: LockFile) -> bool:
        if not current.is_open():  # somebody closed the descriptor that this process had
            identity = self._take(self._byte, [])
            self._moved = identity not in (None, current.identity)
            return identity is not None
        return current.lock(self._byte, self)

    def follow(self) -> bool:
        """Take the byte in a new lock file too if somebody deleted or replaced the old one.

        Until the next time it is held in both: nobody who still looks into the old file finds it free.

        Returns:
            Whether it did: the new identity must then be written into the queue's file.
        """
        with files.mutex:
            held_in = self._holding()
            if not held_in:
                return False
            moved, self._moved = self._moved, False
            current = held_in[-1]
            if identity_at(self.path) == current.identity:
                return moved
            try:
                return self._take(self._byte, [current]) is not None
            except QueueUnavailable as error:
                self._warn(error)
                return moved

    def release(self) -> None:
        """Let go of the byte: from now on everybody sees this consumer as gone. Harmless if repeated."""
        with files.mutex:
            held_in, self._held_in = self._holding(), []
            for lock_file in held_in:
                lock_file.unlock(self._byte)

    def _holding(self) -> list[LockFile]:
        return self._held_in if self._process == os.getpid() else []

    def _take(self, byte: int, keep: list[LockFile]) -> str | None:
        """Lock a byte in the file at the path, and let go of what was held elsewhere."""
        lock_file = files.open_or_create(self.path, self._database)
        try:
            if not lock_file.lock(byte, self):
                return None
        except OSError as error:
            raise lock_file_unavailable(self.path, error) from error
        finally:
            lock_file.close_if_idle()
        before = [one for one in self._holding() if one not in keep]
        byte_before, self._byte = self._byte, byte
        self._process = os.getpid()
        self._held_in = [*keep, lock_file]
        for one in before:
            if (one, byte_before) != (lock_file, byte):
                one.unlock(byte_before)
        return lock_file.identity

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the lock file %r cannot be used: %s", str(self.path), error)

    # The others

    def sees(self, consumer: ConsumerRow) -> bool:
        """Return whether a consumer lives. If in doubt it does: an item handled late is better than twice.

        A doubt ends after a while, `GRACE` or `DOUBT`, if it is asked for again and again.
        """
        with files.mutex:
            own = self._sees_own(consumer)
            if own is not None:
                return own
            known, locked = self._ask(consumer)
        lives = True if locked else is_running(consumer.pid, consumer.born)
        if lives is False or locked or (lives and not known):
            # A lock file that is gone cannot be asked; its process notices that too, and follows.
            self._doubts.pop(consumer, None)
            return lives is not False
        return self._doubt(consumer, GRACE if known else DOUBT)

    def _sees_own(self, consumer: ConsumerRow) -> bool | None:
        """Tell whether a consumer of this process lives; None if it is of another one."""
        pid = os.getpid()
        if consumer.pid != pid or consumer.born != own_birth(pid):
            return None
        # This process knows what it holds. If it is nowhere, the row came with a copy of the file; if it is
        # elsewhere at this path, it may just be moving.
        return any(
            holder.lives() and (file.identity == consumer.lock_file or holder.path == self.path)
            for file in files.open.values()
            if isinstance(holder := file.held.get(consumer.id), Presence)
        )

    def _ask(self, consumer: ConsumerRow) -> tuple[bool, bool]:
        """Tell whether the consumer's lock file can be asked, and whether its byte is locked in any."""
        there = files.open.get(consumer.lock_file)
        if there is not None and there.is_locked_elsewhere(consumer.id):
            return True, True
        here = files.open_existing(self.path)
        if here is None:
            return there is not None, False
        known = there is not None or here.identity == consumer.lock_file
        locked = here.is_locked_elsewhere(consumer.id)
        here.close_if_idle()
        return known, locked

    def _doubt(self, consumer: ConsumerRow, patience: float) -> bool:
        now = self._monotonic()
        if consumer not in self._doubts:
            # A row may be removed meanwhile, and nobody asks about it again.
            self._doubts = {one: at for one, at in self._doubts.items() if at > now - 2 * DOUBT}
            self._doubts[consumer] = now
        if now < self._doubts[consumer] + patience:
            return True
        del self._doubts[consumer]
        return False


def lock_path(path: Path) -> Path:
    """Return where the lock file of a queue's file is."""
    return path.with_name(f"{path.name}-alive")


def is_held(path: Path, byte: int) -> bool:
    """Return whether some process holds a byte in the lock file beside a queue's file.

    For consumers that told of themselves in another way, in a file of an older version.
    """
    with files.mutex:
        here = files.open_existing(lock_path(path))
        if here is None:
            return False
        held = byte in here.held or here.is_locked_elsewhere(byte)
        here.close_if_idle()
        return held
