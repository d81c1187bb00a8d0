"""A queue's file as those see it who only look: no type is needed, and nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ._file import checking, job_sql, listing
from ._file.codec import Codec, decode_error, decode_roughly
from ._file.job_life import VISIBLE
from ._file.job_records import JobRow
from ._file.log_readers import look_at_log
from ._file.looking import Look
from ._file.place import resolve
from ._file.records import QueueCounts, State
from ._file.schema import wal_size
from ._life.alive import Presence
from ._life.processes import is_stopped
from .errors import ResultsExpired, UnknownJob, UnknownTicket
from .job import ALL_STATES, STATES, outcome_of_item
from .job_status import JobsPage, status_of
from .records import queue_stats

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Generator, Iterator
    from pathlib import Path

    from microbatch._pure.report import Outcome

    from ._file.job_records import Page
    from ._file.listing import ListedItem
    from ._file.log_readers import LogLook
    from ._file.records import ConsumerRow, Range, Step
    from ._file.session import Session
    from .errors import ItemFailed
    from .job_status import JobStatus
    from .records import QueueStats

#: The states that items are listed by, as they are called.
STATE_NAMES: dict[str, State] = {
    state.name.lower(): state for state in State if state != State.STAGED
}

#: Items, or outcomes, that are read at once while one goes through all.
READ_AT_ONCE = 1_000

_ID_END = 2**63 - 1

#: What a queue keeps an ended job's row for if it was not told otherwise: `DurableQueue`'s default.
_JOB_TTL = 604_800.0

_ANYTHING: Codec[Any] = Codec(Any, "result_type")


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as it stands in the file.

    Attributes:
        id: Its id.
        queue: The name of its queue.
        state: One of `STATE_NAMES`.
        key: The idempotency key that it was enqueued with.
        priority: Higher goes first.
        item: The item as built-in values, or its bytes where they are no MessagePack; None where it is no
            longer kept.
        attempts: Handler calls so far.
        enqueued_at: When it was enqueued, in seconds since the epoch; of merged items, the first one.
        due_at: When it may be handled; None once it has ended.
        ended_at: When it ended; None before.
        error: Its last error; None without one.
        of_job: Whether it is a job's.
    """

    id: int
    queue: str
    state: str
    key: str | None
    priority: int
    item: Any
    attempts: int
    enqueued_at: float
    due_at: float | None
    ended_at: float | None
    error: ItemFailed | None
    of_job: bool


