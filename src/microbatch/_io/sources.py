"""Reading a source batch by batch, and making outcomes fast: what streams and files share."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Generator,
    Iterable,
    Iterator,
)
from itertools import islice, repeat
from typing import Any

import anyio
import anyio.lowlevel

from microbatch._pure import checks
from microbatch._pure.report import Outcome
from microbatch.layers._passing import is_asked_for

#: Seconds that leaving waits for a source to close: enough for a file or a cursor, and a bound.
SECONDS_TO_CLOSE = 5.0

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


def reader_of(
    source: Iterable[Any] | AsyncIterable[Any],
    name: str = "source",
    *,
    max_wait: float | None = None,
) -> Reader | AsyncReader:
    """Return what reads a source batch by batch, each read ending ``max_wait`` after its first item.

    Raises:
        TypeError: If it is no source of items.
    """
    checks.source(name, source)
    if not isinstance(source, AsyncIterable):
        return Reader(source, max_wait or math.inf)  # 0: what is at hand, and that is all of it
    return AsyncReader(source) if max_wait is None else WaitingReader(source, max_wait)


class Reader:
    """Reads batches from a plain iterable."""

    def __init__(self, source: Iterable[Any], max_wait: float = math.inf) -> None:
        self.ended = False
        self.error: Exception | None = None
        self._iterator = iter(source)
        self._max_wait = max_wait

    async def run(self) -> None:
        """Do what must be done beside the reading."""

    async def read(self, count: int) -> list[Any]:
        """Return so many items, or fewer at the end; keep what the source raises."""
        await anyio.lowlevel.checkpoint()
        items: list[Any] = []
        source = islice(self._iterator, count)
        try:
            if self._max_wait == math.inf:
                items.extend(source)  # keeps what came before an error
            elif self._read_in_time(source, items):
                return items
        except Exception as error:  # noqa: BLE001 - the consumer gets it in its turn
            self.error = error
        self.ended = len(items) < count
        return items

    def _read_in_time(self, source: Iterable[Any], items: list[Any]) -> bool:
        """Return True if time ended the reading, and not the source."""
        due = math.inf
        for item in source:
            items.append(item)
            now = anyio.current_time()
            due = min(due, now + self._max_wait)
            if now >= due:
                return True
        return False

    async def close(self) -> None:
        """Close the source if it is a generator."""
        if isinstance(self._iterator, Generator):
            self._iterator.close()


class AsyncReader:
    """Reads batches from an async iterable."""

    def __init__(self, source: AsyncIterable[Any]) -> None:
        self.ended = False
        self.error: Exception | None = None
        self._iterator = aiter(source)

    async def run(self) -> None:
        """Do what must be done beside the reading."""

    async def read(self, count: int) -> list[Any]:
        """Return so many items, or fewer at the end; keep what the source raises."""
        await anyio.lowlevel.checkpoint()
        items: list[Any] = []
        add = items.append
        with self._keeping_errors():
            async for item in self._iterator:
                add(item)
                if len(items) == count:
                    return items
        self.ended = True
        return items

    @contextlib.contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the consumer gets it in its turn
            self.error = error
        except anyio.get_cancelled_exc_class() as error:
            if is_asked_for():
                raise
            self.error = RuntimeError(f"the source raised {type(error).__name__} of its own")
            self.error.__cause__ = error

    async def close(self) -> None:
        """Close the source if it is a generator."""
        if isinstance(self._iterator, AsyncGenerator):
            await self._iterator.aclose()


class WaitingReader(AsyncReader):
    """Reads batches from an async iterable, each until some time after its first item.

    A task of its own reads, iterates and closes the source: a wait that was cut off by a
    cancellation would end a generator. It reads while a batch is asked for; one item may come after
    that, and begins the next batch.
    """

    def __init__(self, source: AsyncIterable[Any], max_wait: float) -> None:
        super().__init__(source)
        self._max_wait = max_wait
        self._items: list[Any] = []
        self._count = 0
        self._over = False
        self._scope = anyio.CancelScope()
        self._asked, self._first, self._full = anyio.Event(), anyio.Event(), anyio.Event()
        self._closed = anyio.Event()

    async def run(self) -> None:
        """Read the source, to its end or until it is closed."""
        try:
            with self._scope, self._keeping_errors():
                await self._asked.wait()
                async for item in self._iterator:
                    self._items.append(item)
                    self._first.set()
                    if len(self._items) == self._count:
                        self._full.set()
                        self._asked = anyio.Event()
                    if not self._asked.is_set():
                        await self._asked.wait()
        finally:
            self._over = True
            self._first.set()
            self._full.set()
            with anyio.move_on_after(SECONDS_TO_CLOSE, shield=True):
                await super().close()
            self._closed.set()

    async def read(self, count: int) -> list[Any]:
        """Return so many items, or those of ``max_wait``, or fewer at the end."""
        await anyio.lowlevel.checkpoint()
        self._count = count
        self._asked.set()
        await self._first.wait()
        with anyio.move_on_after(self._max_wait):
            await self._full.wait()
        if self._asked.is_set():
            self._asked = anyio.Event()
        self._first, self._full = anyio.Event(), anyio.Event()
        items, self._items = self._items, []
        self.ended = self._over
        return items

    async def close(self) -> None:
        """Close the source if it is a generator."""
        self._scope.cancel()
        await self._closed.wait()
