"""FastStream: each message is one item, acknowledged when that item has its outcome.

``drained`` opens and drains batchers with the application, ``settle`` turns the outcome of one item into the
acknowledgement of its message, ``settle_many`` those of a list. The extra is ``microbatch[faststream]``;
it needs asyncio, as FastStream's brokers do.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from faststream import Context

from microbatch._core.batcher import Batcher
from microbatch._loops.current import current_loop
from microbatch._pure.retry import Retry
from microbatch._telemetry.log import write

from ._advice import advice_on_batcher, advice_on_subscriber, drain_limit
from ._answers import Answer, answer_to, handed_back, needs_count
from ._deliveries import Delivery, delivery_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from faststream.message import StreamMessage

    from microbatch._pure.report import BatchReport

__all__ = ["drained", "settle", "settle_many"]


def drained(
    *batchers: Batcher[Any, Any],
) -> Callable[..., AbstractAsyncContextManager[None]]:
    """Return a lifespan that opens batchers before the brokers start, and drains them as they stop.

    ``FastStream(broker, lifespan=drained(batcher))``. In a lifespan of your own that gets the application:
    ``async with drained(batcher)(app): ...``.

    Before it leaves the lifespan, FastStream waits for its handlers (``graceful_timeout`` of the broker, 15 s
    by default), and they wait for their batch. So draining begins in a shut-down hook, when the brokers stop
    taking messages. It lasts at most for ``drain_timeout`` or four fifths of ``graceful_timeout``, whichever is
    less. Messages whose items are not done by then are handed back while the connection is still open.

    It warns (``RuntimeWarning``), once each, of settings that make batches small or handle messages twice: a
    subscriber with ``AckPolicy.MANUAL`` that hands over fewer messages at once than two batches hold, so that
    no batch gets full; a redelivery time that is not longer than ``max_wait`` and ``handler_timeout`` together;
    no ``handler_timeout``; no limit on deliveries, if the broker tells its limit.

    Args:
        batchers: At least one; each serves this application until it stops, and may then serve the next one
            in another event loop.

    Returns:
        A function that FastStream calls with its application. Entering its result raises what
        ``Batcher.__aenter__`` raises; cancelling it closes the batchers at once.

    Raises:
        TypeError: If there is no batcher, or something else in the place of one.
    """
    if not batchers:
        raise TypeError("drained needs at least one batcher, got none")
    for batcher in batchers:
        if not isinstance(batcher, Batcher):
            raise TypeError(f"drained takes batchers, got {batcher!r}")
    told: set[str] = set()

    @asynccontextmanager
    async def lifespan(app: Annotated[Any, Context("app")]) -> AsyncIterator[None]:
        open_now = list(batchers)
        draining: list[Any] = []  # the loop keeps tasks by weak references alone

        async def drain() -> None:
            loop = current_loop()

            async def close(batcher: Batcher[Any, Any]) -> None:
                await loop.started()
                await batcher.aclose(drain_limit(batcher, app))

            draining.extend(loop.spawn(close, each, f"drain {each.name}") for each in open_now)

        async def advise() -> None:  # now that they have started, the brokers can tell what holds
            for broker in app.brokers:
                for subscriber in broker.subscribers:
                    for text in await advice_on_subscriber(subscriber, batchers):
                        _warn_once(text, told)

        for batcher in batchers:
            for text in advice_on_batcher(batcher):
                _warn_once(text, told)
        app.on_shutdown(drain)
        app.after_startup(advise)
        async with AsyncExitStack() as stack:
            for batcher in batchers:
                await stack.enter_async_context(batcher)
            stack.callback(open_now.clear)
            yield

    return lifespan


def _warn_once(text: str, told: set[str]) -> None:
    if text not in told:
        told.add(text)
        warnings.warn(text, RuntimeWarning, stacklevel=2)


async def settle(
    message: StreamMessage[Any], outcome: Awaitable[object], *, retry: Retry | None = None
) -> None:
    """Wait for an item's outcome and acknowledge its message by it.

    A value, or ``Skipped``, gives ``ack``. A retryable error gives ``nack``, so that the message comes again;
    if the broker can wait (JetStream), after the error's ``retry_after`` or the back-off's delay. Any other
    error, and a retryable one at the last attempt, gives ``reject`` and a line in the log. A message that a
    closing or full batcher refused is handed back (``nack``) and never rejected, however often it came. The
    subscriber needs ``ack_policy=AckPolicy.MANUAL``.

    Redis Streams have neither ``nack`` nor ``reject``: a message that is to come again stays pending until it
    is claimed, and a rejected one is acknowledged. A classic queue of RabbitMQ does not count deliveries: there
    the second failure is the last one, whatever ``attempts`` is.

    Args:
        message: FastStream's own, from ``faststream.nats``, ``rabbit`` or ``redis``.
        outcome: What ``batcher.submit(item)`` returns, or any other awaitable.
        retry: Which errors are retryable, and how many deliveries a message gets in all. Without it, an
            error is retryable if its own ``retryable`` is True, and the limit has to be the engine's.

    Raises:
        RuntimeError: If nothing limits how often a message comes: neither ``retry`` nor, if it tells its limit,
            the engine. The error names the missing setting; the item is not handled and the message not
            acknowledged.
        TypeError: If the message cannot be acknowledged, if ``outcome`` is no awaitable or ``retry`` no
            ``Retry``; the item is not handled then.
        Exception: What the connection raises if the broker cannot be told; the message then comes again. And
            what the predicate of ``retry`` raises.

    Cancellation withdraws the item, as ``submit`` does; the message stays unacknowledged and comes again.
    """
    try:
        if not inspect.isawaitable(outcome):
            raise TypeError(f"outcome must be an awaitable, got {outcome!r}")
        delivery = await _admitted(message, retry)
        if len(delivery.raws) != 1:
            raise TypeError(f"settle takes one message, got {len(delivery.raws)}: use settle_many")
    except BaseException:
        _close(outcome)
        raise
    error: Exception | None = None
    try:
        await outcome
    except Exception as failure:  # noqa: BLE001 - the handler's: what it means for the message is decided below
        error = failure
    await _carry_out(delivery, [error], retry)


async def settle_many(
    message: StreamMessage[Any],
    report: BatchReport[Any] | Awaitable[BatchReport[Any]],
    *,
    retry: Retry | None = None,
) -> None:
    """Acknowledge the messages of a list, each by the outcome of its own item.

    ``await settle_many(message, batcher.submit_many_report(rows))`` in a subscriber that fetches lists
    (``PullSub(batch=True)``, ``StreamSub(batch=True)``, ``batch=True`` of Kafka). Outcomes mean what they do in
    `settle`. Kafka commits a place in its log, no single messages: the list is committed, or, where an item was
    handed back, read again from its beginning; nothing counts deliveries, so ``retry`` is refused there and
    belongs to the batcher.

    Args:
        message: FastStream's own, for the list.
        report: What ``submit_many_report`` returns for the items, in the list's order, awaited or not. If it
            is not, what a closed batcher refuses is handed back as a whole.
        retry: As in `settle`.

    Raises:
        ValueError: If there are not as many outcomes as messages; nothing is acknowledged then.
        RuntimeError: As in `settle`.
        TypeError: As in `settle`.
        Exception: As in `settle`, and what awaiting ``report`` raises otherwise.

    Cancellation while ``report`` is awaited withdraws what is buffered; the messages come again.
    """
    try:
        delivery = await _admitted(message, retry)
    except BaseException:
        _close(report)
        raise
    errors: list[Exception | None]
    try:
        outcomes = (await report) if inspect.isawaitable(report) else report
    except Exception as refusal:
        if handed_back(refusal) is None:
            raise
        errors = [refusal] * len(delivery.raws)
    else:
        errors = [outcome.error for outcome in outcomes]
    if len(errors) != len(delivery.raws):
        raise ValueError(
            f"the report must have an outcome for each of {len(delivery.raws)} messages, got {len(errors)}"
        )
    await _carry_out(delivery, errors, retry)


async def _admitted(message: Any, retry: Retry | None) -> Delivery:
    """Return what the message can do, if something limits how often it comes."""
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"retry must be a Retry or None, got {retry!r}")
    delivery = delivery_of(message)
    if retry is not None:
        if not delivery.counts:
            raise RuntimeError(
                f"{delivery.unlimited}, so retry= cannot work here: retry within the batcher, "
                "Batcher(retry=...)"
            )
    elif (missing := await delivery.missing_limit()) is not None:
        raise RuntimeError(
            f"nothing limits how often this message comes again: {missing}; "
            "set it, or pass retry=Retry(on=..., attempts=...)"
        )
    return delivery


async def _carry_out(
    delivery: Delivery, errors: list[Exception | None], retry: Retry | None
) -> None:
    answers = []
    for index, error in enumerate(errors):
        counted = retry is not None and needs_count(error)
        deliveries = await delivery.count(index) if counted else 1
        answers.append(answer_to(error, retry, deliveries, comes_again=delivery.counts))
    await delivery.carry_out(answers)
    _tell(answers)


def _tell(answers: list[Answer]) -> None:
    """Log what no engine brings again: here alone its error is told."""
    rejected = [answer.error for answer in answers if answer.word == "reject"]
    if rejected:
        first = rejected[0]
        write(
            logging.WARNING,
            "rejected %d of %d messages; the first one's item failed with %s: %s",
            len(rejected),
            len(answers),
            type(first).__name__,
            first,
        )


def _close(outcome: object) -> None:
    """Let go of what is not going to be awaited, so that no item is handled whose message is not settled."""
    close = getattr(outcome, "close", None) or getattr(outcome, "cancel", None)
    if close is not None:
        close()
