"""Batches that become jobs: when they do, what they answer, how much of them one may have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from http_jobs_support import clients_of, shop_of
from http_support import User, Users, api_of, authorize

from microbatch import ItemError
from microbatch.durable import DurableBatcher, DurableQueue
from microbatch.http import BatchAPI, _job_making

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real_time,
    pytest.mark.parametrize("backend_name", ["asyncio"], indirect=True),
]


def named(count: int) -> list[dict[str, Any]]:
    return [{"name": f"n{n}"} for n in range(count)]


async def test_a_batch_over_the_limit_becomes_a_job_and_one_at_it_does_not(tmp_path: Path) -> None:
    """Nobody waits for long with an open connection, and nobody polls for what is done at once."""
    async with shop_of(tmp_path / "q", sync_max_items=5) as shop:
        at_once = await shop.ann.post("/users/batch", json={"items": named(5)})
        assert (at_once.status_code, at_once.json()["summary"]["succeeded"]) == (200, 5)
        sent = await shop.ann.post(
            "/users/batch", json={"items": [{"name": f"m{n}"} for n in range(6)]}
        )
        assert sent.status_code == 202
        job = sent.json()
        assert job["status"] in {"pending", "processing", "completed"}
        assert (job["total"], job["progress"]["total"]) == (6, 6)
        assert job["jobId"] == job["id"]
        assert (
            sent.headers["location"]
            == job["statusUrl"]
            == job["links"]["self"]
            == f"/jobs/{job['id']}"
        )
        assert job["resultsUrl"] == job["links"]["results"] == f"/jobs/{job['id']}/results"
        assert int(sent.headers["retry-after"]) >= 1
        assert "preference-applied" not in sent.headers
        done = await shop.ended(job)
        assert (done["status"], done["outcome"]) == ("completed", "succeeded")
        assert done["progress"] == {
            "fraction": 1.0, "percentage": 100.0, "processed": 6, "total": 6, "succeeded": 6, "failed": 0,
            "skipped": 0, "cancelled": 0, "expired": 0,
        }  # fmt: skip
        assert len(shop.users.rows) == 11


async def test_links_begin_where_the_api_is_mounted(tmp_path: Path) -> None:
    """A client follows them as they are."""
    async with shop_of(tmp_path / "q", base_path="/v1") as shop:
        job = await shop.job()
        assert job["statusUrl"] == f"/v1/jobs/{job['id']}"
        assert {link.rpartition("/jobs/")[0] for link in job["links"].values()} == {"/v1"}


async def test_a_job_can_be_asked_for(tmp_path: Path) -> None:
    """By the header, or by the option, which wins."""
    async with shop_of(tmp_path / "q", sync_max_items=5) as shop:
        wish = {"Prefer": "respond-async"}
        sent = await shop.ann.post("/users/batch", json={"items": named(1)}, headers=wish)
        assert (sent.status_code, sent.headers["preference-applied"]) == (202, "respond-async")
        sent = await shop.ann.post(
            "/users/batch", json={"items": named(1), "options": {"async": False}}, headers=wish
        )
        assert sent.status_code in {200, 207}
        assert "preference-applied" not in sent.headers
        many = {"items": [{"name": f"o{n}"} for n in range(6)], "options": {"async": False}}
        assert (await shop.ann.post("/users/batch", json=many)).status_code == 200


async def test_who_wants_to_wait_gets_the_results_if_the_job_ends_in_time(tmp_path: Path) -> None:
    """The body is that of a batch that was no job; else it is a job like any other."""
    async with shop_of(tmp_path / "q") as shop:
        items = [{"name": "a"}, {"name": "boom"}, {"name": "a"}]
        sent = await shop.ann.post(
            "/users/batch", json={"items": items}, headers={"Prefer": "respond-async, wait=20"}
        )
        assert sent.status_code == 207
        assert sent.headers["preference-applied"] == "respond-async, wait=20"
        assert sent.headers["location"].startswith("/jobs/")
        answer = sent.json()
        assert [(one["index"], one["status"], one["success"]) for one in answer["results"]] == [
            (0, 201, True), (1, 500, False), (2, 409, False),
        ]  # fmt: skip
        assert answer["results"][0]["id"] == answer["results"][0]["data"]["id"]
        assert answer["summary"]["errors"] == {"internal_error": 1, "duplicate_name": 1}
        assert "secret" not in sent.text
        sent = await shop.ann.post(
            "/users/batch",
            json={"items": items},
            headers={"Prefer": "respond-async, wait=20, return=minimal"},
        )
        assert sent.headers["preference-applied"] == "respond-async, wait=20, return=minimal"
        assert [one["success"] for one in sent.json()["results"]] == [False, False, False]
        shop.users.hold()
        sent = await shop.ann.post(
            "/users/batch", json={"items": named(1)}, headers={"Prefer": "respond-async, wait=0"}
        )
        assert (sent.status_code, sent.json()["jobId"]) == (202, sent.json()["id"])


async def test_waiting_ends_before_the_request_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that asks for an hour gets a job, not a 504. Here it waits for less of its 30 s than it would."""
    assert _job_making._SHARE_OF_TIMEOUT == 0.8
    monkeypatch.setattr(_job_making, "_SHARE_OF_TIMEOUT", 0.001)
    async with shop_of(tmp_path / "q") as shop:
        shop.users.hold()
        sent = await shop.ann.post(
            "/users/batch", json={"items": named(1)}, headers={"Prefer": "respond-async, wait=3600"}
        )
        assert sent.status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        {"operations": [{"method": "create", "data": {"name": "a"}}], "options": {"async": True}},
        {"items": [{"name": "a"}], "options": {"async": True, "validate_only": True}},
    ],
)
async def test_what_cannot_be_a_job_is_refused_if_it_is_to_be_one(tmp_path: Path, body) -> None:
    """Rather than done at once, unasked."""
    async with shop_of(tmp_path / "q") as shop:
        sent = await shop.ann.post("/users/batch", json=body)
        assert (sent.status_code, sent.json()["type"]) == (422, "async-not-available")
        assert shop.users.calls == []


