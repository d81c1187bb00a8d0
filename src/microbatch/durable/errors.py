"""What only the durable mode raises.

The tree::

    MicrobatchError
     ├─ Full
     │   └─ QueueFull              the queue, or its file, holds as much as it may
     ├─ QueueUnavailable           the file cannot be used now: locked, full disk, read-only, gone ...
     │   ├─ QueueCorrupt           the file is damaged, or no SQLite database at all
     │   └─ SchemaTooNew           the file was written by a newer microbatch
     ├─ IdempotencyConflict        the same key came with another payload
     ├─ ItemFailed                 the item ended as a dead letter
     ├─ ItemCancelled              the item, or its job, was cancelled before a handler saw it
     ├─ ItemExpired                its job's deadline came before a handler saw it
     ├─ UnknownTicket              no such item: rolled back, or its time is over (also a LookupError)
     ├─ UnknownJob                 no such job, or somebody else's (also a LookupError)
     ├─ JobRejected                items of a new job do not fit; nothing was stored
     ├─ JobNotEnded                only an ended job can be deleted or retried
     └─ ResultsExpired             the job's outcomes are no longer kept

Each class keeps its fields in ``args``, so that every one of them can be copied and pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from microbatch._pure.exceptions import Full, MicrobatchError

if TYPE_CHECKING:
    from microbatch._pure.report import OutcomeKind

__all__ = [
    "IdempotencyConflict",
    "ItemCancelled",
    "ItemExpired",
    "ItemFailed",
    "JobNotEnded",
    "JobRejected",
    "QueueCorrupt",
    "QueueFull",
    "QueueUnavailable",
    "ResultsExpired",
    "SchemaTooNew",
    "UnknownJob",
    "UnknownTicket",
]


class QueueFull(Full):
    """The queue has no room for the item; nothing was stored.

    Attributes:
        queue: The queue's name.
        limit: The setting that was reached, ``"max_depth"`` or ``"max_file_bytes"``.
        allowed: That setting's value.
    """

    def __init__(self, queue: str, limit: str, allowed: float) -> None:
        super().__init__(queue, limit, allowed)
        self.queue = queue
        self.limit = limit
        self.allowed = allowed

    def __str__(self) -> str:
        return f"queue {self.queue!r} is full: {self.limit}={self.allowed} is reached"


class QueueUnavailable(MicrobatchError):
    """The queue's file cannot be used at present.

    Raised by a write, it means that the write's outcome is unknown: enqueue again with the same ``key``.

    Attributes:
        path: The file.
        reason: What is wrong with it, for people.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"the queue file {self.path!r} cannot be used: {self.reason}"


class QueueCorrupt(QueueUnavailable):
    """The file is damaged, or is not an SQLite database: restore a backup."""


class SchemaTooNew(QueueUnavailable):
    """The file was written by a newer version of microbatch; this one leaves it alone.

    Attributes:
        found: The schema's version in the file.
        known: The newest version that this microbatch knows.
    """

    def __init__(self, path: str, found: int, known: int) -> None:
        reason = f"its schema is version {found}, this microbatch knows up to {known}: upgrade it"
        super().__init__(path, reason)
        self.args: tuple[Any, ...] = (path, found, known)
        self.found = found
        self.known = known


class IdempotencyConflict(MicrobatchError):
    """The same key but another payload was stored before; nothing was stored now.

    Attributes:
        key: The key.
        id: The id of the item that has it; a str, the job's, where it is a job's key.
    """

    def __init__(self, key: str, id: int | str) -> None:  # noqa: A002
        super().__init__(key, id)
        self.key = key
        self.id = id

    def __str__(self) -> str:
        if isinstance(self.id, str):
            return f"key {self.key!r} belongs to job {self.id}, whose fingerprint is another one"
        return f"key {self.key!r} belongs to item {self.id}, whose payload is another one"


