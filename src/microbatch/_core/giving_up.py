"""A handler call that is given up: its callers and its slot go on, whether it ends or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microbatch._pure.exceptions import HandlerStuck, HandlerTimeout
from microbatch._telemetry.kinds import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .books import Books
    from .rules import Rules
    from .run import Run
    from .settler import Settler
    from .slots import Slots

#: Handler calls that may still run after their timeout before new batches are refused. A thread cannot
#: be killed; 8 is far from what exhausts a process and enough to ride out a hiccup (a choice).
STUCK_MAX = 8


class GivingUp:
    """Ends runs before their handlers have, and counts the handlers that go on all the same.

    Args:
        rules: The settings.
        slots: Where a slot is given back.
        settler: Gives the callers their errors.
        books: Where the run ends.
        changed: Called when one was given up: its slot is free, and its items have left room.

    Attributes:
        stuck: Runs whose handlers were told to stop, and some that have come back since.
    """

    __slots__ = ("_books", "_changed", "_grace", "_rules", "_settler", "_slots", "stuck")

    def __init__(
        self,
        rules: Rules,
        slots: Slots,
        settler: Settler,
        books: Books,
        changed: Callable[[], None],
    ) -> None:
        self._rules = rules
        self._slots = slots
        self._settler = settler
        self._books = books
        self._changed = changed
        self._grace = 2 * (rules.handler_timeout or 0.0)
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone."""
        self.stuck: set[Run] = set()

    def part(self, run: Run) -> None:
        """A handler that was told to stop has come back."""
        if not run.threads:
            self.stuck.discard(run)

    def check(self, run: Run, now: float) -> None:
        """Refuse a run while too many go on that were given up.

        Raises:
            HandlerStuck: If they are more than `STUCK_MAX`.
        """
        if (stuck := self._count(now)) > STUCK_MAX:
            run.teaches = False
            raise HandlerStuck(self._rules.name, stuck, STUCK_MAX)

    def is_stuck(self, now: float) -> bool:
        """Tell whether so many go on that were given up that a run would be refused."""
        return bool(self.stuck) and self._count(now) > STUCK_MAX

    def _count(self, now: float) -> int:
        """Count the calls that go on after they were given up: threads at once, tasks after a while.

        One that was cancelled and not given up still has its slot, so it needs no other bound.
        """
        for run in [run for run in self.stuck if run.slot is None and not run.threads]:
            self.stuck.discard(run)
        return sum(
            run.ended and (bool(run.threads) or now >= run.started + self._grace)
            for run in self.stuck
        )

    def threads(self) -> int:
        """Return how many worker threads still run a call that was given up. From any thread."""
        return sum(bool(run.threads) for run in list(self.stuck))

    def give_up(self, run: Run, reason: Callable[[], Exception]) -> None:
        """End a run before its handler has: callers and slot go on, the handler is cancelled."""
        if run.ended:
            return
        self._settler.keep_promises(run)
        run.error = kind_of(reason())
        for index in range(run.size):
            if run.waiters[index] is not None:
                self._settler.settle_error(run, index, reason())
        self._cancel(run)
        self._slots.free(run.slot)
        self._books.close(run)
        self._changed()

    def expire(self, run: Run) -> None:
        """``handler_timeout`` has passed."""
        run.timer = None
        seconds = self._rules.handler_timeout or 0.0
        self._books.learn(run, failed=True)
        self.give_up(run, lambda: HandlerTimeout(self._rules.name, seconds))

    def abandon(self, run: Run) -> None:
        """One more of the callers of a run has gone."""
        run.gone += 1
        self.cancel_if_abandoned(run)

    def cancel_if_abandoned(self, run: Run) -> None:
        """Cancel a handler if that was asked for and all who still wait for it have gone.

        Not while a worker thread is busy with it: that cannot be stopped, and keeps its slot.
        """
        if (
            self._rules.cancel_abandoned
            and run.gone
            and run.gone >= run.left
            and not (run.ended or run.cancelled or run.threads)
        ):
            self._cancel(run)

    def _cancel(self, run: Run) -> None:
        """Cancel a running handler; what does not end is counted."""
        self.stuck.add(run)
        run.cancelled = True
        run.teaches = False
        if run.scope is not None:
            run.scope.cancel()
        else:
            run.slot.task.cancel()
