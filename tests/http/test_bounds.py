"""Limits: counted while reading, and told with what is allowed."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_support import User, Users, api_of, call, client_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
GZIP = {"content-encoding": "gzip"}


async def test_a_body_is_counted_while_it_is_read() -> None:
    """Whatever it says of its length; and read no further, so the connection ends."""
    async with api_of(Users(), max_body_bytes=50) as api:
        for length in ({}, {"content-length": "5"}):
            answer = await call(api, "/users", [b" " * 20] * 1_000, headers=length)
            assert (answer.status, answer.read) == (413, 3)
            assert (answer.json()["type"], answer.json()["max_bytes"]) == ("batch-too-large", 50)
            assert answer.headers["connection"] == "close"
        for length in ("51", "9" * 30):
            told = await call(api, "/users", [b"{}"], headers={"content-length": length})
            assert (told.status, told.read) == (413, 0)


@pytest.mark.parametrize(
    ("pieces", "dropped"),
    [
        pytest.param([(b"x", True), (b"x", True), (b"x", False)], 3, id="all of it"),
        pytest.param([(bytes(6 << 20), True)] * 9, 3, id="too much"),
        pytest.param([], 0, id="nothing"),
    ],
)
async def test_what_still_comes_of_a_refused_body_is_dropped_before_the_connection_ends(
    pieces: list[tuple[bytes, bool]], dropped: int
) -> None:
    """A server that closes a connection to which more comes resets it, and the client may lose the answer."""
    answer: list[dict[str, Any]] = []
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        assert answer[-1]["body"]  # it is whole
        assert answer[-1]["more_body"]  # and its connection has not ended
        if taken == len(pieces):
            await anyio.sleep_forever()
        taken += 1
        body, more = pieces[taken - 1]
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: dict[str, Any]) -> None:
        answer.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/users", "query_string": b"", "root_path": "",
        "headers": [(b"authorization", b"Bearer ann"), (b"content-type", b"text/plain")],
    }  # fmt: skip
    async with api_of(Users()) as api:
        await api(scope, receive, send)
    assert (answer[0]["status"], dict(answer[0]["headers"])[b"connection"]) == (415, b"close")
    assert answer[2:] == [{"type": "http.response.body", "body": b""}]
    assert taken == dropped


async def test_a_bomb_is_found_out_after_what_is_allowed() -> None:
    """It is inflated in bounded parts, and counted; both as it was sent and inflated."""
    bomb = gzip.compress(b" " * 30_000_000)
    async with api_of(Users(), max_body_bytes=100_000) as api:
        answer = await call(api, "/users", [bomb[:100], bomb[100:]], headers=GZIP)
        assert (answer.status, answer.read) == (413, 2)
        empty = gzip.compress(b"") * 5_001
        assert (await call(api, "/users", [empty], headers=GZIP)).status == 413


async def test_many_small_members_are_not_copied_over_and_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What follows a member is copied with each: some MB of them in one piece would take minutes."""
    given, decompressobj = 0, zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._one = decompressobj(wbits)

        def decompress(self, data: bytes, most: int) -> bytes:
            nonlocal given
            given += len(data)
            return self._one.decompress(data, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._one, name)

    body = gzip.compress(b"", mtime=0) * 5_000 + gzip.compress(b'{"name": "a"}')
    async with api_of(Users()) as api:
        monkeypatch.setattr(zlib, "decompressobj", Counting)
        answer = await call(api, "/users", [body], headers=GZIP)
    assert answer.status == 201
    assert given < 200 * len(body)


GOOD = gzip.compress(b'{"name": "a"}', mtime=0)
BODIES = {
    "whole": (GOOD, 201),
    "members": (gzip.compress(b'{"name":', mtime=0) + gzip.compress(b'"a"}', mtime=0), 201),
    "padded": (GOOD + b"\0" * 10, 201),
    "broken off": (GOOD[:-3], 400),
    "followed by rubbish": (GOOD + b"rubbish", 400),
    "empty": (b"", 400),
    "plain": (b'{"name": "a"}', 400),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_compressed_body(name: str) -> None:
    """One that comes byte by byte too; one that breaks off is no body."""
    body, status = BODIES[name]
    for parts in ([body], [body[place : place + 1] for place in range(len(body))]):
        async with api_of(Users()) as api:
            assert (await call(api, "/users", parts, headers=GZIP)).status == status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonp"},
        JSON | {"content-encoding": "br"},
        JSON | {"content-encoding": "gzip, gzip"},
    ],
)
async def test_other_media_types_are_refused(headers: dict[str, str]) -> None:
    """A form that another site makes a browser send is none of ours."""
    async with client_of(api_of(Users())) as client:
        answer = await client.post("/users", content=b"{}", headers=headers)
        assert answer.status_code == 415
        fits = {"content-type": "Application/vnd.user+json; charset=utf-8"}
        assert (
            await client.post("/users", content=b'{"name":"a"}', headers=fits)
        ).status_code == 201


async def test_a_body_that_does_not_come_is_given_up() -> None:
    """The time is counted from piece to piece: a slow client may take long, a silent one not."""
    async with client_of(api_of(Users(), body_timeout=5)) as client:

        async def slow(seconds: float) -> AsyncIterator[bytes]:
            for part in (b'{"na', b'me":', b'"a"}'):
                await anyio.sleep(seconds)
                yield part

        late = await client.post("/users", content=slow(4), headers=JSON)
        assert late.status_code == 201
        silent = await client.post("/users", content=slow(6), headers=JSON)
        assert (silent.status_code, silent.headers["connection"]) == (408, "close")


