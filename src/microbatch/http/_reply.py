"""HTTPReply: an answer as it is made, stored under an Idempotency-Key, and sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec.json

from microbatch._pure.models import as_shown

_encode = msgspec.json.Encoder(enc_hook=as_shown).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPReply:
    """The answer to one request, whole and in memory.

    Attributes:
        status: The status of the response.
        body: Its body; empty for none.
        headers: Its headers but for the length and the media type, by their names in lower case.
        media_type: What the body is; None without one.
        kept: Whether a handler or a job has answered: only such an answer is stored under an
            Idempotency-Key. One that says "not now", or refuses the request, is not.
        job: For an answer about a new job, the name of its collection and its id: who sends the key again
            is told the job's state of that moment.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str | None = "application/json"
    kept: bool = False
    job: tuple[str, str] | None = None


def json_reply(status: int, value: Any, **more: Any) -> HTTPReply:
    """Make a reply whose body is a value as JSON; models in the manner of pydantic may be in it.

    Raises:
        TypeError: If a part of it has no JSON form.
    """
    return HTTPReply(status=status, body=_encode(value), **more)
