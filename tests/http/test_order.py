"""In which order a batch is done, and when it stops."""

from __future__ import annotations

from typing import Any

import pytest
from http_support import User, Users, api_of, client_of

pytestmark = pytest.mark.anyio


def create(name: Any, **more: Any) -> dict[str, Any]:
    return {"method": "create", "data": {"name": name}} | more


def delete(one: str) -> dict[str, Any]:
    return {"method": "delete", "id": one}


def update(one: str, age: Any) -> dict[str, Any]:
    return {"method": "update", "id": one, "data": {"age": age}}


async def done(operations: list[Any], **options: Any) -> tuple[list[tuple[str, int]], list[int]]:
    """Run a batch over three users; return which calls there were, of how many, and each item's status."""
    users = Users()
    users.rows = {one: User(id=one, name=f"old {one}") for one in "123"}
    async with client_of(api_of(users)) as client:
        answer = await client.post(
            "/users/batch", json={"operations": operations, "options": options}
        )
    calls = [(kind, len(items)) for kind, items in users.calls]
    return calls, [one["status"] for one in answer.json()["results"]]


MIXED = [delete("1"), create("a"), update("2", 5), create("b"), delete("3")]


async def test_without_an_order_there_is_one_call_for_each_kind() -> None:
    """What is changed may have to be made first, what is deleted last."""
    calls, statuses = await done(MIXED)
    assert calls == [("create", 2), ("update", 1), ("delete", 2)]
    assert statuses == [204, 201, 200, 201, 204]


async def test_in_order_there_are_runs_of_equal_kind() -> None:
    """As few calls as keep the order of the request."""
    calls, statuses = await done([*MIXED, delete("2")], ordered=True)
    assert calls == [("delete", 1), ("create", 1), ("update", 1), ("create", 1), ("delete", 2)]
    assert statuses == [204, 201, 200, 201, 204, 204]


async def test_what_names_one_id_twice_keeps_its_order() -> None:
    """Delete, then update, is not update, then delete."""
    calls, statuses = await done([delete("1"), update("1", 5), create("a")])
    assert calls == [("delete", 1), ("update", 1), ("create", 1)]
    assert statuses == [204, 404, 201]


async def test_what_has_not_begun_when_an_item_fails_is_not_tried() -> None:
    """With ``stop_on_error``: 424, and no call."""
    calls, statuses = await done([create("old 1"), create("a"), delete("1")], stop_on_error=True)
    assert calls == [("create", 2)]
    assert statuses == [409, 201, 424]
    calls, statuses = await done([create("old 1"), create("a"), delete("1")])
    assert statuses == [409, 201, 204]


async def test_an_item_that_is_wrong_stops_what_comes_after_it() -> None:
    """In order what stands before it is done; without one nothing has begun when it is found to be wrong."""
    batch = [create("a"), create(5), create("b"), delete("1")]
    calls, statuses = await done(batch, stop_on_error=True, ordered=True)
    assert (calls, statuses) == ([("create", 1)], [201, 422, 424, 424])
    calls, statuses = await done(batch, stop_on_error=True)
    assert (calls, statuses) == ([], [424, 422, 424, 424])
    calls, statuses = await done([{"method": "fly"}, *MIXED[:2]], stop_on_error=True)
    assert (calls, statuses) == ([], [400, 424, 424])


async def test_validate_only_calls_no_handler() -> None:
    """Everything else is asked, and answered in the same form."""
    calls, statuses = await done([create("a"), create(5), delete("9")], validate_only=True)
    assert (calls, statuses) == ([], [200, 422, 200])


async def test_mode_reject_does_nothing_where_one_item_is_wrong() -> None:
    """All bad ones are told, with where they stand."""
    users = Users()
    async with client_of(api_of(users)) as client:
        batch = {"items": [{"name": "a"}, {}, {"name": 5}], "options": {"mode": "reject"}}
        answer = await client.post("/users/batch", json=batch)
        assert (answer.status_code, answer.json()["type"]) == (422, "invalid-items")
        assert [(one["index"], one["pointer"]) for one in answer.json()["errors"]] == [
            (1, "/items/1/name"),
            (2, "/items/2/name"),
        ]
        assert set(answer.json()["errors"][0]) == {
            "index", "id", "ref", "code", "message", "field", "pointer",
        }  # fmt: skip
        assert users.calls == []
        good = {"items": [{"name": "a"}], "options": {"mode": "reject"}}
        assert (await client.post("/users/batch", json=good)).status_code == 200


@pytest.mark.parametrize(
    "options",
    [{"async": True}, {"async": True, "atomic": True}, {"async": True, "validate_only": True}],
)
async def test_what_cannot_be_a_job_is_not_asked_to_be_one(options: dict[str, Any]) -> None:
    """Without a queue there are none; a preference is a wish alone, and passed over."""
    async with client_of(api_of(Users())) as client:
        batch = {"items": [{"name": "a"}]}
        answer = await client.post("/users/batch", json=batch | {"options": options})
        assert (answer.status_code, answer.json()["type"]) == (422, "async-not-available")
        wished = await client.post("/users/batch", json=batch, headers={"prefer": "respond-async"})
        assert wished.status_code == 200
        assert "preference-applied" not in wished.headers
        hook = await client.post(
            "/users/batch", json=batch | {"webhook": {"url": "https://a.example"}}
        )
        assert (hook.status_code, hook.json()["type"]) == (422, "webhook-without-job")
