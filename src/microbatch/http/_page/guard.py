"""Who may see the page, and whether an action comes from it."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import re
import secrets
from typing import TYPE_CHECKING, Any, Literal

from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    Role = Literal["read", "act"]
    Authorize = Callable[[Request], "Role | None" | Awaitable["Role | None"]]

#: Nothing runs and nothing is loaded but our own files, no page frames this one, and no form leads elsewhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": a browser would then hide the origin of our own forms too.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_SESSION = re.compile(r"[A-Za-z0-9_-]{43}")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


async def role_of(request: Request, authorize: Authorize) -> Role:
    """Return what who asks may do.

    Raises:
        HTTPException: 403 if the application says None, or raises ``PermissionError``; what it raises itself.
        TypeError: If it says something else.
    """
    try:
        role: Any = authorize(request)
        if inspect.isawaitable(role):
            role = await role
    except PermissionError:
        role = None
    if role is None:
        raise HTTPException(403, "You may not see this page.")
    if role not in ("read", "act"):
        message = f"authorize must return 'read', 'act' or None, got {role!r}"
        raise TypeError(message)
    return role  # type: ignore[no-any-return]


class BrowserSession:
    """A browser's session: a random cookie that no script reads, from which the token of its forms follows.

    So every process that serves the page knows the token, without a secret that they share.

    Args:
        request: What the browser sent.
        path: Below which path the cookie counts.

    Raises:
        HTTPException: 400 if the ``Host`` header names none.
    """

    def __init__(self, request: Request, path: str) -> None:
        try:
            port = request.url.port
        except ValueError:
            raise HTTPException(400, "The Host header names no host.") from None
        # Browsers keep no ports apart: the name does.
        self._cookie = "microbatch-page" if port is None else f"microbatch-page-{port}"
        self._path = path or "/"
        self._secure = request.url.scheme == "https"
        sent = request.cookies.get(self._cookie, "")
        self._is_new = _SESSION.fullmatch(sent) is None
        self._value = secrets.token_urlsafe(32) if self._is_new else sent

    @property
    def token(self) -> str:
        """Return what a form of this session must bring."""
        return hmac.new(self._value.encode(), b"microbatch page", hashlib.sha256).hexdigest()

    def keep(self, response: Response) -> None:
        """Give the browser its cookie if it has none."""
        if self._is_new:
            response.set_cookie(
                self._cookie,
                self._value,
                path=self._path,
                secure=self._secure,
                httponly=True,
                samesite="strict",
            )

    def check(self, request: Request, token: str) -> None:
        """Refuse an action that does not come from a form of this session.

        Raises:
            HTTPException: 403.
        """
        if not _is_ours(request):
            raise HTTPException(403, "This action did not come from this page: nothing was done.")
        if self._is_new or not hmac.compare_digest(token.encode(), self.token.encode()):
            message = "This form belongs to another session: nothing was done. Go back, reload, and try again."
            raise HTTPException(403, message)


def _is_ours(request: Request) -> bool:
    """Tell whether a browser says that a request comes from a page of ours."""
    scheme, _, place = request.headers.get("origin", "").partition("://")
    # A proxy that ends TLS may leave us with plain HTTP; never the other way.
    if scheme not in _DEFAULT_PORTS or (request.url.scheme == "https" and scheme != "https"):
        return False
    host = request.headers.get("host", "")
    default = f":{_DEFAULT_PORTS[scheme]}"
    return bool(host) and place.lower() == host.removesuffix(default).lower()
