"""The log, and how often it is written to."""

from __future__ import annotations

import logging
from typing import Any, Final

logger: logging.Logger = logging.getLogger("microbatch")


_nowhere = logging.NullHandler()


logger.addHandler(_nowhere)  # a library prints nothing of its own accord


def write(level: int, message: str, *args: Any, exc_info: Any = None) -> None:
    """Log a line; what a program's handler or filter raises at it is shown as `logging` shows such errors.

    Lines are written where items get their outcomes: nothing there may fail for the sake of a line.
    """
    try:
        logger.log(level, message, *args, exc_info=exc_info, stacklevel=2)
    except Exception:  # noqa: BLE001 - the program's own code
        record = logger.makeRecord(logger.name, level, __file__, 0, message, args, None)
        _nowhere.handleError(record)


#: Seconds between two records of a batcher's failed batches in the log; those between are counted.
LOG_INTERVAL: Final = 10.0
