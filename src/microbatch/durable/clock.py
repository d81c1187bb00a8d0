"""The time that is written into the file: the wall clock's, but never backwards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Seconds since the epoch that go on at least as fast as the monotonic clock.

    Delays must mean something after a restart, so what is stored is wall time. When somebody sets the wall
    clock back by an hour, this clock goes on as before: a back-off of a second stays a second. When it is
    set forth, or the machine slept, this clock follows.
    """

    def __init__(
        self,
        wall: Callable[[], float] = lambda: time.time(),  # noqa: PLW0108 - looked up anew, for tests
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead = wall() - monotonic()

    def now(self) -> float:
        """Return the time in seconds since the epoch."""
        monotonic = self._monotonic()
        self._ahead = max(self._ahead, self._wall() - monotonic)
        return monotonic + self._ahead
