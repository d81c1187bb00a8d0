"""The Batcher: submit -> buffer -> slot -> handler -> callers."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Hashable,
    Iterable,
)
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Protocol,
    Self,
    TypedDict,
    TypeGuard,
    TypeVar,
    Unpack,
    overload,
)

import anyio
import anyio.lowlevel

from . import _checks, batch
from ._asyncio import running_loop
from ._log import write
from ._trio import OtherRunError
from ._waiters import ThreadWaiter, end_item
from .adaptive import AdaptiveSize
from .buffer import Mark, Scale
from .entrance import Entrance
from .errors import BatcherClosed
from .handler import kind_of, name_of
from .retry import Retry
from .telemetry import CLOSED, Telemetry, observer_of

if TYPE_CHECKING:
    from types import TracebackType

    from ._waiters import Group
    from .batch import Run
    from .outcome import BatchReport

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: Seconds that closing at once waits for cancelled handlers to end: enough for a rollback, and a bound.
CLOSE_GRACE = 5.0

#: Seconds after which a blocked thread looks whether its event loop is still there.
_THREAD_GLANCE = 0.5

_UNSET: Any = object()

#: The usual priority. Compared by identity, since False and 0.0 equal it; there is one 0 in CPython, and
#: where there are more, `_enter` finds out.
_NONE = 0


class Pending(Protocol[R_co]):
    """The result of one item, on its way: what ``submit_nowait`` returns.

    Await it once, from one task. Cancelling it, or the task that awaits it, withdraws the item if it is
    still buffered; dropping it does not. A failure that nobody awaited is logged once.
    """

    def __await__(self) -> Generator[Any, Any, R_co]:
        """Wait for the result; raise what the item's handler call raised for it."""
        ...

    def cancel(self) -> bool:
        """Stop waiting and withdraw the item if it is still buffered; False if it was done already."""
        ...

    def done(self) -> bool:
        """Tell whether there is a result, an error or a cancellation."""
        ...


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """What a batcher holds and has done, exact at the moment of the call.

    ``pending == buffered + in_flight + in_backoff``.

    Attributes:
        pending: Items accepted and not yet resolved.
        buffered: Items that wait for a batch.
        in_flight: Items in handler calls, without an outcome yet.
        waiting: Callers that wait for room.
        in_backoff: Items that failed and wait for their next attempt.
        batches: Handler calls that have ended.
        items: Items whose handling has ended.
        failed: Those of them that failed; skipped ones are not counted here.
        reasons: Handler calls by the reason why their batch left.
        oldest_wait: Seconds that an item waited for its batch to leave: the longest of the last 16
            batches; None before the first. Like ``BatchInfo.oldest_wait``.
        oldest_in_flight: Seconds that the oldest running handler call has taken; None if none runs.
        stuck_threads: Worker threads that still run a handler call which was given up.
    """

    pending: int
    buffered: int
    in_flight: int
    waiting: int
    in_backoff: int
    batches: int
    items: int
    failed: int
    reasons: dict[str, int]
    oldest_wait: float | None
    oldest_in_flight: float | None
    stuck_threads: int


class Settings(TypedDict, Generic[T], total=False):
    """The keyword arguments of ``Batcher`` and ``batched``; ``Batcher`` says what each means."""

    max_batch_size: int | AdaptiveSize
    max_wait: float
    max_concurrency: int
    max_pending: int | None
    on_full: Literal["wait", "reject"]
    weigh: Callable[[T], float] | None
    max_batch_weight: float | None
    max_pending_weight: float | None
    partition: Callable[[T], Hashable] | None
    partition_concurrency: int | None
    coalesce: Callable[[T], Hashable] | None
    retry: Retry | None
    handler_timeout: float | None
    drain_timeout: float | None
    cancel_abandoned: bool
    capture_context: bool
    name: str | None
    telemetry: Telemetry | Literal[False] | None


