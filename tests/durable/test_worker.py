"""A DurableBatcher at work in one process: from submit to the settled result."""

from __future__ import annotations

import asyncio
import time

import anyio
import msgspec
import pytest
from durable_support import (
    LOOPS,
    Handler,
    Order,
    batcher,
    check_counts,
    execute,
    looked,
    rows,
    states,
    until,
    writer_of,
)

from microbatch import (
    AdaptiveSize,
    Backoff,
    HandlerTimeout,
    Retry,
    Skipped,
    WouldDeadlock,
    current_batch,
)
from microbatch.durable import DurableBatcher, DurableQueue, ItemFailed, UnknownTicket
from microbatch.layers import atomic

pytestmark = pytest.mark.anyio


on_both_loops = pytest.mark.parametrize("backend_name", LOOPS, indirect=True)


@on_both_loops
async def test_each_caller_gets_its_own_result(path):
    """The promise of the library, with a disk in between."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        results = await asyncio.gather(*(durable.submit(number) for number in range(250)))
    assert results == [number * 2 for number in range(250)]
    assert sorted(handler.items) == list(range(250))
    assert max(map(len, handler.batches)) == 100
    check_counts(path)


@on_both_loops
async def test_items_enqueued_without_a_worker_are_handled_by_the_next_one(path):
    """A restart must pick up what is there."""
    async with DurableQueue(path, item_type=int) as queue:
        tickets = await queue.enqueue_many(range(10))
    handler = Handler()
    async with batcher(path, handler) as durable:
        assert [await durable.result(ticket, 20) for ticket in tickets] == [
            n * 2 for n in range(10)
        ]
    assert handler.batches == [list(range(10))]


async def test_a_result_can_be_fetched_after_a_restart(path):
    """The result is committed too."""
    async with batcher(path, Handler()) as durable:
        ticket = await durable.enqueue(21)
        await durable.result(ticket)
    async with DurableQueue(path, item_type=int, result_type=int) as queue:
        assert await queue.result(ticket, 20) == 42
        assert await queue.result(ticket.id, 20) == 42


async def test_a_failed_item_fails_alone_and_becomes_a_dead_letter(path):
    """The neighbours in its batch must not notice."""
    error = ValueError("no such thing")
    async with batcher(path, Handler(fails={2: error})) as durable:
        good, bad = await asyncio.gather(
            durable.submit(1), durable.submit(2), return_exceptions=True
        )
        assert good == 2
        assert isinstance(bad, ItemFailed)
        assert (bad.kind, bad.message, bad.attempts) == ("ValueError", "no such thing", 1)
        assert isinstance(bad.__cause__, ValueError)
        (letter,) = await durable.dead_letters()
        assert (letter.item, letter.attempts, str(letter.error)) == (2, 1, str(bad))
        assert letter.enqueued_at <= letter.died_at <= time.time() + 1


async def test_the_error_is_the_same_type_after_a_restart(path):
    """Code that catches it must not depend on who handled the item."""
    async with batcher(path, Handler(fails={2: ValueError("bad")})) as durable:
        ticket = await durable.enqueue(2)
        with pytest.raises(ItemFailed) as here:
            await durable.result(ticket)
    async with DurableQueue(path, item_type=int) as queue:
        with pytest.raises(ItemFailed) as there:
            await queue.result(ticket)
    assert there.value.args == here.value.args
    assert there.value.__cause__ is None


async def test_a_raised_error_keeps_the_end_of_its_traceback(path):
    """Who reads dead letters wants to know where it happened."""

    async def handler(items):
        raise RuntimeError("x" * 5_000)

    async with batcher(path, handler) as durable:
        with pytest.raises(ItemFailed) as caught:
            await durable.submit(1)
    assert len(caught.value.message) == 2_000
    assert "in handler" not in caught.value.message
    assert 0 < len(caught.value.traceback) <= 8_000


async def test_a_skipped_item_is_done_and_not_dead(path):
    """Skipped means left out on purpose: nobody has to look after it."""
    async with batcher(path, Handler(fails={1: Skipped("a duplicate")})) as durable:
        with pytest.raises(ItemFailed, match="Skipped: a duplicate"):
            await durable.submit(1)
        stats = await durable.stats()
    assert (stats.done, stats.dead) == (1, 0)


async def test_a_handler_without_results_gives_none(path):
    """`-> None` handlers are handlers too, and None needs no bytes."""

    async def handler(items):
        return None

    async with batcher(path, handler, result_type=None) as durable:
        assert await durable.submit(1) is None
    assert states(path) == {1: "done"}
    assert rows(path, "SELECT * FROM microbatch_results") == []


async def test_a_result_after_a_retry_is_not_mistaken_for_an_error(path):
    """The error of an earlier attempt is on the disk until the item succeeds."""
    failures = [OSError("busy"), None]

    async def handler(items):
        if error := failures.pop(0):
            raise error

    retry = Retry(on=OSError, backoff=Backoff(initial=0.01))
    async with batcher(path, handler, retry=retry) as durable:
        ticket = await durable.enqueue(1)
        assert await durable.result(ticket) is None
        assert await durable.result(ticket) is None


async def test_plain_functions_and_generators_are_handlers_too(path):
    """What Batcher takes, DurableBatcher takes."""

    def plain(items):
        return [item + 1 for item in items]

    async def generator(items):
        for index, item in enumerate(items):
            yield index, item + 2

    async with batcher(path, plain, queue="plain") as durable:
        assert await asyncio.gather(durable.submit(1), durable.submit(2)) == [2, 3]
    async with batcher(path, generator, queue="generator") as durable:
        assert await asyncio.gather(durable.submit(1), durable.submit(2)) == [3, 4]


async def test_the_handler_gets_what_the_disk_has(path):
    """Before and after a restart alike, and never the caller's own object."""
    seen = []

    async def handler(items):
        seen.extend(items)
        return items

    order = Order(1)
    async with DurableBatcher(path, handler, item_type=Order, result_type=Order) as durable:
        assert await durable.submit(order) == order
    assert seen == [order]
    assert seen[0] is not order


