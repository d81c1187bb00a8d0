"""The OpenAPI document of an API, made of its routes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from microbatch._pure.version import __version__

from ._schemas import resolved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._routing import Route
    from ._settings import APISettings

#: What a request may be refused with, whatever it asks for.
_ANY = (400, 401, 403, 404, 405, 500, 503, 504)
_WITH_BODY = (408, 413, 415)

#: What a request for an item may end with besides, by the table of statuses.
ITEM_STATUSES = (409, 413, 422, 424, 429)

_PROBLEM = {
    "title": "Problem",
    "description": "An error, by RFC 9457.",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
    },
    "required": ["type", "title", "status"],
}


def document_of(settings: APISettings, routes: Iterable[Route], base: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document.

    Args:
        settings: The API's.
        routes: Its routes. Each one's ``document`` is taken over, with the answers that any route may give.
        base: The path below which they stand.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, settings)
    whole, components = resolved(paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Batch API", "version": __version__},
        "servers": [{"url": base or "/"}],
        "security": [{"principal": []}],
        "paths": whole,
        "components": {
            "schemas": {**components, "Problem": _PROBLEM},
            "securitySchemes": {"principal": _scheme(settings.challenge)},
        },
    }


def _scheme(challenge: str) -> dict[str, Any]:
    """Return how a client proves who it is, as far as the challenge tells."""
    return {"type": "http", "scheme": challenge.split(maxsplit=1)[0].lower()}


def _operation(route: Route, settings: APISettings) -> dict[str, Any]:
    given: Mapping[str, Any] = route.document
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    described = {one["name"] for one in given.get("parameters", []) if one["in"] == "path"}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "parameters": [one for one in parameters if one["name"] not in described]
        + list(given.get("parameters", [])),
        "responses": dict(given.get("responses", {})),
    }
    operation |= {name: value for name, value in given.items() if name not in operation}
    if not operation["parameters"]:
        del operation["parameters"]
    if route.public:
        operation["security"] = []
    for status in _refusals(route, settings):
        operation["responses"].setdefault(status, problem_response(status))
    return operation


def _refusals(route: Route, settings: APISettings) -> list[str]:
    if route.public:
        return ["405", "503"]
    statuses = {*_ANY, *ITEM_STATUSES}
    if route.body != "none":
        statuses |= {*_WITH_BODY}
    found = [str(status) for status in sorted(statuses)]
    if settings.status_of is not None:
        found += ["4XX", "5XX"]
    return found


def problem_response(status: str) -> dict[str, Any]:
    """Return the response of a problem: a reference to its form, with what its headers tell."""
    headers: dict[str, Any] = {}
    if status in {"429", "503"}:
        headers["Retry-After"] = {"schema": {"type": "string"}}
    if status == "401":
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    response = {
        "description": "The request is refused, or its item failed.",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
    return response | ({"headers": headers} if headers else {})
