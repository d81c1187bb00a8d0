"""What a consumer has in hand: how much more it may claim, and what its handler made of each item."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from microbatch._core.engine import Engine
from microbatch._pure.adaptive import AdaptiveSize
from microbatch._pure.exceptions import BatcherClosed

from .codec import encode_reason
from .outcomes import Entry, Outcome, death, failure, given_back, success
from .records import Claim, Claimed, Take

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from microbatch._core.rules import Rules
    from microbatch._core.run import Run
    from microbatch._pure.retry import Retry
    from microbatch._telemetry.observer import Observer

    from .clock import Clock
    from .codec import Codec
    from .records import NewItem


class Hands:
    """The items that a consumer has claimed and not yet settled.

    Args:
        rules: What the engine goes by that calls the user's handler.
        observer: Tells of its batches.
        max_batch_size: As for ``Batcher``.
        max_concurrency: As for ``Batcher``.
        retry: What becomes of items that fail.
        items: How items read back.
        results: How results are stored.
        clock: The time that stands in the file.
        ring: Wakes the watch, which knows when something is due.

    Attributes:
        engine: Calls the handler.
        submit: Brings an outcome into the next settling transaction; None asks for a claim in it. Whoever
            settles sets this.
        consumer: Who claims.
        taking: Whether it may claim at all: while the queue is open.
        held: The items, by id.
        unsettled: How many of them have an outcome that is not on the disk yet.
        reserved: Room in the slots that a transaction under way may use up.
        paused: Whether the queue is.
        more: Whether there may be something to claim.
        claiming: Whether a claim is under way.
        next_due: When the next scheduled item is due; None if none is known of.
    """

    def __init__(
        self,
        rules: Rules,
        observer: Observer | None,
        *,
        max_batch_size: int | AdaptiveSize,
        max_concurrency: int,
        retry: Retry | None,
        items: Codec[Any],
        results: Codec[Any],
        clock: Clock,
        ring: Callable[[], None],
    ) -> None:
        self.engine: Engine = Engine(rules, prepare=self._batch_started, observer=observer)
        self._max_batch_size = max_batch_size
        self._max_concurrency = max_concurrency
        self._retry = retry
        self._items = items
        self._results = results
        self._clock = clock
        self._ring = ring
        self._claims = itertools.count(1)
        self._runs: list[Run] = []
        self._unstarted = 0  # claimed, and in no handler call yet
        self._exclusive = False  # the one item in hand is suspect: it must stay alone
        self.submit: Callable[[Outcome | None], object]
        self.consumer: int = 0
        self.taking: bool = False
        self.held: dict[int, Entry] = {}
        self.unsettled: int = 0
        self.reserved: int = 0
        self.paused: bool = False
        self.more: bool = False
        self.claiming: bool = False
        self.next_due: float | None = None

    # Claiming

    def room(self) -> int:
        """Return how many items may be claimed now: as many as the free slots can start at once."""
        if self._exclusive or self.paused or not self.taking:
            return 0
        self._runs = [run for run in self._runs if not run.ended]
        size = self._max_batch_size
        if isinstance(size, AdaptiveSize):
            size = size.size
        free = (self._max_concurrency - len(self._runs)) * size
        # A disk that does not keep up, or has failed, must not let outcomes pile up in memory.
        behind = self.unsettled > 2 * self._max_concurrency * size
        return 0 if behind else max(0, free - self._unstarted - self.reserved)

    def take(self) -> Take | None:
        """Return the right to keep items as they are stored, in a transaction under way: the short way."""
        room = self.room()
        if not room or self.claiming:
            return None
        self.reserved += room
        return Take(self.consumer, next(self._claims), room)

    def took(self, take: Take) -> None:
        """End that right: what was kept has begun."""
        self.reserved -= take.room

    def begin(self, take: Take, number: int, item: NewItem, value: Any) -> None:
        """Handle an item that was claimed as it was stored."""
        claimed = Claimed(
            number,
            take.claim,
            item.payload,
            item.priority,
            attempts=1,
            suspect=False,
            key=item.key,
            job=None,
            trace=item.trace,
        )
        self._hand_over(claimed, value)

    def claim(self, settling: int) -> Claim | None:
        """Return what to ask for in a transaction that settles so many items; None for nothing."""
        room = self.room()
        if not room:
            return None
        idle = len(self.held) == settling and not self.reserved
        self.reserved += room
        return Claim(self.consumer, next(self._claims), room, idle)

    def claim_ended(self, claim: Claim) -> None:
        """Give the room back, before what was claimed is taken in."""
        self.reserved -= claim.limit

    def take_in(self, claim: Claim, claimed: list[Claimed]) -> None:
        """Handle what a claim brought."""
        # Fewer than asked: nothing is left, but for suspects that wait until all hands are empty.
        self.more = len(claimed) == claim.limit or bool(claimed and claimed[0].suspect)
        for row in claimed:
            try:
                item = self._items.decode(row.payload)
            except ValueError as error:
                entry = self.held[row.id] = Entry(row, None)
                outcome = death(entry, error, encode_reason("Undecodable", str(error)))
                settlement = outcome.settlement._replace(uncounted=True)
                self.settle(Outcome(entry, settlement, error=error))
            else:
                self._hand_over(row, item)

    def due_in(self, delay: float) -> None:
        """Note that an item will be ready in so many seconds."""
        due = self._clock.now() + delay
        if self.next_due is None or due < self.next_due:
            self.next_due = due
            self._ring()

    def more_to_do(self) -> None:
        """Note that there is something to claim."""
        self.more = True
        self.claim_if_any()
        self._ring()

    def claim_if_any(self) -> None:
        """Ask for a claim if there may be something, and there is room for it."""
        if self.more and not self.claiming and self.room():
            self.claiming = True
            self.submit(None)

    # Handling

    def _hand_over(self, claimed: Claimed, item: Any) -> None:
        """Give an item to the in-memory batcher."""
        entry = self.held[claimed.id] = Entry(claimed, item)
        self._exclusive = self._exclusive or entry.suspect
        try:
            pending: Any = self.engine.entrance.enter(entry, claimed.priority, wait=False)
        except BatcherClosed:
            self.settle(given_back(entry))
        except Exception as error:  # noqa: BLE001 - the user's partition function: it fails this item alone
            self.settle(failure(entry, error, self._retry))
        else:
            self._unstarted += 1
            entry.pending = pending
            pending.add_done_callback(partial(self._ended, entry))

    def _batch_started(self, run: Run) -> None:
        """Turn a batch of entries into what the handler gets."""
        entries: list[Entry] = run.items
        for entry in entries:
            entry.started = True
        self._unstarted -= len(entries)
        self._runs.append(run)
        jobs = {entry.job for entry in entries}
        run.attempts = [entry.attempts for entry in entries]
        run.keys = [entry.key for entry in entries]
        run.job = jobs.pop() if len(jobs) == 1 else None
        run.origins = [(entry.trace, entry.id) for entry in entries]
        run.items = [entry.item for entry in entries]

    def _ended(self, entry: Entry, pending: asyncio.Future[Any]) -> None:
        """Decide what an item's outcome means for the disk."""
        if pending.cancelled():
            return  # given back
        if not entry.started:
            self._unstarted -= 1
        error = pending.exception()
        if error is None:
            self._succeed(entry, pending.result())
        else:  # a Batcher gives nobody any other BaseException
            self.settle(failure(entry, cast("Exception", error), self._retry))

    def _succeed(self, entry: Entry, result: Any) -> None:
        try:
            payload, value = (None, None) if result is None else self._results.encode(result)
        except (TypeError, ValueError) as error:
            error.add_note("the handler's result cannot be stored, so the item counts as failed")
            self.settle(death(entry, error))
        else:
            self.settle(success(entry, payload, value))

    # Letting go

    def settle(self, outcome: Outcome) -> None:
        """Let an outcome go to the disk, and a claim with it if there is room."""
        self.unsettled += 1
        self.submit(outcome)
        self.claim_if_any()

    def let_go(self, entry: Entry) -> None:
        """Forget an item that is settled."""
        self.held.pop(entry.id, None)
        if entry.suspect:
            self._exclusive = False

    def give_back_unstarted(self) -> None:
        """Put back what no handler has seen."""
        for entry in list(self.held.values()):
            if not entry.started and entry.pending is not None and entry.pending.cancel():
                self._unstarted -= 1
                self.settle(given_back(entry))
