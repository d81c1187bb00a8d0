"""Retries whose back-off is on the disk, and what processes that die do to items."""

from __future__ import annotations

import asyncio
import time

import pytest
import time_machine
from deaths_support import die_with, enqueue
from durable_support import Handler, batcher, check_counts, execute, looked, rows, until

from microbatch import Backoff, HandlerStuck, ItemError, Retry
from microbatch.durable import DurableQueue, ItemFailed
from microbatch.testing import no_backoff

pytestmark = pytest.mark.anyio


def attempts(path):
    return [number for (number,) in rows(path, "SELECT attempts FROM microbatch_ranges")]


def soon(attempts: int = 3, delay: float = 0.01) -> Retry:
    return Retry(
        on=OSError, attempts=attempts, backoff=Backoff(initial=delay, maximum=delay, jitter=0)
    )


class Flaky:
    """Fails its first calls."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or ConnectionError("gone")
        self.calls = 0

    async def __call__(self, items):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return items


async def test_a_retryable_failure_goes_again(path):
    """Until it succeeds."""
    handler = Flaky(2)
    async with batcher(path, handler, retry=soon()) as durable:
        assert await durable.submit(1) == 1
    assert handler.calls == 3
    check_counts(path)


async def test_the_last_attempt_ends_as_a_dead_letter(path):
    """attempts counts handler calls, the first included."""
    handler = Flaky(5)
    async with batcher(path, handler, retry=soon(3)) as durable:
        with pytest.raises(ItemFailed) as caught:
            await durable.submit(1)
    assert (caught.value.attempts, handler.calls) == (3, 3)
    check_counts(path)


async def test_what_is_not_retryable_dies_at_once(path):
    """An ItemError decides for itself."""
    handler = Flaky(1, ItemError("never", retryable=False))
    async with batcher(path, handler, retry=Retry(on=Exception)) as durable:
        with pytest.raises(ItemFailed, match="after 1 attempt: ItemError: never"):
            await durable.submit(1)


async def test_a_back_off_holds_across_a_restart(path):
    """It is a due time on the disk, not a timer."""
    handler = Flaky(1)
    with time_machine.travel("2026-01-01 12:00Z") as traveller:
        async with batcher(path, handler, retry=soon(delay=3600)) as durable:
            ticket = await durable.enqueue(1)
            await until(lambda: _scheduled(durable))
        async with batcher(path, handler, retry=soon()) as durable:
            await looked(durable)
            stats = await durable.stats()
            assert (stats.scheduled, stats.ready) == (1, 0)
            traveller.shift(3601)
            assert await durable.result(ticket, 60) == 1
    assert attempts(path) == [2]


async def _scheduled(durable):
    return (await durable.stats()).scheduled == 1


async def test_a_predicate_that_raises_means_no_retry(path, caplog):
    """A broken predicate must not make an endless loop, nor lose the item."""

    def predicate(error):
        raise RuntimeError("broken")

    async with batcher(path, Flaky(9), retry=Retry(on=predicate)) as durable:
        with pytest.raises(ItemFailed, match="ConnectionError: gone"):
            await durable.submit(1)
    assert "retry's predicate failed" in caplog.text
    caplog.clear()


async def test_stuck_handlers_do_not_use_up_an_items_attempts(path, monkeypatch):
    """No handler has seen it."""
    monkeypatch.setattr("microbatch.durable._flow.verdicts.STUCK_PAUSE", 0.05)
    handler = Flaky(2, HandlerStuck("x", 9, 8))
    async with batcher(path, handler) as durable:
        assert await durable.submit(1) == 1
    assert attempts(path) == [1]


async def test_a_handler_that_crashes_is_tried_again_like_a_dead_process(path):
    """asyncio.run cancels everything at its end: nobody's items may become dead letters by that."""
    calls = []

    async def handler(items):
        calls.append(items)
        if len(calls) < 3:
            raise asyncio.CancelledError
        return items

    async with batcher(path, handler) as durable:
        assert await durable.submit(1) == 1
    always = Flaky(99, None)
    always.error = asyncio.CancelledError()  # type: ignore[assignment]
    async with batcher(path, always) as durable:
        with pytest.raises(ItemFailed, match="after 3 attempts: HandlerCrashed"):
            await durable.submit(2)


async def test_an_item_of_a_newer_release_waits_for_a_newer_worker(path):
    """An old worker cannot read it: `retry` is asked, so that a rolling deployment loses nothing."""
    async with DurableQueue(path, item_type=str) as queue:
        ticket = await queue.enqueue("new")
    asked = []

    def once_more(error):
        asked.append(error)
        return True

    retry = Retry(on=once_more, attempts=9, backoff=Backoff(initial=0.01, maximum=0.01))
    old, new = Handler(), Handler()
    async with batcher(path, old, retry=retry):
        await until(lambda: len(asked) >= 2)
    assert old.batches == []
    assert {type(error) for error in asked} == {ValueError}
    assert "no longer decode as int" in str(asked[0])
    async with batcher(path, new, item_type=str, result_type=str) as durable:
        assert await durable.result(ticket, 20) == "newnew"
    check_counts(path)


async def test_an_item_that_nobody_can_read_is_a_dead_letter_in_the_end(path):
    """Without `retry` at once, with it after its attempts; its neighbours are handled."""
    async with DurableQueue(path, item_type=str) as queue:
        ticket = await queue.enqueue("new")
    handler = Handler()
    for retry, tries in ((None, 1), (Retry(on=ValueError, attempts=3, backoff=soon().backoff), 3)):
        async with batcher(path, handler, retry=retry) as durable:
            await durable.requeue([ticket.id])
            with pytest.raises(ItemFailed, match="no longer decode as int") as caught:
                await durable.result(ticket, 20)
            assert caught.value.attempts == tries
            assert await durable.submit(2) == 4
    assert handler.items == [2, 2]
    check_counts(path)