class ItemFailed(MicrobatchError):
    """The item ended as a dead letter, or was skipped by its handler.

    The handler's own exception is its ``__cause__`` where this process has it. Everything here was read
    from the disk, so it is the same before and after a restart.

    Attributes:
        id: The item's id.
        kind: The name of the handler's exception's class.
        message: Its text, of bounded length.
        attempts: How many handler calls the item was part of.
        traceback: Where it was raised, of bounded length; empty if nothing was raised.
        code: What its kind is called: an ``ItemError``'s own code; ``"process_died"``; the class of an
            error of microbatch's own in snake case, as ``"handler_timeout"``; ``"invalid_item"`` for an
            item of a job that does not fit ``item_type``; ``"internal_error"`` for all else.
        retryable: Whether the item may do better another time: an ``ItemError``'s own word, else
            whether ``retry.on`` names the error; True if its process died or its handler timed out.
    """

    def __init__(  # noqa: PLR0917 - in the order of ``args``
        self,
        id: int,  # noqa: A002 - the public name
        kind: str,
        message: str,
        attempts: int,
        traceback: str = "",
        code: str = "internal_error",
        retryable: bool = False,
    ) -> None:
        super().__init__(id, kind, message, attempts, traceback, code, retryable)
        self.id = id
        self.kind = kind
        self.message = message
        self.attempts = attempts
        self.traceback = traceback
        self.code = code
        self.retryable = retryable

    def __str__(self) -> str:
        times = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return f"item {self.id} failed after {times}: {self.kind}: {self.message}"


class ItemCancelled(MicrobatchError):
    """The item was cancelled with ``cancel()``, or with its job, while no handler had it.

    Its ``__cause__`` is the ``ItemFailed`` of its last attempt if it waited for another one.

    Attributes:
        id: The item's id.
    """

    outcome_kind: ClassVar[OutcomeKind] = "cancelled"

    def __init__(self, id: int) -> None:  # noqa: A002
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"item {self.id} was cancelled"


class ItemExpired(MicrobatchError):
    """Its job's deadline came while no handler had the item.

    Its ``__cause__`` is the ``ItemFailed`` of its last attempt if it waited for another one.

    Attributes:
        id: The item's id.
    """

    outcome_kind: ClassVar[OutcomeKind] = "expired"

    def __init__(self, id: int) -> None:  # noqa: A002
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"item {self.id} had not begun when its job's deadline came"


class UnknownTicket(MicrobatchError, LookupError):
    """The queue has no such item.

    Its transaction was rolled back, or the item was purged or is past ``result_ttl`` or ``keep_done``.

    Attributes:
        id: The ticket's id.
        queue: The queue's name.
    """

    def __init__(self, id: int, queue: str) -> None:  # noqa: A002
        super().__init__(id, queue)
        self.id = id
        self.queue = queue

    def __str__(self) -> str:
        return f"queue {self.queue!r} has no item {self.id}: rolled back, purged, or past its time"


class UnknownJob(MicrobatchError, LookupError):
    """The queue has no such job, or it is another owner's.

    It was never there, was deleted, or is past ``job_ttl``.

    Attributes:
        id: The job's id.
        queue: The queue's name.
    """

    def __init__(self, id: str, queue: str) -> None:  # noqa: A002
        super().__init__(id, queue)
        self.id = id
        self.queue = queue

    def __str__(self) -> str:
        return (
            f"queue {self.queue!r} has no job {self.id!r}: deleted, past its time, or never there"
        )


class JobRejected(MicrobatchError):
    """Items of a new job do not fit ``item_type``; nothing was stored.

    Attributes:
        queue: The queue's name.
        errors: The first 1,000 of them: for each its index, the client's id or None, and what is wrong.
        invalid: How many there are in all.
    """

    def __init__(self, queue: str, errors: list[tuple[int, str | None, str]], invalid: int) -> None:
        super().__init__(queue, errors, invalid)
        self.queue = queue
        self.errors = errors
        self.invalid = invalid

    def __str__(self) -> str:
        many = "1 item does" if self.invalid == 1 else f"{self.invalid} items do"
        index, _, message = self.errors[0]
        return f"queue {self.queue!r}: {many} not fit item_type; the first, item {index}: {message}"


class JobNotEnded(MicrobatchError):
    """Only an ended job can be deleted, or its failed items be retried.

    Attributes:
        id: The job's id.
        queue: The queue's name.
    """

    def __init__(self, id: str, queue: str) -> None:  # noqa: A002
        super().__init__(id, queue)
        self.id = id
        self.queue = queue

    def __str__(self) -> str:
        return f"job {self.id!r} of queue {self.queue!r} has not ended: wait for it, or cancel it"


class ResultsExpired(MicrobatchError):
    """The job's row is there, its outcomes are past ``result_ttl``.

    Attributes:
        id: The job's id.
        queue: The queue's name.
    """

    def __init__(self, id: str, queue: str) -> None:  # noqa: A002
        super().__init__(id, queue)
        self.id = id
        self.queue = queue

    def __str__(self) -> str:
        return f"the outcomes of job {self.id!r} of queue {self.queue!r} are past result_ttl"