async def test_a_wrong_field_is_refused_before_anything_is_stored(path):
    """msgspec's constructors check nothing: a poison item would be acknowledged."""
    async with DurableBatcher(path, Handler(), item_type=Order) as durable:
        with pytest.raises(
            ValueError,
            match=r"Order does not read back as Order: Expected `int`, got `str` - at `\$.number`",
        ):
            await durable.submit(Order("one"))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="cannot encode complex for the disk"):
            await durable.submit(1j)  # type: ignore[arg-type]
        assert (await durable.stats()).depth == 0


async def test_a_row_that_no_longer_decodes_is_a_dead_letter_and_the_worker_goes_on(path):
    """One undecodable row must not block the queue for ever."""
    async with DurableQueue(path, item_type=str) as queue:
        bad = await queue.enqueue("not a number")
        await queue.enqueue_many(["x"])
    execute(
        path, "UPDATE microbatch_blobs SET payloads = x'c1', lengths = '[1]' WHERE first_id = 2"
    )
    handler = Handler()
    async with batcher(path, handler) as durable:
        assert await durable.submit(1) == 2
        with pytest.raises(ItemFailed, match="ValueError: stored bytes no longer decode as int"):
            await durable.result(bad)
        letters = await durable.dead_letters()
    assert [(letter.item, letter.attempts) for letter in letters] == [
        ("not a number", 1),
        (b"\xc1", 1),
    ]
    check_counts(path)


async def test_a_new_field_with_a_default_reads_old_rows(path):
    """How items may change between two versions of a program."""

    class Before(msgspec.Struct):
        number: int

    async with DurableQueue(path, item_type=Before) as queue:
        ticket = await queue.enqueue(Before(7))

    async def handler(orders):
        return [order.name for order in orders]

    async with DurableBatcher(path, handler, item_type=Order) as durable:
        assert await durable.result(ticket) == "tea"


async def test_a_result_that_cannot_be_stored_fails_its_item_alone(path):
    """The effect has happened; pretending that there is a result would be worse."""

    async def handler(items):
        return [1j if item == 1 else item for item in items]

    async with batcher(path, handler) as durable:
        bad, good = await asyncio.gather(
            durable.submit(1), durable.submit(2), return_exceptions=True
        )
    assert good == 2
    assert isinstance(bad, ItemFailed)
    assert bad.kind == "TypeError"


@pytest.mark.parametrize("layer", [lambda handler: handler, atomic], ids=["plain", "atomic"])
async def test_the_handler_knows_keys_and_attempts(path, layer):
    """What the disk knows of the batch, `current_batch` tells, within an all-or-nothing batch too."""
    seen = []

    async def handler(items):
        info = current_batch()
        seen.append((info.size, info.keys, info.attempts, info.job))
        return [OSError("again") if sum(info.attempts) < 3 else 0 for _ in items]

    retry = Retry(on=OSError, backoff=Backoff(initial=0.01))
    async with batcher(path, layer(handler), retry=retry) as durable:
        await durable.submit(1, key="one")
    assert seen == [(1, ("one",), (attempt,), None) for attempt in (1, 2, 3)]


