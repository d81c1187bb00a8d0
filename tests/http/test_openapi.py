"""The OpenAPI document: valid, and made of what there is."""

from __future__ import annotations

from typing import Any

import msgspec
import pydantic
import pytest
from http_support import Users, api_of, authorize, client_of
from openapi_spec_validator import validate

from microbatch.http import BatchAPI

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio"])
def backend_name(request: pytest.FixtureRequest) -> str:
    """Nothing here depends on the loop, and the validator takes its time."""
    return str(request.param)


class Kind(msgspec.Struct, tag="kind"):
    name: str
    more: list[Kind] = []


class Inner(pydantic.BaseModel):
    text: str


class Outer(pydantic.BaseModel):
    inner: Inner
    many: list[Inner] = []


class Strange:
    """Nothing that has a schema."""


async def echo(items: list[Any]) -> list[Any]:
    return items


async def test_the_document_is_valid_and_has_every_route() -> None:
    """Clients are made of it; so it is asked of the routes themselves."""
    api = api_of(Users(), status_of=lambda code: None)
    api.collection("kinds", item_type=Kind, id_type=int, create=echo, update=echo, read=echo)
    api.collection("outers", item_type=Outer, create=echo)
    api.collection("gone", item_type=Kind, delete=echo)
    api.collection("lists", item_type=list[Outer], create=echo)
    async with client_of(api) as client:
        document = (await client.get("/openapi.json")).json()
    validate(document)
    paths = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert paths >= {
        ("get", "/healthz"), ("get", "/readyz"), ("get", "/openapi.json"), ("post", "/users"),
        ("get", "/users/{id}"), ("patch", "/users/{id}"), ("delete", "/users/{id}"), ("post", "/users/batch"),
        ("patch", "/users/batch"), ("delete", "/users/batch"), ("post", "/users/batch-delete"),
        ("post", "/users/batch-get"), ("post", "/batch"), ("patch", "/kinds/{id}"), ("post", "/outers/batch"),
    }  # fmt: skip
    assert ("delete", "/kinds/{id}") not in paths
    components = document["components"]["schemas"]
    assert {"User", "UserChanges", "Kind", "Inner", "BatchAnswer", "Problem"} <= set(components)
    assert "$defs" not in str(document)
    (parameter, *_) = document["paths"]["/kinds/{id}"]["get"]["parameters"]
    assert parameter["schema"] == {"type": "integer"}
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert document["security"] == [{"principal": []}]


async def test_a_type_without_a_schema_may_be_anything() -> None:
    """The document is there all the same."""
    api = BatchAPI(authorize=authorize, challenge="Basic realm=x", base_path="/v1/")
    api.collection("odd", item_type=dict[str, Strange], create=echo)
    api.collection("users", item_type=Inner, create=echo)
    async with client_of(api) as client:
        document = (await client.get("/openapi.json")).json()
    validate(document)
    content = document["paths"]["/odd"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"] == {}
    assert document["servers"] == [{"url": "/v1"}]
    assert document["components"]["securitySchemes"]["principal"]["scheme"] == "basic"
