"""docs/how-to/jobs.md and troubleshooting.md against the code: the chart of life, outcomes, what each symptom shows."""

from __future__ import annotations

import itertools
import re

import pytest
from durable_support import Handler, batcher, until
from pages_support import DOCS, blocks_of, rows, sections

from microbatch import Backoff, ItemError, Retry, errors
from microbatch._pure.report import outcome_of
from microbatch.durable import DurableQueue, UnknownJob
from microbatch.durable._file.job_life import CODES_MAX, FOLLOWING, OTHER, Counts, job_outcome
from microbatch.durable._file.job_steps import INVALID

pytestmark = pytest.mark.anyio

PAGE = DOCS / "how-to/jobs.md"
TROUBLE = DOCS / "how-to/troubleshooting.md"


def test_the_chart_of_life_is_the_codes_table() -> None:
    """Every transition, and none that is not there."""
    (chart,) = [block.source for block in blocks_of(PAGE) if block.language == "mermaid"]
    shown = re.findall(r"^    (\w+) --> (\w+): (\w+)$", chart, re.MULTILINE)
    code = [(b.name.lower(), a.name.lower(), e.name.lower()) for (b, e), a in FOLLOWING.items()]
    assert sorted(shown) == sorted(code)


def test_the_events_of_the_chart_are_explained() -> None:
    """In the sentence below it."""
    text = sections(PAGE)["A job's life"]
    told = {word.lower() for word in re.findall(r"(?:^|\. )(\w+): ", " ".join(text.split()))}
    assert told == {event.name.lower() for _, event in FOLLOWING}


def test_the_table_of_outcomes_is_the_codes() -> None:
    """Each combination of what is there fits one row, and that row tells its outcome."""
    table = rows(sections(PAGE)["A job's life"])
    head, *cases = table
    assert head == ["cancelled", "expired", "failed", "succeeded or skipped", "outcome"]
    allows = {"some": {True}, "none": {False}, "any": {True, False}}
    for there in itertools.product((False, True), repeat=5):
        cancelled, expired, failed, succeeded, skipped = there
        seen = (cancelled, expired, failed, succeeded or skipped)
        fitting = [
            case
            for case in cases
            if all(one in allows[cell] for one, cell in zip(seen, case, strict=False))
        ]
        assert len(fitting) == 1, there
        tally = Counts(int(succeeded), int(failed), int(skipped), int(cancelled), int(expired))
        assert fitting[0][4] == f"`{job_outcome(tally)}`", there


def test_jobs_in_ten_lines_takes_ten_lines() -> None:
    """From the opening of the queue to the last outcome; as many again for the handler and the imports."""
    first = next(block for block in blocks_of(PAGE) if block.language == "python")
    assert len([line for line in first.source.splitlines() if line.strip()]) <= 16


# Troubleshooting


def test_every_code_on_the_page_is_one_that_comes() -> None:
    """Who looks for a code must find the one that is counted."""
    told = {row[0].strip("`") for row in rows(sections(TROUBLE)["Many errors"])[1:]}
    own = {
        outcome_of(0, error).code
        for error in (
            OSError(),
            errors.ResultCountError("b", 1, 2),
            errors.HandlerTimeout("b", 1.0),
        )
    }
    assert own | {INVALID, OTHER} <= told
    assert "process_died" in told
    assert f"More than {CODES_MAX} different codes" in sections(TROUBLE)["Many errors"]


async def seen(queue, job) -> tuple[object, ...]:
    status, stats = await job.status(), await queue.stats()
    figures = (stats.ready, stats.scheduled, stats.claimed)
    return status.life, status.paused, stats.paused, *figures


async def test_a_job_without_a_worker(path):
    """Queued, ready, claimed by nobody, nothing paused; and what pauses show."""
    async with DurableQueue(path, item_type=int) as queue:
        job = await queue.enqueue_job([1, 2])
        assert await seen(queue, job) == ("queued", False, False, 2, 0, 0)
        await job.pause()
        assert await seen(queue, job) == ("queued", True, False, 2, 0, 0)
        await job.resume()
        await queue.pause()
        assert await seen(queue, job) == ("queued", False, True, 2, 0, 0)
        with pytest.raises(UnknownJob):
            await queue.job(job.id, owner="me").status()
        assert [one.id for one in (await queue.jobs()).jobs] == [job.id]


async def test_a_job_whose_delay_is_not_over(path):
    """All of it is scheduled."""
    async with batcher(path, Handler()) as durable:
        job = await durable.enqueue_job([1, 2], delay=1_000)
        assert await seen(durable, job) == ("queued", False, False, 0, 2, 0)


async def test_a_job_behind_others_and_one_whose_handler_hangs(path):
    """The one is queued while something is claimed; the other runs, and the oldest item gets older."""
    handler = Handler()
    handler.hold()
    async with batcher(path, handler, max_batch_size=2) as durable:
        hangs = await durable.enqueue_job([1, 2])
        await until(lambda: handler.batches)
        waits = await durable.enqueue_job([3])
        assert await seen(durable, waits) == ("queued", False, False, 1, 0, 2)
        assert (await hangs.status()).life == "running"
        before = (await durable.stats()).oldest_age

        async def older() -> bool:
            return (await durable.stats()).oldest_age > before

        await until(older)
        await hangs.cancel()
        assert (await hangs.status()).life == "cancelling"
        handler.free.set()
        assert (await hangs.wait(20)).succeeded == 2


async def test_an_ordered_job_that_an_item_in_back_off_holds(path):
    """Running, nothing claimed, one scheduled, though others could go."""
    handler = Handler(fails={1: ConnectionError("not now")})
    retry = Retry(on=ConnectionError, backoff=Backoff(initial=500, maximum=500, jitter=0))
    async with batcher(path, handler, retry=retry) as durable:
        job = await durable.enqueue_job(range(1, 5), ordered=True, batch_size=1)
        await until(lambda: handler.batches)

        async def shown() -> bool:
            return await seen(durable, job) == ("running", False, False, 3, 1, 0)

        await until(shown)
        assert handler.batches == [[1]]


async def test_what_failed_for_good_is_not_retried(path):
    """An empty job, unless all are asked for; and who stopped it was `max_failures`."""

    async def fails(items):
        return [ItemError("no", retryable=False) for _ in items]

    async with batcher(path, fails, max_batch_size=1) as durable:
        job = await durable.enqueue_job(range(5), max_failures=0)
        status = await job.wait(20)
        assert status.outcome == "cancelled"
        failed = (await job.results(kind="failed")).outcomes
        assert failed[0].index == 0
        assert failed[0].error.attempts == 1
        await (await job.retry_failed()).wait(20)
        ended = await durable.enqueue_job(range(2))
        await ended.wait(20)
        assert (await (await ended.retry_failed()).status()).total == 0
        assert (await (await ended.retry_failed(retryable_only=False)).status()).total == 2
        await durable.pause()
