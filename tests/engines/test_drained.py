"""`drained`: when batchers open and drain with a FastStream application, and what it warns of."""

from __future__ import annotations

import asyncio
import logging
import warnings
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from faststream import AckPolicy, Context, FastStream, TestApp
from faststream.kafka import KafkaBroker
from faststream.nats import JStream, NatsBroker, PullSub, TestNatsBroker
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue, TestRabbitBroker
from faststream.redis import RedisBroker, StreamSub, TestRedisBroker
from messages_support import until
from nats.js.api import ConsumerConfig

from microbatch import Batcher, BatcherClosed, Retry, current_batch
from microbatch.engines.faststream import drained, settle, settle_many

Message = Annotated[Any, Context("message")]
QUIET = logging.getLogger("quiet")
RETRY = Retry(on=OSError)


def made(**settings: Any) -> Batcher[int, int]:
    async def handle(items: list[int]) -> list[int]:
        return items

    defaults = {"handler_timeout": 5.0, "max_batch_size": 10}
    return Batcher(handle, **(defaults | settings))


async def settled(item: int, message: Message) -> None:
    """A subscriber's function, for those that get no message here."""


async def advice(app: FastStream, test_broker: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        async with test_broker, TestApp(app):
            pass
    return [str(warning.message) for warning in told if warning.category is RuntimeWarning]


def on_nats(batcher: Batcher[Any, Any], *, limit: int | None = 5, **options: Any) -> list[str]:
    broker = NatsBroker(logger=QUIET)
    config = ConsumerConfig(max_deliver=limit, **options.pop("config", {}))
    broker.subscriber(
        "rows", stream=JStream("rows"), durable="w", config=config,
        **({"ack_policy": AckPolicy.MANUAL, "pull_sub": True, "max_workers": 20} | options),
    )(settled)  # fmt: skip
    app = FastStream(broker, lifespan=drained(batcher), logger=None)
    return asyncio.run(advice(app, TestNatsBroker(broker)))


def test_a_subscriber_with_room_for_two_batches_and_time_for_one_is_told_nothing():
    """Advice that comes always is read never."""
    assert on_nats(made()) == []
    assert on_nats(made(), pull_sub=PullSub(10, batch=True), max_workers=1) == []
    assert on_nats(made(), ack_policy=AckPolicy.NACK_ON_ERROR, max_workers=1) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_workers": 19}, "max_workers=19 is below 2 x max_batch_size=10"),
        ({"max_workers": 1}, "PullSub(batch_size)=1 is below 2 x max_batch_size=10"),
        ({"max_workers": 1, "pull_sub": None, "durable": None}, "max_workers=1 is below 2 x"),
        ({"config": {"max_ack_pending": 15}}, "max_ack_pending=15 is below 2 x max_batch_size=10"),
        (
            {"max_workers": 1, "pull_sub": PullSub(9, batch=True)},
            "PullSub(batch_size)=9 is below max_batch_size=10",
        ),
        ({"config": {"ack_wait": 4.0}}, "ack_wait=4 s may be over before max_wait=0 s and handler_timeout=5 s"),
        ({"limit": None}, "there is no max_deliver, so a message that kills its worker comes again for ever"),
    ],
)  # fmt: skip
def test_what_keeps_batches_small_or_brings_messages_twice_is_told_by_name(options, told):
    """The size trigger that can never fire shows as latency alone, and nobody looks there."""
    if options.get("durable", 1) is None:
        broker = NatsBroker(logger=QUIET)
        broker.subscriber(
            "rows",
            stream=JStream("rows"),
            ack_policy=AckPolicy.MANUAL,
            config=ConsumerConfig(max_deliver=5),
        )(settled)
        app = FastStream(broker, lifespan=drained(made()), logger=None)
        (text,) = asyncio.run(advice(app, TestNatsBroker(broker)))
    else:
        (text,) = on_nats(made(), **options)
    assert told in text
    assert text.startswith("subscriber of the stream 'rows'")


