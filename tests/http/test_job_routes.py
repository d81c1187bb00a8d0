"""Jobs over HTTP: seen, waited for, listed, stopped, tried again, removed; each by its owner alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_jobs_support import UNKNOWN, clients_of, shop_of
from http_support import User, Users, authorize
from openapi_spec_validator import validate

from microbatch import ItemError
from microbatch.durable import DurableBatcher
from microbatch.http import BatchAPI

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real_time,
    pytest.mark.parametrize("backend_name", ["asyncio"], indirect=True),
]

ROUTES = [
    ("GET", ""), ("GET", "?wait=1"), ("GET", "/results"), ("GET", "/errors"), ("GET", "/events"), ("POST", "/cancel"),
    ("POST", "/pause"), ("POST", "/resume"), ("POST", "/retry"), ("DELETE", ""),
]  # fmt: skip


async def test_a_foreign_job_answers_byte_for_byte_like_one_that_never_was(tmp_path: Path) -> None:
    """Else who guesses ids learns which there are."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job()
        await shop.ended(job)
        for method, path in ROUTES:
            foreign = await shop.bob.request(method, f"/jobs/{job['id']}{path}")
            unknown = await shop.bob.request(method, f"/jobs/{UNKNOWN}{path}")
            rubbish = await shop.bob.request(method, f"/jobs/x'--{path}")
            assert foreign.status_code == unknown.status_code == rubbish.status_code == 404, path
            assert foreign.content == unknown.content == rubbish.content
            assert foreign.headers == unknown.headers == rubbish.headers
        assert (await shop.ann.get(f"/jobs/{job['id']}")).status_code == 200
        assert (await shop.bob.get("/jobs")).json() == {"jobs": [], "cursor": None}


async def test_nobody_sees_jobs_without_saying_who(tmp_path: Path) -> None:
    """No route of jobs is public."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job()
        for method, path in ROUTES:
            sent = await shop.ann.request(
                method, f"/jobs/{job['id']}{path}", headers={"authorization": ""}
            )
            assert (sent.status_code, sent.headers["www-authenticate"]) == (401, "Bearer")


async def test_neither_owner_nor_key_nor_metadata_of_a_job_is_shown(tmp_path: Path) -> None:
    """They are the application's."""
    async with shop_of(tmp_path / "q") as shop:
        await shop.queue.enqueue_job(
            [User(name="a")], owner="ann", key="a secret key", metadata={"text": "secret"}
        )
        (job,) = (await shop.ann.get("/jobs")).json()["jobs"]
        found = await shop.ann.get(job["links"]["self"])
        assert "secret" not in found.text
        assert "ann" not in found.text
        assert set(found.json()) == {
            "id", "status", "life", "outcome", "paused", "total", "progress", "errors", "rate", "eta", "created_at",
            "started_at", "ended_at", "expires_at", "retry_of", "links",
        }  # fmt: skip


