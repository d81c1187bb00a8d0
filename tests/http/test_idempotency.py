"""Idempotency-Key over HTTP: a retry does nothing twice, and gets what the first request got."""

# ruff: noqa: ASYNC110 - a client asks again, as it is told to

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_support import User, Users, api_of, client_of

from microbatch import Batcher, ItemError, current_batch
from microbatch.http import Principal
from microbatch.http._keys import hash_of_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

pytestmark = pytest.mark.anyio


def keyed(key: str, name: str = "ann") -> dict[str, str]:
    return {"idempotency-key": f'"{key}"', "authorization": f"Bearer {name}"}


class SlowUsers(Users):
    """Users whose creation waits for a word."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = anyio.Event()
        self.free = anyio.Event()

    async def create(self, items: list[User]) -> list[User | Exception]:
        self.begun.set()
        await self.free.wait()
        return await super().create(items)


def same(one: httpx.Response, other: httpx.Response) -> bool:
    assert one.headers.get("idempotent-replayed") is None
    assert other.headers["idempotent-replayed"] == "true"
    return (one.status_code, one.content) == (other.status_code, other.content)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/users", {"name": "new"}),
        ("POST", "/users", {"name": "tea"}),  # 409: the handler's own answer
        ("POST", "/users", {"name": "boom"}),  # 500
        ("PATCH", "/users/1", {"age": 5}),
        ("DELETE", "/users/1", None),
        ("DELETE", "/users/9", None),  # 404
        ("POST", "/users/batch", {"items": [{"name": "a"}, {"name": "tea"}, {"nam": 1}]}),
        ("PATCH", "/users/batch", {"items": [{"id": "1", "data": {"age": 5}}]}),
        ("POST", "/users/batch-delete", {"ids": ["1", "9"]}),
        (
            "POST",
            "/batch",
            {"operations": [{"method": "delete", "collection": "users", "id": "1"}]},
        ),
    ],
)
async def test_the_same_request_again_gets_the_same_answer(
    method: str, path: str, body: Any
) -> None:
    """Whatever was done, and however it ended."""
    users = Users()
    users.rows["1"] = User(id="1", name="tea")
    async with client_of(api_of(users)) as client:
        first = await client.request(method, path, json=body, headers=keyed("k"))
        again = await client.request(method, f"{path}/", json=body, headers=keyed("k"))
        assert same(first, again)
        assert again.headers.get("content-type") == first.headers.get("content-type")
        assert len(users.calls) == 1
        await client.request(method, path, json=body, headers=keyed("other"))
        await client.request(method, path, json=body)
        assert len(users.calls) == 3


async def test_a_key_belongs_to_one_principal_route_and_content() -> None:
    """Two who think of the same key have nothing to do with each other."""
    users = Users()
    async with client_of(api_of(users)) as client:
        one = {"items": [{"name": "a"}]}
        first = await client.post("/users/batch", json=one, headers=keyed("k"))
        for other in ({"name": "b"}, {"name": "c"}):
            single = await client.post("/users", json=other, headers=keyed("k"))
            assert single.status_code == (201 if other["name"] == "b" else 422)
        bobs = await client.post("/users/batch", json=one, headers=keyed("k", "bob"))
        assert bobs.json() != first.json()  # a duplicate: it was tried
        changed = await client.post("/users/batch?x=1", json=one, headers=keyed("k"))
        assert changed.status_code == 422
        assert changed.headers["content-type"] == "application/problem+json"
        assert changed.json()["type"] == "idempotency-key-reused"
        assert len(users.calls) == 3


async def test_a_storm_of_retries_does_it_once() -> None:
    """A hundred at the same time, and a hundred after that."""
    users = SlowUsers()
    async with client_of(api_of(users)) as client:
        got: list[httpx.Response] = []

        async def send() -> None:
            got.append(await client.post("/users", json={"name": "tea"}, headers=keyed("k")))

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(send)
            with anyio.fail_after(60):
                while len(got) < 99:
                    await anyio.sleep(0.01)
            users.free.set()
        statuses = sorted(response.status_code for response in got)
        assert statuses == [201] + [409] * 99
        running = next(response for response in got if response.status_code == 409)
        assert running.headers["retry-after"] == "1"
        assert running.json()["type"] == "idempotency-key-running"
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(send)
        assert [response.status_code for response in got[100:]] == [201] * 100
        assert len(users.rows) == 1


async def test_a_request_that_took_too_long_keeps_its_key_until_it_has_ended() -> None:
    """The client learns of the end by asking again."""
    users = SlowUsers()
    async with (
        Batcher(users.create) as shared,
        client_of(api_of(users, create=shared, timeout=5.0)) as client,
    ):

        async def send() -> httpx.Response:
            return await client.post("/users", json={"name": "tea"}, headers=keyed("k"))

        assert (await send()).status_code == 504
        assert (await send()).status_code == 409
        users.free.set()
        with anyio.fail_after(60):
            while (answer := await send()).status_code == 409:
                await anyio.sleep(0.01)
        assert answer.status_code == 201
        assert answer.headers["idempotent-replayed"] == "true"
        assert len(users.rows) == 1


@pytest.mark.parametrize(
    ("path", "body"), [("/users", {"name": "tea"}), ("/users/batch", {"items": [{"name": "tea"}]})]
)
async def test_no_room_is_no_answer(path: str, body: Any) -> None:
    """The handler has seen nothing of it: the same request may do better later."""
    users = SlowUsers()
    async with (
        Batcher(users.create, max_pending=1, on_full="reject") as shared,
        client_of(api_of(users, create=shared)) as client,
    ):
        pending = shared.submit_nowait(User(name="first"))
        await users.begun.wait()

        async def send() -> httpx.Response:
            return await client.post(path, json=body, headers=keyed("k"))

        full = await send()
        assert "full" in full.text
        users.free.set()
        await pending
        again = await send()
        assert again.is_success
        assert "idempotent-replayed" not in again.headers
        assert len(users.rows) == 2


async def test_what_no_handler_has_answered_is_not_kept() -> None:
    """It may be sent again under the same key, once what was wrong is over."""
    users = Users()
    closed = ItemError("closed today", code="closed_today")
    refused: list[Exception | None] = [closed, None]

    def check(item: User) -> None:
        error = refused[0]
        if error is not None:
            raise error

    async with client_of(api_of(users, validate=check)) as client:

        async def send(**more: Any) -> httpx.Response:
            return await client.post("/users", json={"name": "tea"}, headers=keyed("k"), **more)

        first = await send()
        assert first.status_code == 422
        refused[0] = None
        again = await send()
        assert (again.status_code, "idempotent-replayed" in again.headers) == (201, False)
        assert same(again, await send())


@pytest.fixture
def no_log() -> Iterator[None]:
    """What stands in a log is passed on from one process of the tests to another, which not every text survives."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("no_log")
