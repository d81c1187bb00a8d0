"""FastStream over NATS JetStream: two workers, and what becomes of the messages of one that dies, stops or hangs."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from crowd_support import Crowd, crowd
from jetstream_support import left

from benchmarks.servers import wait_until

nats = pytest.importorskip("nats")
pytestmark = pytest.mark.engines

MANY = 2_000


async def published(url: str, name: str, items: range) -> None:
    """Make a stream and put messages into it."""
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name=name, subjects=[name], storage="memory")
        for start in range(items.start, items.stop, 200):
            part = range(start, min(start + 200, items.stop))
            await asyncio.gather(*[stream.publish(name, str(item).encode()) for item in part])
    finally:
        await client.close()


@pytest.fixture
def name(nats_url: str) -> str:
    made = "s" + uuid.uuid4().hex[:12]
    asyncio.run(published(nats_url, made, range(1, MANY + 1)))
    return made


def all_done(workers: Crowd, url: str, name: str) -> None:
    """Wait until each message was handled and nothing is left."""
    workers.wait_for(MANY)
    wait_until(lambda: left(url, name) == 0, workers.said)


@pytest.mark.parametrize("lists", [False, True], ids=["messages", "lists"])
def test_two_workers_handle_each_message_once_in_few_calls(nats_url, name, tmp_path, lists):
    """What a batcher in the worker is for."""
    with crowd(
        tmp_path, engine="nats", url=nats_url, name=name, lists=lists, max_wait=0.1
    ) as workers:
        first, second = workers.start(), workers.start()
        all_done(workers, nats_url, name)
        workers.end(first)
        workers.end(second)
        assert set(workers.handled().values()) == {1}
        assert len(workers.calls()) < MANY / 5


@pytest.mark.parametrize("lists", [False, True], ids=["messages", "lists"])
def test_what_a_killed_worker_held_is_handled_by_the_other(nats_url, name, tmp_path, lists):
    """Nothing is acknowledged before its item has its outcome, so `kill -9` loses nothing."""
    job = {"engine": "nats", "url": nats_url, "name": name, "redelivery": 10.0}
    with crowd(tmp_path, **job, lists=lists) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(MANY * 3 // 10)
        workers.kill(first)
        all_done(workers, nats_url, name)
        workers.end(second)
        handled = workers.handled()
        assert len(handled) == MANY
        assert handled.total() - MANY <= 2 * 20 * 2


def test_a_worker_that_is_told_to_stop_loses_nothing_and_repeats_nothing(nats_url, name, tmp_path):
    """A deployment stops workers all the time."""
    with crowd(tmp_path, engine="nats", url=nats_url, name=name) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(MANY * 3 // 10)
        workers.end(first)
        all_done(workers, nats_url, name)
        workers.end(second)
        assert set(workers.handled().values()) == {1}
        assert len(workers.handled()) == MANY


def test_only_bad_items_come_again_and_end_rejected(nats_url, name, tmp_path):
    """Their neighbours are acknowledged, each by its own outcome."""
    with crowd(tmp_path, engine="nats", url=nats_url, name=name, every_bad=100) as workers:
        first, second = workers.start(), workers.start()
        all_done(workers, nats_url, name)
        workers.end(first)
        workers.end(second)
        handled = workers.handled()
        assert {item for item, times in handled.items() if times == 3} == set(
            range(100, MANY + 1, 100)
        )
        assert {times for item, times in handled.items() if item % 100} == {1}
        assert workers.said().count("the first one's item failed with ValueError") == MANY // 100


def test_a_worker_whose_backend_hangs_stops_in_time_and_hands_back(nats_url, name, tmp_path):
    """With five minutes before the server itself would give them out again, only handing back can be why they came."""
    job = {"engine": "nats", "url": nats_url, "name": name, "redelivery": 300.0}
    with crowd(tmp_path, **job) as workers:
        hanging = workers.start(hangs=True, graceful=5.0)
        workers.wait_for_hung(1)
        workers.end(hanging)
        held = workers.hung()
        workers.start()
        workers.wait_for_these(held)
