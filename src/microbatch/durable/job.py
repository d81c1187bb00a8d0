"""Job: a handle, by which a group of items is watched, stopped, retried and paged through as one thing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from microbatch._pure import checks
from microbatch._pure.report import Outcome

from ._file.codec import decode_error
from ._file.job_life import JobLife
from ._file.job_records import JobRow, Page
from ._file.records import State
from ._flow.job_making import NewJobSettings, retry_job
from .errors import ItemCancelled, ItemExpired, ItemFailed, JobNotEnded, ResultsExpired, UnknownJob
from .job_status import JobPage, JobStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ._file.codec import Codec
    from ._file.job_records import JobItem, Recipe
    from .access import QueueAccess

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

#: Which states an outcome of a kind has.
STATES = {
    "succeeded": (State.DONE,),
    "failed": (State.DEAD,),
    "skipped": (State.SKIPPED,),
    "cancelled": (State.CANCELLED,),
    "expired": (State.EXPIRED,),
}
ALL_STATES = tuple(state for states in STATES.values() for state in states)

LIMIT_MAX = 10_000

#: Outcomes that are read at once while one goes through all.
OUTCOMES_READ = 1_000


class Job(Generic[R_co]):
    """A handle of a job; made by ``enqueue_job`` and ``job``. It holds nothing, and needs no closing.

    Every call may raise ``UnknownJob``, ``QueueUnavailable`` or, after closing, ``BatcherClosed``.

    Attributes:
        id: The job's id: a UUID of version 7, which nobody can guess.
    """

    __slots__ = ("_access", "_owner", "id")

    def __init__(self, access: QueueAccess, id: str, owner: str | None) -> None:  # noqa: A002
        self._access = access
        self._owner = owner
        self.id: str = id

    def __repr__(self) -> str:
        return f"<Job {self.id!r} of queue {self._access.queue_name!r}>"

    def _unknown(self) -> UnknownJob:
        return UnknownJob(self.id, self._access.queue_name)

    def _check(self, row: JobRow | None) -> JobRow:
        if row is None or (self._owner is not None and row.owner != self._owner):
            raise self._unknown()
        return row

    # Watching

    async def status(self) -> JobStatus:
        """Return how it is now. That reads one row, whatever the size of the job.

        Raises:
            UnknownJob: If there is no such job, or it is another owner's.
            QueueUnavailable: If the file cannot be used.
        """
        service = await self._access.opened("status")
        rows = await service.store.jobs.statuses([self.id])
        return self._access.status_of(self._check(rows.get(self.id)))

    async def wait(self, timeout: float | None = None) -> JobStatus:
        """Wait until it has ended, and return how it is then.

        Args:
            timeout: Seconds to wait, at least 0; None for no limit.

        Raises:
            TimeoutError: If it has not ended in time.
            UnknownJob: If there is no such job, or it is deleted meanwhile.
            BatcherClosed: If the queue is closed meanwhile.
            WouldDeadlock: Inside a running batch of this batcher.

        Cancellation stops the waiting only.
        """
        if timeout is not None:
            checks.number("timeout", timeout, minimum=0)
        service = await self._access.opened("wait", handled=True)
        # With 0 a look is all there is, and it takes what it takes.
        with (
            anyio.move_on_after(timeout or None) as waiting,
            service.watching.on(self.id) as watched,
        ):
            row = self._check(await watched.newer(-1))
            if timeout == 0:
                waiting.cancel()
            while not row.has_ended:
                row = self._check(await watched.newer(row.changes))
            return self._access.status_of(row)
        message = f"job {self.id!r} has not ended within {timeout:g} s"
        raise TimeoutError(message)

    async def progress(self, min_interval: float = 0.1) -> AsyncIterator[JobStatus]:
        """Yield how it is: at once, then whenever something has changed, at last when it has ended.

        Counts never go back.

        Args:
            min_interval: Seconds between two of them at least, at least 0.

        Raises:
            UnknownJob: If there is no such job, or it is deleted meanwhile.
            BatcherClosed: If the queue is closed meanwhile.
            WouldDeadlock: Inside a running batch of this batcher.
        """
        checks.number("min_interval", min_interval, minimum=0)
        service = await self._access.opened("progress", handled=True)
        with service.watching.on(self.id) as watched:
            changes = -1
            while True:
                row = self._check(await watched.newer(changes))
                changes = row.changes
                yield self._access.status_of(row)
                if row.has_ended:
                    return
                await anyio.sleep(min_interval)

    # Outcomes

    async def results(
        self, cursor: int | None = None, limit: int = 100, kind: str | None = None
    ) -> JobPage[R_co]:
        """Return a page of the outcomes of those items that have ended, by their index.

        Any page costs the same. An outcome's ``index`` is the item's position in the source, its ``id``
        the client's, or else the ticket's, its ``error`` an ``ItemFailed``, ``ItemCancelled`` or
        ``ItemExpired``.

        Args:
            cursor: The one of the page before; None for the first page.
            limit: How many at most, 1 to 10,000.
            kind: Only those that ``"succeeded"``, ``"failed"``, or were ``"skipped"``, ``"cancelled"`` or
                ``"expired"``; None for all.

        Raises:
            ResultsExpired: If they are no longer kept.
            UnknownJob: If there is no such job, or it is another owner's.
            QueueUnavailable: If the file cannot be used.
        """
        if cursor is not None:
            checks.whole_number("cursor", cursor, 0)
        check_limit(limit)
        if kind is not None and kind not in STATES:
            allowed = ", ".join(map(repr, STATES))
            message = f"kind must be None or one of {allowed}, got {kind!r}"
            raise ValueError(message)
        service = await self._access.opened("results")
        page = await service.store.jobs.page(
            self.id,
            self._owner,
            ALL_STATES if kind is None else STATES[kind],
            after=-1 if cursor is None else min(cursor, 2**62),
            limit=limit,
            usable=lambda row: not self._are_gone(row),
        )
        if page is None:
            raise self._unknown()
        if isinstance(page, JobRow):
            raise ResultsExpired(self.id, self._access.queue_name)
        assert isinstance(page, Page)  # noqa: S101 - nothing else is left
        return JobPage(
            [outcome_of_item(item, self._access.results) for item in page.items], page.after
        )

    async def outcomes(self, kind: str | None = None) -> AsyncIterator[Outcome[R_co]]:
        """Yield the outcomes of all items that have ended, by their index, in bounded memory.

        Takes and raises what ``results`` does.
        """
        cursor: int | None = None
        while True:
            page = await self.results(cursor, OUTCOMES_READ, kind)
            for outcome in page.outcomes:
                yield outcome
            if page.cursor is None:
                return
            cursor = page.cursor

    def _are_gone(self, row: JobRow | Recipe) -> bool:
        """Tell whether a job's outcomes are past their time, or removed already."""
        ttl = self._access.limits.result_ttl
        return not row.kept or (row.ended_at is not None and row.ended_at + ttl <= time.time())

    # Acting on it

    async def cancel(self) -> None:
        """Let nothing more of it begin, in any process; running batches finish, and count.

        What has not begun ends as cancelled; the job's life is ``"cancelling"`` until all has ended. That of
        an ended job changes nothing.

        Raises:
            UnknownJob: If there is no such job, or it is another owner's.
            QueueUnavailable: If the file cannot be used.
        """
        service = await self._access.opened("cancel")
        if await service.store.jobs.cancel(self.id, self._owner) is None:
            raise self._unknown()

    async def pause(self) -> None:
        """Let nothing more of it begin, in any process, until ``resume()``; it holds across restarts.

        That of a job that has ended or is being cancelled changes nothing.

        Raises:
            UnknownJob: If there is no such job, or it is another owner's.
            QueueUnavailable: If the file cannot be used.
        """
        await self._pause("pause", paused=True)

    async def resume(self) -> None:
        """End a pause.

        Raises:
            UnknownJob: If there is no such job, or it is another owner's.
            QueueUnavailable: If the file cannot be used.
        """
        await self._pause("resume", paused=False)

    async def _pause(self, call: str, *, paused: bool) -> None:
        service = await self._access.opened(call)
        if await service.store.jobs.pause(self.id, self._owner, paused=paused) is None:
            raise self._unknown()

    async def retry_failed(self, retryable_only: bool = True, key: str | None = None) -> Job[R_co]:
        """Make a new job of the items that did not end well.

        Cancelled and expired ones go always, those that never fitted ``item_type`` never. The new job takes
        over owner, metadata, priority, ``batch_size``, ``ordered``, ``max_failures`` and the client's ids; it
        has no delay and no deadline. Without anything to take it is empty, and ended.

        Args:
            retryable_only: Whether of the failed ones only those go whose ``ItemFailed`` is ``retryable``.
            key: As for ``enqueue_job``.

        Returns:
            The new job; its ``retry_of`` is this one's id.

        Raises:
            JobNotEnded: If this one has not ended.
            ResultsExpired: If its outcomes are no longer kept.
            UnknownJob: If there is no such job, or it is another owner's.
            IdempotencyConflict: If the key belongs to another job.
            QueueFull: If there is no room; nothing was stored.
            QueueUnavailable: If the file cannot be used.
        """
        checks.flag("retryable_only", retryable_only)
        access = self._access
        settings = NewJobSettings(key=key)
        settings.check()
        service = await access.opened("retry_failed")
        recipe = await service.store.jobs.recipe(self.id, self._owner)
        if recipe is None:
            raise self._unknown()
        if recipe.life != JobLife.ENDED:
            raise JobNotEnded(self.id, access.queue_name)
        if self._are_gone(recipe):
            raise ResultsExpired(self.id, access.queue_name)
        uid = await retry_job(
            service,
            self.id,
            recipe,
            settings,
            access.queue_name,
            retryable_only=retryable_only,
        )
        return Job(access, uid, self._owner)


