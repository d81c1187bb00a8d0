"""Jobs as their users see them: made, watched, read page by page, listed, deleted."""

from __future__ import annotations

import datetime as dt
import uuid

import anyio
import pytest
from durable_support import LOOPS, Handler, batcher, check_jobs, until

from microbatch import ItemError, Skipped, current_batch
from microbatch.durable import (
    DurableQueue,
    ItemFailed,
    JobNotEnded,
    JobPage,
    JobsPage,
    JobStatus,
    UnknownJob,
)

pytestmark = pytest.mark.anyio


def _mixed(number: int) -> object:
    if number % 5 == 1:
        return ItemError(f"no {number}", code="odd")
    if number % 5 == 2:
        return Skipped("known")
    if number % 5 == 3:
        return OSError("disk")
    return number * 10


async def mixed(items):
    return [_mixed(item) for item in items]


@pytest.mark.parametrize("backend_name", LOOPS, indirect=True)
async def test_a_job_is_stored_handled_and_told_of_as_one(path):
    """The whole way: what comes in comes out, counted once each, in one status."""
    async with batcher(path, mixed, max_batch_size=7) as durable:
        job = await durable.enqueue_job(range(50), owner="me", metadata={"file": "a.csv"}, key="k")
        status = await job.wait(20)
        assert isinstance(status, JobStatus)
        assert (status.id, status.queue, status.owner, status.key) == (job.id, "default", "me", "k")
        assert status.metadata == {"file": "a.csv"}
        assert (status.life, status.outcome, status.paused) == (
            "ended",
            "partially_succeeded",
            False,
        )
        counts = (status.total, status.succeeded, status.failed, status.skipped)
        assert counts == (50, 20, 20, 10)
        assert (status.cancelled, status.expired, status.pending, status.done) == (0, 0, 0, 50)
        assert status.errors == {"odd": 10, "skipped": 10, "internal_error": 10}
        assert (status.fraction, status.eta, status.rate) == (1.0, 0.0, 0.0)
        assert status.retry_of is None
        assert status == await job.status()
        times = [status.created_at, status.started_at, status.ended_at, status.expires_at]
        assert times == sorted(times)
        assert {time.tzinfo for time in times} == {dt.UTC}
        assert status.expires_at - status.ended_at == dt.timedelta(seconds=604_800)
    check_jobs(path)


async def test_outcomes_come_by_their_index(path):
    """What the handler gave each item, whatever order they ended in."""
    async with batcher(path, mixed, max_batch_size=3) as durable:
        job = await durable.enqueue_job(range(20), item_id=lambda item: f"row-{item}")
        await job.wait(20)
        outcomes = [outcome async for outcome in job.outcomes()]
        assert [outcome.index for outcome in outcomes] == list(range(20))
        assert [outcome.id for outcome in outcomes] == [f"row-{n}" for n in range(20)]
        assert [outcome.kind for outcome in outcomes[:5]] == [
            "succeeded",
            "failed",
            "skipped",
            "failed",
            "succeeded",
        ]
        assert outcomes[4].unwrap() == 40
        assert [outcome.attempts for outcome in outcomes] == [1] * 20
        failed = outcomes[1].error
        assert isinstance(failed, ItemFailed)
        assert (failed.kind, failed.message, failed.code) == ("ItemError", "no 1", "odd")
        assert outcomes[3].code == "internal_error"
        assert (outcomes[2].code, outcomes[2].skipped) == ("skipped", True)


@pytest.mark.parametrize("kind", [None, "succeeded", "failed", "skipped", "cancelled", "expired"])
@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_pages_together_are_all_outcomes(path, kind, limit):
    """Keyset pages: none twice, none left out, by kind too."""
    async with batcher(path, mixed, max_batch_size=4) as durable:
        job = await durable.enqueue_job(range(23))
        await job.wait(20)
        wanted = [o.index async for o in job.outcomes() if kind is None or o.kind == kind]
        found, cursor = [], None
        while True:
            page = await job.results(cursor, limit, kind)
            assert isinstance(page, JobPage)
            assert len(page.outcomes) <= limit
            found += [outcome.index for outcome in page.outcomes]
            if page.cursor is None:
                break
            cursor = page.cursor
        assert found == wanted
        assert found == [o.index async for o in job.outcomes(kind)]


