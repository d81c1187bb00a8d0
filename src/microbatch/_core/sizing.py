"""How many items a batch may have: a number, or what a size that learns says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from microbatch._telemetry.log import write

if TYPE_CHECKING:
    from .rules import Rules
    from .run import Run


class Sizing:
    """The size of the next batch, and what handler calls teach about it."""

    __slots__ = ("_name", "_size", "adaptive")

    def __init__(self, rules: Rules) -> None:
        self._name = rules.name
        self._size = rules.size
        self.adaptive = rules.adaptive

    def current(self) -> int:
        """Return how many items the next batch may have."""
        if self.adaptive is None:
            return self._size
        try:
            return max(1, min(int(self.adaptive.size), self._size))
        except Exception as error:  # noqa: BLE001 - a subclass's own: batches go on with one size
            self._stop(error)
            return self._size

    def learn(self, run: Run, now: float, *, failed: bool = False) -> None:
        """Learn from a call, unless it was cut short, never made, or counted before."""
        if self.adaptive is None or not run.teaches or run.ended:
            return
        run.teaches = False
        try:
            failed = failed or run.error is not None
            self.adaptive.record(run.size, now - run.started, failed=failed)
        except Exception as error:  # noqa: BLE001 - a subclass's own: the batch has its outcomes
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Go on with batches of one size, the maximum: what a size that learns does fails no batch."""
        self.adaptive = None
        write(
            logging.ERROR,
            "batcher %r: its AdaptiveSize failed; from now on max_batch_size is %d",
            self._name,
            self._size,
            exc_info=error,
        )
