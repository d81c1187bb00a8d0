"""Jobs on the page: progress, errors, what can be done, and the download of outcomes."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from contextlib import closing
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from page_support import Browser, text_of, worker_and_page
from support import backend_options

from microbatch.durable import DurableQueue
from microbatch.http import QueuePage

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The durable mode runs on asyncio and uvloop; nothing of the page tells them apart."""
    return backend_options("asyncio", real_time=True)


async def test_a_job_shows_its_progress_its_errors_and_its_failed_items(tmp_path, monkeypatch):
    """Counts, codes, and each failed item with a link; the list pages."""
    monkeypatch.setattr("microbatch.http._page.job_views.PAGE_SIZE", 2)
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        job = await worker.enqueue_job(
            [1, 2, 3, 5, 7],
            item_id=lambda n: f"n{n}",
            owner="ada",
            key="k",
            metadata={"file": "x.csv"},
        )
        await job.wait(30)
        page = await browser.get(f"/q/orders/jobs/{job.id}")
        text = text_of(page)
        assert "partially succeeded" in text
        assert '<progress max="5" value="5" aria-label="Progress">100 %</progress>' in page
        assert "pending 0 succeeded 1 failed 4 skipped 0 cancelled 0 expired 0" in text
        assert "owner ada key k" in text
        assert '{ "file": "x.csv" }' in text
        assert "odd 4 Failed items" in text
        assert "0 1 n1 1 odd 1 is odd 2 3 n3 1 odd 3 is odd Next" in text
        following = re.search(r'href="([^"]+)">Next', page)
        assert following is not None
        page = await browser.get(following[1])
        assert "n5" in page
        assert "n1 " not in text_of(page)
        assert "First" in page
        await browser.get("/q/orders/jobs/nonsense", 404)


async def test_jobs_are_listed_newest_first_page_by_page(tmp_path, monkeypatch):
    """As many as there are, each with its bar; an empty job is whole."""
    monkeypatch.setattr("microbatch.http._page.job_views.PAGE_SIZE", 2)
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        assert "No jobs here" in await browser.get("/q/orders/jobs")
        ids = [(await worker.enqueue_job([2] * n)).id for n in range(3)]
        page = await browser.get("/q/orders/jobs")
        assert re.findall(r'jobs/([\w-]{36})">', page) == [ids[2], ids[1]]
        older = re.search(r'href="([^"]+)">Older', page)
        assert older is not None
        page = await browser.get(older[1])
        assert re.findall(r'jobs/([\w-]{36})">', page) == [ids[0]]
        assert '<progress max="1" value="1"' in page
        assert "Newest" in page


async def test_a_job_is_paused_resumed_cancelled_and_retried(tmp_path):
    """Each where it can be, each after a question; a retry leads to the new job."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        await worker.pause()
        job = await worker.enqueue_job([1, 2, 3])

        async def offered() -> list[str]:
            page = await browser.get(f"/q/orders/jobs/{job.id}")
            return re.findall(r'<button name="do" value="([\w-]+)"', page)

        async def press(action: str) -> str:
            answer = await browser.confirm(f"/q/orders/confirm?do={action}&job={job.id}")
            assert answer.status_code == 303
            return answer.headers["location"]

        assert await offered() == ["pause-job", "cancel-job"]
        assert "The job is paused." in await browser.get(await press("pause-job"))
        assert (await job.status()).paused
        assert await offered() == ["resume-job", "cancel-job"]
        await press("resume-job")
        assert not (await job.status()).paused
        await browser.get(f"/q/orders/confirm?do=retry-job&job={job.id}", 409)
        await press("cancel-job")
        await job.wait(30)
        assert await offered() == ["retry-job"]
        await worker.resume()
        there = await press("retry-job")
        assert job.id not in there
        again = worker.job(there.split("/")[-1].split("?")[0])
        assert (await again.wait(30)).retry_of == job.id
        assert f"retry of {job.id}" in text_of(await browser.get(there))
        # 3 is retryable, 1 is not, unless somebody asks for all of them.
        first = [o.error.retryable async for o in again.outcomes("failed") if o.error is not None]
        assert first == [False, True]
        for more, total in (({}, 1), ({"all_failed": "1"}, 2)):
            answer = await browser.confirm(f"/q/orders/confirm?do=retry-job&job={again.id}", **more)
            new = worker.job(answer.headers["location"].split("/")[-1].split("?")[0])
            assert (await new.wait(30)).total == total


async def test_a_job_that_is_over_cannot_be_cancelled_any_more(tmp_path):
    """It ended between the question and the answer: the answer says so. All went well: there is nothing to retry."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        await worker.pause()
        job = await worker.enqueue_job([2])
        question = await browser.get(f"/q/orders/confirm?do=cancel-job&job={job.id}")
        (token,) = re.findall(r'name="token" value="(\w{64})"', question)
        await worker.resume()
        await job.wait(30)
        fields = [("token", token), ("do", "cancel-job"), ("job", job.id)]
        assert (await browser.post("/q/orders/act", fields)).status_code == 409
        assert "<button name=" not in await browser.get(f"/q/orders/jobs/{job.id}")