def test_no_handler_timeout_is_told_once():
    """However often the application starts."""
    lifespan = drained(made(handler_timeout=None))
    for times in (1, 0):
        broker = NatsBroker(logger=QUIET)
        app = FastStream(broker, lifespan=lifespan, logger=None)
        told = asyncio.run(advice(app, TestNatsBroker(broker)))
        assert len(told) == times
        assert all("has no handler_timeout: a backend that hangs" in text for text in told)


def test_core_nats_and_other_brokers_are_told_nothing():
    """Nothing is known of them."""
    broker, other = NatsBroker(logger=QUIET), KafkaBroker(logger=QUIET)
    broker.subscriber("rows", ack_policy=AckPolicy.MANUAL)(settled)
    other.subscriber("rows", ack_policy=AckPolicy.MANUAL, group_id="g")(settled)
    from faststream.kafka import TestKafkaBroker

    async def main() -> list[str]:
        async with TestKafkaBroker(other):
            app = FastStream(broker, other, lifespan=drained(made()), logger=None)
            return await advice(app, TestNatsBroker(broker))

    assert asyncio.run(main()) == []


@pytest.mark.parametrize(
    ("queue", "channel", "told"),
    [
        (RabbitQueue("rows"), None, ["a queue that is no quorum queue does not count deliveries"]),
        (RabbitQueue("rows", queue_type=QueueType.QUORUM, durable=True), None, ["there is no x-delivery-limit"]),
        (
            RabbitQueue("rows", queue_type=QueueType.QUORUM, durable=True, arguments={"x-delivery-limit": 5}),
            Channel(prefetch_count=19), ["prefetch_count=19 is below 2 x max_batch_size=10"],
        ),
        (
            RabbitQueue("rows", queue_type=QueueType.QUORUM, durable=True, arguments={"x-delivery-limit": 5}),
            None, [],
        ),
    ],
)  # fmt: skip
def test_what_is_told_of_a_queue_of_rabbitmq(queue, channel, told):
    """Only a quorum queue counts, and its limit has to be set."""
    broker = RabbitBroker(logger=QUIET)
    broker.subscriber(queue, channel=channel, ack_policy=AckPolicy.MANUAL)(settled)
    app = FastStream(broker, lifespan=drained(made()), logger=None)
    texts = asyncio.run(advice(app, TestRabbitBroker(broker)))
    assert len(texts) == len(told)
    assert all(part in text for part, text in zip(told, texts, strict=True))


@pytest.mark.parametrize(
    ("stream", "options", "told"),
    [
        (StreamSub("rows", group="g", consumer="c"), {"max_workers": 20}, []),
        (StreamSub("rows"), {}, []),
        (StreamSub("rows", group="g", consumer="c"), {}, ["max_workers=1 is below 2 x"]),
        (
            StreamSub("rows", group="g", consumer="c", batch=True, max_records=9, min_idle_time=5000), {},
            ["StreamSub(max_records)=9 is below max_batch_size=10", "min_idle_time=5 s may be over before"],
        ),
    ],
)  # fmt: skip
def test_what_is_told_of_a_stream_of_redis(stream, options, told):
    """A default subscriber handles one message at a time."""
    broker = RedisBroker(logger=QUIET)
    broker.subscriber(stream=stream, ack_policy=AckPolicy.MANUAL, **options)(settled)
    app = FastStream(broker, lifespan=drained(made()), logger=None)
    texts = asyncio.run(advice(app, TestRedisBroker(broker)))
    assert len(texts) == len(told)
    assert all(part in text for part, text in zip(told, texts, strict=True))


def test_wrong_arguments_are_refused():
    """At the line that has them wrong."""
    with pytest.raises(TypeError, match="drained needs at least one batcher, got none"):
        drained()
    with pytest.raises(TypeError, match="drained takes batchers, got 5"):
        drained(5)  # type: ignore[arg-type]


