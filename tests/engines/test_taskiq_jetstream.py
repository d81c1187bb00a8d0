"""taskiq over NATS JetStream: two workers, and what becomes of the tasks of one that dies or stops."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from crowd_support import crowd
from jetstream_support import left
from servers_support import wait_until
from taskiq.kicker import AsyncKicker
from taskiq_nats import PullBasedJetStreamBroker

pytestmark = pytest.mark.engines

MANY = 2_000
WORKER = Path(__file__).with_name("taskiq_worker.py")


async def sent(url: str, name: str) -> None:
    broker = PullBasedJetStreamBroker(url, subject=name, stream_name=name, durable="w")
    await broker.startup()
    save = AsyncKicker[[int], None]("save", broker, {})
    for start in range(1, MANY + 1, 200):
        await asyncio.gather(*[save.kiq(number) for number in range(start, start + 200)])
    await broker.shutdown()


@pytest.fixture
def name(nats_url: str) -> str:
    made = "t" + uuid.uuid4().hex[:12]
    asyncio.run(sent(nats_url, made))
    return made


def test_two_workers_handle_each_task_once_in_few_calls(nats_url, name, tmp_path):
    """What a batcher in the worker is for."""
    with crowd(tmp_path, WORKER, url=nats_url, name=name, max_wait=0.1) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(MANY)
        wait_until(lambda: left(nats_url, name) == 0, workers.said)
        workers.end(first)
        workers.end(second)
        assert set(workers.handled().values()) == {1}
        assert len(workers.calls()) < MANY / 5


def test_what_a_killed_worker_held_is_handled_by_the_other(nats_url, name, tmp_path):
    """A task is acknowledged when its function has ended, and that waits for its item."""
    with crowd(tmp_path, WORKER, url=nats_url, name=name) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(MANY * 3 // 10)
        workers.kill(first)
        workers.wait_for(MANY)
        wait_until(lambda: left(nats_url, name) == 0, workers.said)
        workers.end(second)
        assert len(workers.handled()) == MANY
        assert workers.handled().total() - MANY <= 2 * 20 * 2


def test_a_worker_that_is_told_to_stop_loses_nothing_and_repeats_nothing(nats_url, name, tmp_path):
    """It waits for its running tasks while its connection stands."""
    with crowd(tmp_path, WORKER, url=nats_url, name=name) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(MANY * 3 // 10)
        workers.end(first)
        workers.wait_for(MANY)
        wait_until(lambda: left(nats_url, name) == 0, workers.said)
        workers.end(second)
        assert set(workers.handled().values()) == {1}
        assert len(workers.handled()) == MANY
