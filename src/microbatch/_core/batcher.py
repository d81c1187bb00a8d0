"""The Batcher: submit -> buffer -> slot -> handler -> callers."""

from __future__ import annotations

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
)
from operator import attrgetter
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Self,
    TypeVar,
    Unpack,
    overload,
)

import anyio.lowlevel

from microbatch._loops.on_asyncio import running_loop
from microbatch._loops.on_trio import OtherRunError
from microbatch._pure.adaptive import AdaptiveSize
from microbatch._pure.retry import Retry
from microbatch._telemetry.observer import observer_of
from microbatch._telemetry.settings import Telemetry

from . import info
from .engine import Engine
from .from_thread import submit_from_thread
from .keywords import Settings
from .rules import Rules, drain_seconds
from .stats import BatcherStats, stats_of

if TYPE_CHECKING:
    from types import TracebackType

    from microbatch._pure.report import BatchReport

    from .pending import Pending

T = TypeVar("T")


R = TypeVar("R")


_UNSET: Any = object()


#: The usual priority. Compared by identity, since False and 0.0 equal it; there is one 0 in CPython, and
#: where there are more, `Entrance.enter` finds out.
_NONE = 0


class Batcher(Generic[T, R]):
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

    __slots__ = ("__weakref__", "_door", "_engine", "_entrance")

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
        rules = Rules(
            handler,
            max_batch_size=max_batch_size,
            max_wait=max_wait,
            max_concurrency=max_concurrency,
            max_pending=max_pending,
            on_full=on_full,
            weigh=weigh,
            max_batch_weight=max_batch_weight,
            max_pending_weight=max_pending_weight,
            partition=partition,
            partition_concurrency=partition_concurrency,
            coalesce=coalesce,
            retry=retry,
            handler_timeout=handler_timeout,
            drain_timeout=drain_timeout,
            cancel_abandoned=cancel_abandoned,
            capture_context=capture_context,
            name=name,
        )
        self._engine = Engine(rules, observer=observer_of(rules.name, telemetry))
        self._door = self._engine.door
        self._entrance = self._engine.entrance

    @property
    def name(self) -> str:
        """Return the batcher's name."""
        return self._engine.rules.name

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
        door = self._door
        if door.running and info.running() is not None:
            self._engine.guard("submit")
        fifo = door.fifo
        if fifo is None or priority is not _NONE or running_loop() is not door.native:
            waiter = self._entrance.enter(item, priority)
        else:  # the usual way, here as in submit_nowait: a call less is 0.4 % of all that an item costs
            try:
                waiter = door.create_waiter()
            except OtherRunError:  # trio's, which no loop tells from the one that is served
                waiter = self._entrance.enter(item, priority)
            else:
                fifo.items.append(item)
                fifo.waiters.append(waiter)
                if len(fifo.items) >= fifo.limit:
                    waiter = self._entrance.fill(fifo, waiter)
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
        door = self._door
        fifo = door.fifo
        if fifo is None or priority is not _NONE or running_loop() is not door.native:
            return self._entrance.enter(item, priority, wait=False)  # type: ignore[no-any-return]
        try:
            waiter = door.create_waiter()
        except OtherRunError:
            return self._entrance.enter(item, priority, wait=False)  # type: ignore[no-any-return]
        fifo.items.append(item)
        fifo.waiters.append(waiter)
        if len(fifo.items) >= fifo.limit:
            waiter = self._entrance.fill(fifo, waiter, wait=False)
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
        if info.running() is not None:
            self._engine.guard("submit_many")
        group = self._entrance.enter_many(list(items), priority)
        await (group.waiter if group.left else anyio.lowlevel.checkpoint())
        if group.errors:
            group.report(self._engine.rules.name).values()
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
        if info.running() is not None:
            self._engine.guard("submit_many_report")
        group = self._entrance.enter_many(list(items), priority)
        await (group.waiter if group.left else anyio.lowlevel.checkpoint())
        return group.report(self._engine.rules.name)

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
        return submit_from_thread(self._engine, item, timeout)  # type: ignore[no-any-return]

    async def flush(self) -> None:
        """Send what is buffered now and return when it is resolved, retries included.

        Later items may ride along; batches in flight are not awaited. Does nothing when nothing is
        buffered. What fails, fails its callers, not ``flush``.

        Raises:
            WouldDeadlock: Inside a running batch of this batcher.
            RuntimeError: If the batcher serves another event loop that is still alive.

        Cancellation stops the waiting; what was made due stays due.
        """
        self._engine.guard("flush")
        await self._engine.flush()

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
        engine = self._engine
        default = engine.rules.drain_timeout
        seconds = default if drain_timeout is _UNSET else drain_seconds(drain_timeout)
        engine.guard("aclose")
        await engine.aclose(seconds)

    async def __aenter__(self) -> Self:
        """Bind to the running event loop; batches then run in copies of this context.

        Raises:
            BatcherClosed: If the batcher is closed.
            RuntimeError: If it was entered already, or serves another event loop that is still alive.
        """
        self._engine.serving.enter_block()
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
        return stats_of(self._engine)

    def __repr__(self) -> str:
        engine = self._engine
        return f"<Batcher {engine.rules.name!r} {engine.life.phase.value}>"


#: What a batcher is made of: for this package alone, where a stream asks for its settings.
engine_of: Callable[[Batcher[Any, Any]], Engine] = attrgetter("_engine")
