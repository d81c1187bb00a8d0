"""A job that comes in: read once, whole or not at all, and nothing of it is seen before."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from durable_support import Handler, Order, batcher, check_jobs, rows, until
from jobs_support import NOTHING, left_of_jobs, nothing_is_left

from microbatch import BatcherClosed, ItemError
from microbatch.durable import (
    DurableQueue,
    JobRejected,
    QueueFull,
    UnknownJob,
)
from microbatch.durable._file import job_steps
from microbatch.durable._flow import job_intake

pytestmark = pytest.mark.anyio


async def test_any_iterable_is_a_source(path, small_chunks):
    """Lists, generators, async generators: read once, to the end."""

    async def coming():
        for number in range(25):
            yield number
            await anyio.lowlevel.checkpoint()

    async with batcher(path, Handler()) as durable:
        for source in ([*range(25)], iter(range(25)), (n for n in range(25)), coming()):
            job = await durable.enqueue_job(source)
            await job.wait(20)
            assert [o.value async for o in job.outcomes()] == [n * 2 for n in range(25)]
    check_jobs(path)


async def test_a_bad_source_fails_the_call_and_leaves_nothing(path, small_chunks):
    """What it raises comes out as it is."""

    def breaks():
        yield from range(35)
        raise OSError("no more lines")

    async def breaks_later():
        for number in range(35):
            yield number
        raise OSError("no more lines")

    async with DurableQueue(path, item_type=int) as queue:
        for source in (breaks(), breaks_later()):
            with pytest.raises(OSError, match="no more lines"):
                await queue.enqueue_job(source, key="k", item_id=str)
            assert (await queue.jobs()).jobs == []
            assert left_of_jobs(path) == NOTHING
        await queue.enqueue_job([1], key="k")
    check_jobs(path)


async def test_nobody_sees_a_job_that_comes_in(path, small_chunks):
    """Neither by its id, nor in a list, nor in any figure; but it takes room."""
    seen = []
    told = asyncio.Event()

    async def slowly():
        for number in range(25):
            yield number
        seen.append(rows(path, "SELECT uid, life FROM microbatch_jobs"))
        seen.append(await queue.stats())
        seen.append((await queue.jobs()).jobs)
        with pytest.raises(UnknownJob):
            await queue.job(seen[0][0][0]).status()
        with pytest.raises(QueueFull):
            await queue.enqueue_many(range(990))
        await told.wait()

    handler = Handler()
    async with batcher(path, handler, max_depth=1_000) as queue:
        call = asyncio.ensure_future(queue.enqueue_job(slowly()))
        await until(lambda: len(seen) == 3)
        await queue.submit(77)
        assert handler.items == [77]
        told.set()
        job = await call
        await job.wait(20)
    assert seen[0][0][1] == 0
    assert (seen[1].ready, seen[1].scheduled, seen[1].claimed) == (0, 0, 0)
    assert seen[2] == []
    assert handler.items == [77, *range(25)]


async def test_no_handler_is_called_before_the_call_has_returned(path):
    """Who notes the job's id in a table of his own does so before its first item is handled."""
    order = []

    async def handler(items):
        order.append("handled")
        return items

    async with batcher(path, handler) as durable:
        for number in range(20):
            order.clear()
            busy = [asyncio.ensure_future(durable.enqueue(n)) for n in range(number)]
            job = await durable.enqueue_job([1])
            if not busy:
                assert order == []
            order.append("returned")
            assert (await durable.job(job.id).wait(20)).succeeded == 1
            await asyncio.gather(*busy)


async def test_the_call_returns_before_the_first_handler_call(path):
    """The same where nothing else is there that could be handled."""
    order = []

    async def handler(items):
        order.append("handled")
        return items

    async with batcher(path, handler) as durable:
        for _ in range(20):
            order.clear()
            job = await durable.enqueue_job([1])
            order.append("returned")
            await job.wait(20)
            assert order == ["returned", "handled"]


async def test_cancelling_the_call_leaves_nothing(path, small_chunks):
    """In the middle of the source, while something of it is on the disk."""

    async def endless():
        for number in range(35):
            yield number
        await anyio.sleep_forever()

    async with DurableQueue(path, item_type=int) as queue:
        call = asyncio.ensure_future(queue.enqueue_job(endless(), key="k", item_id=str))
        await until(lambda: rows(path, "SELECT sum(staged) FROM microbatch_queues") == [(30,)])
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await nothing_is_left(path)