async def test_a_job_may_have_more_items_than_a_batch_and_no_more(tmp_path: Path) -> None:
    """Each has its bound."""
    async with shop_of(tmp_path / "q", sync_max_items=2, max_items=3, max_job_items=5) as shop:
        assert (await shop.ann.post("/users/batch", json={"items": named(5)})).status_code == 202
        sent = await shop.ann.post("/users/batch", json={"items": named(6)})
        assert (sent.status_code, sent.json()["max_items"]) == (413, 5)
        assert len((await shop.ann.get("/jobs")).json()["jobs"]) == 1


async def test_an_item_that_does_not_fit_fails_in_the_job_alone(tmp_path: Path) -> None:
    """The good ones run, and each bad one says why, in its place: by type, by validation, by authorisation."""

    def validate(user: User) -> None:
        if user.age < 0:
            raise ItemError("an age below 0", field="age")
        if user.age == 99:
            raise RuntimeError("secret")

    async def authorize_items(principal: Any, operation: str, items: list[User]) -> list[Any]:
        return [ItemError("not this one") if item.name == "root" else None for item in items]

    items = [
        {"name": "a"},
        {"name": 5},
        {"name": "b", "age": -1},
        {"name": "c", "age": 99},
        {"name": "root"},
    ]
    async with shop_of(tmp_path / "q", validate=validate, authorize_items=authorize_items) as shop:
        job = await shop.job(items=items)
        done = await shop.ended(job)
        assert (done["status"], done["outcome"]) == ("completed", "partially_succeeded")
        assert done["errors"] == {"invalid_item": 4}
        page = (await shop.ann.get(job["links"]["errors"])).json()
        assert [(one["index"], one["error"]["code"]) for one in page["results"]] == [
            (n, "invalid_item") for n in range(1, 5)
        ]
        messages = [one["error"]["message"] for one in page["results"]]
        assert "Expected `str`, got `int`" in messages[0]
        assert messages[1:] == ["an age below 0", "it could not be checked", "not this one"]
        assert [user.name for user in shop.users.rows.values()] == ["a"]
        sent = await shop.ann.post(
            "/users/batch", json={"items": items, "options": {"async": True, "mode": "reject"}}
        )
        assert (sent.status_code, len(sent.json()["errors"])) == (422, 4)
        assert len((await shop.ann.get("/jobs")).json()["jobs"]) == 1


