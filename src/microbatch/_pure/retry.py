"""Which failed items go again, and when. Pure: no loop, no clock, no I/O."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import checks
from .exceptions import HandlerTimeout, ItemError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays that grow exponentially: ``initial * factor ** (attempt - 1)``, at most ``maximum``.

    Args:
        initial: Seconds before the second attempt, at least 0. The default of 1 s is gentle to a
            backend that is overloaded.
        factor: How much longer each next delay is, at least 1.
        maximum: Seconds that no delay exceeds, an error's own ``retry_after`` included.
        jitter: The share of a delay that is random, from 0 to 1. With 1, the default, a delay is drawn
            evenly from 0 to its full length ("full jitter", shown by M. Brooker, AWS Architecture Blog,
            2015, to spread the retries of many clients best); with 0 it is exact.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If it is not a number.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        checks.number("initial", self.initial, minimum=0)
        checks.number("factor", self.factor, minimum=1)
        checks.number("maximum", self.maximum, minimum=0)
        checks.number("jitter", self.jitter, minimum=0)
        if self.jitter > 1:
            raise ValueError(f"jitter must be at most 1, got {self.jitter}")

    def delay(self, attempt: int, chance: float = 0.0) -> float:
        """Return the seconds between the end of an attempt (counted from 1) and the next one.

        Args:
            attempt: How many attempts there were.
            chance: A random number from 0 (the full delay) to 1, which jitter scales.
        """
        try:
            full = min(self.initial * self.factor ** (attempt - 1), self.maximum)
        except OverflowError:
            full = self.maximum
        return full * (1.0 - self.jitter * chance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Send again only the failed items whose error is retryable.

    Args:
        on: Which errors are retryable: an exception class, a tuple of them, or a predicate. Required,
            because no default fits: drivers' transient errors share no base class. An ``ItemError``
            whose ``retryable`` is set decides for itself; ``HandlerTimeout`` is retried only if it is
            named here (a broader class such as ``TimeoutError`` does not count), since a timed-out
            handler may have done its work.
        attempts: Handler calls in all, the first included; at least 1.
        backoff: How long an item waits for its next attempt. A finite ``retry_after`` of the error
            takes its place, up to ``backoff.maximum``.
        holds: A handler that raises or returns ``RateLimited`` is told "not now": no attempt is counted,
            and ``on`` is not asked. The refused items go to the front of their partition's buffer (of the
            batcher's, without partitions). None of its batches begins until ``retry_after``, or the
            back-off's delay after so many refusals in a row, is over. Then one batch goes, and the others
            once it has come back without a refusal. After so many refused calls in a row, with no item of
            the partition succeeding in or between them, what they refuse fails with ``RateLimited``; at
            least 1, which fails it at once. Calls that were under way when the first one was refused do
            not count. An item that is refused while others succeed beside it fails after ten times as
            many refusals as the first of its batch. The default of 10 is two minutes on average with
            the default back-off (a choice).

    Raises:
        ValueError: If attempts or holds is below 1, or ``on`` is empty.
        TypeError: If a setting has the wrong type.
    """

    on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
    attempts: int = 3
    backoff: Backoff = field(default_factory=Backoff)
    holds: int = 10

    def __post_init__(self) -> None:
        checks.whole_number("attempts", self.attempts, 1)
        checks.whole_number("holds", self.holds, 1)
        if not isinstance(self.backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, got {self.backoff!r}")
        if isinstance(self.on, tuple):
            if not self.on:
                raise ValueError("on must name at least one exception class, got ()")
            classes: tuple[object, ...] = self.on
        elif isinstance(self.on, type):
            classes = (self.on,)
        elif callable(self.on):
            return
        else:
            raise TypeError(
                f"on must be an exception class, a tuple of them or a predicate, got {self.on!r}"
            )
        for cls in classes:
            if not (isinstance(cls, type) and issubclass(cls, Exception)):
                raise TypeError(f"on must name subclasses of Exception, got {cls!r}")

    def wants(self, error: Exception) -> bool:
        """Tell whether an error is retryable. What a predicate raises comes through."""
        if isinstance(error, ItemError) and error.retryable is not None:
            return error.retryable
        if isinstance(self.on, (type, tuple)):
            if isinstance(error, HandlerTimeout):
                classes = self.on if isinstance(self.on, tuple) else (self.on,)
                return any(issubclass(cls, HandlerTimeout) for cls in classes)
            return isinstance(error, self.on)
        return bool(self.on(error))

    def delay(
        self, error: Exception, attempt: int, chance: Callable[[], float] = random.random
    ) -> float | None:
        """Return the seconds until an item's next attempt, or None if there is none.

        Args:
            error: What the attempt failed with.
            attempt: Attempts so far, at least 1.
            chance: Where randomness comes from: a function that returns numbers from 0 to 1.
        """
        if attempt >= self.attempts or not self.wants(error):
            return None
        after = told_delay(error, self.backoff.maximum)
        return self.backoff.delay(attempt, chance()) if after is None else after

    def hold(
        self, error: Exception, refusals: int, chance: Callable[[], float] = random.random
    ) -> float:
        """Return the seconds for which a partition is held.

        Args:
            error: The ``RateLimited`` that a call was refused with.
            refusals: How many calls in a row were, this one included.
            chance: Where randomness comes from: a function that returns numbers from 0 to 1.
        """
        after = told_delay(error, self.backoff.maximum)
        return self.backoff.delay(refusals, chance()) if after is None else after


def told_delay(error: Exception, maximum: float) -> float | None:
    """Return the ``retry_after`` of an error, in seconds from 0 to a maximum; None if it has no finite one."""
    after: Any = getattr(error, "retry_after", None)
    number = isinstance(after, int) or (isinstance(after, float) and math.isfinite(after))
    if number and not isinstance(after, bool):  # an int may be beyond what floats hold
        return float(min(max(0, after), maximum))
    return None
