"""Answers that are written piece by piece, to a client who may leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from starlette.responses import Response

from microbatch._io.sources import SECONDS_TO_CLOSE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    Write = Callable[[bytes], Awaitable[None]]


async def left(leaving: Callable[[], Awaitable[None]]) -> None:
    """Let go of what an answer is written from, whatever has ended it, in bounded time."""
    with anyio.move_on_after(SECONDS_TO_CLOSE, shield=True):
        await leaving()


class StreamedReply(Response):
    """An answer whose body is written while it is sent.

    Each piece waits until the one before is on its way. When the client leaves the writing is cancelled. What
    the writing raises breaks the answer off: the server closes the connection without the body's end.

    Args:
        writing: Writes the body.
        media_type: What the body is.
        headers: Headers of the answer.
        seconds: How long it may take; then it ends as if it were whole. None for no limit.
        leaving: Called once, whatever happens, when nothing more is written; it gets 5 seconds.
    """

    def __init__(
        self,
        writing: Callable[[Write], Awaitable[None]],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
        leaving: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self._writing = writing
        self._seconds = seconds
        self._leaving = leaving
        self.init_headers(dict(headers or {}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            gone = scope["method"] != "HEAD" and await self._write(receive, send)
            if not gone:
                await send({"type": "http.response.body", "body": b""})
        finally:
            if self._leaving is not None:
                await left(self._leaving)

    async def _write(self, receive: Receive, send: Send) -> bool:
        """Write the body; tell whether the client has left."""
        gone = False
        failed: Exception | None = None

        async def write(piece: bytes) -> None:
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass  # a body that nobody asked for
            gone = True
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            with anyio.move_on_after(self._seconds):
                try:
                    await self._writing(write)
                except Exception as error:  # noqa: BLE001 - raised below, outside of the group
                    failed = error
            tasks.cancel_scope.cancel()
        if failed is not None and not gone:
            raise failed
        return gone
