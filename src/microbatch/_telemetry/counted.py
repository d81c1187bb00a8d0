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
        jobs: How many jobs have not ended, by life; None while that is not known.
    """

    __slots__ = ("__weakref__", "_kept", "name", "place")

    def __init__(self, name: str, place: object) -> None:
        self.name: str = name
        self.place: object = place
        self._kept: tuple[float, Any, dict[str, int] | None] = (0.0, None, None)

    def keep(self, stats: Any, jobs: dict[str, int] | None = None) -> None:
        """Take in what was counted just now; None forgets what was before."""
        self._kept = (time.monotonic(), stats, jobs)

    @property
    def stats(self) -> Any:
        """Return the counts, unless they are too old."""
        at, stats, _ = self._kept
        return stats if time.monotonic() - at < COUNT_KEPT else None

    @property
    def jobs(self) -> dict[str, int] | None:
        """Return how many jobs have not ended, by life, unless that is too old."""
        at, _, jobs = self._kept
        return jobs if time.monotonic() - at < COUNT_KEPT else None
