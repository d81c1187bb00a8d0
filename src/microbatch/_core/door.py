"""What a submit on the usual way reads: where items may be appended without asking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fifo import Fifo


class Door:
    """The way in for an item that needs nothing special.

    A submit reads all of it, so it is one small object: with it open an item costs two appends.

    Attributes:
        fifo: Where items may be appended without asking, as long as its limit is not reached; None while
            somebody has to look first.
        native: asyncio's object for the event loop that is served; the door itself while there is none, so
            that it is no loop's.
        create_waiter: Makes what a caller waits on; valid while there is a loop.
        running: Handler calls without an end: only while there are some can a caller be inside of one.
    """

    __slots__ = ("create_waiter", "fifo", "native", "running")

    def __init__(self) -> None:
        self.create_waiter: Callable[[], Any]
        self.close()

    def close(self) -> None:
        """Belong to no event loop."""
        self.fifo: Fifo | None = None
        self.native: Any = self
        self.running: int = 0