async def test_a_client_that_knows_the_state_gets_304(tmp_path: Path) -> None:
    """A poll that finds nothing new costs no body; the tag does not follow the clock."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job()
        await shop.ended(job)
        found = await shop.ann.get(job["links"]["self"])
        tag = found.headers["etag"]
        assert tag.startswith('W/"')
        assert found.headers["cache-control"] == "private, no-cache"
        for known in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
            same = await shop.ann.get(job["links"]["self"], headers={"If-None-Match": known})
            assert (same.status_code, same.content) == (304, b"")
            assert same.headers["etag"] == tag
        other = await shop.ann.get(job["links"]["self"], headers={"If-None-Match": '"other"'})
        assert other.status_code == 200


async def test_a_long_poll_ends_when_the_job_does(tmp_path: Path) -> None:
    """One request in place of many."""
    async with shop_of(tmp_path / "q") as shop:
        shop.users.hold()
        job = await shop.job()
        async with anyio.create_task_group() as tasks:

            async def poll() -> None:
                assert (await shop.ended(job))["outcome"] == "succeeded"

            tasks.start_soon(poll)
            while not shop.users.calls and not (await shop.queue.stats()).claimed:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            shop.users.free.set()


async def test_a_long_poll_of_a_known_state_ends_as_soon_as_it_is_another(tmp_path: Path) -> None:
    """A progress bar moves when there is progress, not when it was asked for."""
    async with shop_of(tmp_path / "q") as shop:
        await shop.queue.pause()
        job = await shop.job()
        found = await shop.ann.get(job["links"]["self"])
        known = {"If-None-Match": found.headers["etag"]}
        same = await shop.ann.get(job["links"]["self"], params={"wait": "0.05"}, headers=known)
        assert same.status_code == 304
        async with anyio.create_task_group() as tasks:

            async def poll() -> None:
                other = await shop.ann.get(job["links"]["self"], params={"wait": 30}, headers=known)
                assert (other.status_code, other.json()["paused"]) == (200, True)
                assert other.json()["life"] == "queued"

            tasks.start_soon(poll)
            await anyio.lowlevel.checkpoint()
            assert (await shop.ann.post(job["links"]["self"] + "/pause")).status_code == 202
        await shop.queue.resume()


@pytest.mark.parametrize(
    ("target", "parameter"),
    [
        ("?wait=x", "wait"), ("?wait=-1", "wait"), ("?wait=", "wait"), ("?wait=1e9", "wait"), ("?wait=nan", "wait"),
        ("?weight=1", "weight"), ("/results?limit=0", "limit"), ("/results?limit=1001", "limit"),
        ("/results?limit=x", "limit"), ("/results?limit=٣", "limit"), ("/results?kind=good", "kind"),
        ("/results?cursor=x", "cursor"), ("/results?cursor=" + "A" * 9000, "cursor"), ("/errors?kind=failed", "kind"),
        ("/errors?cursor=AAAA", "cursor"), ("/events?x=1", "x"), ("/../jobs?life=dead", None),
    ],
)  # fmt: skip
async def test_a_parameter_that_cannot_be_meant_is_400(
    tmp_path: Path, target: str, parameter
) -> None:
    """By name; what is not known is not passed over."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job(1)
        if parameter is None:
            found, parameter = await shop.ann.get("/jobs?life=dead"), "life"
        else:
            found = await shop.ann.get(f"/jobs/{job['id']}{target}")
        assert (found.status_code, found.json().get("parameter")) == (400, parameter)
        assert found.json()["type"] == "invalid-parameter"


# Lists


async def test_jobs_of_all_queues_are_paged_through_by_one_cursor(tmp_path: Path) -> None:
    """The newest first, each once, and nobody else's."""
    users = Users()
    async with (
        DurableBatcher(tmp_path / "a", users.create, item_type=User) as first,
        DurableBatcher(tmp_path / "b", users.create, item_type=User) as second,
        DurableBatcher(tmp_path / "a", users.create, item_type=User, queue="c") as third,
    ):
        api = BatchAPI(authorize=authorize)
        for name, queue in (("users", first), ("more", second), ("same", first), ("others", third)):
            api.collection(name, item_type=User, queue=queue)
        made = []
        for n in range(12):
            queue = (first, first, second)[n % 3]
            made.append((await queue.enqueue_job([], owner="ann")).id)
            await queue.enqueue_job([], owner="bob")
        async with api, clients_of(api) as (ann, bob):
            for limit in (1, 2, 5, 12, 100):
                seen: list[str] = []
                parameters: dict[str, Any] = {"limit": limit, "life": "ended"}
                while True:
                    page = (await ann.get("/jobs", params=parameters)).json()
                    assert len(page["jobs"]) <= limit
                    seen += [job["id"] for job in page["jobs"]]
                    if page["cursor"] is None:
                        break
                    parameters["cursor"] = page["cursor"]
                assert seen == made[::-1]
            page = (await ann.get("/jobs", params={"limit": 3})).json()
            foreign = await bob.get("/jobs", params={"cursor": page["cursor"]})
            other = await ann.get("/jobs", params={"cursor": page["cursor"], "life": "ended"})
            assert (foreign.status_code, other.status_code) == (400, 400)
            assert (await ann.get("/jobs", params={"life": "queued"})).json()["jobs"] == []
            api.collection(
                "last",
                item_type=User,
                queue=DurableBatcher(tmp_path / "d", users.create, item_type=User),
            )
            changed = await ann.get("/jobs", params={"cursor": page["cursor"]})
            assert (changed.status_code, changed.json()["parameter"]) == (400, "cursor")


# Results


