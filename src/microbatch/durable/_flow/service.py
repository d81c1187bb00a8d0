"""What a queue is made of, wired: how items come in, who waits for them, and who works on them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from microbatch._core.batcher import Batcher
from microbatch._core.info import running
from microbatch._telemetry.observer import observer_of
from microbatch.durable._life.counting import Counting
from microbatch.durable.errors import QueueUnavailable

from .callers import Callers
from .consumer import Consumer
from .hands import Hands
from .intake import Intake
from .settling import Settling
from .telling import Telling
from .wanted import LOOKED_UP, Wanted
from .watching import Watching

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Hashable
    from pathlib import Path

    import aiosqlite

    from microbatch._loops.protocol import Loop
    from microbatch._pure.adaptive import AdaptiveSize
    from microbatch._pure.retry import Retry
    from microbatch._telemetry.observer import Observer
    from microbatch.durable._file.codec import Codec
    from microbatch.durable._file.job_records import JobNews, JobRow
    from microbatch.durable._file.limits import Limits
    from microbatch.durable._file.records import Claim, Found
    from microbatch.durable._file.store import Store
    from microbatch.durable._life.opening import OwnTask

logger: logging.Logger = logging.getLogger("microbatch.durable")

_UNTOLD: AbstractContextManager[bytes | None] = nullcontext()

#: Seconds for the last transaction, once everything else has ended.
CLOSE_GRACE = 5.0

#: Seconds before the next attempt while the file cannot be used.
TROUBLE_PAUSE = 0.25

#: The same after an error that nobody foresaw, which is told each time.
ODD_PAUSE = 1.0


class Work(NamedTuple):
    """How a queue's items are handled.

    Attributes:
        calling: What `Batcher` takes that calls the handler: the handler, its slots, its timeout.
        max_batch_size, max_wait, partition, retry, on_settle, on_job_end: As for ``DurableBatcher``.
    """

    calling: dict[str, Any]
    max_batch_size: int | AdaptiveSize
    max_wait: float
    partition: Callable[[Any], Hashable] | None
    retry: Retry | None
    on_settle: Callable[[aiosqlite.Connection, list[Any], list[Any]], Awaitable[None]] | None
    on_job_end: Callable[[Any], Awaitable[None]] | None = None


class Service:
    """The parts of a queue, made anew for each event loop that it serves.

    Args:
        title: The queue's name for people and telemetry.
        queue: Its name in the file.
        path: The file.
        store: The queue in the file.
        items: How items read back.
        results: How results do.
        limits: How much the queue may hold.
        poll_interval: Seconds between two looks at what others have committed.
        telemetry: As for ``Batcher``.
        work: How items are handled; None for a queue without a handler.

    Attributes:
        intake: Brings new items to the disk.
        callers: Who waits for results.
        watching: Who waits for jobs.
        status_of: Makes what is told of a job; whoever makes the service sets it.
        consumer: Works through the queue; None without a handler.
        lookups: Reads items, many at once.
        counting: Counts for whoever reads gauges.
        create_waiter: Makes what a caller waits on.
    """

    def __init__(
        self,
        *,
        title: str,
        queue: str,
        path: Path,
        store: Store,
        items: Codec[Any],
        results: Codec[Any],
        limits: Limits,
        poll_interval: float,
        telemetry: Any,
        work: Work | None,
    ) -> None:
        self._title = title
        self._queue = queue
        self._path = path
        self.store = store
        self._items = items
        self._results = results
        self._limits = limits
        self.poll_interval = poll_interval
        self._telemetry = telemetry
        self._work = work
        self.observer: Observer | None = observer_of(title, telemetry, queue)
        self.counting: Counting = Counting(
            path=path, queue=queue, name=title, store=store, observer=self.observer
        )
        self.spawn: Callable[[Any, str], OwnTask]
        self.create_waiter: Callable[[], Any]
        self.intake: Intake
        self.callers: Callers
        self.lookups: Batcher[int, Found | None]
        self.watching: Watching
        self.status_of: Callable[[JobRow], Any]
        self._telling: Telling | None = None
        # Made now, so that what is wrong with the settings is said now.
        self.hands: Hands | None = self._make_hands()
        self.consumer: Consumer | None = None
        self._parts = itertools.count(1)
        self._loop: Loop
        self._wanted: Wanted[int]

    def _make_hands(self) -> Hands | None:
        work = self._work
        if work is None:
            return None
        return Hands(
            work.calling,
            observer_of(self._title, self._telemetry, self._queue),
            max_batch_size=work.max_batch_size,
            partition=work.partition,
            retry=work.retry,
            items=self._items,
            results=self._results,
            waits=work.max_wait > 0,
        )

    # Opening and closing

    async def start(self, loop: Loop) -> None:
        """Open the file and make the parts."""
        self._loop = loop
        self.create_waiter = loop.create_waiter
        self._wanted = Wanted(
            "lookup",
            self.spawn,
            read=self._look_up,
            tell=self._tell_of,
            failed=self._say_why_later,
        )
        self.callers = Callers(self._results, self._queue, self._wanted.ask)
        self.lookups = Batcher(
            self._look_up,
            max_batch_size=LOOKED_UP,
            max_pending=None,
            name=self._title,
            telemetry=False,
        )
        self.intake = Intake(
            self._queue,
            loop,
            store=self.store,
            limits=self._limits,
            items=self._items,
            callers=self.callers,
            observer=self.observer,
            title=self._title,
        )
        self.watching = Watching(self._title, self._queue, loop, self.store, self.spawn)
        work = self._work
        if work is not None and work.on_job_end is not None:
            self._telling = Telling(
                self._title,
                self.store,
                work.on_job_end,
                status_of=self.status_of,
                spawn=self.spawn,
                loop=loop,
            )
        if work is not None:
            self.hands = self.hands or self._make_hands()
            assert self.hands is not None  # noqa: S101
            settling = Settling(
                name=self._title,
                path=self._path,
                loop=loop,
                store=self.store,
                callers=self.callers,
                retry=work.retry,
                on_settle=work.on_settle,
                observer=self.observer,
                look_up=self._wanted.ask,
                spawn=self.spawn,
            )
            self.consumer = Consumer(loop, self.store, self.hands, settling)
        await self.store.open(loop, self)
        self.callers.awake = self.store.wake_if_asleep
        self.counting.start(loop, self.spawn)
        if self.consumer is not None:
            self.consumer.start()

    async def stop_halfway(self) -> None:
        """Nothing is open yet: the store sees to itself."""

    def stop_starting(self) -> None:
        """Let the start fail if it waits for the file."""
        self.store.stop_opening()

    def lose_loop(self) -> None:
        """Forget what belonged to an event loop that has ended."""
        self.store.lose_loop()
        self.counting.stop()
        self.hands = None

    async def drain(self) -> None:
        """Finish what is under way."""
        self.intake.close()
        await self.intake.drained()
        if self.consumer is not None:
            await self.consumer.drain()

    async def shut(self) -> None:
        """Close at once: in a bounded time. Cancelling it shortens its waits, and leaves nothing out."""
        self.intake.close()
        async with contextlib.AsyncExitStack() as rest:  # the last one first
            rest.callback(self._let_go)
            rest.push_async_callback(self._leave_file)
            rest.callback(self._tell_callers)
            rest.push_async_callback(self.lookups.aclose, 0)
            rest.push_async_callback(self.watching.close)
            if self._telling is not None:
                rest.push_async_callback(self._telling.close)
            rest.push_async_callback(self._wanted.end)
            if self.consumer is not None:
                rest.push_async_callback(self.consumer.shut)
            await self.counting.close()

    def _tell_callers(self) -> None:
        self.intake.give_up()
        self.callers.close(self._title)

    def _let_go(self) -> None:
        self.hands = self.consumer = None

    async def _leave_file(self) -> None:
        try:
            with anyio.move_on_after(CLOSE_GRACE) as grace:
                await self.store.close()
        except (QueueUnavailable, sqlite3.Error) as error:
            logger.warning("queue %r: %s; its items go back once others look", self._title, error)
        if grace.cancelled_caught:
            logger.warning(
                "queue %r: closed while its file is locked; its items go back later", self._title
            )

    # For whoever brings something

    def guard(self, call: str, *, handled: bool = True) -> None:
        """Refuse calls that wait for the very transaction, or the very batch, that makes them.

        Only those wait for a batch that wait until something is ``handled``.

        Raises:
            WouldDeadlock: If this is one.
        """
        if handled and self.hands is not None and running() is not None:
            self.hands.engine.guard(call)
        self.store.guard(call)

    @staticmethod
    def now() -> float:
        """Return the time in seconds since the epoch."""
        return time.time()

    def sending(
        self, items: Callable[[], int] = lambda: 1, job: str | None = None
    ) -> AbstractContextManager[bytes | None]:
        """Return what tells telemetry that items are stored; gives the context to store with them.

        How many is asked for at the end. ``job`` is the id of theirs.
        """
        observer = self.observer
        return _UNTOLD if observer is None else observer.sending(items, self.now(), job)

    def next_part(self) -> int:
        """Return a number for what is staged together."""
        return next(self._parts)

    def drop_staged(self, part: int) -> None:
        """Remove what was staged and will not be shown."""
        self._clean_up(lambda: self.store.drop_staged(part))

    async def drop_job(self, job: int) -> None:
        """Remove a job that will not be shown; what cannot be removed now is, once others look."""
        with contextlib.suppress(QueueUnavailable):
            await self.store.jobs.drop(job)

    def drop_job_soon(self, job: int) -> None:
        """The same without waiting for it."""
        self._clean_up(lambda: self.store.jobs.drop(job))

    def forget_job_soon(self, uid: str) -> None:
        """Remove a job of which nobody knows whether it has begun to come in."""
        self._clean_up(lambda: self.store.jobs.forget(uid))

    def _clean_up(self, remove: Callable[[], Awaitable[None]]) -> None:
        """Do what nobody waits for. Where the event loop has ended others do it, once they look."""

        async def clean_up() -> None:
            with contextlib.suppress(QueueUnavailable):
                await remove()

        if not self._loop.has_ended():
            self.spawn(clean_up(), "clean-up")

    def release_job_soon(self, job: int) -> None:
        """Let a job begin here as soon as the call that brought it is over."""
        assert self._loop.native is not None  # noqa: S101 - asyncio
        if not self._loop.has_ended():  # else the writer notices, and lets it begin
            self._loop.native.call_soon(self.store.jobs.release, job)

    # What the store tells

    def claimed(self, claims: list[tuple[Claim, list[Any] | None]]) -> None:
        """Take claims."""
        if (
            self.consumer is not None
        ):  # else it closed without waiting for the file, which takes them back
            self.consumer.claimed(claims)

    def ended(self, spans: list[tuple[int, int]] | None) -> None:
        """Look up what ended elsewhere, as far as somebody waits for it."""
        self._wanted.ask(self.callers.items() if spans is None else self.callers.among(spans))

    def jobs_changed(self, uids: Collection[str]) -> None:
        """Look at jobs that somebody waits for."""
        self.watching.changed(uids)

    def watched_jobs(self) -> list[str]:
        """Return which jobs somebody waits for; in whatever thread."""
        return self.watching.uids()

    def counts_jobs(self) -> bool:
        """Tell whether telemetry wants to know how jobs go on; in whatever thread."""
        observer = self.observer
        return observer is not None and observer.measuring

    def jobs_went_on(self, news: JobNews) -> None:
        """Count what a transaction did to jobs."""
        assert self.observer is not None  # noqa: S101 - else it wanted to know nothing
        self.observer.jobs_went_on(news.items, news.ended)

    def jobs_stopped(self, uids: Collection[str]) -> None:
        """Give back what no handler has of jobs of which nothing more may begin."""
        if self.hands is not None and self.consumer is not None:
            self.hands.give_back_stopped(frozenset(uids))

    def tell_end(self, told: tuple[str, int]) -> None:
        """Tell the user's function that a job has ended."""
        if self._telling is not None and self.consumer is not None:
            self._telling.tell(*told)

    @property
    def tracing(self) -> bool:
        """Tell whether spans are recorded of what is stored."""
        observer = self.observer
        return observer is not None and observer.tracing

    def is_waiting(self) -> bool:
        """Tell whether somebody waits for an item's end, or for a job."""
        return bool(self.callers) or bool(self.watching)

    # Looking up

    async def _look_up(self, numbers: list[int]) -> list[Found | None]:
        """Read many items at once: the handler of a Batcher."""
        rows = {found.id: found for found in await self.store.find(numbers)}
        return [rows.get(number) for number in numbers]

    def _tell_of(self, numbers: list[int], found: list[Found | None]) -> None:
        for number, one in zip(numbers, found, strict=True):
            self.callers.tell(number, one)

    def _say_why_later(self, error: Exception) -> float:
        if isinstance(error, QueueUnavailable):  # said already by whoever found out first
            return TROUBLE_PAUSE
        logger.warning("queue %r: who waits is looked up again later", self._title, exc_info=error)
        return ODD_PAUSE
