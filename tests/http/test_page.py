"""The page: what it shows, to whom, and that it is all text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from page_support import Browser, ended, refuse_odd, text_of, worker_and_page
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from support import backend_options

from microbatch.durable import DurableBatcher, DurableQueue
from microbatch.http import QueuePage

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The durable mode runs on asyncio and uvloop; nothing of the page tells them apart."""
    return backend_options("asyncio", real_time=True)


async def test_the_overview_shows_every_queue_with_its_figures(tmp_path):
    """The first look: what waits, what died, how fast it goes, who works, what is paused."""
    async with (
        worker_and_page(tmp_path / "a.db") as (worker, _),
        DurableQueue(tmp_path / "b.db", item_type=Any, queue="orders", telemetry=False) as other,
    ):
        await ended(worker, await worker.enqueue_many([{"n": n} for n in range(4)]))
        await other.enqueue("waits")
        await other.pause()
        async with Browser(QueuePage([worker, other], authorize=lambda _: "read")).http as http:
            page = (await http.get("/")).text
    here, there = (text_of(part) for part in page.split("<article")[1:])
    assert "orders in a.db" in here  # two queues of one name are told apart by their files
    assert "done 2 dead 2" in here
    assert "consumers 1 alive" in here
    assert "Items ended in the last 10 minutes: 4, of which 2 died" in here
    assert "paused" not in here
    assert "paused ready 1" in there
    assert "consumers 0 alive" in there
    assert re.search(r'<polygon class="died" points="[\d., ]+"/>', page)


async def test_a_list_shows_states_and_the_newest_first_and_goes_on(tmp_path):
    """A page of 50, then the next: none is shown twice, none is left out."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        await ended(worker, await worker.enqueue_many([{"n": 2 * n + n % 4} for n in range(120)]))
        ids = [
            int(n)
            for n in re.findall(r'items/(\d+)">\1<', await browser.get("/q/orders?state=done"))
        ]
        assert ids == sorted(ids, reverse=True)
        page = await browser.get("/q/orders")
        seen: list[int] = []
        while True:
            seen += [int(n) for n in re.findall(r'items/(\d+)">\1<', page)]
            older = re.search(r'before=(\d+)">Older', page)
            if older is None:
                break
            page = await browser.get(f"/q/orders?before={older[1]}")
        assert seen == list(range(120, 0, -1))
        assert "No items here" in await browser.get("/q/orders?state=ready")
        await browser.get("/q/orders?state=nonsense", 400)
        await browser.get("/q/orders?before=x", 400)


async def test_an_item_is_found_by_its_id_its_key_and_its_text(tmp_path):
    """What a log line has is one of these."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        ticket = await worker.enqueue({"n": 1, "who": "Ada"}, key="order 7")
        await ended(worker, [ticket, *(await worker.enqueue_many([{"n": 3, "who": "Bob"}] * 60))])
        for wanted in (str(ticket.id), "order 7"):
            answer = await browser.http.get("/q/orders", params={"find": wanted})
            assert answer.status_code == 303
            assert answer.headers["location"] == f"/q/orders/items/{ticket.id}"
        assert "There is no item with the id or key “ 999 ”" in text_of(
            await browser.get("/q/orders?find=999")
        )
        page = text_of(await browser.get("/q/orders?text=aDa"))
        assert "61 items looked through" in page
        assert "Ada" in page
        assert "Bob" not in page
        assert "odd 1 is odd" in text_of(await browser.get("/q/orders?text=1+is+odd"))


async def test_a_search_for_a_text_ends_after_a_while_and_can_go_on(tmp_path, monkeypatch):
    """A rare text in a large queue: a request reads so many items and no more."""
    monkeypatch.setattr("microbatch.http._page.views.SEARCHED", 40)
    monkeypatch.setattr("microbatch.http._page.views.READ_AT_ONCE", 20)
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        await worker.pause()
        await worker.enqueue_many(["needle", *["straw"] * 99])
        page, looks = await browser.get("/q/orders?text=needle"), 1
        while further := re.search(r'before=(\d+)">Look further', page):
            page, looks = await browser.get(f"/q/orders?text=needle&before={further[1]}"), looks + 1
        assert looks == 3
        assert re.search(r'items/1">1<', page)


