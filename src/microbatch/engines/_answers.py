"""What an outcome means for the message that its item came in: decided, not done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from microbatch._pure.exceptions import BatcherClosed, BatcherFull, Skipped
from microbatch._pure.retry import told_delay

if TYPE_CHECKING:
    from microbatch._pure.retry import Retry

#: Seconds before a message comes again that found its batcher full: without a pause it would come back at
#: once and find it as full as before. The pause is a guess; a full batcher is one that is overrun.
FULL_PAUSE: Final = 1.0

#: The longest pause that an error may ask for, without a `Retry` that says so: its default.
LONGEST_PAUSE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of one message.

    Attributes:
        word: ``"ack"``, ``"nack"`` (it comes again) or ``"reject"`` (it does not).
        delay: Seconds before it comes again, where the broker can wait; None for its own pace.
        error: What the item failed with, if that is why.
    """

    word: Literal["ack", "nack", "reject"]
    delay: float | None = None
    error: Exception | None = None


ACK: Final = Answer("ack")


def handed_back(error: Exception) -> Answer | None:
    """Return what becomes of a message that no handler was to see; None if one was.

    It comes again, however often it came before: rejecting what a closing or full batcher refused loses it.
    """
    if isinstance(error, BatcherClosed):
        return Answer("nack", None, error)
    if isinstance(error, BatcherFull):
        return Answer("nack", FULL_PAUSE, error)
    return None


def needs_count(error: Exception | None) -> bool:
    """Tell whether it matters how often the message was delivered."""
    return error is not None and not isinstance(error, (Skipped, BatcherClosed, BatcherFull))


def answer_to(
    error: Exception | None,
    retry: Retry | None,
    deliveries: int | None,
    *,
    comes_again: bool = True,
) -> Answer:
    """Decide what becomes of a message.

    Args:
        error: What its item failed with; None if it has a value.
        retry: Which errors come again and how often; None leaves the number to the engine, and the rest to
            the error's own ``retryable``.
        deliveries: How often the message came, this time included; None if it came before and the broker
            does not say how often, which counts as often enough.
        comes_again: False where an error never sends a message again, since nobody would count.

    Raises:
        Exception: What the predicate of ``retry`` raises.
    """
    if error is None or isinstance(
        error, Skipped
    ):  # left out on purpose: there is nothing to repeat
        return ACK
    if (back := handed_back(error)) is not None:
        return back
    if retry is None:
        again = comes_again and getattr(error, "retryable", None) is True
        return Answer("nack" if again else "reject", told_delay(error, LONGEST_PAUSE), error)
    delay = None if deliveries is None else retry.delay(error, deliveries)
    return Answer("reject" if delay is None else "nack", delay, error)
