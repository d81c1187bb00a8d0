"""A queue's seat at its file: taken, used, left."""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from microbatch._pure.exceptions import BatcherClosed, WouldDeadlock
from microbatch.durable._file import registry
from microbatch.durable._file import writer as writing
from microbatch.durable._file.appending import Append, Enqueue
from microbatch.durable._file.asks import Afterwards, Settle
from microbatch.durable._file.client import Client, Want, wake
from microbatch.durable._file.port import Port
from microbatch.durable._file.readers import Readers
from microbatch.durable._file.records import QueueCounts
from microbatch.durable._file.schema import wal_size
from microbatch.durable._file.session import ANY, Session
from microbatch.durable._file.transactions import LOCK_TIMEOUT
from microbatch.durable._file.writer import INBOX_BYTES, Writer
from microbatch.durable.errors import QueueUnavailable

from .alive import is_held
from .answer_seat import AnswerSeat
from .job_care import JobCare
from .job_seat import JobSeat
from .neighbours import Neighbours
from .polling import Polling
from .upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
    from pathlib import Path

    import aiosqlite

    from microbatch._loops.protocol import Loop
    from microbatch.durable._file.duty import Duty, Registrar
    from microbatch.durable._file.limits import Limits
    from microbatch.durable._file.records import (
        Clash,
        DeadRow,
        Found,
        NewItem,
        Settlement,
        Step,
        Stored,
    )
    from microbatch.durable._file.store import Hears
    from microbatch.durable._file.transaction import WriteTransaction
    from microbatch.durable.errors import QueueFull

T = TypeVar("T")

#: Seconds that `on_settle` may take: the file's write lock is held meanwhile, for every process.
ON_SETTLE_TIMEOUT = 5.0

#: The writers that stand aside for a settle transaction here: who waits for one of them waits for himself.
_aside: ContextVar[tuple[Writer, ...]] = ContextVar("microbatch_aside", default=())


def _duties(writer: Writer) -> tuple[Registrar, list[Duty]]:
    neighbours, care = Neighbours(writer), JobCare(writer)
    polling = Polling(writer, care.changed_elsewhere)
    return neighbours, [neighbours, polling, care, Upkeep(writer)]


