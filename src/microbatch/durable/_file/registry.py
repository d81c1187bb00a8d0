"""Which writers this process has: one for each file that is open."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from .place import create_and_check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .client import Client
    from .port import Port
    from .writer import Writer

_writers: dict[tuple[int, int], Writer] = {}
_mutex = threading.Lock()


def _forget_writers() -> None:
    # The threads are not there in a forked child, and what they had open is not to be touched.
    global _mutex  # noqa: PLW0603
    _mutex = threading.Lock()
    _writers.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_forget_writers)


def enter(path: Path, make: Callable[[Path], Writer], client: Client) -> Writer:
    """Return the writer of a file, which is created if there is none; whoever gets it calls `leave`.

    Args:
        path: The file, resolved.
        make: Makes a writer.
        client: Who will use it.

    Raises:
        QueueUnavailable: If there can be no file here.
    """
    with _mutex:
        place = create_and_check(path, allowed=True)
        writer = _find(place)
        if writer is None:
            writer = _writers[place] = make(path)
        writer.users.add(client)
        return writer


def _find(place: tuple[int, int]) -> Writer | None:
    """Return the writer of what is this file now: a writer follows to one that is put in its file's place."""
    for known, writer in list(_writers.items()):
        now = writer.place or known
        if now != known and _writers[known] is writer:
            del _writers[known]
            _writers.setdefault(now, writer)
    return _writers.get(place)


def leave(
    writer: Writer, client: Client, goodbye: tuple[Port, Callable[[Any], object]] | None = None
) -> bool:
    """Let a client do without its writer; the last one to leave ends it, which is told.

    ``goodbye`` is then called in its event loop once nothing is open any more.
    """
    with _mutex:
        if client not in writer.users:
            return False
        writer.users.remove(client)
        if writer.users:
            return False
        for place in [place for place, one in _writers.items() if one is writer]:
            del _writers[place]
        writer.end(goodbye)
        return True
