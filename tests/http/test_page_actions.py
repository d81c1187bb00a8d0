"""What the page does to items and queues: it asks, it checks who sent the form, and it does that and no more."""

from __future__ import annotations

import re
from typing import Any

import pytest
from page_support import HOST, Browser, ended, text_of, worker_and_page
from support import backend_options

from microbatch.durable import DurableQueue
from microbatch.http import QueuePage

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The durable mode runs on asyncio and uvloop; nothing of the page tells them apart."""
    return backend_options("asyncio", real_time=True)


async def test_pausing_and_resuming_ask_first(tmp_path):
    """The question changes nothing; its button does; the page says what was done."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        question = await browser.get("/q/orders/confirm?do=pause")
        assert "Pause the queue?" in question
        assert not (await worker.stats()).paused
        answer = await browser.confirm("/q/orders/confirm?do=pause")
        assert (answer.status_code, answer.headers["location"]) == (303, "/q/orders?did=pause")
        assert (await worker.stats()).paused
        page = await browser.get("/q/orders?did=pause")
        assert "The queue is paused." in page
        assert "Resume the queue" in page
        await browser.confirm("/q/orders/confirm?do=resume")
        assert not (await worker.stats()).paused


async def test_selected_dead_letters_go_again_and_others_stay(tmp_path):
    """Requeue two of four: the two get their attempts anew, the list says how many."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        await ended(worker, await worker.enqueue_many([1, 3, 5, 7]))
        await worker.pause()
        ids = [letter.id for letter in await worker.dead_letters()]
        page = await browser.get("/q/orders?state=dead")
        assert re.findall(r'name="id" value="(\d+)"', page) == [str(n) for n in reversed(ids)]
        answer = await browser.confirm(
            f"/q/orders/confirm?from=dead&do=requeue&id={ids[0]}&id={ids[2]}"
        )
        assert answer.headers["location"] == "/q/orders?state=dead&did=requeue&n=2"
        assert [letter.id for letter in await worker.dead_letters()] == [ids[1], ids[3]]
        assert "2 items made ready again." in await browser.get(answer.headers["location"])


async def test_all_dead_letters_go_but_those_of_jobs(tmp_path, monkeypatch):
    """The question counts what it is about; a job's items are the job's."""
    monkeypatch.setattr("microbatch.http._page.acts.CHUNK", 3)
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        job = await worker.enqueue_job([1, 3])
        await job.wait(30)
        await ended(worker, await worker.enqueue_many([1, 3, 5, 7, 9]))
        page = await browser.get("/q/orders?state=dead")
        assert len(re.findall(r'name="id"', page)) == 5
        assert page.count("Belongs to a job") == 2
        assert "Remove 5 items for good?" in await browser.get(
            "/q/orders/confirm?do=purge&all=dead"
        )
        answer = await browser.confirm("/q/orders/confirm?do=purge&all=dead")
        assert answer.headers["location"] == "/q/orders?state=dead&did=purge&n=5"
        assert (await worker.stats()).dead == 2


async def test_one_item_is_cancelled_requeued_or_purged_from_its_page(tmp_path):
    """Each page offers what can be done with its item, and nothing else."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        (dead,) = await worker.enqueue_many([1])
        await ended(worker, [dead])
        waiting = await worker.enqueue(2, delay=3600)
        page = await browser.get(f"/q/orders/items/{waiting.id}")
        assert re.findall(r'<button name="do" value="([\w-]+)"', page) == ["cancel"]
        answer = await browser.confirm(f"/q/orders/confirm?do=cancel&id={waiting.id}&id=999")
        assert (
            answer.headers["location"] == "/q/orders?did=cancel&n=1"
        )  # the other one is not there
        assert "cancelled" in await browser.get(f"/q/orders/items/{waiting.id}")
        page = await browser.get(f"/q/orders/items/{dead.id}")
        assert re.findall(r'<button name="do" value="([\w-]+)"', page) == ["requeue", "purge"]
        await worker.pause()
        answer = await browser.confirm(f"/q/orders/confirm?do=requeue&id={dead.id}")
        assert answer.headers["location"] == f"/q/orders/items/{dead.id}?did=requeue&n=1"
        assert "1 item made ready again." in await browser.get(answer.headers["location"])
        answer = await browser.confirm(f"/q/orders/confirm?do=purge&id={waiting.id}")
        assert "1 item removed." in text_of(await browser.get(answer.headers["location"]))
        await browser.get(f"/q/orders/items/{waiting.id}", 404)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "do=explode",
        "do=requeue",
        "do=requeue&all=ready",
        "do=cancel&all=ready",
        "do=requeue&id=x",
        "do=cancel-job",
    ],
)
async def test_what_cannot_be_done_is_not_asked(tmp_path, query):
    """A question whose answer could do nothing, or something else, is none."""
    async with worker_and_page(tmp_path / "a.db") as (_, browser):
        await browser.get(f"/q/orders/confirm?{query}", 400)


