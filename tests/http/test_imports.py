"""Imports: rows of NDJSON and CSV become a job while they come in, whole or not at all."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_jobs_support import Wire, shop_of
from http_support import User

from microbatch import ItemError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from http_jobs_support import Shop

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real_time,
    pytest.mark.parametrize("backend_name", ["asyncio"], indirect=True),
]

NDJSON = {"content-type": "application/x-ndjson"}
CSV = {"content-type": "text/csv; charset=utf-8"}


def lines(count: int) -> bytes:
    return b"".join(b'{"name":"n%d","age":%d}\n' % (n, n) for n in range(count))


async def imported(shop: Shop, body: Any, headers: dict[str, str] = NDJSON, **query: Any) -> Any:
    """Import something and wait for its end."""
    sent = await shop.ann.post("/users/import", content=body, headers=headers, params=query)
    assert sent.status_code == 202, sent.text
    return await shop.ended(sent.json())


async def nothing_is_left(shop: Shop) -> None:
    """Neither a job that can be seen, nor an item that waits or comes in."""
    assert (await shop.ann.get("/jobs")).json()["jobs"] == []
    while (await shop.queue.stats()).depth:  # noqa: ASYNC110 - what was staged goes in steps
        await anyio.sleep(0.01)
    assert shop.users.calls == []


async def test_rows_come_in_as_a_job(tmp_path: Path) -> None:
    """Accepted when all are on the disk; a row that is none fails alone, with its line."""
    body = b'{"name":"a","age":3}\n\n{"name":5}\nrubbish\r\n{"name":"b"}'
    async with shop_of(tmp_path / "q") as shop:
        sent = await shop.ann.post("/users/import", content=body, headers=NDJSON)
        assert sent.status_code == 202
        job = sent.json()
        assert sent.headers["location"] == job["statusUrl"] == f"/jobs/{job['jobId']}"
        done = await shop.ended(job)
        assert (done["total"], done["outcome"]) == (4, "partially_succeeded")
        assert done["errors"] == {"invalid_item": 2}
        errors = (await shop.ann.get(job["links"]["errors"])).json()["results"]
        assert [(one["index"], one["status"]) for one in errors] == [(1, 422), (2, 422)]
        assert errors[0]["error"]["message"] == "line 3: Expected `str`, got `int` - at `$.name`"
        assert errors[1]["error"]["message"].startswith("line 4: JSON is malformed")
        assert [(user.name, user.age) for user in shop.users.rows.values()] == [("a", 3), ("b", 0)]


async def test_csv_and_gzip_come_in_too(tmp_path: Path) -> None:
    """Quotes, line ends within cells and a byte order mark included, wherever the pieces are cut."""
    text = '\ufeffname,age\r\n"a ""b""\nc",7\r\nd,\r\ne,x\r\n'.encode()
    async with shop_of(tmp_path / "q") as shop:
        for body, headers in (
            (text, CSV),
            (gzip.compress(text), CSV | {"content-encoding": "gzip"}),
            (
                gzip.compress(text[:20]) + gzip.compress(text[20:]),
                CSV | {"content-encoding": "gzip"},
            ),
        ):

            async def pieces(body: bytes = body) -> AsyncIterator[bytes]:
                for at in range(0, len(body), 7):
                    yield body[at : at + 7]

            done = await imported(shop, pieces(), headers)
            assert (done["total"], done["progress"]["succeeded"]) == (3, 2)
            assert [(user.name, user.age) for user in shop.users.rows.values()] == [
                ('a "b"\nc', 7), ("d", 0),
            ]  # fmt: skip
            shop.users.rows.clear()
        done = await imported(
            shop, gzip.compress(lines(1_500)), NDJSON | {"content-encoding": "gzip"}
        )
        assert (done["total"], done["outcome"]) == (1_500, "succeeded")


async def test_an_import_without_rows_is_an_empty_job(tmp_path: Path) -> None:
    """It has ended, and well."""
    async with shop_of(tmp_path / "q") as shop:
        for body, headers in ((b"", NDJSON), (b"name,age\n", CSV)):
            done = await imported(shop, body, headers)
            assert (done["total"], done["outcome"]) == (0, "succeeded")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 415),
        ({"content-type": "text/csv; charset=latin-1"}, 415),
        ({"content-type": ""}, 415),
        (NDJSON | {"content-encoding": "br"}, 415),
        (NDJSON | {"content-digest": "rubbish"}, 400),
    ],
)
async def test_what_cannot_be_read_is_refused_before_it_is_read(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    """And the connection ends: nobody reads the gigabytes that follow."""
    async with shop_of(tmp_path / "q") as shop:
        wire = Wire("POST", "/users/import", **{k.replace("-", "_"): v for k, v in headers.items()})
        await wire.run(shop.api)
        assert wire.status == status
        assert wire.headers["connection"] == "close"
        await nothing_is_left(shop)


@pytest.mark.parametrize("query", ["?atomic=true", "?mode=some", "?ordered=yes", "?stop_on_eror=1"])
async def test_an_option_that_cannot_be_meant_is_400(tmp_path: Path, query: str) -> None:
    """A misspelt one must not run without it."""
    async with shop_of(tmp_path / "q") as shop:
        sent = await shop.ann.post(f"/users/import{query}", content=lines(1), headers=NDJSON)
        assert (sent.status_code, sent.json()["type"]) == (400, "invalid-parameter")
        await nothing_is_left(shop)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"\xff\xfen\x00", NDJSON),
        (b"name,name\nb,c\n", CSV),
        (b"\n,\nb,c\n", CSV),
        (gzip.compress(lines(1000))[:-9], NDJSON | {"content-encoding": "gzip"}),
        (b"no gzip", NDJSON | {"content-encoding": "gzip"}),
    ],
)
async def test_a_body_that_is_broken_as_a_whole_is_400(tmp_path: Path, body, headers) -> None:
    """What came before the fault leaves nothing."""
    async with shop_of(tmp_path / "q") as shop:
        sent = await shop.ann.post("/users/import", content=body, headers=headers)
        assert sent.status_code == 400
        await nothing_is_left(shop)


async def test_mode_reject_tells_all_bad_rows_and_makes_nothing(tmp_path: Path) -> None:
    """As for a batch."""
    body = b'{"name":"a"}\n{"name":1}\n{}\n'
    async with shop_of(tmp_path / "q") as shop:
        sent = await shop.ann.post("/users/import?mode=reject", content=body, headers=NDJSON)
        assert (sent.status_code, sent.json()["type"]) == (422, "invalid-items")
        assert [(one["index"], one["code"]) for one in sent.json()["errors"]] == [
            (1, "invalid_item"), (2, "invalid_item"),
        ]  # fmt: skip
        assert sent.json()["errors"][1]["message"] == (
            "line 3: Object missing required field `name`"
        )
        await nothing_is_left(shop)


async def test_options_are_the_jobs(tmp_path: Path) -> None:
    """One batch at a time, and the first failure ends it."""
    body = b'{"name":"a"}\n{"name":"a"}\n{"name":"b"}\n'
    async with shop_of(tmp_path / "q", of_queue={"max_batch_size": 2}) as shop:
        done = await imported(shop, body, ordered="true", stop_on_error="1")
        assert (done["outcome"], done["progress"]["cancelled"]) == ("cancelled", 1)


async def test_the_collections_own_checks_see_the_rows(tmp_path: Path) -> None:
    """What they refuse fails alone; a principal who may not import anything is 403."""

    def validate(user: User) -> None:
        if user.age > 5:
            raise ItemError("too old")
        if user.age == 5:
            raise RuntimeError("secret")

    async def authorize_items(
        principal: Any, operation: str, items: list[User]
    ) -> list[Any] | None:
        assert operation == "create"
        if principal.id == "bob":
            raise PermissionError
        return [ItemError("not yours") if item.age == 1 else None for item in items]

    async with shop_of(tmp_path / "q", validate=validate, authorize_items=authorize_items) as shop:
        done = await imported(shop, lines(8) + b"rubbish\n")
        assert (done["progress"]["succeeded"], done["progress"]["failed"]) == (4, 5)
        errors = (await shop.ann.get(done["links"]["errors"])).json()["results"]
        assert [one["error"]["message"] for one in errors][:4] == [
            "not yours", "it could not be checked", "too old", "too old",
        ]  # fmt: skip
        sent = await shop.bob.post("/users/import", content=lines(1), headers=NDJSON)
        assert sent.status_code == 403
        assert (await shop.bob.get("/jobs")).json()["jobs"] == []


# Bounds


async def test_a_row_of_too_many_bytes_fails_alone(tmp_path: Path) -> None:
    """As an item of a batch does."""
    long = b'{"name":"' + b"x" * 200 + b'"}\n'
    async with shop_of(tmp_path / "q", max_item_bytes=100) as shop:
        done = await imported(shop, lines(2) + long)
        assert (done["progress"]["succeeded"], done["progress"]["failed"]) == (2, 1)
        done = await imported(shop, b"name\nx\n" + b"y" * 200 + b"\n", CSV)
        assert (done["progress"]["succeeded"], done["progress"]["failed"]) == (1, 1)
        errors = (await shop.ann.get(done["links"]["errors"])).json()["results"]
        assert errors[0]["error"]["message"] == (
            "line 3: an item may have at most 100 bytes, this one has more"
        )


@pytest.mark.parametrize(
    ("settings", "body", "headers"),
    [
        ({"max_import_items": 99}, lines(100), NDJSON),
        ({"max_import_bytes": 1_000}, lines(100), NDJSON),
        (
            {"max_import_bytes": 100_000},
            gzip.compress(b"\n" * 10_000_000),
            NDJSON | {"content-encoding": "gzip"},
        ),
    ],
)
async def test_more_than_an_import_may_have_is_413_and_leaves_nothing(
    tmp_path: Path, settings: dict[str, int], body: bytes, headers: dict[str, str]
) -> None:
    """Counted while it is read and inflated: a bomb, and a stream without a length, are found out in time."""

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 500):
            yield body[at : at + 500]

    async with shop_of(tmp_path / "q", **settings) as shop:
        sent = await shop.ann.post("/users/import", content=pieces(), headers=headers)
        assert (sent.status_code, sent.json()["type"]) == (413, "batch-too-large")
        await nothing_is_left(shop)


async def test_the_limits_of_batches_are_not_those_of_imports(tmp_path: Path) -> None:
    """An import is what is larger than memory."""
    async with shop_of(
        tmp_path / "q", max_items=1, max_job_items=1, max_body_bytes=10, sync_max_items=1
    ) as shop:
        assert (await imported(shop, lines(50)))["total"] == 50


async def test_one_principals_part_of_the_queue_bounds_an_import(tmp_path: Path) -> None:
    """It ends when it is over, in the middle of the stream, and leaves nothing."""
    async with shop_of(tmp_path / "q", owner_share=0.5, of_queue={"max_depth": 20}) as shop:
        sent = await shop.ann.post("/users/import", content=lines(11), headers=NDJSON)
        assert (sent.status_code, sent.json()["type"]) == (429, "too-many-items")
        await nothing_is_left(shop)
        assert (await imported(shop, lines(10)))["total"] == 10
        assert (await imported(shop, lines(10)))["total"] == 10  # the first ones wait no longer


async def test_rows_count_against_the_rate(tmp_path: Path) -> None:
    """Operations do, not requests."""
    async with shop_of(tmp_path / "q", rate=(10, 3600)) as shop:
        assert (await imported(shop, lines(6)))["total"] == 6
        sent = await shop.ann.post("/users/import", content=lines(6), headers=NDJSON)
        assert (sent.status_code, "retry-after" in sent.headers) == (429, True)
        sent = await shop.bob.post("/users/import", content=lines(11), headers=NDJSON)
        assert sent.status_code == 413
        assert (await shop.bob.get("/jobs")).json()["jobs"] == []


async def test_a_full_queue_refuses_an_import(tmp_path: Path) -> None:
    """503: later there is room."""
    async with shop_of(tmp_path / "q", owner_share=1.0, of_queue={"max_depth": 10}) as shop:
        await shop.queue.pause()
        await shop.queue.enqueue_many([User(name=str(n)) for n in range(8)])
        sent = await shop.ann.post("/users/import", content=lines(5), headers=NDJSON)
        assert (sent.status_code, sent.json()["type"]) == (503, "queue-full")


# Clients


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """Half of a file is no import."""
    async with shop_of(tmp_path / "q") as shop:
        wire = Wire("POST", "/users/import", content_type="application/x-ndjson")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.run, shop.api)
            await wire.body(lines(6_000), more=True)  # some of it is on the disk
            assert (await shop.ann.get("/jobs")).json()["jobs"] == []
            await wire.leave()
        assert wire.answer == []
        await nothing_is_left(shop)
        assert (await imported(shop, lines(3)))["total"] == 3


async def test_a_client_that_stops_sending_is_given_up(tmp_path: Path) -> None:
    """A place is not held for ever by who says nothing."""
    async with shop_of(tmp_path / "q", body_timeout=0.05) as shop:
        wire = Wire("POST", "/users/import", content_type="application/x-ndjson")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.run, shop.api)
            await wire.body(lines(10), more=True)
        assert (wire.status, wire.headers["connection"]) == (408, "close")
        await nothing_is_left(shop)


async def test_an_import_may_take_longer_than_a_request(tmp_path: Path) -> None:
    """As long as its body goes on coming: the other requests' time is not its own."""
    async with shop_of(tmp_path / "q", timeout=0.05) as shop:
        wire = Wire("POST", "/users/import", content_type="application/x-ndjson")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.run, shop.api)
            for _ in range(4):
                await wire.body(lines(1), more=True)
                await anyio.sleep(0.05)
            await wire.body(b"")
        assert wire.status == 202
        assert json.loads(wire.content)["total"] == 4


