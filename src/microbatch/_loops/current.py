"""Which event loop runs here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .on_asyncio import AsyncioLoop, running_loop
from .on_trio import TrioLoop

if TYPE_CHECKING:
    from .protocol import Loop


def current_loop() -> Loop:
    """Return the event loop that runs here.

    Raises:
        RuntimeError: If none does.
    """
    native = running_loop()
    trio = sys.modules.get("trio")
    if trio is not None and _in_trio(trio, native):
        return TrioLoop(native)
    if native is None:
        raise RuntimeError(
            "no event loop is running here: await submit() within asyncio or trio, "
            "or call submit_from_thread() in another thread"
        )
    return AsyncioLoop(native)


def _in_trio(trio: Any, native: object) -> bool:
    """Tell whether trio runs here; where it is the guest of an asyncio loop, only its tasks count."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        if native is not None:
            return False
    else:
        return True
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True
