"""docs/how-to/queue-page.md: its code runs, and does what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from page_support import HOST
from pages_support import DOCS, blocks_of
from support import backend_options

if TYPE_CHECKING:
    from microbatch.durable import DurableQueue

PAGE = DOCS / "how-to/queue-page.md"

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The durable mode runs on asyncio and uvloop; nothing of the page tells them apart."""
    return backend_options("asyncio", real_time=True)


async def test_the_code_of_the_page_runs_in_its_order(tmp_path, monkeypatch):
    """Mounted twice, asked as both roles, with a login page and with redaction."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    pages = []
    for block in blocks_of(PAGE):
        if block.language == "python":
            exec(compile(block.source, str(PAGE), "exec"), names)
            pages.append(names["page"])
    operator = {"x-role": "operator"}
    async with names["lifespan"](None):
        orders: DurableQueue[Any, Any] = names["orders"]
        await orders.enqueue({"card": "4000-1234", "lines": [{"card": "4000-1234", "n": 1}]})
        for app in (names["app"], names["api"]):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HOST) as http:
                assert (
                    "Pause the queue" in (await http.get("/queues/q/orders", headers=operator)).text
                )
                page = await http.get("/queues/q/orders")
                assert page.status_code == 200
                assert "Pause the queue" not in page.text
                assert "4000-1234" in page.text
        for page, status, shown in ((pages[2], 303, False), (pages[3], 200, True)):
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(page), base_url=HOST
            ) as http:
                answer = await http.get("/q/orders")
                assert answer.status_code == status
                assert ("***" in answer.text) is shown
                assert "4000-1234" not in answer.text
