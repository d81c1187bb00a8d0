"""Schemas of what is sent and answered, for the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from microbatch._pure.models import is_whole_model

_TEMPLATE = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class SchemaOf:
    """Stands in a route's ``document`` for the schema of a type.

    Attributes:
        kind: The type, as it is sent or answered.
    """

    kind: Any


def resolved(document: Any) -> tuple[Any, dict[str, Any]]:
    """Return a document with a schema in the place of each `SchemaOf`, and the components that these refer to.

    Types that have no schema may be anything.
    """
    kinds: list[Any] = []
    _collect(document, kinds)
    found: list[Any]
    try:
        listed, components = msgspec.json.schema_components(
            kinds, ref_template=_TEMPLATE, schema_hook=_of_model
        )
        found = list(listed)
    except Exception:  # noqa: BLE001 - a type without a schema among them: each by itself
        found, components = [], {}
        for kind in kinds:
            try:
                (schema,), more = msgspec.json.schema_components(
                    [kind], ref_template=_TEMPLATE, schema_hook=_of_model
                )
            except Exception:  # noqa: BLE001 - it is this one
                found.append({})
            else:
                found.append(schema)
                components.update(more)
    inner: dict[str, Any] = {}
    whole = _replaced(document, iter(found))
    return _hoisted(whole, inner), {**_hoisted(components, inner), **inner}


def _collect(part: Any, kinds: list[Any]) -> None:
    if isinstance(part, SchemaOf):
        kinds.append(part.kind)
    elif isinstance(part, dict):
        for value in part.values():
            _collect(value, kinds)
    elif isinstance(part, list):
        for value in part:
            _collect(value, kinds)


def _replaced(part: Any, schemas: Any) -> Any:
    """Put schemas in the places of types, in the order in which these were collected."""
    if isinstance(part, SchemaOf):
        return next(schemas)
    if isinstance(part, dict):
        return {name: _replaced(value, schemas) for name, value in part.items()}
    if isinstance(part, list):
        return [_replaced(value, schemas) for value in part]
    return part


def _hoisted(part: Any, inner: dict[str, Any]) -> Any:
    """Take the definitions out of models' schemas: they are referred to as components."""
    if isinstance(part, dict):
        for name, schema in part.get("$defs", {}).items():
            inner[name] = _hoisted(schema, inner)
        return {name: _hoisted(value, inner) for name, value in part.items() if name != "$defs"}
    if isinstance(part, list):
        return [_hoisted(value, inner) for value in part]
    return part


def _of_model(kind: Any) -> dict[str, Any]:
    """Return the schema of a model in the manner of pydantic.

    Raises:
        NotImplementedError: If it is none.
    """
    if not is_whole_model(kind) or not callable(getattr(kind, "model_json_schema", None)):
        raise NotImplementedError
    schema: dict[str, Any] = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return schema
