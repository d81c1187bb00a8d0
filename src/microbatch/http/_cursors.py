"""Cursors: where the next page begins, as clients get it. Pure.

Opaque, so that nobody builds on what is inside, and bound to their owner and to what they page through: to
anybody else, or anywhere else, they are no cursors. They guard nothing: every query asks for the owner.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, Final

import msgspec

from ._problem import Problem

_TAG_BYTES: Final = 9

#: Characters of the longest one that is read: a place in each of some hundred queues.
_CHARACTERS_MAX: Final = 8_000


def encode_cursor(value: Any, owner: str, what: str) -> str:
    """Return a place as text.

    Args:
        value: The place: built-in values.
        owner: Who may use it.
        what: What it is a place in.
    """
    payload = msgspec.msgpack.encode(value)
    key = _key_for(owner, what)
    tag = _tag_of(payload, key)
    return base64.urlsafe_b64encode(tag + _mask(payload, key, tag)).decode().rstrip("=")


def decode_cursor(text: str, owner: str, what: str, kind: Any) -> Any:
    """Return the place that a text stands for.

    Args:
        text: What the client sent.
        owner: Who sent it.
        what: What it is to be a place in.
        kind: The place's type.

    Raises:
        Problem: 400 if it is none of this owner's and of this.
    """
    try:
        if len(text) > _CHARACTERS_MAX:
            raise ValueError
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        tag, masked = data[:_TAG_BYTES], data[_TAG_BYTES:]
        key = _key_for(owner, what)
        payload = _mask(masked, key, tag)
        if tag != _tag_of(payload, key):
            raise ValueError
        return msgspec.msgpack.decode(payload, type=kind)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise Problem(
            400, "this is no cursor of this list", type="invalid-parameter", parameter="cursor"
        ) from None


def _key_for(owner: str, what: str) -> bytes:
    text = f"{len(owner)} {owner} {what}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).digest()


def _tag_of(payload: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_TAG_BYTES, key=key).digest()


def _mask(data: bytes, key: bytes, tag: bytes) -> bytes:
    """Hide what is inside, or show it again: numbers of rows would tell how much others do."""
    stream = hashlib.shake_256(key + tag).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream, strict=True))