async def test_a_value_without_a_form_in_json_is_downloaded_as_its_text(tmp_path):
    """Nothing that redact makes of it breaks the file."""
    async with worker_and_page(tmp_path / "a.db", redact=lambda value: "\ud800") as (
        worker,
        browser,
    ):
        job = await worker.enqueue_job([2, 4])
        await job.wait(30)
        path = f"/q/orders/jobs/{job.id}/results"
        assert [row["value"] for row in json.loads(await browser.get(f"{path}?format=json"))] == [
            r"'\ud800'"
        ] * 2
        assert r",\ud800," in await browser.get(f"{path}?format=csv")


async def test_outcomes_are_downloaded_whole_in_each_format(tmp_path, monkeypatch):
    """More than one read of them, in order, with what each format needs around it."""
    monkeypatch.setattr("microbatch.durable.insight.READ_AT_ONCE", 3)
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        job = await worker.enqueue_job([1, 2, "=1+1", 4, 3, 6, "x", 8], item_id=lambda n: f"-{n}")
        await job.wait(30)
        path = f"/q/orders/jobs/{job.id}/results"
        lines = (await browser.get(path)).splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["index"] for row in rows] == list(range(8))
        assert rows[0] == {
            "index": 0, "id": "-1", "kind": "failed", "attempts": 1, "value": None,
            "error": {"code": "odd", "message": "1 is odd", "retryable": False},
        }  # fmt: skip
        assert rows[1]["value"] == 4
        assert json.loads(await browser.get(f"{path}?format=json")) == rows
        assert json.loads(await browser.get(f"{path}?format=json&kind=skipped")) == []
        table = list(
            csv.reader(
                io.StringIO(await browser.get(f"{path}?format=csv&kind=succeeded"), newline="")
            )
        )
        assert table[0] == ["index", "id", "kind", "value", "code", "message"]
        assert table[2] == ["2", "-=1+1", "succeeded", "=1+1", "", ""]
        sheet = list(
            csv.reader(io.StringIO(await browser.get(f"{path}?format=csv&sheet=1"), newline=""))
        )
        assert sheet[3] == ["2", "'-=1+1", "succeeded", "'=1+1", "", ""]
        answer = await browser.http.get(f"{path}?kind=failed&format=csv")
        assert (
            answer.headers["content-disposition"] == f'attachment; filename="{job.id}-failed.csv"'
        )
        assert answer.headers["content-type"].startswith("text/csv")
        await browser.get(f"{path}?format=xml", 400)
        await browser.get(f"{path}?kind=odd", 400)
        await browser.get("/q/orders/jobs/nonsense/results", 404)


async def test_outcomes_that_are_gone_are_said_to_be(tmp_path):
    """They go before the job's row does."""
    settings = {"item_type": Any, "queue": "orders", "telemetry": False}
    async with worker_and_page(tmp_path / "a.db") as (worker, _):
        job = await worker.enqueue_job([1, 2])
        await job.wait(30)
    from microbatch.durable import DurableBatcher

    async def nothing(items: list[Any]) -> None:
        return None

    async with (
        DurableBatcher(tmp_path / "a.db", nothing, result_ttl=0, **settings) as worker,
        Browser(QueuePage(worker, authorize=lambda _: "act")).http as http,
    ):
        await worker.enqueue(2)  # something happens, so that upkeep looks
        with anyio.fail_after(30):
            while True:
                page = await http.get(f"/q/orders/jobs/{job.id}")
                if "The outcomes are no longer kept." in page.text:
                    break
                await anyio.sleep(0.1)
        assert "Download" not in page.text
        assert (await http.get(f"/q/orders/jobs/{job.id}/results")).status_code == 410
        question = f"/q/orders/confirm?do=retry-job&job={job.id}"
        assert (await http.get(question)).status_code == 200


async def test_a_page_shows_outcomes_longer_than_its_own_settings_would(tmp_path):
    """What keeps them is the worker's setting: who only looks has defaults."""
    async with worker_and_page(tmp_path / "a.db") as (worker, _):
        job = await worker.enqueue_job([1])
        await job.wait(30)
        looker = DurableQueue(
            tmp_path / "a.db", item_type=Any, queue="orders", result_ttl=0, telemetry=False
        )
        async with looker, Browser(QueuePage(looker, authorize=lambda _: "read")).http as http:
            assert "1 is odd" in (await http.get(f"/q/orders/jobs/{job.id}")).text


async def test_a_jobs_id_of_a_strange_file_is_no_header(tmp_path):
    """A file may come from anybody; a header with a line end in it would be refused, with the answer."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        job = await worker.enqueue_job([2])
        await job.wait(30)
        odd = 'a"\r\né'
        with closing(sqlite3.connect(tmp_path / "a.db")) as raw:
            raw.execute("UPDATE microbatch_jobs SET uid = ?", (odd,))
            raw.commit()
        answer = await browser.http.get(f"/q/orders/jobs/{quote(odd)}/results")
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == 'attachment; filename="a____-all.ndjson"'
