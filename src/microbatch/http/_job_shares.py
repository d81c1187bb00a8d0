"""How many jobs, and how much of a queue, one principal may have: nobody can fill it alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from microbatch.durable.access import recipes

from ._job_finding import QUEUE_RETRY_AFTER, queue_problems, queues_of
from ._problem import Problem

if TYPE_CHECKING:
    from microbatch.durable import JobStatus
    from microbatch.durable.job_status import LifeName

    from ._job_finding import Queue
    from ._parts import APIParts

_OPEN: Final[tuple[LifeName, ...]] = ("queued", "running", "cancelling")


class ComingIn:
    """What is on its way into queues of this process, and stands in no job that can be seen yet.

    Attributes:
        items: How many items, by queue and owner.
        jobs: How many jobs, by owner.
        ends: How often something of an owner's has come in, or been given up.
        requests: How many requests of an owner ask for any of this.
    """

    def __init__(self) -> None:
        self.items: Counter[tuple[str, str, str]] = Counter()
        self.jobs: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()


class JobShare:
    """One request's part of what its principal may have: a job, and items of one queue.

    What comes in through other processes at the same moment is not seen: there may be as much more.

    Args:
        parts: What all requests share.
        coming: What is on its way.
        queue: Where the items go.
        owner: Whose they are.
    """

    def __init__(self, parts: APIParts, coming: ComingIn, queue: Queue, owner: str) -> None:
        self._parts = parts
        self._coming = coming
        self._owner = owner
        self._place = (*_place_of(queue), owner)
        self._items = self._jobs = 0
        self._waiting = 0
        depth: int = recipes[queue]["max_depth"]
        self._most = max(1, int(depth * parts.settings.owner_share))
        coming.requests[owner] += 1

    async def look(self, items: int = 0) -> None:
        """Look at what there is, and take as many items.

        Raises:
            Problem: 429 if there are too many jobs or items.
        """
        most = self._parts.settings.max_open_jobs
        while True:  # what came in while it looked is neither on its way any more, nor surely seen
            ends = self._coming.ends[self._owner]
            count = await self._count()
            if ends == self._coming.ends[self._owner]:
                break
        if count + self._coming.jobs[self._owner] >= most:
            raise Problem(
                429,
                f"you may have at most {most} jobs that have not ended",
                type="too-many-jobs",
                retry_after=QUEUE_RETRY_AFTER,
                max_open_jobs=most,
            )
        self._jobs += 1
        self._coming.jobs[self._owner] += 1
        self.take(items)

    async def _count(self) -> int:
        """Return how many jobs have not ended; keep how many of their items wait in this queue."""
        count = self._waiting = 0
        limit = min(self._parts.settings.max_open_jobs, 10_000)
        with queue_problems():
            for queue in queues_of(self._parts.collections.values()):
                # By id, and in the order of a life: one that moves on meanwhile is seen twice, never missed.
                found: dict[str, JobStatus] = {}
                for life in _OPEN:
                    page = await queue.jobs(self._owner, life, limit=limit)
                    found |= {status.id: status for status in page.jobs}
                count += len(found)
                if _place_of(queue) == self._place[:2]:
                    self._waiting += sum(status.pending for status in found.values())
        return count

    def take(self, items: int) -> None:
        """Take so many more items.

        Raises:
            Problem: 429 if these are too many.
        """
        if self._waiting + self._coming.items[self._place] + items > self._most:
            raise Problem(
                429,
                f"you may have at most {self._most} waiting items, and these would be more",
                type="too-many-items",
                retry_after=QUEUE_RETRY_AFTER,
                max_waiting_items=self._most,
                close=True,
            )
        self._items += items
        self._coming.items[self._place] += items

    def leave(self) -> None:
        """Give back what was taken: it stands in a job now, or nowhere."""
        coming, owner = self._coming, self._owner
        coming.ends[owner] += 1
        coming.requests[owner] -= 1
        coming.jobs[owner] -= self._jobs
        coming.items[self._place] -= self._items
        if not coming.items[self._place]:
            del coming.items[self._place]
        if not coming.requests[owner]:
            del coming.requests[owner], coming.jobs[owner], coming.ends[owner]


def _place_of(queue: Queue) -> tuple[str, str]:
    recipe = recipes[queue]
    return str(recipe["path"]), recipe["queue"]