@dataclass(frozen=True, slots=True)
class ConsumerLook:
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

    def stats(self, queue: str) -> QueueStats:
        """Return a queue's counts. Its ``lock_waits`` are 0: they are counted by each process for itself."""
        number = self.queues()[queue]
        row, oldest, size = self._look.read(lambda session: session.stats(number))
        counts = QueueCounts(row, oldest, time.time(), size, wal_size(self.path))
        return queue_stats(counts, 0)

    def consumers(self, queue: str) -> list[ConsumerLook]:
        """Return who has a seat at a queue, living or dead."""
        number = self.queues()[queue]

        def steps(
            session: Session,
        ) -> Generator[Step, Any, tuple[list[ConsumerRow], dict[int, listing.InHand]]]:
            rows = yield from session.consumers()
            return rows, (yield from listing.in_hands(number))

        rows, held = self._look.read(steps)
        return [self._seen(row, held.get(row.id)) for row in rows if row.queue == number]

    def _seen(self, row: ConsumerRow, held: listing.InHand | None) -> ConsumerLook:
        alive = self._eyes.sees(row)
        return ConsumerLook(
            id=row.id,
            pid=row.pid,
            alive=alive,
            stopped=alive and is_stopped(row.pid, row.born),
            held=held.items if held else 0,
            held_since=held.due if held else None,
            claim=held.claim if held else None,
        )

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
        number = self.queues()[queue]

        def steps(_: Session) -> Generator[Step, Any, QueueFaults]:
            return QueueFaults(
                counts=(yield from checking.count_faults(number)),
                jobs=(yield from checking.job_faults(number)),
                heads=(yield from checking.head_faults(number)),
                keys=(yield from checking.lost_keys(number)),
                payloads=(yield from checking.lost_payloads(number)),
                latest=(yield from checking.latest_reading(number)),
            )

        return self._look.read(steps)

    def log(self) -> LogLook | None:
        """Return what stands in the write-ahead log, and who reads an older state; None without one."""
        return look_at_log(self.path.with_name(f"{self.path.name}-shm"))

    # Items

    def items(
        self, queue: str, states: Collection[State] = (), limit: int | None = None
    ) -> Iterator[StoredItem]:
        """Yield items by id, in bounded memory: those in some states, or all; at most so many."""
        number, after = self.queues()[queue], -1
        wanted = [int(state) for state in (states or STATE_NAMES.values())]
        left = _ID_END if limit is None else limit
        while left:
            found = self._look.read(self._page(number, wanted, after, min(left, READ_AT_ONCE)))
            if not found:
                return
            for one in found:
                yield _shown_item(one, queue)
            after, left = found[-1].id, left - len(found)

    @staticmethod
    def _page(
        queue: int, states: Collection[int], after: int, limit: int
    ) -> Callable[[Session], Generator[Step, Any, list[ListedItem]]]:
        def steps(_: Session) -> Generator[Step, Any, list[ListedItem]]:
            found = yield from listing.ranges_listed(queue, states, after, limit)
            return (yield from listing.items_of(found))

        return steps

    def item(self, queue: str, number: int) -> StoredItem:
        """Return an item.

        Raises:
            UnknownTicket: If the queue has none with this id.
        """
        if 0 < number <= _ID_END:
            wanted = [int(state) for state in STATE_NAMES.values()]
            steps = self._page(self.queues()[queue], wanted, number - 1, 1)
            found = self._look.read(steps)
            if found and found[0].id == number:
                return _shown_item(found[0], queue)
        raise UnknownTicket(number, queue)

    def ids(self, queue: str, states: Collection[State], *, jobs: bool = False) -> Iterator[range]:
        """Yield the ids of items in some states, as runs; those of jobs only if that is asked for."""
        number, after = self.queues()[queue], -1
        while True:
            found: list[Range] = self._look.read(
                lambda _, after=after: listing.ranges_listed(number, states, after, 1_000_000)  # type: ignore[misc]
            )
            for one in found:
                if jobs or one.job is None:
                    yield range(one.first, one.first + one.count)
            if not found:
                return
            after = found[-1].first + found[-1].count - 1

    # Jobs

    def jobs(self, queue: str, limit: int, cursor: int | None = None) -> JobsPage:
        """Return a page of a queue's jobs, the newest first."""
        number = self.queues()[queue]
        before = _ID_END if cursor is None else cursor
        rows = self._look.read(
            lambda session: session.jobs.rows(number, None, VISIBLE.values(), before, limit + 1)
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
        values = {"uid": uid, "queue": self.queues()[queue], "owner": None}

        def steps(_: Session) -> Generator[Step, Any, list[JobRow]]:
            return [JobRow(*row) for row in (yield job_sql.STATUS, values, False)]

        rows = self._look.read(steps)
        if not rows:
            raise UnknownJob(uid, queue)
        return rows[0]

    def outcomes(self, queue: str, uid: str, kind: str | None = None) -> Iterator[Outcome[Any]]:
        """Yield the outcomes of a job's items that have ended, by their index, in bounded memory.

        Raises:
            UnknownJob: If there is no such job.
            ResultsExpired: If they are no longer kept.
        """
        states = ALL_STATES if kind is None else STATES[kind]
        after: int | None = -1
        while after is not None:
            row = self._job_row(queue, uid)
            if not row.kept:
                raise ResultsExpired(uid, queue)

            def steps(
                session: Session, row: JobRow = row, after: int = after
            ) -> Generator[Step, Any, Page]:
                return session.jobs.page(row.number, bool(row.named), states, after, READ_AT_ONCE)

            page = self._look.read(steps)
            for item in page.items:
                yield outcome_of_item(item, _ANYTHING)
            after = page.after


def _shown_item(found: ListedItem, queue: str) -> StoredItem:
    one = found.range
    return StoredItem(
        id=found.id,
        queue=queue,
        state=State(one.state).name.lower(),
        key=one.key,
        priority=one.priority,
        item=decode_roughly(found.payload) if found.payload else None,
        attempts=one.attempts,
        enqueued_at=one.enqueued,
        due_at=None if one.ended_at is not None else one.due,
        ended_at=one.ended_at,
        error=None if found.error is None else decode_error(found.error, found.id, one.attempts),
        of_job=one.job is not None,
    )
