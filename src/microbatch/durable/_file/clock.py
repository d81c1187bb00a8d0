"""The time that is written into the file: the wall clock's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Seconds since the epoch, as the wall clock has them now.

    Delays must mean something after a restart, so what is stored is wall time. The clock follows every
    step of the wall clock, forth and back. What was rejected: never going backwards, which turns one wrong
    reading into the time of this process for good. A due time that was counted from a wrong reading is
    found by that reading, which stands in the file beside it.
    """

    def __init__(
        self,
        wall: Callable[[], float] = lambda: time.time(),  # noqa: PLW0108 - looked up anew, for tests
    ) -> None:
        self._wall = wall

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        return self._wall()
