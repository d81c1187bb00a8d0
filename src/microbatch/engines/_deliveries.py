"""What each broker's message can tell and do, behind one shape.

FastStream's messages share ``ack``, ``nack`` and ``reject``, and mean different things by them: Redis Streams
know no ``reject``, Kafka acknowledges everything up to a place, only JetStream waits before it delivers
again. Nothing of a broker is imported here: its own package may not be installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._answers import Answer

#: The limit on deliveries of each JetStream consumer that was asked for it, by connection. It is asked once:
#: thousands of messages a second need the answer.
_limits: WeakKeyDictionary[Any, dict[tuple[str, str], int]] = WeakKeyDictionary()
_asking: WeakKeyDictionary[Any, anyio.Lock] = WeakKeyDictionary()


class Delivery:
    """One message, or the messages that were fetched together; the way of a broker that is not known.

    Attributes:
        message: FastStream's own.
        raws: What stands for each item, in order.
    """

    __slots__ = ("message", "raws")

    #: Whether the broker counts how often a message came. Where it does not, no error sends one again.
    counts: bool = False
    #: What is missing for a limit on deliveries, but for the one that `Retry` sets.
    unlimited: str = "this broker counts no deliveries"

    def __init__(self, message: Any) -> None:
        self.message = message
        raw = message.raw_message
        self.raws: list[Any] = list(raw) if isinstance(raw, (list, tuple)) else [raw]

    async def missing_limit(self) -> str | None:
        """Return what is missing, if nothing but `Retry` limits how often a message comes; else None."""
        return self.unlimited if self.counts else None

    async def count(self, index: int) -> int | None:
        """Return how often a message came, this time included; None if it came before, who knows how often."""
        raise NotImplementedError  # nobody asks where nobody counts

    async def carry_out(self, answers: list[Answer]) -> None:
        """Tell the broker."""
        (answer,) = answers
        await getattr(self.message, answer.word)()


class JetStreamDelivery(Delivery):
    __slots__ = ()

    counts = True

    async def missing_limit(self) -> str | None:
        """Ask the server for the consumer's limit, once; None in a test's in-memory broker."""
        raw = self.raws[0]
        client: Any = getattr(raw, "_client", None)  # a field that its constructor takes
        if client is None:
            return None
        metadata = raw.metadata
        place = (metadata.stream, metadata.consumer)
        limit = _limits.get(client, {}).get(place)
        if limit is None:
            async with _asking.setdefault(client, anyio.Lock()):
                known = _limits.setdefault(client, {})
                if place not in known:
                    info = await client.jetstream().consumer_info(*place)
                    known[place] = info.config.max_deliver or -1
                limit = known[place]
        if limit > 0:
            return None
        return f"the consumer {place[1]!r} of the stream {place[0]!r} has no max_deliver"

    async def count(self, index: int) -> int | None:
        raw = self.raws[index]
        return 1 if getattr(raw, "_client", None) is None else int(raw.metadata.num_delivered)

    async def carry_out(self, answers: list[Answer]) -> None:
        if isinstance(self.message.raw_message, list):
            for raw, answer in zip(self.raws, answers, strict=True):
                await _on_jetstream(raw, answer)
            await (
                self.message.ack()
            )  # nothing is left to acknowledge: it only notes that it is done
        else:
            (answer,) = answers
            if answer.word == "nack":
                await self.message.nack(delay=answer.delay)
            else:
                await getattr(self.message, answer.word)()


async def _on_jetstream(raw: Any, answer: Answer) -> None:
    if raw.is_acked:
        return
    if answer.word == "nack":
        await raw.nak(delay=answer.delay)
    else:
        await (raw.ack() if answer.word == "ack" else raw.term())


class RabbitDelivery(Delivery):
    __slots__ = ()

    counts = True
    unlimited = "RabbitMQ does not tell the limit on deliveries of a queue"

    async def count(self, index: int) -> int | None:
        """Return what a quorum queue counts; a classic one only says that a message came before."""
        raw = self.raws[index]
        before = (raw.headers or {}).get("x-delivery-count")
        if isinstance(before, int):
            return 1 + before
        return None if raw.redelivered else 1


class RedisDelivery(Delivery):
    """Messages of a Redis stream: those that are not acknowledged come again when they are claimed."""

    __slots__ = ()

    counts = True
    unlimited = "Redis Streams have no limit on deliveries"

    def __init__(self, message: Any) -> None:
        super().__init__(message)
        self.raws = list(message.raw_message["message_ids"])

    async def count(self, index: int) -> int | None:
        known = self.message.raw_message.get("delivery_counts")
        if known:
            return 1 + int(known[index])
        name, place = self.message.raw_message["channel"], self.raws[index]
        entries = await self.message.consumer.xpending_range(
            name=name, groupname=self.message.group, min=place, max=place, count=1
        )
        return int(entries[0]["times_delivered"]) if entries else 1

    async def carry_out(self, answers: list[Answer]) -> None:
        """Acknowledge what is done, and what is rejected: a stream has no other end for it."""
        done = [raw for raw, v in zip(self.raws, answers, strict=True) if v.word != "nack"]
        if len(done) == len(self.raws):
            await self.message.ack()
            return
        if done and self.message.group is not None:
            name = self.message.raw_message["channel"]
            await self.message.consumer.xack(name, self.message.group, *done)
        await self.message.nack()  # only notes it: the messages stay pending


class KafkaDelivery(Delivery):
    """Kafka's messages: acknowledging one acknowledges all before it, and nobody counts deliveries."""

    __slots__ = ()

    unlimited = "Kafka does not count deliveries"

    async def carry_out(self, answers: list[Answer]) -> None:
        """Commit the place, or go back to the first of the messages where one has to come again."""
        again = any(answer.word == "nack" for answer in answers)
        await (self.message.nack() if again else self.message.ack())