async def test_what_cannot_be_told_is_done_once_all_the_same() -> None:
    """A result, an id or a text without a form in JSON, or a status_of that fails: the item was handled."""
    odd: dict[str, Any] = {
        "result": User(name="\ud800"),
        "id": {"id": "\ud800"},
        "text": ItemError("\ud800", code="odd"),
        "status": ItemError("it is odd", code="odd"),
    }
    seen: list[str] = []

    async def create(items: list[User]) -> list[object]:
        seen.extend(item.name for item in items)
        return [odd.get(item.name, item) for item in items]

    def status_of(code: str) -> int:
        raise KeyError(code)

    async with client_of(api_of(Users(), create=create, status_of=status_of)) as client:
        for name in odd:
            seen.clear()
            one, other = [
                await client.post("/users", json={"name": name}, headers=keyed(name))
                for _ in range(2)
            ]
            assert (one.status_code, same(one, other), seen) == (500, True, [name])
            body = {"items": [{"name": name}, {"name": "good"}]}
            # What succeeded is not told at all in a minimal answer.
            minimal = ["return=minimal"] if name in {"text", "status"} else []
            for prefer in ["return=representation", *minimal]:
                seen.clear()
                headers = keyed(name + prefer) | {"prefer": prefer}
                one, other = [
                    await client.post("/users/batch", json=body, headers=headers) for _ in range(2)
                ]
                assert (one.status_code, same(one, other), len(seen)) == (207, True, 2), name
                told = one.json()
                assert told["results"][0]["success"] is False
                summary = told["summary"]
                counts = [summary[kind] for kind in ("total", "succeeded", "failed")]
                assert (counts, sum(summary["errors"].values())) == ([2, 1, 1], 1), prefer


async def test_a_malformed_request_leaves_its_key_free() -> None:
    """So a client may mend it, and send it under the same key."""
    users = Users()
    async with client_of(api_of(users)) as client:
        bad = await client.post("/users/batch", content=b"{", headers=keyed("k"))
        assert bad.status_code == 415
        headers = keyed("k") | {"content-type": "application/json"}
        assert (await client.post("/users/batch", content=b"{", headers=headers)).status_code == 400
        good = await client.post("/users/batch", json={"items": [{"name": "a"}]}, headers=headers)
        assert good.status_code == 200


@pytest.mark.parametrize("value", ['"a', "a, b", '""'])
async def test_a_malformed_key_is_told(value: str) -> None:
    """Before anything is done."""
    users = Users()
    async with client_of(api_of(users)) as client:
        bad = await client.post("/users", json={"name": "a"}, headers={"idempotency-key": value})
        assert bad.status_code == 400
        assert bad.json()["type"] == "idempotency-key-malformed"
        assert users.calls == []


