"""A consumer: asks for items while it has room, hands them to the handler, and settles what becomes of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from microbatch.durable._file.client import Want

if TYPE_CHECKING:
    from microbatch._loops.protocol import Loop
    from microbatch.durable._file.records import Claim
    from microbatch.durable._file.store import Store

    from .hands import Hands
    from .settling import Settling

#: Seconds for the last outcomes to reach the disk, once closing has no more time for handlers.
SETTLE_GRACE = 5.0

#: Seconds between two looks at whether stuck handlers have come back.
STUCK_PAUSE = 1.0


class Consumer:
    """What works through a queue in this process.

    Args:
        loop: The event loop.
        store: Where items come from, and outcomes go.
        hands: Calls the handler.
        settling: Brings the outcomes to the disk.
    """

    def __init__(self, loop: Loop, store: Store, hands: Hands, settling: Settling) -> None:
        self.hands = hands
        self.settling = settling
        self._loop = loop
        self._store = store
        self._claims = itertools.count(1)
        self._wanted: Want | None = None
        self._taking = False
        self._asked = False  # whether claims may come
        self._looking = False
        hands.settling = settling
        hands.bind(loop)
        hands.on_room = self._ask_behind_outcomes
        settling.on_settled = settling.on_flushed = self._ask

    def start(self) -> None:
        """Begin to ask for items."""
        self._taking = self._asked = True
        self._ask()

    def _ask_behind_outcomes(self) -> None:
        """Ask for more once the outcomes are on their way, so that both share a transaction.

        Asked before, the next items might be claimed while the last ones still count as in hand: a process that
        dies of those would be charged to these.
        """
        if not self.settling.gathering:
            self._ask()

    def _ask(self) -> None:
        """Say how much room there is, if that is more than was said last."""
        if not self._taking or self.settling.exposed:
            return
        slots, size = self.hands.room()
        before = self._wanted
        if not slots:
            if before is not None:  # what came for it now would only be refused, and lose its place
                self._wanted = None
                self._store.ask_for(None, before)
            if self.hands.engine.is_stuck() and not self._looking:
                self._looking = True
                self._loop.call_at(self._loop.now() + STUCK_PAUSE, self._look_at_stuck)
            return
        enough = self.hands.size()
        if before is not None and before[1:] == (slots, size, enough):
            return
        # Each slot has a claim number of its own, which is never used again.
        want = Want(next(self._claims), slots, size, enough)
        for _ in range(slots - 1):
            next(self._claims)
        self._wanted = want
        self._store.ask_for(want, before)

    def _look_at_stuck(self) -> None:
        self._looking = False
        self._ask()

    def claimed(self, claims: list[tuple[Claim, list[Any] | None]]) -> None:
        """Take what was asked for."""
        self._wanted = None
        for claim, values in claims:
            self.hands.take_in(claim, values)
        if not self._taking:
            self.hands.give_back_unstarted()
        self._ask()

    # Closing

    async def drain(self) -> None:
        """Take nothing more, and finish what a handler has."""
        await self._stop()
        await self.hands.engine.aclose(None)
        await self.settling.drained()

    async def shut(self) -> None:
        """End at once: handlers are cancelled, outcomes have a bounded time."""
        try:
            with anyio.move_on_after(SETTLE_GRACE):
                await self._stop()
        finally:
            try:
                await self.hands.engine.aclose(0)
            finally:
                await self._settle()

    async def _settle(self) -> None:
        try:
            await anyio.lowlevel.checkpoint()  # the outcomes' callbacks run
            with anyio.move_on_after(SETTLE_GRACE) as grace:
                await self.settling.drained()
            if grace.cancelled_caught:
                self.settling.give_up()
                with anyio.move_on_after(1.0):
                    await self.settling.drained()
        finally:
            self.settling.give_up()
            await self.settling.close()

    async def _stop(self) -> None:
        self._taking = False
        if self._asked:  # also once more if the wait for that was cut short
            await self._store.ask_for_nothing()
            self._asked = False
        self.hands.give_back_unstarted()
