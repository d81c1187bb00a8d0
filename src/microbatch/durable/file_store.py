"""The store that a queue talks to: enqueue, claim, settle, read. Behind it one SQLite file.

`Store` is the whole of what the other rooms know of it, so that a test can put another one in its place.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Protocol, TypeVar

from .connection import Database
from .errors import QueueFull, QueueUnavailable
from .session import Session
from .store import DATA_VERSION, PRAGMAS, empty_log, log_mark, prepare, queue_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    import aiosqlite

    from .clock import Clock
    from .limits import Limits
    from .records import (
        Appended,
        Claim,
        Claimed,
        Consumer,
        DeadRow,
        Found,
        NewItem,
        Peek,
        QueueStats,
        Settlement,
        Stored,
        Take,
    )

T = TypeVar("T")

#: Seconds that `on_settle` may take: the file's write lock is held meanwhile, for every process.
ON_SETTLE_TIMEOUT = 10.0


#: Looks at the log from outside between two inside, where nothing changes: half a second's worth.
LOOKS_OUTSIDE = 9


# ruff: noqa: D102 - the protocol's methods are described where they are implemented


class Store(Protocol):
    """One named queue in one file. Every call that writes returns once it is on the disk."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    def forget(self) -> None: ...
    async def enqueue(
        self, requests: Sequence[Sequence[NewItem]], take: Take | None
    ) -> list[list[Stored] | Exception]: ...
    async def append(self, payloads: Sequence[bytes], take: Take | None) -> Appended: ...
    async def settle_and_claim(
        self, consumer: int, settlements: Sequence[Settlement], claim: Claim | None
    ) -> tuple[set[int], list[Claimed]]: ...
    async def settle_around(
        self,
        consumer: int,
        settlements: Sequence[Settlement],
        inside: Callable[[aiosqlite.Connection, set[int]], Awaitable[None]],
    ) -> set[int]: ...
    @property
    def generation(self) -> int: ...
    async def register(
        self, pid: int, born: str | None, take: Callable[[int], int | None]
    ) -> int: ...
    async def move_consumer(self, consumer: int, lock_file: int) -> None: ...
    async def consumers(self) -> list[Consumer]: ...
    async def reclaim(self, consumer: int, attempts_max: int) -> list[int]: ...
    async def cancel(self, number: int) -> bool | None: ...
    async def requeue(self, numbers: Iterable[int]) -> int: ...
    async def purge(self, numbers: Iterable[int]) -> int: ...
    async def pause(self, paused: bool) -> None: ...
    async def prune(self) -> bool: ...
    async def find(self, numbers: Iterable[int]) -> list[Found]: ...
    async def dead_letters(self, after: int, limit: int) -> list[DeadRow]: ...
    async def stats(self) -> QueueStats: ...
    async def peek(self, seen: int) -> Peek | None: ...


