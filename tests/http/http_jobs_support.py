"""An API whose batches become jobs, and a client of it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import httpx
from http_support import User, Users, api_of

from microbatch.durable import DurableBatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from microbatch.http import BatchAPI

UNKNOWN = "01900000-0000-7000-8000-000000000000"


class HeldUsers(Users):
    """Users whose creation can be held back."""

    def __init__(self) -> None:
        super().__init__()
        self.free = anyio.Event()
        self.free.set()

    def hold(self) -> None:
        self.free = anyio.Event()

    async def create_held(self, items: list[User]) -> list[User | Exception]:
        await self.free.wait()
        return await self.create(items)


@dataclass
class Shop:
    """An API with a queue, its worker, and clients of two principals."""

    api: BatchAPI
    queue: DurableBatcher[Any, Any]
    users: HeldUsers
    ann: httpx.AsyncClient
    bob: httpx.AsyncClient

    async def job(self, count: int = 3, **more: Any) -> dict[str, Any]:
        """Let ann send a batch that becomes a job."""
        items = more.pop("items", None) or [{"name": f"n{n}"} for n in range(count)]
        sent = await self.ann.post(
            "/users/batch",
            json={"items": items, "options": {"async": True} | more.pop("options", {})} | more,
        )
        assert sent.status_code == 202, sent.text
        return sent.json()

    async def ended(self, job: dict[str, Any]) -> dict[str, Any]:
        found = await self.ann.get(job["links"]["self"], params={"wait": 30})
        assert found.json()["life"] == "ended"
        return found.json()


@contextlib.asynccontextmanager
async def shop_of(path: Path, **settings: Any) -> AsyncIterator[Shop]:
    """Open all of it; ``of_queue`` are the worker's settings."""
    users = HeldUsers()
    of_queue = {"item_type": User, "result_type": User, "poll_interval": 0.02} | settings.pop(
        "of_queue", {}
    )
    handler = settings.pop("handler", users.create_held)
    async with DurableBatcher(path, handler, **of_queue) as queue:
        api = api_of(users, **({"queue": queue} | settings))
        async with api, clients_of(api) as (ann, bob):
            yield Shop(api, queue, users, ann, bob)
            users.free.set()


@contextlib.asynccontextmanager
async def clients_of(api: Any) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    transport = httpx.ASGITransport(api)
    async with (
        httpx.AsyncClient(
            transport=transport, base_url="http://test", headers={"authorization": "Bearer ann"}
        ) as ann,
        httpx.AsyncClient(
            transport=transport, base_url="http://test", headers={"authorization": "Bearer bob"}
        ) as bob,
    ):
        yield ann, bob


class Wire:
    """One request to an application, piece by piece, as a server would bring it."""

    def __init__(self, method: str, target: str, **headers: str) -> None:
        path, _, query = target.partition("?")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.scope: dict[str, Any] = {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "query_string": query.encode(),
            "headers": [(k.encode(), v.encode()) for k, v in ({"authorization": "Bearer ann"} | named).items()],
            "scheme": "http", "server": ("test", 80), "root_path": "",
        }  # fmt: skip
        self.sent, self._receive = anyio.create_memory_object_stream[dict[str, Any]](100)
        self.answer: list[dict[str, Any]] = []
        self._news = anyio.Event()
        self.at_start: Callable[[], Awaitable[None]] | None = None

    async def send(self, message: dict[str, Any]) -> None:
        if not self.answer and self.at_start is not None:
            await self.at_start()
        self.answer.append(message)
        self._news.set()
        self._news = anyio.Event()
        await anyio.lowlevel.checkpoint()

    async def run(self, app: Any) -> None:
        with self._receive, self.sent:
            await app(self.scope, self._receive.receive, self.send)

    def close(self) -> None:
        """End a wire that was not run."""
        self.sent.close()
        self._receive.close()

    async def body(self, *pieces: bytes, more: bool = False) -> None:
        for at, piece in enumerate(pieces):
            last = at == len(pieces) - 1 and not more
            await self.sent.send({"type": "http.request", "body": piece, "more_body": not last})

    async def leave(self) -> None:
        await self.sent.send({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return self.answer[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.answer[0]["headers"]}

    @property
    def content(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.answer[1:])

    @property
    def is_whole(self) -> bool:
        return len(self.answer) > 1 and not self.answer[-1].get("more_body", False)

    async def until(self, text: bytes) -> None:
        """Wait until something has come."""
        while len(self.answer) < 1 or text not in self.content:
            await self._news.wait()

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for block in self.content.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
            if "event" in lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found
