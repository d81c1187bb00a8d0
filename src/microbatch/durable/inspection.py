"""A queue's file as those see it who only look: no type is needed, and nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ._file import checking, listing
from ._file.codec import Codec
from ._file.job_life import VISIBLE
from ._file.listing import ID_END, READ_AT_ONCE, STATE_NAMES, StoredItem
from ._file.log_readers import look_at_log
from ._file.looking import Look
from ._file.place import resolve
from ._file.records import QueueCounts
from ._file.schema import wal_size
from ._life.alive import Presence
from ._life.looks import ConsumerLook, look_at, seats
from .errors import ResultsExpired, UnknownJob, UnknownTicket
from .job import ALL_STATES, STATES, outcome_of_item
from .job_status import JobsPage, status_of
from .records import queue_stats

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Generator, Iterator
    from pathlib import Path

    from microbatch._pure.report import Outcome

    from ._file.job_records import JobRow, Page
    from ._file.log_readers import LogLook
    from ._file.records import Range, State, Step
    from ._file.session import Session
    from .job_status import JobStatus
    from .records import QueueStats

__all__ = ["STATE_NAMES", "ConsumerLook", "Inspection", "QueueFaults", "StoredItem"]

T = TypeVar("T")

#: What a queue keeps an ended job's row for if it was not told otherwise: `DurableQueue`'s default.
_JOB_TTL = 604_800.0

_ANYTHING: Codec[Any] = Codec(Any, "result_type")


@dataclass(frozen=True, slots=True)
class QueueFaults:
    """What does not agree in a queue.

    Attributes:
        counts: States whose counts are wrong: name, what the queue's row says, how many items there are.
        jobs: The ids of jobs whose counts are wrong.
        heads: How many lanes do not know which of their items is first.
        keys: How many keys stand for no item.
        payloads: How many items that may be handled yet have no payload.
        latest: The latest reading of a clock that stands in the queue, in seconds since the epoch.
    """

    counts: list[tuple[str, int, int]]
    jobs: list[str]
    heads: int
    keys: int
    payloads: int
    latest: float


class Inspection:
    """A queue's file, open for reading only. It is never made, and nothing of it is changed.

    Not for a process that has the file open otherwise.

    Args:
        path: The file.
        note: Told what the reader should know of how it was opened.

    Raises:
        QueueUnavailable: If it cannot be read; narrower where the reason is known.
        ValueError: If the path can be no file's.
    """

    def __init__(
        self, path: str | os.PathLike[str], note: Callable[[str], object] = lambda _: None
    ) -> None:
        self.path: Path = resolve(path)
        self._look = Look(self.path, note)
        self._eyes = Presence(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and take away what this made beside it."""
        self._look.close()

    def backup(self, target: Path, progress: Callable[[int, int], object]) -> None:
        """Copy the file as it is at one moment into an empty one.

        Args:
            target: The empty file.
            progress: Told now and then how many pages are left, and how many there are.

        Raises:
            OSError: If there is no room for the copy.
            QueueUnavailable: If it cannot be read, or the copy cannot be written.
        """
        self._look.backup(target, progress)

    # Queues

    def queues(self) -> dict[str, int]:
        """Return the names of the file's queues, sorted, and their numbers."""
        return {name: number for number, name in self._look.read(lambda _: listing.queue_names())}

    def _read(self, queue: str, steps: Callable[[Session, int], Generator[Step, Any, T]]) -> T:
        number = self.queues()[queue]
        return self._look.read(lambda session: steps(session, number))

    def stats(self, queue: str) -> QueueStats:
        """Return a queue's counts. Its ``lock_waits`` are 0: they are counted by each process for itself."""
        row, oldest, size = self._read(queue, lambda session, number: session.stats(number))
        counts = QueueCounts(row, oldest, time.time(), size, wal_size(self.path))
        return queue_stats(counts, 0)

    def consumers(self, queue: str) -> list[ConsumerLook]:
        """Return who has a seat at a queue, living or dead."""
        return [look_at(self._eyes, *seat) for seat in self._read(queue, seats)]

    # Whether all is well

    @property
    def immutable(self) -> bool:
        """Whether this user may write nothing here, so that the file is read as it stands."""
        return self._look.immutable

    def page_faults(self) -> list[str]:
        """Return what SQLite finds wrong with the file's pages. It reads all of them."""
        return self._look.read(lambda _: checking.page_faults())

    def faults(self, queue: str) -> QueueFaults:
        """Return what does not agree in a queue. It reads all ranges, and no payload."""

        def steps(_: Session, number: int) -> Generator[Step, Any, QueueFaults]:
            return QueueFaults(
                counts=(yield from checking.count_faults(number)),
                jobs=(yield from checking.job_faults(number)),
                heads=(yield from checking.head_faults(number)),
                keys=(yield from checking.lost_keys(number)),
                payloads=(yield from checking.lost_payloads(number)),
                latest=(yield from checking.latest_reading(number)),
            )

        return self._read(queue, steps)

    def log(self) -> LogLook | None:
        """Return what stands in the write-ahead log, and who reads an older state; None without one."""
        return look_at_log(self.path.with_name(f"{self.path.name}-shm"))

    # Items

    def items(
        self, queue: str, states: Collection[State] = (), limit: int | None = None
    ) -> Iterator[StoredItem]:
        """Yield items by id, in bounded memory: those in some states, or all; at most so many."""
        wanted = states or STATE_NAMES.values()
        after, left, more = -1, ID_END if limit is None else limit, True
        while left and more:
            more = False
            for one in self._items_behind(queue, wanted, after, min(left, READ_AT_ONCE)):
                yield one
                after, left, more = one.id, left - 1, True

    def _items_behind(
        self, queue: str, states: Collection[State], after: int, limit: int
    ) -> Iterator[StoredItem]:
        return self._read(queue, lambda _, of: listing.items_listed(of, states, after, limit))

    def item(self, queue: str, number: int) -> StoredItem:
        """Return an item, with its result and its job.

        Raises:
            UnknownTicket: If the queue has none with this id.
        """
        found = self._read(queue, lambda _, of: listing.item_at(of, number))
        if found is None:
            raise UnknownTicket(number, queue)
        return found

    def ids(self, queue: str, states: Collection[State], *, jobs: bool = False) -> Iterator[range]:
        """Yield the ids of items in some states, as runs: of those that are jobs', or of the others."""
        after = -1
        while found := self._ranges_behind(queue, states, after):
            for one in found:
                if jobs == (one.job is not None):
                    yield range(one.first, one.first + one.count)
            after = found[-1].first + found[-1].count - 1

    def _ranges_behind(self, queue: str, states: Collection[State], after: int) -> list[Range]:
        return self._read(queue, lambda _, of: listing.ranges_listed(of, states, after, 1_000_000))

    # Jobs

    def jobs(self, queue: str, limit: int, cursor: int | None = None) -> JobsPage:
        """Return a page of a queue's jobs, the newest first."""
        before = ID_END if cursor is None else cursor
        rows = self._read(
            queue,
            lambda session, of: session.jobs.rows(of, None, VISIBLE.values(), before, limit + 1),
        )
        shown = [status_of(row, queue, _JOB_TTL, time.time()) for row in rows[:limit]]
        return JobsPage(shown, rows[limit - 1].number if len(rows) > limit else None)

    def job(self, queue: str, uid: str) -> JobStatus:
        """Return a job's status.

        Raises:
            UnknownJob: If there is none.
        """
        return status_of(self._job_row(queue, uid), queue, _JOB_TTL, time.time())

    def _job_row(self, queue: str, uid: str) -> JobRow:
        row = self._read(queue, lambda session, of: session.jobs.status(of, uid, None))
        if row is None:
            raise UnknownJob(uid, queue)
        return row

    def outcomes(self, queue: str, uid: str, kind: str | None = None) -> Iterator[Outcome[Any]]:
        """Yield the outcomes of a job's items that have ended, by their index, in bounded memory.

        Raises:
            UnknownJob: If there is no such job.
            ResultsExpired: If they are no longer kept.
        """
        states = ALL_STATES if kind is None else STATES[kind]
        after: int | None = -1
        while after is not None:
            page = self._page(queue, uid, states, after)
            for item in page.items:
                yield outcome_of_item(item, _ANYTHING)
            after = page.after

    def _page(self, queue: str, uid: str, states: Collection[State], after: int) -> Page:
        row = self._job_row(queue, uid)
        if not row.kept:
            raise ResultsExpired(uid, queue)
        return self._look.read(
            lambda session: session.jobs.page(
                row.number, bool(row.named), states, after, READ_AT_ONCE
            )
        )