async def test_an_item_shows_payload_result_error_and_traceback(tmp_path):
    """All that is known of it, on one page."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        good = await worker.enqueue({"n": 2}, key="k", priority=3)  # a key keeps its payload
        gone = await worker.enqueue({"n": 4})
        bad = await worker.enqueue({"n": 1})
        await ended(worker, [good, gone, bad])
        page = text_of(await browser.get(f"/q/orders/items/{good.id}"))
        assert "done key k priority 3 attempts 1" in page
        assert 'Payload { "n": 2 }' in page
        assert "Result 4" in page
        page = text_of(await browser.get(f"/q/orders/items/{bad.id}"))
        assert 'Payload { "n": 1 }' in page
        assert "kind ItemError code odd retryable no Message 1 is odd" in page
        page = text_of(await browser.get(f"/q/orders/items/{gone.id}"))
        assert "Payload It is no longer kept. Result 8" in page
        for path in ("items/999", "items/99999999999999999999", "items/1/nonsense"):
            assert " no " in text_of(await browser.get(f"/q/orders/{path}", 404))


async def test_payloads_and_errors_are_text_and_nothing_else(tmp_path):
    """Whoever can enqueue an item must not run a script in the browser of who looks at it."""

    async def fail(items: list[Any]) -> list[Any]:
        return [ValueError(SCRIPT) for _ in items]

    async with worker_and_page(tmp_path / "a.db", handler=fail) as (worker, browser):
        ticket = await worker.enqueue({SCRIPT: SCRIPT}, key=SCRIPT)
        job = await worker.enqueue_job([SCRIPT], owner=SCRIPT, metadata={"x": SCRIPT}, item_id=str)
        await ended(worker, [ticket])
        await job.wait(30)
        pages = [
            "/q/orders",
            f"/q/orders/items/{ticket.id}",
            "/q/orders/jobs",
            f"/q/orders/jobs/{job.id}",
        ]
        pages += ["/q/orders?text=%3Cscript%3E", "/q/orders?find=%3Cscript%3E"]
        for path in pages:
            page = await browser.get(path)
            assert re.findall(r"<script[^>]*>", page) == re.findall(
                r'<script src="/static/[^>]*>', page
            )
            assert "&lt;script&gt;" in page
        whole = await browser.http.get(f"/q/orders/items/{ticket.id}/payload")
        assert whole.headers["content-type"] == "text/plain; charset=utf-8"
        assert whole.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in whole.headers["content-security-policy"]
        assert SCRIPT in whole.text


async def test_a_long_payload_is_cut_at_10_kb_with_a_link_to_all(tmp_path):
    """A page stays small; nothing is lost."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        await worker.pause()
        ticket = await worker.enqueue("é" * 30_000)
        page = await browser.get(f"/q/orders/items/{ticket.id}")
        assert "All 60.0 kB as text" in page
        assert len(page.encode()) < 20_000
        assert await browser.get(f"/q/orders/items/{ticket.id}/payload") == f'"{"é" * 30_000}"'


