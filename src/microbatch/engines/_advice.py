"""What makes batches small, or handles messages twice, seen before it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from faststream import AckPolicy

from microbatch._core.batcher import Batcher, engine_of

if TYPE_CHECKING:
    from collections.abc import Sequence

#: JetStream's own default, where the consumer names no ``ack_wait`` (the server's documentation).
ACK_WAIT: Final = 30.0

#: RabbitMQ's ``consumer_timeout`` closes a channel after 30 minutes without an acknowledgement (its default).
CONSUMER_TIMEOUT: Final = 1800.0

#: The share of FastStream's wait for its handlers that draining may take; in the rest the messages are told.
DRAIN_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class Supply:
    """What a subscriber says about how it takes messages.

    Attributes:
        label: What it is called, for people.
        at_once: The most messages that are handled at the same time; None if there is no bound.
        at_once_setting: What sets that.
        batches_needed: How many batches of messages there should be at once: two, so that one fills while the
            other is under way, or one where lists are fetched.
        redelivery: Seconds after which an unacknowledged message comes again; None if it does not.
        redelivery_setting: What sets that.
        unlimited: What is missing for a limit on deliveries; None if there is one, or nobody tells.
    """

    label: str
    at_once: int | None
    at_once_setting: str
    batches_needed: int
    redelivery: float | None
    redelivery_setting: str
    unlimited: str | None


def drain_limit(batcher: Batcher[Any, Any], app: Any) -> float | None:
    """Return how long a batcher may drain, in seconds: so that FastStream still waits when it has ended.

    Where FastStream waits for nobody (``graceful_timeout`` of None or 0), the batcher's own limit holds.
    """
    own = engine_of(batcher).rules.drain_timeout
    waits = [broker.config.graceful_timeout for broker in app.brokers]
    bounds = [seconds * DRAIN_SHARE for seconds in waits if seconds]
    return min([*bounds, *([] if own is None else [own])], default=None)


def advice_on_batcher(batcher: Batcher[Any, Any]) -> list[str]:
    """Return what is wrong with a batcher's own settings behind an engine."""
    if engine_of(batcher).rules.handler_timeout is not None:
        return []
    return [
        f"batcher {batcher.name!r} has no handler_timeout: a backend that hangs keeps all its messages"
    ]


async def advice_on_subscriber(subscriber: Any, batchers: Sequence[Batcher[Any, Any]]) -> list[str]:
    """Return what is wrong between a subscriber and batchers; nothing for one that acknowledges by itself."""
    if subscriber.ack_policy is not AckPolicy.MANUAL:
        return []
    supply = await _supply_of(subscriber)
    if supply is None:
        return []
    found = []
    for batcher in batchers:
        rules = engine_of(batcher).rules
        needed = supply.batches_needed * rules.size
        if supply.at_once is not None and supply.at_once < needed:
            times = "" if supply.batches_needed == 1 else f"{supply.batches_needed} x "
            found.append(
                f"{supply.label}: {supply.at_once_setting}={supply.at_once} is below {times}"
                f"max_batch_size={rules.size} of batcher {batcher.name!r}: its batches cannot fill"
            )
        longest = rules.max_wait + (rules.handler_timeout or 0.0)
        if supply.redelivery is not None and longest >= supply.redelivery:
            found.append(
                f"{supply.label}: {supply.redelivery_setting}={supply.redelivery:g} s may be over before "
                f"max_wait={rules.max_wait:g} s and handler_timeout={rules.handler_timeout or 0:g} s of "
                f"batcher {batcher.name!r} are: its messages would be handled twice"
            )
    if supply.unlimited is not None:
        found.append(f"{supply.label}: {supply.unlimited}")
    return found


async def _supply_of(subscriber: Any) -> Supply | None:
    """Ask a subscriber; None for a broker's that is not known here."""
    for kind in type(subscriber).__mro__:
        parts = kind.__module__.split(".")
        if parts[0] == "faststream" and parts[1] in _ASK:
            return await _ASK[parts[1]](subscriber)
    return None


async def _jetstream(subscriber: Any) -> Supply | None:
    stream = getattr(subscriber, "stream", None)
    if stream is None:
        return None  # core NATS acknowledges nothing
    config = subscriber.config
    tell = getattr(subscriber.subscription, "consumer_info", None)
    if tell is not None:
        try:
            config = (await tell()).config
        except Exception:  # noqa: BLE001 - no right to ask, or no answer: what was declared is what is known
            config = subscriber.config
    durable = config.durable_name or config.name
    label = f"subscriber of the stream {stream.name!r}" + (
        f", consumer {durable!r}" if durable else ""
    )
    pull = getattr(subscriber, "pull_sub", None)
    workers = getattr(subscriber, "max_workers", None)
    at_once, setting, needed = workers or 1, "max_workers", 2
    if workers is None and pull is not None:
        at_once, setting = pull.batch_size, "PullSub(batch_size)"
        needed = 1 if pull.batch else 2
    pending = config.max_ack_pending
    if isinstance(pending, int) and 0 < pending < at_once:
        at_once, setting = pending, "max_ack_pending"
    limited = isinstance(config.max_deliver, int) and config.max_deliver > 0
    return Supply(
        label,
        at_once,
        setting,
        needed,
        config.ack_wait or ACK_WAIT,
        "ack_wait",
        None
        if limited
        else "there is no max_deliver, so a message that kills its worker comes again for ever, and settle() "
        "needs retry=",
    )


async def _rabbit(subscriber: Any) -> Supply:
    queue = subscriber.queue
    prefetch = None if subscriber.channel is None else subscriber.channel.prefetch_count
    arguments = queue.arguments or {}
    unlimited = None
    if arguments.get("x-queue-type") != "quorum":
        unlimited = (
            "a queue that is no quorum queue does not count deliveries: with retry= a message is rejected at "
            "its second failure, whatever attempts is; declare it with queue_type=QueueType.QUORUM"
        )
    elif "x-delivery-limit" not in arguments:
        unlimited = "there is no x-delivery-limit, so a message that kills its worker may come again for ever"
    return Supply(
        f"subscriber of the queue {queue.name!r}",
        prefetch or None,
        "prefetch_count",
        2,
        CONSUMER_TIMEOUT,
        "consumer_timeout",
        unlimited,
    )


async def _redis(subscriber: Any) -> Supply | None:
    stream = getattr(subscriber, "stream_sub", None)
    if stream is None or stream.group is None:
        return None
    claimed = stream.min_idle_time or stream.claim_min_idle_time
    if stream.batch:
        at_once, setting, needed = stream.max_records, "StreamSub(max_records)", 1
    else:
        at_once, setting, needed = getattr(subscriber, "max_workers", 1), "max_workers", 2
    return Supply(
        f"subscriber of the stream {stream.name!r}, group {stream.group!r}",
        at_once,
        setting,
        needed,
        None if claimed is None else claimed / 1000,
        "min_idle_time",
        None,
    )


_ASK = {"nats": _jetstream, "rabbit": _rabbit, "redis": _redis}
