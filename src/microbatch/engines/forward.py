"""A durable queue as a local outbox: what stands in it is published to an engine, and ends when that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from microbatch._pure import checks
from microbatch._pure.exceptions import HandlerTimeout
from microbatch._pure.retry import Retry
from microbatch.durable.access import recipes
from microbatch.durable.batcher import DurableBatcher
from microbatch.durable.queue import DurableQueue
from microbatch.layers import per_item

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["forward"]

T = TypeVar("T")
R = TypeVar("R")

#: Attempts of an item while its broker is away: at a minute each a week, after which somebody has to look.
ATTEMPTS: Final = 10_000


async def forward(
    queue: DurableQueue[T, R],
    publish: Callable[[T], Awaitable[R | object]],
    *,
    max_batch_size: int = 100,
    publish_timeout: float | None = 30.0,
    retry: Retry | None = None,
) -> None:
    """Publish every item of a durable queue, until it is cancelled.

    An item has ended when ``publish`` has returned, so let ``publish`` return when the broker has confirmed. If
    the process dies in between, the item is published again: messages may come twice, so give each an id of its
    own. Items are published in the queue's order, up to ``max_batch_size`` at the same time.

    Args:
        queue: The queue; its settings hold here too. Others may enqueue meanwhile, in any process.
        publish: ``async (item)``: hands one item to the engine. What it returns is the item's result if the
            queue has a ``result_type``; else it is dropped, and the result is None.
        max_batch_size: Items that are published at the same time, and settled together; at least 1.
        publish_timeout: Seconds for such a batch, more than 0; None for no limit.
        retry: Which errors are retried. By default all but an ``ItemError`` that is not ``retryable``, up to
            10,000 times with a back-off of up to a minute, because a broker may be away for days. An item that
            is not retried is a dead letter of the queue.

    Raises:
        TypeError: If ``queue`` is no ``DurableQueue`` without a handler, or a setting has the wrong type.
        ValueError: If a setting is out of its range.
        QueueUnavailable: If the file cannot be opened; or a narrower error of the durable mode.

    Cancellation ends it. Items that are being published then stay in the queue, and the next ``forward``
    publishes them again.
    """
    given: object = queue
    if not isinstance(given, DurableQueue) or isinstance(given, DurableBatcher):
        raise TypeError(f"queue must be a DurableQueue without a handler, got {queue!r}")
    checks.whole_number("max_batch_size", max_batch_size, 1)
    recipe = recipes[queue]
    keeps = recipe["result_type"] is not None

    async def confirmed(item: T) -> Any:
        result = await publish(item)
        return result if keeps else None

    if retry is None:  # a timeout is tried again only where it is named
        retry = Retry(on=(Exception, HandlerTimeout), attempts=ATTEMPTS, holds=ATTEMPTS)
    batcher: DurableBatcher[T, Any] = DurableBatcher(
        **recipe,
        handler=per_item(confirmed, max_concurrency=max_batch_size),
        max_batch_size=max_batch_size,
        handler_timeout=publish_timeout,
        retry=retry,
    )
    async with batcher:
        await anyio.sleep_forever()
