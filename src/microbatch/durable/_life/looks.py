"""Who has a seat at a queue, as those see it who only look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from microbatch.durable._file import listing

from .processes import is_stopped

if TYPE_CHECKING:
    from collections.abc import Generator

    from microbatch.durable._file.records import ConsumerRow, Step
    from microbatch.durable._file.session import Session

    from .alive import Presence


class ConsumerLook(NamedTuple):
    """A consumer of a queue: a worker, or somebody whose job is coming in.

    Attributes:
        id: Its number in the file.
        pid: Its process.
        alive: Whether it lives; in doubt it does.
        stopped: Whether its process is stopped (by SIGSTOP, or in a debugger).
        held: How many items it has claimed.
        held_since: When the first of them was due, in seconds since the epoch: they have been in its hands
            for at most so long. None without any.
        claim: The number of its latest claim; None without any.
    """

    id: int
    pid: int
    alive: bool
    stopped: bool
    held: int
    held_since: float | None
    claim: int | None


#: How many items are in a consumer's hands, when the first of them was due, and its latest claim.
Held = tuple[int, float | None, int | None]


def seats(session: Session, queue: int) -> Generator[Step, Any, list[tuple[ConsumerRow, Held]]]:
    """Return who has a seat at a queue, living or dead, and what is in his hands."""
    rows = yield from session.consumers()
    held = yield from listing.in_hands(queue)
    return [(row, held.get(row.id, (0, None, None))) for row in rows if row.queue == queue]


def look_at(eyes: Presence, row: ConsumerRow, held: Held) -> ConsumerLook:
    """Return a consumer with what the system says of its process."""
    alive = eyes.sees(row)
    return ConsumerLook(row.id, row.pid, alive, alive and is_stopped(row.pid, row.born), *held)
