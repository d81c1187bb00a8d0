"""FastStream's own messages over stand-ins for the brokers' connections, which note what they are told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from faststream.kafka.message import KafkaAckableMessage
from faststream.nats.message import NatsBatchMessage, NatsMessage
from faststream.rabbit.message import RabbitMessage
from faststream.redis.message import RedisBatchStreamMessage, RedisStreamMessage
from nats.aio.msg import Msg

if TYPE_CHECKING:
    from collections.abc import Callable


async def until(happens: Callable[[], object]) -> None:
    """Give everybody who is runnable a turn, until something has happened."""
    for _ in range(100_000):
        if happens():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


class Wire:
    """What a broker was told."""

    def __init__(self, max_deliver: int = 5) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.asked: list[tuple[str, str]] = []
        self.max_deliver = max_deliver

    # nats-py's client and its JetStream

    async def publish(self, subject: str, payload: bytes = b"+ACK", **_: Any) -> None:
        word = payload.decode()
        if word.startswith("-NAK"):
            delay = word.partition('"delay": ')[2].rstrip("}")
            self.said.append(("nak", int(delay) / 1e9 if delay else None))
        else:
            self.said.append(({"+ACK": "ack", "+TERM": "term"}[word],))

    def jetstream(self) -> Wire:
        return self

    async def consumer_info(self, stream: str, consumer: str) -> Any:
        self.asked.append((stream, consumer))
        return SimpleNamespace(config=SimpleNamespace(max_deliver=self.max_deliver))

    # aio-pika's message

    locked = False

    async def ack(self, multiple: bool) -> None:
        self.said.append(("ack",))

    async def nack(self, multiple: bool, requeue: bool) -> None:
        self.said.append(("nack", requeue))

    async def reject(self, requeue: bool) -> None:
        self.said.append(("reject", requeue))

    # redis-py's client, aiokafka's consumer

    async def xack(self, name: str, group: str, *ids: bytes) -> None:
        self.said.append(("xack", *ids))

    async def commit(self) -> None:
        self.said.append(("commit",))

    def seek(self, partition: Any, offset: int) -> None:
        self.said.append(("seek", offset))


def jetstream(*delivered: int, max_deliver: int = 5) -> tuple[Any, Wire]:
    """Return a message, or a list of them, that came so often each."""
    wire = Wire(max_deliver)
    raws = [
        Msg(_client=wire, subject="s", reply=f"$JS.ACK.s.w.{count}.1.1.1.0")  # type: ignore[arg-type]
        for count in delivered
    ]
    if len(raws) == 1:
        return NatsMessage(raw_message=raws[0], body=b""), wire
    return NatsBatchMessage(raw_message=raws, body=[]), wire


def core() -> Any:
    """Return a message of NATS without JetStream."""
    return NatsMessage(raw_message=Msg(_client=Wire(), subject="s"), body=b"")  # type: ignore[arg-type]


def rabbit(headers: dict[str, Any], redelivered: bool) -> tuple[Any, Wire]:
    wire = Wire()
    wire.headers, wire.redelivered = headers, redelivered  # type: ignore[attr-defined]
    return RabbitMessage(raw_message=wire, body=b""), wire  # type: ignore[arg-type]


def redis(
    ids: list[bytes],
    delivered: list[int],
    *,
    batch: bool = False,
    told: bool = False,
    group: str | None = "g",
) -> tuple[Any, Wire]:
    """Return messages of a stream; ``told``: the server told with them how often they came before."""
    wire = Wire()

    async def xpending_range(**asked: Any) -> Any:
        return [{"times_delivered": delivered[ids.index(asked["min"])]}]

    wire.xpending_range = xpending_range  # type: ignore[attr-defined]
    raw: dict[str, Any] = {"type": "stream", "channel": "s", "message_ids": ids, "data": {}}
    if told:
        raw["delivery_counts"] = [count - 1 for count in delivered]
    kind: Any = RedisBatchStreamMessage if batch else RedisStreamMessage
    return kind(raw_message=raw, body=b"", consumer=wire, group=group), wire


def kafka(count: int | None) -> tuple[Any, Wire]:
    """Return a list of so many messages, or one by itself."""
    wire = Wire()
    records = tuple(SimpleNamespace(topic="t", partition=0, offset=n) for n in range(count or 1))
    raw: Any = records[0] if count is None else records
    return KafkaAckableMessage(raw_message=raw, body=b"", consumer=wire), wire