async def test_closing_ends_the_call_and_leaves_nothing(path, small_chunks):
    """It comes in many turns: a close between two of them must not leave it without an answer."""
    told = asyncio.Event()

    async def waiting():
        for number in range(35):
            yield number
        await told.wait()
        for number in range(35):
            yield number

    queue = DurableQueue(path, item_type=int)
    call = asyncio.ensure_future(queue.enqueue_job(waiting(), item_id=str))
    await until(
        lambda: (
            path.exists()
            and rows(path, "SELECT name FROM sqlite_master WHERE name = 'microbatch_jobs'")
            and rows(path, "SELECT sum(staged) FROM microbatch_queues") == [(30,)]
        )
    )
    await queue.aclose()
    assert left_of_jobs(path) == NOTHING
    told.set()
    with pytest.raises(BatcherClosed):
        await call
    check_jobs(path)


async def test_a_full_queue_ends_the_call_and_leaves_nothing(path, small_chunks):
    """Whole or not at all: not the first half."""
    async with DurableQueue(path, item_type=int, max_depth=25) as queue:
        with pytest.raises(QueueFull, match="max_depth=25"):
            await queue.enqueue_job(range(26))
        assert left_of_jobs(path) == NOTHING
        assert (await (await queue.enqueue_job(range(25))).status()).total == 25
    check_jobs(path)


async def test_a_file_that_is_full_ends_the_call(path):
    """The other bound."""
    async with DurableQueue(path, item_type=bytes, max_file_bytes=1_000_000) as queue:
        with pytest.raises(QueueFull, match="max_file_bytes"):
            await queue.enqueue_job(b"x" * 100_000 for _ in range(200))
        assert (await queue.jobs()).jobs == []
    check_jobs(path)


# Items that do not fit


async def test_one_item_that_does_not_fit_rejects_the_job(path, small_chunks):
    """All of them are told of, up to a bound, with the path in the item."""
    items = [{"number": n} if n % 3 else {"number": "x"} for n in range(25)]
    async with DurableQueue(path, item_type=Order) as queue:
        with pytest.raises(JobRejected) as caught:
            await queue.enqueue_job(item for item in items)
        assert caught.value.invalid == 9
        assert [index for index, _, _ in caught.value.errors] == list(range(0, 25, 3))
        assert "$.number" in caught.value.errors[0][2]
        assert "9 items do not fit item_type; the first, item 0:" in str(caught.value)
        assert left_of_jobs(path) == NOTHING
    check_jobs(path)


async def test_a_rejection_names_the_clients_ids(path, small_chunks, monkeypatch):
    """And is bounded, as everything."""
    monkeypatch.setattr(job_intake, "TOLD_MAX", 2)
    items = [
        {"number": n, "name": f"n{n}"} if n % 2 else {"number": "x", "name": f"n{n}"}
        for n in range(25)
    ]
    async with DurableQueue(path, item_type=Order) as queue:
        with pytest.raises(JobRejected) as caught:
            await queue.enqueue_job(items, item_id=lambda item: item["name"])
        assert caught.value.invalid == 13
        assert [(index, one) for index, one, _ in caught.value.errors] == [(0, "n0"), (2, "n2")]
        await nothing_is_left(path)


async def test_an_item_that_does_not_fit_fails_alone(path, small_chunks):
    """The others go their way; what it was is shown among the dead letters."""
    async with batcher(path, Handler()) as durable:
        source = [n if n % 3 else {"no": n} for n in range(25)]
        job = await durable.enqueue_job(
            source, invalid="fail", item_id=lambda item: str(item or "zero")
        )
        status = await job.wait(20)
        assert (status.failed, status.succeeded, status.total) == (9, 16, 25)
        assert status.errors == {"invalid_item": 9}
        assert status.outcome == "partially_succeeded"
        bad = [outcome async for outcome in job.outcomes("failed")]
        assert [outcome.index for outcome in bad] == list(range(0, 25, 3))
        assert [outcome.attempts for outcome in bad] == [0] * 9
        assert {outcome.code for outcome in bad} == {"invalid_item"}
        assert not any(outcome.error.retryable for outcome in bad)
        assert "Expected `int`, got `object`" in bad[0].error.message
        letters = await durable.dead_letters()
        assert [letter.item for letter in letters] == [{"no": n} for n in range(0, 25, 3)]
        again = await job.retry_failed(retryable_only=False)
        assert (await again.wait(20)).total == 0
    check_jobs(path)


async def test_what_has_no_form_for_the_disk_fails_alone_too(path):
    """And whose text cannot be shown; its id may be anything then."""

    class Shy:
        def __repr__(self):
            raise OSError("not today")

    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job(
            [1, object(), Shy()], invalid="fail", item_id=lambda item: f"{item:d}"
        )
        status = await job.wait(20)
        assert status.errors == {"invalid_item": 2}
        outcomes = [outcome async for outcome in job.outcomes()]
        assert outcomes[0].id == "1"
        assert isinstance(outcomes[1].id, int)
        letters = await durable.dead_letters()
        assert letters[0].item.startswith("<object object")
        assert letters[1].item == "(a Shy that cannot be shown)"


