"""Keys of what becomes a job: it is made once, and who comes again is told how it is now."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from http_jobs_support import shop_of
from http_support import User

from microbatch import current_batch
from microbatch._pure.standing import Standing
from microbatch.durable import DurableQueue
from microbatch.durable.answers import QueueAnswers

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

pytestmark = pytest.mark.anyio

TEA = {"items": [{"name": "tea"}, {"name": "milk"}], "options": {"async": True}}
ROWS = b'{"name": "tea"}\n{"name": "milk"}\n'
NDJSON = {"content-type": "application/x-ndjson"}
KEY = {"idempotency-key": '"k"'}


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The durable mode needs asyncio."""
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


async def test_who_comes_again_is_told_how_the_job_is_now(path: Path) -> None:
    """A stored answer would say for ever that it has not begun."""
    async with shop_of(path) as shop:
        shop.users.hold()
        first = await shop.ann.post("/users/batch", json=TEA, headers=KEY)
        assert first.status_code == 202
        assert first.json()["status"] in {"pending", "processing"}  # the worker may be quick
        shop.users.free.set()
        await shop.ended(first.json())
        again = await shop.ann.post("/users/batch", json=TEA, headers=KEY)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["location"] == first.headers["location"]
        assert (again.status_code, again.json()["status"]) == (202, "completed")
        other = await shop.ann.post("/users/batch", json={"items": []}, headers=KEY)
        assert other.status_code == 422
        bobs = await shop.bob.post("/users/batch", json=TEA, headers=KEY)
        assert bobs.json()["id"] != first.json()["id"]
        assert len((await shop.ann.get("/jobs")).json()["jobs"]) == 1


async def test_a_job_that_was_deleted_is_not_made_again(path: Path) -> None:
    """What it was answered with is all that is left to tell."""
    async with shop_of(path) as shop:
        first = await shop.ann.post("/users/batch", json=TEA, headers=KEY)
        await shop.ended(first.json())
        assert (await shop.ann.delete(first.headers["location"])).status_code == 204
        again = await shop.ann.post("/users/batch", json=TEA, headers=KEY)
        assert (again.status_code, again.json()) == (202, first.json())
        assert len(shop.users.calls) == 1


async def test_a_job_is_made_once_even_if_its_answer_was_lost(path: Path, monkeypatch: Any) -> None:
    """The process died between the two: the job has the key too, and compares the content."""

    async def forget(*_: object) -> None:
        pass

    async with shop_of(path) as shop:
        with monkeypatch.context() as patch:
            patch.setattr(QueueAnswers, "finish", forget)
            first = await shop.ann.post("/users/batch", json=TEA, headers=KEY)
        await shop.queue.aclose()
    async with shop_of(path) as shop:
        again = await shop.ann.post("/users/batch", json=TEA, headers=KEY)
        assert "idempotent-replayed" not in again.headers
        assert again.json()["id"] == first.json()["id"]
    with_other = TEA | {"items": [{"name": "tea"}]}
    async with shop_of(path) as shop:
        monkeypatch.setattr(QueueAnswers, "begin", _free)
        other = await shop.ann.post("/users/batch", json=with_other, headers=KEY)
        assert (other.status_code, other.json()["type"]) == (422, "idempotency-key-reused")


async def _free(self: QueueAnswers, key: str, fingerprint: bytes) -> Any:
    del self, key, fingerprint
    return Standing(0)


def said_of(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


async def import_rows(client: httpx.AsyncClient, body: bytes, **more: str) -> httpx.Response:
    return await client.post("/users/import", content=body, headers=NDJSON | KEY | more)


async def test_an_import_is_known_by_what_is_said_of_its_body(path: Path) -> None:
    """The body is not held: with a digest another one is found out, without it cannot be."""
    async with shop_of(path) as shop:
        digest = {"content-digest": said_of(ROWS)}
        first = await import_rows(shop.ann, ROWS, **digest)
        assert first.status_code == 202
        await shop.ended(first.json())
        again = await import_rows(shop.ann, ROWS, **digest)
        assert (again.status_code, again.json()["status"]) == (202, "completed")
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["connection"] == "close"
        other = await import_rows(shop.ann, ROWS * 2, **{"content-digest": said_of(ROWS * 2)})
        assert (other.status_code, other.headers["connection"]) == (422, "close")
        assert (await import_rows(shop.ann, ROWS)).status_code == 422
        csv = await import_rows(shop.ann, ROWS, **digest | {"content-type": "text/csv"})
        assert csv.status_code == 422
        assert sorted(shop.users.rows) == ["1", "2"]


async def test_a_known_key_is_answered_before_an_import_is_read(path: Path) -> None:
    """Gigabytes that are not needed are not taken in."""
    async with shop_of(path) as shop:
        first = await import_rows(shop.ann, ROWS)
        sent: list[Any] = []

        async def receive() -> Any:
            assert len(sent) == 2, "the body was read before the answer"
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = NDJSON | KEY | {"authorization": "Bearer ann"}
        scope = {
            "type": "http", "method": "POST", "path": "/users/import", "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        await shop.api(scope, receive, send)
        assert (b"connection", b"close") in sent[0]["headers"]
        assert json.loads(sent[1]["body"])["id"] == first.json()["id"]


async def test_an_import_that_failed_leaves_its_key_free(path: Path) -> None:
    """A body that is not what its digest says is sent again under the same key."""
    async with shop_of(path) as shop:
        digest = {"content-digest": said_of(ROWS)}
        broken = await import_rows(shop.ann, ROWS[:-10], **digest)
        assert broken.status_code == 400
        assert (await import_rows(shop.ann, ROWS, **digest)).status_code == 202


async def test_each_item_of_a_job_carries_a_key_of_its_own(path: Path) -> None:
    """At least once is exactly once for who writes an upsert by it."""
    seen: list[Any] = []

    async def create(items: list[User]) -> list[User]:
        batch = current_batch()
        assert batch is not None
        assert batch.keys is not None
        seen.extend(zip(batch.keys, [item.name for item in items], strict=True))
        return items

    async with shop_of(path, handler=create) as shop:
        many = {"items": [{"name": str(n)} for n in range(5)], "options": {"async": True}}
        sent = await shop.ann.post("/users/batch", json=many, headers=KEY)
        await shop.ended(sent.json())
        keys = [key for key, _ in sorted(seen, key=lambda pair: pair[1])]
        before = keys[0].removesuffix(":0")
        assert keys == [f"{before}:{number}" for number in range(5)]
        assert len(before) == 64
        seen.clear()
        await shop.ended(await shop.job(2))
        assert {key for key, _ in seen} == {None}


async def test_the_store_may_be_another_queue_than_the_job_s(path: Path, tmp_path: Path) -> None:
    """One file of answers for many files of items."""
    async with (
        DurableQueue(tmp_path / "answers.db", item_type=User) as answers,
        shop_of(path, idempotency_store=answers) as shop,
    ):
        first = await shop.ann.post("/users/batch", json=TEA, headers=KEY)
        again = await shop.ann.post("/users/batch", json=TEA, headers=KEY)
        assert again.json()["id"] == first.json()["id"]
        assert again.headers["idempotent-replayed"] == "true"
