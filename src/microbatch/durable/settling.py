"""Outcomes on their way to the disk, with the user's own effects if there are any, and the next claim."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from microbatch._core.batcher import Batcher

from .errors import QueueUnavailable
from .outcomes import failure
from .records import Settlement, State
from .watching import TROUBLE_PAUSE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    import aiosqlite

    from microbatch._pure.retry import Retry

    from .counting import Counting
    from .file_store import Store
    from .hands import Hands
    from .outcomes import Outcome
    from .records import Claim
    from .waiters import Waiters
    from .watching import Watch

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Outcomes in one transaction at most: in effect all that there are, for they are bounded by what is claimed.
GROUP_MAX = 10_000


class Settling:
    """Settles outcomes in groups, tells those who wait, and claims anew.

    Args:
        name: The queue's name, for logs.
        path: Its file, for errors.
        store: Where to.
        hands: What the consumer holds.
        waiters: Who waits for results.
        watch: Looks for outcomes that others have settled.
        retry: What becomes of items whose ``on_settle`` failed.
        on_settle: The user's effects.
        counting: Counts what became of items.

    Attributes:
        ends: When to give up what does not reach the disk, by the event loop's clock; None for never.
    """

    def __init__(
        self,
        *,
        name: str,
        path: Path,
        store: Store,
        hands: Hands,
        waiters: Waiters,
        watch: Watch,
        retry: Retry | None,
        on_settle: Callable[[aiosqlite.Connection, list[Any], list[Any]], Awaitable[None]] | None,
        counting: Counting,
    ) -> None:
        self._name = name
        self._path = path
        self._store = store
        self._hands = hands
        self._waiters = waiters
        self._watch = watch
        self._retry = retry
        self._on_settle = on_settle
        self._counting = counting
        self._trouble = False
        self.ends: float | None = None
        self._groups: Batcher[Any, None] = Batcher(
            self._settle_group,
            max_batch_size=GROUP_MAX,
            max_pending=None,
            name=f"{name} settle",
            telemetry=False,
        )
        hands.submit = self._groups.submit_nowait

    async def aclose(self, drain_timeout: float) -> None:
        """Let what is under way reach the disk."""
        await self._groups.aclose(drain_timeout)

    async def _settle_group(self, acts: list[Outcome | None]) -> None:
        """Settle outcomes and claim, in one transaction if there is no ``on_settle``: a Batcher's handler.

        Goes on until it is done: an outcome that is not on the disk means that the item is handled again.
        """
        outcomes = [act for act in acts if act is not None]
        wants = len(outcomes) < len(acts)
        try:
            await self._until_done(outcomes, wants)
        finally:
            if wants:
                self._hands.claiming = False
        self._hands.claim_if_any()

    async def _until_done(self, outcomes: list[Outcome], wants: bool) -> None:
        while True:
            try:
                outcomes = await self._with_effects(outcomes)
                await self._settle_and_claim(outcomes, wants)
            except Exception as error:  # noqa: BLE001 - whatever it is, no outcome may be lost by it
                if not self._again(outcomes, error):
                    return
            else:
                return
            wants = False
            await anyio.sleep(TROUBLE_PAUSE)

    def _again(self, outcomes: list[Outcome], error: Exception) -> bool:
        """Tell those who wait that the file cannot be used; return whether to try again."""
        if not self._trouble:
            self._trouble = True
            logger.warning("queue %r: outcomes wait for the disk: %s", self._name, error)
        self._hands.more = True
        self._watch.ring()
        for outcome in outcomes:
            self._waiters.fail(
                outcome.entry.id,
                lambda: QueueUnavailable(
                    str(self._path), f"the result could not be stored: {error}"
                ),
            )
        if self.ends is not None and anyio.current_time() > self.ends:
            self._hands.unsettled -= len(outcomes)
            return False
        return bool(outcomes)

    async def _with_effects(self, outcomes: list[Outcome]) -> list[Outcome]:
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
            settled = await self._store.settle_around(self._hands.consumer, settlements, inside)
        except QueueUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the user's function: its items fail, nothing is stored
            return rest + [failure(outcome.entry, error, self._retry) for outcome in done]
        self._settled(done, settled)
        outcomes[:] = rest
        return rest

    async def _settle_and_claim(self, outcomes: list[Outcome], wants: bool) -> None:
        claim: Claim | None = self._hands.claim(len(outcomes)) if wants else None
        if not outcomes and claim is None:
            return
        try:
            settled, claimed = await self._store.settle_and_claim(
                self._hands.consumer, [outcome.settlement for outcome in outcomes], claim
            )
        finally:
            if claim is not None:
                self._hands.claim_ended(claim)
        self._trouble = False
        self._settled(outcomes, settled)
        outcomes.clear()  # whatever happens from here on, they are on the disk
        if claim is None:
            return
        if self._hands.taking:
            self._hands.take_in(claim, claimed)
        elif claimed:  # closed meanwhile: nobody is there to handle them
            back = [Settlement(row.id, row.claim, State.READY, uncounted=True) for row in claimed]
            await self._store.settle_and_claim(self._hands.consumer, back, None)

    def _settled(self, outcomes: Sequence[Outcome], settled: set[int]) -> None:
        """Tell those who wait that outcomes are on the disk."""
        hands = self._hands
        hands.unsettled -= len(outcomes)
        self._counting.settled(outcomes, settled)
        if len(settled) < len(outcomes):
            dropped = len(outcomes) - len(settled)
            logger.warning(
                "queue %r: %d outcomes dropped: others have the items now", self._name, dropped
            )
        for outcome in outcomes:
            number, state = outcome.entry.id, outcome.settlement.state
            hands.let_go(outcome.entry)
            if number not in settled:
                self._watch.look_anew()
            elif state == State.DONE and outcome.error is None:
                self._waiters.succeed(number, outcome.value)
            elif state in (State.DONE, State.DEAD):
                self._waiters.fail(number, outcome.failure)
            elif state == State.SCHEDULED:
                hands.due_in(outcome.settlement.delay)
            else:
                hands.more = True
        if not hands.held:
            hands.more = True  # suspects may be waiting for this
