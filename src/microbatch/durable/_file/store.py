"""The store that a queue talks to: enqueue, claim, settle, read. Behind it one SQLite file.

`Store` is the whole of what the other rooms know of it, so that a test can put another one in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .job_store import HearsOfJobs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence

    import aiosqlite

    from microbatch._loops.protocol import Loop
    from microbatch._pure.standing import Standing
    from microbatch.durable.errors import QueueFull

    from .client import Want
    from .job_store import JobStore
    from .records import (
        Claim,
        Clash,
        DeadRow,
        Found,
        NewItem,
        QueueCounts,
        Settlement,
        Step,
        Stored,
    )
    from .session import Session

T = TypeVar("T")


class Hears(HearsOfJobs, Protocol):
    """What a store tells the queue that has it open, in its event loop."""

    def claimed(self, claims: list[tuple[Claim, list[Any] | None]]) -> None: ...
    def ended(self, spans: list[tuple[int, int]] | None) -> None: ...
    def is_waiting(self) -> bool: ...


class AnswerStore(Protocol):
    """Answers to requests by their keys, in the file of one queue."""

    async def begin(self, key: str, fingerprint: bytes, token: int, most: int) -> Standing: ...
    async def finish(
        self, key: str, fingerprint: bytes, token: int, answer: bytes, ttl: float
    ) -> None: ...
    async def release(self, key: str, token: int) -> None: ...


class Store(Protocol):
    """One named queue in one file. Every call that writes returns once it is on the disk."""

    @property
    def lock_waits(self) -> int: ...
    @property
    def jobs(self) -> JobStore: ...
    @property
    def answers(self) -> AnswerStore: ...
    async def open(self, loop: Loop, hears: Hears) -> None: ...
    def stop_opening(self) -> None: ...
    async def close(self) -> None: ...
    def lose_loop(self) -> None: ...
    def guard(self, call: str) -> None: ...
    def is_full(self) -> bool: ...
    def wake_if_asleep(self) -> None: ...
    def append(
        self,
        payloads: list[bytes],
        values: list[Any],
        traces: list[bytes | None] | None,
        size: int,
        *,
        told: Callable[[tuple[int, int, str, int | None]], object],
        failed: Callable[[Exception], object],
    ) -> bool: ...
    def enqueue(
        self,
        groups: list[list[NewItem]],
        size: int,
        told: Callable[[list[list[Stored] | QueueFull | Clash]], object],
        failed: Callable[[Exception], object],
    ) -> bool: ...
    def ask_for(self, want: Want | None, instead: Want | None) -> None: ...
    async def ask_for_nothing(self) -> None: ...
    def settle(
        self,
        settlements: Sequence[Settlement],
        finished: Sequence[int],
        told: Callable[[set[int]], object],
        failed: Callable[[Exception], object],
        refused: Callable[[Exception], object],
    ) -> None: ...
    async def settle_around(
        self,
        settlements: Sequence[Settlement],
        finished: Sequence[int],
        inside: Callable[[aiosqlite.Connection, set[int]], Awaitable[None]],
    ) -> set[int]: ...
    async def stage(self, part: int, items: list[NewItem], size: int) -> None: ...
    async def show_staged(
        self, part: int, count: int
    ) -> tuple[list[tuple[int, int]], int | None]: ...
    async def drop_staged(self, part: int) -> None: ...
    async def cancel(self, number: int, ticket: int | None, checks_ticket: bool) -> bool | None: ...
    async def requeue(self, numbers: Iterable[int]) -> int: ...
    async def purge(self, numbers: Iterable[int]) -> int: ...
    async def pause(self, paused: bool) -> None: ...
    async def look(self, steps: Callable[[Session, int], Generator[Step, Any, T]]) -> T: ...
    async def find(self, numbers: Iterable[int]) -> list[Found]: ...
    async def dead_letters(self, after: int, limit: int) -> list[DeadRow]: ...
    async def stats(self) -> QueueCounts: ...
