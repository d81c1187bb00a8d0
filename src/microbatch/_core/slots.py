"""The right to run a batch, and the handler calls that go on after they lost it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microbatch._loops.protocol import Handle

    from .run import Run

#: Handler calls that may still run after their timeout before new batches are refused. A thread cannot
#: be killed; 8 is far from what exhausts a process and enough to ride out a hiccup (a choice).
STUCK_MAX = 8


class Slot:
    """The right to run batches, one at a time, held by a task that goes on while some are ready.

    Attributes:
        held: True while the slot counts as taken.
        starting: True while its task is about to cut a batch.
        handled: Items since the loop last had a turn.
        task: What holds it.
        run: The batch that it runs.
    """

    __slots__ = ("handled", "held", "run", "starting", "task")

    def __init__(self) -> None:
        self.held: bool = True
        self.starting: bool = True
        self.handled: int = 0
        self.task: Handle | None = None
        self.run: Run | None = None


class Stuck:
    """Batches whose handlers were told to stop and have not come back.

    Attributes:
        runs: They, and some that have come back since.
    """

    __slots__ = ("_grace", "runs")

    def __init__(self, handler_timeout: float | None) -> None:
        self._grace = 2 * (handler_timeout or 0.0)
        self.runs: set[Run] = set()

    def part(self, run: Run) -> None:
        """A handler that was told to stop has come back."""
        if not run.threads:
            self.runs.discard(run)

    def count(self, now: float) -> int:
        """Count the calls that go on after they were given up: threads at once, tasks after a while.

        One that was cancelled and not given up still has its slot, so it needs no other bound.
        """
        for run in [run for run in self.runs if run.slot is None and not run.threads]:
            self.runs.discard(run)
        return sum(
            run.ended and (bool(run.threads) or now >= run.started + self._grace)
            for run in self.runs
        )
