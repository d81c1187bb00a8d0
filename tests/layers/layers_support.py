"""Handlers that tests of layers have in common."""

from __future__ import annotations

from typing import Any


class PoisonError(Exception):
    """What a backend raises for bad data."""


class Backend:
    """A bulk handler that fails as a whole when one of its items is poison."""

    def __init__(self, poison: Any = (), error: type[Exception] = PoisonError) -> None:
        self.poison = set(poison)
        self.error = error
        self.calls: list[list[Any]] = []

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.calls.append(list(items))
        bad = [item for item in items if item in self.poison]
        items.clear()  # a handler owns its list
        if bad:
            raise self.error(bad[0])
        return [item * 10 for item in self.calls[-1]]


async def echo(items: list[Any]) -> list[Any]:
    return list(items)


def told(results: list[Any]) -> list[Any]:
    """Exceptions as their class's name, so that results can be compared."""
    return [type(r).__name__ if isinstance(r, Exception) else r for r in results]