class Seat:
    """A `Store` in an SQLite file.

    Args:
        path: The file, resolved.
        name: The queue's name in it.
        limits: How much it may hold.
        poll_interval: Seconds between two looks at what others have committed.
        synchronous: What is asked of the disk.
        attempts_max: How often an item may be tried; None for a queue without a handler.
        max_wait: Seconds that a ready item may wait for company.
        tells: Whether it wants to be told how jobs ended.

    Attributes:
        jobs: Its jobs.
        answers: What requests were answered with.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        limits: Limits,
        poll_interval: float,
        synchronous: str,
        attempts_max: int | None,
        max_wait: float,
        tells: bool = False,
    ) -> None:
        self._path = path
        self._name = name
        self._limits = limits
        self._poll_interval = poll_interval
        self._synchronous = synchronous
        self._attempts_max = attempts_max
        self._max_wait = max_wait
        self._tells = tells
        self.jobs: JobSeat = JobSeat(
            limits, client=lambda: self._client, writer=self._open, read=self._read
        )
        self.answers: AnswerSeat = AnswerSeat(client=lambda: self._client, writer=self._open)
        self._client: Client
        self._coming: Client | None = None
        self._left = False
        self._writer: Writer | None = None
        self._readers: Readers

    # Opening and closing

    async def open(self, loop: Loop, hears: Hears) -> None:
        """Take the seat: the file is there, and this queue's row, and its consumer's if it has a handler.

        Raises:
            QueueUnavailable: If the file cannot be used.
            WouldDeadlock: Inside ``on_settle`` of a queue in this file.
        """
        client = Client(
            name=self._name,
            limits=self._limits,
            port=Port(loop),
            loop=loop,
            poll_interval=self._poll_interval,
            synchronous=self._synchronous,
            attempts_max=self._attempts_max,
            max_wait=self._max_wait,
            tells=self._tells,
            hears=hears,
        )
        writer = self._writer = registry.enter(self._path, self._make_writer, client)
        client.writer = writer
        self._coming, self._left = client, False
        try:
            self.guard("open")
            await client.call(lambda transaction: writer.neighbours.join(transaction, client))
            self._readers = Readers.enter(self._path, loop)
            client.on_lost = self._readers.stop
        except BaseException:
            client.post(Afterwards(lambda: writer.neighbours.leave_and_part(client)))
            registry.leave(writer, client)
            raise
        finally:
            self._coming = None
        self._client = client

    def stop_opening(self) -> None:
        """Let who is opening it wait no longer for the file: it is closed instead."""
        if self._coming is not None:
            self._coming.give_up()

    def _make_writer(self, path: Path) -> Writer:
        return Writer(
            path,
            _duties,
            lambda consumer: is_held(path, int(consumer[0])),
            self._synchronous,
        )

    async def close(self) -> None:
        """Leave the seat; what this consumer still holds goes back.

        Raises:
            QueueUnavailable: If that could not be written: it goes back all the same, once others look.
        """
        self._left = True
        try:
            await self._readers.leave()
        finally:  # who is cancelled waits for nothing more, but all of it is asked for
            try:
                await self._give_back()
            finally:
                self._client.give_up()

    async def _give_back(self) -> None:
        client, writer = self._client, self._open()
        part = writer.neighbours.part
        try:
            while await client.call(
                lambda transaction: writer.neighbours.leave(transaction, client), last=True
            ):
                pass
        except anyio.get_cancelled_exc_class():
            part = writer.neighbours.leave_and_part  # nobody asks for the next step
            raise
        finally:
            client.post(Afterwards(lambda: part(client)))
            goodbye = client.loop.create_waiter()
            if registry.leave(writer, client, (client.port, lambda _: wake(goodbye))):
                await goodbye

    def lose_loop(self) -> None:
        """Forget what belonged to an event loop that has ended."""
        client, writer = self._client, self._open()
        client.post(Afterwards(lambda: writer.neighbours.part(client)))
        registry.leave(writer, client)
        self._readers.stop()

    def _open(self) -> Writer:
        assert self._writer is not None  # noqa: S101 - it was opened
        return self._writer

    def guard(self, call: str) -> None:
        """Refuse to wait for the writer while it waits for who asks.

        Raises:
            WouldDeadlock: Inside ``on_settle`` of a queue in this file.
        """
        aside = _aside.get()
        if aside and self._writer in aside:
            raise WouldDeadlock(self._name, call)

    # Writing

    @property
    def lock_waits(self) -> int:
        """Return how often this process found the file locked."""
        writer = self._writer
        return 0 if writer is None else writer.lock_waits

    def is_full(self) -> bool:
        """Tell whether so much waits for the writer that callers should wait too."""
        return self._open().load > INBOX_BYTES

    def wake_if_asleep(self) -> None:
        """See that what others commit is noticed: somebody waits for it."""
        self._client.wake_if_asleep()

    def append(
        self,
        payloads: list[bytes],
        values: list[Any],
        traces: list[bytes | None] | None,
        size: int,
        *,
        told: Callable[[tuple[int, int, str, int | None]], object],
        failed: Callable[[Exception], object],
    ) -> bool:
        """Store items that have nothing but a payload, see `Append`; tell whether callers should wait now."""
        client = self._client
        ask = Append(client, payloads, values, traces, size, told=told, failed=failed)
        return client.post(ask) > INBOX_BYTES

    def enqueue(
        self,
        groups: list[list[NewItem]],
        size: int,
        told: Callable[[list[list[Stored] | QueueFull | Clash]], object],
        failed: Callable[[Exception], object],
    ) -> bool:
        """Store groups of items, see `Enqueue`; tell whether callers should wait now."""
        client = self._client
        return client.post(Enqueue(client, groups, size, told, failed)) > INBOX_BYTES

    def ask_for(self, want: Want | None, instead: Want | None) -> None:
        """Say what there is room for; see `Client.ask_for`."""
        self._client.ask_for(want, instead)

    async def ask_for_nothing(self) -> None:
        """Take that back; once this returns no more claims come."""
        await self._client.ask_for_nothing()

    def settle(
        self,
        settlements: Sequence[Settlement],
        finished: Sequence[int],
        told: Callable[[set[int]], object],
        failed: Callable[[Exception], object],
        refused: Callable[[Exception], object],
    ) -> None:
        """Record outcomes; see `Settle`."""
        client = self._client
        client.post(
            Settle(client, settlements, finished, told=told, failed=failed, refused=refused)
        )

    async def settle_around(
        self,
        settlements: Sequence[Settlement],
        finished: Sequence[int],
        inside: Callable[[aiosqlite.Connection, set[int]], Awaitable[None]],
    ) -> set[int]:
        """Settle, and run a coroutine in the same transaction before it is committed.

        Raises:
            QueueUnavailable: If the file cannot be used.
            TimeoutError: If the coroutine took too long.
            Exception: What it raised; nothing was written.
        """
        client = self._client
        async with self._readers.settling(self._open().connection.synchronous) as settler:
            turn = await client.turn(settler.stop)
            try:
                session = self._session()
                turn.extend(
                    LOCK_TIMEOUT + writing.TURN_TIMEOUT
                )  # another process may have the lock

                def steps() -> Generator[Step, Any, set[int]]:
                    turn.extend(writing.TURN_TIMEOUT)  # it has begun
                    settled: set[int] = set()
                    if client.consumer is not None:
                        settled = yield from session.settle(
                            client.queue, client.limits, client.consumer, settlements
                        )
                    yield from session.finish()
                    return settled

                async def around(connection: aiosqlite.Connection, settled: set[int]) -> None:
                    token = _aside.set((*_aside.get(), self._open()))
                    try:
                        await inside(connection, settled)
                    finally:
                        _aside.reset(token)

                settled = await settler.around(steps(), around, timeout=ON_SETTLE_TIMEOUT)
                turn.finished = finished
                news = session.job_news.get(client.queue)
                if news is not None and client.hears.counts_jobs():
                    client.hears.jobs_went_on(news)
            finally:
                turn.over.set()
        return settled

    def _session(self) -> Session:
        return self._open().connection.session(reserves=False)

    async def stage(self, part: int, items: list[NewItem], size: int) -> None:
        """Store items that nobody sees yet."""
        client, writer = self._client, self._open()

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, None]:
            yield from writer.neighbours.enrol(transaction.session, client)
            refusal = yield from transaction.session.stage(
                client.queue, client.limits, items, _of(client), part
            )
            if refusal is not None:
                raise refusal

        await client.call(steps, items=len(items), size=size)

    async def show_staged(self, part: int, count: int) -> tuple[list[tuple[int, int]], int | None]:
        """Let everybody see what was staged, in one transaction; return first ids and counts, in order.

        With them comes the number for tickets.

        Raises:
            QueueUnavailable: If not all of it is there: another file stands in the place of the one before, or
                this process was taken for dead.
        """
        client = self._client

        def steps(
            transaction: WriteTransaction,
        ) -> Generator[Step, Any, tuple[list[tuple[int, int]], int | None]]:
            session = transaction.session
            shown = yield from session.show_staged(client.queue, _of(client), part)
            if sum(length for _, length in shown) != count:
                reason = "what was written of these items is not there any more: enqueue them again"
                raise QueueUnavailable(str(self._path), reason)
            transaction.stir(client.queue)
            transaction.look_for_dues(client.queue)
            return shown, session.ticket

        return await client.call(steps)  # type: ignore[no-any-return]

    async def drop_staged(self, part: int) -> None:
        """Remove what was staged, if closing has not done that."""
        client = self._client
        more = True
        with contextlib.suppress(BatcherClosed):
            while more:
                more = await client.call(
                    lambda transaction: transaction.session.drop_staged(
                        client.queue, _of(client), claim=part
                    )
                )

    async def cancel(self, number: int, ticket: int | None, checks_ticket: bool) -> bool | None:
        """Cancel an item that nobody has; return whether that was so, None if there is no such item."""
        client = self._client
        mine = ticket if checks_ticket else ANY

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, bool | None]:
            cancelled = yield from transaction.session.cancel(
                client.queue, client.limits, number, mine
            )
            if cancelled:
                transaction.tell_end(client.queue)
            return cancelled

        return await client.call(steps)  # type: ignore[no-any-return]

    async def requeue(self, numbers: Iterable[int]) -> int:
        """Make dead letters ready again, with all their attempts; return how many were dead letters."""
        client, wanted = self._client, list(numbers)

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, int]:
            count = yield from transaction.session.requeue(client.queue, wanted)
            transaction.stir(client.queue)
            return count

        return await client.call(steps)  # type: ignore[no-any-return]

    async def purge(self, numbers: Iterable[int]) -> int:
        """Remove items that have ended; return how many were removed."""
        client, wanted = self._client, list(numbers)
        return await client.call(  # type: ignore[no-any-return]
            lambda transaction: transaction.session.purge(client.queue, wanted)
        )

    async def pause(self, paused: bool) -> None:
        """Stop or resume claims, for every process."""
        client = self._client

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, None]:
            yield from transaction.session.pause(client.queue, paused)
            transaction.stir(client.queue)

        await client.call(steps)

    # Reading

    async def _read(self, steps: Callable[[Session, int], Generator[Step, Any, T]]) -> T:
        session, name = self._session(), self._name

        def all_steps() -> Generator[Step, Any, T]:
            # Looked up each time: a file that was put in the place of this one has other numbers.
            queue = yield from session.number_of(name)
            return (yield from steps(session, queue))

        self._check_open()
        try:
            return await self._readers.read(all_steps)
        except QueueUnavailable:
            self._check_open()
            raise

    def _check_open(self) -> None:
        if self._left:
            raise BatcherClosed(self._name)

    async def look(self, steps: Callable[[Session, int], Generator[Step, Any, T]]) -> T:
        """Run what only reads, with the queue's number, on one state of the file: for who looks into it."""
        return await self._read(steps)

    async def find(self, numbers: Iterable[int]) -> list[Found]:
        """Return the items that there are, in any state."""
        wanted = list(numbers)
        return await self._read(lambda session, queue: session.find(queue, wanted))

    async def dead_letters(self, after: int, limit: int) -> list[DeadRow]:
        """Return dead letters with greater ids, by id."""
        return await self._read(lambda session, queue: session.dead_letters(queue, after, limit))

    async def stats(self) -> QueueCounts:
        """Return the counts."""
        queue, oldest, used = await self._read(lambda session, queue: session.stats(queue))
        return QueueCounts(queue, oldest, time.time(), used, wal_size(self._path))


def _of(client: Client) -> int:
    assert client.consumer is not None  # noqa: S101 - it has staged something
    return client.consumer
