"""Jobs: what makes them of requests, and how much of them one principal may have."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from microbatch._telemetry.log import write
from microbatch.durable import DurableBatcher
from microbatch.durable.access import tellers
from microbatch.durable.errors import JobRejected

from ._idempotency import fingerprint_of
from ._job_documents import JobTelling, accepted_reply, refused_item, summary_of_job
from ._job_finding import queue_of, queue_problems, unknown_job
from ._job_routes import job_routes
from ._job_shares import ComingIn, JobShare
from ._message import METADATA_KEY
from ._options import preferences_of
from ._problem import Problem
from ._reply import HTTPReply
from ._results import BatchAnswer
from ._statuses import batch_status
from ._transfers import import_routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable, Iterator, Sequence

    from microbatch.durable import Job, JobStatus

    from ._collection import Collection
    from ._envelopes import WebhookTarget
    from ._exchange import Exchange
    from ._job_finding import Queue
    from ._operations import Operation
    from ._options import BatchOptions
    from ._parts import APIParts
    from ._routing import Route
    from ._settings import APISettings

#: The part of a request's time that waiting for its job may take: the rest is for the answer.
_SHARE_OF_TIMEOUT = 0.8


class Jobs:
    """Makes jobs of requests, and answers for them: the `JobMaker` of an API.

    Args:
        parts: What all requests share.
    """

    def __init__(self, parts: APIParts) -> None:
        self._parts = parts
        self._coming = ComingIn()

    def routes(self) -> Iterable[Route]:
        """Return the routes of jobs and imports, for the collections that there are now."""
        yield from job_routes(self)
        for collection in self._parts.collections.values():
            if collection.settings.queue is not None:
                yield from import_routes(self, collection)

    async def make(
        self,
        exchange: Exchange,
        collection: Collection,
        operations: Sequence[Operation],
        options: BatchOptions,
        key: str | None,
        *,
        webhook: WebhookTarget | None = None,
    ) -> HTTPReply:
        """Make a job of a batch of creates; see `JobMaker.make`."""
        began = time.monotonic()
        items = [one.item if one.error is None else refused_item(one.error) for one in operations]
        with self.room(exchange, queue_of(collection)) as room:
            await room.look(len(items))
            job = await self.enqueue(
                exchange,
                collection,
                items,
                options,
                key,
                webhook=None if webhook is None else webhook.url,
            )
        with queue_problems():
            return await self._reply(exchange, collection, job, began)

    async def enqueue(
        self,
        exchange: Exchange,
        collection: Collection,
        items: Iterable[Any] | AsyncIterable[Any],
        options: BatchOptions,
        key: str | None,
        *,
        webhook: str | None,
    ) -> Job[Any]:
        """Store items as a job; an `ItemError` in an item's place stands for one that cannot be handled.

        Raises:
            Problem: If that cannot be done.
        """
        queue = queue_of(collection)
        metadata = None if webhook is None else {METADATA_KEY: self._checked(webhook)}
        try:
            with queue_problems():
                return await queue.enqueue_job(
                    items,
                    key=key,
                    fingerprint=None if key is None else fingerprint_of(exchange),
                    owner=exchange.principal.id,
                    metadata=metadata,
                    invalid="reject" if options.mode == "reject" else "fail",
                    ordered=options.ordered,
                    max_failures=0 if options.stop_on_error else None,
                )
        except JobRejected as rejected:
            raise _invalid_items(rejected) from None

    def _checked(self, url: str) -> str:
        hooks = self._parts.settings.webhooks
        if hooks is None:
            raise Problem(422, "there are no webhooks here", type="webhooks-not-available")
        try:
            hooks.check(url)
        except ValueError as error:
            raise Problem(
                422, f"the webhook's URL {error}", type="invalid-webhook", pointer="/webhook/url"
            ) from None
        return url

    async def state(self, exchange: Exchange, collection: str, identifier: str) -> HTTPReply:
        """Answer for a job that was made before, as it is now: for who sends a key again.

        Raises:
            Problem: 404 if it is gone.
        """
        found = self._parts.collections.get(collection)
        queue = None if found is None else found.settings.queue
        if queue is None:  # the API was another one then
            raise unknown_job()
        with queue_problems():
            status = await queue.job(identifier, exchange.principal.id).status()
        return accepted_reply(exchange, status)

    async def _reply(
        self, exchange: Exchange, collection: Collection, job: Job[Any], began: float
    ) -> HTTPReply:
        """Answer for a new job, which the client may want to see the end of."""
        wishes = preferences_of(exchange.request.headers.getlist("prefer"))
        applied = ["respond-async"] if wishes.respond_async else []
        status = await job.status()
        if wishes.respond_async and wishes.wait is not None:
            most = self._parts.settings.timeout * _SHARE_OF_TIMEOUT
            applied.append(f"wait={wishes.wait:g}")
            try:
                status = await job.wait(min(wishes.wait, most))
            except TimeoutError:
                status = await job.status()
            if status.life == "ended":
                applied += ["return=minimal"] if wishes.minimal else []
                exchange.headers["preference-applied"] = ", ".join(applied)
                return await self._whole(
                    exchange, collection, job, status, began, minimal=wishes.minimal
                )
        if applied:
            exchange.headers["preference-applied"] = ", ".join(applied)
        return accepted_reply(exchange, status, kept=True, job=(collection.name, job.id))

    async def _whole(
        self,
        exchange: Exchange,
        collection: Collection,
        job: Job[Any],
        status: JobStatus,
        began: float,
        *,
        minimal: bool,
    ) -> HTTPReply:
        """Answer for a job that has ended as for a batch that was none."""
        settings = self._parts.settings
        telling = JobTelling(settings.status_of, job.id)
        records = [telling.of_outcome(outcome) async for outcome in job.outcomes()]
        if minimal:
            records = [record for record in records if not record.success]
        answer = BatchAnswer(records, summary_of_job(status), round(time.monotonic() - began, 6))
        code = batch_status(
            succeeded=status.succeeded + status.skipped,
            total=status.total,
            all_failed_status=settings.all_failed_status,
        )
        return HTTPReply(
            status=code,
            body=telling.encode(answer),
            headers={"location": exchange.link(f"/jobs/{job.id}")},
            kept=True,
            job=(collection.name, job.id),
        )

    # How much one may have

    @contextmanager
    def room(self, exchange: Exchange, queue: Queue) -> Iterator[JobShare]:
        """Give what counts one request's job, and its items on their way into a queue."""
        share = JobShare(self._parts, self._coming, queue, exchange.principal.id)
        try:
            yield share
        finally:
            share.leave()


def check_teller(settings: APISettings, queue: Queue) -> None:
    """See to it that somebody tells webhooks of the ends of a queue's jobs.

    Raises:
        ValueError: If nobody can.
    """
    if settings.webhooks is None:
        return
    if not isinstance(queue, DurableBatcher):
        write(
            logging.WARNING,
            "queue %r: its workers run elsewhere: give them on_job_end=webhooks.on_job_end",
            queue.name,
        )
    elif queue not in tellers:
        raise ValueError(
            "queue must have on_job_end=webhooks.on_job_end where the BatchAPI has webhooks, "
            f"got {queue!r} without it"
        )


def _invalid_items(rejected: JobRejected) -> Problem:
    errors = [
        {
            "index": index,
            "id": known,
            "ref": None,
            "code": "invalid_item",
            "message": message,
            "field": None,
            "pointer": f"/items/{index}",
        }
        for index, known, message in rejected.errors
    ]
    many = "1 item cannot" if rejected.invalid == 1 else f"{rejected.invalid} items cannot"
    detail = f"{many} be done, so nothing was done: mode is reject"
    return Problem(422, detail, type="invalid-items", errors=errors, invalid=rejected.invalid)
