"""One request of the page: who asks, in which session, from where links go, what of it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from starlette.requests import Request

    from microbatch.durable.insight import Insight

    from .guard import BrowserSession, Role
    from .places import Places
    from .shown import Shown

#: Bytes of a form: a page full of ids is some 2 kB.
FORM_BYTES = 65_536

#: Seconds in which it must be there.
FORM_TIMEOUT = 15.0

_NUMBER_MAX = 2**63 - 1


class Visit:
    """What an endpoint knows.

    Args:
        request: The request.
        role: What who asks may do.
        session: The browser's session.
        places: The page's queues, by how they are called in addresses.
        shown: Makes texts of the application's data.
        base: What stands before our paths in links.
        read_only: Whether nobody may act.
    """

    def __init__(
        self,
        request: Request,
        *,
        role: Role,
        session: BrowserSession,
        places: Places,
        shown: Shown,
        base: str,
        read_only: bool,
    ) -> None:
        self.request = request
        self.session = session
        self.places = places
        self.shown = shown
        self.base = base
        self.read_only = read_only
        self.may_act = role == "act" and not read_only

    @property
    def queue(self) -> Insight:
        """Return the queue that the address names.

        Raises:
            HTTPException: 404 if there is none.
        """
        try:
            return self.places.by_slug[self.request.path_params["queue"]]
        except KeyError:
            raise HTTPException(404, "There is no such queue.") from None

    def link(self, path: str, **query: Any) -> str:
        """Return the address of a path of ours."""
        chosen = {name: value for name, value in query.items() if value not in (None, "")}
        return f"{self.base}/{path}" + (f"?{urlencode(chosen, doseq=True)}" if chosen else "")

    def queue_link(self, path: str = "", **query: Any) -> str:
        """Return the address of a path of the queue's."""
        slug = self.places.slug_of[self.queue]
        return self.link(f"q/{slug}/{path}" if path else f"q/{slug}", **query)

    def text(self, name: str) -> str:
        """Return what the address says for a name; empty where it says nothing."""
        return self.request.query_params.get(name, "").strip()

    def number(self, name: str) -> int | None:
        """Return a number of the address, None without one.

        Raises:
            HTTPException: 400 if it is none.
        """
        text = self.text(name)
        return number_of(text, name) if text else None

    def check_may_act(self) -> None:
        """Refuse who may only look.

        Raises:
            HTTPException: 403.
        """
        if not self.may_act:
            why = "This page is read-only." if self.read_only else "You may look, but not act."
            raise HTTPException(403, why)

    async def form(self) -> list[tuple[str, str]]:
        """Return the fields of a form that was sent from this session.

        Raises:
            HTTPException: 403 if it was not; 400, 408, 413 or 415 if it cannot be read.
        """
        content_type = self.request.headers.get("content-type", "").partition(";")[0].strip()
        if content_type.lower() != "application/x-www-form-urlencoded":
            raise HTTPException(415, "This is not a form.")
        body = b""
        try:
            with anyio.fail_after(FORM_TIMEOUT):
                async for piece in self.request.stream():
                    body += piece
                    if len(body) > FORM_BYTES:
                        raise HTTPException(413, "This form is too large.")
            fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=5_000)
        except (ValueError, ClientDisconnect):
            raise HTTPException(400, "This form cannot be read.") from None
        except TimeoutError:
            raise HTTPException(408, "This form did not come in time.") from None
        self.session.check(self.request, dict(fields).get("token", ""))
        return fields


def number_of(text: str, name: str) -> int:
    """Return a number that stands in an address or a form.

    Raises:
        HTTPException: 400 if it is none, or out of range.
    """
    if is_number(text):
        return int(text)
    raise HTTPException(400, f"{name} must be a whole number.")


def is_number(text: str) -> bool:
    """Tell whether a text is a number that an id can be."""
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _NUMBER_MAX
