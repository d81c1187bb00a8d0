"""`rate_limited`: no more calls, items or cost per second than the backend allows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import anyio
from anyio.lowlevel import RunVar

from microbatch._core.bulk import bulk
from microbatch._pure import checks

from ._passing import BulkHandler, Handler, R, SilentHandler, T, named_after

if TYPE_CHECKING:
    from collections.abc import Callable


@overload
def rate_limited(
    handler: SilentHandler[T],
    rate: float,
    *,
    per: float = 1.0,
    burst: float = 1,
    cost: Callable[[T], float] | None = None,
) -> BulkHandler[T, None]: ...
@overload
def rate_limited(
    handler: Handler[T, R],
    rate: float,
    *,
    per: float = 1.0,
    burst: float = 1,
    cost: Callable[[T], float] | None = None,
) -> BulkHandler[T, R]: ...
def rate_limited(
    handler: Any,
    rate: float,
    *,
    per: float = 1.0,
    burst: float = 1,
    cost: Callable[[Any], float] | None = None,
) -> BulkHandler[Any, Any]:
    """Let at most ``rate`` calls, or cost, pass to the handler in ``per`` seconds.

    A token bucket: it holds ``burst`` tokens at most, ``rate / per`` of them come back each second,
    and a call waits until its tokens are there. Calls pass in the order in which they came. A batch
    that costs more than ``burst`` passes too, once all its tokens have come.

    A cancelled call that still waits takes no tokens. A failed one has used its own. Waiting takes
    place inside the batch: it holds a slot and counts towards ``handler_timeout``. Each event loop
    has a bucket of its own, and so has each process: divide the backend's limit by their number.

    Args:
        handler: An async or plain bulk handler.
        rate: Tokens that come back in ``per`` seconds, above 0.
        per: Seconds, above 0.
        burst: Tokens that the bucket holds, above 0. The default of 1 spaces calls evenly.
        cost: What an item costs, at least 0; the sum over the batch is its cost. ``lambda item: 1``
            counts items. Without it each call costs 1, however many items it has.

    Raises:
        TypeError: If a setting has the wrong type or the handler is a generator function.
        ValueError: If a setting is out of its range.
    """
    call = bulk(handler)
    checks.function("cost", cost)
    bucket_of_loop: RunVar[tuple[anyio.Lock, TokenBucket]] = RunVar("microbatch_bucket")
    tokens_per_second = checks.number("rate", rate, above=0) / checks.number("per", per, above=0)
    TokenBucket(tokens_per_second, checks.number("burst", burst, above=0))

    @named_after(handler)
    async def limited(items: list[Any]) -> list[Any]:
        if not items:
            return []
        tokens = 1.0 if cost is None else math.fsum(_cost_of(item, cost) for item in items)
        try:
            turn, bucket = bucket_of_loop.get()
        except LookupError:
            turn, bucket = anyio.Lock(), TokenBucket(tokens_per_second, burst)
            bucket_of_loop.set((turn, bucket))
        # The lock keeps the order: whoever holds it is next. Tokens are taken after the wait, so
        # that a call cancelled while it waits leaves everything as if it had never come.
        async with turn:
            now = anyio.current_time()
            start = bucket.start(now, tokens)
            if start > now:
                await anyio.sleep_until(start)
            bucket.take(now, tokens, anyio.current_time())
        return await call(items)

    return limited


def _cost_of(item: Any, cost: Callable[[Any], float]) -> float:
    return checks.number("cost(item)", cost(item), minimum=0)


class TokenBucket:
    """When calls may start: a token bucket kept as one moment, as in the GCRA of ITU-T I.371. Pure.

    That moment is when the bucket will be full again. It is reckoned from when calls really started:
    an event loop that stood still for a while is not followed by a flood. A burst of 2 and more makes
    up for small delays.

    Args:
        rate: Tokens that come back each second.
        burst: Tokens that the bucket holds.
    """

    __slots__ = ("_burst", "_full_at", "_rate")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._full_at = -math.inf

    def start(self, now: float, tokens: float) -> float:
        """Return when a call that comes now and needs so many tokens may start; change nothing."""
        ready = max(self._full_at, now) + (tokens - self._burst) / self._rate
        return max(now, ready)

    def take(self, now: float, tokens: float, started: float) -> None:
        """Take the tokens of a call that came at ``now`` and started then or later."""
        filled = max(self._full_at, now) + tokens / self._rate
        self._full_at = max(filled, started + min(tokens, self._burst) / self._rate)
