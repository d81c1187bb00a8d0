"""All that can be done to jobs within one transaction, as generators of statements: see `session`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import job_counts, job_incoming, job_pages, job_sql, job_steps
from .job_life import PAUSED, Event, JobLife
from .ranges import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable

    from microbatch.durable._file.limits import Limits
    from microbatch.durable.errors import QueueFull

    from .job_records import Begun, Chunk, JobRow, Leftovers, NewJob, Page, Recipe
    from .job_steps import Needs
    from .records import Step
    from .view import View


#: Seconds by which telling of a job's end is never put off.
TELL_LATEST = 302.0


class JobSteps:
    """The part of a `Session` that is about jobs.

    Args:
        view: What the transaction knows.
    """

    def __init__(self, view: View) -> None:
        self._view = view

    # Coming in

    def begin(
        self, queue: int, new: NewJob, consumer: int, limits: Limits
    ) -> Generator[Step, Any, Begun]:
        """Make a job's row, which nobody sees before `show`, unless another job has its key."""
        return job_incoming.begin(self._view, queue, new, consumer, limits.key_ttl)

    def stage(
        self, queue: int, limits: Limits, job: int, chunk: Chunk, consumer: int | None
    ) -> Generator[Step, Any, QueueFull | None]:
        """Store items of it, all of them or none; return why none."""
        return job_incoming.stage_chunk(self._view, queue, limits, job, chunk, consumer)

    def show(
        self, queue: int, job: int, total: int, consumer: int | None
    ) -> Generator[Step, Any, bool]:
        """Let everybody see it."""
        return job_incoming.show(self._view, queue, job, total, consumer)

    def incoming(self, queue: int, uid: str) -> Generator[Step, Any, int | None]:
        """Return the number of a job that comes in; None if there is no such."""
        rows = yield job_sql.FIND_INCOMING, (uid, queue), False
        return int(rows[0][0]) if rows else None

    def abandon(self, job: int) -> Generator[Step, Any, bool]:
        """Give it up; `step` removes it."""
        return job_incoming.abandon(self._view, job)

    def abandon_all(self, consumer: int) -> Generator[Step, Any, list[int]]:
        """Give up what a consumer brings, and was to tell; return the jobs, which `step` removes."""
        return job_incoming.abandon_all(self._view, consumer)

    def ids_from(
        self, job: int, position: int, limit: int
    ) -> Generator[Step, Any, list[tuple[int, list[str | None]]]]:
        """Return rows of the client's ids, each with the place where it begins."""
        return job_pages.ids_from(job, position, limit)

    # Acting on one

    def find(
        self, queue: int, uid: str, owner: str | None
    ) -> Generator[Step, Any, tuple[Any, ...] | None]:
        """Return number, life, paused, kept, end and named of a job that this owner can see."""
        values = {"uid": uid, "queue": queue, "owner": owner}
        rows = yield job_sql.FIND, values, False
        return rows[0] if rows else None

    def cancel(
        self, queue: int, uid: str, owner: str | None
    ) -> Generator[Step, Any, JobLife | None]:
        """Stop a job, and end the first of what has not begun; return its life before, None without one."""
        found = yield from self.find(queue, uid, owner)
        if found is None:
            return None
        if (yield from job_counts.stop(self._view, found[0], CANCELLED)):
            yield from self.step(found[0])
        return JobLife(found[1])

    def pause(
        self, queue: int, uid: str, owner: str | None, *, paused: bool
    ) -> Generator[Step, Any, JobLife | None]:
        """Pause or resume a job that has neither ended nor been stopped; return its life."""
        found = yield from self.find(queue, uid, owner)
        if found is None:
            return None
        job = found[0]
        if (yield job_sql.PAUSE, {"job": job, "paused": paused}, False):
            self._view.changed.add(uid)
            statement = job_sql.SHUT if paused else job_sql.REOPEN
            yield statement, {"why": PAUSED, "queue": queue, "lane": job}, False
        return JobLife(found[1])

    def delete(
        self, queue: int, uid: str, owner: str | None
    ) -> Generator[Step, Any, tuple[int, JobLife] | None]:
        """Let an ended job be seen no more; `step` removes it. Returns its number and life."""
        found = yield from self.find(queue, uid, owner)
        if found is None:
            return None
        yield from job_counts.move(self._view, found[0], Event.DELETED)
        return found[0], JobLife(found[1])

    # Chores

    def step(self, job: int) -> Generator[Step, Any, bool]:
        """Do some of what is left to do for a job; return whether there is more."""
        return job_steps.step(self._view, job)

    def chore(self) -> Generator[Step, Any, tuple[int, int] | None]:
        """Return a job, of whatever queue, for which something is left to do, and its queue."""
        rows = yield job_sql.CHORE, (), False
        return rows[0] if rows else None

    def has_staged(self, queue: int, consumer: int) -> Generator[Step, Any, bool]:
        """Tell whether there is something that a consumer has staged, of a job or not."""
        values = {"queue": queue, "consumer": consumer}
        return bool((yield job_sql.HAS_STAGED, values, False))

    def needs(self, queue: int) -> Generator[Step, Any, Needs]:
        """Return what a queue's jobs need to have done, without changing anything."""
        return job_steps.needs(self._view, queue)

    def expire(self, queue: int) -> Generator[Step, Any, bool]:
        """Stop a job that is past its deadline; return whether there may be another."""
        return job_steps.expire(self._view, queue)

    def keep(self, queue: int, limits: Limits) -> Generator[Step, Any, bool]:
        """Let go of what is kept too long; return whether there may be more."""
        return job_steps.keep(self._view, queue, limits)

    # Telling

    def take_tell(self, queue: int, consumer: int) -> Generator[Step, Any, tuple[str, int] | None]:
        """Take over to tell of the end that is due longest; return the job's id, and how often it was tried."""
        now = self._view.now
        # What is later than any pause was written in a wrong future.
        values = {"queue": queue, "consumer": consumer, "now": now, "future": now + TELL_LATEST}
        rows = yield job_sql.TAKE_TELL, values, False
        return rows[0] if rows else None

    def told(self, uid: str, consumer: int, delay: float | None) -> Generator[Step, Any, None]:
        """Note that it was tried: again after so many seconds, None for never."""
        at = None if delay is None else self._view.now + delay
        self._view.moved_life = True  # there may be another to tell
        yield job_sql.TOLD, {"uid": uid, "consumer": consumer, "at": at}, False

    # Reading

    def status(
        self, queue: int, uid: str, owner: str | None
    ) -> Generator[Step, Any, JobRow | None]:
        """Return a job's row, if this owner can see it."""
        return job_pages.status(queue, uid, owner)

    def rows(
        self, queue: int, owner: str | None, lives: Collection[int], before: int, limit: int
    ) -> Generator[Step, Any, list[JobRow]]:
        """Return the first so many rows of jobs with smaller numbers, the newest first."""
        return job_pages.rows_of(queue, owner, lives, before, limit)

    def count_open(self, queue: int) -> Generator[Step, Any, dict[int, int]]:
        """Return how many jobs of a queue have not ended, by life."""
        rows = yield job_sql.OPEN, (queue,), False
        return dict(rows)

    def changes(self, uids: Iterable[str]) -> Generator[Step, Any, dict[str, int]]:
        """Return how often each of some jobs has changed; those that are gone are not there."""
        rows = yield job_sql.CHANGES, (json.dumps(list(uids)),), False
        return dict(rows)

    def page(
        self, job: int, named: bool, states: Collection[int], after: int, limit: int
    ) -> Generator[Step, Any, Page]:
        """Return items behind a place that ended in one of some states."""
        return job_pages.page(job, named, states, after, limit)

    def recipe(
        self, queue: int, uid: str, owner: str | None
    ) -> Generator[Step, Any, Recipe | None]:
        """Return what a job is made of."""
        return job_pages.recipe(queue, uid, owner)

    def leftovers(
        self, job: int, named: bool, after: int, limit: int, retryable_only: bool
    ) -> Generator[Step, Any, Leftovers]:
        """Return items behind a place that did not end well and may go again."""
        return job_pages.leftovers(self._view, job, named, after, limit, retryable_only)
