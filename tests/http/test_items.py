"""Requests for one item: they join one another's batches, and are answered as if alone."""

from __future__ import annotations

import logging

import anyio
import msgspec
import pydantic
import pytest
from http_support import User, Users, api_of, client_of

from microbatch import Batcher, ItemError, Skipped
from microbatch.http import BatchAPI, Update

pytestmark = pytest.mark.anyio


async def test_an_item_is_created_read_changed_and_deleted() -> None:
    """The created object itself is the body, and where it is from then on stands in Location."""
    async with client_of(api_of(Users())) as client:
        made = await client.post("/users", json={"name": "bob"})
        assert (made.status_code, made.json()) == (201, {"id": "1", "name": "bob", "age": 0})
        assert made.headers["location"] == "/users/1"
        assert made.headers["content-type"] == "application/json"
        read = await client.get(made.headers["location"])
        assert (read.status_code, read.json()) == (200, made.json())
        changed = await client.patch("/users/1/", json={"age": 5})
        assert (changed.status_code, changed.json()["age"]) == (200, 5)
        gone = await client.delete("/users/1")
        assert (gone.status_code, gone.content) == (204, b"")
        missing = await client.get("/users/1")
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"
        assert missing.json()["code"] == "not_found"


async def test_requests_that_come_together_share_one_call() -> None:
    """That is what all of this is for."""
    users = Users()
    async with client_of(api_of(users)) as client, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(
                lambda number=number: client.post("/users", json={"name": str(number)})
            )
    (call,) = users.calls
    assert (call[0], len(call[1])) == ("create", 20)


