"""Batches over sources larger than memory: `map_batches`."""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Sized,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypedDict, TypeVar, Unpack, cast, overload

import anyio

from ._core.batcher import Batcher, engine_of
from ._io.sources import SECONDS_TO_CLOSE, reader_of
from ._io.stream import handling, outcomes_of, unwrap
from ._pure import checks
from ._pure.report import BatchFailed, BatchReport, Outcome

if TYPE_CHECKING:
    from types import TracebackType

    from ._core.run import Reason

__all__ = ["OutcomeStream", "Progress", "map_batches"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream has come, as of the last batch that ended.

    ``done == succeeded + failed + skipped``.

    Attributes:
        done: Items that have an outcome.
        succeeded: Those with a value.
        failed: Those with an error that is not ``Skipped``.
        skipped: Those left out on purpose.
        total: How many items the source has, if that is known.
        seconds: From the beginning of the stream to the end of the last batch.
    """

    done: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    total: int | None = None
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Return the items done each second, 0 before the first batch has ended."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def eta(self) -> float | None:
        """Return the seconds left at this rate; None if the total or the rate is not known."""
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.done) / self.rate

    @property
    def fraction(self) -> float | None:
        """Return the share that is done, from 0 to 1; None if the total is not known."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0


class Options(TypedDict, total=False):
    """The keyword arguments of `map_batches`, which says what each means."""

    max_batch_size: int
    max_wait: float | None
    max_concurrency: int
    ordered: bool
    total: int | None
    on_progress: Callable[[Progress], object] | None
    progress_every: int
    stop_on_error: bool


@overload
def map_batches(
    source: Iterable[Outcome[T]] | AsyncIterable[Outcome[T]],
    handler: Batcher[T, R],
    **options: Unpack[Options],
) -> OutcomeStream[R]: ...
@overload
def map_batches(
    source: Iterable[Outcome[T]] | AsyncIterable[Outcome[T]],
    handler: Callable[[list[T]], Awaitable[None] | None],
    **options: Unpack[Options],
) -> OutcomeStream[None]: ...
@overload
def map_batches(
    source: Iterable[Outcome[T]] | AsyncIterable[Outcome[T]],
    handler: Callable[[list[T]], Awaitable[Collection[R | Exception]] | Collection[R | Exception]],
    **options: Unpack[Options],
) -> OutcomeStream[R]: ...
@overload
def map_batches(
    source: Iterable[T] | AsyncIterable[T],
    handler: Batcher[T, R],
    **options: Unpack[Options],
) -> OutcomeStream[R]: ...
@overload
def map_batches(
    source: Iterable[T] | AsyncIterable[T],
    handler: Callable[[list[T]], Awaitable[None] | None],
    **options: Unpack[Options],
) -> OutcomeStream[None]: ...
@overload
def map_batches(
    source: Iterable[T] | AsyncIterable[T],
    handler: Callable[[list[T]], Awaitable[Collection[R | Exception]] | Collection[R | Exception]],
    **options: Unpack[Options],
) -> OutcomeStream[R]: ...
def map_batches(
    source: Any,
    handler: Any,
    *,
    max_batch_size: int = 1000,
    max_wait: float | None = None,
    max_concurrency: int = 4,
    ordered: bool = True,
    total: int | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    progress_every: int = 1000,
    stop_on_error: bool = False,
) -> OutcomeStream[Any]:
    """Handle a source of any length in batches, in bounded memory.

    ::

        async with map_batches(source, handler) as outcomes: async for outcome in outcomes: ...

    At most ``max_concurrency + 1`` batches are held at any time, from the reading of a batch's
    first item until its last outcome is taken: a slow handler or a slow consumer stops the reading,
    a slow source leaves handlers idle. With ``max_wait`` an asynchronous source may give one item
    more, which it was asked for when the batch left. Every item that was read has an outcome, in the source's
    order or as batches end. A handler call that raises fails its items, each with a copy; it does
    not end the stream.

    An error of the source is raised by the ``async for``, after the outcomes of what was read
    before it. Leaving the ``async with`` early, by ``break``, an error or a cancellation, cancels
    the handler calls, waits for them, and closes the source if it is a generator. A plain handler's
    thread cannot be cancelled: leaving waits for its batch.

    Args:
        source: Any iterable or async iterable. A plain iterable is read in the event loop, a batch
            at a time, so its items should be at hand; `microbatch.files.read_rows` reads files.
            Where an item is an ``Outcome``, as `read_rows` gives them, the handler gets its value,
            and one that failed goes past the handler to its place among the outcomes; its ``id`` is
            kept.
        handler: An async or plain bulk handler, layered or not; or a `Batcher`, for retries,
            timeouts, weights and the like, which the stream feeds and leaves open.
        max_batch_size: Items read, and given to the handler, together, at least 1. A Batcher cuts
            them into batches of its own. At 1000 what a batch costs is small beside what its items
            cost.
        max_wait: Seconds that a batch's first item waits for company, at least 0: then the batch
            leaves with what a slow source has given. None: until the batch is full or the source
            ends; for an asynchronous source and a Batcher with a ``max_wait`` above 0, that one,
            once for both. The time that an item waits for room does not count. Of a plain iterable
            each item is waited for, and the clock is looked at after it.
        max_concurrency: Handler calls at the same time, at least 1. Four keep a database busy
            without crowding it (a choice).
        ordered: True: outcomes in the source's order. False: as batches end.
        total: How many items there are, for ``progress``; by default the length of a source that
            has one.
        on_progress: Called in the event loop with a `Progress` after the batch in which another
            ``progress_every`` items are done, and once at the end. What it raises ends the stream.
        progress_every: Items between two calls of ``on_progress``, at least 1.
        stop_on_error: True: once an item has failed nothing more is read; what was read is
            finished, its outcomes come, and then the ``async for`` raises ``BatchFailed`` with the
            errors of the first batch that had any. Skipped items are no failure.

    Raises:
        TypeError: If an argument has the wrong type, or the handler is a generator function: put
            that in a Batcher.
        ValueError: If a number is out of its range.
    """
    checks.source("source", source)
    if total is None and isinstance(source, Sized):
        total = len(source)
    elif total is not None:
        checks.whole_number("total", total, 0)
    return OutcomeStream(
        source,
        handler,
        size=checks.whole_number("max_batch_size", max_batch_size, 1),
        max_wait=_wait_of(source, handler)
        if max_wait is None
        else checks.number("max_wait", max_wait, minimum=0),
        concurrency=checks.whole_number("max_concurrency", max_concurrency, 1),
        ordered=checks.flag("ordered", ordered),
        total=total,
        on_progress=checks.function("on_progress", on_progress),
        progress_every=checks.whole_number("progress_every", progress_every, 1),
        stop_on_error=checks.flag("stop_on_error", stop_on_error),
    )


def _wait_of(source: Any, handler: Any) -> float | None:
    """Return how long a batcher lets the items of an asynchronous source wait, None if not at all.

    Not those of a plain one: to look at the clock after each would cost more than the stream does.
    """
    if isinstance(source, AsyncIterable) and isinstance(handler, Batcher):
        return engine_of(handler).rules.max_wait or None
    return None


class _Batch:
    """The items of one handler call, then their outcomes."""

    __slots__ = ("done", "items", "outcomes", "reason", "start")

    def __init__(self, start: int, items: list[Any], reason: Reason) -> None:
        self.start = start
        self.items = items
        self.reason = reason
        self.outcomes: list[Outcome[Any]] = []
        self.done = anyio.Event()


class OutcomeStream(Generic[R]):
    """The outcomes of a source's items: what `map_batches` returns.

    Enter it with ``async with``, then iterate over it, from one task. An iteration that was left
    with ``break`` can be taken up again within the same ``async with``.

    Attributes:
        progress: A `Progress`: how far it has come.
    """

    def __init__(
        self,
        source: Any,
        handler: Any,
        *,
        size: int,
        max_wait: float | None,
        concurrency: int,
        ordered: bool,
        total: int | None,
        on_progress: Callable[[Progress], object] | None,
        progress_every: int,
        stop_on_error: bool,
    ) -> None:
        self.progress: Progress = Progress(total=total)
        self._source = source
        self._handle = handling(handler)
        self._size = size
        self._max_wait = max_wait
        self._concurrency = concurrency
        self._ordered = ordered
        self._on_progress = on_progress
        self._progress_every = progress_every
        self._progress_told = 0
        self._stop_on_error = stop_on_error
        self._error: Exception | None = None
        self._iterator: AsyncGenerator[Outcome[R], None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to read and to handle.

        Raises:
            RuntimeError: If it was entered before.
        """
        if self._iterator is not None:
            raise RuntimeError("a stream can be entered once: call map_batches again")
        self._began = anyio.current_time()
        self._room = anyio.Semaphore(self._concurrency + 1)
        self._slots = anyio.Semaphore(self._concurrency)
        self._ready, self._taken = anyio.create_memory_object_stream[_Batch](math.inf)
        self._iterator = self._outcomes()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._read)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """End everything: cancel handler calls, wait for them, close the source."""
        self._tasks.cancel_scope.cancel()
        # The body's own exceptions pass by the task group, which would wrap them in a group.
        inside = isinstance(error, Exception)
        try:
            swallowed = await self._tasks.__aexit__(
                None if inside else kind, None if inside else error, None if inside else trace
            )
        except BaseExceptionGroup as group:
            raise _alone(group) from None
        finally:
            self._ready.close()
            self._taken.close()
            await cast("AsyncGenerator[Outcome[R], None]", self._iterator).aclose()
        return None if inside else swallowed

    def __aiter__(self) -> AsyncIterator[Outcome[R]]:
        """Return the outcomes.

        Raises:
            RuntimeError: Outside ``async with``.
        """
        if self._iterator is None:
            raise RuntimeError("enter the stream first: async with map_batches(...) as outcomes")
        return self._iterator

    async def _outcomes(self) -> AsyncGenerator[Outcome[R], None]:
        async for batch in self._taken:
            await batch.done.wait()
            for outcome in batch.outcomes:
                yield outcome
            self._room.release()
        if self._error is not None:
            raise self._error

    async def _read(self) -> None:
        """Read batches as room allows, and start each when a slot is free."""
        source = reader_of(self._source, max_wait=self._max_wait)
        self._tasks.start_soon(source.run)
        start = 0
        try:
            async with anyio.create_task_group() as calls:
                while not source.ended:
                    await self._room.acquire()
                    if self._error is not None:  # an item has failed that ends the stream
                        break
                    items = await source.read(self._size)
                    if not items:
                        break
                    await self._slots.acquire()
                    batch = _Batch(start, items, self._reason_of(len(items), ended=source.ended))
                    start += len(items)
                    if self._ordered:
                        self._ready.send_nowait(batch)
                    calls.start_soon(self._run, batch)
            if self._on_progress is not None and self.progress.done != self._progress_told:
                self._on_progress(self.progress)
        finally:
            with anyio.move_on_after(SECONDS_TO_CLOSE, shield=True):
                await source.close()
        if self._error is None:
            self._error = source.error
        self._ready.close()

    def _reason_of(self, count: int, *, ended: bool) -> Reason:
        return "size" if count == self._size else "close" if ended else "wait"

    async def _run(self, batch: _Batch) -> None:
        """Handle one batch."""
        values, failed, ids = unwrap(batch.items)
        results: list[Any] = await self._handle(values, batch.reason) if values else []
        batch.items = []
        batch.outcomes, bad = outcomes_of(batch.start, results, failed, ids)
        self._slots.release()
        self._count(batch.outcomes, bad)
        batch.done.set()
        if not self._ordered:
            self._ready.send_nowait(batch)

    def _count(self, outcomes: list[Outcome[Any]], bad: list[Outcome[Any]]) -> None:
        before = self.progress
        skipped = sum([outcome.skipped for outcome in bad])
        self.progress = now = Progress(
            before.done + len(outcomes),
            before.succeeded + len(outcomes) - len(bad),
            before.failed + len(bad) - skipped,
            before.skipped + skipped,
            before.total,
            anyio.current_time() - self._began,
        )
        if self._stop_on_error and now.failed > before.failed and self._error is None:
            report = BatchReport(outcomes)
            errors = [o.error for o in bad if o.error is not None and not o.skipped]
            message = f"{report.failed} of {report.total} items of a batch failed"
            self._error = BatchFailed(message, errors, report)
        every = self._progress_every
        if self._on_progress is not None and now.done // every > self._progress_told // every:
            self._progress_told = now.done
            self._on_progress(now)


def _alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the exception of a group that has no other, cancellations aside; else the group."""
    _, rest = group.split(anyio.get_cancelled_exc_class())
    found: BaseException = group if rest is None else rest
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
