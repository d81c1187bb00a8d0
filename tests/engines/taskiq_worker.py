"""A worker process of the tests: what taskiq's own command starts, over the broker that it is told of."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import msgspec
from taskiq import SimpleRetryMiddleware, TaskiqEvents
from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.run import start_listen
from taskiq_support import broker_of

from microbatch import Batcher
from microbatch.engines.taskiq import attach


class Job(msgspec.Struct, kw_only=True):
    """What a worker is to do; as JSON its only argument."""

    engine: str
    url: str
    name: str
    log: str
    ready: str
    consumer: str
    redelivery: float
    batch: int = 20
    slots: int = 2
    every_bad: int = 0
    max_wait: float = 0.0
    hangs: bool = False
    wait_tasks: float | None = None
    shutdown: float = 60.0


JOB = msgspec.json.decode(sys.argv[1], type=Job)
LOG = os.open(JOB.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def handle(items: list[int]) -> list[int | Exception]:
    if JOB.hangs:
        os.write(LOG, f"hangs {' '.join(map(str, items))}\n".encode())
        await asyncio.sleep(3600)
    await asyncio.sleep(0.005)
    os.write(LOG, " ".join(map(str, items)).encode() + b"\n")
    bad = JOB.every_bad
    return [ValueError(item) if bad and item % bad == 0 else item for item in items]


batcher = Batcher(
    handle, max_batch_size=JOB.batch, max_concurrency=JOB.slots, max_wait=JOB.max_wait,
    handler_timeout=None if JOB.hangs else 60.0, telemetry=False,
)  # fmt: skip
broker = broker_of(JOB.engine, JOB.url, JOB.name, JOB.redelivery, at_once=4 * JOB.batch * JOB.slots)
if JOB.every_bad:
    broker.add_middlewares(SimpleRetryMiddleware(default_retry_count=3, default_retry_label=True))
attach(broker, batcher)


@broker.task(task_name="save")
async def save(item: int) -> None:
    os.write(LOG, f"takes {item}\n".encode())
    await batcher.submit(item)


broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, lambda _: Path(JOB.ready).touch())

if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    start_listen(
        WorkerArgs(
            broker=broker,  # type: ignore[arg-type]
            modules=[],
            max_async_tasks=4 * JOB.batch * JOB.slots,
            wait_tasks_timeout=JOB.wait_tasks,
            shutdown_timeout=JOB.shutdown,
            configure_logging=False,
        )
    )
