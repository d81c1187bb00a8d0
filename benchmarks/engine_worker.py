"""A worker process of the benchmark of engines: one broker, one way to call the backend.

Its only argument is JSON. It says that it is ready, waits for a line, and takes messages until it is killed.
Each call of the backend ends with a line in a file that all workers share: when it ended, and its items.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Annotated, Any

import msgspec
from faststream import AckPolicy, Context, FastStream

from benchmarks.floor import FloorBatcher
from microbatch import Batcher, Retry
from microbatch.engines.faststream import drained, settle, settle_many
from microbatch.engines.taskiq import attach

Message = Annotated[Any, Context("message")]
#: What is wrong goes to stderr, what an engine says of each message nowhere.
LOGGER = logging.getLogger("worker")
INSERT = "INSERT INTO taken SELECT unnest($1::bigint[]) ON CONFLICT DO NOTHING"
RETRY = Retry(on=ConnectionError, attempts=5)


class Job(msgspec.Struct, kw_only=True):
    """What a worker is to do."""

    engine: str  # "faststream" or "taskiq"
    url: str
    name: str  # of the stream or queue
    way: str  # "each", "floor", "ours", "lists" or "our lists"
    log: str
    database: str | None = None  # without one a call takes `seconds`
    batch: int = 100
    slots: int = 2
    wait: float = 0.02
    seconds: float = 0.005
    redelivery: float = 30.0

    @property
    def at_once(self) -> int:
        """Messages in hand at the same time: each slot's batch, and as much again that fills meanwhile."""
        return 2 * self.slots * self.batch


class Sink:
    """The backend: so many calls at once, whoever calls."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.slots = asyncio.Semaphore(job.slots)
        self.log = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.pool: asyncio.Task[Any] | None = None

    async def __call__(self, items: list[int]) -> list[int]:
        async with self.slots:
            if self.job.database is None:
                await asyncio.sleep(self.job.seconds)
            else:
                if self.pool is None:
                    self.pool = asyncio.create_task(self.connect())
                await (await self.pool).execute(INSERT, items)
        words = " ".join(map(str, items))
        os.write(self.log, f"{time.monotonic()} {words}\n".encode())
        return items

    async def connect(self) -> Any:
        import asyncpg

        size = self.job.slots
        return await asyncpg.create_pool(self.job.database, min_size=size, max_size=size)


def submitter(job: Job, sink: Sink) -> tuple[Any, Batcher[Any, Any] | None]:
    """Return what hands one item in, and the batcher if it is ours."""
    if job.way == "each":
        return lambda item: sink([item]), None
    if job.way == "floor":
        return FloorBatcher(sink, max_batch_size=job.batch, max_wait=job.wait).submit, None
    batcher = Batcher(
        sink, max_batch_size=job.batch, max_concurrency=job.slots, max_wait=job.wait,
        handler_timeout=10.0, telemetry=False,
    )  # fmt: skip
    return batcher.submit, batcher


def faststream_app(job: Job) -> FastStream:
    """Return an application whose messages are acknowledged by hand, whoever batches them."""
    sink = Sink(job)
    submit, batcher = submitter(job, sink)

    async def by_hand(item: int, message: Message) -> None:
        await submit(item)
        await message.ack()

    async def by_settle(item: int, message: Message) -> None:
        await settle(message, submit(item), retry=RETRY)

    async def lists(items: list[int], message: Message) -> None:
        await sink(items)
        await message.ack()

    async def our_lists(items: list[int], message: Message) -> None:
        await settle_many(message, batcher.submit_many_report(items), retry=RETRY)

    taking = {"ours": by_settle, "lists": lists, "our lists": our_lists}.get(job.way, by_hand)
    broker = (on_nats if job.url.startswith("nats") else on_rabbit)(job, taking)
    return FastStream(broker, lifespan=drained(batcher) if batcher else None, logger=None)


def on_nats(job: Job, taking: Any) -> Any:
    from faststream.nats import JStream, NatsBroker, PullSub
    from nats.js.api import ConsumerConfig

    broker = NatsBroker(job.url, logger=LOGGER)
    config = ConsumerConfig(
        ack_wait=job.redelivery, max_deliver=10, durable_name="w", max_ack_pending=10_000
    )
    lists = job.way.endswith("lists")
    pull = PullSub(batch_size=job.batch, timeout=1.0, batch=lists)
    broker.subscriber(
        job.name, stream=JStream(job.name, subjects=[job.name], declare=False), durable="w",
        pull_sub=pull, config=config, ack_policy=AckPolicy.MANUAL,
        **({} if lists else {"max_workers": job.at_once}),
    )(taking)  # fmt: skip
    return broker


def on_rabbit(job: Job, taking: Any) -> Any:
    from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

    broker = RabbitBroker(job.url, logger=LOGGER)
    arguments = {"x-delivery-limit": 10}
    queue = RabbitQueue(job.name, queue_type=QueueType.QUORUM, durable=True, arguments=arguments)
    channel = Channel(prefetch_count=job.at_once)
    broker.subscriber(queue, channel=channel, ack_policy=AckPolicy.MANUAL)(taking)
    return broker


def taskiq_broker(url: str, name: str, *, batch: int = 100, redelivery: float = 30.0) -> Any:
    from nats.js.api import ConsumerConfig
    from taskiq_nats import PullBasedJetStreamBroker

    class Broker(PullBasedJetStreamBroker):
        """taskiq-nats ends at a TimeoutError that is not its client's own; that one means the same."""

        async def listen(self):
            while True:
                try:
                    async for message in super().listen():
                        yield message
                except TimeoutError:
                    continue

    return Broker(
        url, subject=name, stream_name=name, durable="w",
        pull_consume_batch=batch, pull_consume_timeout=1.0,
        consumer_config=ConsumerConfig(
            durable_name="w", ack_wait=redelivery, max_ack_pending=10_000
        ),
    )  # fmt: skip


def run_taskiq(job: Job) -> None:
    """Run what taskiq's own command runs in each process."""
    from taskiq.cli.worker.args import WorkerArgs
    from taskiq.cli.worker.run import start_listen

    broker = taskiq_broker(job.url, job.name, batch=job.batch, redelivery=job.redelivery)
    submit, batcher = submitter(job, Sink(job))

    @broker.task(task_name="save")
    async def save(item: int) -> None:
        await submit(item)

    if batcher is not None:
        attach(broker, batcher)
    start_listen(
        WorkerArgs(broker=broker, modules=[], max_async_tasks=job.at_once, configure_logging=False)
    )


def main() -> None:
    job = msgspec.json.decode(sys.argv[1], type=Job)
    print("ready", flush=True)
    sys.stdin.readline()
    if job.engine == "taskiq":
        run_taskiq(job)
    else:
        asyncio.run(faststream_app(job).run())


if __name__ == "__main__":
    main()
