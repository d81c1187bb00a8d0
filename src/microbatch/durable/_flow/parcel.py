"""What one handler call gets: items of one claim, as the engine sees them: one thing with many outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from microbatch._core.run import Reason, Run
    from microbatch.durable._file.job_lanes import ToldOfJobs

    from .hands import Hands


class Parcel:
    """Items of one claim that go to the handler together.

    To the engine it is one item while it waits, and a group of callers while it runs (`Engine.unfold`).

    Attributes:
        claim: The claim's number.
        ids: The items' ids.
        items: The items, as they read back from the disk.
        attempts: Which attempt this is for each, from 1.
        keys: Their idempotency keys.
        traces: The contexts that they were sent in.
        told: What the handler is told of their jobs; None where nobody is of one.
        reason: Why it left.
        partition: What all of them share.
        left: How many have no outcome yet.
        started: Whether a handler has it.
        pending: What the engine gave for it.
        run: The handler call, once it has begun.
        kept: The places of items that the backend refused, to go again.
        era: How many holds its partition had when it began.
        probing: Whether it goes first, after its backend took nothing.
    """

    __slots__ = (
        "_hands",
        "attempts",
        "claim",
        "era",
        "ids",
        "items",
        "kept",
        "keys",
        "left",
        "partition",
        "pending",
        "probing",
        "reason",
        "run",
        "started",
        "told",
        "traces",
    )

    def __init__(self, hands: Hands, claim: int, items: Items, reason: Reason) -> None:
        self._hands = hands
        self.claim = claim
        self.ids, self.items, self.attempts, self.keys, self.traces, self.told = items
        self.reason: Reason = reason
        self.partition: Hashable = None
        self.left: int = len(self.ids)
        self.started: bool = False
        self.pending: Any = None
        self.run: Run
        self.kept: list[int] = []
        self.era: int = 0
        self.probing: bool = False

    def rest(self) -> Items:
        """Return the items that are to go again."""
        return self.content().some(sorted(self.kept))

    def content(self) -> Items:
        """Return its items, as they came."""
        return Items(self.ids, self.items, self.attempts, self.keys, self.traces, self.told)

    @property
    def job(self) -> str | None:
        """Return the job that all its items are of; None if they are not all of one."""
        jobs = None if self.told is None else self.told.jobs
        return jobs[0] if jobs and jobs.count(jobs[0]) == len(jobs) else None

    # What the engine tells a group of callers

    def member(self, index: int) -> Part:
        """Return who waits for one of the items."""
        return Part((self, index))

    def take_in(self, first: int, values: list[Any]) -> None:
        """Take the results of items that stand in a row."""
        self.left -= len(values)
        self._hands.succeeded(self, range(first, first + len(values)), values)

    def settle_one(self, index: int, value: Any) -> None:
        """Take the result of one item."""
        self.left -= 1
        self._hands.succeeded(self, (index,), (value,))

    def keep_one(self, index: int) -> None:
        """Keep an item that the backend refused."""
        self.left -= 1
        self.kept.append(index)
        self._hands.check_end(self)

    def fail_one(self, index: int, error: Exception) -> None:
        """Take the failure of one item."""
        self.left -= 1
        self._hands.failed(self, index, error)


class Part(tuple[Parcel, int]):
    """Who waits for one item of a parcel."""

    __slots__ = ()

    def done(self) -> bool:
        return False  # nobody can take back what is on the disk

    def set_result(self, result: Any) -> None:
        parcel, index = self
        parcel.settle_one(index, result)

    def set_exception(self, error: Exception) -> None:
        parcel, index = self
        parcel.fail_one(index, error)


class Items(NamedTuple):
    """Claimed items, as the handler is to get them: lists with an entry for each.

    Attributes:
        ids: Their ids.
        values: The items, as they read back from the disk.
        attempts: Which attempt this is for each, from 1.
        keys: Their idempotency keys.
        traces: The contexts that they were sent in.
        told: What the handler is told of their jobs; None where nobody is of one.
    """

    ids: list[int]
    values: list[Any]
    attempts: list[int]
    keys: list[str | None]
    traces: list[bytes | None]
    told: ToldOfJobs | None = None

    def some(self, places: Iterable[int]) -> Items:
        """Return those at some places."""
        chosen = list(places)
        return Items(
            [self.ids[place] for place in chosen],
            [self.values[place] for place in chosen],
            [self.attempts[place] for place in chosen],
            [self.keys[place] for place in chosen],
            [self.traces[place] for place in chosen],
            None if self.told is None else self.told.some(chosen),
        )


class InPartition(NamedTuple):
    """What `current_batch` asks for a batch's partition."""

    partition: Hashable
