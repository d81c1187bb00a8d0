"""Sources and handlers that tests of streams have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from microbatch import ItemError

if TYPE_CHECKING:
    from microbatch.streaming import OutcomeStream


class Work:
    """A handler that doubles, remembers its batches and how many ran at once."""

    def __init__(self, seconds: float = 0.0, fails: Any = ()) -> None:
        self.seconds = seconds
        self.fails = fails
        self.batches: list[list[int]] = []
        self.running = self.peak = 0

    async def __call__(self, items: list[int]) -> list[Any]:
        self.batches.append(list(items))
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.running -= 1
        return [ItemError("bad", code="bad") if i in self.fails else i * 2 for i in items]


class Source:
    """Numbers, read one by one; it notes how many were read, and that it was closed."""

    def __init__(self, count: int, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.count = count
        self.error = error
        self.seconds = seconds
        self.read = 0
        self.closed = False

    def plain(self) -> Any:
        try:
            for number in range(self.count):
                self.read += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True

    async def asynchronous(self) -> Any:
        try:
            for number in range(self.count):
                await anyio.sleep(self.seconds)
                self.read += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True
            await anyio.lowlevel.checkpoint()

    def open(self, kind: str) -> Any:
        return getattr(self, kind)()


async def collect(stream: OutcomeStream[Any]) -> list[Any]:
    async with stream as outcomes:
        return [outcome async for outcome in outcomes]