async def test_a_key_may_be_required() -> None:
    """Of what changes something, and of nothing else."""
    users = Users()
    async with client_of(api_of(users, idempotency="required")) as client:
        for method, path, body in (
            ("POST", "/users", {"name": "a"}),
            ("PATCH", "/users/1", {"age": 1}),
            ("DELETE", "/users/1", None),
            ("POST", "/users/batch", {"items": []}),
            ("PATCH", "/users/batch", {"items": []}),
            ("POST", "/users/batch-delete", {"ids": []}),
            ("POST", "/batch", {"operations": []}),
        ):
            refused = await client.request(method, path, json=body)
            assert refused.status_code == 400, path
            assert refused.json()["type"] == "idempotency-key-missing"
        assert users.calls == []
        assert (
            await client.post("/users", json={"name": "a"}, headers=keyed("k"))
        ).status_code == 201
        assert (await client.get("/users/1")).status_code == 200
        assert (await client.post("/users/batch-get", json={"ids": ["1"]})).status_code == 200


async def test_keys_may_be_off() -> None:
    """Then nobody looks at them."""
    users = Users()
    async with client_of(api_of(users, idempotency="off")) as client:
        for name in "ab":
            made = await client.post("/users", json={"name": name}, headers=keyed("k"))
            assert made.status_code == 201


async def test_room_for_keys_is_bounded() -> None:
    """Where all are running, the next one may come again."""
    users = SlowUsers()
    async with client_of(api_of(users, idempotency_max=1)) as client:
        first: list[httpx.Response] = []

        async def send() -> None:
            first.append(await client.post("/users", json={"name": "a"}, headers=keyed("1")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await users.begun.wait()
            full = await client.post("/users", json={"name": "b"}, headers=keyed("2"))
            assert (full.status_code, full.headers["retry-after"]) == (503, "1")
            users.free.set()
        second = await client.post("/users", json={"name": "b"}, headers=keyed("2"))
        assert (first[0].status_code, second.status_code) == (201, 201)


async def test_an_answer_is_forgotten_after_its_time() -> None:
    """A day is long enough for any retry."""
    users = Users()
    async with client_of(api_of(users, idempotency_ttl=100.0)) as client:

        async def send() -> int:
            sent = await client.post("/users", json={"name": "tea"}, headers=keyed("k"))
            return sent.status_code

        assert [await send(), await send()] == [201, 201]
        await anyio.sleep(100)
        assert await send() == 409  # done again: there is such a name


async def test_each_item_carries_a_key_of_its_own() -> None:
    """For an upsert: what ran before its process died may run again."""
    seen: list[Any] = []

    async def create(items: list[User]) -> list[User]:
        seen.append(current_batch().keys)  # type: ignore[union-attr]
        return items

    users = Users()
    async with client_of(api_of(users, create=create)) as client:
        items = {"items": [{"name": "a"}, {"nam": "b"}, {"name": "c"}]}
        await client.post("/users/batch", json=items, headers=keyed("k"))
        batch = hash_of_parts("ann", "users.batch", "k").hex()
        assert seen.pop() == (f"{batch}:0", f"{batch}:2")
        await client.post("/users", json={"name": "a"}, headers=keyed("k"))
        assert seen.pop() == (f"{hash_of_parts('ann', 'users.create', 'k').hex()}:0",)
        await client.post("/users", json={"name": "a"})
        assert seen.pop() is None


async def test_a_client_that_is_gone_does_not_stop_what_it_began() -> None:
    """It comes again, and gets the answer."""
    users = SlowUsers()
    api = api_of(users)
    sent: list[Any] = []
    scope = {
        "type": "http", "method": "POST", "path": "/users", "query_string": b"",
        "headers": [
            (b"authorization", b"Bearer ann"), (b"content-type", b"application/json"),
            (b"idempotency-key", b"k"),
        ],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"name": "tea"}'}

    async def send(message: Any) -> None:
        sent.append(message)

    async with client_of(api) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(api, scope, receive, send)
            await users.begun.wait()
            tasks.cancel_scope.cancel()  # as hypercorn does when the connection ends

        async def again() -> httpx.Response:
            headers = keyed("k") | {"content-type": "application/json"}
            return await client.post("/users", content=b'{"name": "tea"}', headers=headers)

        assert (await again()).status_code == 409
        users.free.set()
        with anyio.fail_after(60):
            while (answer := await again()).status_code == 409:
                await anyio.sleep(0.01)
        assert answer.status_code == 201
        assert answer.headers["idempotent-replayed"] == "true"
        assert sent == []
        assert len(users.rows) == 1


def test_a_principal_is_told_apart_from_another_one_by_more_than_a_separator() -> None:
    """Ids may hold anything printable."""
    ids = [Principal("a").id, Principal("a|users.create|k").id]
    assert hash_of_parts(ids[0], "users.create|k", "k") != hash_of_parts(ids[1], "k", "")
