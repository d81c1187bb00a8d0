"""The jobs of a queue, from its seat at the file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from microbatch._pure.exceptions import BatcherClosed
from microbatch.durable._file.asks import Afterwards
from microbatch.durable._file.job_life import VISIBLE, JobLife

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Generator, Sequence

    from microbatch.durable._file.client import Client
    from microbatch.durable._file.job_records import (
        Begun,
        Chunk,
        JobRow,
        Leftovers,
        NewJob,
        Page,
        Recipe,
    )
    from microbatch.durable._file.limits import Limits
    from microbatch.durable._file.records import Step
    from microbatch.durable._file.session import Session
    from microbatch.durable._file.transaction import WriteTransaction
    from microbatch.durable._file.writer import Writer

T = TypeVar("T")


class JobSeat:
    """A `JobStore` in an SQLite file.

    Args:
        limits: How much the queue may hold, and for how long.
        client: Gives the queue's client at the writer.
        writer: Gives the writer.
        read: Runs statements that read, with the queue's number.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        client: Callable[[], Client],
        writer: Callable[[], Writer],
        read: Callable[[Callable[[Session, int], Generator[Step, Any, Any]]], Awaitable[Any]],
    ) -> None:
        self._limits = limits
        self._client = client
        self._writer = writer
        self._read = read

    # Coming in

    async def begin(self, new: NewJob) -> Begun:
        """Make a job's row, which nobody sees, unless another job has its key."""
        client, writer = self._client(), self._writer()

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, Begun]:
            yield from writer.neighbours.enrol(transaction.session, client)
            assert client.consumer is not None  # noqa: S101 - it is registered
            return (
                yield from transaction.session.jobs.begin(
                    client.queue, new, client.consumer, self._limits
                )
            )

        return await client.call(steps)  # type: ignore[no-any-return]

    async def stage(self, job: int, chunk: Chunk, size: int) -> None:
        """Store items of it that nobody sees yet.

        Raises:
            QueueFull: If there is no room.
            QueueUnavailable: If what was written of it before is not there any more.
        """
        client = self._client()

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, None]:
            refusal = yield from transaction.session.jobs.stage(
                client.queue, client.limits, job, chunk, client.consumer
            )
            if refusal is not None:
                if refusal.limit == "max_file_bytes":
                    transaction.need_room_in_log()
                raise refusal

        await client.call(steps, items=len(chunk.payloads), size=size)

    async def show(self, job: int, total: int) -> None:
        """Let everybody see it. In this process nothing of it begins before `release`."""
        client, held = self._client(), self._writer().connection.held

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, None]:
            held.add(job)
            client.holding.add(job)
            yield from transaction.session.jobs.show(client.queue, job, total, client.consumer)
            transaction.look_for_dues(client.queue)

        await client.call(steps)

    def release(self, job: int) -> None:
        """Let a shown job begin in this process too."""
        client, writer = self._client(), self._writer()

        def note() -> None:
            writer.connection.held.discard(job)
            client.holding.discard(job)
            writer.stirred.add(client.queue)

        client.post(Afterwards(note))  # its caller may have gone before it was shown

    async def drop(self, job: int) -> None:
        """Give up a job that is coming in, and remove all of it, if closing has not done that."""
        client = self._client()

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, bool]:
            yield from transaction.session.jobs.abandon(job)
            if job not in client.abandoned:  # a close in the middle of it goes on with it
                client.abandoned.append(job)
            more = yield from transaction.session.jobs.step(job)
            if not more:
                client.abandoned.remove(job)
            return more

        with contextlib.suppress(BatcherClosed):
            while await client.call(steps):
                pass

    async def forget(self, uid: str) -> None:
        """Give up a job of which nobody knows whether it has begun to come in; see `drop`."""
        client = self._client()

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, int | None]:
            return (yield from transaction.session.jobs.incoming(client.queue, uid))

        with contextlib.suppress(BatcherClosed):
            number = await client.call(steps)
            if number is not None:
                await self.drop(number)

    async def ids_from(
        self, job: int, position: int, limit: int
    ) -> list[tuple[int, list[str | None]]]:
        """Return rows of the client's ids, each with the place where it begins."""
        return await self._read(  # type: ignore[no-any-return]
            lambda session, _: session.jobs.ids_from(job, position, limit)
        )

    # Acting on one

    async def cancel(self, uid: str, owner: str | None) -> JobLife | None:
        """Stop a job; return the life that it had."""
        client = self._client()
        return await client.call(  # type: ignore[no-any-return]
            lambda transaction: transaction.session.jobs.cancel(client.queue, uid, owner)
        )

    async def pause(self, uid: str, owner: str | None, *, paused: bool) -> JobLife | None:
        """Pause or resume a job; return its life."""
        client = self._client()

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, JobLife | None]:
            life = yield from transaction.session.jobs.pause(
                client.queue, uid, owner, paused=paused
            )
            transaction.stir(client.queue)
            return life

        return await client.call(steps)  # type: ignore[no-any-return]

    async def delete(self, uid: str, owner: str | None) -> JobLife | None:
        """Remove an ended job; return its life."""
        client = self._client()
        found = await client.call(
            lambda transaction: transaction.session.jobs.delete(client.queue, uid, owner)
        )
        if found is None:
            return None
        number, life = found
        if life == JobLife.ENDED:
            while await client.call(lambda transaction: transaction.session.jobs.step(number)):
                pass
        return life  # type: ignore[no-any-return]

    async def told(self, uid: str, delay: float | None) -> None:
        """Note that the end of a job was told, or that this is tried again after so many seconds."""
        client = self._client()

        def steps(transaction: WriteTransaction) -> Generator[Step, Any, None]:
            client.telling = False
            if client.consumer is not None:
                yield from transaction.session.jobs.told(uid, client.consumer, delay)

        await client.call(steps)

    # Reading

    async def statuses(self, uids: Sequence[str]) -> dict[str, JobRow]:
        """Return the rows of those jobs that can be seen, all from one state of the file."""

        def steps(session: Session, queue: int) -> Generator[Step, Any, dict[str, JobRow]]:
            found: dict[str, JobRow] = {}
            for uid in uids:
                row = yield from session.jobs.status(queue, uid, None)
                if row is not None:
                    found[uid] = row
            return found

        return await self._read(steps)  # type: ignore[no-any-return]

    async def rows(
        self, owner: str | None, lives: Collection[int], before: int, limit: int
    ) -> list[JobRow]:
        """Return the first so many rows of jobs with smaller numbers, the newest first."""
        return await self._read(  # type: ignore[no-any-return]
            lambda session, queue: session.jobs.rows(queue, owner, lives, before, limit)
        )

    async def page(
        self,
        uid: str,
        owner: str | None,
        states: Collection[int],
        *,
        after: int,
        limit: int,
        usable: Callable[[JobRow], bool],
    ) -> Page | JobRow | None:
        """Return items behind a place that ended in one of some states; the row alone if it is not usable."""

        def steps(session: Session, queue: int) -> Generator[Step, Any, Page | JobRow | None]:
            row = yield from session.jobs.status(queue, uid, owner)
            if row is None or not usable(row):
                return row
            return (yield from session.jobs.page(row.number, bool(row.named), states, after, limit))

        return await self._read(steps)  # type: ignore[no-any-return]

    async def count_open(self) -> dict[str, int]:
        """Return how many jobs have not ended, by life."""
        found = await self._read(lambda session, queue: session.jobs.count_open(queue))
        return {name: found.get(life, 0) for name, life in VISIBLE.items() if life != JobLife.ENDED}

    async def recipe(self, uid: str, owner: str | None) -> Recipe | None:
        """Return what a job is made of."""
        return await self._read(  # type: ignore[no-any-return]
            lambda session, queue: session.jobs.recipe(queue, uid, owner)
        )

    async def leftovers(
        self, recipe: Recipe, after: int, limit: int, *, retryable_only: bool
    ) -> Leftovers:
        """Return items behind a place that did not end well and may go again."""
        return await self._read(  # type: ignore[no-any-return]
            lambda session, _: session.jobs.leftovers(
                recipe.number, bool(recipe.named), after, limit, retryable_only
            )
        )
