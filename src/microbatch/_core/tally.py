"""What is in handler calls and in back-off, and what has been: the counts that several rooms share."""

from __future__ import annotations

from collections import defaultdict, deque

#: Batches of which stats tell how long their oldest item waited: enough to see past a single odd one.
WAITS_KEPT = 16


class Tally:
    """Counts, exact at every moment.

    Attributes:
        flying: Items in handler calls, without an outcome yet.
        flying_weight: What those weigh, in units.
        backing_off: Items that failed and wait for their next attempt.
        backing_off_weight: What those weigh, in units.
        items: Items whose handling has ended.
        failed: Those of them that failed; skipped ones are not among them.
        reasons: Handler calls that have ended, by why their batch left.
        waits: Seconds that the oldest item of each of the last batches waited.
    """

    __slots__ = (
        "backing_off",
        "backing_off_weight",
        "failed",
        "flying",
        "flying_weight",
        "items",
        "reasons",
        "waits",
    )

    def __init__(self) -> None:
        self.items: int = 0
        self.failed: int = 0
        self.reasons: dict[str, int] = defaultdict(int)
        self.waits: deque[float] = deque(maxlen=WAITS_KEPT)
        self.forget()

    def forget(self) -> None:
        """Drop what was under way in an event loop that is gone."""
        self.flying: int = 0
        self.flying_weight: int = 0
        self.backing_off: int = 0
        self.backing_off_weight: int = 0