class FileStore:
    """A `Store` in an SQLite file."""

    def __init__(
        self, path: Path, queue: str, synchronous: str, limits: Limits, clock: Clock
    ) -> None:
        self._path = path
        self._name = queue
        self._limits = limits
        self._clock = clock
        self._queue = 0
        self._peeked = 0
        self._mark: tuple[int, ...] | None = None
        self._inside = 0
        self._outside = 0
        self._database = Database(
            path, pragmas=PRAGMAS, prepare=lambda raw: self._prepare(raw, synchronous)
        )

    def _prepare(self, raw: sqlite3.Connection, synchronous: str) -> None:
        prepare(raw, self._path, synchronous)
        self._queue = queue_id(raw, self._name)

    async def open(self) -> None:
        """Open the file, and make the tables and the queue's row if they are not there."""
        await self._database.open()

    async def close(self) -> None:
        """Close the file. A later call opens it again."""
        await self._database.close()

    def forget(self) -> None:
        """Let go of what belongs to an event loop that has ended."""
        self._database.forget()

    async def enqueue(
        self, requests: Sequence[Sequence[NewItem]], take: Take | None
    ) -> list[list[Stored] | Exception]:
        """Store groups of items in one transaction; see `Session.enqueue`.

        A statement that fails on its own account, because of a trigger of the application's say, fails its
        own group of items only: the rest is tried again, each group in a savepoint.
        """
        try:
            answers = await self._write(lambda session: session.enqueue(requests, take))
            if any(isinstance(a, QueueFull) and a.limit == "max_file_bytes" for a in answers):
                # The log may be full of what is in the file already. Then there is room after all.
                await self._database.glance(empty_log)
                answers = await self._write(lambda session: session.enqueue(requests, take))
        except sqlite3.Error:
            return await self._database.write(lambda raw: self._one_by_one(raw, requests))
        return answers

    async def append(self, payloads: Sequence[bytes], take: Take | None) -> Appended:
        """Store items that have nothing but a payload; see `Session.append`.

        Raises:
            sqlite3.Error: If a statement failed on its own account: `enqueue` then finds out whose.
        """
        answer = await self._write(lambda session: session.append(payloads, take))
        if answer.limit == "max_file_bytes":
            await self._database.glance(empty_log)
            answer = await self._write(lambda session: session.append(payloads, take))
        return answer

    def _one_by_one(
        self, raw: sqlite3.Connection, requests: Sequence[Sequence[NewItem]]
    ) -> list[list[Stored] | Exception]:
        answers: dict[int, list[Stored] | Exception] = {}
        ruinous: set[int] = (
            set()
        )  # these end the whole transaction, so it must begin anew without them
        while len(answers) < len(requests):
            for index in range(len(requests)):
                if index in answers:
                    continue
                raw.execute("SAVEPOINT microbatch")
                try:
                    (answers[index],) = self._session(raw).enqueue([requests[index]], None)
                except sqlite3.Error as error:
                    refusal = QueueUnavailable(str(self._path), str(error))
                    refusal.__cause__ = error
                    answers[index] = refusal
                    if not raw.in_transaction:
                        ruinous.add(index)
                        answers = {bad: answers[bad] for bad in ruinous}
                        raw.execute("BEGIN IMMEDIATE")
                        break
                    raw.execute("ROLLBACK TO microbatch")
                raw.execute("RELEASE microbatch")
        return [answers[index] for index in range(len(requests))]

    async def settle_and_claim(
        self, consumer: int, settlements: Sequence[Settlement], claim: Claim | None
    ) -> tuple[set[int], list[Claimed]]:
        """Settle, then claim, in one transaction: one fsync for both."""

        def work(session: Session) -> tuple[set[int], list[Claimed]]:
            settled = session.settle(consumer, settlements) if settlements else set()
            return settled, session.claim(claim) if claim is not None else []

        return await self._write(work)

    async def settle_around(
        self,
        consumer: int,
        settlements: Sequence[Settlement],
        inside: Callable[[aiosqlite.Connection, set[int]], Awaitable[None]],
    ) -> set[int]:
        """Settle, and run a coroutine in the same transaction before it is committed."""

        def before(raw: sqlite3.Connection) -> set[int]:
            session = self._session(raw)
            settled = session.settle(consumer, settlements)
            session.count()
            return settled

        return await self._database.transaction_around(before, inside, timeout=ON_SETTLE_TIMEOUT)

    @property
    def generation(self) -> int:
        """Return a number that grows when another file stands at the path: a backup was restored, say."""
        return self._database.generation

    async def register(self, pid: int, born: str | None, take: Callable[[int], int | None]) -> int:
        """Make a consumer; see `Session.register`."""
        return await self._write(lambda session: session.register(pid, born, take))

    async def move_consumer(self, consumer: int, lock_file: int) -> None:
        """Write down that a consumer's lock is in another file now."""
        await self._write(lambda session: session.move_consumer(consumer, lock_file))

    async def consumers(self) -> list[Consumer]:
        """Return all consumers of this queue."""
        return await self._read(lambda session: session.consumers())

    async def reclaim(self, consumer: int, attempts_max: int) -> list[int]:
        """Take back what a dead consumer held; see `Session.reclaim`."""
        return await self._write(lambda session: session.reclaim(consumer, attempts_max))

    async def cancel(self, number: int) -> bool | None:
        """Cancel an item that nobody has."""
        return await self._write(lambda session: session.cancel(number))

    async def requeue(self, numbers: Iterable[int]) -> int:
        """Make dead letters ready again."""
        return await self._write(lambda session: session.requeue(numbers))

    async def purge(self, numbers: Iterable[int]) -> int:
        """Remove items that have ended."""
        return await self._write(lambda session: session.purge(numbers))

    async def pause(self, paused: bool) -> None:
        """Stop or resume claims, for every process."""
        await self._write(lambda session: session.pause(paused))

    async def prune(self) -> bool:
        """Remove some of what is kept too long; return whether there may be more."""
        return await self._write(lambda session: session.prune())

    async def find(self, numbers: Iterable[int]) -> list[Found]:
        """Return the rows that there are."""
        return await self._read(lambda session: session.find(numbers))

    async def dead_letters(self, after: int, limit: int) -> list[DeadRow]:
        """Return a page of dead letters."""
        return await self._read(lambda session: session.dead_letters(after, limit))

    async def stats(self) -> QueueStats:
        """Return the counts."""
        return await self._read(lambda session: session.stats(self._database.lock_waits))

    async def peek(self, seen: int) -> Peek | None:
        """Return what a worker must know, or None if no other connection has committed since ``seen``."""
        if seen != -1 and not self._log_may_have_grown():
            return None

        def look(raw: sqlite3.Connection) -> Peek | None:
            (version,) = raw.execute(DATA_VERSION).fetchone()
            if version == seen and self._peeked == self._database.connections:
                return None
            self._peeked = self._database.connections  # each connection has versions of its own
            return self._session(raw).peek(version)

        return await self._database.glance(look)

    def _log_may_have_grown(self) -> bool:
        """Look at the write-ahead log from outside: a hundredth of what asking SQLite's thread costs.

        Its time stamp has the grain of the kernel's clock, so a change is followed by two more looks
        inside. So is, now and then, no change at all: some file system may have no such stamps.
        """
        mark = log_mark(self._path)
        if mark != self._mark:
            self._mark = mark
            self._inside = 3
        if not self._inside and self._outside < LOOKS_OUTSIDE:
            self._outside += 1
            return False
        self._inside = max(0, self._inside - 1)
        self._outside = 0
        return True

    def _session(self, raw: sqlite3.Connection) -> Session:
        return Session(raw, self._queue, self._name, self._path, self._clock.now(), self._limits)

    async def _write(self, work: Callable[[Session], T]) -> T:
        def writing(raw: sqlite3.Connection) -> T:
            session = self._session(raw)
            result = work(session)
            session.count()
            return result

        return await self._database.write(writing)

    async def _read(self, work: Callable[[Session], T]) -> T:
        return await self._database.read(lambda raw: work(self._session(raw)))
