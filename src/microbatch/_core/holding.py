"""Items that their backend refused go back to the buffer, and their partition waits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from microbatch._pure import checks
from microbatch._pure.exceptions import RateLimited
from microbatch._pure.retry import told_delay
from microbatch._telemetry.log import write

from .hold import Hold
from .pausing import pause_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._pure.retry import Retry

    from .backoff import Backoffs
    from .entry import Entry
    from .room import Room
    from .run import Run

#: An item that is refused while others succeed beside it must come to an end too. In so many times ``holds``
#: probes that it is the first of, a backend that takes a share of each batch at random has most likely taken
#: it: at one in twenty and ``holds=10`` all but 6 of 1,000 (a choice).
PASSED_OVER = 10


class Holding:
    """Decides about refused items, run by run.

    Attributes:
        now: The loop's clock.
    """

    __slots__ = ("_backoffs", "_name", "_retry", "_room", "now")

    def __init__(self, name: str, retry: Retry, room: Room, backoffs: Backoffs) -> None:
        self._name = name
        self._retry = retry
        self._room = room
        self._backoffs = backoffs
        self.now: Callable[[], float]

    def takes(self, run: Run, index: int, entry: Entry, error: Exception) -> bool:
        """Take back a refused item of a run, if it may wait; tell whether. Its partition waits either way."""
        run.teaches = False  # how long the call took says nothing of its size
        if not self._backoffs.open:
            return False
        try:
            self._hold(run, error)
        except Exception:  # noqa: BLE001 - a subclass's own: the item fails with its own error
            write(
                logging.ERROR,
                "batcher %r: Retry.hold() or retry_after raised; the item does not wait",
                self._name,
                exc_info=True,
            )
            return False
        if entry.waiter.done():
            return False
        if not run.spent and not (index == 0 and run.probing and self._is_passed_over(entry)):
            self._room.ranked.put_back(entry, self.now())
            return True
        if type(error) is RateLimited:
            error.add_note(f"batcher {self._name!r}: refused too often in a row, see Retry(holds=)")
        return False

    def _hold(self, run: Run, error: Exception) -> None:
        """Hold a run's partition: one hold, however many calls are refused at the same time."""
        lane, now = run.lane, self.now()
        if lane.hold is None:
            lane.hold = Hold()
        hold: Hold = lane.hold
        late = run.era != hold.era  # or not the first refusal of its run
        if late and hold.awaited:
            after = told_delay(error, self._retry.backoff.maximum)
            if after and hold.extend(now + pause_of(after)):
                self._room.ranked.hold(lane)
            return
        refusals = hold.refusals + (not late)
        delay = checks.number("delay", self._retry.hold(error, max(1, refusals)), minimum=0)
        hold.refusals = refusals
        hold.begin(now + pause_of(delay))
        self._room.ranked.hold(lane)
        run.began_hold = True
        run.spent = not late and refusals >= self._retry.holds

    def _is_passed_over(self, entry: Entry) -> bool:
        hold: Hold = entry.lane.hold
        return hold.pass_over(entry.seq) >= PASSED_OVER * self._retry.holds
