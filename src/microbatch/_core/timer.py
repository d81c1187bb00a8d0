"""One timer for all that may become due: it rings for the first, and is set again for the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from microbatch._loops.protocol import Handle, Loop


class Timer:
    """Rings once, at the earliest time that it was set to.

    Args:
        ring: Called then with the time, by the loop's clock or a tick ahead of it: loops ring early.
    """

    __slots__ = ("_at", "_handle", "_loop", "_now", "_ring")

    def __init__(self, ring: Callable[[float], None]) -> None:
        self._ring = ring
        self._loop: Loop
        self._now: Callable[[], float]
        self.forget()

    def forget(self) -> None:
        """Drop what belonged to an event loop that is gone."""
        self._handle: Handle | None = None
        self._at = 0.0

    def bind(self, loop: Loop) -> None:
        """Serve an event loop."""
        self._loop = loop
        self._now = loop.now

    def at_latest(self, when: float) -> None:
        """Ring then, if not before."""
        if self._handle is None or when < self._at:
            self.set(when)

    def set(self, when: float) -> None:
        """Ring then, and not before."""
        self.stop()
        self._at = when
        self._handle = self._loop.call_at(when, self._due)

    def stop(self) -> None:
        """Let nothing become due by itself."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        self._ring(max(self._now(), self._at))
