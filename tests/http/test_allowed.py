"""Who may do what: asked before anything is read, and about the items before any is handled."""

from __future__ import annotations

from typing import Any

import pytest
from http_support import Users, api_of, client_of

from microbatch import ItemError
from microbatch.http import BatchAPI, Principal

pytestmark = pytest.mark.anyio


async def test_an_api_without_authorize_cannot_be_made() -> None:
    """Nobody forgets it: there is no default that lets everybody in."""
    with pytest.raises(TypeError, match="authorize"):
        BatchAPI()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="authorize must be an async function, got None"):
        BatchAPI(authorize=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="authorize must be an async function"):
        BatchAPI(authorize=lambda request: None)  # type: ignore[arg-type, return-value]


async def test_a_stranger_is_challenged_and_who_may_not_is_told_nothing_more() -> None:
    """Before the body is looked at, on every path but the two that say how the server is."""
    api = api_of(Users(), challenge='Basic realm="users"')
    async with client_of(api, "") as client:
        for method, path in (
            ("GET", "/users/1"),
            ("POST", "/users/batch"),
            ("GET", "/openapi.json"),
        ):
            answer = await client.request(method, path, content=b"{")
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == 'Basic realm="users"'
            assert answer.headers["content-type"] == "application/problem+json"
        banned = await client.post("/users", headers={"authorization": "Bearer banned"})
        assert banned.status_code == 403
        assert "secret" not in banned.text
        assert (await client.get("/healthz")).status_code == 200


async def test_what_authorize_does_wrong_stays_inside() -> None:
    """Whatever it raises or returns: 500 and an id."""

    async def broken(request: Any) -> Any:
        if request.headers["authorization"] == "Bearer ann":
            raise OSError("secret host")
        return "ann"

    async with client_of(api_of(Users(), authorize=broken)) as client:
        for name in ("ann", "bob"):
            answer = await client.get("/users/1", headers={"authorization": f"Bearer {name}"})
            assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
            assert "secret" not in answer.text


@pytest.mark.parametrize("given", ["", "a\nb", "x" * 1001, 5])
def test_a_principal_needs_an_id_that_can_own_something(given: Any) -> None:
    """It goes into logs and into files."""
    with pytest.raises((TypeError, ValueError), match="id must be"):
        Principal(given)


async def ask(principal: Principal, operation: str, items: list[Any]) -> Any:
    """Let ann do all but delete, and touch nobody named root."""
    if operation == "delete":
        raise PermissionError("secret")
    if operation == "create":
        return [
            ItemError("not yours", details={"who": principal.id}) if one.name == "root" else None
            for one in items
        ]
    return None


async def test_a_collection_is_asked_about_the_items_themselves() -> None:
    """A request may be forbidden as a whole, or item by item."""
    users = Users()
    async with client_of(api_of(users, authorize_items=ask)) as client:
        batch = {"items": [{"name": "a"}, {"name": "root"}, {}]}
        answer = await client.post("/users/batch", json=batch)
        assert [one["status"] for one in answer.json()["results"]] == [201, 403, 422]
        assert answer.json()["results"][1]["error"]["code"] == "forbidden"
        assert answer.json()["results"][1]["error"]["details"] == {"who": "ann"}
        assert (await client.post("/users", json={"name": "root"})).status_code == 403
        gone = await client.post("/users/batch-delete", json={"ids": ["1"]})
        assert (gone.status_code, "secret" in gone.text) == (403, False)
        assert (await client.delete("/users/1")).status_code == 403
        mixed = {
            "operations": [
                {"method": "delete", "id": "1"},
                {"method": "create", "data": {"name": "x"}},
            ]
        }
        assert (await client.post("/users/batch", json=mixed)).status_code == 403
    assert len(users.calls) == 1


@pytest.mark.parametrize("answer", [[None], "no", [ValueError("secret"), None]])
async def test_a_wrong_answer_about_items_forbids_them(answer: Any) -> None:
    """Never let through what was not allowed, for a fault in who was asked."""

    async def broken(*args: Any) -> Any:
        return answer

    users = Users()
    async with client_of(api_of(users, authorize_items=broken)) as client:
        found = await client.post("/users/batch", json={"items": [{"name": "a"}, {"name": "b"}]})
        assert (found.status_code, "secret" in found.text) == (500, False)
    assert users.calls == []


async def test_a_validator_refuses_items_before_any_is_handled() -> None:
    """Its own code and field are told; without a code it is a validation error."""

    def validate(item: Any) -> None:
        if item.name == "short":
            raise ItemError("too short", field="name")
        if item.name == "own":
            raise ItemError("no", code="bad_name")
        if item.name == "known":
            raise ItemError("no", code="conflict")
        if item.name == "bug":
            raise KeyError("secret")

    users = Users()
    async with client_of(api_of(users, validate=validate)) as client:
        names = ["short", "own", "known", "bug", "good"]
        answer = await client.post("/users/batch", json={"items": [{"name": one} for one in names]})
        records = answer.json()["results"]
        assert [one["status"] for one in records] == [422, 422, 409, 500, 201]
        assert [one["error"]["code"] for one in records[:4]] == [
            "validation_error", "bad_name", "conflict", "internal_error",
        ]  # fmt: skip
        assert records[0]["error"]["pointer"] == "/items/0/name"
        assert "secret" not in answer.text
        assert (await client.post("/users", json={"name": "short"})).status_code == 422
    assert [(kind, len(items)) for kind, items in users.calls] == [("create", 1)]
