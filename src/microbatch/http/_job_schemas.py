"""What the OpenAPI document says of jobs, imports and exports."""

from __future__ import annotations

from typing import Any, Final

from ._documents import IDEMPOTENCY_KEY, json_content
from ._results import ItemRecord
from ._schemas import SchemaOf

_COUNT: Final = {"type": "integer", "minimum": 0}
_TIME: Final = {"type": ["string", "null"], "format": "date-time"}
_TEXT: Final = {"type": ["string", "null"]}
_NUMBER: Final = {"type": ["number", "null"]}
_STRING: Final = {"type": "string"}

_COUNTED: Final = ("processed", "total", "succeeded", "failed", "skipped", "cancelled", "expired")
_LINKS: Final = ("self", "results", "errors", "cancel", "retry", "events")


def _record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_JOB: Final = _record(
    id=_STRING,
    status={"enum": ["pending", "processing", "completed", "failed"]},
    life={"enum": ["queued", "running", "cancelling", "ended"]},
    outcome={
        "enum": ["succeeded", "partially_succeeded", "failed", "cancelled", "expired", None],
    },
    paused={"type": "boolean"},
    total=_COUNT,
    progress=_record(
        fraction={"type": "number"},
        percentage={"type": "number"},
        **dict.fromkeys(_COUNTED, _COUNT),
    ),
    errors={"type": "object", "additionalProperties": _COUNT},
    rate={"type": "number"},
    eta=_NUMBER,
    created_at={"type": "string", "format": "date-time"},
    started_at=_TIME,
    ended_at=_TIME,
    expires_at=_TIME,
    retry_of=_TEXT,
    links=_record(**dict.fromkeys(_LINKS, _STRING)),
)

_ACCEPTED: Final = {
    "allOf": [_JOB, _record(jobId=_STRING, statusUrl=_STRING, resultsUrl=_STRING)],
}

_RECORDS: Final = _record(
    results={"type": "array", "items": SchemaOf(ItemRecord)},
    cursor=_TEXT,
)


def _header() -> dict[str, Any]:
    return {"schema": _STRING}


def _query(name: str, schema: Any, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def accepted_response() -> dict[str, Any]:
    """Return the response for a job that is new."""
    return {
        "description": "The items are a job now.",
        "headers": {"Location": _header(), "Retry-After": _header()},
        "content": json_content(_ACCEPTED),
    }


_SEEN: Final = {
    "description": "The job.",
    "headers": {"ETag": _header(), "Retry-After": _header()},
    "content": json_content(_JOB),
}
_PAGE: Final = (
    _query("cursor", _STRING, "Where the page begins: the cursor that the page before gave."),
    _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100},
        "The most entries of a page.",
    ),
)
_KIND: Final = _query(
    "kind",
    {"enum": ["succeeded", "failed", "skipped", "cancelled", "expired"]},
    "Only items that ended so.",
)
_RESULTS: Final = {
    "description": "A page of the items' outcomes, or a line for each item.",
    "content": {
        **json_content(_RECORDS),
        "application/x-ndjson": {"schema": _STRING},
    },
}


def of_jobs(name: str) -> dict[str, Any]:
    """Return what is said of a route of jobs, by its name without ``jobs.``."""
    document: dict[str, Any] = {"tags": ["jobs"], **_ROUTES[name]}
    if name in {"results", "errors"}:
        document["responses"] = {"200": _RESULTS, "410": _no_longer_kept()}
    elif name == "retry":
        document["responses"] = {"202": accepted_response(), "410": _no_longer_kept()}
    return document


def _no_longer_kept() -> dict[str, Any]:
    return {
        "description": "The results are no longer kept.",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }


_DONE: Final = {"responses": {"202": _SEEN}, "parameters": [IDEMPOTENCY_KEY]}

_ROUTES: Final[dict[str, dict[str, Any]]] = {
    "list": {
        "summary": "List jobs, the newest first",
        "parameters": [
            _query(
                "life",
                {"enum": ["queued", "running", "cancelling", "ended"]},
                "Only jobs in this life.",
            ),
            *_PAGE,
        ],
        "responses": {
            "200": {
                "description": "A page of jobs.",
                "content": json_content(
                    _record(jobs={"type": "array", "items": _JOB}, cursor=_TEXT)
                ),
            }
        },
    },
    "get": {
        "summary": "See a job, or wait for its end",
        "parameters": [
            _query("wait", {"type": "number", "minimum": 0}, "Seconds, 30 at most."),
            {"name": "If-None-Match", "in": "header", "schema": _STRING},
        ],
        "responses": {"200": _SEEN, "304": {"description": "Nothing has changed."}},
    },
    "delete": {
        "summary": "Remove a job that has ended",
        "parameters": [IDEMPOTENCY_KEY],
        "responses": {"204": {"description": "The job is removed."}},
    },
    "results": {"summary": "Page through the items' outcomes", "parameters": [*_PAGE, _KIND]},
    "errors": {"summary": "Page through the items that failed", "parameters": [*_PAGE]},
    "events": {
        "summary": "Watch the progress, by server-sent events",
        "parameters": [{"name": "Last-Event-ID", "in": "header", "schema": _STRING}],
        "responses": {
            "200": {
                "description": "Events named progress, the last one named ended.",
                "content": {"text/event-stream": {}},
            }
        },
    },
    "cancel": {"summary": "Cancel a job: no further item begins", **_DONE},
    "pause": {"summary": "Pause a job: no item begins until it is resumed", **_DONE},
    "resume": {"summary": "Resume a paused job", **_DONE},
    "retry": {"summary": "Retry the items that failed", "parameters": [IDEMPOTENCY_KEY]},
}


def of_import(tag: str) -> dict[str, Any]:
    """Return what is said of the route by which rows come in."""
    yes = {"enum": ["1", "true", "0", "false"]}
    return {
        "summary": "Make a job of a file's rows",
        "tags": [tag],
        "parameters": [
            IDEMPOTENCY_KEY,
            {"name": "Content-Digest", "in": "header", "schema": _STRING},
            _query(
                "mode", {"enum": ["skip", "reject"]}, "Whether one bad row refuses the whole file."
            ),
            _query("ordered", yes, "One batch at a time, in the rows' order."),
            _query("stop_on_error", yes, "The first failure ends the job."),
            _query("webhook", _STRING, "The URL that is called when the job has ended."),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/x-ndjson": {"schema": _STRING},
                "text/csv": {"schema": _STRING},
            },
        },
        "responses": {"202": accepted_response()},
    }


def of_export(tag: str) -> dict[str, Any]:
    """Return what is said of the route by which rows go out."""
    return {
        "summary": "Get all rows as a file",
        "tags": [tag],
        "parameters": [
            _query("format", {"enum": ["ndjson", "csv", "json"]}, "The file's format."),
            _query(
                "spreadsheet",
                {"enum": ["1", "true", "0", "false"]},
                "Put ' before cells of CSV that a spreadsheet would take for formulas.",
            ),
        ],
        "responses": {
            "200": {
                "description": "The rows.",
                "headers": {"Content-Disposition": _header()},
                "content": {
                    "application/x-ndjson": {"schema": _STRING},
                    "text/csv": {"schema": _STRING},
                    "application/json": {"schema": {"type": "array"}},
                },
            }
        },
    }
