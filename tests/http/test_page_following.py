"""Pages that follow what happens: server-sent events, each a whole page, until the browser or the server goes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from page_support import worker_and_page
from support import backend_options, turns

from microbatch.http._page import following

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The durable mode runs on asyncio and uvloop; nothing of the page tells them apart."""
    return backend_options("asyncio", real_time=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "INTERVAL", 0.01)


class Listener:
    """An EventSource: sends one request, and keeps what comes."""

    def __init__(self, app: Any, path: str, query: str = "live=1") -> None:
        self._app = app
        self._scope = {
            "type": "http", "method": "GET", "path": path, "query_string": query.encode(), "root_path": "",
            "headers": [(b"host", b"queues.test")], "scheme": "http", "server": ("queues.test", 80),
        }  # fmt: skip
        self.gone = anyio.Event()
        self.ended = anyio.Event()
        self.over = False
        self.finished = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._came = anyio.Event()
        self.body = b""

    async def run(self) -> None:
        await self._app(self._scope, self._receive, self._send)
        self.over = True
        self.ended.set()
        self._came.set()

    async def _receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        self.body += message.get("body", b"")
        self.finished = not message.get("more_body", True)
        self._came.set()

    async def until(self, text: bytes) -> None:
        while text not in self.body:
            assert not self.over, self.body
            await self._came.wait()
            self._came = anyio.Event()


async def test_a_followed_page_is_sent_again_when_something_changed(tmp_path):
    """At once the page as it is; then another one as soon as a count moves; silence in between."""
    async with (
        worker_and_page(tmp_path / "a.db") as (worker, browser),
        anyio.create_task_group() as group,
    ):
        await worker.pause()
        listener = Listener(browser.app, "/q/orders")
        group.start_soon(listener.run)
        await listener.until(b'data-live="count-ready">0<')
        assert listener.status == 200
        assert listener.headers[b"content-type"] == b"text/event-stream"
        assert listener.headers[b"cache-control"] == b"no-store"
        await worker.enqueue(1)
        await listener.until(b'data-live="count-ready">1<')
        events = listener.body.split(b"\n\n")
        assert all(line.startswith(b"data: ") for line in events[0].split(b"\n"))
        listener.gone.set()
    assert listener.over


async def test_a_stream_ends_when_the_server_does_or_it_lasted_long_enough(tmp_path, monkeypatch):
    """A browser comes again by itself, and is then asked anew who it is."""
    async with worker_and_page(tmp_path / "a.db") as (_, browser):
        listener = Listener(browser.app, "/")
        async with anyio.create_task_group() as group:
            group.start_soon(listener.run)
            await listener.until(b"</html>")
            browser.app.end_streams()
        assert listener.over
        monkeypatch.setattr(following, "LOOKS", 5)
        monkeypatch.setattr(following, "SILENT_LOOKS", 2)
        monkeypatch.setattr("microbatch.http._page.words.span", lambda _: "0 s")
        silent = Listener(browser.app, "/q/orders/jobs")
        await silent.run()
        assert silent.finished
        assert silent.body.count(b"<html") == 1
        assert b"\n\n:\n\n" in silent.body  # a sign of life, though nothing happened


async def test_a_stream_ends_when_its_page_is_no_more(tmp_path):
    """An item that was purged: the browser's next request gets the 404."""
    async with (
        worker_and_page(tmp_path / "a.db") as (worker, browser),
        anyio.create_task_group() as group,
    ):
        await worker.pause()
        ticket = await worker.enqueue(1)
        await worker.cancel(ticket)
        listener = Listener(browser.app, f"/q/orders/items/{ticket.id}")
        group.start_soon(listener.run)
        await listener.until(b"</html>")
        await worker.purge([ticket])
        with anyio.fail_after(30):
            await listener.ended.wait()
        await browser.get(f"/q/orders/items/{ticket.id}?live=1", 404)


async def test_what_cannot_be_followed_is_said_and_streams_are_bounded(tmp_path, monkeypatch):
    """A download is no page; and a thousand tabs are no load."""
    async with worker_and_page(tmp_path / "a.db") as (worker, browser):
        job = await worker.enqueue_job([2])
        await job.wait(30)
        await browser.get(f"/q/orders/jobs/{job.id}/results?live=1", 400)
        monkeypatch.setattr(following, "STREAMS_MAX", 0)
        assert "reload instead" in await browser.get("/?live=1", 503)


def test_a_page_is_an_event_whatever_ends_its_lines():
    """A lone carriage return ends a line of an event: without its mark the rest would be lost, or a field."""
    assert following.event("a\rb\r\nc\nd") == b"data: a\ndata: b\ndata: c\ndata: d\n\n"


async def test_a_stream_that_ends_before_it_begins_is_an_answer_all_the_same(tmp_path):
    """A server takes an answer's end for a fault where there was no beginning."""
    async with worker_and_page(tmp_path / "a.db") as (_, browser):
        types: list[str] = []

        class Gone(Listener):
            async def _send(self, message: Any) -> None:
                await turns()  # it is seen first that nobody is there
                types.append(message["type"])

        listener = Gone(browser.app, "/q/orders")
        listener.gone.set()
        await listener.run()
        assert types == ["http.response.start", "http.response.body"]
