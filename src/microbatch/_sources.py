"""Reading a source batch by batch, and making outcomes fast: what streams and files share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from itertools import islice
from typing import Any

import anyio
import anyio.lowlevel

from .errors import Skipped
from .layers._passing import is_asked_for
from .outcome import Outcome

# A frozen dataclass sets each field by a call of its own; the slots' setters take half the time,
# which is most of what a stream costs for each item.
_new = Outcome.__new__
_set_index, _set_ok, _set_value, _set_error, _set_skipped, _set_attempts, _set_id = (
    Outcome.__dict__[name].__set__
    for name in ("index", "ok", "value", "error", "skipped", "attempts", "id")
)


def make_outcome(
    index: int,
    value: Any,
    error: Exception | None = None,
    id: int | str | None = None,  # noqa: A002
    attempts: int = 1,
) -> Outcome[Any]:
    """Return the outcome of one item: of its value, or of its error if it has one."""
    outcome = _new(Outcome)
    _set_index(outcome, index)
    _set_ok(outcome, error is None)
    _set_value(outcome, value)
    _set_error(outcome, error)
    _set_skipped(outcome, error is not None and isinstance(error, Skipped))
    _set_attempts(outcome, attempts)
    _set_id(outcome, id)
    return outcome


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
