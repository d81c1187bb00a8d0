"""How long failed items really wait: in tests, as long as `no_pauses` is entered, not at all."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Blocks:
    """How many blocks without pauses are under way.

    One count for the process, no context variable: batches run in contexts of their own, and a test's
    application may run in another thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self, number: int) -> None:
        with self._lock:
            self.count += number


_blocks = _Blocks()


@contextlib.contextmanager
def no_pauses() -> Iterator[None]:
    """Within, in all threads, whatever waits before it goes again does not wait."""
    _blocks.add(1)
    try:
        yield
    finally:
        _blocks.add(-1)


def pause_of(seconds: float) -> float:
    """Return how long to wait where so many seconds are due."""
    return 0.0 if _blocks.count else seconds
