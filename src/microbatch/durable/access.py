"""What the faces of a queue share: its name and types, and the way to its parts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakMethod, WeakSet

from .job_status import JobStatus, status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._file.codec import Codec
    from ._file.job_records import JobRow
    from ._file.limits import Limits
    from ._flow.service import Service

#: The settings that each queue was made with, by name: for whoever makes another one of the same kind.
recipes: WeakKeyDictionary[object, dict[str, Any]] = WeakKeyDictionary()

#: What opens each queue and returns its parts: for what stands beside its face.
openers: WeakKeyDictionary[object, WeakMethod[Any]] = WeakKeyDictionary()


#: Batchers that have an ``on_job_end``: who counts on ends of jobs being told asks here.
tellers: WeakSet[object] = WeakSet()


class QueueAccess:
    """What the parts of a queue's face, and handles of jobs, need of it.

    Attributes:
        queue_name: The queue's name in the file.
        items: How items read back.
        results: How results do.
        limits: How much the queue may hold, and for how long.
        opened: Opens the queue if need be, for a call of that name, and returns its parts.
    """

    def __init__(
        self,
        queue_name: str,
        items: Codec[Any],
        results: Codec[Any],
        limits: Limits,
        opened: Callable[..., Awaitable[Service]],
    ) -> None:
        self.queue_name: str = queue_name
        self.items: Codec[Any] = items
        self.results: Codec[Any] = results
        self.limits: Limits = limits
        self._opened = opened

    async def opened(self, call: str, *, handled: bool = False) -> Service:
        """Return the queue's parts, open."""
        return await self._opened(call, handled=handled)

    def status_of(self, row: JobRow) -> JobStatus:
        """Return a job as its row has it."""
        ttl = self.limits.job_ttl
        if row.key is not None:  # it stays while its key lives
            ttl = max(ttl, self.limits.key_ttl)
        return status_of(row, self.queue_name, ttl, time.time())
