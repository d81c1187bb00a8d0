"""What callers bring in one turn of the event loop: in order, in bounded parts, and whoever has gone."""

from __future__ import annotations

import asyncio

import anyio
import msgspec
import pytest
from durable_support import Handler, batcher, locked, states, until, writer_of
from telemetry_support import Sdk

from microbatch import BatcherClosed
from microbatch.durable import DurableQueue, QueueFull

pytestmark = pytest.mark.anyio


@pytest.fixture
def little_room(monkeypatch):
    """Whoever comes while anything is in the inbox waits."""
    monkeypatch.setattr("microbatch.durable._life.seat.INBOX_BYTES", 1_000)


async def turn():
    """Let tasks that were just made run until they wait."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_items_of_both_kinds_are_stored_in_the_order_in_which_they_came(path):
    """Those with a priority or a key go another way to the disk than the others."""
    async with DurableQueue(path, item_type=int) as queue:
        tickets = await asyncio.gather(
            queue.enqueue(0, priority=1),
            queue.enqueue(1),
            queue.enqueue(2, priority=1),
            queue.enqueue(3),
        )
    assert [ticket.id for ticket in tickets] == [1, 2, 3, 4]


async def test_each_of_those_who_came_in_one_turn_keeps_its_own_context(path):
    """The batch that handles an item is linked to the span that sent it."""
    sdk = Sdk()
    async with batcher(path, Handler(), telemetry=sdk.telemetry()) as durable:
        await durable.pause()
        tickets = await asyncio.gather(*map(durable.enqueue, range(3)))
        await durable.resume()
        await asyncio.gather(*map(durable.result, tickets))
    sent = [span.context.span_id for span in sdk.spans("send default")]
    (batch,) = sdk.spans("process default")
    assert len(set(sent)) == 3
    assert [link.context.span_id for link in batch.links] == sent


async def test_a_turn_of_many_with_a_priority_is_handed_on_in_parts(path, little_room, monkeypatch):
    """What one turn of the event loop brings is bounded too: those beyond wait for room."""
    monkeypatch.setattr("microbatch.durable._flow.intake.HANDED_BYTES", 500)
    async with DurableQueue(path, item_type=bytes) as queue:
        await queue.stats()
        with locked(path):
            first = asyncio.create_task(queue.enqueue(b"0"))
            await until(lambda: writer_of(queue).lock_waits)
            tasks = [asyncio.create_task(queue.enqueue(bytes(100), priority=1)) for _ in range(100)]
            await turn()
            assert len(queue._service.intake._standing) > 70
        tickets = await asyncio.gather(first, *tasks)
    assert [ticket.id for ticket in tickets] == list(range(1, 102))


async def test_who_was_cancelled_and_is_refused_keeps_nobody_from_being_told(path):
    """Its task has gone; those behind it in the same transaction hear of their refusal."""
    async with DurableQueue(path, item_type=int, max_depth=1) as queue:
        await queue.stats()
        with locked(path):
            stored, gone, refused = tasks = [
                asyncio.create_task(queue.enqueue(number)) for number in range(3)
            ]
            await turn()
            gone.cancel()
        async with asyncio.timeout(20):
            await asyncio.wait(tasks)
    assert stored.result().id == 1
    assert gone.cancelled()
    assert isinstance(refused.exception(), QueueFull)


async def test_who_was_cancelled_keeps_nobody_from_hearing_of_the_close(path):
    """Closing at once gives up what has not reached the disk yet."""
    queue = DurableQueue(path, item_type=int)
    await queue.stats()
    with locked(path):
        gone, other = [asyncio.create_task(queue.enqueue(number)) for number in range(2)]
        await turn()
        gone.cancel()
        closing = asyncio.create_task(queue.aclose(0))
        async with asyncio.timeout(20):
            with pytest.raises(BatcherClosed):
                await other
    await closing
    assert gone.cancelled()


async def test_who_stands_in_line_and_is_cancelled_as_it_closes_is_passed_over(path, little_room):
    """The others in the line hear of the close, and it is closed."""
    queue = DurableQueue(path, item_type=bytes)
    await queue.stats()
    with locked(path):
        filling = asyncio.create_task(queue.enqueue(bytes(2_000)))
        await until(lambda: queue._service.intake.crowded)
        gone, other = [asyncio.create_task(queue.enqueue(b"1")) for _ in range(2)]
        await turn()
        gone.cancel()  # and has not run yet as the line is sent away
        with anyio.move_on_after(0):
            await queue.aclose()
        async with asyncio.timeout(20):
            ended = await asyncio.gather(gone, other, return_exceptions=True)
    assert [type(one) for one in ended] == [asyncio.CancelledError, BatcherClosed]
    with pytest.raises(BatcherClosed):
        await filling


class Last(msgspec.Struct):
    """An item as which somebody else goes when it is read back."""

    data: bytes
    goes = None

    def __post_init__(self) -> None:
        if self.data == b"last":
            Last.goes.cancel()


async def test_who_goes_as_the_one_before_it_comes_in_is_passed_over(path, little_room):
    """Those behind it are let in all the same: nothing else is under way that could do it."""
    async with DurableQueue(path, item_type=Last) as queue:
        await queue.stats()
        with locked(path):
            filling = asyncio.create_task(queue.enqueue(Last(bytes(2_000))))
            await until(lambda: queue._service.intake.crowded)
            # The first one makes the second go, in the turn in which it comes in.
            item = Last(b"")
            item.data = b"last"
            first, Last.goes, third = [
                asyncio.create_task(queue.enqueue(one)) for one in (item, Last(b"2"), Last(b"3"))
            ]
            await turn()
            assert len(queue._service.intake._standing) == 3
        async with asyncio.timeout(20):
            assert [(await task).id for task in (filling, first, third)] == [1, 2, 3]
        with pytest.raises(asyncio.CancelledError):
            await Last.goes


@pytest.mark.parametrize("priority", [0, 1])
async def test_who_was_let_in_as_it_closed_is_told_so(path, little_room, priority):
    """It had its turn and had not run yet: nothing is taken that nobody would answer for."""
    queue = DurableQueue(path, item_type=bytes)
    await queue.stats()

    async def fill_and_close():
        await queue.enqueue(bytes(2_000))
        assert not queue._service.intake._standing  # its turn has come
        await queue.aclose()

    with locked(path):
        filling = asyncio.create_task(fill_and_close())
        await until(lambda: queue._service.intake.crowded)
        late = asyncio.create_task(queue.enqueue(b"1", priority=priority))
        await turn()
        assert len(queue._service.intake._standing) == 1
    async with asyncio.timeout(20):
        await filling
        with pytest.raises(BatcherClosed):
            await late
    assert states(path) == {1: "ready"}


async def test_who_brings_many_waits_for_room_like_the_others(path, little_room):
    """Nothing of it is encoded before."""
    async with DurableQueue(path, item_type=bytes) as queue:
        await queue.stats()
        with locked(path):
            filling = asyncio.create_task(queue.enqueue(bytes(2_000)))
            await until(lambda: queue._service.intake.crowded)
            taken = iter([b"1", b"2"])
            many = asyncio.create_task(queue.enqueue_many(taken))
            await turn()
            assert len(queue._service.intake._standing) == 1
            assert next(taken) == b"1"
        assert (await filling).id == 1
        assert [ticket.id for ticket in await many] == [2]


async def test_who_brings_many_while_it_closes_does_not_stand_in_line(path, little_room):
    """Nobody would let him in before the file goes on, and perhaps nobody at all."""
    async with DurableQueue(path, item_type=bytes) as queue:
        await queue.stats()
        intake = queue._service.intake

        def items():
            yield b"1"
            intake.crowded = True  # as others filled it meanwhile
            intake.close()

        with pytest.raises(BatcherClosed), anyio.fail_after(20):
            await queue.enqueue_many(items())
