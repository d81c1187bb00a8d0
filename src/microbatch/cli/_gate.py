"""Who may pass to a page that is served on this machine: who had its address, and asks under its own name."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

#: Names under which a page on this machine alone may be asked for.
_LOCAL = ("127.0.0.1", "localhost", "::1")

_SAFE = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gate:
    """An ASGI application before another one.

    A GET with the token in its address, once, gets a cookie and goes on without the token; everything else
    needs the cookie. A ``Host`` that is not ours is refused first: a page of another site cannot reach us
    under a name of its own.

    Args:
        app: The application behind it.
        host: The address that is listened at, as the user named it.
        port: The port.
        remote: Whether other machines may ask.

    Attributes:
        address: Where a browser goes first, with the token.
    """

    def __init__(self, app: Any, host: str, port: int, *, remote: bool) -> None:
        self._app = app
        self._port = port
        self._remote = remote
        self._token: str | None = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        # Browsers keep no ports apart: the name does.
        self._cookie = f"microbatch-ui-{port}"
        self._names = {*_LOCAL, host.lower()}
        if remote:
            self._names.add(socket.gethostname().lower())
        name = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 - asked about
        self.address: str = f"http://{_bracketed(name)}:{port}/?token={self._token}"

    async def __call__(
        self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        answer: Any
        if not self._is_ours(request.headers.get("host", "")):
            answer = PlainTextResponse("This server has another name.\n", 421, _SAFE)
        elif self._takes_token(request):
            answer = RedirectResponse("/", 303, _SAFE)
            answer.set_cookie(
                self._cookie, self._session, path="/", httponly=True, samesite="strict"
            )
        elif _is_right(request.cookies.get(self._cookie, ""), self._session):
            answer = self._app
        else:
            text = "Open the address that microbatch ui printed; it works once. Start it again for another.\n"
            answer = PlainTextResponse(text, 401, _SAFE)
        await answer(scope, receive, send)

    def _takes_token(self, request: Request) -> bool:
        given = request.query_params.get("token")
        if given is None or self._token is None or request.method != "GET":
            return False
        if not _is_right(given, self._token):
            return False
        self._token = None
        return True

    def _is_ours(self, sent: str) -> bool:
        name, port = sent.lower(), "80"
        if not name.endswith("]") and ":" in name:
            name, _, port = name.rpartition(":")
        if port != str(self._port):
            return False
        name = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        # An address is no name that somebody could point at us.
        return name in self._names or (self._remote and _is_address(name))


def _is_right(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