async def test_an_item_without_an_id_of_the_clients_has_its_tickets(path):
    """It can be asked for, and cancelled, as any other item."""
    async with batcher(path, Handler()) as durable:
        await durable.submit(0)
        job = await durable.enqueue_job([5, 6])
        await job.wait(20)
        numbers = [outcome.id async for outcome in job.outcomes()]
        assert [await durable.result(number) for number in numbers] == [10, 12]


async def test_pages_grow_while_the_job_runs(path):
    """Only what has ended is shown, and its place does not move."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=2) as durable:
        job = await durable.enqueue_job(range(4))
        await until(lambda: handler.batches)
        assert await job.results() == JobPage([], None)
        status = await job.status()
        assert (status.life, status.outcome, status.pending) == ("running", None, 4)
        assert (status.ended_at, status.expires_at) == (None, None)
        assert status.started_at is not None
        handler.free.set()
        await job.wait(20)
        page = await job.results()
        assert [(o.index, o.value) for o in page.outcomes] == [(0, 0), (1, 2), (2, 4), (3, 6)]


async def test_an_empty_job_has_ended_well(path):
    """Nothing to do is done."""
    async with DurableQueue(path, item_type=int) as queue:
        status = await (await queue.enqueue_job([])).wait(20)
        assert (status.life, status.outcome, status.total) == ("ended", "succeeded", 0)
        assert (status.fraction, status.pending, status.started_at) == (1.0, 0, None)


async def test_a_queue_without_a_handler_makes_and_watches_jobs(path):
    """Who brings a job need not be who works on it."""
    async with DurableQueue(path, item_type=int, result_type=int, poll_interval=0.02) as queue:
        job = await queue.enqueue_job(range(10))
        status = await job.status()
        assert (status.life, status.pending, status.started_at) == ("queued", 10, None)
        assert (await queue.stats()).ready == 10
        async with batcher(path, Handler()):
            assert (await job.wait(20)).outcome == "succeeded"
        assert [o.value async for o in job.outcomes()] == [n * 2 for n in range(10)]


async def test_the_handler_knows_the_job_and_the_clients_ids(path):
    """One that reports progress, or writes to a table of the job's, needs both."""
    handler = Handler()
    async with batcher(path, handler) as durable:
        await durable.pause()
        named = await durable.enqueue_job([1, 2], item_id=str)
        plain = await durable.enqueue_job([3])
        await durable.enqueue(4)
        await durable.resume()
        await plain.wait(20)
        await until(lambda: len(handler.items) == 4)
    (info,) = handler.infos
    assert info.job is None  # not all of one
    assert info.item_ids == ("1", "2", None, None)
    async with batcher(path, handler, queue="other") as durable:
        named = await durable.enqueue_job([1, 2], item_id=str)
        await named.wait(20)
        await (await durable.enqueue_job([3])).wait(20)
        await durable.submit(4)
    assert [(info.job == named.id, info.item_ids) for info in handler.infos[1:]] == [
        (True, ("1", "2")),
        (False, None),
        (False, None),
    ]
    assert handler.infos[3].job is None


async def test_ids_are_uuids_that_grow(path):
    """Nobody can guess one, and they sort by age."""
    async with DurableQueue(path, item_type=int) as queue:
        ids = [(await queue.enqueue_job([])).id for _ in range(20)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(one).version for one in ids} == {7}


# Listed


