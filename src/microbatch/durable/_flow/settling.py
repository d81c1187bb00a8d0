"""Outcomes on their way to the disk, with the user's own effects if there are any."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from microbatch._pure.exceptions import BatcherClosed, HandlerCrashed
from microbatch._telemetry.kinds import counted
from microbatch.durable._file.codec import decode_error
from microbatch.durable._file.records import Settlement, State
from microbatch.durable.errors import QueueUnavailable

from .callers import caused
from .verdicts import FATAL_PAUSE, death, verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    import aiosqlite

    from microbatch._loops.protocol import Loop
    from microbatch._pure.retry import Retry
    from microbatch._telemetry.kinds import Kind
    from microbatch._telemetry.observer import Observer
    from microbatch.durable._file.records import Verdict
    from microbatch.durable._file.store import Store
    from microbatch.durable._life.opening import OwnTask
    from microbatch.durable.errors import ItemFailed

    from .callers import Callers

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds before the next attempt while the file cannot be used.
TROUBLE_PAUSE = 0.25

#: Seconds for which closing waits for effects that it cancelled: as long as they may take.
CLOSE_GRACE = 5.0


class Done(NamedTuple):
    """Items that succeeded: lists with an entry for each.

    Attributes:
        ids: The items' ids.
        results: Their encoded results; None for None.
        values: Their results as they read back.
        items: The items themselves, for the user's effects.
        attempts: Which attempt it was.
    """

    ids: list[int]
    results: list[bytes | None]
    values: list[Any]
    items: list[Any]
    attempts: list[int]


class Failure(NamedTuple):
    """An item that did not succeed, with what its caller is told.

    Attributes:
        verdict: What is recorded.
        attempt: Which attempt it was.
        error: What it failed with; None if no handler saw it.
    """

    verdict: Verdict
    attempt: int
    error: Exception | None

    def told(self) -> ItemFailed:
        """Return what is raised in a caller: the same as after a restart, with the cause that is here."""
        failed = decode_error(self.verdict.error, self.verdict.id, self.attempt)
        return caused(failed, self.error)


class Outcomes:
    """What became of items of one claim and is not on the disk yet."""

    __slots__ = ("claim", "done", "failures", "instead_of")

    def __init__(self, claim: int, instead_of: Outcomes | None = None) -> None:
        self.claim = claim
        self.instead_of = instead_of  # of these, which the file refused
        self.done = Done([], [], [], [], [])
        self.failures: list[Failure] = []

    def __len__(self) -> int:
        return len(self.done.ids) + len(self.failures)

    def split(self) -> Outcomes:
        """Take out those that succeeded, as outcomes of their own."""
        good = Outcomes(self.claim)
        good.done, self.done = self.done, good.done
        return good

    def singles(self) -> Iterator[Outcomes]:
        """Return each of them as outcomes of its own."""
        if len(self) == 1:
            yield self
            return
        done = self.done
        for number, result, value, item, attempt in zip(*done, strict=True):
            single = Outcomes(self.claim)
            single.done = Done([number], [result], [value], [item], [attempt])
            yield single
        for failure in self.failures:
            single = Outcomes(self.claim)
            single.failures.append(failure)
            yield single

    def refused(self, error: Exception) -> Outcomes:
        """Return what becomes of items whose outcomes cannot be stored."""
        dead = Outcomes(self.claim, self)
        attempts = [
            *zip(self.done.ids, self.done.attempts, strict=True),
            *((failure.verdict.id, failure.attempt) for failure in self.failures),
        ]
        for number, attempt in attempts:
            dead.failures.append(Failure(death(number, error), attempt, error))
        return dead

    def settlement(self) -> Settlement:
        """Return them as the file takes them."""
        ids, results = self.done.ids, self.done.results
        if any(a > b for a, b in itertools.pairwise(ids)):  # priorities changed their order
            pairs = sorted(zip(ids, results, strict=True), key=lambda pair: pair[0])
            ids, results = [i for i, _ in pairs], [r for _, r in pairs]
        return Settlement(self.claim, ids, results, [failure.verdict for failure in self.failures])


class Settling:
    """Brings outcomes to the disk, and then to those who wait.

    Args:
        name: The queue's name, for logs.
        path: Its file, for errors.
        loop: The event loop.
        store: Where to.
        callers: Who waits for results.
        retry: What becomes of items whose ``on_settle`` failed.
        on_settle: The user's effects.
        observer: Counts what became of items.
        look_up: Called with items whose outcome was dropped: somebody else settles them.

    Attributes:
        unsettled: How many items have an outcome that is not on the disk yet.
        on_settled: Called when outcomes have reached the disk.
        on_flushed: Called when outcomes have been handed to the store.
        gathering: Whether there are outcomes that have not been.
    """

    def __init__(
        self,
        *,
        name: str,
        path: Path,
        loop: Loop,
        store: Store,
        callers: Callers,
        retry: Retry | None,
        on_settle: Callable[[aiosqlite.Connection, list[Any], list[Any]], Awaitable[None]] | None,
        observer: Observer | None,
        look_up: Callable[[Sequence[int]], object],
        spawn: Callable[[Any, str], OwnTask],
    ) -> None:
        self._name = name
        self._path = path
        self._loop = loop
        self._store = store
        self._callers = callers
        self._retry = retry
        self._on_settle = on_settle
        self._observer = observer
        self._look_up = look_up
        self._spawn = spawn
        self._open: dict[int, Outcomes] = {}
        self._left: dict[int, int] = {}
        self._effects: list[Outcomes] = []
        self._affecting: list[Outcomes] = []
        self._effecting = False
        self._task: OwnTask | None = None
        self.gathering = False
        self._trouble = False
        self._given_up = False
        self._closed = False
        self._rests_until = 0.0
        self._finished: list[int] = []
        self._quiet: Any = None
        self.unsettled = 0
        self.on_settled: Callable[[], None] = lambda: None
        self.on_flushed: Callable[[], None] = lambda: None

    @property
    def exposed(self) -> bool:
        """Tell whether the user's effects keep an outcome from the disk whose item was alone in its claim.

        To whoever finds this process dead, that item is what it died of.
        """
        pending = itertools.chain(self._affecting, self._effects)
        return any(self._left.get(one.claim) == 1 for one in pending)

    # In

    def begin(self, claim: int, items: int) -> None:
        """Note how many items a claim has."""
        self._left[claim] = items

    def done(self, claim: int, done: Done) -> None:
        """Take items that succeeded."""
        if not done.ids:
            return
        mine = self._outcomes(claim, len(done.ids)).done
        mine.ids.extend(done.ids)
        mine.results.extend(done.results)
        mine.values.extend(done.values)
        mine.items.extend(done.items)
        mine.attempts.extend(done.attempts)

    def failed(self, claim: int, failure: Failure) -> None:
        """Take an item that did not succeed."""
        self._outcomes(claim, 1).failures.append(failure)

    def _outcomes(self, claim: int, more: int) -> Outcomes:
        self.unsettled += more
        if not self.gathering:
            self.gathering = True
            assert self._loop.native is not None  # noqa: S101 - asyncio
            self._loop.native.call_soon(self._flush)
        outcomes = self._open.get(claim)
        if outcomes is None:
            outcomes = self._open[claim] = Outcomes(claim)
        return outcomes

    # Out

    def _flush(self) -> None:
        """Hand over what has come together in this turn of the loop."""
        self.gathering = False
        opened, self._open = self._open, {}
        outcomes = list(opened.values())
        if self._on_settle is not None:
            self._affect([one.split() for one in outcomes if one.done.ids])
            outcomes = [one for one in outcomes if one.failures]
        if outcomes:
            self._post(outcomes)
        self.on_flushed()

    def _post(self, outcomes: list[Outcomes]) -> None:
        finished, self._finished = self._finished, []

        def failed(error: Exception) -> None:
            self._finished += finished
            self._again(outcomes, error, self._post)

        def refused(error: Exception) -> None:
            self._finished += finished
            self._post_apart(outcomes, error)

        self._store.settle(
            [one.settlement() for one in outcomes],
            finished,
            lambda settled: self._settled(outcomes, settled),
            failed,
            refused,
        )

    def _post_apart(self, outcomes: list[Outcomes], error: Exception) -> None:
        """Find out which outcome it is that cannot be stored; the others must not wait for it."""
        alone = [single for one in outcomes for single in one.singles()]
        if len(alone) > 1:
            for single in alone:
                self._post([single])
        elif (original := alone[0].instead_of) is not None:
            self._again(
                [original], error, self._post
            )  # it takes not even the reason: later, perhaps
        else:
            cause = error.__cause__
            self._post([alone[0].refused(cause if isinstance(cause, Exception) else error)])

    def _settled(self, outcomes: list[Outcomes], settled: set[int]) -> None:
        """Tell those who wait that outcomes are on the disk."""
        self._trouble = False
        callers, dropped = self._callers, []
        for one in outcomes:
            self._count_off(one)
            if settled.issuperset(one.done.ids):
                callers.succeed_all(one.done.ids, one.done.values)
            else:
                for number, value in zip(one.done.ids, one.done.values, strict=True):
                    if number in settled:
                        callers.succeed(number, value)
                    else:
                        dropped.append(number)
            for failure in one.failures:
                decided = failure.verdict
                if decided.id not in settled:
                    dropped.append(decided.id)
                elif decided.state in (State.DEAD, State.SKIPPED):
                    callers.fail(decided.id, failure.told)
        self._tell(outcomes, settled)
        if dropped:
            logger.warning(
                "queue %r: %d outcomes dropped: others have the items now", self._name, len(dropped)
            )
            self._look_up(dropped)
        self.on_settled()
        self._check_quiet()

    def _count_off(self, one: Outcomes) -> None:
        self.unsettled -= len(one)
        left = self._left.pop(one.claim) - len(one)
        if left:
            self._left[one.claim] = left
        else:
            self._finished.append(one.claim)  # the writer is told with the next ones

    def _again(
        self,
        outcomes: list[Outcomes],
        error: Exception,
        act: Callable[[list[Outcomes]], None],
    ) -> None:
        """Tell those who wait that the file cannot be used, and try again later."""
        if not self._trouble:
            self._trouble = True
            logger.warning("queue %r: outcomes wait for the disk: %s", self._name, error)
        for one in outcomes:
            for number in one.done.ids + [failure.verdict.id for failure in one.failures]:
                self._callers.fail(number, lambda: self._unavailable(error))
        if self._given_up:
            for one in outcomes:
                self._count_off(one)
            self._check_quiet()
            return
        self._loop.call_at(self._loop.now() + TROUBLE_PAUSE, lambda: act(outcomes))

    def _unavailable(self, error: Exception) -> QueueUnavailable:
        return QueueUnavailable(str(self._path), f"the result could not be stored: {error}")

    def _tell(self, outcomes: list[Outcomes], settled: set[int]) -> None:
        """Count what became of items, now that it is on the disk.

        Not when their batch ends: there it is open still whether a failed one goes again, and one that
        was cut short goes back.
        """
        observer = self._observer
        if observer is None or not observer.measuring:
            return
        succeeded = skipped = 0
        failed: dict[Kind, int] | None = None
        retried: dict[Kind, int] | None = None
        for one in outcomes:
            succeeded += sum(number in settled for number in one.done.ids)
            for decided, _, error in one.failures:
                if error is None or decided.id not in settled:
                    continue
                if decided.state == State.DEAD:
                    failed = counted(failed, error)
                elif decided.state == State.SCHEDULED:
                    retried = counted(retried, error)
                else:
                    skipped += decided.state == State.SKIPPED
        observer.settled(succeeded, skipped, failed, retried)

    # The user's effects

    def _affect(self, outcomes: list[Outcomes]) -> None:
        """Let the user's effects happen, group by group, in a task of our own."""
        self._effects += outcomes
        if self._loop.now() < self._rests_until:
            self._leave()
        elif self._effects and not self._effecting and not self._closed:
            self._effecting = True
            self._task = self._spawn(self._run_effects(), "effects")
            self._task.on_end = self._effects_ended

    def _leave(self) -> None:
        """Leave outcomes alone: as claims of which nothing is in hand here, their items go back."""
        outcomes, self._effects = self._effects, []
        for one in outcomes:
            self._count_off(one)
        self._check_quiet()

    async def _run_effects(self) -> None:
        while self._effects:
            self._affecting, self._effects = self._effects, []
            await self._settle_with_effects(self._affecting)
            self._affecting = []

    def _effects_ended(self) -> None:
        """Go on if something came meanwhile, or somebody cancelled the task before its first step."""
        self._effecting = False
        self._affecting = []
        self._affect([])

    async def _settle_with_effects(self, group: list[Outcomes]) -> None:
        items = {
            number: (item, value)
            for one in group
            for number, value, item in zip(
                one.done.ids, one.done.values, one.done.items, strict=True
            )
        }

        raised: BaseException | None = None

        async def inside(connection: aiosqlite.Connection, settled: set[int]) -> None:
            nonlocal raised
            mine = [pair for number, pair in items.items() if number in settled]
            if mine:
                assert self._on_settle is not None  # noqa: S101
                try:
                    await self._on_settle(connection, [i for i, _ in mine], [v for _, v in mine])
                except BaseException as error:
                    raised = error
                    raise

        finished, self._finished = self._finished, []
        try:
            settlements = [one.settlement() for one in group]
            settled = await self._store.settle_around(settlements, finished, inside)
        except QueueUnavailable as error:
            self._finished += finished
            if (
                error is raised
            ):  # some other queue's, say: to this one it is an error like any other
                self._fail(group, error)
            else:
                self._again(group, error, self._affect)
        except Exception as error:  # noqa: BLE001 - the user's function: its items fail, nothing is stored
            self._finished += finished
            self._fail(group, error)
        except anyio.get_cancelled_exc_class() as error:
            assert self._task is not None  # noqa: S101 - it runs this
            self._finished += finished
            if self._loop.was_cancelled(self._task.task):
                if not self._closed:  # by somebody else: all tasks at the end of `asyncio.run`, say
                    self._fail(group, BatcherClosed(self._name, started=True))
                raise
            # Nobody cancelled this: it comes from something that the user's function waited for.
            self._crash(group, error)
        except (
            SystemExit,
            KeyboardInterrupt,
        ) as error:  # the loop ends by it, and nothing may stop that
            self._finished += finished
            self._rests_until = self._loop.now() + FATAL_PAUSE
            self._crash(group, error)
            raise
        else:
            self._settled(group, settled)

    def _crash(self, group: list[Outcomes], error: BaseException) -> None:
        crashed = HandlerCrashed(self._name, type(error).__name__)
        crashed.__cause__ = error
        self._fail(group, crashed)

    def _fail(self, group: list[Outcomes], error: Exception) -> None:
        self._post([self._without_effects(one, error) for one in group])

    def _without_effects(self, one: Outcomes, error: Exception) -> Outcomes:
        """Return what becomes of items whose effects failed."""
        failed = Outcomes(one.claim)
        for number, attempt in zip(one.done.ids, one.done.attempts, strict=True):
            decided = verdict(number, attempt, error, self._retry)
            failed.failures.append(Failure(decided, attempt, error))
        return failed

    # Closing

    async def drained(self) -> None:
        """Wait until everything is on the disk."""
        while self.unsettled:
            self._quiet = self._loop.create_waiter()
            await self._quiet

    def give_up(self) -> None:
        """From now on do not try again what cannot be written."""
        self._given_up = True

    async def close(self) -> None:
        """Begin no effects any more, and end those under way: what they keep from the disk goes back."""
        self._closed = True
        task = self._task
        if task is not None and not task.ended.is_set():
            task.task.cancel()
            with anyio.move_on_after(CLOSE_GRACE):
                await task.ended.wait()

    def _check_quiet(self) -> None:
        if not self.unsettled and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)
