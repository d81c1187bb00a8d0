"""Who keeps the write-ahead log from being used anew: processes that read an older state of the file.

It stands in the log's index (``-shm``), whose form SQLite documents ("WAL-mode File Format", 2.3), and in the
system's list of locks.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

_LOCKS = Path("/proc/locks")

#: The number of frames in the log; where five readers' marks begin; and the byte that the first of them locks.
_FRAMES_AT, _MARKS_AT, _LOCKS_AT, _MARKS = 16, 100, 123, 5

#: A mark that nobody uses.
_UNUSED = 0xFFFFFFFF


class LogLook(NamedTuple):
    """The log at one moment.

    Attributes:
        frames: How many pages stand in it.
        copied: How many of them stand in the file too.
        readers: The processes that read an older state, as far as that can be told here.
    """

    frames: int
    copied: int
    readers: list[int]


def look_at_log(index: Path) -> LogLook | None:
    """Return what a log's index says; None where there is none that can be read.

    Args:
        index: The file ``-shm``.
    """
    try:
        head = index.read_bytes()[:136]
        number = index.stat().st_ino
    except OSError:
        return None
    if len(head) < 136:
        return None
    (frames,) = struct.unpack_from("=I", head, _FRAMES_AT)
    (copied,) = struct.unpack_from("=I", head, _MARKS_AT - 4)
    marks = struct.unpack_from(f"={_MARKS}I", head, _MARKS_AT)
    old = {
        _LOCKS_AT + place
        for place, mark in enumerate(marks)
        if place and mark != _UNUSED and mark < frames
    }
    return LogLook(frames, copied, sorted(_holders(number, old)))


def _holders(number: int, wanted: set[int]) -> set[int]:
    """Return the processes that hold a lock on one of some bytes of the file with this number."""
    try:
        lines = _LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        # 1: POSIX  ADVISORY  READ  1234 fe:01:5678 124 124; what waits has an arrow behind its number
        parts = line.split()
        if len(parts) != 8 or parts[1] != "POSIX" or not parts[7].isdigit():
            continue
        if parts[5].rpartition(":")[2] == str(number):
            held = range(int(parts[6]), int(parts[7]) + 1)
            if any(byte in held for byte in wanted):
                found.add(int(parts[4]))
    return found