async def test_options_of_a_job_are_the_jobs(tmp_path: Path) -> None:
    """Ordered is one batch at a time; what stops on an error leaves the rest."""
    async with shop_of(tmp_path / "q", of_queue={"max_batch_size": 2}) as shop:
        items = [{"name": "a"}, {"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}]
        job = await shop.job(items=items, options={"ordered": True, "stop_on_error": True})
        done = await shop.ended(job)
        assert (done["status"], done["outcome"]) == ("failed", "cancelled")
        assert done["progress"]["cancelled"] == 3
        assert [len(items) for _, items in shop.users.calls] == [2]
        results = (await shop.ann.get(job["links"]["results"])).json()["results"]
        assert [one["kind"] for one in results] == ["succeeded", "failed"] + ["cancelled"] * 3
        assert results[2]["error"]["code"] == "cancelled"
        assert results[2]["status"] == 409


async def test_one_principal_has_so_many_open_jobs_and_no_more(tmp_path: Path) -> None:
    """Others are not concerned; room comes back when one ends."""
    async with shop_of(tmp_path / "q", max_open_jobs=2) as shop:
        shop.users.hold()
        first, _ = await shop.job(1), await shop.job(1)
        body = {"items": named(1), "options": {"async": True}}
        sent = await shop.ann.post("/users/batch", json=body)
        assert (sent.status_code, sent.json()["type"]) == (429, "too-many-jobs")
        assert int(sent.headers["retry-after"]) >= 1
        assert (await shop.bob.post("/users/batch", json=body)).status_code == 202
        shop.users.free.set()
        await shop.ended(first)
        assert (await shop.ann.post("/users/batch", json=body)).status_code == 202


async def test_one_principal_cannot_fill_the_queue(tmp_path: Path) -> None:
    """It has its part; somebody else's items still find room."""
    async with shop_of(
        tmp_path / "q", owner_share=0.5, of_queue={"max_depth": 20, "max_batch_size": 1}
    ) as shop:
        shop.users.hold()
        await shop.job(6)
        body = {"items": named(5), "options": {"async": True}}
        sent = await shop.ann.post("/users/batch", json=body)
        assert (sent.status_code, sent.json()["type"]) == (429, "too-many-items")
        assert sent.json()["max_waiting_items"] == 10
        await shop.job(4)
        assert (await shop.bob.post("/users/batch", json=body)).status_code == 202
        await shop.queue.pause()  # else the other one's worker may have handled some by then
        async with shop_of(tmp_path / "q", owner_share=1.0, of_queue={"max_depth": 20}) as other:
            sent = await other.bob.post(
                "/users/batch", json={"items": named(8), "options": {"async": True}}
            )
            assert (sent.status_code, sent.json()["type"]) == (503, "queue-full")
            assert "retry-after" in sent.headers


async def test_items_that_come_in_at_the_same_time_count(tmp_path: Path) -> None:
    """Two requests at once may not have twice the part."""
    async with shop_of(tmp_path / "q", owner_share=0.5, of_queue={"max_depth": 20}) as shop:
        shop.users.hold()
        found = []

        async def send() -> None:
            body = {"items": named(6), "options": {"async": True}}
            found.append((await shop.ann.post("/users/batch", json=body)).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(send)
        assert sorted(found) == [202, 429, 429, 429]
    async with shop_of(tmp_path / "r", max_open_jobs=2) as shop:
        shop.users.hold()
        found.clear()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(send)
        assert sorted(found)[:2] == [202, 202]
        assert sorted(found)[2:] == [429, 429, 429]


async def test_jobs_of_a_queue_whose_workers_run_elsewhere(tmp_path: Path) -> None:
    """The API holds a queue; its worker finds the items in the file."""
    users = Users()
    async with DurableQueue(
        tmp_path / "q", item_type=User, result_type=User, poll_interval=0.02
    ) as queue:
        api = api_of(users, queue=queue, create=None)
        async with api, clients_of(api) as (ann, _):
            sent = await ann.post("/users/batch", json={"items": named(1)})
            assert sent.status_code == 202  # one item, but nobody here could handle it
            body = {"items": named(1), "options": {"async": False}}
            assert (await ann.post("/users/batch", json=body)).status_code == 422
            async with DurableBatcher(
                tmp_path / "q", users.create, item_type=User, poll_interval=0.02
            ):
                found = await ann.get(sent.headers["location"], params={"wait": 30})
            assert found.json()["status"] == "completed"


async def test_the_answer_under_a_key_is_the_job_as_it_is_now(tmp_path: Path) -> None:
    """Sent again, it makes no second job."""
    async with shop_of(tmp_path / "q") as shop:
        body = {"items": named(2), "options": {"async": True}}
        one = await shop.ann.post("/users/batch", json=body, headers={"Idempotency-Key": "k"})
        await shop.ended(one.json())
        two = await shop.ann.post("/users/batch", json=body, headers={"Idempotency-Key": "k"})
        assert two.status_code == 202
        assert two.json()["jobId"] == one.json()["jobId"]
        assert two.json()["status"] == "completed"
        assert len(shop.users.rows) == 2


async def test_a_jobs_key_outlives_the_answer_under_it(tmp_path: Path) -> None:
    """Other content under the same key is then no answer of old, but a mistake of the client."""
    async with shop_of(tmp_path / "q", idempotency_ttl=0.01) as shop:
        body, other = ({"items": named(n), "options": {"async": True}} for n in (1, 2))
        key = {"Idempotency-Key": "k"}
        one = await shop.ann.post("/users/batch", json=body, headers=key)
        await anyio.sleep(0.02)
        sent = await shop.ann.post("/users/batch", json=other, headers=key)
        assert (sent.status_code, sent.json()["type"]) == (422, "idempotency-key-reused")
        await anyio.sleep(0.02)
        again = await shop.ann.post("/users/batch", json=body, headers=key)
        assert again.json()["jobId"] == one.json()["jobId"]
        assert len((await shop.ann.get("/jobs")).json()["jobs"]) == 1


async def test_an_answer_under_a_key_is_given_though_its_collection_has_no_queue_any_more(
    tmp_path: Path,
) -> None:
    """An API changes while keys live; then what was answered is all that is known."""
    body, key = {"items": named(1)}, {"Idempotency-Key": "k"}
    async with shop_of(tmp_path / "q", sync_max_items=0) as shop:
        one = await shop.ann.post("/users/batch", json=body, headers=key)
        now = api_of(shop.users, idempotency_store=shop.queue)
        now.collection("others", item_type=User, queue=shop.queue)
        async with now, clients_of(now) as (ann, _):
            again = await ann.post("/users/batch", json=body, headers=key)
        assert (again.status_code, again.json()["jobId"]) == (202, one.json()["jobId"])
        assert again.headers["idempotent-replayed"] == "true"


async def test_open_jobs_count_over_all_queues_and_items_in_each(tmp_path: Path) -> None:
    """The bound of jobs is the principal's; the part is of one queue."""
    users = Users()
    settings: dict[str, Any] = {"item_type": User, "max_depth": 10}
    async with (
        DurableQueue(tmp_path / "a", **settings) as first,
        DurableQueue(tmp_path / "b", **settings) as second,
    ):
        api = BatchAPI(authorize=authorize, max_open_jobs=3, owner_share=0.5)
        api.collection("plain", item_type=User, create=users.create)
        api.collection("users", item_type=User, queue=first)
        api.collection("others", item_type=User, queue=second)
        async with api, clients_of(api) as (ann, bob):
            for path, count, status in (
                ("users", 5, 202), ("users", 1, 429), ("others", 4, 202), ("others", 1, 202), ("others", 0, 200),
                ("others", 1, 429),
            ):  # fmt: skip
                sent = await ann.post(f"/{path}/batch", json={"items": named(count)})
                assert sent.status_code == status, (path, count)
            assert sent.json()["type"] == "too-many-jobs"
            assert len((await ann.get("/jobs")).json()["jobs"]) == 3
            assert (await bob.post("/others/batch", json={"items": named(5)})).status_code == 202
            assert (await ann.post("/plain/import")).status_code == 404


async def test_a_queue_that_cannot_be_used_is_503_and_says_nothing_of_its_file(
    tmp_path: Path,
) -> None:
    """A path is nobody's business."""
    async with shop_of(tmp_path / "secret.db") as shop:
        await shop.queue.aclose()
        for sent in (
            await shop.ann.post(
                "/users/batch", json={"items": named(1), "options": {"async": True}}
            ),
            await shop.ann.get("/jobs"),
            await shop.ann.get("/jobs/01900000-0000-7000-8000-000000000000"),
        ):
            assert sent.status_code == 503
            assert "retry-after" in sent.headers
            assert "secret" not in json.dumps(dict(sent.headers)) + sent.text


async def test_an_api_with_webhooks_wants_a_worker_that_tells(tmp_path: Path, caplog) -> None:
    """Else no webhook would ever be sent, and nobody would know why."""

    async def told(status: Any) -> None: ...

    users = Users()
    for handler, settings, refused in (
        (users.create, {}, True),
        (users.create, {"on_job_end": told}, False),
    ):
        queue = DurableBatcher(tmp_path / "q", handler, item_type=User, **settings)
        if refused:
            with pytest.raises(
                ValueError, match=r"queue must have on_job_end=webhooks\.on_job_end"
            ):
                api_of(users, queue=queue, webhooks=object())
        else:
            assert isinstance(api_of(users, queue=queue, webhooks=object()), BatchAPI)
    assert caplog.records == []
    api_of(users, queue=DurableQueue(tmp_path / "q", item_type=User), webhooks=object())
    (record,) = caplog.records
    assert "give them on_job_end=webhooks.on_job_end" in record.getMessage()
