"""Batches: every item is answered for, in order, whatever became of the others."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_support import User, Users, api_of, authorize, client_of

from microbatch import ItemError, current_batch
from microbatch.http import BatchAPI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


def statuses(answer: Any) -> list[int]:
    return [one["status"] for one in answer.json()["results"]]


async def test_each_item_has_its_record_and_all_their_summary() -> None:
    """207 where some failed; the good ones are done, and all bad ones told with where they stand."""
    async with client_of(api_of(Users())) as client:
        items = [{"name": "a"}, {"name": 5}, {"name": "a"}, {"name": "boom"}]
        answer = await client.post("/users/batch", json={"items": items})
        assert answer.status_code == 207
        body = answer.json()
        assert set(body) == {"results", "summary", "took"}
        first, second, third, fourth = body["results"]
        assert first == {
            "index": 0, "id": "1", "ref": None, "kind": "succeeded", "success": True, "status": 201,
            "data": {"id": "1", "name": "a", "age": 0},
        }  # fmt: skip
        assert second["error"] == {
            "code": "invalid_item", "message": "Expected `str`, got `int`", "field": "name", "details": None,
            "retryable": False, "retry_after": None, "pointer": "/items/1/name",
        }  # fmt: skip
        assert (third["status"], third["error"]["code"]) == (409, "duplicate_name")
        assert (fourth["status"], fourth["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        assert body["summary"] == {
            "total": 4, "succeeded": 1, "failed": 3, "skipped": 0, "cancelled": 0, "expired": 0,
            "errors": {"invalid_item": 1, "duplicate_name": 1, "internal_error": 1},
        }  # fmt: skip


async def test_a_batch_that_succeeds_is_200_and_an_empty_one_too() -> None:
    """A client that sees 200 need not look further."""
    async with client_of(api_of(Users())) as client:
        answer = await client.post("/users/batch", json={"items": [{"name": "a"}, {"name": "b"}]})
        assert (answer.status_code, statuses(answer)) == (200, [201, 201])
        empty = await client.post("/users/batch/", json={"items": []})
        assert (empty.status_code, empty.json()["summary"]["total"]) == (200, 0)


@pytest.mark.parametrize("status", [207, 200, 400, 422])
async def test_what_a_batch_is_answered_with_of_which_nothing_succeeded_is_a_setting(
    status: int,
) -> None:
    """The body is the batch's all the same."""
    async with client_of(api_of(Users(), all_failed_status=status)) as client:
        answer = await client.post("/users/batch", json={"items": [{}, {}]})
        assert (answer.status_code, statuses(answer)) == (status, [422, 422])


async def test_the_ways_to_update_delete_and_read_many() -> None:
    """Items may stand under "updates" too; a DELETE with a body is for clients that can send one."""
    async with client_of(api_of(Users())) as client:
        await client.post("/users/batch", json={"items": [{"name": one} for one in "abc"]})
        for key in ("items", "updates"):
            changes = {key: [{"id": "1", "data": {"age": 3}}, {"id": "9", "data": {}, "ref": "r"}]}
            answer = await client.patch("/users/batch", json=changes)
            assert (answer.status_code, statuses(answer)) == (207, [200, 404])
            assert answer.json()["results"][1]["ref"] == "r"
        read = await client.post("/users/batch-get", json={"ids": ["1", "2"]})
        assert (read.status_code, statuses(read)) == (200, [200, 200])
        assert read.json()["results"][0]["data"]["age"] == 3
        deleted = await client.post("/users/batch-delete", json={"ids": ["1", "1"]})
        assert (deleted.status_code, statuses(deleted)) == (207, [204, 404])
        assert [one["id"] for one in deleted.json()["results"]] == ["1", "1"]
        rest = await client.request("DELETE", "/users/batch", json={"ids": ["2", "3"]})
        assert (rest.status_code, statuses(rest)) == (200, [204, 204])


