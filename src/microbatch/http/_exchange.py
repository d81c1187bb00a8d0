"""Exchange: one request on its way, and what an endpoint may do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import anyio

from ._problem import Problem
from ._reading import ClientGoneError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from ._parts import APIParts
    from ._principals import Principal
    from ._reply import HTTPReply
    from ._routing import Route

    #: Does what a request asks for, to its end. It gets the Idempotency-Key that the request was sent with,
    #: or None; item i is done under the key ``f"{key}:{i}"``.
    Work = Callable[[str | None], Awaitable[HTTPReply]]

T = TypeVar("T")

#: What needs no escape in a path (RFC 3986), beside letters and digits.
_PLAIN_IN_PATHS = "/-._~!$&'()*+,;=:@"

#: Seconds after which a request that found the API closing may find another one.
CLOSING_RETRY_AFTER = 1.0


class Exchange:
    """One request whose sender is known and may ask.

    An endpoint goes through these steps, in this order, and may leave out what does not concern it: read what
    was sent (`Problem` 400), then `once`, within which come 422, `take` (429), 503 and the work itself.

    Attributes:
        parts: What all requests share.
        request: The request, as Starlette has it.
        route: Which route it takes.
        parameters: What stands in its path, by the names in ``route.path``.
        principal: Who sent it. Only on a ``public`` route there is nobody, and this must not be asked.
        body: The raw body, inflated; empty where ``route.body`` is not ``"json"``.
        headers: What every answer to it will have, errors too, by names in lower case.
    """

    __slots__ = ("_principal", "body", "headers", "parameters", "parts", "request", "route")

    def __init__(
        self, parts: APIParts, request: Request, route: Route, parameters: Mapping[str, str]
    ) -> None:
        self.parts = parts
        self.request = request
        self.route = route
        self.parameters = parameters
        self.body: bytes = b""
        self.headers: dict[str, str] = {}
        self._principal: Principal | None = None

    @property
    def principal(self) -> Principal:
        """Return who sent it."""
        assert self._principal is not None, self.route.name  # noqa: S101 - public routes ask for nobody
        return self._principal

    @principal.setter
    def principal(self, principal: Principal) -> None:
        self._principal = principal

    def link(self, path: str) -> str:
        """Return one of the API's paths as a client has to ask for it: absolute, without a host."""
        base = self.parts.settings.base_path
        if base is None:
            # Where an application is mounted at "/{tenant}" this is what the client sent, decoded.
            base = quote(self.request.scope.get("root_path", "").rstrip("/"), safe=_PLAIN_IN_PATHS)
        return f"{base}{path}"

    def take(self, items: int) -> None:
        """Count items against the principal's rate, and tell what is left in the answer's headers.

        Raises:
            Problem: 413 if there are more than could ever be taken at once, 429 if there are more than may be
                taken now.
        """
        if self.parts.buckets is not None:
            self.parts.buckets.take(self.principal.id, items, self.headers)

    def refuse_while_closing(self) -> None:
        """Let nothing new begin while the API closes.

        Raises:
            Problem: 503.
        """
        if self.parts.closing:
            raise Problem(503, "the server is closing", retry_after=CLOSING_RETRY_AFTER)

    async def once(self, work: Work, *, timeout: float | None = None) -> HTTPReply:
        """Do what changes something: to its end, whatever becomes of this request, and once for each key.

        Without an Idempotency-Key, or with one that is new, the work is done and its reply returned; stored
        under the key if the reply is ``kept``. The key is "running" until the work has ended, also
        beyond a 504 and beyond the client.

        Args:
            work: The work.
            timeout: Seconds that the answer may take; the setting of that name by default.

        Raises:
            Problem: What the work raises; 504 if it takes longer than ``timeout``, and then it goes on; 503 if
                the API is closing; and what the key is refused with: 400, 409, 422.
        """
        self.refuse_while_closing()
        keys = self.parts.idempotency
        # The guard of the keys runs inside of the work's own task, so that it lives as long as that.
        guarded = (lambda: work(None)) if keys is None else (lambda: keys.run(self, work))
        if timeout is None:
            timeout = self.parts.settings.timeout
        return await self.parts.detached.run(guarded, timeout=timeout)

    async def while_there(
        self, reading: Callable[[], Awaitable[T]], *, timeout: float | None = None
    ) -> T:
        """Do what only reads: it is cancelled when the client leaves.

        Args:
            reading: Reads.
            timeout: Seconds that it may take; the setting of that name by default.

        Raises:
            ClientGoneError: If the client leaves.
            Problem: What it raises; 504 if it takes longer than ``timeout``; 503 if the API is closing.
        """
        self.refuse_while_closing()
        if timeout is None:
            timeout = self.parts.settings.timeout
        found: list[Any] = []
        failed: list[Exception] = []
        gone = False
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal gone
                while (await self.request.receive())["type"] != "http.disconnect":
                    pass  # a body that nobody asked for
                gone = True
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            with anyio.move_on_after(timeout):
                try:
                    found.append(await reading())
                except Exception as error:  # noqa: BLE001 - raised below, outside of the group
                    failed.append(error)
            tasks.cancel_scope.cancel()
        if failed:
            raise failed[0]
        if found:
            result: T = found[0]
            return result
        if gone:
            raise ClientGoneError
        raise Problem(504, f"it has taken longer than {timeout:g} s", type="timeout")
