"""What the OpenAPI document says of requests for items and for batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._envelopes import WebhookTarget
from ._options import BatchOptions
from ._results import BatchAnswer
from ._schemas import SchemaOf

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._collection import Collection
    from ._statuses import OperationKind

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Makes it safe to send the request again: the same key gets the same answer.",
    "schema": {"type": "string"},
}

PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": "respond-async, wait=SECONDS, return=minimal",
    "schema": {"type": "string"},
}

_SUMMARIES = {
    "create": "Create one",
    "read": "Read one",
    "update": "Change one",
    "delete": "Delete one",
}

_BATCH_SUMMARIES = {
    "batch": "Send many operations; each gets its own answer",
    "batch-update": "Change many",
    "batch-delete": "Delete many",
    "batch-delete-body": "Delete many",
    "batch-get": "Read many",
}


def json_content(schema: Any) -> dict[str, Any]:
    """Return the content of a body that is JSON."""
    return {"application/json": {"schema": schema}}


def of_item(collection: Collection, kind: OperationKind) -> dict[str, Any]:
    """Return what is said of the route for one item."""
    document: dict[str, Any] = {"summary": _SUMMARIES[kind], "tags": [collection.name]}
    parameters: list[Any] = []
    if kind != "create":
        schema = SchemaOf(collection.ids.kind)
        parameters.append({"name": "id", "in": "path", "required": True, "schema": schema})
    if kind != "read":
        parameters.append(IDEMPOTENCY_KEY)
    document["parameters"] = parameters
    if kind == "create":
        document["requestBody"] = {
            "required": True,
            "content": json_content(SchemaOf(collection.items.kind)),
        }
    elif kind == "update" and collection.changes is not None:
        document["requestBody"] = {
            "required": True,
            "content": json_content(SchemaOf(collection.changes.kind)),
        }
    shown = {"description": "The object, or why it was left out.", "content": json_content({})}
    responses: dict[str, Any] = {"200": shown}
    if kind == "create":
        headers = {"Location": {"schema": {"type": "string"}}}
        responses["201"] = {
            "description": "The object that was created.",
            "content": json_content({}),
            "headers": headers,
        }
    elif kind == "delete":
        responses["204"] = {"description": "The object is deleted."}
    document["responses"] = responses
    return document


def of_batch(
    collection: Collection | None,
    kind: str,
    name: str,
    keys: Sequence[str],
    collections: Iterable[Collection] = (),
) -> dict[str, Any]:
    """Return what is said of a route for many items.

    Args:
        collection: Whose it is; None for the route over several.
        kind: What its items are; empty where each names its own method.
        name: The route's name without its collection's.
        keys: Under which names items may stand.
        collections: Those that may be named.
    """
    reads = kind == "read"
    has_queue = collection is not None and collection.settings.queue is not None
    answer = {
        "description": "The outcome of each item.",
        "content": json_content(SchemaOf(BatchAnswer)),
    }
    responses = dict.fromkeys(("200", "207"), answer)
    if has_queue and name == "batch":
        responses["202"] = {
            "description": "The items are a job now.",
            "headers": {
                "Location": {"schema": {"type": "string"}},
                "Retry-After": {"schema": {"type": "string"}},
            },
            "content": json_content({"type": "object"}),
        }
    if not reads:  # an atomic one, or one of which nothing succeeded
        both = {
            "description": "Nothing succeeded, or the request is refused.",
            "content": {
                **json_content(SchemaOf(BatchAnswer)),
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
            },
        }
        responses |= dict.fromkeys(("400", "409", "422", "500"), both)
    schemas = [_envelope(collection, kind, key, collections) for key in keys]
    return {
        "summary": _BATCH_SUMMARIES[name],
        "tags": [] if collection is None else [collection.name],
        "parameters": [PREFER, *([] if reads else [IDEMPOTENCY_KEY])],
        "requestBody": {
            "required": True,
            "content": json_content(schemas[0] if len(schemas) == 1 else {"oneOf": schemas}),
        },
        "responses": responses,
    }


def _envelope(
    collection: Collection | None, kind: str, key: str, collections: Iterable[Collection]
) -> dict[str, Any]:
    item: Any
    if collection is None or key == "operations":
        of = list(collections) if collection is None else [collection]
        item = {"anyOf": [_operation_of(one, named=collection is None) for one in of]}
    elif kind == "create":
        item = SchemaOf(collection.items.kind)
    elif kind == "update":
        item = _change_schema(collection)
    else:
        item = SchemaOf(collection.ids.kind)
    properties: dict[str, Any] = {key: {"type": "array", "items": item}}
    if kind != "read":
        properties["options"] = SchemaOf(BatchOptions)
    if key == "items" and collection is not None and collection.settings.queue is not None:
        properties["webhook"] = SchemaOf(WebhookTarget)
    return {
        "type": "object",
        "properties": properties,
        "required": [key],
        "additionalProperties": False,
    }


def _change_schema(collection: Collection) -> dict[str, Any]:
    assert collection.changes is not None  # noqa: S101 - what updates has them
    return {
        "type": "object",
        "properties": {
            "id": SchemaOf(collection.ids.kind),
            "data": SchemaOf(collection.changes.kind),
            "ref": {"type": ["string", "null"]},
        },
        "required": ["id", "data"],
        "additionalProperties": False,
    }


def _operation_of(collection: Collection, *, named: bool) -> dict[str, Any]:
    methods = [kind for kind in ("create", "update", "delete") if kind in collection.operations]
    data = [SchemaOf(collection.items.kind)] if "create" in methods else []
    if collection.changes is not None:
        data.append(SchemaOf(collection.changes.kind))
    properties: dict[str, Any] = {
        "method": {"enum": methods},
        "id": SchemaOf(collection.ids.kind),
        "ref": {"type": ["string", "null"]},
    }
    if data:
        properties["data"] = {"anyOf": data}
    if named:
        properties["collection"] = {"const": collection.name}
    return {
        "type": "object",
        "properties": properties,
        "required": ["method", "collection"] if named else ["method"],
        "additionalProperties": False,
    }
