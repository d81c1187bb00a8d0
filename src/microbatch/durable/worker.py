"""DurableBatcher: a DurableQueue with a handler.

An item's way: it is committed; this consumer claims it (with the commit itself if there is a free slot, the
short way, else in a transaction of its own, which counts the attempt); an in-memory Batcher, whose handler is
the user's, puts it into a batch; its outcome is settled in a transaction that other outcomes and the next
claim share; then those who wait for it go on.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import anyio
import anyio.lowlevel

from microbatch import _checks
from microbatch.adaptive import AdaptiveSize
from microbatch.batcher import Batcher
from microbatch.errors import BatcherClosed
from microbatch.handler import name_of
from microbatch.retry import Retry
from microbatch.telemetry import observer_of

from .alive import Presence, birth_of
from .codec import encode_reason
from .errors import QueueUnavailable
from .outcomes import Entry, Outcome, attempts_max, death, failure, given_back, success
from .queue import TROUBLE_PAUSE, DurableQueue
from .records import Claim, Claimed, State, Take
from .store import warn_of_wal_bug

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    import aiosqlite

    from microbatch.batch import Run
    from microbatch.telemetry import Telemetry

    from .records import Consumer, NewItem

T = TypeVar("T")
R = TypeVar("R")

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds between two looks at who lives: an item of a dead process is handled again within twice this.
ALIVE_INTERVAL = 0.25

#: Seconds between two looks at what retention has to remove, and at the lock file.
UPKEEP_INTERVAL = 1.0

#: Seconds for the last outcomes to reach the disk, once closing has no more time for handlers.
SETTLE_GRACE = 5.0


_UNSET: Any = object()


class DurableBatcher(DurableQueue[T, R]):
    """Handles items in bulk that were committed to disk before: nothing acknowledged is ever lost.

    Every item is handled at least once. It is handled again only if its process died before the outcome
    was on the disk, if its handler timed out, if a settle failed, after a retry, ``requeue()``, a close
    that cancelled it, or an expired key. ``on_settle`` makes effects in the same file exactly once.

    Args:
        path: As for ``DurableQueue``.
        handler: The bulk function, as for ``Batcher``, generators and plain functions included.
        item_type: As for ``DurableQueue``.
        result_type: As for ``DurableQueue``.
        queue: As for ``DurableQueue``.
        max_batch_size: As for ``Batcher``.
        max_wait: As for ``Batcher``: a claimed item waits no longer than this for company.
        max_concurrency: As for ``Batcher``. Items are claimed only for slots that are free.
        partition: As for ``Batcher``, within this process.
        retry: As for ``Batcher``; the delay is stored, so it holds across restarts. None: what fails is
            a dead letter at once, but an item whose process died is tried 3 times in all.
        handler_timeout: As for ``Batcher``.
        drain_timeout: Seconds that leaving ``async with`` and ``aclose()`` wait for running batches, at
            least 0; None for no limit.
        on_settle: ``async (connection, items, results)``: called inside the transaction that records the
            success of these items, on the connection that it runs on. What it writes to the same file
            commits with it, exactly once. If it raises, or takes longer than 10 s, all is rolled back
            and these items count as failed. It must not commit, and it holds the write lock: be quick.
        max_depth: As for ``DurableQueue``; so is all that follows.
        max_file_bytes: ...
        key_ttl: ...
        result_ttl: ...
        keep_dead: ...
        keep_done: ...
        poll_interval: ...
        synchronous: ...
        name: For logs and telemetry; the handler's qualified name by default.
        telemetry: As for ``Batcher``.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of its range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        handler: Callable[[list[T]], Any],
        *,
        item_type: type[T] | Any,
        result_type: type[R] | Any = None,
        queue: str = "default",
        max_batch_size: int | AdaptiveSize = 100,
        max_wait: float = 0.0,
        max_concurrency: int = 1,
        partition: Callable[[T], Hashable] | None = None,
        retry: Retry | None = None,
        handler_timeout: float | None = None,
        drain_timeout: float | None = 30.0,
        on_settle: Callable[[aiosqlite.Connection, list[T], list[R]], Awaitable[None]]
        | None = None,
        max_depth: int = 1_000_000,
        max_file_bytes: int | None = None,
        key_ttl: float = 86_400.0,
        result_ttl: float = 86_400.0,
        keep_dead: int | None = None,
        keep_done: int | None = None,
        poll_interval: float = 0.05,
        synchronous: str = "full",
        name: str | None = None,
        telemetry: Telemetry | Literal[False] | None = None,
    ) -> None:
        if retry is not None and not isinstance(retry, Retry):
            message = f"retry must be a Retry or None, got {retry!r}"
            raise TypeError(message)
        _checks.function("partition", partition)
        self._handler = handler
        self._batching: dict[str, Any] = {
            "max_batch_size": max_batch_size,
            "max_wait": max_wait,
            "max_concurrency": max_concurrency,
            "max_pending": None,  # bounded by what is claimed: the slots that are free
            "partition": None if partition is None else lambda entry: partition(entry.item),
            "handler_timeout": handler_timeout,
            "drain_timeout": drain_timeout,
            "name": name_of(handler) if name is None else name,
        }
        self._size = max_batch_size
        self._max_concurrency = max_concurrency
        self._retry = retry
        self._drain_timeout = drain_timeout
        self._on_settle = _checks.function("on_settle", on_settle)
        super().__init__(
            path,
            item_type=item_type,
            result_type=result_type,
            queue=queue,
            max_depth=max_depth,
            max_file_bytes=max_file_bytes,
            key_ttl=key_ttl,
            result_ttl=result_ttl,
            keep_dead=keep_dead,
            keep_done=keep_done,
            poll_interval=poll_interval,
            synchronous=synchronous,
            name=self._batching["name"],
            telemetry=telemetry,
        )

    def _forget(self) -> None:
        super()._forget()
        self._handling: Batcher[Any, Any] = Batcher(self._handler, **self._batching)
        self._handling._on_start = self._batch_started  # noqa: SLF001 - our own machinery
        observer = observer_of(self._name, self._telemetry, self._queue_name)
        self._handling._observer = observer  # noqa: SLF001 - one that knows of the queue
        self._settles: Batcher[Any, None] = Batcher(
            self._settle_group,
            max_batch_size=10_000,
            max_pending=None,
            name=f"{self._name} settle",
            telemetry=False,
        )
        self._claims = itertools.count(1)
        self._consumer = 0
        self._presence: Presence | None = None
        self._generation = 0
        self._letting_go: Any = None
        self._held: dict[int, Entry] = {}
        self._runs: list[Run] = []
        self._unstarted = 0  # claimed, and in no handler call yet
        self._reserved = 0  # slots' room that a transaction under way may use up
        self._unsettled = 0
        self._exclusive = False  # the one item in hand is suspect: it must stay alone
        self._more = False  # there may be something to claim
        self._claiming = False
        self._paused = False
        self._next_due: float | None = None
        self._others: list[Consumer] = []
        self._others_known = False
        self._next_alive = 0.0
        self._next_upkeep = 0.0
        self._settling_ends: float | None = None
        self._settling_trouble = False

    # Opening and closing

    async def _start(self) -> None:
        await self._store.open()
        await self._register()
        await super()._start()
        self._more = True
        self._ring()

    async def _register(self) -> None:
        runtime = self._runtime
        assert runtime is not None  # noqa: S101 - `_open` has just set it
        presence = Presence(self._path, lives=lambda: not runtime.has_ended())
        pid = os.getpid()
        try:
            self._consumer = await self._store.register(pid, birth_of(pid), presence.take)
        except BaseException:
            presence.release()
            raise
        self._generation = self._store.generation
        if self._letting_go is not None:
            self._letting_go()
        self._presence = presence
        # If this object is dropped without being closed, its items must not be held for ever.
        self._letting_go = weakref.finalize(self, presence.release)

    def _lose_loop(self) -> None:
        if self._letting_go is not None:
            self._letting_go()
        super()._lose_loop()

    async def aclose(self, drain_timeout: float | None = _UNSET) -> None:
        """Stop taking and claiming items, let running batches finish, and close the file.

        Claimed items that no handler has yet go back at once, for other processes and the next start.
        After ``drain_timeout`` running handlers are cancelled and their items go back too. Who still
        waits for a result gets ``BatcherClosed``; the items stay. May be called more than once.
        Cancelling it closes at once.

        Args:
            drain_timeout: Seconds to wait for running batches, at least 0; None for no limit. The
                constructor's by default.

        Raises:
            WouldDeadlock: Inside a running batch of this batcher.
        """
        self._guard("aclose")
        await super().aclose(self._drain_timeout if drain_timeout is _UNSET else drain_timeout)

    async def _drain(self) -> None:
        await self._enqueues.aclose(None)
        self._give_back_unstarted()
        await self._handling.aclose(None)

    async def _shut(self) -> None:
        assert self._runtime is not None  # noqa: S101 - it is open
        await self._enqueues.aclose(0)
        await self._stop_watching()
        self._give_back_unstarted()
        await self._handling.aclose(0)
        await anyio.lowlevel.checkpoint()  # the outcomes' callbacks run
        self._settling_ends = self._runtime.now() + SETTLE_GRACE
        await self._settles.aclose(SETTLE_GRACE + 1.0)
        try:
            # What could not be settled is taken back like a dead process's.
            await self._store.reclaim(self._consumer, attempts_max(self._retry))
        except (QueueUnavailable, sqlite3.Error) as error:
            logger.warning(
                "queue %r: %s; its items go back when this process ends", self._name, error
            )
        finally:
            if self._letting_go is not None:
                self._letting_go()
        await super()._shut()

    def _give_back_unstarted(self) -> None:
        for entry in list(self._held.values()):
            if not entry.started and entry.pending is not None and entry.pending.cancel():
                self._unstarted -= 1
                self._settle(given_back(entry))

    def _guard(self, call: str) -> None:
        self._handling._guard(call)  # noqa: SLF001 - it knows its running batches

    # Claiming

    def _room(self) -> int:
        """Return how many items may be claimed now: as many as the free slots can start at once."""
        if self._exclusive or self._state != "open" or self._paused or not self._consumer:
            return 0
        self._runs = [run for run in self._runs if not run.ended]
        size = self._size.size if isinstance(self._size, AdaptiveSize) else self._size
        free = (self._max_concurrency - len(self._runs)) * size
        # A disk that does not keep up, or has failed, must not let outcomes pile up in memory.
        behind = self._unsettled > 2 * self._max_concurrency * size
        return 0 if behind else max(0, free - self._unstarted - self._reserved)

    def _take(self) -> Take | None:
        room = self._room()
        if not room or self._claiming:
            return None
        self._reserved += room
        return Take(self._consumer, next(self._claims), room)

    def _took(self, take: Take | None) -> None:
        if take is not None:
            self._reserved -= take.room

    def _begin_taken(self, take: Take, number: int, item: NewItem, value: Any) -> None:
        payload, key, _, priority, _, _, trace = item
        claimed = Claimed(
            number,
            take.claim,
            payload,
            priority,
            attempts=1,
            suspect=False,
            key=key,
            job=None,
            trace=trace,
        )
        self._hand_over(claimed, value)

    def _due_in(self, delay: float) -> None:
        due = self._clock.now() + delay
        if self._next_due is None or due < self._next_due:
            self._next_due = due
            self._ring()

    def _more_to_do(self) -> None:
        self._more = True
        self._claim_if_any()
        self._ring()

    def _claim_if_any(self) -> None:
        if self._more and not self._claiming and self._room():
            self._claiming = True
            self._settles.submit_nowait(None)

    def _take_in(self, claimed: Claimed) -> None:
        try:
            item = self._items.decode(claimed.payload)
        except ValueError as error:
            entry = Entry(claimed, None)
            self._held[entry.id] = entry
            record = encode_reason("Undecodable", str(error))
            outcome = death(entry, error, record)
            self._settle(Outcome(entry, outcome.settlement._replace(uncounted=True), error=error))
        else:
            self._hand_over(claimed, item)

    def _hand_over(self, claimed: Claimed, item: Any) -> None:
        """Give an item to the in-memory batcher."""
        entry = self._held[claimed.id] = Entry(claimed, item)
        self._exclusive = self._exclusive or entry.suspect
        try:
            pending: Any = self._handling.submit_nowait(entry, priority=claimed.priority)
        except BatcherClosed:
            self._settle(given_back(entry))
        except Exception as error:  # noqa: BLE001 - the user's partition function: it fails this item alone
            self._fail(entry, error)
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

    # Settling

    def _ended(self, entry: Entry, pending: asyncio.Future[Any]) -> None:
        """Decide what an item's outcome means for the disk."""
        if pending.cancelled():
            return  # given back
        if not entry.started:
            self._unstarted -= 1
        error = pending.exception()
        if error is None:
            self._succeed(entry, pending.result())
        else:
            self._fail(entry, cast("Exception", error))  # a Batcher gives nobody anything else

    def _succeed(self, entry: Entry, result: Any) -> None:
        try:
            payload, value = (None, None) if result is None else self._results.encode(result)
        except (TypeError, ValueError) as error:
            error.add_note("the handler's result cannot be stored, so the item counts as failed")
            self._settle(death(entry, error))
        else:
            self._settle(success(entry, payload, value))

    def _fail(self, entry: Entry, error: Exception) -> None:
        self._settle(failure(entry, error, self._retry))

    def _settle(self, outcome: Outcome) -> None:
        self._unsettled += 1
        self._settles.submit_nowait(outcome)
        self._claim_if_any()  # in the same transaction

    async def _settle_group(self, acts: list[Outcome | None]) -> None:
        """Settle outcomes and claim, in one transaction if there is no ``on_settle``: a Batcher's handler.

        Goes on until it is done: an outcome that is not on the disk means that the item is handled again.
        """
        outcomes = [act for act in acts if act is not None]
        wants = len(outcomes) < len(acts)
        try:
            await self._settle_until_done(outcomes, wants)
        finally:
            if wants:
                self._claiming = False
        self._claim_if_any()

    async def _settle_until_done(self, outcomes: list[Outcome], wants: bool) -> None:
        while True:
            try:
                outcomes = await self._settle_with_effects(outcomes)
                await self._settle_and_claim(outcomes, wants)
            except Exception as error:  # noqa: BLE001 - whatever it is, no outcome may be lost by it
                if not self._trouble_in_settle(outcomes, error):
                    return
            else:
                return
            wants = False
            await anyio.sleep(TROUBLE_PAUSE)

    def _trouble_in_settle(self, outcomes: list[Outcome], error: Exception) -> bool:
        """Tell those who wait that the file cannot be used; return whether to try again."""
        if not self._settling_trouble:
            self._settling_trouble = True
            logger.warning("queue %r: outcomes wait for the disk: %s", self._name, error)
        self._more = True
        self._ring()
        for outcome in outcomes:
            self._waiters.fail(
                outcome.entry.id,
                lambda: QueueUnavailable(
                    str(self._path), f"the result could not be stored: {error}"
                ),
            )
        runtime = self._runtime
        ends = self._settling_ends
        if runtime is None or (ends is not None and runtime.now() > ends):
            self._unsettled -= len(outcomes)
            return False
        return bool(outcomes)

    async def _settle_with_effects(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Run ``on_settle`` for the items that succeeded; return what is left to settle."""
        on_settle = self._on_settle
        done = [o for o in outcomes if o.settlement.state == State.DONE and o.error is None]
        if on_settle is None or not done:
            return outcomes

        async def inside(connection: aiosqlite.Connection, settled: set[int]) -> None:
            mine = [outcome for outcome in done if outcome.entry.id in settled]
            if mine:
                await on_settle(connection, [o.entry.item for o in mine], [o.value for o in mine])

        rest = [outcome for outcome in outcomes if outcome not in done]
        settlements = [outcome.settlement for outcome in done]
        try:
            settled = await self._store.settle_around(self._consumer, settlements, inside)
        except QueueUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the user's function: its items fail, nothing is stored
            return rest + [failure(outcome.entry, error, self._retry) for outcome in done]
        self._settled(done, settled)
        outcomes[:] = rest
        return rest

    async def _settle_and_claim(self, outcomes: list[Outcome], wants: bool) -> None:
        claim = None
        room = self._room() if wants else 0
        if room:
            idle = len(self._held) == len(outcomes) and not self._reserved
            claim = Claim(self._consumer, next(self._claims), room, idle)
        if not outcomes and claim is None:
            return
        self._reserved += room
        try:
            settled, claimed = await self._store.settle_and_claim(
                self._consumer, [outcome.settlement for outcome in outcomes], claim
            )
        finally:
            self._reserved -= room
        self._settling_trouble = False
        self._settled(outcomes, settled)
        if claim is not None:
            # Fewer than asked: nothing is left, but for suspects that wait until all hands are empty.
            self._more = len(claimed) == room or bool(claimed and claimed[0].suspect)
            for item in claimed:
                self._take_in(item)

    def _settled(self, outcomes: Sequence[Outcome], settled: set[int]) -> None:
        """Tell those who wait that outcomes are on the disk."""
        self._unsettled -= len(outcomes)
        if len(settled) < len(outcomes):
            dropped = len(outcomes) - len(settled)
            logger.warning(
                "queue %r: %d outcomes dropped: others have the items now", self._name, dropped
            )
        for outcome in outcomes:
            number, state = outcome.entry.id, outcome.settlement.state
            self._held.pop(number, None)
            if outcome.entry.suspect:
                self._exclusive = False
            if number not in settled:
                self._seen = -1
            elif state == State.DONE and outcome.error is None:
                self._waiters.succeed(number, outcome.value)
            elif state in (State.DONE, State.DEAD):
                self._waiters.fail(number, outcome.failure)
            elif state == State.SCHEDULED:
                self._due_in(outcome.settlement.delay)
            else:
                self._more = True
        if not self._held:
            self._more = True  # suspects may be waiting for this

    # Watching

    def _pause_before_look(self) -> float | None:
        if self._next_due is None:
            return self._poll_interval
        return min(self._poll_interval, max(0.0, self._next_due - self._clock.now()))

    async def _look(self) -> None:
        runtime = self._runtime
        assert runtime is not None  # noqa: S101 - the watch runs in it
        peek = await self._store.peek(self._seen)
        if peek is not None:
            self._others_known = False
            self._paused = peek.paused
            self._next_due = peek.next_due
            self._more = self._more or peek.ready > 0
            foreign = [number for number in self._waiters if number not in self._held]
            if foreign:
                await self._tell_ended(foreign)
            self._seen = peek.version
        if self._next_due is not None and self._next_due <= self._clock.now():
            self._next_due = None
            self._seen = -1  # see when the next one is due
            self._more = True
        now = runtime.now()
        if now >= self._next_alive:
            self._next_alive = now + ALIVE_INTERVAL
            await self._bury_the_dead()
        if now >= self._next_upkeep:
            self._next_upkeep = now + UPKEEP_INTERVAL
            await self._keep_up()
        self._claim_if_any()

    async def _bury_the_dead(self) -> None:
        """Take back what consumers held whose process is gone."""
        presence = self._presence
        if not self._others_known or presence is None:
            consumers = await self._store.consumers()
            known = any(consumer.id == self._consumer for consumer in consumers)
            if not known or self._generation != self._store.generation:
                # Another file stands here, a backup say: whatever it says of this consumer is old.
                logger.warning(
                    "queue %r: its file was replaced: starting over as a new consumer", self._name
                )
                await self._register()
                presence = self._presence
            self._others = [consumer for consumer in consumers if consumer.id != self._consumer]
            self._others_known = True
            if any(consumer.pid != os.getpid() for consumer in self._others):
                warn_of_wal_bug(self._path)
        for consumer in list(self._others):
            if presence is None or presence.sees(consumer):
                continue
            dead = await self._store.reclaim(consumer.id, attempts_max(self._retry))
            logger.warning(
                "queue %r: consumer %d is gone, its items go on here", self._name, consumer.id
            )
            self._others.remove(consumer)
            await self._tell_ended(dead)
            self._more = True

    async def _keep_up(self) -> None:
        """Remove what is kept too long, and stay visible if the lock file was deleted."""
        presence = self._presence
        if presence is not None and presence.follow():
            await self._store.move_consumer(self._consumer, presence.identity)
            self._others_known = False
        if await self._store.prune():
            self._next_upkeep = 0.0