async def test_results_are_paged_through(tmp_path: Path) -> None:
    """In order, by kind if that is wanted; a cursor is its owner's and its job's."""
    async with shop_of(tmp_path / "q") as shop:
        items = [{"name": "boom" if n % 3 == 1 else f"n{n}"} for n in range(10)]
        job, other = await shop.job(items=items), await shop.job(2)
        await shop.ended(job)
        await shop.ended(other)
        seen: list[Any] = []
        parameters: dict[str, Any] = {"limit": 3}
        while True:
            page = (await shop.ann.get(job["links"]["results"], params=parameters)).json()
            seen += page["results"]
            if page["cursor"] is None:
                break
            parameters["cursor"] = page["cursor"]
            again = await shop.ann.get(other["links"]["results"], params=parameters)
            assert again.status_code == 400
        assert [one["index"] for one in seen] == list(range(10))
        assert seen[0] | {"data": None} == {
            "index": 0, "id": seen[0]["data"]["id"], "ref": None, "kind": "succeeded", "success": True, "status": 201,
            "data": None,
        }  # fmt: skip
        failed = (await shop.ann.get(job["links"]["errors"])).json()["results"]
        by_kind = await shop.ann.get(job["links"]["results"], params={"kind": "failed"})
        assert failed == by_kind.json()["results"] == [one for one in seen if not one["success"]]
        assert [one["index"] for one in failed] == [1, 4, 7]
        error = failed[0]["error"]
        assert (error["code"], error["message"]) == (
            "internal_error",
            f"internal error in job {job['id']}",
        )
        assert "secret" not in by_kind.text


async def test_all_results_come_as_ndjson_if_that_is_asked_for(tmp_path: Path) -> None:
    """A line each, over as many pages as it takes."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job(1_203)
        await shop.ended(job)
        for accept in ("application/x-ndjson", "text/html, application/jsonl;q=0.5"):
            found = await shop.ann.get(job["links"]["results"], headers={"accept": accept})
            assert found.headers["content-type"].startswith("application/x-ndjson")
            rows = [json.loads(line) for line in found.text.splitlines()]
            assert [row["index"] for row in rows] == list(range(1_203))
        found = await shop.ann.get(
            job["links"]["results"], headers={"accept": "application/x-ndjson;q=0"}
        )
        assert found.headers["content-type"] == "application/json"
        found = await shop.ann.get(job["links"]["errors"], headers={"accept": "application/jsonl"})
        assert found.content == b""


async def test_results_past_their_time_are_410(tmp_path: Path) -> None:
    """The job can still be seen: they were there, and are gone."""
    async with shop_of(tmp_path / "q", of_queue={"result_ttl": 0}) as shop:
        job = await shop.job(1)
        await shop.ended(job)
        for path in ("results", "errors"):
            found = await shop.ann.get(job["links"][path])
            assert (found.status_code, found.json()["type"]) == (410, "results-expired")
        assert (await shop.ann.get(job["links"]["self"])).status_code == 200


# Acting


async def test_a_job_is_paused_resumed_and_cancelled(tmp_path: Path) -> None:
    """202 also where nothing changes; but what has ended is neither paused nor resumed."""
    async with shop_of(tmp_path / "q", of_queue={"max_batch_size": 1}) as shop:
        await shop.queue.pause()
        job = await shop.job(3)
        own = job["links"]["self"]
        for action, paused in (
            ("pause", True),
            ("pause", True),
            ("resume", False),
            ("pause", True),
        ):
            done = await shop.ann.post(f"{own}/{action}")
            assert (done.status_code, done.json()["paused"]) == (202, paused)
        await shop.queue.resume()
        for _ in range(2):
            assert (await shop.ann.post(job["links"]["cancel"])).status_code == 202
        done = await shop.ended(job)
        assert (done["status"], done["outcome"], done["progress"]["cancelled"]) == (
            "failed", "cancelled", 3,
        )  # fmt: skip
        assert (await shop.ann.post(job["links"]["cancel"])).status_code == 202
        for action in ("pause", "resume"):
            late = await shop.ann.post(f"{own}/{action}")
            assert (late.status_code, late.json()["type"]) == (409, "job-ended")
        assert shop.users.calls == []


async def test_what_failed_is_tried_again_once(tmp_path: Path) -> None:
    """Whoever asks for it twice gets one new job; what would fail again is left alone."""
    failing = {"a": ItemError("not now", code="busy", retryable=True)}

    async def create(items: list[User]) -> list[Any]:
        return [failing.get(item.name, item) for item in items]

    async with shop_of(tmp_path / "q", handler=create) as shop:
        await shop.queue.pause()
        job = await shop.job(items=[{"name": "a"}, {"name": "b"}, {"name": 5}])
        early = await shop.ann.post(job["links"]["retry"])
        assert (early.status_code, early.json()["type"]) == (409, "job-not-ended")
        assert (await shop.ann.delete(job["links"]["self"])).status_code == 409
        await shop.queue.resume()
        await shop.ended(job)
        failing.clear()
        again = await shop.ann.post(job["links"]["retry"])
        twice = await shop.ann.post(job["links"]["retry"])
        assert (again.status_code, twice.status_code) == (202, 202)
        assert again.headers["location"] == twice.headers["location"] == again.json()["statusUrl"]
        assert again.json()["retry_of"] == job["id"]
        assert (await shop.ended(again.json()))["progress"]["succeeded"] == 1
        nothing = await shop.ann.post(again.json()["links"]["retry"])
        assert (nothing.status_code, nothing.json()["type"]) == (409, "nothing-to-retry")
        assert len((await shop.ann.get("/jobs")).json()["jobs"]) == 2


async def test_nothing_is_made_of_failures_that_would_only_fail_again(tmp_path: Path) -> None:
    """Items that never fitted, and errors that say so; cancelled ones go again."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job(items=[{"name": 5}, {"name": "boom"}])
        await shop.ended(job)
        assert (await shop.ann.post(job["links"]["retry"])).status_code == 409
        await shop.queue.pause()
        job = await shop.job(2)
        await shop.ann.post(job["links"]["cancel"])
        await shop.queue.resume()
        await shop.ended(job)
        again = await shop.ann.post(job["links"]["retry"])
        assert (again.status_code, again.json()["total"]) == (202, 2)
        await shop.ended(again.json())