async def test_answers_have_a_policy_that_lets_nothing_in(tmp_path):
    """Strict, without exceptions, on every answer; and no page needs what it forbids."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        job = await worker.enqueue_job([1, 2])
        await job.wait(30)
        for path in ("/", "/q/orders", "/q/orders/items/1", "/q/orders/jobs", f"/q/orders/jobs/{job.id}",
                     "/q/orders/confirm?do=pause", "/nowhere", "/static/page.css", f"/q/orders/jobs/{job.id}/results"):  # fmt: skip
            answer = await browser.http.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            if "text/html" in answer.headers["content-type"]:
                assert re.findall(r"<[^>]+ (?:style|on\w+)=", answer.text) == []
                assert re.findall(r"https?://", answer.text) == []


async def test_authorize_says_who_reads_and_who_acts(tmp_path):
    """None sees nothing, a reader no action, and the application may send them elsewhere."""
    role: Any = None

    async def authorize(request: Any) -> Any:
        if isinstance(role, Exception):
            raise role
        return role

    async with worker_and_page(tmp_path / "a.db", authorize=authorize) as (_, browser):
        await browser.get("/", 403)
        role = PermissionError()
        await browser.get("/q/orders", 403)
        role = HTTPException(303, headers={"location": "/login"})
        assert (await browser.http.get("/")).headers["location"] == "/login"
        role = "read"
        page = await browser.http.get("/q/orders")
        assert "Pause" not in page.text
        assert "set-cookie" not in page.headers
        await browser.get("/q/orders/confirm?do=pause", 403)
        role = "act"
        assert "Pause the queue" in await browser.get("/q/orders")
        role = "admin"
        with pytest.raises(
            TypeError, match="authorize must return 'read', 'act' or None, got 'admin'"
        ):
            await browser.get("/")


async def test_redact_comes_before_everything_else(tmp_path):
    """Not on a page, not by a search, not in a download; and if it raises, nothing is shown."""
    card = "4000-1234"

    def redact(value: Any) -> Any:
        if value == "explode":
            raise KeyError(value)
        if isinstance(value, dict):
            return {name: redact(one) for name, one in value.items()}
        return value.replace(card, "[card]") if isinstance(value, str) else value

    async def handler(items: list[Any]) -> list[Any]:
        return [ValueError(f"declined {card}") if "bad" in item else item for item in items]

    async with worker_and_page(tmp_path / "a.db", handler=handler, redact=redact) as (
        worker,
        browser,
    ):
        items = [
            {"card": card},
            {"card": card, "bad": 1},
        ]  # the first one's payload goes when it is done
        tickets = [await worker.enqueue(item, key=f"{card}-{n}") for n, item in enumerate(items)]
        job = await worker.enqueue_job(
            items,
            item_id=lambda item: f"{card}/{len(item)}",
            owner=card,
            metadata={"c": card},
        )
        await ended(worker, tickets)
        await job.wait(30)
        await worker.pause()
        tickets.append(await worker.enqueue("explode"))
        paths = [f"/q/orders/items/{ticket.id}" for ticket in tickets]
        paths += [f"/q/orders/items/{tickets[0].id}/result"]
        paths += [f"/q/orders/items/{ticket.id}/payload" for ticket in tickets[1:]]
        paths += [f"/q/orders/items/{tickets[1].id}/message"]
        paths += ["/q/orders", "/q/orders/jobs", f"/q/orders/jobs/{job.id}"]
        paths += [
            f"/q/orders/jobs/{job.id}/results?format={form}" for form in ("csv", "json", "ndjson")
        ]
        for path in paths:
            page = await browser.get(path)
            assert card not in page
            assert "[card]" in page or "not shown: redact raised KeyError" in page, path
        assert "No items here" in await browser.get(f"/q/orders?text={card}")
        assert "There is no item" in await browser.get(f"/q/orders?find={card}-0")
        assert "No items here" not in await browser.get("/q/orders?text=[card]")


async def test_a_page_works_where_it_is_mounted(tmp_path):
    """Its links lead below the application's path, or below the one that it was told."""
    async with DurableBatcher(
        tmp_path / "a.db", refuse_odd, item_type=Any, queue="a b/ü", telemetry=False
    ) as w:
        await ended(w, [await w.enqueue(1)])
        for told, base in ((None, "/admin/queues"), ("/elsewhere", "/elsewhere"), ("", "")):
            page = QueuePage([w], authorize=lambda _: "act", base_path=told)
            app = Starlette(routes=[Mount("/admin/queues", page)])
            async with Browser(app, "/admin/queues").http as http:
                for path in (
                    "",
                    "q/a-b",
                    "q/a-b/",
                    "q/a-b/items/1",
                    "q/a-b/jobs",
                    "q/a-b/confirm?do=pause",
                ):
                    answer = await http.get(f"/admin/queues/{path}")
                    assert answer.status_code == 200
                    links = re.findall(r'(?:href|src|action)="(/[^"]*)"', answer.text)
                    assert links
                    assert all(link.startswith(f"{base}/") for link in links)
                assert (await http.get("/admin/queues/static/page.js")).status_code == 200
                (cookie,) = http.cookies.jar
                assert cookie.path == (base or "/")


