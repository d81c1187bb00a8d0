"""Reading a source batch by batch, and making outcomes fast: what streams and files share."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from itertools import islice, repeat
from typing import Any

import anyio
import anyio.lowlevel

from .layers._passing import is_asked_for
from .outcome import Outcome

# A frozen dataclass sets each of its seven fields by a call of its own, which for a stream is most
# of what an item costs. So succeeded items, nearly all, share what is the same for all of them, and
# the rest is set for many at a time by loops in C.
_new = Outcome.__new__
_set_index, _set_value, _set_id = (
    Outcome.__dict__[name].__set__ for name in ("index", "value", "id")
)


class _SuccessWithId(Outcome[Any]):
    """An outcome with a value, at its first attempt: equal to such an `Outcome`, pickled as one."""

    __slots__ = ()

    ok = True
    error = None
    skipped = False
    attempts = 1

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # what comparing, showing and replacing it go by
        return Outcome

    def __reduce__(self) -> tuple[Any, ...]:
        return Outcome, tuple(getattr(self, name) for name in _NAMES)


class _Success(_SuccessWithId):
    """The same without an id."""

    __slots__ = ()

    id = None


_NAMES = tuple(field.name for field in dataclasses.fields(Outcome))


def successes(
    start: int, values: list[Any], ids: Iterable[Any] | None = None
) -> list[Outcome[Any]]:
    """Return the outcomes of items that succeeded, indexed from ``start``."""
    count = len(values)
    kind = _Success if ids is None else _SuccessWithId
    outcomes: list[Outcome[Any]] = list(map(_new, repeat(kind, count)))
    deque(map(_set_index, outcomes, range(start, start + count)), maxlen=0)
    deque(map(_set_value, outcomes, values), maxlen=0)
    if ids is not None:
        deque(map(_set_id, outcomes, ids), maxlen=0)
    return outcomes


def are_values(results: list[Any]) -> bool:
    """Tell whether there is neither an exception nor an outcome among them."""
    return not any(issubclass(kind, (Exception, Outcome)) for kind in set(map(type, results)))


def reader_of(source: Iterable[Any] | AsyncIterable[Any]) -> Reader | AsyncReader:
    """Return what reads a source batch by batch."""
    return AsyncReader(source) if isinstance(source, AsyncIterable) else Reader(source)


class Reader:
    """Reads batches from a plain iterable."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.ended = False
        self.error: Exception | None = None
        self._iterator = iter(source)

    async def read(self, count: int) -> list[Any]:
        """Return so many items, or fewer at the end; keep what the source raises."""
        await anyio.lowlevel.checkpoint()
        items: list[Any] = []
        try:
            items.extend(islice(self._iterator, count))  # keeps what came before an error
        except Exception as error:  # noqa: BLE001 - the consumer gets it in its turn
            self.error = error
        self.ended = len(items) < count
        return items

    async def close(self) -> None:
        if isinstance(self._iterator, Generator):
            self._iterator.close()


class AsyncReader:
    """Reads batches from an async iterable."""

    def __init__(self, source: AsyncIterable[Any]) -> None:
        self.ended = False
        self.error: Exception | None = None
        self._iterator = aiter(source)

    async def read(self, count: int) -> list[Any]:
        """Return so many items, or fewer at the end; keep what the source raises."""
        await anyio.lowlevel.checkpoint()
        items: list[Any] = []
        add = items.append
        try:
            async for item in self._iterator:
                add(item)
                if len(items) == count:
                    return items
        except Exception as error:  # noqa: BLE001 - the consumer gets it in its turn
            self.error = error
        except anyio.get_cancelled_exc_class() as error:
            if is_asked_for():
                raise
            self.error = RuntimeError(f"the source raised {type(error).__name__} of its own")
            self.error.__cause__ = error
        self.ended = True
        return items

    async def close(self) -> None:
        if isinstance(self._iterator, AsyncGenerator):
            await self._iterator.aclose()
