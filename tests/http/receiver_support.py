"""A receiver of webhooks on loopback, which answers as a test says and remembers what came."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import ssl


@dataclass
class Received:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """``answers``: a status each, or a whole answer; the last one is given again and again."""

    answers: list[int | bytes] = field(default_factory=lambda: [204])
    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    serving: set[asyncio.Task[Any]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve, self.host, self.port, ssl=self.tls, start_serving=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._came = asyncio.Condition()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self.serving)
        await self._server.wait_closed()

    async def _serve(self, reader: Any, writer: Any) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.strip().split("\r\n")
            headers = {k.lower(): v for k, v in (entry.split(": ", 1) for entry in rest)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.received.append(Received(line, headers, body))
            answer = self.answers[min(len(self.received), len(self.answers)) - 1]
            if isinstance(answer, int):
                answer = f"HTTP/1.1 {answer} So\r\nContent-Length: 0\r\n\r\n".encode()
            writer.write(answer)
            await writer.drain()
            async with self._came:
                self._came.notify_all()
        writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await writer.wait_closed()

    async def got(self, count: int) -> list[Received]:
        """Wait until so many have come."""
        async with self._came:
            await self._came.wait_for(lambda: len(self.received) >= count)
        return self.received
