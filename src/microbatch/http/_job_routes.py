"""The routes of jobs: seen, waited for, paged through, stopped, tried again, removed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from ._cursors import decode_cursor, encode_cursor
from ._job_documents import PRIVATE, accepted_reply, job_document, state_reply, tag_of
from ._job_finding import find_job, queue_problems, queues_of
from ._job_reading import events_of, results_of_job
from ._job_schemas import of_jobs
from ._problem import Problem
from ._query import known_only, one_of, page_limit, seconds
from ._reply import HTTPReply, json_reply
from ._routing import Route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from microbatch.durable import Job, JobStatus

    from ._exchange import Exchange
    from ._job_finding import Queue
    from ._job_making import Jobs
    from ._routing import Endpoint

#: Seconds that a request may wait for a job's end.
LONGEST_WAIT = 30.0

_LIVES = ("queued", "running", "cancelling", "ended")


def job_routes(jobs: Jobs) -> Iterator[Route]:
    """Yield the routes of jobs."""
    retry = partial(_retry, jobs)
    table: list[tuple[str, str, str, Endpoint]] = [
        ("GET", "", "list", _list),
        ("GET", "/{id}", "get", _get),
        ("DELETE", "/{id}", "delete", _delete),
        ("GET", "/{id}/results", "results", partial(results_of_job, failed=False)),
        ("GET", "/{id}/errors", "errors", partial(results_of_job, failed=True)),
        ("GET", "/{id}/events", "events", events_of),
        ("POST", "/{id}/cancel", "cancel", partial(_act, "cancel")),
        ("POST", "/{id}/pause", "pause", partial(_act, "pause")),
        ("POST", "/{id}/resume", "resume", partial(_act, "resume")),
        ("POST", "/{id}/retry", "retry", retry),
    ]
    for method, path, name, endpoint in table:
        yield Route(
            method=method,
            path=f"/jobs{path}",
            endpoint=endpoint,
            name=f"jobs.{name}",
            document=of_jobs(name),
        )


# Reading


async def _list(exchange: Exchange) -> HTTPReply:
    known_only(exchange, "life", "cursor", "limit")
    life, limit = one_of(exchange, "life", _LIVES), page_limit(exchange)
    owner, what = exchange.principal.id, f"jobs {life}"
    cursor = exchange.request.query_params.get("cursor")
    queues = queues_of(exchange.parts.collections.values())
    # For each queue the place behind which the next page begins; -1 for one that is at its end.
    places: list[int | None] = [None] * len(queues)
    if cursor is not None:
        places = decode_cursor(cursor, owner, what, list[int | None])
        if len(places) != len(queues):
            raise Problem(
                400,
                "the cursor is of other queues than the API has now",
                type="invalid-parameter",
                parameter="cursor",
            )

    async def read() -> HTTPReply:
        with queue_problems():
            found, after = await _page(queues, places, owner, life, limit)
        more = any(place != -1 for place in after)
        document = {
            "jobs": [job_document(exchange, status) for status in found],
            "cursor": encode_cursor(after, owner, what) if more else None,
        }
        return json_reply(200, document, headers={"cache-control": PRIVATE})

    return await exchange.while_there(read)


async def _page(
    queues: list[Queue], places: list[int | None], owner: str, life: Any, limit: int
) -> tuple[list[JobStatus], list[int | None]]:
    """Return the newest jobs over all queues, behind places in each of them, and the new places."""
    counts = [limit] * len(queues)
    if len(queues) > 1:
        # How many of each queue are on the page; only a page of that length has the place where it ends.
        first = [
            [] if place == -1 else (await queue.jobs(owner, life, place, limit)).jobs
            for queue, place in zip(queues, places, strict=True)
        ]
        entries = [(status.id, which) for which, page in enumerate(first) for status in page]
        chosen = [which for _, which in sorted(entries, reverse=True)[:limit]]
        counts = [chosen.count(which) for which in range(len(queues))]
    found: list[JobStatus] = []
    after: list[int | None] = []
    for queue, place, count in zip(queues, places, counts, strict=True):
        if place == -1:
            after.append(-1)
        elif count:
            page = await queue.jobs(owner, life, place, count)
            found += page.jobs
            after.append(-1 if page.cursor is None else page.cursor)
        else:  # all of it is older than this page, or there is nothing
            rest = await queue.jobs(owner, life, place, 1)
            after.append(place if rest.jobs else -1)
    return sorted(found, key=lambda status: status.id, reverse=True), after


async def _get(exchange: Exchange) -> HTTPReply:
    known_only(exchange, "wait")
    longest = seconds(exchange, "wait", LONGEST_WAIT)
    header = ",".join(exchange.request.headers.getlist("if-none-match"))
    known = {tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")} - {""}

    async def read() -> HTTPReply:
        with queue_problems():
            _, job, status = await find_job(exchange)
            if longest:
                status = await _newer(job, status, longest, known)
        reply = state_reply(exchange, status)
        if tag_of(status) in known or "*" in known:
            return HTTPReply(status=304, headers=reply.headers, media_type=None)
        return reply

    return await exchange.while_there(read, timeout=longest + exchange.parts.settings.timeout)


async def _newer(job: Job[Any], status: JobStatus, longest: float, known: set[str]) -> JobStatus:
    """Wait until a job has ended or, if the client knows one, until it is in another state than that."""
    with anyio.move_on_after(longest):
        async for now in job.progress():
            status = now
            if now.life == "ended" or (known and tag_of(now) not in known):
                break
    return status


# Acting


async def _act(action: str, exchange: Exchange) -> HTTPReply:
    known_only(exchange)

    async def work(key: str | None) -> HTTPReply:
        del key
        with queue_problems():
            _, job, status = await find_job(exchange)
            if action != "cancel" and status.life == "ended":
                raise Problem(409, "this job has ended", type="job-ended")
            await getattr(job, action)()
            return state_reply(exchange, await job.status(), 202)

    return await exchange.once(work)


async def _retry(jobs: Jobs, exchange: Exchange) -> HTTPReply:
    known_only(exchange)

    async def work(key: str | None) -> HTTPReply:
        del key  # the job is the key: it is tried again once, however often that is asked for
        with queue_problems():
            queue, job, status = await find_job(exchange)
            if status.life != "ended":
                raise Problem(409, "this job has not ended", type="job-not-ended")
            if not await _has_leftovers(job, status):
                raise Problem(409, "nothing of it may be tried again", type="nothing-to-retry")
            with jobs.room(exchange, queue) as room:
                await room.look()
                again = await job.retry_failed(key=f"retry:{job.id}")
            return accepted_reply(exchange, await again.status())

    return await exchange.once(work)


async def _has_leftovers(job: Job[Any], status: JobStatus) -> bool:
    if status.cancelled or status.expired:
        return True
    if not status.failed:
        return False
    async for outcome in job.outcomes("failed"):
        # One without an attempt never fitted its type.
        if outcome.attempts and getattr(outcome.error, "retryable", False):
            return True
    return False


async def _delete(exchange: Exchange) -> HTTPReply:
    known_only(exchange)

    async def work(key: str | None) -> HTTPReply:
        del key
        with queue_problems():
            queue, job, _ = await find_job(exchange)
            await queue.delete_job(job.id, exchange.principal.id)
        return HTTPReply(status=204, media_type=None)

    return await exchange.once(work)
