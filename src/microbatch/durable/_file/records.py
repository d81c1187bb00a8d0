"""What the rooms of the durable mode tell each other of items; none of it is public."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from microbatch._pure.report import INTERNAL_ERROR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .job_lanes import ToldOfJobs


class State(IntEnum):
    """What an item is; the numbers stand in the file. Scheduled is apart from ready.

    If they were one state, a claim would have to read past every delayed item of higher priority.
    """

    READY = 0
    SCHEDULED = 1
    CLAIMED = 2
    DONE = 3
    SKIPPED = 4
    CANCELLED = 5
    EXPIRED = 6
    DEAD = 7
    STAGED = 8


#: An item that ended: nothing will happen to it any more, but for `requeue` of a dead one.
ENDED = frozenset((State.DONE, State.SKIPPED, State.CANCELLED, State.EXPIRED, State.DEAD))


class Range(NamedTuple):
    """Consecutive items in one state: a row of the file, column by column.

    Attributes:
        first: The first one's id.
        count: How many there are.
        queue: The queue's number.
        lane: 0, or the job's lane.
        state: What they are, a `State`.
        priority: Higher goes first.
        due: When they may be handled, in seconds since the epoch.
        since: The reading of the clock that ``due`` was counted from.
        attempts: Handler calls that came back, and deaths that counted.
        deaths: How often one died alone with its process.
        apart: Ready or claimed items that must be claimed together and with nobody else: the first one's
            id, the same for all of them; None for everybody else.
        consumer: Who has claimed, or staged, them.
        claim: Under which number.
        ticket: The number that their tickets carry; None in a file of version 1.
        job: Their job's number.
        position: The first one's place in it.
        key: The idempotency key of a range of one.
        enqueued: When they were enqueued; the first of them, where ranges were merged.
        ended_at: When they ended; the last of them.
        keep_until: How long they are kept; None for dead letters.
        ended: The number of the transaction of this queue that ended them; the last of them.
    """

    first: int
    count: int  # type: ignore[assignment]  # tuple has a method of that name, which nobody calls here
    queue: int
    lane: int
    state: int
    priority: int
    due: float
    since: float
    attempts: int
    deaths: int
    apart: int | None
    consumer: int | None
    claim: int | None
    ticket: int | None
    job: int | None
    position: int | None
    key: str | None
    enqueued: float
    ended_at: float | None
    keep_until: float | None
    ended: int | None


class NewItem(NamedTuple):
    """An item on its way to the disk. Encoded and checked before, so that a transaction only writes.

    Attributes:
        payload: Its bytes.
        key: Its idempotency key.
        priority: Higher goes first.
        delay: Seconds before it may be handled.
        trace: The context of the span that sent it.
    """

    payload: bytes
    key: str | None = None
    priority: int = 0
    delay: float = 0.0
    trace: bytes | None = None


class Stored(NamedTuple):
    """What became of a new item.

    Attributes:
        id: Its id.
        ticket: The number of its ticket.
        repeated: Whether it is an older item, which has the same key.
    """

    id: int
    ticket: int | None
    repeated: bool = False


class Clash(NamedTuple):
    """A key that another payload has: whether both mean the same is for whoever can decode them.

    Attributes:
        key: The key.
        id: The older item's id.
        ticket: The number of its ticket.
        payload: The older item's payload.
    """

    key: str
    id: int
    ticket: int | None
    payload: bytes


class Demand(NamedTuple):
    """A consumer asks for items: as many handler calls as it has free slots, so many items in each.

    Attributes:
        consumer: Who asks.
        claim: The number of the first claim; the others follow. Settling names it again, so that a stale
            settle hits nothing.
        slots: How many claims at most, at least 1.
        size: How many items in each at most, at least 1.
        enough: How many one handler call may have; None for ``size``, which is more where partitions part them.
    """

    consumer: int
    claim: int
    slots: int
    size: int
    enough: int | None = None


class Claim(NamedTuple):
    """What one handler call gets.

    Attributes:
        number: The claim's number.
        ranges: Which items, in the order of claiming; each range's attempts are those before this one.
        payloads: Their bytes, in the same order.
        traces: The contexts that they were sent in, one each; None where nobody has one.
        told: What the handler is told of jobs; None where nobody is of one.
    """

    number: int
    ranges: list[Range]
    payloads: list[bytes]
    traces: list[bytes | None] | None
    told: ToldOfJobs | None = None


class Appended(NamedTuple):
    """What became of items that have nothing but a payload.

    Attributes:
        first: The first one's id; the others follow.
        accepted: How many there was room for: the first ones.
        claims: What a demand got of them: the first ones, each claim's ranges alone.
        limit: The setting that the others ran into.
    """

    first: int
    accepted: int
    claims: list[Claim]
    limit: str


class Verdict(NamedTuple):
    """What is to be recorded about one claimed item that has not simply succeeded.

    Attributes:
        id: The item.
        state: ``SKIPPED``, ``DEAD``, ``SCHEDULED`` (again, after ``delay``) or ``READY`` (given back).
        error: The encoded error; None keeps the one that is there.
        delay: Seconds, for ``SCHEDULED``.
        counted: Whether a handler call came back, so that the attempt counts.
        code: The error's code, by which jobs count it.
    """

    id: int
    state: State
    error: bytes | None = None
    delay: float = 0.0
    counted: bool = True
    code: str = INTERNAL_ERROR


class Settlement(NamedTuple):
    """What became of items of one claim.

    Attributes:
        claim: The number under which they were claimed.
        done: The ids of those that succeeded, in ascending order.
        results: Their encoded results, one each; None for a result of None.
        verdicts: The others.
    """

    claim: int
    done: Sequence[int]
    results: Sequence[bytes | None]
    verdicts: Sequence[Verdict]


class Found(NamedTuple):
    """An item as the disk has it.

    Attributes:
        id: Its id.
        state: What it is.
        ticket: The number of its ticket.
        attempts: Handler calls so far.
        result: Its encoded result, for ``DONE``.
        error: Its encoded error.
    """

    id: int
    state: State
    ticket: int | None
    attempts: int
    result: bytes | None
    error: bytes | None


class DeadRow(NamedTuple):
    """A dead letter as the disk has it."""

    id: int
    payload: bytes
    error: bytes | None
    attempts: int
    enqueued: float
    ended_at: float


class ConsumerRow(NamedTuple):
    """A consumer as it stands in the file, with what tells whether it lives."""

    id: int
    queue: int
    lock_file: str
    pid: int
    born: str | None


class Queue(NamedTuple):
    """A queue's own row: everything that is asked often, kept by the transactions that change it.

    Attributes:
        id: Its number.
        paused: Whether nothing may be claimed.
        counts: How many items there are, by `State`.
        ended: How many transactions have ended items.
        removed: How many transactions have removed items, or made them unfindable.
        latest: The latest reading of a clock that stands in one of its ranges.
    """

    id: int
    paused: bool
    counts: tuple[int, ...]
    ended: int
    removed: int
    latest: float

    @property
    def depth(self) -> int:
        """Return how many items have not ended, staged ones included: what ``max_depth`` bounds."""
        counts = self.counts
        return (
            counts[State.READY]
            + counts[State.SCHEDULED]
            + counts[State.CLAIMED]
            + counts[State.STAGED]
        )


class QueueCounts(NamedTuple):
    """What `stats` reads.

    Attributes:
        queue: The queue's row.
        oldest: When the oldest ready or claimed item was due, in seconds since the epoch; None without one.
        now: The time of reading.
        file_bytes: Pages in use, in bytes.
        wal_bytes: The log's size.
    """

    queue: Queue
    oldest: float | None
    now: float
    file_bytes: int
    wal_bytes: int


#: A statement for whoever has the connection: its text, its parameters, whether it runs for many, in which
#: case nothing comes back; else a list of all its rows does.
Step = tuple[str, Any, bool]