async def test_a_queue_that_cannot_be_used_is_a_page_of_its_own(tmp_path):
    """A page about a broken file says so, and the next request works if the file does."""
    path = tmp_path / "a.db"
    queue = DurableQueue(path, item_type=Any, telemetry=False)
    async with Browser(QueuePage(queue, authorize=lambda _: "read")).http as http:
        path.mkdir()
        answer = await http.get("/")
        assert answer.status_code == 503
        assert "cannot be used" in answer.text
        path.rmdir()
        assert (await http.get("/")).status_code == 200  # opened by the request
        await queue.aclose()
        assert (await http.get("/")).status_code == 503


async def test_static_files_may_be_kept_for_ever_under_their_own_address(tmp_path):
    """The address changes with the file; without it a browser asks again."""
    async with worker_and_page(tmp_path / "a.db") as (_, browser):
        address = re.search(r'href="(/static/page\.css\?v=\w+)"', await browser.get("/"))
        assert address is not None
        kept = await browser.http.get(address[1])
        assert "immutable" in kept.headers["cache-control"]
        assert (await browser.http.get("/static/page.css")).headers["cache-control"] == "no-cache"
        await browser.get("/static/page.py", 404)
        await browser.get("/q/other", 404)
        assert (await browser.http.post("/")).status_code == 405


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queues": []}, "queues must hold at least one queue"),
        ({"queues": ["x.db"]}, "queues must be DurableQueue or DurableBatcher objects, got str"),
        ({"authorize": None}, "authorize must be a function, got NoneType"),
        ({"redact": 1}, "redact must be a function, got int"),
        ({"read_only": 1}, "read_only must be True or False, got 1"),
        ({"base_path": "queues"}, "base_path must be '' or as '/admin/queues', got 'queues'"),
        ({"base_path": "//evil.example"}, "base_path must be"),
    ],
)
def test_bad_arguments_are_refused_by_name(tmp_path, arguments, message):
    """At once, and not by the first visitor."""
    queue = DurableQueue(tmp_path / "a.db", item_type=Any, telemetry=False)
    given: dict[str, Any] = {"queues": [queue], "authorize": lambda _: "act", **arguments}
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        QueuePage(given.pop("queues"), **given)
    with pytest.raises(ValueError, match="each queue once"):
        QueuePage([queue, queue], authorize=lambda _: "act")


async def test_nothing_answers_a_websocket(tmp_path):
    """There are none; a server that upgrades is told so."""
    page = QueuePage(
        DurableQueue(tmp_path / "a.db", item_type=Any, telemetry=False), authorize=lambda _: "act"
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await page({"type": "websocket", "path": "/", "headers": [], "root_path": ""}, receive, send)
    assert sent == ["websocket.close"]


async def test_numbers_of_any_length_are_no_fault_of_ours(tmp_path):
    """Python reads no number of more than 4,300 digits."""
    async with worker_and_page(tmp_path / "a.db") as (_, browser):
        for number in ("0", "-1", "1.5", "x", "9" * 20, "9" * 5_000, "\u0663"):
            await browser.get(f"/q/orders/items/{number}", 404)
            await browser.get(f"/q/orders/items/{number}/payload", 404)
        for query in (f"before={'9' * 5_000}", "before=-1", f"before={10**30}", "n=x&did=purge"):
            await browser.get(f"/q/orders?{query}", 400)
        await browser.get(f"/q/orders/jobs?cursor={10**30}", 400)


@pytest.mark.parametrize("host", ["a:99999", "a:x", "[", "a:-1", "[::1"])
async def test_a_host_header_that_names_none_is_a_bad_request(tmp_path, host):
    """What a scanner sends is no error of the server's."""
    async with worker_and_page(tmp_path / "a.db") as (_, browser):
        answer = await browser.http.get("/q/orders", headers={"host": host})
        assert answer.status_code == 400
        assert "content-security-policy" in answer.headers


async def test_a_head_of_a_followed_page_ends(tmp_path):
    """There is nothing to follow without a body, and it would take a place among the streams."""
    async with worker_and_page(tmp_path / "a.db") as (_, browser):
        answer = await browser.http.head("/q/orders?live=1")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