async def take_back(path, **settings) -> None:
    """Let a worker see that, while nobody may claim anything."""
    execute(path, "UPDATE microbatch_queues SET paused = 1")
    async with batcher(path, Handler(), **settings):
        await until(lambda: rows(path, "SELECT count(*) FROM microbatch_consumers") == [(1,)])
    execute(path, "UPDATE microbatch_queues SET paused = 0")


async def _empty(durable):
    return (await durable.stats()).depth == 0


async def test_what_a_dead_process_had_goes_again_in_tenths(path):
    """One of them may have killed it: few others are with it the next time, and nobody is charged."""
    await enqueue(path, 40)
    assert die_with(path, 25) == [list(range(1, 26))]
    handler = Handler()
    async with batcher(path, handler, max_concurrency=4) as durable:
        await until(lambda: _empty(durable))
    suspects = [batch for batch in handler.batches if min(batch) <= 25]
    assert sorted(suspects) == [list(range(first, min(first + 3, 26))) for first in range(1, 26, 3)]
    assert sorted(handler.items) == list(range(1, 41))
    assert {attempt for info in handler.infos for attempt in info.attempts} == {1}
    check_counts(path)


async def test_suspects_are_handled_beside_everything_else(path):
    """Nobody waits until the hands are empty, neither they nor the others."""
    await enqueue(path, 30)
    die_with(path, 3)
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_concurrency=4, max_batch_size=10) as durable:
        await until(lambda: len(handler.batches) == 4)  # while each of them holds its slot
        handler.free.set()
        await until(lambda: _empty(durable))
    assert sorted(handler.batches[:4]) == [[1], [2], [3], list(range(4, 14))]


async def test_who_dies_in_company_is_never_charged(path):
    """However often: with 100 in a batch a killer is alone the third time, and so are nine of its neighbours."""
    await enqueue(path, 100)
    for items in (100, 10):
        assert die_with(path, 100) == [list(range(1, items + 1))]
        await take_back(path)
        assert set(attempts(path)) == {0}
    assert die_with(path, 100, slots=11) == [
        *([number] for number in range(1, 11)),
        list(range(11, 21)),
    ]
    await take_back(path)
    handler = Handler()
    async with batcher(path, handler) as durable:
        await until(lambda: _empty(durable))
        assert (await durable.stats()).done == 100
    tries = {
        item: attempt
        for batch, info in zip(handler.batches, handler.infos, strict=True)
        for item, attempt in zip(batch, info.attempts, strict=True)
    }
    assert tries == {item: 2 if item <= 10 else 1 for item in range(1, 101)}
    check_counts(path)


async def test_who_died_alone_once_goes_again_alone(path):
    """Its neighbours do not share a batch with it."""
    await enqueue(path, 3)
    assert die_with(path, 1) == [[1]]
    handler = Handler()
    async with batcher(path, handler) as durable:
        await until(lambda: _empty(durable))
    assert [batch for batch in handler.batches if 1 in batch] == [[1]]
    assert sorted(handler.items) == [1, 2, 3]
    check_counts(path)


async def test_who_died_alone_twice_is_a_dead_letter(path):
    """Not a crash loop; and what it failed with before is told too."""
    await enqueue(path, 1)

    async def fail(items):
        execute(path, "UPDATE microbatch_queues SET paused = 1")
        raise ConnectionError("gone")

    async with batcher(path, fail, retry=soon(9)) as durable:
        await until(lambda: _scheduled(durable))
    await until(lambda: rows(path, "SELECT due FROM microbatch_ranges")[0][0] <= time.time())
    for deaths in (1, 2):
        execute(path, "UPDATE microbatch_queues SET paused = 0")
        assert die_with(path, 1) == [[1]]
        await take_back(path, retry=soon(9))
        assert rows(path, "SELECT deaths FROM microbatch_ranges") == [(deaths,)]
    handler = Handler()
    async with batcher(path, handler) as durable:
        with pytest.raises(
            ItemFailed,
            match="after 3 attempts: ProcessDied: its process died while it had this item alone, 2 times; "
            "attempts: 3; the error before: ConnectionError: gone",
        ):
            await durable.result(1, 20)
        assert await durable.submit(7) == 14
    assert handler.items == [7]
    check_counts(path)


async def test_retry_says_how_many_deaths_are_too_many(path):
    """attempts=1 means that nothing is ever handled twice, as far as one can tell."""
    await enqueue(path, 1)
    die_with(path, 1)
    async with batcher(path, Handler(), retry=soon(1)) as durable:
        with pytest.raises(ItemFailed, match="alone, once; attempts: 1"):
            await durable.result(1, 20)


async def test_without_back_off_a_durable_item_goes_again_at_once(path):
    """`no_backoff` is for tests of the durable mode too, which need real time."""
    calls = []

    async def fails_twice(items):
        calls.append(list(items))
        if len(calls) < 3:
            raise ConnectionError
        return items

    retry = Retry(on=ConnectionError, backoff=Backoff(initial=3600, maximum=3600, jitter=0))
    with no_backoff():
        async with batcher(path, fails_twice, retry=retry) as durable:
            assert await durable.submit(1) == 1
    assert calls == [[1]] * 3
