"""What the tests of the page share: a client that calls it without a socket, as a browser would."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, suppress
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx

from microbatch import ItemError
from microbatch.durable import DurableBatcher, ItemFailed
from microbatch.http import QueuePage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOST = "http://queues.test"

#: As the page's own forms send it.
ORIGIN = {"origin": HOST}


class Browser:
    """Calls a page, keeps its cookies, and sends its forms."""

    def __init__(self, app: Any, base: str = "") -> None:
        self.app = app
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOST)
        self.base = base

    async def get(self, path: str, status: int = 200) -> str:
        answer = await self.http.get(self.base + path)
        assert answer.status_code == status, answer.text
        return answer.text

    async def confirm(self, path: str, **more: str) -> httpx.Response:
        """Open a page that asks, and press its button."""
        page = await self.get(path)
        (target,) = re.findall(r'<form method="post" action="([^"]+)"', page)
        fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', page)
        sent = [(name, unescape(value)) for name, value in fields]
        return await self.post(unescape(target), [*sent, *more.items()])

    async def post(
        self, path: str, fields: list[tuple[str, str]], **headers: str
    ) -> httpx.Response:
        return await self.http.post(
            path,
            content=urlencode(fields),
            headers={"content-type": "application/x-www-form-urlencoded", **ORIGIN, **headers},
        )


def text_of(page: str) -> str:
    """Return what stands on a page, without its marks."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


async def refuse_odd(items: list[Any]) -> list[Any]:
    """A handler: even numbers are doubled, odd ones refused; what is no number comes back."""
    return [_judged(item) for item in items]


def _judged(item: Any) -> Any:
    number = item.get("n") if isinstance(item, dict) else item
    if isinstance(number, int) and number % 2:
        return ItemError(f"{number} is odd", code="odd", retryable=number % 3 == 0)
    return number * 2 if isinstance(number, int) else item


def anybody(_: Any) -> str:
    return "act"


@asynccontextmanager
async def worker_and_page(
    path: Path, *, handler: Any = refuse_odd, queue: str = "orders", **settings: Any
) -> AsyncIterator[tuple[DurableBatcher[Any, Any], Browser]]:
    """A worker, and a page that shows its queue."""
    settings = {"authorize": anybody, **settings}
    async with DurableBatcher(path, handler, item_type=Any, queue=queue, telemetry=False) as worker:
        browser = Browser(QueuePage([worker], **settings))
        async with browser.http:
            yield worker, browser


async def ended(worker: DurableBatcher[Any, Any], tickets: list[Any]) -> None:
    """Wait until items have ended, however."""
    for ticket in tickets:
        with suppress(ItemFailed):
            await worker.result(ticket, 30)
