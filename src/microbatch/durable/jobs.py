"""Jobs of a queue: made, found, listed, deleted. The part of a durable queue's face that is about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from microbatch._pure import checks

from ._file.job_life import VISIBLE, JobLife
from ._flow.job_making import NewJobSettings, check_owner, enqueue_job_of
from .errors import JobNotEnded, UnknownJob
from .job import Job, check_limit
from .job_status import JobsPage

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from .access import QueueAccess
    from .job_status import LifeName

T = TypeVar("T")
R = TypeVar("R")

_NUMBER_MAX = 2**63 - 1


class WithJobs(Generic[T, R]):
    """A queue that has jobs: groups of its items that are watched, stopped, retried and read as one thing."""

    _access: QueueAccess

    async def enqueue_job(
        self,
        items: Iterable[T] | AsyncIterable[T],
        *,
        key: str | None = None,
        fingerprint: bytes | str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        priority: int = 0,
        delay: float = 0,
        item_id: Callable[[T], str] | None = None,
        invalid: Literal["reject", "fail"] = "reject",
        batch_size: int | None = None,
        ordered: bool = False,
        max_failures: int | None = None,
        deadline: float | None = None,
    ) -> Job[R]:
        """Store many items as a job, and return its handle once all are on the disk.

        Whole or not at all: nobody sees any of it, and no handler is called for it, before. The source is
        read once, in bounded memory, and written in many short transactions.

        Args:
            items: Read to its end; what it raises comes out of here, and leaves nothing.
            key: Makes it safe to call again: the same key of the same owner gives the same job, and
                ``items`` is not even read. It lives until the job has ended and ``key_ttl`` after, at least.
            fingerprint: What stands for the content. The same key with another one is refused, where both
                calls gave one.
            owner: Whose it is, 1 to 1,000 printable characters.
            metadata: What is shown with it: JSON values by name, at most 16 KiB encoded.
            priority: As for ``enqueue``, for all its items.
            delay: Seconds before they may be handled, from when it can be seen.
            item_id: Gives an item's id, 1 to 128 printable characters, unique within the job: what
                ``Outcome.id`` and ``current_batch().item_ids`` tell.
            invalid: What becomes of an item that does not fit ``item_type``: ``"reject"`` refuses the whole
                job, ``"fail"`` lets that item fail with code ``invalid_item``. An ``ItemError`` in an item's
                place is one that does not fit, and says why.
            batch_size: Its items come in handler calls of their own, of at most so many and at most
                ``max_batch_size``; None: they share calls with everybody's.
            ordered: Whether it goes one batch at a time, in the items' order, over all processes; in calls
                of its own.
            max_failures: Once more than so many have failed, what has not begun is cancelled.
            deadline: Seconds from when it can be seen: what has not begun by then expires.

        Raises:
            JobRejected: If items do not fit; nothing was stored.
            QueueFull: If there is no room; nothing was stored.
            IdempotencyConflict: If the key belongs to a job with another fingerprint.
            QueueUnavailable: If the file cannot be used; whether it was stored is unknown.
            BatcherClosed: If the queue is closed; nothing was stored.
            TypeError: If an argument or an item's id has the wrong type.
            ValueError: If one is out of its range, or an id comes twice.
            WouldDeadlock: Inside ``on_settle`` of a queue in this file.

        Cancellation leaves nothing, unless all was on the disk already: use ``key``.
        """
        settings = NewJobSettings(
            key=key,
            fingerprint=fingerprint,
            owner=owner,
            metadata=metadata,
            priority=priority,
            delay=delay,
            item_id=item_id,
            invalid=invalid,
            batch_size=batch_size,
            ordered=ordered,
            max_failures=max_failures,
            deadline=deadline,
        )
        settings.check()
        checks.source("items", items)
        access = self._access
        service = await access.opened("enqueue_job")
        uid = await enqueue_job_of(service, items, settings, access.items, access.queue_name)
        return Job(access, uid, owner)

    def job(self, id: str, owner: str | None = None) -> Job[R]:  # noqa: A002 - the public name
        """Return a job's handle. Nothing is read: whether there is one its calls tell.

        Args:
            id: The job's id.
            owner: Whose it must be; another owner's is ``UnknownJob`` then, like one that never was. None
                takes anybody's.

        Raises:
            TypeError: If an argument is no str.
            ValueError: If the owner can be no owner.
        """
        given: Any = id
        if not isinstance(given, str):
            message = f"id must be a str, got {given!r}"
            raise TypeError(message)
        check_owner(owner)
        return Job(self._access, id, owner)

    async def jobs(
        self,
        owner: str | None = None,
        life: LifeName | None = None,
        cursor: int | None = None,
        limit: int = 100,
    ) -> JobsPage:
        """Return a page of the queue's jobs, the newest first.

        Args:
            owner: Only this one's; None for all.
            life: Only those that are ``"queued"``, ``"running"``, ``"cancelling"`` or ``"ended"``.
            cursor: The one of the page before; None for the first page.
            limit: How many at most, 1 to 10,000.

        Raises:
            QueueUnavailable: If the file cannot be used.
        """
        check_owner(owner)
        if life is not None and life not in VISIBLE:
            allowed = ", ".join(map(repr, VISIBLE))
            message = f"life must be None or one of {allowed}, got {life!r}"
            raise ValueError(message)
        if cursor is not None:
            checks.whole_number("cursor", cursor, 0)
        check_limit(limit)
        access = self._access
        service = await access.opened("jobs")
        lives = list(VISIBLE.values()) if life is None else [VISIBLE[life]]
        before = _NUMBER_MAX if cursor is None else min(cursor, _NUMBER_MAX)
        rows = await service.store.jobs.rows(owner, lives, before, limit + 1)
        shown = [access.status_of(row) for row in rows[:limit]]
        return JobsPage(shown, rows[limit - 1].number if len(rows) > limit else None)

    async def delete_job(self, id: str, owner: str | None = None) -> None:  # noqa: A002
        """Remove an ended job, with its outcomes; its key is free then.

        Raises:
            JobNotEnded: If it has not ended.
            UnknownJob: If there is no such job, or it is another owner's.
            QueueUnavailable: If the file cannot be used.
        """
        job = self.job(id, owner)
        access = self._access
        service = await access.opened("delete_job")
        life = await service.store.jobs.delete(job.id, owner)
        if life is None:
            raise UnknownJob(id, access.queue_name)
        if life != JobLife.ENDED:
            raise JobNotEnded(id, access.queue_name)