async def test_no_more_is_read_than_can_be_stored(tmp_path: Path) -> None:
    """Back-pressure: while the disk is busy the client waits, and memory does not grow."""
    async with shop_of(tmp_path / "q") as shop:
        await shop.queue.pause()
        other = sqlite3.connect(tmp_path / "q", timeout=60, isolation_level=None)
        received, is_locked = 0, anyio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal received
            received += 1
            if received == 2:  # the job has begun: now nobody else can write
                other.execute("BEGIN IMMEDIATE")
                is_locked.set()
            await anyio.lowlevel.checkpoint()
            return {"type": "http.request", "body": lines(2_000), "more_body": received < 40}

        wire = Wire("POST", "/users/import", content_type="application/x-ndjson")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shop.api, wire.scope, receive, wire.send)
            await is_locked.wait()
            await anyio.sleep(0.3)
            assert received <= 4  # a transaction's worth of 5,000 rows
            other.execute("ROLLBACK")
        other.close()
        wire.close()
        assert (wire.status, json.loads(wire.content)["total"]) == (202, 80_000)


# Digests and webhooks


@pytest.mark.parametrize("name", ["sha-256", "sha-512"])
async def test_a_body_is_compared_with_its_digest(tmp_path: Path, name: str) -> None:
    """What was sent, not what it inflates to; a wrong one leaves nothing."""

    def digest(data: bytes) -> str:
        value = hashlib.new(name.replace("-", ""), data).digest()
        return f"unixsum=:AAAA:, {name}=:{base64.b64encode(value).decode()}:"

    zipped = gzip.compress(lines(20))
    headers = NDJSON | {"content-encoding": "gzip"}
    async with shop_of(tmp_path / "q") as shop:
        for wrong in (digest(lines(20)), f"{name}=:AAAA:", f"{name}=:=A=:"):
            sent = await shop.ann.post(
                "/users/import", content=zipped, headers=headers | {"content-digest": wrong}
            )
            assert (sent.status_code, sent.json()["type"]) == (400, "digest-mismatch")
        await nothing_is_left(shop)
        done = await imported(shop, zipped, headers | {"content-digest": digest(zipped)})
        assert done["total"] == 20


