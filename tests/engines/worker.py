"""A worker process of the tests: a FastStream application over the broker that it is told of.

Each handler call ends with one line in a file that all workers share: what it handled. So what was handled, how often
and in how many calls is there to read, whatever becomes of the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from faststream import AckPolicy, Context, FastStream

from microbatch import Backoff, Batcher, Retry
from microbatch.engines.faststream import drained, settle, settle_many

Message = Annotated[Any, Context("message")]


class Job(msgspec.Struct, kw_only=True):
    """What a worker is to do; as JSON its only argument."""

    engine: str
    url: str
    name: str
    log: str
    ready: str
    batch: int = 20
    slots: int = 2
    seconds: float = 0.005
    redelivery: float = 15.0
    every_bad: int = 0
    attempts: int = 3
    hangs: bool = False
    lists: bool = False
    graceful: float = 15.0
    max_wait: float = 0.0
    consumer: str = "one"
    quorum: bool = False


JOB = msgspec.json.decode(sys.argv[1], type=Job)
#: Without a handler of its own: what is wrong goes to stderr, what FastStream says of each message nowhere.
LOGGER = logging.getLogger("worker")
LOG = os.open(JOB.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
RETRY = Retry(on=ValueError, attempts=JOB.attempts, backoff=Backoff(initial=0.05, maximum=0.1))


async def handle(items: list[int]) -> list[int | Exception]:
    if JOB.hangs:
        os.write(LOG, f"hangs {' '.join(map(str, items))}\n".encode())
        await asyncio.sleep(3600)
    await asyncio.sleep(JOB.seconds)
    os.write(LOG, " ".join(map(str, items)).encode() + b"\n")
    bad = JOB.every_bad
    return [ValueError(item) if bad and item % bad == 0 else item for item in items]


batcher = Batcher(
    handle, max_batch_size=JOB.batch, max_concurrency=JOB.slots, max_wait=JOB.max_wait,
    handler_timeout=None if JOB.hangs else 60.0, telemetry=False,
)  # fmt: skip


async def on_one(item: int, message: Message) -> None:
    await settle(message, batcher.submit(item), retry=RETRY)


async def on_list(items: list[int], message: Message) -> None:
    await settle_many(message, batcher.submit_many_report(items), retry=RETRY)


def on_nats() -> Any:
    from faststream.nats import JStream, NatsBroker, PullSub
    from nats.js.api import ConsumerConfig

    broker = NatsBroker(JOB.url, graceful_timeout=JOB.graceful, logger=LOGGER)
    config = ConsumerConfig(ack_wait=JOB.redelivery, max_deliver=20, durable_name="w")
    stream = JStream(JOB.name, subjects=[JOB.name], declare=False)
    options = {"stream": stream, "durable": "w", "config": config, "ack_policy": AckPolicy.MANUAL}
    pull = {"batch_size": JOB.batch * 2, "timeout": 1.0}
    if JOB.lists:
        broker.subscriber(JOB.name, pull_sub=PullSub(**pull, batch=True), **options)(on_list)
    else:
        workers = JOB.batch * JOB.slots * 2
        broker.subscriber(JOB.name, pull_sub=PullSub(**pull), max_workers=workers, **options)(
            on_one
        )
    return broker


def on_rabbit() -> Any:
    from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

    broker = RabbitBroker(JOB.url, graceful_timeout=JOB.graceful, logger=LOGGER)
    kind = (
        {"queue_type": QueueType.QUORUM, "arguments": {"x-delivery-limit": 20}}
        if JOB.quorum
        else {}
    )
    queue = RabbitQueue(JOB.name, durable=True, **kind)
    channel = Channel(prefetch_count=JOB.batch * JOB.slots * 2)
    broker.subscriber(queue, channel=channel, ack_policy=AckPolicy.MANUAL)(on_one)
    return broker


def on_redis() -> Any:
    from faststream.redis import RedisBroker, StreamSub

    broker = RedisBroker(JOB.url, graceful_timeout=JOB.graceful, logger=LOGGER)
    common = {
        "group": "g", "max_records": JOB.batch * 2, "polling_interval": 50, "batch": JOB.lists,
    }  # fmt: skip
    idle = round(JOB.redelivery * 1000)
    news = StreamSub(JOB.name, consumer=JOB.consumer, **common)
    left = StreamSub(JOB.name, consumer=f"{JOB.consumer}-claims", min_idle_time=idle, **common)
    workers = {} if JOB.lists else {"max_workers": JOB.batch * JOB.slots}
    for stream in (news, left):
        broker.subscriber(stream=stream, ack_policy=AckPolicy.MANUAL, **workers)(
            on_list if JOB.lists else on_one
        )
    return broker


app = FastStream(
    {"nats": on_nats, "rabbit": on_rabbit, "redis": on_redis}[JOB.engine](),
    lifespan=drained(batcher),
    logger=None,
)


@app.after_startup
def ready() -> None:
    Path(JOB.ready).touch()


logging.getLogger("microbatch").addHandler(logging.StreamHandler())

if __name__ == "__main__":
    asyncio.run(app.run())