#: What commits a place acknowledges all that came before it, so messages one by one cannot be.
_KAFKA = {"faststream.kafka.message", "faststream.confluent.message"}

_KINDS: dict[str, Callable[[Any], Delivery]] = {
    "faststream.nats.message": JetStreamDelivery,
    "faststream.rabbit.message": RabbitDelivery,
    "faststream.redis.message": RedisDelivery,
    **dict.fromkeys(_KAFKA, KafkaDelivery),
}


def delivery_of(message: Any) -> Delivery:
    """Return what a message can tell and do.

    Raises:
        TypeError: If it is no message of FastStream, or one that cannot be acknowledged.
    """
    for kind in type(message).__mro__:
        if (known := _KINDS.get(kind.__module__)) is not None:
            _refuse_fleeting(message, kind.__module__)
            return known(message)
    if hasattr(message, "raw_message") and hasattr(message, "reject"):
        return Delivery(message)
    raise TypeError(f"message must be FastStream's message, got {message!r}")


def _refuse_fleeting(message: Any, module: str) -> None:
    """Refuse what its broker forgets as it delivers it: there is nothing to acknowledge."""
    raw = message.raw_message
    if module == "faststream.redis.message" and getattr(message, "group", None) is None:
        kind, remedy = "that no group of a Redis stream reads", "subscribe to a stream with a group"
    elif module in _KAFKA and not isinstance(raw, tuple):
        kind, remedy = "of Kafka by itself", "subscribe with batch=True and use settle_many"
    elif module == "faststream.nats.message" and _is_core(raw):
        kind, remedy = "of core NATS", "subscribe to a stream"
    else:
        return
    raise TypeError(f"a message {kind} cannot be acknowledged: {remedy}")


def _is_core(raw: Any) -> bool:
    first = raw[0] if isinstance(raw, list) else raw
    client = getattr(first, "_client", None)
    return client is not None and not str(getattr(first, "reply", "")).startswith("$JS.ACK.")
