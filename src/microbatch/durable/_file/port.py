"""Where a thread's answers come home: one event loop, woken once for each transaction."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._loops.protocol import Loop

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: A function to call in the event loop, and what with.
Reply = tuple["Callable[[Any], object]", Any]


class Port:
    """An event loop, seen from another thread.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def has_ended(self) -> bool:
        """Tell whether the event loop is closed: nobody is there to be answered."""
        return self._loop.has_ended()

    def deliver(self, replies: list[Reply]) -> None:
        """Call functions in the event loop, in this order; nothing happens if it has ended."""
        try:
            self._loop.call_from_thread(lambda: _call_each(replies))
        except RuntimeError:
            if not self._loop.has_ended():
                raise


def _call_each(replies: list[Reply]) -> None:
    for function, argument in replies:
        try:
            function(argument)
        except Exception:
            # One answer's fault must not cost the others theirs.
            logger.exception("an answer of the queue's file could not be taken in")
