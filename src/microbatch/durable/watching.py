"""Looking again and again for what other connections have committed."""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING

import anyio

from microbatch._loops.current import current_loop

from .errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microbatch._loops.protocol import Waiter

    from .counting import Counting

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: Seconds between two looks, or two attempts to settle, while the file cannot be used.
TROUBLE_PAUSE = 0.25


class Watch:
    """What a queue's own task does: look, pause, look again, whatever happens to the file.

    Args:
        name: The queue's name, for logs.
        look: Sees whether anything has changed.
        pause: Returns the seconds until the next look; None to wait until the alarm rings.
        counting: Counts, now and then, for whoever reads gauges.

    Attributes:
        seen: The version of the file that was looked at last; -1 to look at whatever there is.
    """

    def __init__(
        self,
        name: str,
        look: Callable[[], Awaitable[None]],
        pause: Callable[[], float | None],
        counting: Counting,
    ) -> None:
        self.seen: int = -1
        self._name = name
        self._look = look
        self._pause = pause
        self._counting = counting
        self._alarm: Waiter | None = None
        self._trouble = False

    def ring(self) -> None:
        """Look soon: there is a reason to that the task may not know yet."""
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    def look_anew(self) -> None:
        """Let the next look see everything, whether or not anybody has committed."""
        self.seen = -1

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._rest()
            try:
                await self._look()
                await self._counting.look()
            except QueueUnavailable as error:
                if not self._trouble:
                    self._trouble = True
                    logger.warning("%s; trying again", error)
                await anyio.sleep(TROUBLE_PAUSE)
            except sqlite3.Error:
                logger.warning(
                    "queue %r: a statement failed; trying again", self._name, exc_info=True
                )
                await anyio.sleep(TROUBLE_PAUSE)
            else:
                if self._trouble:
                    self._trouble = False
                    logger.warning("queue %r: its file can be used again", self._name)

    async def _rest(self) -> None:
        # No scope with a deadline: before 4.16 anyio's may take the cancellation that ends this task for
        # its own, if both come in the same turn of the event loop, and closing would wait for ever.
        loop = current_loop()
        self._alarm = loop.create_waiter()
        pauses = (self._pause(), self._counting.due_in())
        pause = min((p for p in pauses if p is not None), default=None)
        timer = None
        if pause is not None:
            timer = loop.call_at(anyio.current_time() + pause, self.ring)
        try:
            await self._alarm
        finally:
            if timer is not None:
                timer.cancel()
