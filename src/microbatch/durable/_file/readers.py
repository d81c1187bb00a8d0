"""The connections that users and readers touch: one to read and one for `on_settle`, for each event loop."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from microbatch.durable.errors import QueueUnavailable

from .reader import AsyncConnection
from .schema import SYNCHRONOUS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator
    from pathlib import Path

    from microbatch._loops.protocol import Loop

    from .records import Step

T = TypeVar("T")

_all: dict[tuple[Path, int], Readers] = {}


class Readers:
    """Connections to a file for one event loop, shared by its queues, opened when they are first needed.

    Args:
        path: The file, resolved.
        loop: The event loop.

    Attributes:
        loop: The same.
        users: How many queues have it.
    """

    def __init__(self, path: Path, loop: Loop) -> None:
        self._path = path
        self.loop = loop
        self.users = 0
        self._reader: AsyncConnection | None = None
        self._settler: AsyncConnection | None = None
        self._opening = anyio.Lock(fast_acquire=True)
        self._settling = anyio.Lock(fast_acquire=True)

    @staticmethod
    def enter(path: Path, loop: Loop) -> Readers:
        """Return those of a file and event loop; whoever gets them calls `leave` once."""
        place = (path, id(loop.native))
        readers = _all.get(place)
        if readers is None or readers.loop.has_ended():
            readers = _all[place] = Readers(path, loop)
        readers.users += 1
        return readers

    async def read(self, steps: Callable[[], Generator[Step, Any, T]]) -> T:
        """Run statements that only read, on one state of the file.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        reader = self._reader
        if reader is None or not reader.usable:
            async with self._opening:
                reader = await self._open_reader()
        return await reader.run(steps())

    async def _open_reader(self) -> AsyncConnection:
        reader = self._reader
        if reader is None or reader.ended:  # nobody was faster
            self._check_used()
            # Known before it is open: who leaves meanwhile ends it.
            reader = self._reader = AsyncConnection.begin(self._path, read_only=True)
            await reader.opened()
        return reader

    def _check_used(self) -> None:
        """Refuse to open what nobody would close."""
        if not self.users:
            raise QueueUnavailable(str(self._path), "its queue was closed meanwhile")

    @asynccontextmanager
    async def settling(self, synchronous: str) -> AsyncIterator[AsyncConnection]:
        """Give the connection that writes, to one at a time.

        Args:
            synchronous: What it asks of the disk; a key of `SYNCHRONOUS`.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        async with self._settling:
            settler = self._settler
            if settler is None or settler.ended:
                self._check_used()
                settler = self._settler = AsyncConnection.begin(
                    self._path,
                    read_only=False,
                    pragmas=(
                        f"PRAGMA synchronous = {SYNCHRONOUS[synchronous]}",
                        "PRAGMA fullfsync = ON",  # macOS only
                    ),
                )
                await settler.opened()
            yield settler

    async def leave(self) -> None:
        """Do without them; the last one to leave closes them.

        Cancelling this ends them at once; then nobody waits for them any more.
        """
        self.users -= 1
        if self.users:
            return
        self._forget()
        try:
            for connection in (self._reader, self._settler):
                if connection is not None:
                    await connection.close()
        except BaseException:
            for connection in (self._reader, self._settler):
                if connection is not None:
                    connection.desert()
            raise

    def stop(self) -> None:
        """End them, in whatever thread: their event loop has ended."""
        self._forget()
        for connection in (self._reader, self._settler):
            if connection is not None:
                connection.stop()

    def _forget(self) -> None:
        place = (self._path, id(self.loop.native))
        if _all.get(place) is self:
            del _all[place]