async def test_jobs_are_listed_the_newest_first(path):
    """By owner and life, page by page."""
    async with batcher(path, Handler()) as durable:
        await durable.pause()
        ended = [await durable.enqueue_job([], owner="me") for _ in range(3)]
        queued = [await durable.enqueue_job([1], owner=owner) for owner in ("me", "you", None)]
        page = await durable.jobs()
        assert isinstance(page, JobsPage)
        assert page.cursor is None
        assert [one.id for one in page.jobs] == [j.id for j in reversed(ended + queued)]
        mine = await durable.jobs(owner="me")
        assert [one.id for one in mine.jobs] == [j.id for j in reversed([*ended, queued[0]])]
        assert [one.id for one in (await durable.jobs(life="queued")).jobs] == [
            j.id for j in reversed(queued)
        ]
        assert (await durable.jobs(owner="me", life="running")).jobs == []
        found, cursor = [], None
        while True:
            page = await durable.jobs(limit=4, cursor=cursor)
            found += [one.id for one in page.jobs]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == [j.id for j in reversed(ended + queued)]


async def test_jobs_of_other_queues_are_not_seen(path):
    """Queues in a file share nothing but the file."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([1])
        async with DurableQueue(path, item_type=int, queue="other") as other:
            assert (await other.jobs()).jobs == []
            with pytest.raises(UnknownJob, match="queue 'other' has no job"):
                await other.job(job.id).status()
            with pytest.raises(UnknownJob):
                await other.delete_job(job.id)


async def test_another_owners_job_is_like_one_that_never_was(path):
    """Who may not see it must not learn that it is there."""
    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job([1], owner="me")
        await job.wait(20)
        assert (await durable.job(job.id, owner="me").status()).succeeded == 1
        assert (await durable.job(job.id).status()).succeeded == 1
        errors = []
        for handle in (durable.job(job.id, owner="you"), durable.job("x" * 36, owner="you")):
            for call in (
                handle.status,
                handle.wait,
                handle.results,
                handle.cancel,
                handle.pause,
                handle.resume,
                handle.retry_failed,
                handle.progress().__anext__,
                handle.outcomes().__anext__,
                lambda handle=handle: durable.delete_job(handle.id, owner="you"),
            ):
                with pytest.raises(UnknownJob) as caught:
                    await call()
                errors.append(str(caught.value).replace(handle.id, "ID"))
        assert set(errors) == {
            "queue 'default' has no job 'ID': deleted, past its time, or never there"
        }
        assert isinstance(caught.value, LookupError)
        assert (await job.status()).succeeded == 1


# Deleted


async def test_an_ended_job_is_deleted_with_all_that_it_has(path):
    """Row, outcomes, ids, errors: a file must not grow by what nobody wants."""
    async with batcher(path, mixed, max_batch_size=9) as durable:
        job = await durable.enqueue_job(range(30), item_id=str, key="k")
        with pytest.raises(JobNotEnded, match="has not ended"):
            await durable.delete_job((await durable.enqueue_job([1], delay=60)).id)
        await job.wait(20)
        await durable.delete_job(job.id)
        with pytest.raises(UnknownJob):
            await job.status()
        with pytest.raises(UnknownJob):
            await durable.delete_job(job.id)
        again = await durable.enqueue_job([1], key="k")
        assert again.id != job.id
        await again.wait(20)
    check_jobs(path)


async def test_a_job_that_is_deleted_ends_those_who_wait(path):
    """They would wait for ever."""
    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job([1])
        await job.wait(20)
        await durable.delete_job(job.id)
        for call in (job.wait, job.progress().__anext__):
            with pytest.raises(UnknownJob), anyio.fail_after(20):
                await call()


# Misuse


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"key": 5}, TypeError, "key must be a str or None, got 5"),
        ({"key": ""}, ValueError, "key must be 1 to 1000 printable characters"),
        ({"fingerprint": 5}, TypeError, "fingerprint must be bytes, a str or None, got 5"),
        ({"owner": 5}, TypeError, "owner must be a str or None, got 5"),
        ({"owner": ""}, ValueError, "owner must be 1 to 1000 printable characters, got ''"),
        ({"metadata": []}, TypeError, "metadata must be a dict with keys of str, or None"),
        ({"metadata": {1: 2}}, TypeError, "metadata must be a dict with keys of str, or None"),
        ({"metadata": {"a": object()}}, TypeError, "metadata must have a JSON form"),
        ({"metadata": {"a": float("nan")}}, ValueError, "metadata must have a JSON form"),
        ({"metadata": {"a": "x" * 16_384}}, ValueError, "metadata must be at most 16384 bytes"),
        ({"metadata": {"a": "\ud800"}}, ValueError, "metadata must have a JSON form"),
        ({"priority": True}, TypeError, "priority must be an int"),
        ({"delay": -1}, ValueError, "delay must be at least 0"),
        ({"item_id": "x"}, TypeError, "item_id must be a function or None"),
        ({"invalid": "skip"}, ValueError, "invalid must be 'reject' or 'fail', got 'skip'"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2**63}, ValueError, "batch_size must fit into 64 bits"),
        ({"ordered": 1}, TypeError, "ordered must be True or False, got 1"),
        ({"max_failures": -1}, ValueError, "max_failures must be at least 0, got -1"),
        ({"deadline": 0}, ValueError, "deadline must be greater than 0, got 0"),
        ({"item_id": lambda _: 5}, TypeError, "item_id must return a str, got 5 for item 0"),
        ({"item_id": lambda _: ""}, ValueError, "item_id must return 1 to 128 printable"),
        ({"item_id": lambda _: "\n"}, ValueError, "item_id must return 1 to 128 printable"),
    ],
)
async def test_bad_settings_are_refused_by_name(path, arguments, error, text):
    """And nothing is stored."""
    async with DurableQueue(path, item_type=int) as queue:
        with pytest.raises(error, match=text):
            await queue.enqueue_job([1], **arguments)
        assert (await queue.jobs()).jobs == []
    check_jobs(path)


async def test_bad_arguments_of_handles_are_refused_by_name(path):
    """As everywhere else."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([])
        with pytest.raises(TypeError, match="id must be a str, got 5"):
            queue.job(5)
        with pytest.raises(ValueError, match="owner must be 1 to 1000"):
            queue.job("x", owner="")
        with pytest.raises(ValueError, match="limit must be at most 10000, got 10001"):
            await job.results(limit=10_001)
        with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
            await queue.jobs(limit=0)
        with pytest.raises(ValueError, match="kind must be None or one of 'succeeded', "):
            await job.results(kind="bad")
        with pytest.raises(ValueError, match="life must be None or one of 'queued', "):
            await queue.jobs(life="dead")
        with pytest.raises(ValueError, match="cursor must be at least 0"):
            await job.results(cursor=-1)
        with pytest.raises(ValueError, match="cursor must be at least 0"):
            await queue.jobs(cursor=-1)
        with pytest.raises(ValueError, match="timeout must be at least 0"):
            await job.wait(-1)
        with pytest.raises(ValueError, match="min_interval must be at least 0"):
            await job.progress(-1).__anext__()
        with pytest.raises(TypeError, match="retryable_only must be True or False"):
            await job.retry_failed(retryable_only=1)
        with pytest.raises(TypeError, match="items must be an iterable or async iterable of items"):
            await queue.enqueue_job(5)
        assert (await job.results(cursor=2**70)).outcomes == []
        assert repr(job) == f"<Job {job.id!r} of queue 'default'>"
    with pytest.raises(TypeError, match="on_job_end must be a function or None"):
        batcher(path, Handler(), on_job_end=5)
    with pytest.raises(ValueError, match="job_ttl must be at least 0"):
        batcher(path, Handler(), job_ttl=-1)
    assert current_batch() is None