class Batcher(Entrance, Generic[T, R]):
    """Collects single calls into bulk calls and gives each caller its own result.

    A batch leaves when a slot is free and ``max_batch_size`` items or ``max_batch_weight`` are there, the
    oldest item has waited ``max_wait``, or ``flush()`` or closing asked for it. While all slots are busy
    the next batch keeps filling, so batches grow with load.

    It works from the first call on, in whatever event loop is running (asyncio, uvloop or trio); use
    ``async with`` or ``aclose()`` so that the last batch gets home. All methods belong to that loop's
    thread, but for ``submit_from_thread`` and ``stats``. It serves one event loop at a time. When that one
    has ended the next may use it, also if it was closed: closing belongs to the loop that was served.

    Args:
        handler: The bulk function: takes a list of items, which it then owns, and returns one result for
            each, in order: any sized iterable but str, bytes, a mapping or a set. An exception in a
            result's place is raised in that item's caller alone; what it raises is raised in every
            caller, each getting a copy. ``None`` gives every caller None. A plain function runs in a
            worker thread. An async generator yields ``(index, result)`` pairs, each an outcome at once.
        max_batch_size: Items in a batch, at least 1, or an ``AdaptiveSize``. 100 is where most bulk
            interfaces have earned nearly all there is to earn.
        max_wait: Seconds that the oldest item may wait for company, at least 0. With 0 a batch is cut
            after every task that is runnable already has had its turn: calls made together travel
            together, and a lone caller waits for nobody.
        max_concurrency: Batches in flight, at least 1. One lets batches grow while the backend works.
        max_pending: Items accepted and not yet resolved, at least 1; None for no bound. The default
            bounds memory at some 10 MB of callers.
        on_full: ``"wait"`` holds callers back until there is room; ``"reject"`` raises ``BatcherFull``.
        weigh: An item's weight (bytes, tokens ...): a finite number of at least 0. Weights add up
            without rounding, as far as they have no more than 15 digits of the smaller limit. Needs
            ``max_batch_weight`` or ``max_pending_weight``.
        max_batch_weight: The most that a batch weighs, more than 0. Needs ``weigh``. A single item over
            it is refused with ``ItemTooHeavy``.
        max_pending_weight: The most that all pending items weigh, more than 0. Needs ``weigh``.
        partition: Which items may share a batch: those with equal partitions.
        partition_concurrency: Batches in flight for each partition, at least 1; 1 keeps a partition's
            order. Needs ``partition``.
        coalesce: Items with equal keys, in one partition, that are buffered at the same time share one
            slot and one result. They must be interchangeable: for reads, never for writes.
        retry: Which failed items go again; None for none.
        handler_timeout: Seconds for one batch, more than 0; None for no limit. After it the callers get
            ``HandlerTimeout`` and the slot is free, even if the handler ignores its cancellation.
        drain_timeout: Seconds that closing waits for what is pending, at least 0; None for no limit.
        cancel_abandoned: Cancel a running handler once all callers that still wait for it are gone; it
            keeps its slot until it has ended. A plain handler's thread is left to finish.
        capture_context: Keep each caller's contextvars for the handler: ``current_batch().contexts``.
        name: For logs and telemetry, where each name makes series of its own, so never one made of
            data; the handler's qualified name by default.
        telemetry: ``None`` tells OpenTelemetry's global providers, as soon as there are some; a
            ``Telemetry`` says whom and what else; False tells nobody, and logs no failed batches.

    Raises:
        TypeError: If the handler cannot be called or a setting has the wrong type.
        ValueError: If a setting is out of its range, or lacks the one that it needs.
    """

    __slots__ = ()

    @overload
    def __init__(
        self: Batcher[T, None],
        handler: Callable[[list[T]], Awaitable[None]],
        **settings: Unpack[Settings[T]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        handler: Callable[[list[T]], Awaitable[Collection[R | Exception]]],
        **settings: Unpack[Settings[T]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        handler: Callable[[list[T]], AsyncIterator[tuple[int, R | Exception]]],
        **settings: Unpack[Settings[T]],
    ) -> None: ...
    @overload
    def __init__(
        self: Batcher[T, None],
        handler: Callable[[list[T]], None],
        **settings: Unpack[Settings[T]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        handler: Callable[[list[T]], Collection[R | Exception]],
        **settings: Unpack[Settings[T]],
    ) -> None: ...
    def __init__(
        self,
        handler: Callable[[list[T]], Any],
        *,
        max_batch_size: int | AdaptiveSize = 100,
        max_wait: float = 0.0,
        max_concurrency: int = 1,
        max_pending: int | None = 10_000,
        on_full: Literal["wait", "reject"] = "wait",
        weigh: Callable[[T], float] | None = None,
        max_batch_weight: float | None = None,
        max_pending_weight: float | None = None,
        partition: Callable[[T], Hashable] | None = None,
        partition_concurrency: int | None = None,
        coalesce: Callable[[T], Hashable] | None = None,
        retry: Retry | None = None,
        handler_timeout: float | None = None,
        drain_timeout: float | None = 30.0,
        cancel_abandoned: bool = False,
        capture_context: bool = False,
        name: str | None = None,
        telemetry: Telemetry | Literal[False] | None = None,
    ) -> None:
        self._kind = kind_of(handler)
        self._handler = handler
        self._adaptive = max_batch_size if isinstance(max_batch_size, AdaptiveSize) else None
        self._size = (
            max_batch_size.maximum
            if isinstance(max_batch_size, AdaptiveSize)
            else _checks.whole_number("max_batch_size", max_batch_size, 1)
        )
        self._max_wait = _checks.number("max_wait", max_wait, minimum=0)
        self._max_concurrency = _checks.whole_number("max_concurrency", max_concurrency, 1)
        self._max_pending = (
            None if max_pending is None else _checks.whole_number("max_pending", max_pending, 1)
        )
        if on_full not in ("wait", "reject"):
            raise ValueError(f"on_full must be 'wait' or 'reject', got {on_full!r}")
        self._on_full = on_full
        self._weigh = _checks.function("weigh", weigh)
        self._max_batch_weight = _limit("max_batch_weight", max_batch_weight, weigh, "weigh")
        self._max_pending_weight = _limit("max_pending_weight", max_pending_weight, weigh, "weigh")
        if weigh is not None and max_batch_weight is None and max_pending_weight is None:
            raise ValueError(
                f"weigh needs max_batch_weight or max_pending_weight, got weigh={weigh!r} without either"
            )
        self._scale = Scale(max_batch_weight, max_pending_weight)
        self._max_pending_units = self._in_units(self._max_pending_weight)
        self._partition = _checks.function("partition", partition)
        if partition_concurrency is not None:
            _checks.whole_number("partition_concurrency", partition_concurrency, 1)
            _needs("partition_concurrency", partition_concurrency, partition, "partition")
        self._partition_concurrency = partition_concurrency
        self._coalesce = _checks.function("coalesce", coalesce)
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry must be a Retry or None, got {retry!r}")
        self._retry = retry
        self._handler_timeout = (
            None
            if handler_timeout is None
            else _checks.number("handler_timeout", handler_timeout, above=0)
        )
        self._drain_timeout = _drain("drain_timeout", drain_timeout)
        self._cancel_abandoned = _checks.flag("cancel_abandoned", cancel_abandoned)
        self._capture_context = _checks.flag("capture_context", capture_context)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, got {name!r}")
        self._name = name_of(handler) if name is None else name
        self._observer = observer_of(self._name, telemetry)
        self._scoped = handler_timeout is not None or cancel_abandoned
        self._is_plain = not (
            self._adaptive
            or weigh
            or partition
            or coalesce
            or retry
            or cancel_abandoned
            or capture_context
        )
        self._begin()

    @property
    def name(self) -> str:
        """Return the batcher's name."""
        return self._name

    async def submit(self, item: T, *, priority: float = 0) -> R:
        """Hand in one item and wait for its result.

        Args:
            item: What the handler gets.
            priority: Higher goes first; first come first served within one. One in ten goes by age, so
                that nobody starves. A caller with n older ones before it is let in as one of the next
                10 * (n + 1). An item with n older ones in its partition leaves with one of that
                partition's next 10 * (n // max_batch_size + 1) batches, 10 * (n + 1) where weights end
                them; and of k partitions that are ready each has one of the next 10 * k batches.

        Returns:
            The handler's result for this item.

        Raises:
            Exception: What the handler raised for this item or for its batch.
            BatcherFull: If there is no room and ``on_full="reject"``.
            BatcherClosed: If the batcher is closed, or closes before the result is there.
            ItemTooHeavy: If the item alone is over a limit of weight.
            ResultCountError: If the handler gave too few or too many results.
            HandlerTimeout: If the handler took longer than ``handler_timeout``.
            HandlerCrashed: If it raised what is no ``Exception``.
            HandlerStuck: If too many earlier calls still ignore their timeout.
            WouldDeadlock: Inside a running batch of this batcher.
            RuntimeError: If the batcher serves another event loop that is still alive.
            TypeError: If ``priority`` is not a number, or is a bool or NaN.

        Cancellation: a buffered item is withdrawn and the handler never sees it; one in flight is
        handled to its end without this caller, and nobody else notices.
        """
        if self._running and batch.running() is not None:
            self._guard("submit")
        fifo = self._fast
        if fifo is None or priority is not _NONE or running_loop() is not self._loop:
            waiter = self._enter(item, priority)
        else:  # the usual way, here as in submit_nowait: a call less is 0.4 % of all that an item costs
            try:
                waiter = self._create_waiter()
            except OtherRunError:  # trio's, which no loop tells from the one that is served
                waiter = self._enter(item, priority)
            else:
                fifo.items.append(item)
                fifo.waiters.append(waiter)
                if len(fifo.items) >= fifo.limit:
                    waiter = self._fill(fifo, waiter)
        try:
            return await waiter  # type: ignore[no-any-return]
        except BaseException:
            waiter = (
                None  # in a traceback it would keep the exception alive, and that the traceback
            )
            raise

    def submit_nowait(self, item: T, *, priority: float = 0) -> Pending[R]:
        """Hand in one item and return its result's ``Pending``, without waiting for room.

        Needs no task of its own: ``gather(*[batcher.submit_nowait(i) for i in items])`` costs about a
        third of a task for each. May be called inside a running batch; awaiting it there may deadlock.

        A log handler may call it. While the batcher logs a failure of its own items, what is submitted to
        it is withdrawn at once, its ``Pending`` cancelled: its own lines cannot feed it. Lines that go by
        way of a thread or a task come later and are taken: filter the loggers ``microbatch`` and
        ``asyncio`` there.

        Raises:
            BatcherFull: If there is no room, whatever ``on_full`` is.
            BatcherClosed: If the batcher is closed.
            ItemTooHeavy: If the item alone is over a limit of weight.
            RuntimeError: If no event loop runs here, or the batcher serves another one.
            TypeError: If ``priority`` is not a number, or is a bool or NaN.

        Everything that ``submit`` raises later comes from awaiting the ``Pending``.
        """
        fifo = self._fast
        if fifo is None or priority is not _NONE or running_loop() is not self._loop:
            return self._enter(item, priority, wait=False)  # type: ignore[no-any-return]
        try:
            waiter = self._create_waiter()
        except OtherRunError:
            return self._enter(item, priority, wait=False)  # type: ignore[no-any-return]
        fifo.items.append(item)
        fifo.waiters.append(waiter)
        if len(fifo.items) >= fifo.limit:
            waiter = self._fill(fifo, waiter, wait=False)
        return waiter  # type: ignore[no-any-return]

    async def submit_many(self, items: Iterable[T], *, priority: float = 0) -> list[R]:
        """Hand in many items and wait for all results, in the items' order.

        The iterable is read to its end at once, before anything is waited for; for sources that are
        endless or larger than memory there is ``map_batches``. Items are taken in as room allows. Costs
        a fiftieth of a task for each.

        Raises:
            TypeError: If items cannot be iterated. What the iterable raises is raised here, and none of
                its items is handled. And if ``priority`` is not a number, or is a bool or NaN.
            BatchFailed: If an item failed or was skipped: a group of their exceptions, with the
                ``report`` of all. Items that found no room, where full items are rejected, are among
                them.
            BatcherClosed: If the batcher is closed already.
            WouldDeadlock: Inside a running batch of this batcher.
            RuntimeError: If the batcher serves another event loop that is still alive.

        Cancellation withdraws what is still buffered or waits for room.
        """
        self._guard("submit_many")
        group = await self._wait_for(items, priority)
        if group.errors:
            group.report(self._name).values()
        return group.values

    async def submit_many_report(
        self, items: Iterable[T], *, priority: float = 0
    ) -> BatchReport[R]:
        """Hand in many items and wait for the outcomes of all; never raise for an item.

        Like ``submit_many``, but errors are outcomes in the report.

        Raises:
            TypeError: If items cannot be iterated, or ``priority`` is not a number, or is a bool or NaN.
                What the iterable raises is raised here too.
            BatcherClosed: If the batcher is closed already.
            WouldDeadlock: Inside a running batch of this batcher.
            RuntimeError: If the batcher serves another event loop that is still alive.
        """
        self._guard("submit_many_report")
        group = await self._wait_for(items, priority)
        return group.report(self._name)

    async def _wait_for(self, items: Iterable[T], priority: float) -> Group:
        group = self._enter_many(list(items), priority)
        if group.left:
            await group.waiter
        else:
            await anyio.lowlevel.checkpoint()
        return group

    def submit_from_thread(self, item: T, timeout: float | None = None) -> R:
        """Hand in one item from another thread than the loop's and block until its result is there.

        Args:
            item: What the handler gets.
            timeout: Seconds to wait, at least 0; None for no limit.

        Raises:
            TimeoutError: If there was no result in time; a buffered item is then withdrawn.
            RuntimeError: In the event loop's own thread, or if no event loop is served yet.
            BatcherClosed: If the batcher is closed, or its event loop ended under way.
            WouldDeadlock: In the thread of a running batch of this batcher.

        And whatever ``submit`` raises. Where ``on_full="wait"``, it waits for room too.
        """
        if timeout is not None:
            _checks.number("timeout", timeout, minimum=0)
        self._guard("submit_from_thread")
        runtime = self._runtime
        if runtime is not None and runtime.is_current():
            raise RuntimeError(
                "submit_from_thread() would block the event loop: await submit() instead"
            )
        if self._state == "closed":
            raise BatcherClosed(self._name)
        if runtime is None or runtime.has_ended():
            raise RuntimeError(
                f"batcher {self._name!r} serves no event loop: "
                "submit_from_thread() needs one, so open it with `async with` there first"
            )
        waiter = ThreadWaiter()
        context = contextvars.copy_context()

        def enter() -> None:
            if waiter.done():  # timed out before the loop had a turn
                return
            try:
                context.run(self._enter_marked, item, waiter)
            except Exception as error:  # noqa: BLE001 - the calling thread's to raise
                waiter.set_exception(error)

        def withdraw() -> None:
            end_item(waiter, None, cancelled=True)
            if waiter.on_cancel is not None:
                waiter.on_cancel(waiter)

        try:
            runtime.call_from_thread(enter)
        except RuntimeError:
            raise BatcherClosed(self._name) from None
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _THREAD_GLANCE if ends is None else max(0.0, ends - time.monotonic())
            if waiter.wait(min(left, _THREAD_GLANCE)):
                break
            if ends is not None and time.monotonic() >= ends and waiter.cancel():
                with contextlib.suppress(
                    RuntimeError
                ):  # the loop has ended: nothing to withdraw from
                    runtime.call_from_thread(withdraw)
                raise TimeoutError(f"no result within timeout={timeout} s")
            if runtime.has_ended() and waiter.cancel():
                raise BatcherClosed(self._name, started=True)
        return waiter.result()  # type: ignore[no-any-return]

    async def flush(self) -> None:
        """Send what is buffered now and return when it is resolved, retries included.

        Later items may ride along; batches in flight are not awaited. Does nothing when nothing is
        buffered. What fails, fails its callers, not ``flush``.

        Raises:
            WouldDeadlock: Inside a running batch of this batcher.
            RuntimeError: If the batcher serves another event loop that is still alive.

        Cancellation stops the waiting; what was made due stays due.
        """
        self._guard("flush")
        done = anyio.Event()
        mark = Mark(done.set)
        mark.left = 1  # until all are counted
        self._generalise(self._bind())  # each item tells that it is resolved, or withdrawn
        self._ranked.flush(mark, self._now())
        self._paused = False
        self._pump()
        mark.release()
        self._simplify()
        await done.wait()

    async def aclose(self, drain_timeout: float | None = _UNSET) -> None:
        """Stop taking items, finish what is pending, and close.

        New calls get ``BatcherClosed``, and so do callers that wait for room. What is buffered leaves at
        once; items in back-off wait it out and go again. After ``drain_timeout`` the rest is closed at
        once: its callers get ``BatcherClosed`` there and then, and handlers are cancelled and awaited
        for up to 5 seconds. May be called more than once, at the same time too, from any task.

        Args:
            drain_timeout: Seconds to wait for what is pending, at least 0; None for no limit. The
                constructor's by default.

        Raises:
            WouldDeadlock: Inside a running batch of this batcher.
            RuntimeError: If the batcher serves another event loop that is still alive.
            SystemExit: If a handler raised it under trio, where nothing else could.

        Cancelling it closes at once.
        """
        seconds = (
            self._drain_timeout
            if drain_timeout is _UNSET
            else _drain("drain_timeout", drain_timeout)
        )
        self._guard("aclose")
        self._bind()
        try:
            if seconds != 0:
                idle = self._start_closing()
                with anyio.move_on_after(seconds):
                    await idle.wait()
        finally:
            await self._finish_closing()
        if self._fatal is not None:
            fatal, self._fatal = self._fatal, None
            raise fatal

    def _start_closing(self) -> anyio.Event:
        """Let nobody in any more and send off what is there; return what tells that all is done."""
        if self._idle is None:
            self._idle = anyio.Event()
        if self._state == "open":
            self._state = "closing"
            self._fast = None
            self._close_line()
            if self._fifo is not None:
                self._fifo.closing = True
            else:
                self._ranked.closing = True
                self._ranked.flush(None, self._now())
            self._paused = False
            self._pump()
        self._check_idle()
        return self._idle

    def _close_line(self) -> None:
        observer = self._observer
        for waiting in list(self._line):
            if not waiting.queued:  # whom telemetry told of another's end has cancelled this one
                continue
            self._line.discard(waiting)
            left = 1
            if hasattr(waiting, "group"):
                group, waiting.group.feed = waiting.group, None
                left = len(waiting.items) - waiting.position
                for index in range(waiting.position, len(waiting.items)):
                    group.fail(index, BatcherClosed(self._name))
            else:
                waiter = waiting.waiter
                waiting.release()
                waiter.set_exception(BatcherClosed(self._name))
            if observer is not None:
                observer.refused(CLOSED, left)

    async def _finish_closing(self) -> None:
        """End what is left, wait within bounds for the handlers' tasks, and be closed."""
        self._close_line()
        dropped = self._drop()
        if self._observer is not None:
            self._observer.close()
        if dropped:
            write(
                logging.WARNING,
                "batcher %r: closed while %d items were pending",
                self._name,
                dropped,
            )
        if self._slots:
            if self._empty is None:
                self._empty = anyio.Event()
            with anyio.move_on_after(CLOSE_GRACE, shield=True):
                await self._empty.wait()

    async def __aenter__(self) -> Self:
        """Bind to the running event loop; batches then run in copies of this context.

        Raises:
            BatcherClosed: If the batcher is closed.
            RuntimeError: If it was entered already, or serves another event loop that is still alive.
        """
        self._bind()
        self._check_open()
        if self._entered:
            raise RuntimeError(
                f"batcher {self._name!r} was entered already: whoever leaves first would close it for "
                "the other, so enter it once, around all that use it"
            )
        self._entered = True
        self._context = contextvars.copy_context()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain and close; at once when the block is left by an exception or a cancellation."""
        await self.aclose() if exc_type is None else await self.aclose(0)

    def stats(self) -> BatcherStats:
        """Return exact counts of what the batcher holds and has done.

        In another thread than the loop's, callers that were cancelled a moment ago may still be counted.
        """
        runtime = self._runtime
        oldest: float | None = None
        if runtime is not None:
            if runtime.is_current():
                self._sweep()
            elif runtime.has_ended():
                self._lose_loop()
            started = [run.started for slot in list(self._slots) if _is_running(run := slot.run)]
            if started:
                oldest = max(0.0, runtime.now() - min(started))
        buffered = self._buffered()
        return BatcherStats(
            pending=buffered + self._flying + self._in_backoff,
            buffered=buffered,
            in_flight=self._flying,
            waiting=len(self._line),
            in_backoff=self._in_backoff,
            batches=sum(self._reasons.values()),
            items=self._items,
            failed=self._failed,
            reasons=dict(self._reasons),
            oldest_wait=max(0.0, *self._waits) if self._waits else None,
            oldest_in_flight=oldest,
            stuck_threads=sum(bool(run.threads) for run in list(self._stuck)),
        )

    def __repr__(self) -> str:
        return f"<Batcher {self._name!r} {self._state}>"


def _is_running(run: Run | None) -> TypeGuard[Run]:
    return run is not None and not run.ended


def _needs(name: str, value: object, other: object, other_name: str) -> None:
    if other is None:
        raise ValueError(f"{name} needs {other_name}, got {name}={value!r} without it")


def _limit(name: str, value: float | None, other: object, other_name: str) -> float | None:
    if value is None:
        return None
    _checks.number(name, value, above=0)
    _needs(name, value, other, other_name)
    return value


def _drain(name: str, value: float | None) -> float | None:
    return None if value is None else _checks.number(name, value, minimum=0)