async def test_a_retry_counts_as_an_open_job(tmp_path: Path) -> None:
    """Else it would be a way around the bound."""
    async with shop_of(tmp_path / "q", max_open_jobs=1) as shop:
        await shop.queue.pause()
        job = await shop.job(1)
        await shop.ann.post(job["links"]["cancel"])
        while (await shop.ann.get(job["links"]["self"])).json()["life"] != "ended":  # noqa: ASYNC110
            await anyio.sleep(0.01)
        await shop.job(1)
        assert (await shop.ann.post(job["links"]["retry"])).status_code == 429


async def test_an_ended_job_can_be_deleted(tmp_path: Path) -> None:
    """It is gone then, with its results."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job(1)
        await shop.ended(job)
        gone = await shop.ann.delete(job["links"]["self"])
        assert (gone.status_code, gone.content) == (204, b"")
        for method, path in ROUTES:
            assert (await shop.ann.request(method, f"/jobs/{job['id']}{path}")).status_code == 404


async def test_methods_that_a_path_does_not_take_are_405(tmp_path: Path) -> None:
    """Actions are POST, so that no link or crawler cancels anything."""
    async with shop_of(tmp_path / "q") as shop:
        job = await shop.job(1)
        found = await shop.ann.get(job["links"]["cancel"])
        assert (found.status_code, found.headers["allow"]) == (405, "POST")
        head = await shop.ann.head(job["links"]["self"])
        assert (head.status_code, head.content) == (200, b"")
        head = await shop.ann.head(
            job["links"]["results"], headers={"accept": "application/x-ndjson"}
        )
        assert (head.status_code, head.content) == (200, b"")


async def test_routes_of_jobs_imports_and_exports_are_described(tmp_path: Path) -> None:
    """A client is made of the document: what it says of a job is what comes."""
    async with shop_of(tmp_path / "q", export=list) as shop:
        document = (await shop.ann.get("/openapi.json")).json()
        validate(document)
        paths = document["paths"]
        for method, path in ROUTES:
            operation = paths["/jobs/{id}" + path.partition("?")[0]][method.lower()]
            assert operation["summary"]
        assert {"/jobs", "/users/import", "/users/export"} <= set(paths)
        schema = paths["/jobs/{id}"]["get"]["responses"]["200"]["content"]["application/json"][
            "schema"
        ]
        job = await shop.job(1)
        found = (await shop.ann.get(job["links"]["self"])).json()
        assert set(found) == set(schema["properties"]) == set(schema["required"])
        for part in ("progress", "links"):
            assert set(found[part]) == set(schema["properties"][part]["properties"])
