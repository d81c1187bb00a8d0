"""Retries whose back-off is on the disk, and what processes that die do to items."""

from __future__ import annotations

import asyncio

import pytest
from durable_support import Handler, batcher, check_counts, execute, rows, until

from microbatch import Backoff, HandlerStuck, ItemError, Retry
from microbatch.durable import ItemFailed

pytestmark = pytest.mark.anyio


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
    async with batcher(path, handler, retry=soon(delay=0.5)) as durable:
        ticket = await durable.enqueue(1)
        await until(lambda: _scheduled(durable))
    async with batcher(path, handler, retry=soon()) as durable:
        stats = await durable.stats()
        assert (stats.scheduled, stats.ready) == (1, 0)
        assert await durable.result(ticket, 20) == 1
    assert rows(path, "SELECT attempts FROM microbatch_items") == [(2,)]


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
    monkeypatch.setattr("microbatch.durable.outcomes.STUCK_PAUSE", 0.05)
    handler = Flaky(2, HandlerStuck("x", 9, 8))
    async with batcher(path, handler) as durable:
        assert await durable.submit(1) == 1
    assert rows(path, "SELECT attempts FROM microbatch_items") == [(1,)]


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


def die_with(path, attempts: int, *items: int) -> None:
    """Leave the file as a process does that died with these items in its hands."""
    marks = ",".join(map(str, items))
    execute(
        path,
        "BEGIN",
        "INSERT INTO microbatch_consumers (queue, lock_file, pid, born) VALUES (1, 1, 999999999, 'x')",
        f"UPDATE microbatch_items SET state = 2, claim = 1, attempts = {attempts}, "
        f"consumer = (SELECT max(id) FROM microbatch_consumers) WHERE id IN ({marks})",
        "UPDATE microbatch_queues SET ready = (SELECT count(*) FROM microbatch_items WHERE state = 0), "
        "claimed = (SELECT count(*) FROM microbatch_items WHERE state = 2)",
        "COMMIT",
    )


async def enqueue(path, *items: int) -> None:
    async with batcher(path, Handler()) as durable:
        await durable.pause()
        await durable.enqueue_many(items)
        await durable.resume()
        await durable.pause()
    execute(path, "UPDATE microbatch_queues SET paused = 0")


async def test_items_of_a_dead_process_are_handled_alone(path):
    """One of them may have killed it: nobody else may suffer for that."""
    await enqueue(path, 0, 1, 2, 3, 4, 5)
    die_with(path, 1, 1, 2, 3)
    handler = Handler()
    async with batcher(path, handler, max_concurrency=4) as durable:
        assert await durable.result(6, 20) == 10
        assert await durable.result(3, 20) == 4
    with_suspects = [batch for batch in handler.batches if {0, 1, 2} & set(batch)]
    assert sorted(with_suspects) == [[0], [1], [2]]
    assert sorted(handler.items) == [0, 1, 2, 3, 4, 5]
    assert rows(path, "SELECT sum(suspect), max(attempts) FROM microbatch_items") == [(0, 2)]
    check_counts(path)


async def test_an_item_that_killed_three_processes_is_a_dead_letter(path):
    """Not a crash loop."""
    await enqueue(path, 0, 1)
    die_with(path, 3, 1)
    handler = Handler()
    async with batcher(path, handler) as durable:
        with pytest.raises(
            ItemFailed,
            match="after 3 attempts: ProcessDied: its process died while it had the item, 3 times",
        ):
            await durable.result(1, 20)
        assert await durable.result(2, 20) == 2
    assert handler.items == [1]
    check_counts(path)


async def test_retry_says_how_many_deaths_are_too_many(path):
    """attempts=1 means that nothing is ever handled twice."""
    await enqueue(path, 0)
    die_with(path, 1, 1)
    async with batcher(path, Handler(), retry=soon(1)) as durable:
        with pytest.raises(ItemFailed, match="ProcessDied"):
            await durable.result(1, 20)


async def test_suspects_wait_until_the_hands_are_empty(path):
    """A suspect that kills its process must not take a running batch with it."""
    await enqueue(path, 0)
    die_with(path, 1, 1)
    execute(path, "UPDATE microbatch_items SET priority = -1")
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_concurrency=4, max_batch_size=2) as durable:
        await durable.pause()
        ticket = (await durable.enqueue_many([7, 8, 9]))[-1]
        await durable.resume()
        await until(lambda: len(handler.items) >= 1)
        held = [list(batch) for batch in handler.batches]
        handler.free.set()
        assert await durable.result(1, 20) == 0
        assert await durable.result(ticket, 20) == 18
    assert [0] in handler.batches
    assert not any(0 in batch and len(batch) > 1 for batch in held)
