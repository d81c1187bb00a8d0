"""Exports: a collection's rows, streamed as NDJSON, CSV or JSON."""

from __future__ import annotations

import inspect
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from microbatch._io.row_writing import RowBytes
from microbatch._io.sources import reader_of
from microbatch._io.writing import ROWS_AT_A_TIME
from microbatch._pure.models import as_shown

from ._job_schemas import of_export
from ._principals import forbidden
from ._problem import Problem
from ._query import flag_of, known_only, one_of
from ._routing import Route
from ._streaming import StreamedReply, left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.responses import Response

    from ._collection import Collection
    from ._exchange import Exchange
    from ._streaming import Write

_MEDIA_TYPES = {
    "ndjson": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
}

_GZIP = 31  # with a header and a check sum

#: What spreadsheets take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_routes(collection: Collection) -> Iterator[Route]:
    """Yield the route by which rows go out."""
    if collection.settings.export is not None:
        yield Route(
            method="GET",
            path=f"/{collection.name}/export",
            endpoint=partial(_export, collection),
            name=f"{collection.name}.export",
            document=of_export(collection.name),
        )


async def _export(collection: Collection, exchange: Exchange) -> Response:
    known_only(exchange, "format", "spreadsheet")
    exchange.refuse_while_closing()
    kind = one_of(exchange, "format", tuple(_MEDIA_TYPES)) or "ndjson"
    safe = flag_of(exchange, "spreadsheet")
    if safe and kind != "csv":
        raise Problem(
            400, "spreadsheet is for csv", type="invalid-parameter", parameter="spreadsheet"
        )
    ask = collection.settings.authorize
    if ask is not None:
        try:
            await ask(exchange.principal, "export", [])
        except PermissionError:
            raise forbidden() from None
    zipped = _takes_gzip(exchange)
    rows = RowBytes(kind, "utf-8", ",")
    source = reader_of(_source_of(collection, exchange), f"export of {collection.name!r}")

    async def block() -> bytes:
        found = await source.read(ROWS_AT_A_TIME)
        if source.error is not None:
            raise source.error
        data = (
            rows.rows([_for_spreadsheet(row) for row in found] if safe else found) if found else b""
        )
        return data + rows.end() if source.ended else data

    try:
        # Before anything is answered: what fails at once is told as an error, not broken off.
        first = await exchange.while_there(block)
    except BaseException:
        await left(source.close)
        raise
    squeeze = zlib.compressobj(wbits=_GZIP) if zipped else None

    async def writing(write: Write) -> None:
        data = first
        while True:
            await write(data if squeeze is None else squeeze.compress(data))
            if source.ended:
                break
            data = await block()
        if squeeze is not None:
            await write(squeeze.flush())

    name = f"{collection.name}.{kind}"
    headers = {
        "content-disposition": f'attachment; filename="{name}"',
        "vary": "accept-encoding",
        "cache-control": "no-store",
    }
    if zipped:
        headers["content-encoding"] = "gzip"
    return StreamedReply(
        writing, media_type=_MEDIA_TYPES[kind], headers=headers, leaving=source.close
    )


def _source_of(collection: Collection, exchange: Exchange) -> Any:
    """Ask the application for its rows: for the principal's, if its function wants to know for whom."""
    export: Callable[..., Any] = collection.settings.export
    try:
        inspect.signature(export).bind(exchange.principal)
    except TypeError:
        return export()
    return export(exchange.principal)


def _takes_gzip(exchange: Exchange) -> bool:
    for part in ",".join(exchange.request.headers.getlist("accept-encoding")).split(","):
        coding, *parameters = (word.strip().lower().replace(" ", "") for word in part.split(";"))
        if coding in {"gzip", "x-gzip"}:
            return not any(word.startswith("q=0") and not word.strip("q=0.") for word in parameters)
    return False


def _for_spreadsheet(row: Any) -> Any:
    """Return a row of which no cell is a formula to a spreadsheet."""
    fields = msgspec.to_builtins(row, enc_hook=as_shown)
    if not isinstance(fields, dict):
        return fields
    return {_unexecuted(name): _unexecuted(cell) for name, cell in fields.items()}


def _unexecuted(cell: Any) -> Any:
    """Return a cell, of the header too, behind a ' if it would be a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
