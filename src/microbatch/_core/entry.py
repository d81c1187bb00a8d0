"""One item with all that a batcher may need to know of it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from contextvars import Context

    from .flushes import Mark
    from .run import Run


class State(enum.Enum):
    """Where an item is on its way."""

    NEW = "new"  #: in no place yet
    WAITING = "waiting"  #: for room
    BUFFERED = "buffered"  #: for a batch
    SHARING = "sharing"  #: nowhere itself: it shares another one's slot
    FLYING = "flying"  #: in a handler call
    BACKOFF = "backoff"  #: for its next attempt
    ENDED = "ended"  #: it has its outcome, or nobody waits for one


NEW: Final = State.NEW
WAITING: Final = State.WAITING
BUFFERED: Final = State.BUFFERED
SHARING: Final = State.SHARING
FLYING: Final = State.FLYING
BACKOFF: Final = State.BACKOFF
ENDED: Final = State.ENDED

#: What may follow on what. Nobody looks here on an item's way, where it would cost a hash of Python's each
#: time: tests drive whole programs with entries that do.
FOLLOWING: Final[Mapping[State, frozenset[State]]] = {
    NEW: frozenset({WAITING, BUFFERED, SHARING, FLYING}),  # or it stood in flat lists
    WAITING: frozenset({BUFFERED, SHARING, ENDED}),
    BUFFERED: frozenset({FLYING, ENDED}),
    SHARING: frozenset(),
    FLYING: frozenset({BACKOFF, BUFFERED, ENDED}),
    BACKOFF: frozenset({BUFFERED, ENDED}),
    ENDED: frozenset(),
}


class Entry:
    """One item with all that a batcher may need to know of it."""

    __slots__ = (
        "attempts",
        "carrier",
        "context",
        "hash",
        "item",
        "key",
        "lane",
        "marks",
        "partition",
        "priority",
        "queued",
        "run",
        "seq",
        "since",
        "state",
        "waiter",
        "weight",
    )

    def __init__(
        self,
        item: Any,
        waiter: Any,
        *,
        priority: float = 0,
        weight: int = 0,
        partition: Hashable = None,
        key: tuple[Hashable] | None = None,
        context: Context | None = None,
    ) -> None:
        self.item: Any = item
        self.waiter: Any = waiter
        self.priority: float = priority
        self.weight: int = weight  # in units, see Scale
        self.partition: Hashable = partition
        self.key: tuple[Hashable] | None = key  # of one: a key of None is a key too
        self.hash: int = 0  # the key's, from when it is placed
        self.context: Context | None = context
        self.attempts: int = 1
        self.seq: int = 0
        self.since: float = 0.0
        self.queued: bool = False
        self.state: State = NEW
        self.carrier: Entry | None = None  # whose slot it shares, while it is SHARING
        self.lane: Any = None  # a Lane, from when it is buffered on
        self.run: Run | None = None
        self.marks: list[Mark] | None = None

    def count(self, marks: list[Mark]) -> None:
        """Tell these flushes, too, when this one is resolved."""
        self.marks = [*(self.marks or ()), *marks]
        for mark in marks:
            mark.left += 1

    def release(self) -> None:
        """Let go of what would keep others alive; tell who flushed that this one is resolved.

        The item too: a Pending that somebody keeps leads here.
        """
        self.item = self.key = None
        self.waiter = self.run = self.lane = self.context = None
        self.state = ENDED
        marks, self.marks = self.marks, None
        for mark in marks or ():
            mark.release()
