"""One request from the first byte to the last: found, allowed, read, handed to its endpoint, answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from starlette.requests import Request

from ._exchange import Exchange
from ._faults import fault_problem
from ._principals import principal_of
from ._problem import Problem
from ._reading import ClientGoneError, body_of, check_json
from ._reply import HTTPReply
from ._routing import parts_of

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send

    from ._parts import APIParts
    from ._routing import Router

#: What every answer says of itself, where its endpoint says nothing else.
HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}

#: Seconds, and bytes, for which what still comes of a refused body is dropped before its connection ends. Most
#: clients have sent all by then, or have gone: nginx waits up to 5 s for each piece and 30 s for all.
LINGER = 1.0
LINGER_BYTES = 16 << 20


async def serve(
    parts: APIParts, router: Router, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a request.

    What may be wrong with it is asked in this order: 404 and 405, 401, 403, 415, 408 and 413 while the body is
    read, and then what the endpoint says: see `Exchange`.

    Raises:
        Exception: What a stream raises when its answer has begun already: the server then breaks it off.
    """
    incoming = _Incoming(receive)
    request = Request(scope, incoming.receive, send)
    headers: dict[str, str] = {}
    name = "a request"
    try:
        route, parameters = router.find(scope["method"], parts_of(scope))
        name = route.name
        exchange = Exchange(parts, request, route, parameters)
        headers = exchange.headers
        settings = parts.settings
        if not route.public:
            exchange.principal = await principal_of(request, settings.authorize, settings.challenge)
        if route.body == "json":
            check_json(request)
            exchange.body = await body_of(
                request, max_bytes=settings.max_body_bytes, timeout=settings.body_timeout
            )
        reply: HTTPReply | Response = await route.endpoint(exchange)
    except Problem as problem:
        reply = problem.reply()
    except ClientGoneError:
        return
    except Exception as error:  # noqa: BLE001 - of the application's code, or a fault of ours
        reply = fault_problem(error, ["http", name]).reply()
    if isinstance(reply, HTTPReply):
        await _send(reply, headers, scope, send, incoming)
        return
    for key, value in (HEADERS | headers).items():
        reply.headers.setdefault(key, value)
    await reply(scope, receive, send)


async def _send(
    reply: HTTPReply, more: dict[str, str], scope: Scope, send: Send, incoming: _Incoming
) -> None:
    headers: dict[str, str] = HEADERS | more | reply.headers
    body = reply.body
    if reply.media_type is not None and body:
        headers["content-type"] = reply.media_type
    if reply.status not in {204, 304}:
        headers["content-length"] = str(len(body))
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": reply.status,
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
    }
    shown = b"" if scope["method"] == "HEAD" else body
    await send(start)
    if "connection" in headers and not incoming.ended:
        # A server that closes a connection to which more comes resets it, and the client may lose the answer.
        await send({"type": "http.response.body", "body": shown, "more_body": True})
        await incoming.drop()
        shown = b""
    await send({"type": "http.response.body", "body": shown})


class _Incoming:
    """What comes of a request.

    Attributes:
        ended: Whether nothing more will: the body is whole, or the client has left.
    """

    __slots__ = ("_receive", "ended")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.ended = False

    async def receive(self) -> Message:
        """Return the next message of the server."""
        message = await self._receive()
        self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drop(self) -> None:
        """Drop what comes, within bounds."""
        dropped = 0
        with anyio.move_on_after(LINGER):
            while not self.ended and dropped < LINGER_BYTES:
                dropped += len((await self.receive()).get("body", b""))
