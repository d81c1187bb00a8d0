"""Values by users' keys, whose comparisons may raise or call anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

V = TypeVar("V")


class Keyed(Generic[V]):
    """Values by users' keys, which are compared in `find` alone: elsewhere nothing of theirs can raise."""

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: dict[int, list[tuple[Hashable, V]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[V]:
        return (value for bucket in list(self._buckets.values()) for _, value in bucket)

    def find(self, key: Hashable, hashed: int) -> V | None:
        """Return the value of an equal key; raise what the comparison does, if that is this key's."""
        for known, value in self._buckets.get(hashed, ()):
            if key is known or _equal(key, known):
                return value
        return None

    def add(self, key: Hashable, hashed: int, value: V) -> None:
        """Keep a value, the last of those with an equal key."""
        self._buckets.setdefault(hashed, []).append((key, value))
        self._count += 1

    def remove(self, hashed: int, value: V) -> None:
        """Forget a value, which is there."""
        left = [pair for pair in self._buckets[hashed] if pair[1] is not value]
        self._count -= 1
        if left:
            self._buckets[hashed] = left
        else:
            del self._buckets[hashed]


def _equal(key: Any, known: Any) -> bool:
    """Compare a new key with a known one, whose faults are not the new one's."""
    try:
        return bool(key == known)
    except Exception:  # noqa: BLE001 - one of the two keys' own: if it was the new one's, it raises again
        kind: Any = type(key)
        own = kind.__eq__(key, known)
        return own is not NotImplemented and bool(own)