async def test_higher_priority_goes_first_then_what_was_due_first(path):
    """Strict order, when nothing fails and one batch is in flight."""
    handler = Handler()
    async with DurableQueue(path, item_type=int) as queue:
        await queue.pause()
        for number, priority in enumerate([0, 5, -3, 5, 0]):
            await queue.enqueue(number, priority=priority)
    async with batcher(path, handler, max_batch_size=1) as durable:
        await durable.resume()
        await until(lambda: len(handler.items) == 5)
    assert handler.items == [1, 3, 0, 4, 2]


async def test_a_delayed_item_waits_for_its_time(path):
    """And no longer than that: a timer of its own wakes the worker, which looks about once a minute."""
    async with batcher(path, Handler(), poll_interval=60) as durable:
        started = time.monotonic()
        with anyio.fail_after(20):
            assert await durable.submit(1, delay=0.2) == 2
        assert time.monotonic() - started >= 0.2


async def test_a_delayed_item_can_be_waited_for_without_a_handler(path):
    """Nothing is ready when it is stored, yet its caller must look for its result."""
    handler = Handler()
    async with (
        batcher(path, handler),
        DurableQueue(path, item_type=int, result_type=int, poll_interval=0.02) as queue,
    ):
        with anyio.fail_after(20):
            assert await queue.submit(1, delay=0.1) == 2


async def test_max_wait_lets_items_wait_for_company(path):
    """As in memory: a claimed item waits for the next ones, but not longer than that."""
    handler = Handler()
    settings = {"max_wait": 60, "max_batch_size": 3}
    async with batcher(path, handler, **settings) as durable, anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(durable.submit, number)
            await anyio.sleep(0.02)
    assert handler.batches == [[0, 1, 2]]
    async with batcher(path, handler, max_wait=0.05) as durable:
        assert await durable.submit(3) == 6


async def test_partitions_do_not_share_a_batch(path):
    """Within this process, as with Batcher."""
    handler = Handler()
    async with batcher(path, handler, partition=lambda number: number % 2) as durable:
        await asyncio.gather(*(durable.submit(number) for number in range(10)))
    assert sorted(map(sorted, handler.batches)) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


async def test_many_partitions_fill_their_batches(path):
    """More is claimed than one batch's worth: of that, each of 50 partitions would get two."""
    handler = Handler()
    async with DurableQueue(path, item_type=int) as queue:
        tickets = await queue.enqueue_many(range(1000))
    async with batcher(path, handler, partition=lambda number: number % 50) as durable:
        await asyncio.gather(*(durable.result(ticket, 60) for ticket in tickets))
    assert [len(batch) for batch in handler.batches] == [20] * 50


async def test_what_is_claimed_ahead_is_cut_into_batches(path):
    """No handler call has more items than it may."""
    handler = Handler()
    async with DurableQueue(path, item_type=int) as queue:
        tickets = await queue.enqueue_many(range(250))
    async with batcher(path, handler, partition=lambda number: "all") as durable:
        await asyncio.gather(*(durable.result(ticket, 60) for ticket in tickets))
    assert handler.batches == [[*range(100)], [*range(100, 200)], [*range(200, 250)]]


