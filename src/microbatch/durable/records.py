"""The small objects that the rooms of the durable mode hand to each other, the public ones first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec

if TYPE_CHECKING:
    from .errors import ItemFailed

T_co = TypeVar("T_co", covariant=True)


class State(IntEnum):
    """What an item is; the numbers stand in the file. Scheduled is apart from ready.

    If they were one state, a claim would have to read past every delayed item of higher priority.
    """

    READY = 0
    SCHEDULED = 1
    CLAIMED = 2
    DONE = 3
    CANCELLED = 4
    DEAD = 5


class Ticket(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """The handle of an enqueued item: what ``result`` and ``cancel`` take, in any process, at any time.

    Attributes:
        id: The item's number in the file, never used again.
        queue: The name of the queue.
        key: The key that it was enqueued with.
        nonce: Tells an item that was enqueued in a transaction of the application's from another one that
            got the same id after that transaction was rolled back; otherwise None.
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
        done: Items that succeeded and are still kept.
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


class NewItem(NamedTuple):
    """An item on its way to the disk. Encoded and checked before, so that a transaction only writes."""

    payload: bytes
    key: str | None = None
    fingerprint: bytes | None = None
    priority: int = 0
    delay: float = 0.0
    nonce: int | None = None
    trace: bytes | None = None


class Stored(NamedTuple):
    """What became of a new item.

    Attributes:
        id: Its id.
        taken: Whether the enqueueing consumer has it already.
        repeated: Whether it is an older item, which has the same key.
    """

    id: int
    taken: bool = False
    repeated: bool = False


class Appended(NamedTuple):
    """What became of items that have nothing but a payload.

    Attributes:
        first_id: The first one's id; the others follow.
        accepted: How many there was room for: the first ones.
        taken: How many of those the enqueueing consumer has already: the first ones.
        limit: The setting that the others ran into.
    """

    first_id: int
    accepted: int
    taken: int
    limit: str


class Take(NamedTuple):
    """The right of an enqueueing consumer to keep the first ``room`` items: the short way."""

    consumer: int
    claim: int
    room: int


class Claim(NamedTuple):
    """A consumer asks for items.

    Attributes:
        consumer: Who asks.
        number: Settling must name it again, so that a stale settle hits nothing.
        limit: How many at most.
        idle: Whether the consumer has nothing else in hand. Only then may it take an item whose process
            died: such an item is handled alone, so that nobody suffers for it.
    """

    consumer: int
    number: int
    limit: int
    idle: bool


class Claimed(NamedTuple):
    """A committed item in a consumer's hands."""

    id: int
    claim: int
    payload: bytes
    priority: int
    attempts: int
    suspect: bool
    key: str | None
    job: int | None
    trace: bytes | None


class Settlement(NamedTuple):
    """What is to be recorded about one claimed item.

    Attributes:
        id: The item.
        claim: The number under which it was claimed.
        state: ``DONE``, ``DEAD``, ``SCHEDULED`` (again, after ``delay``) or ``READY`` (given back).
        result: The encoded result, for ``DONE``.
        error: The encoded error.
        delay: Seconds, for ``SCHEDULED``.
        uncounted: Whether no handler saw the item, so that the attempt does not count.
    """

    id: int
    claim: int
    state: State
    result: bytes | None = None
    error: bytes | None = None
    delay: float = 0.0
    uncounted: bool = False


class Ended(NamedTuple):
    """How an item ended, as the disk has it."""

    id: int
    state: State
    result: bytes | None
    error: bytes | None
    attempts: int


class Found(NamedTuple):
    """A row for ``result``: its state now, and whether the ticket is really its own."""

    ended: Ended
    nonce: int | None


class DeadRow(NamedTuple):
    """A dead letter as the disk has it."""

    id: int
    payload: bytes
    error: bytes | None
    attempts: int
    enqueued_at: float
    died_at: float


class Consumer(NamedTuple):
    """A worker as it stands in the file, with what tells whether it lives."""

    id: int
    lock_file: int
    pid: int
    born: str | None


class Peek(NamedTuple):
    """What a poll saw. ``version`` changes whenever another connection has committed."""

    version: int
    ready: int
    next_due: float | None
    paused: bool


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
