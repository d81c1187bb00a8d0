"""FastStream over RabbitMQ and Redis Streams: the same claims as over JetStream, in the words of each."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from crowd_support import Crowd, crowd

from benchmarks.servers import wait_until

pytestmark = pytest.mark.engines

MANY = 2_000


class Rabbit:
    """A classic queue with messages in it: what was acknowledged does not come again, whatever happens next."""

    engine = "rabbit"
    quorum = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = "q" + uuid.uuid4().hex[:12]
        asyncio.run(self._publish())

    async def _queue(self, channel: Any) -> Any:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 20} if self.quorum else {}
        return await channel.declare_queue(self.name, durable=True, arguments=arguments)

    async def _publish(self) -> None:
        import aio_pika

        connection = await aio_pika.connect(self.url)
        async with connection:
            channel = await connection.channel()
            await self._queue(channel)
            for start in range(1, MANY + 1, 200):
                sent = [
                    aio_pika.Message(str(n).encode(), content_type="application/json")
                    for n in range(start, start + 200)
                ]
                await asyncio.gather(
                    *[channel.default_exchange.publish(m, self.name) for m in sent]
                )

    async def _left(self) -> int:
        import aio_pika

        connection = await aio_pika.connect(self.url)
        async with connection:
            return (await self._queue(await connection.channel())).declaration_result.message_count

    def left(self) -> int:
        """Return how many messages nobody has acknowledged, when no worker lives any more."""
        return asyncio.run(self._left())


class Quorum(Rabbit):
    """A quorum queue, which counts deliveries.

    It stores acknowledgements after it took them, and has its channel keep back those behind 32 that are not stored
    yet: a channel that closes then loses them, and these messages come again.
    """

    quorum = True


class Redis:
    """A stream with a group that has read nothing."""

    engine = "redis"
    quorum = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = "s" + uuid.uuid4().hex[:12]
        asyncio.run(self._publish())

    async def _publish(self) -> None:
        from faststream.redis import RedisBroker
        from redis.asyncio import Redis as Client

        async with (
            Client.from_url(self.url) as client,
            RedisBroker(self.url, logger=None) as broker,
        ):
            await client.xgroup_create(self.name, "g", id="0", mkstream=True)
            for start in range(1, MANY + 1, 50):
                sent = [broker.publish(n, stream=self.name) for n in range(start, start + 50)]
                await asyncio.gather(*sent)

    async def _left(self) -> int:
        from redis.asyncio import Redis as Client

        async with Client.from_url(self.url) as client:
            (group,) = await client.xinfo_groups(self.name)
            return int(group["pending"]) + int(group["lag"] or 0)

    def left(self) -> int:
        return asyncio.run(self._left())


@pytest.fixture(params=[Rabbit, Redis], ids=["rabbit", "redis"])
def broker(request: pytest.FixtureRequest) -> Any:
    url = request.getfixturevalue(f"{request.param.engine}_url")
    return request.param(url)


@pytest.fixture(params=[Quorum, Redis], ids=["quorum", "redis"])
def counting(request: pytest.FixtureRequest) -> Any:
    """What tells how often a message came."""
    url = request.getfixturevalue(f"{request.param.engine}_url")
    return request.param(url)


def job(broker: Any, **more: Any) -> dict[str, Any]:
    return {
        "engine": broker.engine,
        "url": broker.url,
        "name": broker.name,
        "redelivery": 10.0,
        "quorum": broker.quorum,
    } | more


def test_two_workers_handle_each_message_once_in_few_calls(broker, tmp_path):
    """What a batcher in the worker is for."""
    with crowd(tmp_path, **job(broker, max_wait=0.1, redelivery=60.0)) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(MANY)
        workers.end(first)
        workers.end(second)
        assert broker.left() == 0
        assert set(workers.handled().values()) == {1}
        assert len(workers.calls()) < MANY / 5


def test_what_a_killed_worker_held_is_handled_by_the_other(broker, tmp_path):
    """Nothing is acknowledged before its item has its outcome, so `kill -9` loses nothing."""
    with crowd(tmp_path, **job(broker)) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(MANY * 3 // 10)
        workers.kill(first)
        workers.wait_for(MANY)
        if broker.engine == "redis":
            wait_until(lambda: broker.left() == 0, workers.said)
        workers.end(second)
        assert broker.left() == 0
        handled = workers.handled()
        assert len(handled) == MANY
        assert handled.total() - MANY <= 2 * 20 * 2


@pytest.mark.parametrize("kills", [False, True], ids=["both", "killed"])
def test_lists_of_a_stream_are_acknowledged_when_their_items_are_done(redis_url, tmp_path, kills):
    """The fast way has the same claims; FastStream has lists of Redis, and none of RabbitMQ."""
    stream = Redis(redis_url)
    redelivery = 8.0 if kills else 300.0
    with crowd(tmp_path, **job(stream, lists=True, redelivery=redelivery)) as workers:
        first, second = workers.start(), workers.start()
        workers.wait_for(MANY * 3 // 10)
        if kills:
            workers.kill(first)
        workers.wait_for(MANY)
        wait_until(lambda: stream.left() == 0, workers.said)
        for process in [second] if kills else [first, second]:
            workers.end(process)
        handled = workers.handled()
        assert len(handled) == MANY
        assert handled.total() - MANY <= (2 * 20 * 2 if kills else 0)
        assert len(workers.calls()) < MANY / 5


def stop_in_turn(workers: Crowd) -> None:
    """Have two workers handle all, of whom one is told to stop in the midst and the other at the end."""
    first, second = workers.start(), workers.start()
    workers.wait_for(MANY * 3 // 10)
    workers.end(first)
    workers.wait_for(MANY)
    workers.end(second)


def test_a_worker_that_is_told_to_stop_loses_nothing_and_repeats_nothing(broker, tmp_path):
    """A deployment stops workers all the time."""
    with crowd(tmp_path, **job(broker)) as workers:
        stop_in_turn(workers)
        assert broker.left() == 0
        assert set(workers.handled().values()) == {1}


def test_a_quorum_queue_loses_nothing_and_repeats_no_more_than_it_handed_out(rabbit_url, tmp_path):
    """What its channels had not stored as they closed comes again, although each message was acknowledged."""
    queue = Quorum(rabbit_url)
    with crowd(tmp_path, **job(queue)) as workers:
        stop_in_turn(workers)
        handled = workers.handled()
        assert len(handled) == MANY
        assert handled.total() - MANY + queue.left() <= 2 * (2 * 20 * 2)


def test_only_bad_items_come_again_and_end_rejected(counting, tmp_path):
    """Their neighbours are acknowledged, each by its own outcome."""
    bad = set(range(100, MANY + 1, 100))
    batch = 7 if counting.quorum else 20  # 28 messages at once: each acknowledgement is stored
    redelivery = 6.0 if counting.engine == "redis" else 10.0
    with crowd(
        tmp_path, **job(counting, every_bad=100, redelivery=redelivery, batch=batch)
    ) as workers:
        first = workers.start()
        workers.wait_for(MANY)
        wait_until(lambda: all(workers.handled()[item] >= 3 for item in bad), workers.said)
        workers.end(first)
        assert counting.left() == 0
        handled = workers.handled()
        assert {item for item, times in handled.items() if times == 3} == bad
        if counting.quorum:  # on Redis a worker that this machine stops for 6 s repeats more
            assert {times for item, times in handled.items() if item not in bad} == {1}


def test_a_worker_whose_backend_hangs_stops_in_time_and_hands_back(broker, tmp_path):
    """The next worker handles what it had."""
    with crowd(tmp_path, **job(broker)) as workers:
        hanging = workers.start(hangs=True, graceful=5.0)
        workers.wait_for_hung(1)
        workers.end(hanging)
        held = workers.hung()
        workers.start()
        workers.wait_for_these(held)
