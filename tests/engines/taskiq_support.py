"""taskiq's brokers as the page makes them, for workers and for who sends them tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika
from jetstream_support import left as left_on_jetstream
from nats.js.api import ConsumerConfig
from taskiq.kicker import AsyncKicker
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType
from taskiq_nats import PullBasedJetStreamBroker


class JetStreamBroker(PullBasedJetStreamBroker):
    """The page's: it goes on where taskiq-nats 0.7 ends while nothing comes."""

    async def listen(self):
        while True:
            try:
                async for message in super().listen():
                    yield message
            except TimeoutError:
                continue


def broker_of(engine: str, url: str, name: str, redelivery: float, *, at_once: int) -> Any:
    """Return a broker with a stream or queue of this name."""
    if engine == "nats":
        return JetStreamBroker(
            url, subject=name, stream_name=name, durable="w", pull_consume_batch=40,
            pull_consume_timeout=0.5,
            consumer_config=ConsumerConfig(durable_name="w", ack_wait=redelivery),
        )  # fmt: skip
    # A quorum queue repeats some of what was acknowledged just before its channel closed (see test_brokers.py).
    queue = Queue(name=name, type=QueueType.CLASSIC)
    return AioPikaBroker(url, qos=at_once, exchange=Exchange(name=name), task_queues=[queue])


async def _sent(count: int, **job: Any) -> None:
    broker = broker_of(**job, at_once=1)
    await broker.startup()
    save = AsyncKicker[[int], None]("save", broker, {})
    for start in range(1, count + 1, 200):
        numbers = range(start, min(start + 200, count + 1))
        await asyncio.gather(*[save.kiq(number) for number in numbers])
    await broker.shutdown()


def send(count: int, **job: Any) -> None:
    """Send so many tasks, from 1 on."""
    asyncio.run(_sent(count, **job))


async def _ready(url: str, name: str) -> int:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, passive=True)
        return int(queue.declaration_result.message_count or 0)


def left(engine: str, url: str, name: str, **_: Any) -> int:
    """Return how many tasks are not acknowledged; for RabbitMQ when no worker lives any more."""
    return left_on_jetstream(url, name) if engine == "nats" else asyncio.run(_ready(url, name))
