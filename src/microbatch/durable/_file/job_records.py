"""What the rooms of the durable mode tell each other of jobs; none of it is public."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from .job_life import Counts, JobLife, Pace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .records import State


class NewJob(NamedTuple):
    """A job on its way in: what its row says of it before it is seen.

    Attributes:
        uid: The id that others know.
        owner, key, fingerprint, metadata, retry_of: As in its row; the metadata as JSON text.
        priority, delay, batch_size, ordered, max_failures: As for ``enqueue_job``.
        named: Whether its items have ids of the client's.
        lasts: Seconds until its deadline, from when it is seen.
    """

    uid: str
    owner: str | None = None
    key: str | None = None
    fingerprint: bytes | None = None
    metadata: str | None = None
    retry_of: str | None = None
    priority: int = 0
    delay: float = 0.0
    batch_size: int | None = None
    ordered: bool = False
    named: bool = False
    max_failures: int | None = None
    lasts: float | None = None


class Begun(NamedTuple):
    """What became of the wish to begin a job.

    Attributes:
        number: Its number in the file.
        uid: Its id.
        repeated: Whether it is an older one, which has the same key.
        busy: Whether that one is still coming in: ask again later.
        conflict: Whether that one has another fingerprint.
    """

    number: int
    uid: str
    repeated: bool = False
    busy: bool = False
    conflict: bool = False


class Chunk(NamedTuple):
    """Items of a job that are written in one transaction.

    Attributes:
        position: The first one's place in the job.
        payloads: All their bytes, those of items that do not fit included.
        refused: The encoded errors of items that do not fit, by their place in here.
        ids: The client's ids, one each; None without any.
        trace: The context that they were sent in.
    """

    position: int
    payloads: Sequence[bytes]
    refused: dict[int, bytes]
    ids: Sequence[str | None] | None
    trace: bytes | None = None


class JobRow(NamedTuple):
    """A job as the disk has it, column by column."""

    number: int
    uid: str
    owner: str | None
    key: str | None
    metadata: str | None
    retry_of: str | None
    life: int
    outcome: str | None
    paused: int
    total: int
    succeeded: int
    failed: int
    skipped: int
    cancelled: int
    expired: int
    errors: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    last_at: float
    before_at: float
    before_done: int
    changes: int
    kept: int
    named: int

    @property
    def tally(self) -> Counts:
        """How its items ended."""
        return Counts(*self[10:15])

    @property
    def has_ended(self) -> bool:
        """Tell whether it has."""
        return self.life == JobLife.ENDED

    @property
    def pace(self) -> Pace:
        """What is known of how fast it goes."""
        return Pace(self.before_at, self.before_done, self.last_at, sum(self.tally))

    def codes(self) -> dict[str, int]:
        """Return how many failed or were skipped, by code."""
        found: dict[str, int] = json.loads(self.errors or "{}")
        return found


class JobItem(NamedTuple):
    """One item of a job that has ended, as the disk has it.

    Attributes:
        position: Its place in the job.
        number: Its id in the file.
        state: How it ended.
        attempts: Handler calls that it was part of.
        id: The client's id.
        result: Its encoded result.
        error: Its encoded error.
    """

    position: int
    number: int
    state: State
    attempts: int
    id: str | None
    result: bytes | None
    error: bytes | None


class JobNews:
    """What a transaction did to the jobs of a queue, for who counts.

    Attributes:
        items: How many of their items ended, by how.
        ended: The outcome of each that ended, and the seconds since it could be seen.
    """

    __slots__ = ("ended", "items")

    def __init__(self) -> None:
        self.items: dict[str, int] = {}
        self.ended: list[tuple[str, float]] = []

    def count(self, ended: Counts) -> None:
        """Take in items that ended."""
        for kind, more in zip(Counts._fields, ended, strict=True):
            if more:
                self.items[kind] = self.items.get(kind, 0) + more


class Page(NamedTuple):
    """Some of a job's items.

    Attributes:
        items: Those that have ended, by their places.
        after: The place after which the next page goes on; None at the end.
    """

    items: list[JobItem]
    after: int | None


class Recipe(NamedTuple):
    """What a new job takes over of one whose items it takes, column by column."""

    number: int
    life: int
    kept: int
    ended_at: float | None
    owner: str | None
    priority: int
    batch_size: int | None
    ordered: int
    named: int
    max_failures: int | None
    metadata: str | None


class Leftovers(NamedTuple):
    """Items of a job that did not end well, to be copied.

    Attributes:
        payloads: Their bytes.
        ids: The client's ids of them; None without any.
        after: The place after which the next ones come; None at the end.
    """

    payloads: list[bytes]
    ids: list[str | None] | None
    after: int | None
