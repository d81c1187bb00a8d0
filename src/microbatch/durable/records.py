"""What the durable mode's calls return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from microbatch.durable._file.records import State

if TYPE_CHECKING:
    from microbatch.durable._file.records import QueueCounts

    from .errors import ItemFailed

T_co = TypeVar("T_co", covariant=True)


class Ticket(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """The handle of an enqueued item: what ``result`` and ``cancel`` take, in any process, at any time.

    Attributes:
        id: The item's number in the file, never used again.
        queue: The name of the queue.
        key: The key that it was enqueued with.
        nonce: A number that the opening of the file drew in which the item was stored. It tells the item
            from another one that got the same id in a copy of the file: a backup that was restored, or
            after a transaction of the application's was rolled back. None in tickets of microbatch 0.1.
    """

    id: int
    queue: str = "default"
    key: str | None = None
    nonce: int | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter(Generic[T_co]):
    """An item that used up its attempts.

    Attributes:
        id: The item's id: what ``requeue`` and ``purge`` take, and the cursor for the next page.
        item: The item; where it no longer decodes as ``item_type``, its built-in parts or its bytes.
        error: Why it died: kind, message, attempts and traceback of the last error.
        attempts: How many handler calls it was part of.
        enqueued_at: When it was enqueued, in seconds since the epoch.
        died_at: When it died, in seconds since the epoch.
    """

    id: int
    item: T_co
    error: ItemFailed
    attempts: int
    enqueued_at: float
    died_at: float


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue's counts at one moment, all read in one transaction.

    Attributes:
        ready: Items that wait for a handler.
        scheduled: Items whose delay or back-off is not over.
        claimed: Items that a living consumer has.
        done: Items that succeeded, or were skipped by their handler, and are still kept.
        dead: Dead letters.
        cancelled: Cancelled items that are still kept.
        oldest_age: Seconds since the oldest ready or claimed item was due; 0 without one.
        file_bytes: Pages in use, in bytes. The whole file's: queues in it share this.
        wal_bytes: Size of the write-ahead log. Queues in a file share this too.
        lock_waits: How often this process found the file locked by another one.
        paused: Whether the queue is paused.
    """

    ready: int
    scheduled: int
    claimed: int
    done: int
    dead: int
    cancelled: int
    oldest_age: float
    file_bytes: int
    wal_bytes: int
    lock_waits: int
    paused: bool

    @property
    def depth(self) -> int:
        """Return how many items have not ended: what ``max_depth`` bounds."""
        return self.ready + self.scheduled + self.claimed


def queue_stats(counts: QueueCounts, lock_waits: int) -> QueueStats:
    """Return what the file says of a queue as callers get it."""
    queue = counts.queue
    by_state = queue.counts
    oldest = counts.now if counts.oldest is None else counts.oldest
    return QueueStats(
        ready=by_state[State.READY],
        scheduled=by_state[State.SCHEDULED],
        claimed=by_state[State.CLAIMED],
        done=by_state[State.DONE] + by_state[State.SKIPPED],
        dead=by_state[State.DEAD],
        cancelled=by_state[State.CANCELLED] + by_state[State.EXPIRED],
        oldest_age=max(0.0, counts.now - oldest),
        file_bytes=counts.file_bytes,
        wal_bytes=counts.wal_bytes,
        lock_waits=lock_waits,
        paused=queue.paused,
    )


#: Anything that stands for an item in calls of the public interface.
AnyTicket = Ticket | int


def ticket_id(ticket: AnyTicket) -> int:
    """Return the id that a ticket, or an id, stands for."""
    if isinstance(ticket, Ticket):
        return ticket.id
    given: Any = ticket
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    message = f"ticket must be a Ticket or an id, got {type(given).__name__}"
    raise TypeError(message)
