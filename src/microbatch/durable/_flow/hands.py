"""What a consumer has in hand: how much more it has room for, and what its handler made of each item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microbatch._core.engine import Engine
from microbatch._core.holding import is_refusal
from microbatch._core.rules import TURN, Rules
from microbatch._pure.adaptive import AdaptiveSize
from microbatch._pure.exceptions import BatcherClosed
from microbatch._telemetry.kinds import counted
from microbatch.durable._file.ranges import ITEMS_MAX
from microbatch.durable._file.records import State

from .kept import Kept
from .parcel import InPartition, Items, Parcel
from .settling import Done, Failure
from .verdicts import death, given_up, unseen, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence

    from microbatch._core.run import Reason, Run
    from microbatch._loops.protocol import Loop
    from microbatch._pure.retry import Retry
    from microbatch._telemetry.observer import Observer
    from microbatch.durable._file.codec import Codec
    from microbatch.durable._file.records import Claim, Range, Verdict

    from .settling import Settling


#: How many batches' worth of items is claimed for each free slot where partitions part them.
CLAIMED_AHEAD = 10


class Hands:
    """The handler calls of a consumer: what is claimed and has no outcome yet.

    Args:
        settings: What `Batcher` takes that calls the user's handler.
        observer: Tells of its batches.
        max_batch_size: As for ``Batcher``.
        partition: As for ``Batcher``.
        retry: What becomes of items that fail.
        items: How items read back.
        results: How results are stored.
        waits: Whether items wait on the disk for company.

    Attributes:
        engine: Calls the handler.
        settling: Takes the outcomes; whoever makes it sets this.
        on_room: Called when a handler call has ended.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        observer: Observer | None,
        *,
        max_batch_size: int | AdaptiveSize,
        partition: Callable[[Any], Hashable] | None,
        retry: Retry | None,
        items: Codec[Any],
        results: Codec[Any],
        waits: bool,
    ) -> None:
        # To the engine a parcel is one item: it is cut where its claim was, and nowhere else.
        rules = Rules(max_batch_size=1, max_wait=0.0, max_pending=None, **settings)
        self._size = max_batch_size
        if isinstance(max_batch_size, AdaptiveSize):
            rules.adaptive = max_batch_size
        rules.pace = max(1, TURN // self.size())
        self._kept: Kept | None = None
        if retry is not None:
            self._kept = Kept(
                rules.name,
                retry,
                enter=self._enter,
                recall=self._recall,
                on_room=self._has_room,
            )
        self.engine: Engine = Engine(
            rules, prepare=self._start, observer=observer, holding=self._kept
        )
        self._max_concurrency = rules.max_concurrency
        self._partition = partition
        self._retry = retry
        self._items = items
        self._results = results
        self._waits = waits
        self._parcels: set[Parcel] = set()
        self.settling: Settling
        self.on_room: Callable[[], None]

    def bind(self, loop: Loop) -> None:
        """Serve an event loop."""
        if self._kept is not None:
            self._kept.loop = loop

    def size(self) -> int:
        """Return how many items the next handler call may have."""
        size = self._size
        return size.size if isinstance(size, AdaptiveSize) else size

    def room(self) -> tuple[int, int]:
        """Return how many claims there is room for, and how many items each of them may have."""
        size = self.size()
        # A disk that does not keep up, or has failed, must not let outcomes pile up in memory.
        if self.engine.is_stuck() or self.settling.unsettled > 2 * self._max_concurrency * size:
            return 0, 0
        busy = len(self._parcels)
        if self._kept is not None and self._partition is not None:
            # The others go on beside partitions that wait; but a claim may bring more of those.
            busy -= min(self._kept.parked, self._max_concurrency * CLAIMED_AHEAD)
        free = max(0, self._max_concurrency - busy)
        if self._partition is None:
            return free if self._kept is None else self._kept.slots(None, free), size
        if not free:
            return 0, size
        # The disk knows nothing of partitions: of one batch's worth each would get a part.
        return 1, max(size, min(size * free * CLAIMED_AHEAD, ITEMS_MAX))

    # In

    def take_in(self, claim: Claim, values: list[Any] | None) -> None:
        """Hand a claim's items to the handler."""
        self.settling.begin(claim.number, len(claim.payloads))
        good = Items([], [], [], [], [], claim.told)
        index = 0
        for part in claim.ranges:
            end = index + part.count
            good.ids.extend(range(part.first, part.first + part.count))
            good.attempts.extend([part.attempts + 1] * part.count)
            good.keys.extend(_keys_of(part, claim))
            index = end
        good.traces.extend(claim.traces or [None] * index)
        if values is not None:
            good.values.extend(values)
        else:
            good = self._decoded(claim, good)
        if self._partition is None:
            if good.ids:
                self._hand_over(claim.number, good, None)
        elif claim.told is not None and claim.told.ordered:
            self._hand_over_first(claim.number, good)
        else:
            for partition, items in self._parted(claim.number, good):
                size = self.size()
                for start in range(0, len(items.ids), size):
                    places = range(start, min(start + size, len(items.ids)))
                    self._hand_over(claim.number, items.some(places), partition)

    def _decoded(self, claim: Claim, found: Items) -> Items:
        """Return the items with their values, without those that do not decode: they fail."""
        bad: set[int] = set()
        for index, payload in enumerate(claim.payloads):
            try:
                found.values.append(self._items.decode(payload))
            except ValueError as error:
                found.values.append(None)
                bad.add(index)
                number, attempt = found.ids[index], found.attempts[index]
                decided = verdict(number, attempt, error, self._retry)
                self._fail(claim.number, number, attempt, decided, error)
        if not bad:
            return found
        return found.some(index for index in range(len(found.ids)) if index not in bad)

    def _parted(self, claim: int, items: Items) -> list[tuple[Hashable, Items]]:
        """Return the items that may go together."""
        assert self._partition is not None  # noqa: S101 - else all may
        parts: dict[Hashable, list[int]] = {}
        for index, value in enumerate(items.values):
            try:
                parts.setdefault(self._partition(value), []).append(index)
            except Exception as error:  # noqa: BLE001 - the user's function: it fails this item alone
                number, attempt = items.ids[index], items.attempts[index]
                self._fail(
                    claim, number, attempt, verdict(number, attempt, error, self._retry), error
                )
        return [(partition, items.some(chosen)) for partition, chosen in parts.items()]

    def _hand_over_first(self, claim: int, items: Items) -> None:
        """Hand over what may go together of the first items, and put all behind them back: one batch at a time.

        They come again, in their order, as soon as these have ended.
        """
        parts = self._parted(claim, items)
        partitions = {number: partition for partition, some in parts for number in some.ids}
        places = [place for place, number in enumerate(items.ids) if number in partitions]
        if not places:
            return
        first = partitions[items.ids[places[0]]]
        count = 0
        for place in places[: self.size()]:
            if partitions[items.ids[place]] != first:
                break
            count += 1
        for place in places[count:]:
            self.settling.failed(claim, Failure(unseen(items.ids[place]), 0, None))
        self._hand_over(claim, items.some(places[:count]), first)

    def _hand_over(self, claim: int, items: Items, partition: Hashable) -> None:
        reason: Reason = "wait" if self._waits else "idle"
        parcel = Parcel(self, claim, items, "size" if len(items.ids) >= self.size() else reason)
        parcel.partition = partition
        self._parcels.add(parcel)
        if self._kept is None or self._kept.admits(parcel):
            self._enter(parcel)

    def _enter(self, parcel: Parcel) -> None:
        try:
            parcel.pending = self.engine.entrance.enter(parcel, wait=False)
        except BatcherClosed:
            self._give_back(parcel)

    def _start(self, run: Run) -> None:
        """Turn a parcel into what the handler gets: the engine's ``prepare``."""
        (parcel,) = run.items
        parcel.started, parcel.run = True, run
        self.engine.unfold(run, parcel.items, parcel)
        run.reason = parcel.reason
        run.attempts = parcel.attempts
        run.keys = parcel.keys
        if parcel.told is not None:
            run.job, run.item_ids = parcel.job, parcel.told.ids
        run.origins = list(zip(parcel.traces, parcel.ids, strict=True))
        if self._partition is not None:
            run.lane = InPartition(parcel.partition)

    # Out

    def succeeded(self, parcel: Parcel, places: Sequence[int], values: Sequence[Any]) -> None:
        """Take results, in the order of the items at these places."""
        encode = self._results.encode
        done = Done([], [], [], [], [])
        for index, value in zip(places, values, strict=True):
            number = parcel.ids[index]
            try:
                payload, stored = (None, None) if value is None else encode(value)
            except (TypeError, ValueError) as error:
                error.add_note(
                    "the handler's result cannot be stored, so the item counts as failed"
                )
                self._fail(
                    parcel.claim, number, parcel.attempts[index], death(number, error), error
                )
                parcel.run.errors = counted(parcel.run.errors, error)
                continue
            done.ids.append(number)
            done.results.append(payload)
            done.values.append(stored)
            done.items.append(parcel.items[index])
            done.attempts.append(parcel.attempts[index])
        self.settling.done(parcel.claim, done)
        if self._kept is not None:
            self._kept.succeeded(parcel)
        self.check_end(parcel)

    def failed(self, parcel: Parcel, index: int, error: Exception) -> None:
        """Take one item's failure."""
        number, attempt = parcel.ids[index], parcel.attempts[index]
        if self._kept is not None and is_refusal(error):
            decided = given_up(number, error)
        else:
            decided = verdict(number, attempt, error, self._retry)
        if decided.state not in (State.DEAD, State.SKIPPED):
            parcel.run.retried = counted(parcel.run.retried, error)
        self._fail(parcel.claim, number, attempt, decided, error)
        self.check_end(parcel)

    def _fail(
        self, claim: int, number: int, attempt: int, decided: Verdict, error: Exception | None
    ) -> None:
        self.settling.failed(claim, Failure(decided, attempt, error))

    def check_end(self, parcel: Parcel) -> None:
        """See whether all items of a parcel have an outcome, or are to go again."""
        if parcel.left:
            return
        self._parcels.discard(parcel)
        if self._kept is not None:
            if parcel.kept:
                self._keep(parcel, self._kept)
            self._kept.ended(parcel)
        self.on_room()

    def _has_room(self) -> None:
        self.on_room()

    def _keep(self, parcel: Parcel, kept: Kept) -> None:
        """Let what the backend refused of a parcel go again, as soon as its partition may."""
        items = parcel.rest()
        alone = len(items.ids) == 1 and self._partition is None
        if kept.closing or alone or items.told is not None:
            # Alone in a claim it would be charged with this process's death, though no handler has it; and
            # whether its job was stopped meanwhile is the file's to say.
            for number in items.ids:
                self.settling.failed(parcel.claim, Failure(unseen(number), 0, None))
        else:
            self._hand_over(parcel.claim, items, parcel.partition)

    def _recall(self, partition: Hashable) -> None:
        """Keep what of a partition was to begin next."""
        for parcel in list(self._parcels):
            if parcel.partition == partition and self._is_unstarted(parcel) and self._kept:
                parcel.pending = None
                self._kept.keep(parcel)

    def _is_unstarted(self, parcel: Parcel) -> bool:
        """Tell whether a parcel was to begin still; from now on it will not."""
        return not parcel.started and parcel.pending is not None and bool(parcel.pending.cancel())

    def give_back_unstarted(self) -> None:
        """Put back what no handler has seen, and what the backend refused: this process closes."""
        if self._kept is not None:
            self._kept.close()
        for parcel in list(self._parcels):
            if (parcel.pending is None and not parcel.started) or self._is_unstarted(parcel):
                self._give_back(parcel)

    def give_back_stopped(self, jobs: Collection[str]) -> None:
        """Put back what no handler has seen of jobs of which nothing more may begin."""
        for parcel in list(self._parcels):
            told = parcel.told
            if parcel.started or told is None:
                continue
            stopped = [place for place, job in enumerate(told.jobs) if job in jobs]
            if not stopped or (parcel.pending is not None and not parcel.pending.cancel()):
                continue
            content, gone = parcel.content(), set(stopped)
            self._parcels.discard(parcel)
            if self._kept is not None:
                self._kept.withdraw(parcel)
            for place in stopped:
                failure = Failure(unseen(content.ids[place]), 0, None)
                self.settling.failed(parcel.claim, failure)
            rest = content.some(p for p in range(len(content.ids)) if p not in gone)
            if rest.ids:
                self._hand_over(parcel.claim, rest, parcel.partition)
            if self._kept is not None:
                self._kept.go_on(parcel.partition)
        self.on_room()

    def _give_back(self, parcel: Parcel) -> None:
        self._parcels.discard(parcel)
        for number in parcel.ids:
            self.settling.failed(parcel.claim, Failure(unseen(number), 0, None))


def _keys_of(part: Range, claim: Claim) -> list[str | None]:
    """Return the idempotency keys of items: their own, or their job's and the place in it."""
    job_key = None if claim.told is None or part.job is None else claim.told.keys.get(part.job)
    if job_key is None:
        return [part.key] * part.count
    first = part.position or 0
    return [f"{job_key}:{first + number}" for number in range(part.count)]