async def test_an_update_tells_what_was_not_sent_from_what_was_sent_as_null() -> None:
    """A PATCH of one field leaves the others alone."""
    users = Users()
    async with client_of(api_of(users)) as client:
        await client.patch("/users/7", json={"age": 5})
    (update,) = users.calls[0][1]
    assert isinstance(update, Update)
    assert (update.id, update.data.age, update.data.name) == ("7", 5, msgspec.UNSET)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "pointer"),
    [
        ("POST", "/users", {"name": 5}, 422, "invalid_item", "/name"),
        ("POST", "/users", {}, 422, "invalid_item", "/name"),
        ("POST", "/users", [], 422, "invalid_item", ""),
        ("PATCH", "/users/1", {"age": "x"}, 422, "invalid_item", "/age"),
        ("POST", "/users", {"name": "ann"}, 409, "duplicate_name", "/name"),
        ("DELETE", "/users/9", None, 404, "not_found", None),
    ],
)
async def test_a_request_for_one_item_has_its_items_status(  # noqa: PLR0917
    method: str, path: str, body: object, status: int, code: str, pointer: str | None
) -> None:
    """With the field that was wrong, and where it stands in the body."""
    async with client_of(api_of(Users())) as client:
        await client.post("/users", json={"name": "ann"})
        answer = await client.request(method, path, json=body)
        problem = answer.json()
        assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
        assert problem["pointer"] == pointer


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'"\xff"', b"[" * 100_000])
async def test_what_is_no_json_is_the_requests_fault(body: bytes) -> None:
    """400, and not 422: no item was found in it."""
    async with client_of(api_of(Users())) as client:
        for path in ("/users", "/users/batch"):
            answer = await client.post(
                path, content=body, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400, path
            assert answer.json()["pointer"] == ""


async def test_text_of_other_errors_never_leaves(caplog: pytest.LogCaptureFixture) -> None:
    """Secrets, SQL and paths stand in them; the client gets an id that stands in the log beside them."""
    async with client_of(api_of(Users())) as client:
        with caplog.at_level(logging.ERROR, "microbatch"):
            answer = await client.post("/users", json={"name": "boom"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["code"] == "internal_error"
    fault = answer.json()["detail"].removeprefix("internal error ")
    record = next(one for one in caplog.records if fault in one.getMessage())
    assert "secret" in str(record.exc_info)


async def test_an_item_error_says_when_to_come_again() -> None:
    """429 and 503 have Retry-After, by the error's own word if it has one."""

    async def create(items: list[User]) -> list[Exception]:
        return [
            ItemError("slow down", code="rate_limited", retry_after=7.2)
            if item.name == "limit"
            else ItemError("closed on sundays", code="closed")
            for item in items
        ]

    async with client_of(api_of(Users(), create=create)) as client:
        limited = await client.post("/users", json={"name": "limit"})
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "8")
        assert limited.json()["retry_after"] == 7.2
        closed = await client.post("/users", json={"name": "x"})
        assert (closed.status_code, closed.headers["retry-after"]) == (503, "1")


async def test_codes_of_the_application_get_their_statuses_from_it() -> None:
    """``status_of`` is asked about those that HTTP gives no meaning to."""

    async def create(items: list[User]) -> list[Exception]:
        return [ItemError("no", code=item.name) for item in items]

    asked: list[str] = []

    def status_of(code: str) -> int | None:
        asked.append(code)
        return {"out_of_stock": 409, "odd": 999}.get(code)

    async with client_of(api_of(Users(), create=create, status_of=status_of)) as client:
        for code, status in (
            ("out_of_stock", 409),
            ("odd", 500),
            ("other", 500),
            ("not_found", 404),
        ):
            answer = await client.post("/users", json={"name": code})
            assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert asked == ["out_of_stock", "odd", "other"]


async def test_what_was_skipped_is_no_failure() -> None:
    """200, with the reason."""

    async def create(items: list[User]) -> list[Exception]:
        return [Skipped("it is there already", code="known") for _ in items]

    async with client_of(api_of(Users(), create=create)) as client:
        answer = await client.post("/users", json={"name": "a"})
        assert answer.status_code == 200
        assert answer.json()["skipped"]["code"] == "known"
        batch = await client.post("/users/batch", json={"items": [{"name": "a"}]})
        (record,) = batch.json()["results"]
        assert (batch.status_code, record["success"], record["status"]) == (200, True, 200)
        assert batch.json()["summary"]["errors"] == {"known": 1}


async def test_a_batcher_of_the_application_is_shared_and_left_open() -> None:
    """Other code goes on using it when the API has closed."""
    users = Users()
    async with Batcher(users.create) as batcher:
        async with client_of(api_of(users, create=batcher)) as client:
            answer = await client.post("/users", json={"name": "bob"})
            assert answer.status_code == 201
        assert (await batcher.submit(User(name="eve"))).name == "eve"


class Point(pydantic.BaseModel):
    x: int
    at: str = pydantic.Field(default="here", alias="@at")


async def test_models_of_pydantic_are_items_too() -> None:
    """They are read by their own rules, and shown by their aliases."""
    api = BatchAPI(authorize=Users.allow)

    async def create(items: list[Point]) -> list[Point]:
        return items

    api.collection("points", item_type=Point, create=create)
    async with client_of(api) as client:
        made = await client.post("/points", json={"x": 1, "@at": "there"})
        assert (made.status_code, made.json()) == (201, {"x": 1, "@at": "there"})
        wrong = await client.post("/points", json={"x": "one"})
        assert wrong.status_code == 422
        assert "x: " in wrong.json()["detail"]


async def test_ids_are_of_their_type_in_paths_too() -> None:
    """A path is text; the handler gets what it asked for."""
    seen: list[object] = []

    async def read(ids: list[int]) -> list[int]:
        seen.extend(ids)
        return ids

    async with client_of(api_of(Users(), read=read, id_type=int)) as client:
        assert (await client.get("/users/12")).json() == 12
        wrong = await client.get("/users/twelve")
        assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_item")
    assert seen == [12]


async def test_a_result_that_has_no_form_in_json_is_its_items_failure_alone() -> None:
    """It was done, but cannot be shown; its neighbours can."""

    async def create(items: list[User]) -> list[object]:
        return [object() if item.name == "odd" else item for item in items]

    async with client_of(api_of(Users(), create=create)) as client:
        assert (await client.post("/users", json={"name": "odd"})).status_code == 500
        batch = await client.post("/users/batch", json={"items": [{"name": "odd"}, {"name": "b"}]})
        assert batch.status_code == 207
        assert [one["status"] for one in batch.json()["results"]] == [500, 201]
        assert batch.json()["summary"]["errors"] == {"internal_error": 1}


async def test_handlers_of_every_kind_serve() -> None:
    """Plain functions run in threads; generators answer item by item."""

    def plain(items: list[User]) -> list[User]:
        return items

    async def generated(updates: list[Update[str, User]]):  # type: ignore[no-untyped-def]
        for index, update in enumerate(updates):
            yield index, update.id

    async def silent(ids: list[str]) -> None:
        del ids

    api = api_of(Users(), create=plain, update=generated, delete=silent)
    async with client_of(api) as client:
        assert (await client.patch("/users/7", json={})).json() == "7"
        assert (await client.delete("/users/7")).status_code == 204
