"""What a durable queue last counted in its file."""

from __future__ import annotations

import time
from typing import Any

from .names import COUNT_KEPT


class Counted:
    """What a durable queue last counted in its file, for readers of gauges in whatever thread.

    Args:
        name: The queue's name for telemetry.
        place: The file, and the queue in it: who counts the same place counts the same items.

    Attributes:
        stats: The counts, a ``QueueStats``; None while there are none.
    """

    __slots__ = ("__weakref__", "_kept", "name", "place")

    def __init__(self, name: str, place: object) -> None:
        self.name: str = name
        self.place: object = place
        self._kept: tuple[float, Any] = (0.0, None)

    def keep(self, stats: Any) -> None:
        """Take in what was counted just now; None forgets what was before."""
        self._kept = (time.monotonic(), stats)

    @property
    def stats(self) -> Any:
        """Return the counts, unless they are too old."""
        at, stats = self._kept
        return stats if time.monotonic() - at < COUNT_KEPT else None
