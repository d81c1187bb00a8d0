"""Fifos to test with."""

from __future__ import annotations

from typing import Any

from support import Caller

from microbatch._core.fifo import Fifo


def filled(number: int, *, max_wait: float = 0.0, room: int = 100_000) -> Fifo:
    """A Fifo of batches of ten with so many items, one every hundredth of a second, from 100 on."""
    fifo = Fifo(10, max_wait)
    for item in range(number):
        if len(fifo.items) >= fifo.limit:
            fifo.open(room - fifo.count, 100 + item / 100)
        fifo.items.append(item)
        fifo.waiters.append(Caller())
    return fifo


def cut(fifo: Fifo, times: int = 1, now: float = 1_000.0) -> Any:
    for _ in range(times):
        run = fifo.cut(now)
        assert run is not None
    return run