async def test_an_import_under_a_key_that_is_known_is_not_read(tmp_path: Path) -> None:
    """It is answered with the job as it is now; the connection ends, for the body is still there."""
    key = {"idempotency_key": '"k"', "content_type": "application/x-ndjson"}
    async with shop_of(tmp_path / "q") as shop:
        first = Wire("POST", "/users/import", **key)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.run, shop.api)
            await first.body(lines(3))
        job = json.loads(first.content)
        await shop.ended(job)
        again = Wire("POST", "/users/import", **key)  # no body comes: nobody waits for one
        await again.run(shop.api)
        assert (again.status, again.headers["connection"]) == (202, "close")
        assert again.headers["idempotent-replayed"] == "true"
        now = json.loads(again.content)
        assert (now["id"], now["status"]) == (job["id"], "completed")
        other = Wire("POST", "/users/import", **(key | {"content_digest": "sha-256=:AAAA:"}))
        await other.run(shop.api)
        assert (other.status, other.headers["connection"]) == (422, "close")


async def test_an_import_that_failed_frees_its_key(tmp_path: Path) -> None:
    """The client mends the file and sends it again."""
    headers = NDJSON | {"idempotency-key": "k"}
    async with shop_of(tmp_path / "q", max_import_items=2) as shop:
        sent = await shop.ann.post("/users/import", content=lines(3), headers=headers)
        assert sent.status_code == 413
        assert (await imported(shop, lines(2), headers))["total"] == 2


async def test_an_import_needs_a_queue(tmp_path: Path) -> None:
    """Without one there is no such path."""
    async with shop_of(tmp_path / "q") as shop:
        assert (await shop.ann.get("/users/import")).status_code in {404, 405}
    async with shop_of(tmp_path / "q", queue=None) as shop:
        sent = await shop.ann.post("/users/import", content=lines(1), headers=NDJSON)
        assert sent.status_code in {404, 405}
        assert (await shop.ann.get("/jobs")).status_code == 404
