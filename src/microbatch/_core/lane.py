"""The items of one partition that wait for a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .keyed import Keyed
from .ranking import Ranking

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .entry import Entry
    from .hold import Hold


class Lane:
    """The items of one partition.

    Attributes:
        away: How many of its items are in back-off.
        hash: The partition's.
        home: The lanes that it is one of; None while it is of none.
        hold: How it waits for its backend; None as long as no call was refused.
        again: The seq up to which entries have waited for company before.
    """

    __slots__ = (
        "again",
        "away",
        "deadline",
        "due",
        "entries",
        "flying",
        "hash",
        "hold",
        "home",
        "keys",
        "partition",
        "priority",
        "queued",
        "seq",
        "weight",
    )

    def __init__(self, partition: Hashable, hashed: int) -> None:
        self.partition: Hashable = partition
        self.hash: int = hashed
        self.home: Any = None
        self.entries: Ranking[Entry] = Ranking()
        self.keys: Keyed[Entry] = Keyed()
        self.weight: int = 0
        self.flying: int = 0
        self.away: int = 0
        self.hold: Hold | None = None
        self.again: int = -1
        self.due: int = -1  # the seq up to which entries were asked for by a flush
        self.deadline: float | None = None
        self.priority: float = 0.0
        self.seq: int = 0
        self.queued: bool = False

    @property
    def is_used(self) -> bool:
        """Tell whether it is to be kept: there is something of it, or it must not go yet."""
        return bool(
            self.entries
            or self.flying
            or self.away
            or (self.hold is not None and self.hold.until is not None)
        )

    def put(self, entry: Entry) -> None:
        """Take an entry in."""
        self.entries.push(entry)
        self._put(entry)

    def put_back(self, entry: Entry) -> None:
        """Take an entry in again, in the place that it had."""
        self.entries.push_back(entry)
        self._put(entry)

    def _put(self, entry: Entry) -> None:
        self.weight += entry.weight
        if entry.key is not None:
            self.keys.add(entry.key[0], entry.hash, entry)

    def take(self, entry: Entry) -> None:
        """Take an entry out, wherever it stands."""
        self.entries.discard(entry)
        self.weight -= entry.weight
        if entry.key is not None:
            self.keys.remove(entry.hash, entry)
