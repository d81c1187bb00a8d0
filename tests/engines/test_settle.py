"""`settle` and `settle_many`, with each broker's own messages and stand-ins for their connections."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from faststream.message import StreamMessage
from messages_support import core, jetstream, kafka, rabbit, redis, until

from microbatch import (
    Backoff,
    Batcher,
    BatcherClosed,
    BatchReport,
    ItemError,
    Outcome,
    RateLimited,
    Retry,
)
from microbatch.engines.faststream import settle, settle_many

RETRY = Retry(on=OSError, attempts=3, backoff=Backoff(initial=2.0, jitter=0.0))


def run(main: Any) -> Any:
    return asyncio.run(main)


async def ends(error: Exception | None) -> int:
    if error is not None:
        raise error
    return 1


def report(*errors: Exception | None) -> BatchReport[int]:
    return BatchReport(
        Outcome(index, error is None, error=error) for index, error in enumerate(errors)
    )


@pytest.mark.parametrize(
    ("error", "delivered", "said"),
    [
        (None, 1, [("ack",)]),
        (OSError(), 1, [("nak", 2.0)]),
        (OSError(), 2, [("nak", 4.0)]),
        (OSError(), 3, [("term",)]),
        (ValueError(), 1, [("term",)]),
        (BatcherClosed("b"), 9, [("nak", None)]),
    ],
)
def test_a_message_of_jetstream(error, delivered, said):
    """The delay is the broker's to wait, and the count of deliveries is its own."""
    message, wire = jetstream(delivered)
    run(settle(message, ends(error), retry=RETRY))
    assert wire.said == said
    assert message.committed is not None


@pytest.mark.parametrize(
    ("error", "headers", "redelivered", "said"),
    [
        (None, {}, False, [("ack",)]),
        (OSError(), {}, False, [("nack", True)]),
        (OSError(), {"x-delivery-count": 1}, True, [("nack", True)]),
        (OSError(), {"x-delivery-count": 2}, True, [("reject", False)]),
        (
            OSError(),
            {},
            True,
            [("reject", False)],
        ),  # a classic queue: it came before, who knows how often
        (ValueError(), {}, False, [("reject", False)]),
        (BatcherClosed("b"), {}, True, [("nack", True)]),
    ],
)
def test_a_message_of_rabbitmq(error, headers, redelivered, said):
    """A quorum queue counts; a classic one says only that it is not the first time."""
    message, wire = rabbit(headers, redelivered)
    run(settle(message, ends(error), retry=RETRY))
    assert wire.said == said


@pytest.mark.parametrize(
    ("error", "delivered", "acknowledged"),
    [
        (None, 1, 1),
        (OSError(), 2, 0),
        (OSError(), 3, 1),
        (ValueError(), 1, 1),
        (BatcherClosed("b"), 9, 0),
    ],
)
def test_a_message_of_a_redis_stream(error, delivered, acknowledged):
    """What comes again stays pending; a stream has no other end for what is rejected than its acknowledgement."""
    message, wire = redis([b"1-0"], [delivered])
    run(settle(message, ends(error), retry=RETRY))
    assert wire.said == [("xack", b"1-0")] * acknowledged


def test_lists_of_messages_are_acknowledged_one_by_one():
    """One bad item must not bring its neighbours again."""
    message, wire = jetstream(1, 1, 3)
    run(settle_many(message, report(None, OSError(), OSError()), retry=RETRY))
    assert wire.said == [("ack",), ("nak", 2.0), ("term",)]
    assert message.committed is not None
    message, wire = redis([b"1-0", b"2-0", b"3-0"], [1, 1, 1], batch=True)
    run(settle_many(message, report(None, OSError(), ValueError()), retry=RETRY))
    assert wire.said == [("xack", b"1-0", b"3-0")]
    message, wire = redis([b"1-0", b"2-0"], [1, 1], batch=True, told=True)
    run(settle_many(message, report(OSError(), OSError()), retry=RETRY))
    assert wire.said == []


def test_a_list_of_kafka_is_committed_or_read_again():
    """It has a place in a log, no messages that could be acknowledged; and nobody counts."""
    message, wire = kafka(2)
    run(settle_many(message, report(None, RateLimited())))
    assert wire.said == [("commit",)]
    message, wire = kafka(2)
    run(settle_many(message, report(None, BatcherClosed("b"))))
    assert wire.said == [("seek", 0)]


@pytest.mark.parametrize("make", [lambda: rabbit({}, False), lambda: redis([b"1-0"], [1])])
def test_without_a_limit_on_deliveries_it_refuses_and_handles_nothing(make):
    """An error that is retryable for ever would run for ever."""
    message, wire = make()
    started = []

    async def handle() -> None:
        started.append(1)

    with pytest.raises(
        RuntimeError, match=r"nothing limits how often .*retry=Retry\(on=\.\.\., attempts="
    ):
        run(settle(message, handle()))
    assert started == []
    assert wire.said == []
    assert message.committed is None


