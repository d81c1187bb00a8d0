"""What most commands begin with: a queue's file, and which of its queues is meant."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from microbatch.durable import DurableQueue
from microbatch.durable.inspection import Inspection

from ._command import WRONG_USE, CommandEnd
from ._looping import run_in_loop
from ._wording import safe_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from ._console import Console


def inspect(args: argparse.Namespace, console: Console) -> Inspection:
    """Return the file, open for reading.

    Raises:
        CommandEnd: If the path can be no file's.
        QueueUnavailable: If it cannot be read.
    """
    try:
        return Inspection(args.file, console.note)
    except ValueError as error:
        raise CommandEnd(str(error), WRONG_USE) from error


def chosen_queue(inspection: Inspection, name: str | None) -> str:
    """Return the name of the queue that is meant.

    Raises:
        CommandEnd: If it is none of the file's, or none was named and there are several, or none.
    """
    names = list(inspection.queues())
    known = ", ".join(safe_text(one) for one in names) or "no queue yet"
    if name is not None and name not in names:
        message = f"there is no queue {name!r} in {inspection.path}: it has {known}"
        raise CommandEnd(message, WRONG_USE)
    if name is None and len(names) != 1:
        what = "has several queues: name one with --queue" if names else "has"
        raise CommandEnd(f"{inspection.path} {what} ({known})", WRONG_USE)
    return names[0] if name is None else name


def act(
    file: str,
    queue: str,
    call: Callable[[DurableQueue[Any, Any]], Awaitable[Any]],
    **settings: Any,
) -> Any:
    """Open a queue that is there, do something with it, and close it.

    Raises:
        QueueUnavailable: If the file cannot be used.
    """
    # What the queue warns of, an old SQLite say, is for its workers' logs and for doctor.
    logging.getLogger("microbatch.durable").addHandler(_silent)

    async def once_open() -> Any:
        async with DurableQueue(
            file, item_type=Any, queue=queue, telemetry=False, **settings
        ) as opened:
            return await call(opened)

    return run_in_loop(once_open)


_silent = logging.NullHandler()
