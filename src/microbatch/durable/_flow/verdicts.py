"""What an item's failure means for the disk. Decides without acting."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from microbatch._core.pausing import pause_of
from microbatch._pure.exceptions import (
    BatcherClosed,
    HandlerCrashed,
    HandlerStuck,
    HandlerTimeout,
    ItemError,
    Skipped,
)
from microbatch._pure.report import error_code
from microbatch.durable._file.codec import encode_error
from microbatch.durable._file.records import State, Verdict

if TYPE_CHECKING:
    from microbatch._pure.retry import Retry

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: How often an item may be tried if its process dies or its handler makes up a cancellation, and no `retry`
#: says otherwise.
CRASHES_MAX = 3

#: Seconds before an item is tried again whose handler ended the program: it must not do so again while that
#: closes this queue, which would cut the closing off.
FATAL_PAUSE = 1.0

#: Seconds before an item is tried again that was refused because too many handlers are stuck.
STUCK_PAUSE = 1.0


def verdict(number: int, attempt: int, error: Exception, retry: Retry | None) -> Verdict:
    """Return what is recorded about an item whose handler call failed, or was cut short or refused.

    Args:
        number: The item.
        attempt: Which attempt it was, from 1.
        error: What it failed with.
        retry: Who is tried again.
    """
    if isinstance(error, BatcherClosed):
        return Verdict(number, State.READY, counted=error.started)
    stored = encode_error(error, retryable=_is_retryable(number, error, retry))
    code = error_code(error)
    if isinstance(error, HandlerStuck):
        return Verdict(number, State.SCHEDULED, stored, STUCK_PAUSE, counted=False, code=code)
    if isinstance(error, Skipped):
        return Verdict(number, State.SKIPPED, stored, code=code)
    delay = _delay(number, attempt, error, retry)
    if delay is None:
        return Verdict(number, State.DEAD, stored, code=code)
    return Verdict(number, State.SCHEDULED, stored, delay, code=code)


def death(number: int, error: Exception) -> Verdict:
    """Return what is recorded about an item that is a dead letter at once."""
    return Verdict(number, State.DEAD, encode_error(error), code=error_code(error))


def given_up(number: int, error: Exception) -> Verdict:
    """Return what is recorded about an item that its backend refused too often: nothing is said against it."""
    stored = encode_error(error, retryable=True)
    return Verdict(number, State.DEAD, stored, code=error_code(error))


def unseen(number: int) -> Verdict:
    """Return what is recorded about an item that no handler has seen."""
    return Verdict(number, State.READY, counted=False)


def attempts_max(retry: Retry | None) -> int:
    """Return how many handler calls an item may be part of if its processes die."""
    return CRASHES_MAX if retry is None else retry.attempts


def _is_retryable(number: int, error: Exception, retry: Retry | None) -> bool:
    """Tell whether an item that failed may do better another time: not now, but when its job is retried."""
    if isinstance(error, HandlerTimeout | HandlerStuck):
        return True  # nothing is said against the item
    if isinstance(error, ItemError) and error.retryable is not None:
        return bool(error.retryable)
    if retry is None:
        return False
    try:
        return retry.wants(error)
    except Exception:
        logger.exception("retry's predicate failed: item %d counts as not retryable", number)
        return False


def _delay(number: int, attempt: int, error: Exception, retry: Retry | None) -> float | None:
    """Return the seconds until the next attempt; None if there is none."""
    if isinstance(error, HandlerCrashed) and attempt < attempts_max(retry):
        if isinstance(error.__cause__, (SystemExit, KeyboardInterrupt)):
            return FATAL_PAUSE
        return 0.0  # a cancellation at the end of asyncio.run, say: as if the process had died
    if retry is None:
        return None
    try:
        delay = retry.delay(error, attempt)
    except Exception:
        logger.exception("retry's predicate failed: item %d is not retried", number)
        return None
    return None if delay is None else pause_of(delay)