def check_limit(limit: Any) -> None:
    """Refuse what can be no page's length.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is out of its range.
    """
    checks.whole_number("limit", limit, 1)
    if limit > LIMIT_MAX:
        message = f"limit must be at most {LIMIT_MAX}, got {limit}"
        raise ValueError(message)


def outcome_of_item(item: JobItem, results: Codec[R]) -> Outcome[R]:
    """Return what became of a job's item, whose result is read back by a codec."""
    value, error = None, None
    if item.state == State.DONE:
        try:
            if item.result is not None:
                value = results.decode(item.result)
        except ValueError as broken:
            error = ItemFailed(item.number, "ValueError", str(broken), item.attempts)
    elif item.state in (State.DEAD, State.SKIPPED):
        error = decode_error(item.error, item.number, item.attempts)
    else:
        kind = ItemCancelled if item.state == State.CANCELLED else ItemExpired
        error = kind(item.number)  # type: ignore[assignment]
        if item.error is not None:
            assert error is not None  # noqa: S101 - it was made just now
            error.__cause__ = decode_error(item.error, item.number, item.attempts)
    return Outcome(
        index=item.position,
        ok=error is None,
        value=value,
        error=error,
        skipped=item.state == State.SKIPPED,
        attempts=item.attempts,
        id=item.number if item.id is None else item.id,
    )
