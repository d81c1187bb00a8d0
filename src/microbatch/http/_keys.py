"""Idempotency keys: how a request names one, and what stands for its content. Pure."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from ._problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Clients send UUIDs, of 36 characters. It is hashed, so this only bounds what is looked at.
KEY_CHARACTERS_MAX = 255

_NAME = r"[a-z*][a-z0-9_.*-]*"
_STRING = r'"((?:[ !#-\[\]-~]|\\["\\])*)"'
_BARE = rf"(?:{_STRING}|[A-Za-z*][!#-'*+.^_`|~0-9A-Za-z:/-]*|-?[0-9]+(?:\.[0-9]+)?|:[A-Za-z0-9+/=]*:|\?[01])"
#: A string of structured fields (RFC 9651), whose parameters mean nothing here.
_STRUCTURED = re.compile(rf"{_STRING}(?: *; *{_NAME}(?:={_BARE})?)*")
#: What many clients send instead: neither spaces, which two joined headers would have, nor quotes.
_PLAIN = re.compile(r"[!#-~]+")


def key_of(values: Sequence[str]) -> str | None:
    """Return the key that a request's ``Idempotency-Key`` headers name; None without one.

    Raises:
        Problem: 400 if there is more than one, or what is there is neither a string of structured fields nor
            plain printable ASCII, is empty, or is too long.
    """
    if not values:
        return None
    value = values[0].strip(" \t")
    if len(values) > 1:
        raise _malformed("there must be only one")
    found = _STRUCTURED.fullmatch(value)
    if found is not None:
        key = re.sub(r"\\(.)", r"\1", found[1])
    elif _PLAIN.fullmatch(value):
        key = value
    else:
        raise _malformed('it must be a quoted string of ASCII characters, such as "8e03978e"')
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
        raise _malformed(f"it must have 1 to {KEY_CHARACTERS_MAX} characters, got {len(key)}")
    return key


def _malformed(rule: str) -> Problem:
    return Problem(400, f"Idempotency-Key: {rule}", type="idempotency-key-malformed", close=True)


def missing() -> Problem:
    """Return the problem of a request without a key that needs one."""
    return Problem(
        400,
        "an Idempotency-Key is required here: send the same one again with every retry",
        type="idempotency-key-missing",
        close=True,
    )


def hash_of_parts(*parts: str | bytes) -> bytes:
    """Return a SHA-256 that no other parts have, however they are cut."""
    hashed = sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        hashed.update(len(raw).to_bytes(8, "big"))
        hashed.update(raw)
    return hashed.digest()