async def test_a_partition_function_that_raises_fails_its_item_alone(path):
    """It runs after the commit, so the item must end somewhere."""
    async with batcher(path, Handler(), partition=lambda number: 1 // number) as durable:
        bad, good = await asyncio.gather(
            durable.submit(0), durable.submit(1), return_exceptions=True
        )
    assert good == 2
    assert bad.kind == "ZeroDivisionError"


async def test_no_more_is_claimed_than_free_slots_can_start(path):
    """What waits behind a slow batch belongs to the other processes."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=10, max_concurrency=2) as durable:
        await durable.enqueue_many(range(100))
        await until(lambda: len(handler.batches) == 2)
        stats = await durable.stats()
        assert (stats.claimed, stats.ready) == (20, 80)
        handler.free.set()
        await until(lambda: len(handler.items) == 100)
    assert handler.items == list(range(100))


async def test_an_adaptive_size_bounds_the_claims(path):
    """The size that was learnt, not its maximum."""
    handler = Handler()
    async with batcher(path, handler, max_batch_size=AdaptiveSize(5, 50, target=1.0)) as durable:
        await durable.enqueue_many(range(100))
        await until(lambda: len(handler.items) == 100)
    assert len(handler.batches[0]) <= 50


async def test_a_handler_timeout_is_a_failure_like_others(path):
    """It goes again only if retry names it; how the handler ended is unknown."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, handler_timeout=0.05) as durable:
        with pytest.raises(ItemFailed, match="HandlerTimeout") as caught:
            await durable.submit(1)
    assert isinstance(caught.value.__cause__, HandlerTimeout)
    assert handler.cancelled == 1


async def test_waiting_on_the_own_queue_inside_a_handler_is_refused(path):
    """It would wait for the slot that it occupies."""
    errors = []

    async def handler(items):
        for call, arguments in ((durable.submit, [2]), (durable.result, [1]), (durable.aclose, [])):
            with pytest.raises(WouldDeadlock) as caught:
                await call(*arguments)
            errors.append(str(caught.value))
        assert (await durable.enqueue(3, delay=60)).id == 2
        return items

    durable = batcher(path, handler)
    async with durable:
        await durable.submit(1)
    assert [error.split("(")[0] for error in errors] == ["submit", "result", "aclose"]


async def test_a_result_that_does_not_come_in_time(path):
    """The item stays and so does its ticket."""
    async with DurableQueue(path, item_type=int) as queue:
        ticket = await queue.enqueue(1)
        with pytest.raises(TimeoutError):
            await queue.result(ticket, 0.05)
        with pytest.raises(UnknownTicket, match="queue 'default' has no item 99"):
            await queue.result(99)


async def test_requeue_and_purge_dead_letters(path):
    """What was mended goes again, with all its attempts; what is hopeless goes away."""
    handler = Handler(fails={n: ValueError("not yet") for n in (1, 2, 3)})
    async with batcher(path, handler) as durable:
        tickets = await durable.enqueue_many([1, 2, 3])
        await until(lambda: _is(durable, dead=3))
        handler.fails.clear()
        assert await durable.requeue([tickets[0], 2, 77]) == 2
        assert await durable.result(tickets[0], 20) == 2
        assert await durable.result(tickets[1], 20) == 4
        assert await durable.purge([tickets[2].id]) == 1
        with pytest.raises(UnknownTicket):
            await durable.result(tickets[2])
        assert await durable.dead_letters() == []
    check_counts(path)


async def _is(durable, **counts):
    stats = await durable.stats()
    return all(getattr(stats, name) == count for name, count in counts.items())


async def test_dead_letters_come_in_pages(path):
    """The cursor is the last one's id."""
    handler = Handler(fails={n: ValueError() for n in range(7)})
    async with batcher(path, handler) as durable:
        await durable.enqueue_many(range(7))
        await until(lambda: _is(durable, dead=7))
        first = await durable.dead_letters(limit=4)
        rest = await durable.dead_letters(first[-1].id, limit=4)
    assert [letter.item for letter in first + rest] == list(range(7))
    assert len(rest) == 3


async def test_pause_holds_for_every_process_and_after_a_restart(path):
    """It is stored, so nobody forgets it."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        await durable.pause()
        await durable.enqueue(1)
        await anyio.sleep(0.1)
        assert (await durable.stats()).paused
    async with batcher(path, handler) as durable:
        await anyio.sleep(0.1)
        assert handler.batches == []
        async with DurableQueue(path, item_type=int) as queue:
            await queue.resume()
        await until(lambda: handler.batches == [[1]])
        await durable.pause()
        await durable.resume()
        assert await durable.submit(2) == 4


async def test_stats_show_the_age_of_what_is_stuck(path):
    """A handler that hangs shows in the age of what it holds."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler) as durable:
        await durable.enqueue(1)
        await durable.enqueue(2, priority=3)
        await durable.enqueue(3, delay=60)
        await anyio.sleep(0.2)
        stats = await durable.stats()
        assert (stats.claimed, stats.ready, stats.scheduled, stats.depth) == (1, 1, 1, 3)
        assert 0.2 <= stats.oldest_age < 60
        assert stats.file_bytes > 0
        assert stats.wal_bytes > 0
        handler.free.set()


async def test_an_idle_worker_asks_the_file_for_one_number(path, monkeypatch):
    """Twenty looks a second must cost next to nothing: no rows are read where nothing was committed."""
    statements = []
    async with batcher(path, Handler(), poll_interval=0.001) as durable:
        await durable.submit(1)
        await looked(durable)
        writer = writer_of(durable)
        # Looks at who lives are counted by time: the slower the machine, the more of them beside 200 of the others.
        monkeypatch.setattr("microbatch.durable._life.neighbours.ALIVE_INTERVAL", 3600)
        monkeypatch.setattr("microbatch.durable._life.upkeep.UPKEEP_INTERVAL", 3600)
        await until(lambda: writer.neighbours.next > time.monotonic() + 1000)
        writer.post(lambda: writer.connection._raw.set_trace_callback(statements.append))
        await until(lambda: len(statements) >= 200)
        others = [one for one in statements if one != "PRAGMA data_version"]
    # Now and then what it holds is compared with what the file says.
    assert len(others) <= 12
