"""What somebody waits for, looked up on the disk by one task: many at a time, and again after a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from microbatch.durable._life.opening import OwnTask

K = TypeVar("K")

#: Items, or jobs, that are looked up in one statement.
LOOKED_UP = 1_000


class Wanted(Generic[K]):
    """Looks up whatever is asked for, once for all who ask.

    There is a task only while something is wanted. What it could not look up, because the file could not be
    read or because somebody cancelled it, is wanted still.

    Args:
        title: What the task is called.
        spawn: Starts a task of the queue's own.
        read: Reads so many.
        tell: Takes what was read.
        failed: Tells people of an error; returns the seconds before the next look.

    Attributes:
        looking: The task, while there is one.
    """

    def __init__(
        self,
        title: str,
        spawn: Callable[[Any, str], OwnTask],
        *,
        read: Callable[[list[K]], Awaitable[Any]],
        tell: Callable[[list[K], Any], None],
        failed: Callable[[Exception], float],
    ) -> None:
        self._title = title
        self._spawn = spawn
        self._read = read
        self._tell = tell
        self._failed = failed
        self._wanted: dict[K, None] = {}
        self._over = False
        self.looking: OwnTask | None = None

    def ask(self, keys: Iterable[K]) -> None:
        """Have them looked up soon."""
        self._wanted |= dict.fromkeys(keys)
        if self._wanted and self.looking is None and not self._over:
            self.looking = self._spawn(self._look(), self._title)
            self.looking.on_end = self._looked

    async def end(self) -> None:
        """Look no more: what is read from here on is for nobody."""
        self._over = True
        looking = self.looking
        if looking is not None:
            looking.task.cancel()
            await looking.ended.wait()

    def _looked(self) -> None:
        """Go on if something came meanwhile, or somebody cancelled the task."""
        self.looking = None
        self.ask(())

    async def _look(self) -> None:
        while self._wanted:
            keys = list(self._wanted)[:LOOKED_UP]
            for key in keys:  # who asks from here on asks for a later state
                del self._wanted[key]
            try:
                found = await self._read(keys)
            except BaseException as error:
                self._wanted |= dict.fromkeys(keys)
                if not isinstance(error, Exception):
                    raise
                await anyio.sleep(self._failed(error))
                continue
            self._tell(keys, found)
