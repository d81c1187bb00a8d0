"""Values as JSON, whatever a payload holds. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ._wording import iso_text

if TYPE_CHECKING:
    from microbatch.durable.inspection import StoredItem

#: How deep a payload may be before its text stands for it.
_DEPTH_MAX = 100

_encode_json = msgspec.json.Encoder(enc_hook=repr).encode


def json_text(value: Any) -> str:
    """Return a value as JSON on one line. What has no form of its own is shown by its text.

    Bytes are base64, times ISO 8601, NaN and infinities null. What a terminal could obey is escaped.
    """
    try:
        text = _encode_json(value).decode("utf-8")
    except (TypeError, ValueError, RecursionError, OverflowError):
        text = _encode_json(_simplified(value, _DEPTH_MAX)).decode("utf-8")
    # Only strings can hold such characters, and JSON has an escape for each.
    return (
        text if text.isprintable() else "".join(c if c.isprintable() else _in_hex(c) for c in text)
    )


def ascii_json(text: str) -> str:
    """Return JSON in ASCII alone: only strings can hold other characters, and there is an escape for each."""
    return "".join(c if c.isascii() else _in_hex(c) for c in text)


def _in_hex(character: str) -> str:
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _simplified(value: Any, depth: int) -> Any:
    """Return a value of which every part has a form in JSON."""
    if not depth:
        return repr(value)[:1000] if not isinstance(value, (dict, list, tuple)) else "..."
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else repr(key): _simplified(one, depth - 1)
            for key, one in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_simplified(one, depth - 1) for one in value]
    try:
        _encode_json(value)
    except (TypeError, ValueError, RecursionError, OverflowError):
        return repr(value)
    return value


def error_fields(error: Any) -> dict[str, Any] | None:
    """Return a stored error's fields: type, message, traceback."""
    if error is None:
        return None
    return {"type": error.kind, "message": error.message, "traceback": error.traceback}


def item_fields(queue: str, item: StoredItem) -> dict[str, Any]:
    """Return a stored item's fields."""
    return {
        "id": item.id,
        "queue": queue,
        "state": item.state,
        "key": item.key,
        "priority": item.priority,
        "item": item.item,
        "attempts": item.attempts,
        "enqueued_at": iso_text(item.enqueued_at),
        "due_at": iso_text(item.due_at),
        "ended_at": iso_text(item.ended_at),
        "code": None if item.error is None else item.error.code,
        "error": error_fields(item.error),
    }