def test_messages_become_items_and_batchers_open_and_drain_with_the_application():
    """All of it in memory, as a user's own test does it."""
    seen: list[tuple[str, list[int]]] = []

    async def handle(items: list[int]) -> list[int]:
        batch = current_batch()
        assert batch is not None
        seen.append((batch.reason, items))
        return items

    batcher = Batcher(handle, max_wait=3600, handler_timeout=5.0)
    broker = NatsBroker(logger=QUIET)
    options: Any = {"stream": JStream("rows"), "ack_policy": AckPolicy.MANUAL}

    @broker.subscriber("rows", durable="w", pull_sub=True, max_workers=200, **options)
    async def on_row(item: int, message: Message) -> None:
        await settle(
            message, batcher.submit(item)
        )  # a broker in memory has no limit to be asked for

    @broker.subscriber("lists", durable="v", pull_sub=PullSub(100, batch=True), **options)
    async def on_rows(items: list[int], message: Message) -> None:
        await settle_many(message, batcher.submit_many_report(items), retry=RETRY)

    app = FastStream(broker, lifespan=drained(batcher), logger=None)

    async def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            async with TestNatsBroker(broker), TestApp(app):
                first = asyncio.create_task(broker.publish(1, "rows", stream="rows"))
                second = asyncio.create_task(broker.publish(2, "lists", stream="rows"))
                await until(lambda: batcher.stats().buffered == 2)
        await asyncio.gather(first, second)
        with pytest.raises(BatcherClosed):
            await batcher.submit(3)

    asyncio.run(main())
    assert [(reason, sorted(items)) for reason, items in seen] == [("close", [1, 2])]


@pytest.mark.parametrize(
    ("graceful", "own", "ends"), [(1.0, 30.0, True), (None, 0.05, True), (1e6, None, False)]
)
def test_draining_ends_before_faststream_stops_to_wait(graceful, own, ends):
    """A backend that hangs keeps nobody longer, and its message is handed back while the connection stands."""

    async def handle(items: list[int]) -> list[int]:
        await asyncio.sleep(3600 if ends else 0.01)
        return items

    batcher = Batcher(handle, handler_timeout=3600.0, drain_timeout=own)
    broker = NatsBroker(logger=QUIET, graceful_timeout=graceful)
    app = FastStream(broker, lifespan=drained(batcher), logger=None)

    async def main() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            async with TestNatsBroker(broker), TestApp(app):
                task = asyncio.create_task(batcher.submit(1))
                await until(lambda: batcher.stats().in_flight)
        return (await asyncio.gather(task, return_exceptions=True))[0]

    result = asyncio.run(main())
    assert isinstance(result, BatcherClosed) if ends else result == 1


def test_a_lifespan_of_ones_own_can_hold_it():
    """An application has but one."""
    from contextlib import asynccontextmanager

    batcher, other = made(), made()
    broker = NatsBroker(logger=QUIET)
    inside: list[int] = []

    @asynccontextmanager
    async def lifespan(app: Annotated[Any, Context("app")]):
        async with drained(batcher, other)(app):
            inside.append(await batcher.submit(1) + await other.submit(2))
            yield

    app = FastStream(broker, lifespan=lifespan, logger=None)
    assert asyncio.run(advice(app, TestNatsBroker(broker))) == []
    assert inside == [3]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ConsumerConfig(durable_name="w", max_deliver=-1, ack_wait=30.0), ["there is no max_deliver"]),
        (ConsumerConfig(durable_name="w", max_deliver=5, ack_wait=1.0), ["ack_wait=1 s may be over"]),
        (ConnectionError(), []),
    ],
)  # fmt: skip
def test_the_server_has_the_last_word_on_a_consumer(answer, told):
    """A durable consumer keeps the settings that it was made with; where nobody answers, what is declared counts."""
    broker = NatsBroker(logger=QUIET)
    subscriber = broker.subscriber(
        "rows", stream=JStream("rows"), durable="w", pull_sub=True, max_workers=20,
        config=ConsumerConfig(max_deliver=5), ack_policy=AckPolicy.MANUAL,
    )  # fmt: skip

    class Subscription:
        async def consumer_info(self) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(config=answer)

        async def unsubscribe(self) -> None:
            """It stops with its broker."""

    subscriber.subscription = Subscription()  # type: ignore[assignment]
    subscriber(settled)
    app = FastStream(broker, lifespan=drained(made()), logger=None)
    texts = asyncio.run(advice(app, TestNatsBroker(broker)))
    assert len(texts) == len(told)
    assert all(part in text for part, text in zip(told, texts, strict=True))