async def test_an_error_in_an_items_place_is_why_it_does_not_fit(path):
    """A source that reads rows says which of them were none: also where any item would do."""
    bad = ItemError("line 2: no number", code="bad_row")
    async with batcher(path, Handler(), item_type=Any) as durable:
        job = await durable.enqueue_job([1, bad, 3], invalid="fail")
        status = await job.wait(20)
        assert (status.succeeded, status.errors) == (2, {"invalid_item": 1})
        (outcome,) = [outcome async for outcome in job.outcomes("failed")]
        assert (outcome.index, outcome.attempts, outcome.error.message) == (
            1,
            0,
            "line 2: no number",
        )
        with pytest.raises(JobRejected) as caught:
            await durable.enqueue_job([1, bad, 3])
        assert list(caught.value.errors) == [(1, None, "line 2: no number")]


async def test_a_job_of_items_that_do_not_fit_has_failed(path):
    """At once: there is nothing to wait for. And it counts towards `max_failures`."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job(["a", "b", "c"], invalid="fail")
        status = await job.status()
        assert (status.life, status.outcome, status.failed) == ("ended", "failed", 3)
        job = await queue.enqueue_job([1, "a", 2], invalid="fail", max_failures=0)
        status = await job.wait(20)
        assert (status.outcome, status.failed, status.cancelled) == ("cancelled", 1, 2)
    check_jobs(path)


async def test_many_items_that_do_not_fit_become_visible_in_steps(path, monkeypatch):
    """Each is a row, and the file must not be held for long; all counts hold meanwhile."""
    monkeypatch.setattr(job_steps, "STEP", 7)
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job(["x"] * 40 + [1] * 5, invalid="fail")
        seen = []
        async for status in job.progress(0):
            seen.append(status.failed)
            assert status.done + status.pending == status.total == 45
            if status.failed == 40:
                break
        assert seen == sorted(seen)
        await until(lambda: rows(path, "SELECT ready FROM microbatch_queues") == [(5,)])
        await job.cancel()
        assert (await job.wait(20)).cancelled == 5
    check_jobs(path)


async def test_a_job_is_cancelled_while_its_items_become_visible(path, monkeypatch):
    """What does not fit has failed all the same."""
    monkeypatch.setattr(job_steps, "STEP", 3)
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([1, 2, "x"] * 20, invalid="fail")
        await job.cancel()
        status = await job.wait(20)
        assert (status.failed, status.cancelled, status.errors) == (20, 40, {"invalid_item": 20})
    check_jobs(path)


# Ids that come twice


async def test_an_id_that_comes_twice_is_refused(path, small_chunks):
    """Whatever is done with items that do not fit; both places are named."""
    async with DurableQueue(path, item_type=int) as queue:
        for invalid in ("reject", "fail"):
            for bad in ([], ["x"]):
                source = [*bad, *range(30), 7]
                with pytest.raises(ValueError, match="the id '7' comes twice: items ") as caught:
                    await queue.enqueue_job(source, item_id=str, invalid=invalid)
                start = len(bad)
                assert str(caught.value).endswith(f"items {7 + start} and {30 + start}")
                await nothing_is_left(path)


async def test_equal_hashes_alone_are_no_twins(path, small_chunks, monkeypatch):
    """64 bits are many, but no proof."""
    monkeypatch.setattr(job_intake, "hash_of", len)
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job(range(30), item_id=str)
        assert (await job.status()).total == 30
        with pytest.raises(ValueError, match="comes twice: items 4 and 30"):
            await queue.enqueue_job([*range(30), 4], item_id=str)


async def test_items_come_as_large_as_they_like(path, monkeypatch):
    """A transaction is cut by bytes too."""
    monkeypatch.setattr(job_intake, "CHUNK_BYTES", 100_000)
    async with batcher(path, lambda items: [len(i) for i in items], item_type=bytes) as q:
        job = await q.enqueue_job(b"x" * 70_000 for _ in range(9))
        await job.wait(20)
        assert {o.value async for o in job.outcomes()} == {70_000}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_generator_that_is_not_read_to_its_end_is_closed(path, asynchronous):
    """What it holds, a file say, must not stay open until the collector comes by."""
    closed = []

    def lines():
        try:
            yield from range(5)
        finally:
            closed.append("lines")

    async def coming():
        try:
            for number in range(5):
                yield number
        finally:
            closed.append("coming")

    async with DurableQueue(path, item_type=int) as queue:
        source = coming() if asynchronous else lines()
        with pytest.raises(TypeError, match="item_id must return a str"):
            await queue.enqueue_job(source, item_id=lambda item: item)
        assert closed == ["coming" if asynchronous else "lines"]
        await nothing_is_left(path)
