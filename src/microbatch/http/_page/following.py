"""A page that follows what happens: the same page, sent again as an event when it looks another way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

#: Seconds between two looks.
INTERVAL = 1.0

#: Looks after which a stream ends. The browser comes again by itself, and is asked anew who it is.
LOOKS = 60

#: Looks without news after which a line is sent all the same, so that it is noticed if nobody is there.
SILENT_LOOKS = 15

#: Streams at once: each costs a few reads a second.
STREAMS_MAX = 100


class Streams:
    """The streams that are open, so that they can be ended."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()

    @property
    def is_full(self) -> bool:
        """Tell whether there are as many as may be."""
        return len(self._scopes) >= STREAMS_MAX

    def end(self) -> None:
        """End all of them; call it in their event loop."""
        for scope in list(self._scopes):
            scope.cancel()

    def enter(self, scope: anyio.CancelScope) -> None:
        """Note one."""
        self._scopes.add(scope)

    def leave(self, scope: anyio.CancelScope) -> None:
        """Forget one."""
        self._scopes.discard(scope)


class Following:
    """An answer of server-sent events, each of which holds a whole page.

    Args:
        render: Makes the page; None if there is none any more, which ends the stream.
        first: The page as it is now.
        streams: Where it is noted.
        headers: What the answer says of itself.
    """

    def __init__(
        self,
        render: Callable[[], Awaitable[str | None]],
        first: str,
        streams: Streams,
        headers: dict[str, str],
    ) -> None:
        self._render = render
        self._first = first
        self._streams = streams
        self._headers = {**headers, "content-type": "text/event-stream"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send pages until the browser has gone, the stream is ended, or has lasted long enough."""
        del scope
        raw = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in self._headers.items()
        ]
        async with anyio.create_task_group() as group:
            self._streams.enter(group.cancel_scope)
            try:
                group.start_soon(self._until_gone, receive, group.cancel_scope)
                # It ends with an end, also if it is to end at once, and an end needs a beginning.
                with anyio.CancelScope(shield=True):
                    await send({"type": "http.response.start", "status": 200, "headers": raw})
                await self._tell(send, self._first)
            finally:
                self._streams.leave(group.cancel_scope)
            group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _tell(self, send: Send, page: str) -> None:
        told, silent = "", 0
        for look in range(LOOKS):
            if look:
                await anyio.sleep(INTERVAL)
                following = await self._render()
                if following is None:
                    return
                page = following
            silent += 1
            if page != told:
                body, told, silent = event(page), page, 0
            elif silent >= SILENT_LOOKS:
                body, silent = b":\n\n", 0
            else:
                continue
            await send({"type": "http.response.body", "body": body, "more_body": True})


def event(text: str) -> bytes:
    """Return a text as a server-sent event."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join([*(f"data: {line}\n" for line in lines), "\n"]).encode(
        "utf-8", "backslashreplace"
    )
