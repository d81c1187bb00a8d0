"""Open, closing, closed: the states of a batcher as a table, and what tells that it has come to its end."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anyio


class Phase(enum.Enum):
    """What a batcher does with items."""

    OPEN = "open"  #: takes them
    CLOSING = "closing"  #: takes none, and finishes those that it has
    CLOSED = "closed"  #: has none


OPEN: Final = Phase.OPEN
CLOSING: Final = Phase.CLOSING
CLOSED: Final = Phase.CLOSED

#: What may follow on what, as long as one event loop is served.
FOLLOWING: Final[Mapping[Phase, frozenset[Phase]]] = {
    OPEN: frozenset({CLOSING, CLOSED}),
    CLOSING: frozenset({CLOSED}),
    CLOSED: frozenset(),
}


class Life:
    """Where a batcher stands between its first item and its end.

    Attributes:
        phase: Open, closing or closed.
        drained: Set when nothing is left to drain; None while nobody asks.
        quiet: Set when no task is left; None while nobody asks.
    """

    __slots__ = ("drained", "phase", "quiet")

    def __init__(self) -> None:
        self.phase: Phase = OPEN
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone."""
        self.drained: anyio.Event | None = None
        self.quiet: anyio.Event | None = None

    def begin(self) -> None:
        """Serve an event loop: closing belonged to the one before."""
        self.phase = OPEN

    def become(self, phase: Phase) -> None:
        """Enter the next phase; to be in it already is no change."""
        if phase is not self.phase:
            assert phase in FOLLOWING[self.phase], (self.phase, phase)  # noqa: S101
            self.phase = phase
