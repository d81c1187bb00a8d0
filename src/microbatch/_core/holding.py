"""Items that their backend refused go back to the buffer, and their partition waits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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


def is_refusal(result: Any) -> bool:
    """Tell whether a backend says that it takes nothing now. A proxy may lie about its class."""
    return issubclass(type(result), RateLimited)


class Refusal(NamedTuple):
    """What a refused call means for its partition.

    Attributes:
        waits: True if it waits until another time than before.
        began: True if that is a new hold; a late refusal only makes one longer.
        spent: True if there were too many in a row, so that what was refused fails.
    """

    waits: bool
    began: bool = False
    spent: bool = False


class Holder(Protocol):
    """Takes back refused items.

    Attributes:
        now: The loop's clock.
    """

    now: Callable[[], float]

    def takes(
        self, run: Run, index: int, waiter: Any, entry: Entry | None, error: Exception
    ) -> bool:
        """Take back a refused item of a run, if it may wait; tell whether."""
        ...


def refuse(hold: Hold, error: Exception, era: int, retry: Retry, now: float) -> Refusal:
    """Hold a partition for a refusal: one hold, however many calls are refused at the same time.

    Args:
        hold: The partition's.
        error: What an item, or the whole call, was refused with.
        era: The hold's era when the call began.
        retry: How long, and how often.
        now: The time.

    Raises:
        Exception: What an error's or a Retry's subclass raises.
    """
    late = era != hold.era  # or not the first refusal of its call
    if late and hold.awaited:
        after = told_delay(error, retry.backoff.maximum)
        return Refusal(bool(after) and hold.extend(now + pause_of(after or 0.0)))
    refusals = hold.refusals + (not late)
    delay = checks.number("delay", retry.hold(error, max(1, refusals)), minimum=0)
    hold.refusals = refusals
    hold.begin(now + pause_of(delay))
    return Refusal(waits=True, began=True, spent=not late and refusals >= retry.holds)


def is_passed_over(hold: Hold, front: int, retry: Retry) -> bool:
    """Tell whether the first item of a refused probe, by its number, was refused too often in that place."""
    return hold.pass_over(front) >= PASSED_OVER * retry.holds


def tell_unheld(name: str) -> None:
    """Log that an error's or a Retry's own code raised, so that an item does not wait."""
    write(
        logging.ERROR,
        "batcher %r: Retry.hold() or retry_after raised; the item does not wait",
        name,
        exc_info=True,
    )


def note_spent(name: str, error: Exception) -> None:
    """Say on an error, a copy of its caller's own, why it is raised now."""
    if type(error) is RateLimited:
        error.add_note(f"batcher {name!r}: refused too often in a row, see Retry(holds=)")


class Holding:
    """Puts refused items back into the buffer.

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

    def takes(
        self, run: Run, index: int, waiter: Any, entry: Entry | None, error: Exception
    ) -> bool:
        """Take back a refused item of a run, if it may wait; tell whether. Its partition waits either way."""
        run.teaches = False  # how long the call took says nothing of its size
        if not self._backoffs.open:
            return False
        lane, now = run.lane, self.now()
        if lane.hold is None:
            lane.hold = Hold()
        try:
            refusal = refuse(lane.hold, error, run.era, self._retry, now)
        except Exception:  # noqa: BLE001 - a subclass's own: the item fails with its own error
            tell_unheld(self._name)
            return False
        if refusal.waits:
            self._room.ranked.hold(lane)
        if refusal.began:
            run.began_hold, run.spent = True, refusal.spent
        if waiter.done():
            return False
        assert entry is not None  # noqa: S101 - with retry= there are no flat lists
        passed = index == 0 and run.probing and is_passed_over(lane.hold, entry.seq, self._retry)
        if run.spent or passed:
            note_spent(self._name, error)
            return False
        self._room.ranked.put_back(entry, now)
        return True
