"""Imports and exports: rows of NDJSON, CSV and JSON, in and out in bounded memory."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from microbatch._io.csv_rows import CsvRows
from microbatch._io.ndjson_rows import NdjsonRows
from microbatch._io.reading import Decoder
from microbatch._io.row_types import csv_decoder, json_decoder

from ._checking import allow, validate_items
from ._job_documents import accepted_reply, refused_item
from ._job_finding import queue_of, queue_problems
from ._job_schemas import of_import
from ._operations import Operation
from ._options import BatchOptions
from ._problem import Problem
from ._query import flag_of, known_only, one_of
from ._reading import is_compressed, media_type_of, pieces_of
from ._routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from microbatch._io.finding import Parser
    from microbatch._pure.report import Outcome

    from ._collection import Collection
    from ._exchange import Exchange
    from ._job_making import Jobs
    from ._job_shares import JobShare
    from ._reply import HTTPReply

#: Seconds that an import may take in all: what counts is that its body goes on coming.
_IMPORT_SECONDS = 7 * 86_400.0

_NDJSON = {
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
}
_CSV = "text/csv"

_DIGEST = re.compile(r"\s*(?P<name>[a-z0-9-]+)=:(?P<value>[A-Za-z0-9+/=]*):\s*")
_DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


def import_routes(jobs: Jobs, collection: Collection) -> Iterator[Route]:
    """Yield the route by which rows come in as a job."""
    yield Route(
        method="POST",
        path=f"/{collection.name}/import",
        endpoint=partial(_import, jobs, collection),
        name=f"{collection.name}.import",
        body="stream",
        document=of_import(collection.name),
    )


async def _import(jobs: Jobs, collection: Collection, exchange: Exchange) -> HTTPReply:
    request, settings = exchange.request, exchange.parts.settings
    kind = _kind_of(request)
    is_compressed(request)
    known_only(exchange, "mode", "ordered", "stop_on_error", "webhook")
    options = BatchOptions(
        mode="reject" if one_of(exchange, "mode", ("skip", "reject")) == "reject" else "skip",
        ordered=flag_of(exchange, "ordered"),
        stop_on_error=flag_of(exchange, "stop_on_error"),
    )
    digests = _digests_of(request)

    async def work(key: str | None) -> HTTPReply:
        parser = _parser(kind, collection, settings.max_item_bytes)
        body = Request(request.scope, partial(_hashed, request, list(digests.values())))
        pieces = pieces_of(body, max_bytes=settings.max_import_bytes, timeout=settings.body_timeout)
        with jobs.room(exchange, queue_of(collection)) as room:
            await room.look()
            job = await jobs.enqueue(
                exchange,
                collection,
                _rows(exchange, collection, pieces, parser, room, partial(_check, digests)),
                options,
                key,
                webhook=request.query_params.get("webhook"),
            )
        with queue_problems():
            status = await job.status()
        return accepted_reply(exchange, status, kept=True, job=(collection.name, job.id))

    return await exchange.once(work, timeout=_IMPORT_SECONDS)


def _kind_of(request: Request) -> str:
    media_type = media_type_of(request)
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]+)", request.headers.get("content-type", ""))
    if charset is not None and charset[1].lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise Problem(415, "the body must be UTF-8", close=True)
    if media_type in _NDJSON:
        return "ndjson"
    if media_type == _CSV:
        return "csv"
    raise Problem(
        415,
        "the body must be application/x-ndjson or text/csv",
        headers={"accept": "application/x-ndjson, text/csv"},
        close=True,
    )


def _parser(kind: str, collection: Collection, max_bytes: int) -> Parser:
    decoder, type_ = Decoder(None), collection.items.kind
    if kind == "csv":
        return CsvRows(decoder, _size_checked(csv_decoder(type_), _cells_size, max_bytes), ",")
    return NdjsonRows(decoder, _size_checked(json_decoder(type_), len, max_bytes))


def _cells_size(row: dict[str, str]) -> int:
    return sum(map(len, row.values()))


def _size_checked(
    decode: Callable[[Any], Any], size_of: Callable[[Any], int], most: int
) -> Callable[[Any], Any]:
    def bounded(row: Any) -> Any:
        if size_of(row) > most:
            raise ValueError(f"an item may have at most {most} bytes, this one has more")
        return decode(row)

    return bounded


async def _rows(  # noqa: PLR0917 - parts of one import
    exchange: Exchange,
    collection: Collection,
    pieces: AsyncIterator[bytes],
    parser: Parser,
    room: JobShare,
    check: Callable[[], None],
) -> AsyncIterator[Any]:
    """Yield a body's rows as items, `ItemError` in the place of those that cannot be handled.

    Raises:
        Problem: Whatever ends the import; nothing of it is then left.
    """
    asks = collection.settings.authorize is not None or collection.settings.validate is not None
    most = exchange.parts.settings.max_import_items
    count = 0

    async def taken(data: bytes, *, final: bool) -> list[Any]:
        nonlocal count
        rows = parser.feed(data, final=final)
        count += len(rows)
        if count > most:
            raise Problem(
                413,
                f"an import may have at most {most} items",
                type="batch-too-large",
                max_items=most,
                max_bytes=exchange.parts.settings.max_import_bytes,
                close=True,
            )
        if rows:
            exchange.take(len(rows))
            room.take(len(rows))
        if asks:
            return await _asked(exchange, collection, rows)
        return [row.value if row.error is None else row.error for row in rows]

    async for piece in pieces:
        for item in await taken(piece, final=False):
            yield item
        _raise_broken(parser)
    check()
    for item in await taken(b"", final=True):
        yield item
    _raise_broken(parser)


async def _asked(exchange: Exchange, collection: Collection, rows: list[Outcome[Any]]) -> list[Any]:
    """Let the collection's own functions see the items."""
    operations = [
        Operation(row.index, "create", collection, item=row.value, error=row.error) for row in rows
    ]
    await allow(exchange.principal, operations)
    validate_items(operations)
    return [one.item if one.error is None else refused_item(one.error) for one in operations]


def _raise_broken(parser: Parser) -> None:
    if parser.error is not None:
        raise Problem(400, str(parser.error), type="invalid-request", close=True)


# The digest


def _digests_of(request: Request) -> dict[bytes, Any]:
    """Return what the body's digests must be, and what counts them.

    Raises:
        Problem: 400 if the header cannot be read.
    """
    header = ",".join(request.headers.getlist("content-digest"))
    found: dict[bytes, Any] = {}
    for part in header.split(",") if header.strip() else ():
        match = _DIGEST.fullmatch(part)
        if match is None:
            raise Problem(400, "Content-Digest cannot be read", type="invalid-request", close=True)
        if match["name"] in _DIGESTS:
            try:
                expected = base64.b64decode(match["value"], validate=True)
            except ValueError:
                expected = b""
            found[expected] = _DIGESTS[match["name"]]()
    return found


async def _hashed(request: Request, hashes: list[Any]) -> Any:
    """Receive a piece of a body, as it was sent, past what counts digests."""
    message = await request.receive()
    for one in hashes:
        one.update(message.get("body", b""))
    return message


def _check(digests: dict[bytes, Any]) -> None:
    """Refuse a body that is not the one that was announced.

    Raises:
        Problem: 400.
    """
    if any(counted.digest() != expected for expected, counted in digests.items()):
        raise Problem(
            400, "the body does not match Content-Digest", type="digest-mismatch", close=True
        )