def test_jetstream_is_asked_for_its_limit_once_for_each_consumer():
    """Thousands of messages a second need the answer."""
    message, wire = jetstream(1, max_deliver=-1)

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(
                RuntimeError, match="consumer 'w' of the stream 's' has no max_deliver"
            ):
                await settle(message, ends(None))

    run(main())
    assert wire.asked == [("s", "w")]
    limited, wire = jetstream(1, max_deliver=5)
    run(settle(limited, ends(RateLimited(retry_after=4))))
    assert wire.said == [("nak", 4.0)]


def test_messages_that_ask_together_ask_once():
    """A worker's first hundred messages arrive together."""
    message, wire = jetstream(1, max_deliver=5)

    async def main() -> None:
        await asyncio.gather(*[settle(message, ends(None)) for _ in range(20)])

    run(main())
    assert wire.asked == [("s", "w")]


def test_kafka_refuses_a_retry_that_nobody_counts():
    """The batcher retries there."""
    message, wire = kafka(1)

    async def handled() -> BatchReport[int]:
        raise AssertionError

    with pytest.raises(
        RuntimeError, match=r"Kafka does not count deliveries, .*Batcher\(retry=\.\.\.\)"
    ):
        run(settle_many(message, handled(), retry=RETRY))
    assert wire.said == []


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (core(), "a message of core NATS cannot be acknowledged: subscribe to a stream"),
        (redis([b"1-0"], [1], group=None)[0], "subscribe to a stream with a group"),
        (kafka(None)[0], "subscribe with batch=True and use settle_many"),
        ("no message", "message must be FastStream's message, got 'no message'"),
        (jetstream(1, 1)[0], "settle takes one message, got 2: use settle_many"),
    ],
)
def test_what_cannot_be_acknowledged_alone_is_refused(message, complaint):
    """Better than to lose it in silence."""
    with pytest.raises(TypeError, match=complaint):
        run(settle(message, ends(None), retry=None if "batch" in complaint else RETRY))


def test_wrong_arguments_are_refused_by_name():
    """Each says what was wrong and what came."""
    message, _ = jetstream(1)
    with pytest.raises(TypeError, match="outcome must be an awaitable, got 3"):
        run(settle(message, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="retry must be a Retry or None, got 5"):
        run(settle(message, ends(None), retry=5))  # type: ignore[arg-type]


def test_a_report_of_another_length_acknowledges_nothing():
    """Which outcome was whose?"""
    message, wire = jetstream(1, 1)
    with pytest.raises(ValueError, match="an outcome for each of 2 messages, got 1"):
        run(settle_many(message, report(None), retry=RETRY))
    assert wire.said == []


def test_a_closed_batcher_hands_a_whole_list_back():
    """Rejecting what it refused would lose it."""
    message, wire = jetstream(1, 9)

    async def main() -> None:
        async with Batcher(list) as batcher:
            pass
        await settle_many(message, batcher.submit_many_report([1, 2]), retry=RETRY)

    run(main())
    assert wire.said == [("nak", None), ("nak", None)]


def test_what_else_a_report_raises_comes_through():
    """Nothing is acknowledged for a mistake."""
    message, wire = jetstream(1)

    async def broken() -> BatchReport[int]:
        raise LookupError

    with pytest.raises(LookupError):
        run(settle_many(message, broken(), retry=RETRY))
    assert wire.said == []


def test_a_cancelled_caller_leaves_its_message_alone():
    """The engine brings it again; its item is withdrawn."""
    message, wire = jetstream(1)

    async def main() -> None:
        async with Batcher(list, max_wait=3600) as batcher:
            task = asyncio.create_task(settle(message, batcher.submit(1), retry=RETRY))
            await until(lambda: batcher.stats().buffered)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert batcher.stats().pending == 0

    run(main())
    assert wire.said == []
    assert message.committed is None


def test_a_pending_that_is_refused_is_withdrawn():
    """`submit_nowait` has handed its item in already."""
    message, _ = rabbit({}, False)

    async def main() -> None:
        async with Batcher(list, max_wait=3600) as batcher:
            with pytest.raises(RuntimeError, match="nothing limits"):
                await settle(message, batcher.submit_nowait(1))
            assert batcher.stats().pending == 0

    run(main())


def test_the_log_tells_of_what_is_rejected(caplog):
    """On Redis and Kafka nothing else does."""
    message, _ = jetstream(1, 1, 1)
    with caplog.at_level(logging.WARNING, "microbatch"):
        errors = (None, ItemError("no such customer"), ValueError("x"))
        run(settle_many(message, report(*errors), retry=RETRY))
    (record,) = caplog.records
    assert record.getMessage() == (
        "rejected 2 of 3 messages; the first one's item failed with ItemError: no such customer"
    )


def test_a_message_that_is_acknowledged_already_is_left_alone():
    """A program may have done it itself."""
    message, wire = jetstream(1, 1)

    async def main() -> None:
        await message.raw_message[0].term()
        await settle_many(message, report(None, None), retry=RETRY)

    run(main())
    assert wire.said == [("term",), ("ack",)]


def test_a_message_of_a_broker_that_is_not_known_is_told_by_the_words_that_all_share():
    """Nobody is known to count there."""
    message = StreamMessage(raw_message=object(), body=b"")
    run(settle(message, ends(ValueError())))
    assert message.committed == "REJECTED"
    with pytest.raises(RuntimeError, match="this broker counts no deliveries"):
        run(settle(message, ends(None), retry=RETRY))
