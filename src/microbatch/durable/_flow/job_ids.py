"""The ids of jobs: UUIDs of version 7, which nobody can guess and which grow."""

from __future__ import annotations

import secrets
import threading
import time
import uuid

_COUNTER_BITS = 12


class JobIds:
    """Draws ids that grow strictly within the process, and by the clock between processes."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._last = 0  # milliseconds and a counter below them

    def draw(self) -> str:
        """Return the next one."""
        now = time.time_ns() // 1_000_000
        # The counter starts low, so that it seldom reaches into the milliseconds.
        fresh = now << _COUNTER_BITS | secrets.randbits(_COUNTER_BITS - 1)
        with self._mutex:
            self._last = last = max(fresh, self._last + 1)
        return format_id(last, secrets.randbits(62))


def format_id(stamp: int, random_bits: int) -> str:
    """Return the UUID with a stamp of 60 bits, milliseconds first, and 62 random ones (RFC 9562)."""
    milliseconds, counter = divmod(stamp, 1 << _COUNTER_BITS)
    number = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | counter << 64 | 0b10 << 62
    return str(uuid.UUID(int=number | random_bits))


draw_job_id = JobIds().draw
