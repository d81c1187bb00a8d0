"""Which process is which: a number alone says nothing, for numbers are given again and again."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

_PROC = "/proc"


class _Here(NamedTuple):
    """Since when this machine runs, and among which processes this one counts."""

    boot: str
    namespace: str


class _Stat(NamedTuple):
    state: str
    started: str


def birth_of(pid: int) -> str | None:
    """Return what tells a process from every other one with its number.

    That is the boot of the machine, the pid namespace (containers give the same numbers), and the time of its
    start. None where the system does not tell, or if there is no such process.
    """
    here = _here(os.getpid())
    stat = _stat(pid)
    if here is None or stat is None:
        return None
    return "/".join((*here, stat.started))


@functools.lru_cache(maxsize=1)
def own_birth(pid: int) -> str | None:
    """Return the same for this process, whose number is asked for so that a fork asks anew."""
    return birth_of(pid)


def is_running(pid: int, born: str | None) -> bool | None:
    """Return whether a process runs; None if that cannot be told from here.

    Args:
        pid: Its number, as it saw it itself.
        born: What `birth_of` told it of itself.
    """
    if sys.platform == "win32":  # pragma: no cover - not run on this platform
        return None
    if sys.platform != "linux":  # pragma: no cover - not run on this platform
        return _answers(pid)  # there numbers are all there is, and they are the same for everybody
    here = _here(os.getpid())
    parts = (born or "").split("/")
    if here is None or len(parts) != 3:
        return None
    boot, namespace, started = parts
    if boot != here.boot:
        return False
    return _runs_here(pid, started) if namespace == here.namespace else None


def _runs_here(pid: int, started: str) -> bool:
    stat = _stat(pid)
    if stat is None:
        return _answers(pid)  # the system may show a user no process but his own
    # What is dead and not waited for yet has let go of its locks long since.
    return stat.state not in ("Z", "X") and stat.started == started


def is_stopped(pid: int, born: str | None) -> bool:
    """Tell whether a process that runs is stopped, as by SIGSTOP; False where that cannot be told."""
    if not is_running(pid, born) or birth_of(pid) != born:
        return False
    stat = _stat(pid)
    return stat is not None and stat.state in ("T", "t")


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, as somebody else
    return True


@functools.lru_cache(maxsize=1)
def _here(pid: int) -> _Here | None:
    try:
        if (
            int(Path(_PROC, "self").readlink().name) != pid
        ):  # it shows the processes of another namespace
            return None
        boot = Path(_PROC, "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return _Here(boot, str(Path(_PROC, "self/ns/pid").readlink()))
    except (OSError, ValueError):
        return None


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(_PROC, str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in brackets may hold anything, blanks and brackets too: fields count from the last bracket.
    fields = text.rpartition(")")[2].split()
    return _Stat(fields[0], fields[19])
