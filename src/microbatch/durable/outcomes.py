"""What an item's outcome means for the disk. Decides without acting."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from microbatch._pure.exceptions import BatcherClosed, HandlerCrashed, HandlerStuck, Skipped

from .codec import decode_error, encode_error
from .records import Settlement, State
from .waiters import caused

if TYPE_CHECKING:
    import asyncio

    from microbatch._pure.retry import Retry

    from .errors import ItemFailed
    from .records import Claimed

logger: logging.Logger = logging.getLogger("microbatch.durable")

#: How often an item may be in a process's hands when that process dies, if no `retry` says otherwise. The
#: first time may be anybody's fault, from the second on the item is handled alone.
CRASHES_MAX = 3

#: Seconds before an item is tried again that was refused because too many handlers are stuck.
STUCK_PAUSE = 1.0


class Entry:
    """An item in this consumer's hands."""

    __slots__ = (
        "attempts",
        "claim",
        "id",
        "item",
        "job",
        "key",
        "pending",
        "started",
        "suspect",
        "trace",
    )

    def __init__(self, claimed: Claimed, item: Any) -> None:
        self.id: int = claimed.id
        self.claim: int = claimed.claim
        self.item: Any = item
        self.attempts: int = claimed.attempts
        self.suspect: bool = claimed.suspect
        self.key: str | None = claimed.key
        self.job: int | None = claimed.job
        self.trace: bytes | None = claimed.trace
        self.started: bool = False
        self.pending: asyncio.Future[Any] | None = None


class Outcome:
    """What is to be settled about an item, and what those who wait for it will get."""

    __slots__ = ("entry", "error", "settlement", "value")

    def __init__(
        self,
        entry: Entry,
        settlement: Settlement,
        value: Any = None,
        error: Exception | None = None,
    ) -> None:
        self.entry: Entry = entry
        self.settlement: Settlement = settlement
        self.value: Any = value
        self.error: Exception | None = error

    def failure(self) -> ItemFailed:
        """Return what is raised in a caller: the same as after a restart, with the cause that is here."""
        failed = decode_error(self.settlement.error, self.entry.id, self.entry.attempts)
        return caused(failed, self.error)


def success(entry: Entry, payload: bytes | None, value: Any) -> Outcome:
    """Return the outcome of an item whose handler gave a result."""
    return Outcome(entry, Settlement(entry.id, entry.claim, State.DONE, result=payload), value)


def given_back(entry: Entry) -> Outcome:
    """Return the outcome of an item that no handler has seen."""
    return Outcome(entry, Settlement(entry.id, entry.claim, State.READY, uncounted=True))


def death(entry: Entry, error: Exception, record: bytes | None = None) -> Outcome:
    """Return the outcome of an item that is a dead letter; ``record`` is what to store if not the error."""
    stored = encode_error(error) if record is None else record
    return Outcome(entry, Settlement(entry.id, entry.claim, State.DEAD, error=stored), error=error)


def failure(entry: Entry, error: Exception, retry: Retry | None) -> Outcome:
    """Return the outcome of an item whose handler call failed, or was cut short or refused."""
    number, claim = entry.id, entry.claim
    if isinstance(error, BatcherClosed):
        settlement = Settlement(number, claim, State.READY, uncounted=not error.started)
        return Outcome(entry, settlement, error=error)
    stored = encode_error(error)
    if isinstance(error, HandlerStuck):
        settlement = Settlement(
            number, claim, State.SCHEDULED, error=stored, delay=STUCK_PAUSE, uncounted=True
        )
    elif isinstance(error, Skipped):
        settlement = Settlement(number, claim, State.DONE, error=stored)
    elif (delay := _delay(entry, error, retry)) is None:
        return death(entry, error, stored)
    else:
        settlement = Settlement(number, claim, State.SCHEDULED, error=stored, delay=delay)
    return Outcome(entry, settlement, error=error)


def attempts_max(retry: Retry | None) -> int:
    """Return how many handler calls an item may be part of if its processes die."""
    return CRASHES_MAX if retry is None else retry.attempts


def _delay(entry: Entry, error: Exception, retry: Retry | None) -> float | None:
    """Return the seconds until the next attempt; None if there is none."""
    if isinstance(error, HandlerCrashed) and entry.attempts < attempts_max(retry):
        return 0.0  # a cancellation at the end of asyncio.run, say: as if the process had died
    if retry is None:
        return None
    try:
        return retry.delay(error, entry.attempts)
    except Exception:
        logger.exception("retry's predicate failed: item %d is not retried", entry.id)
        return None
