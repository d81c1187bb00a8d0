"""What one call wants stored, checked and encoded."""

from __future__ import annotations

from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

from microbatch._pure import checks
from microbatch.durable._file.records import NewItem

if TYPE_CHECKING:
    from microbatch.durable._file.codec import Codec

T = TypeVar("T")

_INTEGER_MAX = 2**63 - 1
_KEY_CHARACTERS_MAX = 1_000
_NEW_ITEM: Any = partial(tuple.__new__, NewItem)  # without a call of Python's for each
_NO_PRIORITY = 0  # compared by identity: False equals it, and is refused


def new_item(
    items: Codec[T], item: Any, key: str | None, priority: int, delay: float
) -> tuple[NewItem, T]:
    """Return an item for the disk, and its value as it will be read back.

    Raises:
        TypeError: If it cannot be encoded, or an argument has the wrong type.
        ValueError: If it does not fit its type, or an argument its range.
    """
    payload, value = items.encode(item)
    if key is None and priority is _NO_PRIORITY and delay == 0:
        return NewItem(payload), value
    check_order(priority, delay)
    if key is not None:
        check_key(key)
    return NewItem(payload, key, priority, float(delay)), value


def new_items(
    payloads: list[bytes], priority: int, delay: float, trace: bytes | None
) -> list[NewItem]:
    """Return items for the disk that have nothing of their own but a payload."""
    rows = zip(payloads, repeat(None), repeat(priority), repeat(float(delay)), repeat(trace))
    return list(map(_NEW_ITEM, rows))


def check_order(priority: Any, delay: Any) -> None:
    """Refuse what can be no priority or delay.

    Raises:
        TypeError: If it has the wrong type.
        ValueError: If it is out of its range.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        message = f"priority must be an int, got {priority!r}"
        raise TypeError(message)
    if not -_INTEGER_MAX <= priority <= _INTEGER_MAX:
        message = f"priority must fit into 64 bits, got {priority}"
        raise ValueError(message)
    checks.number("delay", delay, minimum=0)


def check_key(key: Any) -> None:
    """Refuse what can be no idempotency key.

    Raises:
        TypeError: If it is no str.
        ValueError: If it is too long, empty, or has characters that cannot be printed.
    """
    if not isinstance(key, str):
        message = f"key must be a str or None, got {key!r}"
        raise TypeError(message)
    if not 1 <= len(key) <= _KEY_CHARACTERS_MAX or not key.isprintable():
        message = f"key must be 1 to {_KEY_CHARACTERS_MAX} printable characters, got {key!r}"
        raise ValueError(message)
