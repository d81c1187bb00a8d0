"""What became of a job's items, page by page or all of it; and its progress as it happens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

from microbatch._pure.exceptions import BatcherClosed
from microbatch._pure.models import as_shown
from microbatch.durable.errors import UnknownJob

from ._cursors import decode_cursor, encode_cursor
from ._job_documents import PRIVATE, JobTelling, job_document, tag_of
from ._job_finding import find_job, queue_problems
from ._query import accepts, known_only, one_of, page_limit
from ._reply import HTTPReply
from ._streaming import StreamedReply

if TYPE_CHECKING:
    from starlette.responses import Response

    from microbatch.durable import Job, JobPage

    from ._exchange import Exchange
    from ._results import ItemRecord
    from ._streaming import Write

#: Seconds after which a stream of events ends by itself, and the client comes again: no stream holds up a
#: shut-down for longer, nor does a proxy that gives up after a minute.
EVENTS_SECONDS = 55.0

#: Seconds between two events at least, and between two signs of life.
_EVENTS_APART = 0.2
_SIGNS_APART = 15.0

#: Outcomes that are written at once.
_AT_ONCE = 500

_KINDS = ("succeeded", "failed", "skipped", "cancelled", "expired")
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")

_encoder = msgspec.json.Encoder(enc_hook=as_shown)


class _ResultsPage(msgspec.Struct):
    """A page of records."""

    results: list[ItemRecord]
    cursor: str | None


async def results_of_job(exchange: Exchange, *, failed: bool) -> HTTPReply | Response:
    """Answer with a page of what became of a job's items, or with all of it if NDJSON is asked for.

    Args:
        exchange: The request.
        failed: Whether only those that failed are wanted.
    """
    known_only(exchange, "cursor", "limit", *(() if failed else ("kind",)))
    kind = "failed" if failed else one_of(exchange, "kind", _KINDS)
    limit = page_limit(exchange)
    whole = accepts(exchange, *_NDJSON)
    owner, what = exchange.principal.id, f"results {exchange.parameters['id']} {kind}"
    cursor = exchange.request.query_params.get("cursor")
    after = None if cursor is None else decode_cursor(cursor, owner, what, int)

    headers = {"cache-control": PRIVATE, "vary": "accept"}

    async def read() -> HTTPReply | Response:
        with queue_problems():
            _, job, _ = await find_job(exchange)
            page = await job.results(after, _AT_ONCE if whole else limit, kind)
        telling = JobTelling(exchange.parts.settings.status_of, job.id)
        if not whole:
            answer = _ResultsPage(
                list(map(telling.of_outcome, page.outcomes)),
                None if page.cursor is None else encode_cursor(page.cursor, owner, what),
            )
            return HTTPReply(status=200, body=_encoder.encode(answer), headers=headers)
        writing = partial(_all_lines, job, page, kind, telling)
        return StreamedReply(writing, media_type=_NDJSON[0], headers=headers)

    return await exchange.while_there(read)


async def _all_lines(
    job: Job[Any], page: JobPage[Any], kind: str | None, telling: JobTelling, write: Write
) -> None:
    """Write a line for each outcome, from a page on."""
    while True:
        await write(_encoder.encode_lines(list(map(telling.of_outcome, page.outcomes))))
        if page.cursor is None:
            return
        page = await job.results(page.cursor, _AT_ONCE, kind)


async def events_of(exchange: Exchange) -> Response:
    """Answer with a job's progress, as server-sent events."""
    known_only(exchange)
    exchange.refuse_while_closing()
    with queue_problems():
        _, job, _ = await find_job(exchange)
    seen = exchange.request.headers.get("last-event-id")

    async def writing(write: Write) -> None:
        await write(b"retry: 1000\n\n")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_show_life, write)
            try:
                async for status in job.progress(min_interval=_EVENTS_APART):
                    ended = status.life == "ended"
                    tag = tag_of(status)
                    if tag != seen or ended:
                        document = _encoder.encode(job_document(exchange, status))
                        name = b"ended" if ended else b"progress"
                        await write(
                            b"event: %b\nid: %b\ndata: %b\n\n" % (name, tag.encode(), document)
                        )
            except (UnknownJob, BatcherClosed):
                pass  # it was deleted, or the queue closed: the stream ends, and who comes again is told
            tasks.cancel_scope.cancel()

    return StreamedReply(
        writing,
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        seconds=EVENTS_SECONDS,
    )


async def _show_life(write: Write) -> None:
    """Write a comment now and then: to a client that is gone that fails, and proxies see that all is well."""
    while True:
        await anyio.sleep(_SIGNS_APART)
        await write(b":\n\n")
