"""A worker process of the tests: taskiq over NATS JetStream, run as its own command runs one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
from nats.js.api import ConsumerConfig
from taskiq.receiver import Receiver
from taskiq_nats import PullBasedJetStreamBroker

from microbatch import Batcher
from microbatch.engines.taskiq import attach


class Job(msgspec.Struct, kw_only=True):
    """What a worker is to do; as JSON its only argument."""

    url: str
    name: str
    log: str
    batch: int = 20
    slots: int = 2
    redelivery: float = 15.0
    max_wait: float = 0.0


JOB = msgspec.json.decode(sys.argv[1], type=Job)
LOG = os.open(JOB.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def handle(items: list[int]) -> list[int]:
    await asyncio.sleep(0.005)
    os.write(LOG, " ".join(map(str, items)).encode() + b"\n")
    return items


batcher = Batcher(
    handle, max_batch_size=JOB.batch, max_concurrency=JOB.slots, max_wait=JOB.max_wait,
    handler_timeout=5.0, telemetry=False,
)  # fmt: skip
broker = PullBasedJetStreamBroker(
    JOB.url, subject=JOB.name, stream_name=JOB.name, durable="w", pull_consume_batch=2 * JOB.batch,
    pull_consume_timeout=1.0, consumer_config=ConsumerConfig(durable_name="w", ack_wait=JOB.redelivery),
)  # fmt: skip
attach(broker, batcher)


@broker.task(task_name="save")
async def save(item: int) -> None:
    await batcher.submit(item)


async def main() -> None:
    finish = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, finish.set)
    broker.is_worker_process = True
    with ThreadPoolExecutor(1) as executor:
        receiver = Receiver(
            broker, executor, run_startup=True, max_async_tasks=4 * JOB.batch * JOB.slots
        )
        await receiver.listen(finish)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
