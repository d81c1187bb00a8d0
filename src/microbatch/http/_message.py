"""The message of a webhook, by the Standard Webhooks specification. Pure: no loop, no clock, no I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microbatch.durable import JobStatus

#: Where a job's metadata has the URL of its webhook. No answer shows a job's metadata.
METADATA_KEY: Final = "microbatch.webhook"

#: Bytes of a secret, by the specification: fewer could be guessed, more are a mistake.
SECRET_BYTES: Final = range(24, 65)

_PREFIX: Final = "whsec_"


class Message(msgspec.Struct, frozen=True):
    """What one webhook sends, stored until it has arrived.

    Attributes:
        id: The same at every attempt, by which the receiver knows what came twice.
        url: Where it goes.
        owner: Whose secret it is signed with.
        body: The same bytes at every attempt.
    """

    id: str
    url: str
    owner: str | None
    body: bytes


def message_of(status: JobStatus) -> Message | None:
    """Return the message for a job that has ended; None if nobody asked for one."""
    url = (status.metadata or {}).get(METADATA_KEY)
    if not isinstance(url, str):
        return None
    return Message(f"msg_{status.id}", url, status.owner, msgspec.json.encode(_payload(status)))


def _payload(status: JobStatus) -> dict[str, Any]:
    """Return what the receiver gets: enough to decide whether to fetch the rest, with its own rights."""
    return {
        "type": "job.ended",
        "timestamp": status.ended_at,
        "data": {
            "jobId": status.id,
            "status": "completed"
            if status.outcome in ("succeeded", "partially_succeeded")
            else "failed",
            "outcome": status.outcome,
            "summary": {
                "total": status.total,
                "succeeded": status.succeeded,
                "failed": status.failed,
                "skipped": status.skipped,
                "cancelled": status.cancelled,
                "expired": status.expired,
                "errors": dict(status.errors),
            },
        },
    }


def keys_of(secrets: object) -> list[bytes]:
    """Return the bytes of a secret, or of several.

    Raises:
        TypeError: If it is neither a str nor a sequence of them.
        ValueError: If one is not ``whsec_`` and 24 to 64 bytes in base64. No message shows it.
    """
    given: Any = [secrets] if isinstance(secrets, str) else secrets
    if not isinstance(given, (list, tuple)) or not given:
        kind = type(secrets).__name__
        raise TypeError(f"secret_of must return a str or a list of them, got a {kind}")
    return [_key_of(secret) for secret in given]


def _key_of(secret: object) -> bytes:
    if not isinstance(secret, str):
        raise TypeError(f"a webhook's secret must be a str, got a {type(secret).__name__}")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) not in SECRET_BYTES:
        raise ValueError(f"a webhook's secret must be {_PREFIX!r} and 24 to 64 bytes in base64")
    return key


def headers_of(message: Message, timestamp: int, keys: Sequence[bytes]) -> dict[str, str]:
    """Return the headers that identify and sign a message.

    Args:
        message: The message.
        timestamp: The time of this attempt, in seconds since the epoch.
        keys: The owner's secrets; each signs, so that one can follow another without a gap.
    """
    signed = f"{message.id}.{timestamp}.".encode() + message.body
    signatures = (hmac.digest(key, signed, hashlib.sha256) for key in keys)
    return {
        "webhook-id": message.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(s).decode()}" for s in signatures),
    }
