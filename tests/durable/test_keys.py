"""Idempotency keys: safe to send again, whatever happened to the first one."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import msgspec
import pytest
import time_machine
from durable_support import Handler, batcher, check_counts, rows, until

from microbatch.durable import (
    DurableQueue,
    IdempotencyConflict,
    ItemCancelled,
    ItemFailed,
    UnknownTicket,
)

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


async def test_keep_done_leaves_an_item_whose_key_lives(path):
    """A ticket always stands for an item, and a second run would be worse than one item too many."""
    handler = Handler()
    async with batcher(path, handler, keep_done=0) as durable:
        await durable.submit(7, key="k")
        other = await durable.enqueue(8)
        await until(lambda: _is_gone(durable, other))
        assert (await durable.stats()).done == 1
        assert await durable.submit(7, key="k") == 14
    assert handler.items == [7, 8]


async def _is_gone(durable, ticket):
    try:
        await durable.result(ticket)
    except UnknownTicket:
        return True
    except (ItemCancelled, ItemFailed):
        return False
    return False


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 1001])
async def test_odd_keys_are_refused(path, key):
    """They end in logs and headers."""
    async with DurableQueue(path, item_type=int) as queue:
        with pytest.raises(ValueError, match="key must be 1 to 1000 printable characters"):
            await queue.enqueue(1, key=key)
        with pytest.raises(TypeError, match="key must be a str or None"):
            await queue.enqueue(1, key=1)  # type: ignore[arg-type]


# A ticket always stands for an item


async def test_the_key_of_a_purged_dead_letter_is_free(path):
    """Else its ticket would stand for nothing, and the item be nowhere."""
    handler = Handler(fails={7: ValueError("bad")})
    async with batcher(path, handler) as durable:
        first = await durable.enqueue(7, key="k")
        with pytest.raises(ItemFailed):
            await durable.result(first)
        assert await durable.purge([first]) == 1
        assert rows(path, "SELECT * FROM microbatch_keys") == []
        handler.fails.clear()
        second = await durable.enqueue(7, key="k")
        assert second.id != first.id
        assert await durable.result(second, 20) == 14
    check_counts(path)


async def test_the_key_of_a_dead_letter_beyond_keep_dead_is_free(path):
    """It went by itself: nobody can know of it any more."""
    handler = Handler(fails={7: ValueError("bad")})
    async with batcher(path, handler, keep_dead=0) as durable:
        first = await durable.enqueue(7, key="k")
        await until(lambda: _is_gone(durable, first))
        assert rows(path, "SELECT * FROM microbatch_keys") == []
        handler.fails.clear()
        assert await durable.submit(7, key="k") == 14
    check_counts(path)


async def test_the_key_of_a_cancelled_item_is_free(path):
    """At once, and still once the cancelled item has been removed."""
    handler = Handler()
    async with batcher(path, handler, result_ttl=0) as durable:
        first = await durable.enqueue(7, key="k", delay=60)
        assert await durable.cancel(first)
        second = await durable.enqueue(7, key="k", delay=60)
        assert second.id != first.id
        await until(lambda: _is_gone(durable, first))
        assert (await durable.enqueue(7, key="k")).id == second.id
        assert (await durable.stats()).scheduled == 1
    check_counts(path)


async def test_a_key_lives_as_long_as_its_item(path):
    """Longer than key_ttl, if the item waits longer: a second one would be a second effect."""
    with time_machine.travel("2026-01-01 12:00Z") as traveller:
        async with batcher(path, Handler(), key_ttl=60) as durable:
            first = await durable.enqueue(7, key="k", delay=7200)
            traveller.shift(3600)
            assert (await durable.enqueue(7, key="k")).id == first.id
            assert (await durable.stats()).depth == 1
    check_counts(path)


# Equal payloads


class Before(msgspec.Struct):
    number: int


class After(msgspec.Struct):
    number: int
    name: str = "tea"


@pytest.mark.parametrize(
    ("types", "values"),
    [
        ((set[int], set[int]), ({0, 8}, {8, 0})),
        ((dict[str, int], dict[str, int]), ({"a": 1, "b": 2}, {"b": 2, "a": 1})),
        ((float, float), (1, 1.0)),
        ((Before, After), (Before(1), After(1))),
        ((After, Before), (After(1), Before(1))),
    ],
    ids=["set", "dict", "number", "a default more", "a default less"],
)
@pytest.mark.parametrize("way", ["enqueue", "enqueue_in"])
async def test_equal_values_are_no_conflict(path, types, values, way):
    """A client that sends again may have been restarted, or be a release newer."""
    async with DurableQueue(path, item_type=types[0]) as queue:
        first = await queue.enqueue(values[0], key="k")
    async with DurableQueue(path, item_type=types[1]) as queue:
        if way == "enqueue":
            again = await queue.enqueue(values[1], key="k")
        else:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                again = queue.enqueue_in(connection, values[1], key="k")
                connection.execute("COMMIT")
        assert again == first
        assert (await queue.stats()).ready == 1


async def test_equal_values_in_one_transaction_are_no_conflict(path):
    """The first one's payload is not on the disk yet."""
    async with DurableQueue(path, item_type=dict[str, int]) as queue:
        tickets = await asyncio.gather(
            queue.enqueue({"a": 1, "b": 2}, key="k"), queue.enqueue({"b": 2, "a": 1}, key="k")
        )
        assert tickets[0] == tickets[1]
        assert (await queue.stats()).ready == 1