async def test_an_action_needs_the_token_of_its_session_and_our_origin(tmp_path):
    """A page of another site can send forms with our cookie, or guess a token: neither does anything."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):

        async def pause(token: str | None, **headers: str) -> int:
            fields = [("do", "pause")] if token is None else [("do", "pause"), ("token", token)]
            return (await browser.post("/q/orders/act", fields, **headers)).status_code

        assert await pause("0" * 64) == 403  # no session yet
        page = await browser.get("/q/orders/confirm?do=pause")
        (token,) = re.findall(r'name="token" value="(\w{64})"', page)
        assert await pause(None) == 403
        assert await pause("") == 403
        assert await pause(token[:-1] + ("0" if token[-1] != "0" else "1")) == 403
        assert await pause("é") == 403
        for origin in ("", "null", "http://evil.test", "http://queues.test.evil.test", "ftp://queues.test",
                       f"{HOST}:81", HOST.removeprefix("http://")):  # fmt: skip
            assert await pause(token, origin=origin) == 403
        other = Browser(browser.app)
        async with other.http:
            await other.get("/q/orders")
            answer = await other.post("/q/orders/act", [("do", "pause"), ("token", token)])
            assert "belongs to another session" in answer.text
        assert (await browser.http.get("/q/orders/act")).status_code == 405
        assert not (await worker.stats()).paused
        assert await pause(token, origin="https://queues.test") == 303  # a proxy ended TLS
        assert await pause(token, origin=f"{HOST}:80") in {303, 403}
        assert (await worker.stats()).paused


async def test_the_session_cookie_is_hidden_from_scripts_and_other_sites(tmp_path):
    """Strict, HttpOnly, Secure over TLS, and with the port in its name."""
    async with worker_and_page(tmp_path / "a.db") as (_, browser):
        cookie = (await browser.http.get("/")).headers["set-cookie"]
        assert re.fullmatch(r"microbatch-page=[\w-]{43}; HttpOnly; Path=/; SameSite=strict", cookie)
        assert "set-cookie" not in (await browser.http.get("/")).headers
        other = await browser.http.get("https://queues.test:8443/")
        assert re.fullmatch(
            r"microbatch-page-8443=[\w-]{43}; HttpOnly; Path=/; SameSite=strict; Secure",
            other.headers["set-cookie"],
        )


async def test_a_read_only_page_refuses_every_action(tmp_path):
    """Whoever asks, with whatever form."""
    async with worker_and_page(tmp_path / "a.db", read_only=True) as (worker, browser):
        await ended(worker, await worker.enqueue_many([1]))
        for path in ("/q/orders?state=dead", "/q/orders/items/1"):
            page = await browser.get(path)
            assert "read-only" in page
            assert "<button name=" not in page
            assert "checkbox" not in page
        await browser.get("/q/orders/confirm?do=pause", 403)
        answer = await browser.post("/q/orders/act", [("do", "pause")])
        assert answer.status_code == 403
        assert not (await worker.stats()).paused


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"x" * 70_000, "application/x-www-form-urlencoded", 413),
        (b"a=\xff", "application/x-www-form-urlencoded", 400),
        (b"&".join([b"id=1"] * 5_001), "application/x-www-form-urlencoded", 400),
        (b"{}", "application/json", 415),
        (b"do=pause", "text/plain", 415),
    ],
)
async def test_a_form_that_is_none_is_refused(tmp_path, content, content_type, status):
    """Bounded, and of the one kind that the page sends."""
    queue = DurableQueue(tmp_path / "a.db", item_type=Any, queue="orders", telemetry=False)
    async with queue, Browser(QueuePage(queue, authorize=lambda _: "act")).http as http:
        headers = {"content-type": content_type, "origin": HOST}
        answer = await http.post("/q/orders/act", content=content, headers=headers)
        assert answer.status_code == status


async def test_a_form_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    """Who sends half a form and goes to sleep, or away, holds nothing."""
    monkeypatch.setattr("microbatch.http._page.visit.FORM_TIMEOUT", 0.05)
    queue = DurableQueue(tmp_path / "a.db", item_type=Any, queue="orders", telemetry=False)

    async def never() -> Any:
        yield b"do="
        import anyio

        await anyio.sleep_forever()

    async with queue, Browser(QueuePage(queue, authorize=lambda _: "act")).http as http:
        headers = {"content-type": "application/x-www-form-urlencoded", "origin": HOST}
        answer = await http.post("/q/orders/act", content=never(), headers=headers)
        assert answer.status_code == 408
