"""Idempotency keys: safe to send again, whatever happened to the first one."""

from __future__ import annotations

import asyncio

import pytest
import time_machine
from durable_support import Handler, batcher, check_counts, until

from microbatch.durable import DurableQueue, IdempotencyConflict, ItemFailed, UnknownTicket

pytestmark = pytest.mark.anyio


async def test_equal_keys_run_once_and_share_the_result(path):
    """A storm of retries, one effect."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        results = await asyncio.gather(*(durable.submit(7, key="order-7") for _ in range(50)))
        tickets = [await durable.enqueue(7, key="order-7") for _ in range(3)]
    assert results == [14] * 50
    assert handler.items == [7]
    assert {(ticket.id, ticket.key) for ticket in tickets} == {(1, "order-7")}
    check_counts(path)


async def test_a_key_gives_the_stored_result_after_a_restart(path):
    """The client that retries does not know that the server restarted."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(7, key="k")
    handler = Handler()
    async with batcher(path, handler) as durable:
        assert await durable.submit(7, key="k") == 14
    assert handler.batches == []


async def test_a_key_of_a_dead_letter_gives_its_failure(path):
    """The first one's outcome, good or bad."""
    async with batcher(path, Handler(fails={7: ValueError("bad")})) as durable:
        for _ in range(2):
            with pytest.raises(ItemFailed, match="ValueError: bad"):
                await durable.submit(7, key="k")


async def test_the_same_key_with_another_payload_is_a_conflict(path):
    """Either the client or its key generator is broken: it must know."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(7, key="k")
        with pytest.raises(
            IdempotencyConflict, match="key 'k' belongs to item 1, whose payload is another one"
        ):
            await durable.submit(8, key="k")
        assert await durable.submit(8, key="l") == 16
    check_counts(path)


async def test_keys_within_one_transaction(path):
    """Callers that come together are grouped, and must still see each other's keys."""
    async with DurableQueue(path, item_type=int) as queue:
        outcomes = await asyncio.gather(
            *(
                queue.enqueue(payload, key=key)
                for payload, key in [(1, "a"), (1, "a"), (2, "a"), (2, "b")]
            ),
            return_exceptions=True,
        )
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "Ticket",
            "Ticket",
            "IdempotencyConflict",
            "Ticket",
        ]
        assert [outcomes[i].id for i in (0, 1, 3)] == [1, 1, 2]
        assert (await queue.stats()).ready == 2


async def test_keys_belong_to_their_queue(path):
    """Queues in one file share nothing but the file."""
    async with (
        DurableQueue(path, item_type=int, queue="a") as a,
        DurableQueue(path, item_type=int, queue="b") as b,
    ):
        await a.enqueue(1, key="k")
        await b.enqueue(2, key="k")
        with pytest.raises(UnknownTicket):
            await b.result(1)


async def test_an_expired_key_runs_again(path):
    """Nobody can remember for ever: after key_ttl it is a new item."""
    handler = Handler()
    with time_machine.travel("2026-01-01 12:00Z") as traveller:
        async with batcher(path, handler, key_ttl=3600, result_ttl=60) as durable:
            await durable.submit(7, key="k")
            traveller.shift(3500)
            assert await durable.submit(7, key="k") == 14  # kept as long as its key
            traveller.shift(200)
            assert await durable.submit(7, key="k") == 14
            await until(lambda: handler.items == [7, 7])


async def test_keep_done_may_drop_the_result_but_not_the_key(path):
    """A second run would be worse than no answer."""
    handler = Handler()
    async with batcher(path, handler, keep_done=0) as durable:
        await durable.submit(7, key="k")
        await until(lambda: _gone(durable))
        with pytest.raises(UnknownTicket):
            await durable.submit(7, key="k")
    assert handler.items == [7]


async def _gone(durable):
    return (await durable.stats()).done == 0


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 1001])
async def test_odd_keys_are_refused(path, key):
    """They end in logs and headers."""
    async with DurableQueue(path, item_type=int) as queue:
        with pytest.raises(ValueError, match="key must be 1 to 1000 printable characters"):
            await queue.enqueue(1, key=key)
        with pytest.raises(TypeError, match="key must be a str or None"):
            await queue.enqueue(1, key=1)  # type: ignore[arg-type]
