"""All that can be done to queues within one transaction, as generators of statements.

They yield statements and are sent their rows, so that the same code runs on the writer's plain connection
(`run`) and on an aiosqlite connection, which is awaited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from microbatch.durable.errors import QueueUnavailable

from . import (
    answer_sql,
    claiming,
    endings,
    job_counts,
    keeping,
    queries,
    sql,
    staging,
    storing,
)
from .answer_session import AnswerSteps
from .job_session import JobSteps
from .keeping import ANY
from .view import Ids, View

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Generator, Iterable, Sequence
    from pathlib import Path

    from microbatch.durable._file.limits import Limits
    from microbatch.durable.errors import QueueFull

    from .job_records import JobNews
    from .records import (
        Appended,
        Claim,
        Clash,
        ConsumerRow,
        DeadRow,
        Demand,
        Found,
        NewItem,
        Queue,
        Range,
        Settlement,
        Step,
        Stored,
    )

T = TypeVar("T")

__all__ = ["ANY", "Ids", "Session", "run"]


def run(raw: sqlite3.Connection, steps: Generator[Step, Any, T]) -> T:
    """Run statements on a plain connection, in its transaction; return what they come to."""
    execute, many = raw.execute, raw.executemany
    answer: list[Any] | None = None
    try:
        while True:
            statement, parameters, is_many = steps.send(answer)
            if is_many:
                many(statement, parameters)
                answer = None
            else:
                answer = execute(statement, parameters).fetchall()
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


class Session:
    """One transaction. It remembers what it read and counted, so it ends with the transaction.

    After a savepoint was rolled back nothing of it may be used any more: take another one.

    Args:
        path: The file, for messages.
        now: The time, in seconds since the epoch.
        ticket: The number for the tickets of new items.
        ids: Ids in reserve; None takes them from the file, call by call.
        wal_size: Tells the bytes of the write-ahead log.

    Attributes:
        answers: What can be done to answers.
    """

    def __init__(
        self,
        *,
        path: Path,
        now: float,
        ticket: int | None,
        wal_size: Callable[[], int],
        ids: Ids | None = None,
    ) -> None:
        self._view = View(path, now, ticket, ids, wal_size)
        self._jobs: JobSteps | None = None
        self.answers: AnswerSteps = AnswerSteps(self._view)

    @property
    def now(self) -> float:
        """The time of the transaction."""
        return self._view.now

    @property
    def ticket(self) -> int | None:
        """The number for the tickets of new items."""
        return self._view.ticket

    def finish(self) -> Generator[Step, Any, None]:
        """Write down counts and heads of lanes: the last statements of a transaction that writes."""
        view = self._view
        if view.moves or view.rearranged:
            yield from job_counts.flush(view)
        yield from view.finish()

    @property
    def jobs(self) -> JobSteps:
        """What can be done to jobs."""
        if self._jobs is None:
            self._jobs = JobSteps(self._view)
        return self._jobs

    def count_jobs(self) -> Generator[Step, Any, set[int]]:
        """Write down now what was done to items of jobs; return the queues in which a lane was opened."""
        view = self._view
        if view.moves or view.rearranged:
            yield from job_counts.flush(view)
        opened, view.opened = view.opened, set()
        return opened

    @property
    def changed_jobs(self) -> set[str]:
        """The ids of jobs whose rows were changed."""
        return self._view.changed

    @property
    def job_news(self) -> dict[int, JobNews]:
        """What was done to jobs, by queue."""
        return self._view.news

    @property
    def moved_lives(self) -> bool:
        """Whether a job's life changed, or something is left to do for one."""
        return self._view.moved_life

    @property
    def ended_unheard(self) -> set[int]:
        """Queues in which something ended of which nobody here has heard."""
        return self._view.ended_unheard

    # Queues and consumers

    def queue(self, name: str) -> Generator[Step, Any, Queue]:
        """Return a named queue, which is made if there is none yet."""
        found = yield sql.QUEUE_ID, (name,), False
        if not found:
            found = yield sql.MAKE_QUEUE, (name,), False
            yield sql.MAKE_LANE, found[0], False
        return (yield from self.look(found[0][0]))

    def number_of(self, name: str) -> Generator[Step, Any, int]:
        """Return the number of a named queue.

        Raises:
            QueueUnavailable: If the file has none.
        """
        found = yield sql.QUEUE_ID, (name,), False
        if not found:
            raise QueueUnavailable(str(self._view.path), f"it has no queue {name!r} any more")
        return int(found[0][0])

    def look(self, queue: int) -> Generator[Step, Any, Queue]:
        """Return a queue as it is now, in this transaction.

        Raises:
            QueueUnavailable: If the file has no such queue.
        """
        return (yield from self._view.row(queue)).queue()

    def is_claimable(self, queue: int) -> Generator[Step, Any, bool]:
        """Tell whether something stands ready in a lane that is open."""
        return bool((yield sql.IS_CLAIMABLE, {"queue": queue, "now": self.now}, False))

    def register(self, queue: int, pid: int, born: str | None) -> Generator[Step, Any, int]:
        """Make a consumer; return its number."""
        ((number,),) = yield sql.REGISTER, (queue, pid, born), False
        return int(number)

    def place(self, consumer: int, lock_file: str) -> Generator[Step, Any, None]:
        """Write down in which file a consumer's lock is."""
        yield sql.PLACE, (lock_file, consumer), False

    def knows(self, consumer: int) -> Generator[Step, Any, bool]:
        """Tell whether a consumer stands in the file."""
        return self._view.knows(consumer)

    def forget(self, consumer: int) -> Generator[Step, Any, None]:
        """Remove a consumer that holds nothing but keys, which are free then."""
        yield sql.FORGET, (consumer,), False
        yield answer_sql.DROP_BEGUN, (consumer,), False

    def consumers(self) -> Generator[Step, Any, list[ConsumerRow]]:
        """Return all consumers in the file, living or dead."""
        return queries.consumers()

    # New items

    def append(
        self,
        queue: int,
        limits: Limits,
        payloads: Sequence[bytes],
        traces: Sequence[bytes | None] | None,
        demand: Demand | None,
    ) -> Generator[Step, Any, Appended]:
        """Store items that have nothing but a payload, as many as there is room for.

        Args:
            queue: The queue's number.
            limits: How much it may hold.
            payloads: The items.
            traces: The contexts that they were sent in.
            demand: Who may have the first ones at once. It gets them only if nothing could be claimed
                before them, so that nobody is overtaken.
        """
        return storing.append(self._view, queue, limits, payloads, traces, demand)

    def enqueue(
        self,
        queue: int,
        limits: Limits,
        groups: Sequence[Sequence[NewItem]],
        demand: Demand | None,
    ) -> Generator[Step, Any, tuple[list[list[Stored] | QueueFull | Clash], list[Claim]]]:
        """Store groups of items, each wholly or not at all.

        Returns:
            For each group its items, or why it was refused; and what the demand got of them.
        """
        return storing.enqueue(self._view, queue, limits, groups, demand)

    def stage(
        self,
        queue: int,
        limits: Limits,
        items: Sequence[NewItem],
        consumer: int,
        claim: int,
    ) -> Generator[Step, Any, QueueFull | None]:
        """Store items that nobody sees before `show_staged`, all or none of them; return why none."""
        return staging.stage(self._view, queue, limits, items, consumer, claim)

    def show_staged(
        self, queue: int, consumer: int, claim: int
    ) -> Generator[Step, Any, list[tuple[int, int]]]:
        """Make what was staged under a number visible; return first ids and counts, in order."""
        return staging.show_staged(self._view, queue, consumer, claim)

    def drop_staged(
        self, queue: int, consumer: int, step: int = 500, *, claim: int | None = None
    ) -> Generator[Step, Any, bool]:
        """Remove some of what a consumer staged, of one claim or all; return whether there is more."""
        return staging.drop_staged(self._view, queue, consumer, claim, step)

    # Claimed items

    def claim(self, queue: int, demand: Demand) -> Generator[Step, Any, tuple[list[Claim], Queue]]:
        """Give a consumer the next items, in strict order: by priority, due time, arrival."""
        return claiming.claim(self._view, queue, demand)

    def settle(
        self, queue: int, limits: Limits, consumer: int, settlements: Sequence[Settlement]
    ) -> Generator[Step, Any, set[int]]:
        """Record what became of claimed items.

        Returns:
            The ids of those that the consumer still had under the claims that are named. The others are left
            as they are: somebody else has them now.
        """
        return endings.settle(self._view, queue, limits, consumer, settlements)

    def take_back(
        self,
        queue: int,
        consumer: int,
        attempts_max: int,
        claims: Collection[int] | None = None,
    ) -> Generator[Step, Any, tuple[list[int], bool]]:
        """Take back some of what a dead consumer had, claim by claim, of some claims or all.

        Returns:
            The ids of the new dead letters, and whether there is more to take back.
        """
        return endings.take_back(self._view, queue, consumer, attempts_max, claims)

    def give_back(
        self, queue: int, consumer: int, claims: Collection[int] | None = None
    ) -> Generator[Step, Any, bool]:
        """Make claimed items ready as they were, uncounted; return whether there is more to give back."""
        return endings.give_back(self._view, queue, consumer, claims)

    def held(self, queue: int, consumer: int) -> Generator[Step, Any, list[Range]]:
        """Return what the file says that a consumer has claimed."""
        return endings.held(queue, consumer)

    # By hand and by age

    def cancel(
        self, queue: int, limits: Limits, number: int, ticket: Any = ANY
    ) -> Generator[Step, Any, bool | None]:
        """Cancel an item that nobody has.

        Args:
            queue: The queue's number.
            limits: How long it is kept.
            number: The item's id.
            ticket: The number of its ticket; `ANY` for a bare id.

        Returns:
            Whether it was cancelled; None if there is no such item.
        """
        return keeping.cancel(self._view, queue, limits, number, ticket)

    def requeue(self, queue: int, numbers: Iterable[int]) -> Generator[Step, Any, int]:
        """Make dead letters ready again, with all their attempts; return how many were dead letters."""
        return keeping.requeue(self._view, queue, numbers)

    def purge(self, queue: int, numbers: Iterable[int]) -> Generator[Step, Any, int]:
        """Remove items that have ended; return how many were removed."""
        return keeping.purge(self._view, queue, numbers)

    def pause(self, queue: int, paused: bool) -> Generator[Step, Any, None]:
        """Stop or resume claims, for every process."""
        return keeping.pause(self._view, queue, paused)

    def prune(self, queue: int, limits: Limits) -> Generator[Step, Any, bool]:
        """Remove some of what is kept too long or beyond its count; return whether there may be more."""
        return keeping.prune(self._view, queue, limits)

    def tidy(self, queue: int) -> Generator[Step, Any, bool]:
        """Merge what ended since the last time, and shrink blobs; return whether there is more.

        How far it has come is remembered in the `Ids` of the file's opening.
        """
        return keeping.tidy(self._view, queue)

    # Reading

    def find(self, queue: int, numbers: Iterable[int]) -> Generator[Step, Any, list[Found]]:
        """Return the items that there are, in any state but staged, by id."""
        return queries.find_items(queue, numbers)

    def dead_letters(
        self, queue: int, after: int, limit: int
    ) -> Generator[Step, Any, list[DeadRow]]:
        """Return the first so many dead letters with greater ids, by id."""
        return queries.dead_letters(self._view, queue, after, limit)

    def stats(self, queue: int) -> Generator[Step, Any, tuple[Queue, float | None, int]]:
        """Return the queue, since when the oldest ready or claimed item is due, and the file's bytes in use."""
        return queries.stats(self._view, queue)

    def ended_since(self, queue: int, number: int) -> Generator[Step, Any, list[tuple[int, int]]]:
        """Return first ids and counts of what ended after the transaction of this number, perhaps of more."""
        return queries.ended_since(queue, number)

    def next_due(self, queue: int) -> Generator[Step, Any, float | None]:
        """Return when the next delayed item is due; None without one."""
        return queries.next_due(queue)
