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
     ├─ ItemCancelled              the item was cancelled before a handler saw it
     └─ UnknownTicket              no such item: rolled back, or its time is over (also a LookupError)

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
    "ItemFailed",
    "QueueCorrupt",
    "QueueFull",
    "QueueUnavailable",
    "SchemaTooNew",
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
    """An item with the same key but another payload was stored before; nothing was stored now.

    Attributes:
        key: The key.
        id: The id of the item that has it.
    """

    def __init__(self, key: str, id: int) -> None:  # noqa: A002
        super().__init__(key, id)
        self.key = key
        self.id = id

    def __str__(self) -> str:
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
    """

    def __init__(
        self,
        id: int,  # noqa: A002 - the public name
        kind: str,
        message: str,
        attempts: int,
        traceback: str = "",
    ) -> None:
        super().__init__(id, kind, message, attempts, traceback)
        self.id = id
        self.kind = kind
        self.message = message
        self.attempts = attempts
        self.traceback = traceback

    def __str__(self) -> str:
        times = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return f"item {self.id} failed after {times}: {self.kind}: {self.message}"


class ItemCancelled(MicrobatchError):
    """The item was cancelled with ``cancel()`` before a handler took it.

    Attributes:
        id: The item's id.
    """

    outcome_kind: ClassVar[OutcomeKind] = "cancelled"

    def __init__(self, id: int) -> None:  # noqa: A002
        super().__init__(id)
        self.id = id

    def __str__(self) -> str:
        return f"item {self.id} was cancelled"


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