@pytest.mark.parametrize(
    ("operation", "status", "code", "pointer"),
    [
        ({"method": "fly"}, 400, "unknown_method", "/method"),
        ({"method": "read", "id": "1"}, 400, "unknown_method", "/method"),
        ({"method": "update", "data": {}}, 400, "missing_id", ""),
        ({"method": "delete"}, 400, "missing_id", ""),
        ({"method": "update", "id": "1"}, 422, "invalid_item", "/data"),
        ({"method": "update", "id": 1, "data": {}}, 422, "invalid_item", "/id"),
        ({"method": "create"}, 422, "invalid_item", "/data"),
        ({"method": "create", "data": {"name": 1}}, 422, "invalid_item", "/data/name"),
        ({"method": "create", "data": {"name": "ann"}}, 409, "duplicate_name", "/data/name"),
        ({"method": "create", "data": {}, "more": 1}, 422, "invalid_item", ""),
        ({"method": "create", "ref": "r" * 257, "data": {}}, 422, "invalid_item", "/ref"),
        ({}, 422, "invalid_item", "/method"),
        (5, 422, "invalid_item", ""),
        ({"method": "create", "collection": "other", "data": {}}, 400, "unknown_collection", "/collection"),
    ],
)  # fmt: skip
async def test_an_operation_that_cannot_be_done_fails_alone(
    operation: Any, status: int, code: str, pointer: str
) -> None:
    """Its neighbours are done."""
    async with client_of(api_of(Users())) as client:
        await client.post("/users", json={"name": "ann"})
        good = {"method": "create", "data": {"name": "good"}, "ref": "mine"}
        answer = await client.post("/users/batch", json={"operations": [operation, good]})
        bad, done = answer.json()["results"]
        assert (answer.status_code, bad["status"], bad["error"]["code"]) == (207, status, code)
        assert bad["error"]["pointer"] == f"/operations/0{pointer}"
        assert (done["status"], done["ref"], done["id"]) == (201, "mine", "2")


async def test_operations_over_several_collections() -> None:
    """Each names its own; what there is not fails alone."""
    users, others = Users(), Users()
    api = api_of(users)
    api.collection("others", item_type=User, create=others.create)
    async with client_of(api) as client:
        operations = [
            {"method": "create", "collection": "users", "data": {"name": "a"}},
            {"method": "create", "collection": "others", "data": {"name": "b"}},
            {"method": "delete", "collection": "others", "id": "1"},
            {"method": "create", "collection": "nothing", "data": {"name": "c"}},
            {"method": "create", "data": {"name": "d"}},
        ]
        answer = await client.post("/batch", json={"operations": operations})
        assert (answer.status_code, statuses(answer)) == (207, [201, 201, 400, 400, 400])
        codes = answer.json()["summary"]["errors"]
        assert codes == {"unknown_method": 1, "unknown_collection": 2}
    assert [list(one.rows) for one in (users, others)] == [["1"], ["1"]]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ([], ""),
        ({"items": {}}, "/items"),
        ({"items": None}, "/items"),
        ({"items": [], "operations": []}, ""),
        ({"ids": []}, "/ids"),
        ({"updates": []}, "/updates"),
        ({"items": [], "more": 1}, ""),
        ({"items": [], "options": {"atomc": True}}, "/options"),
        ({"items": [], "options": {"mode": "some"}}, "/options/mode"),
        ({"items": [], "options": {"atomic": 1}}, "/options/atomic"),
    ],
)
async def test_a_wrong_envelope_is_refused_as_a_whole(body: Any, pointer: str) -> None:
    """A misspelt option must not run without it."""
    users = Users()
    async with client_of(api_of(users)) as client:
        answer = await client.post("/users/batch", json=body)
        assert (answer.status_code, answer.json()["pointer"]) == (400, pointer)
    assert users.calls == []


async def test_only_what_a_collection_has_is_there() -> None:
    """A handler that was not given has no route, and its method is unknown in a batch."""
    api = BatchAPI(authorize=authorize)
    api.collection("users", item_type=User, read=Users().read)
    async with client_of(api) as client:
        assert (await client.post("/users", json={"name": "a"})).status_code == 404
        assert (await client.delete("/users/1")).status_code == 405
        assert (await client.post("/users/batch", json={"items": []})).status_code == 405
        assert (await client.post("/batch", json={"operations": []})).status_code == 404
        assert (await client.get("/users/1")).status_code == 404


async def test_only_failed_items_are_told_where_that_is_preferred() -> None:
    """And the answer says that it did as was asked."""
    async with client_of(api_of(Users())) as client:
        answer = await client.post(
            "/users/batch",
            json={"items": [{"name": "a"}, {}]},
            headers={"prefer": 'return="minimal", wait=5'},
        )
        (record,) = answer.json()["results"]
        assert (record["index"], record["status"]) == (1, 422)
        assert answer.json()["summary"]["total"] == 2
        assert answer.headers["preference-applied"] == "return=minimal"


