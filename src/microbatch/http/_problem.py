"""Problem: why a request was refused, as `application/problem+json` (RFC 9457) tells it."""

from __future__ import annotations

import http
import math
from typing import TYPE_CHECKING, Any

from ._reply import HTTPReply, json_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Ends a request with an error. Whatever handles a request may raise it.

    Args:
        status: The status of the response, 400 to 599.
        detail: What was wrong with this request, for people. Nothing of it may come from an exception
            that is no ``ItemError``.
        type: What kind of problem it is, for programs: a word such as ``"batch-too-large"``, which is a
            reference relative to the API; ``"about:blank"`` where the status says it all.
        title: The kind in words; the status's own words by default.
        headers: Headers of the response.
        retry_after: Seconds after which the same request may do better: the header ``Retry-After``.
        close: Whether the connection ends with this answer, because the request's body was not read.
        members: More members of the document, such as ``max_items``.
    """

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        type: str = "about:blank",  # noqa: A002 - the member's name
        title: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        close: bool = False,
        **members: Any,
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.type = type
        self.title = http.HTTPStatus(status).phrase if title is None else title
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        if close:
            self.headers["connection"] = "close"
        self.members = members

    def document(self) -> dict[str, Any]:
        """Return the problem's document, of built-in types."""
        document = {"type": self.type, "title": self.title, "status": self.status}
        if self.detail is not None:
            document["detail"] = self.detail
        return document | self.members

    def reply(self) -> HTTPReply:
        """Return the answer that tells it."""
        return json_reply(self.status, self.document(), headers=self.headers, media_type=MEDIA_TYPE)
