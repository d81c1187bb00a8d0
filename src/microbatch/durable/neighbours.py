"""This consumer among the others: who lives, whose items go back, and what is kept too long."""

from __future__ import annotations

import logging
import os
import weakref
from typing import TYPE_CHECKING, Any

from .alive import Presence, birth_of
from .store import warn_of_wal_bug

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .file_store import Store
    from .records import Consumer

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds between two looks at who lives: an item of a dead process is handled again within twice this.
ALIVE_INTERVAL = 0.25

#: Seconds between two looks at what retention has to remove, and at the lock file.
UPKEEP_INTERVAL = 1.0


class Neighbours:
    """Registers a consumer, and looks after the others.

    Args:
        name: The queue's name, for logs.
        path: The queue's file.
        store: The queue's store.
        attempts_max: How often an item may be in the hands of a consumer that dies.
        reclaimed: Called when items were taken back, or buried, or this consumer has a new number.

    Attributes:
        consumer: This consumer's number; 0 before it is registered.
    """

    def __init__(
        self,
        *,
        name: str,
        path: Path,
        store: Store,
        attempts_max: int,
        reclaimed: Callable[[], None],
    ) -> None:
        self._name = name
        self._path = path
        self._store = store
        self._attempts_max = attempts_max
        self._reclaimed = reclaimed
        self._lives: Callable[[], bool] = lambda: True
        self._presence = Presence(path)
        self._letting_go: Any = None
        self._generation = 0
        self._others: list[Consumer] = []
        self._others_known = False
        self._next_look = 0.0
        self._next_upkeep = 0.0
        self.consumer: int = 0

    async def register(self, lives: Callable[[], bool]) -> None:
        """Make this consumer known in the file.

        Args:
            lives: Tells the other consumers of this process whether this one still works.
        """
        self._lives = lives
        presence = Presence(self._path, lives)
        pid = os.getpid()
        try:
            self.consumer = await self._store.register(pid, birth_of(pid), presence.take)
        except BaseException:
            presence.release()
            raise
        self._generation = self._store.generation
        self.let_go()
        self._presence = presence
        # If the queue is dropped without being closed, its items must not be held for ever.
        self._letting_go = weakref.finalize(self, presence.release)

    def let_go(self) -> None:
        """End the sign of life: from now on others take this consumer's items."""
        if self._letting_go is not None:
            self._letting_go()

    def look_anew(self) -> None:
        """Let the next look read from the file who there is."""
        self._others_known = False

    async def look(self, now: float) -> None:
        """Every so often take back what consumers held that are gone; bury what killed too many.

        Args:
            now: The time by the event loop's clock.
        """
        if now < self._next_look:
            return
        self._next_look = now + ALIVE_INTERVAL
        if not self._others_known:
            await self._get_to_know()
        for consumer in list(self._others):
            if self._presence.sees(consumer):
                continue
            await self._store.reclaim(consumer.id, self._attempts_max)
            logger.warning(
                "queue %r: consumer %d is gone, its items go on here", self._name, consumer.id
            )
            self._others.remove(consumer)
            self._reclaimed()

    async def _get_to_know(self) -> None:
        consumers = await self._store.consumers()
        known = any(consumer.id == self.consumer for consumer in consumers)
        if not known or self._generation != self._store.generation:
            # Another file stands here, a backup say: whatever it says of this consumer is old.
            logger.warning(
                "queue %r: its file was replaced: starting over as a new consumer", self._name
            )
            await self.register(self._lives)
            self._reclaimed()  # a claim by the old number found nothing, whatever there was
        self._others = [consumer for consumer in consumers if consumer.id != self.consumer]
        self._others_known = True
        if any(consumer.pid != os.getpid() for consumer in self._others):
            warn_of_wal_bug(self._path)

    async def keep_up(self, now: float) -> None:
        """Every so often remove what is kept too long, and stay visible if the lock file was deleted."""
        if now < self._next_upkeep:
            return
        self._next_upkeep = now + UPKEEP_INTERVAL
        if self._presence.follow():
            await self._store.move_consumer(self.consumer, self._presence.identity)
            self._others_known = False
        if await self._store.prune():
            self._next_upkeep = now  # there is more