async def test_what_a_handler_raises_fails_its_kind_alone_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No batch is answered 500 because of an item."""

    async def create(items: list[User]) -> list[User]:
        raise ValueError("secret table users_v2")

    users = Users()
    async with client_of(api_of(users, create=create)) as client:
        operations = [
            {"method": "create", "data": {"name": "a"}},
            {"method": "create", "data": {"name": "b"}},
            {"method": "delete", "id": "1"},
        ]
        answer = await client.post("/users/batch", json={"operations": operations})
    assert (answer.status_code, statuses(answer)) == (207, [500, 500, 404])
    first, second, _ = (one["error"]["message"] for one in answer.json()["results"])
    assert first == second
    assert "secret" not in answer.text
    assert len([one for one in caplog.records if "http users.batch" in one.getMessage()]) == 1


async def test_an_id_may_be_anything_that_its_type_says() -> None:
    """Also what cannot be hashed, and what names an id twice all the same."""
    seen: list[Any] = []

    async def delete(ids: list[Any]) -> list[Any]:
        seen.append(ids)
        return [ItemError("no", code="conflict") if one == [0] else None for one in ids]

    async with client_of(api_of(Users(), delete=delete, id_type=list[int])) as client:
        answer = await client.post("/users/batch-delete", json={"ids": [[1], [0], [1]]})
        assert statuses(answer) == [204, 409, 204]
    assert seen == [[[1], [0], [1]]]


async def test_an_id_is_found_in_results_of_any_form() -> None:
    """A row may be a struct, a mapping, or nothing that has one."""
    results = {"dict": {"id": 7}, "none": None, "plain": 5, "user": User(id="9", name="x")}

    async def create(items: list[User]) -> list[Any]:
        return [results[item.name] for item in items]

    async with client_of(api_of(Users(), create=create)) as client:
        batch = {"items": [{"name": name} for name in results]}
        records = (await client.post("/users/batch", json=batch)).json()["results"]
        assert [one["id"] for one in records] == [7, None, None, "9"]
        again = await client.post("/users/batch", json={"items": [{"name": "user"}] * 2})
        assert [one["id"] for one in again.json()["results"]] == ["9", "9"]


async def test_what_is_read_and_is_none_is_not_there() -> None:
    """By itself and among others."""

    async def read(ids: list[str]) -> list[Any]:
        return [None if one == "x" else {"id": one} for one in ids]

    async with client_of(api_of(Users(), read=read)) as client:
        answer = await client.post("/users/batch-get", json={"ids": ["a", "x"]})
        assert (answer.status_code, statuses(answer)) == (207, [200, 404])
        assert answer.json()["results"][1]["error"]["code"] == "not_found"
        assert (await client.get("/users/x")).status_code == 404


@pytest.mark.parametrize("options", [{}, {"ordered": True}])
async def test_items_of_a_batch_share_calls_with_what_comes_beside_it(options: Any) -> None:
    """Whatever way it takes through here."""
    users = Users()
    async with client_of(api_of(users)) as client, anyio.create_task_group() as tasks:
        batch = {"items": [{"name": "a"}, {"name": "b"}], "options": options}
        tasks.start_soon(lambda: client.post("/users/batch", json=batch))
        tasks.start_soon(lambda: client.post("/users", json={"name": "c"}))
    assert [len(items) for _, items in users.calls] == [3]


async def test_handlers_see_the_keys_of_their_items() -> None:
    """For an upsert: the request's key and the item's place, whatever way the request takes."""
    seen: list[Any] = []

    async def create(items: list[User]) -> list[User]:
        batch = current_batch()
        assert batch is not None
        seen.append(batch.keys)
        return items

    @contextlib.asynccontextmanager
    async def transaction() -> AsyncIterator[None]:
        yield

    async with client_of(api_of(Users(), create=create, atomic=transaction)) as client:
        for number, options in enumerate([{}, {"ordered": True}, {"atomic": True}]):
            batch = {"items": [{"name": "a"}, {"name": "b"}], "options": options}
            headers = {"idempotency-key": f'"k{number}"'}
            assert (
                await client.post("/users/batch", json=batch, headers=headers)
            ).status_code == 200
        await client.post("/users", json={"name": "a"}, headers={"idempotency-key": "plain"})
        await client.post("/users", json={"name": "a"})
    assert seen.pop() is None
    parts = [[key.rpartition(":") for key in keys] for keys in seen]
    assert [[index for _, _, index in keys] for keys in parts] == [["0", "1"]] * 3 + [["0"]]
    assert [len({start for start, _, _ in keys}) for keys in parts] == [1] * 4
    assert len({keys[0][0] for keys in parts}) == 4
