"""A job's outcomes as a file: streamed page by page, redacted."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from .job_views import FORMATS, KINDS
from .shown import line_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from microbatch.durable.insight import Insight, SeenOutcome

    from .shown import Shown
    from .views import View
    from .visit import Visit

_TYPES = {"ndjson": "application/x-ndjson", "csv": "text/csv", "json": "application/json"}

_COLUMNS = ("index", "id", "kind", "value", "code", "message")

#: What a spreadsheet takes for the beginning of a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")

_encode = msgspec.json.Encoder(enc_hook=repr).encode


async def results(visit: Visit) -> View:
    """Send a job's outcomes, of one kind or all, in a format.

    What goes wrong on the way breaks the answer off: there is never a file that looks whole and is not.
    """
    kind, form = visit.text("kind") or None, visit.text("format") or "ndjson"
    if kind is not None and kind not in KINDS:
        raise HTTPException(400, f"kind must be one of {', '.join(KINDS)}.")
    if form not in FORMATS:
        raise HTTPException(400, f"format must be one of {', '.join(FORMATS)}.")
    uid = visit.request.path_params["job"]
    status = await visit.queue.queue.job(uid).status()  # so that a wrong id gets a page of its own
    first = await visit.queue.outcomes(status.id, kind)
    # The id stands in a file that may come from anybody, and a header takes less than it does.
    name = re.sub(r"[^A-Za-z0-9-]", "_", f"{status.id}-{kind or 'all'}") + f".{form}"
    content = _content(
        visit.shown, _pages(visit.queue, status.id, kind, first), form, bool(visit.text("sheet"))
    )
    return StreamingResponse(
        content,
        media_type=_TYPES[form],
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


async def _pages(
    insight: Insight, uid: str, kind: str | None, first: tuple[list[SeenOutcome], int | None]
) -> AsyncIterator[list[SeenOutcome]]:
    outcomes, after = first
    yield outcomes
    while after is not None:
        outcomes, after = await insight.outcomes(uid, kind, after)
        yield outcomes


async def _content(
    shown: Shown, pages: AsyncIterator[list[SeenOutcome]], form: str, sheet: bool
) -> AsyncIterator[bytes]:
    if form == "csv":
        yield _lines([_COLUMNS])
    elif form == "json":
        yield b"["
    begun = False
    async for outcomes in pages:
        if form == "csv":
            yield _lines([_cells(shown, one, sheet) for one in outcomes])
            continue
        texts = [_encode(_fields(shown, one)) for one in outcomes]
        if form == "ndjson":
            yield b"".join(text + b"\n" for text in texts)
        elif texts:
            yield (b",\n" if begun else b"\n") + b",\n".join(texts)
            begun = True
    if form == "json":
        yield b"\n]\n"


def _fields(shown: Shown, one: SeenOutcome) -> dict[str, Any]:
    error = shown.error(one.error)
    fields: dict[str, Any] = {
        "index": one.place,
        "id": one.number if one.id is None else shown.name(one.id),
        "kind": one.kind,
        "attempts": one.attempts,
        "value": _jsonable(shown.value(one.value)),
        "error": None,
    }
    if error is not None:
        fields["error"] = {
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
        }
    return fields


def _jsonable(value: Any) -> Any:
    """Return a value that has a form in JSON: its text where it has none."""
    try:
        return msgspec.Raw(_encode(value))
    except (TypeError, ValueError, RecursionError, OverflowError):
        return line_of(value)


def _cells(shown: Shown, one: SeenOutcome, sheet: bool) -> list[str]:
    error = shown.error(one.error)
    value = shown.value(one.value)
    cells = [
        str(one.place),
        str(one.number) if one.id is None else shown.name(one.id) or "",
        one.kind,
        "" if value is None else value if isinstance(value, str) else line_of(value),
        "" if error is None else error.code,
        "" if error is None else error.message,
    ]
    if sheet:
        cells = [f"'{cell}" if cell.startswith(_FORMULAS) else cell for cell in cells]
    return cells


def _lines(rows: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