async def test_more_items_than_a_batch_may_have() -> None:
    """A problem that says how many are allowed."""
    users = Users()
    async with client_of(api_of(users, max_items=3)) as client:
        many = {"items": [{"name": str(one)} for one in range(4)]}
        for path, body in (
            ("/users/batch", many),
            ("/users/batch-get", {"ids": ["1"] * 4}),
            ("/batch", {"operations": [{}] * 4}),
        ):
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()["type"]) == (413, "batch-too-large")
            assert (answer.json()["max_items"], answer.json()["max_bytes"]) == (3, 10 * 2**20)
        assert users.calls == []


async def test_an_item_that_is_too_large_fails_alone() -> None:
    """Its neighbours are done."""
    async with client_of(api_of(Users(), max_item_bytes=50)) as client:
        large = {"name": "a" * 50}
        answer = await client.post("/users/batch", json={"items": [large, {"name": "b"}]})
        assert [one["status"] for one in answer.json()["results"]] == [413, 201]
        assert answer.json()["results"][0]["error"]["code"] == "item_too_large"
        assert (await client.post("/users", json=large)).status_code == 413


async def test_what_is_nested_too_deeply_is_refused() -> None:
    """As an item, within one, and as the envelope: never 500."""
    deep = "[" * 200_000 + "]" * 200_000
    async with client_of(api_of(Users(), item_type=Any, update_type=Any)) as client:
        for body in (deep, f'{{"items": {deep}}}', f'{{"options": {deep}}}'):
            answer = await client.post("/users/batch", content=body, headers=JSON)
            assert answer.status_code in {400, 207}, body[:20]
        within = await client.post(
            "/users/batch", content=f'{{"items": [{deep}, 1]}}', headers=JSON
        )
        assert within.status_code in {207, 400}
        single = await client.post("/users", content=deep, headers=JSON)
        assert single.status_code in {400, 422}


async def test_a_rate_counts_items_and_not_requests() -> None:
    """Each principal has its own bucket; every answer says what is left of it."""
    async with client_of(api_of(Users(), rate=(10, 60))) as client:
        answer = await client.post(
            "/users/batch", json={"items": [{"name": str(one)} for one in range(8)]}
        )
        assert answer.headers["ratelimit-policy"] == '"default";q=10;w=60'
        assert answer.headers["ratelimit"] == '"default";r=2;t=48'
        limited = await client.post("/users/batch-get", json={"ids": ["1", "2", "3"]})
        assert (limited.status_code, limited.json()["type"]) == (429, "rate-limited")
        assert (limited.headers["retry-after"], limited.headers["ratelimit"]) == (
            "6",
            '"default";r=2;t=48',
        )
        assert (await client.get("/users/1")).headers["ratelimit"] == '"default";r=1;t=54'
        never = await client.post("/users/batch-get", json={"ids": ["1"] * 11})
        assert (never.status_code, never.json()["max_items"]) == (413, 10)
        other = await client.get("/users/1", headers={"authorization": "Bearer bob"})
        assert other.headers["ratelimit"] == '"default";r=9;t=6'
        await anyio.sleep(48)
        full = await client.post("/users/batch-get", json={"ids": ["1"] * 9})
        assert full.headers["ratelimit"] == '"default";r=0;t=60'


async def test_a_request_that_finds_no_room_is_told_to_come_again() -> None:
    """Nothing of it was begun. Of a batch that found room for some, the others are told."""
    end = anyio.Event()

    async def create(items: list[User]) -> list[User]:
        await end.wait()
        return items

    async with client_of(api_of(Users(), create=create, max_items=2)) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(
                    lambda: client.post("/users/batch", json={"items": [{"name": "a"}] * 2})
                )
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(lambda: client.post("/users", json={"name": "a"}))
            await anyio.wait_all_tasks_blocked()
            answers: list[Any] = []

            async def half() -> None:
                answers.append(
                    await client.post("/users/batch", json={"items": [{"name": "a"}] * 2})
                )

            tasks.start_soon(half)
            await anyio.wait_all_tasks_blocked()
            for path, body in (
                ("/users", {"name": "a"}),
                ("/users/batch", {"items": [{"name": "a"}]}),
            ):
                full = await client.post(path, json=body)
                assert (full.status_code, full.json()["type"]) == (503, "full")
                assert full.headers["retry-after"] == "1"
            end.set()
        assert [one["status"] for one in answers[0].json()["results"]] == [201, 503]
        assert answers[0].json()["results"][1]["error"]["retryable"] is True


async def test_nothing_that_a_client_sends_breaks_a_header_or_a_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """CR and LF in ids, references and codes come back as JSON, and in links percent-encoded."""
    evil = "x\r\nset-cookie: a=b"
    users = Users()
    async with client_of(api_of(users)) as client:
        made = await client.post("/users", json={"id": evil, "name": "a"})
        assert made.headers["location"] == "/users/x%0D%0Aset-cookie%3A%20a%3Db"
        assert "set-cookie" not in made.headers
        read = await client.get(made.headers["location"])
        assert read.json()["id"] == evil
        operation = {"method": evil, "ref": evil}
        answer = await client.post(
            "/users/batch", content=json.dumps({"operations": [operation]}), headers=JSON
        )
        assert answer.status_code == 207
        await client.post("/users", json={"name": "boom", "id": evil})
    ours = [one for one in caplog.records if one.name.startswith("microbatch")]
    assert ours
    assert all("set-cookie" not in one.getMessage() for one in ours)
