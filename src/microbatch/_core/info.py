"""What a handler can know of its batch: `current_batch`, `batch_info`."""

from __future__ import annotations

import contextlib
from contextvars import Context, ContextVar, Token
from typing import TYPE_CHECKING, Any

from microbatch._pure import checks

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from .run import Reason, Run

_run: ContextVar[Run | None] = ContextVar("microbatch_run", default=None)


_narrowing: ContextVar[tuple[Run, Sequence[int]] | None] = ContextVar(
    "microbatch_narrowing", default=None
)


running: Callable[[], Run | None] = _run.get


enter: Callable[[Run | None], Token[Run | None]] = _run.set


leave: Callable[[Token[Run | None]], None] = _run.reset


def indices_of(run: Run) -> Sequence[int]:
    """Return which of a batch's items are to be seen here."""
    narrowing = _narrowing.get()
    return narrowing[1] if narrowing is not None and narrowing[0] is run else range(run.size)


def batcher_name() -> str | None:
    """Return the name of the batcher whose handler is running here, for errors; None outside of one."""
    run = _run.get()
    while run is not None:
        name: str | None = getattr(run.owner, "name", None)  # a layer may stand in its place
        if name is not None:
            return name
        run = run.outer
    return None


class BatchInfo:
    """What a handler or a layer can know of the batch that it is working on.

    Attributes:
        size: How many items it has.
        reason: Why it left: ``"size"``, ``"weight"``, ``"wait"`` (the oldest item had waited
            ``max_wait``), ``"flush"``, ``"idle"`` (a slot was free, and waiting would have brought nobody)
            or ``"close"``.
        oldest_wait: Seconds that the oldest item of the whole batch had waited for it to leave. Items are
            not stamped one by one: without ``max_wait`` and telemetry, a turn of the event loop while a
            slot was free counts as 0, and where more than a batch waited it may be too much, by a
            handler call at most.
        partition: The partition that all its items share; None without ``partition=``.
        attempts: For each item the number of this attempt, from 1.
        contexts: For each item its caller's context, with ``capture_context=True``; else None.
        job: In durable mode the id of the job that all of the items belong to; None where they do not,
            and in memory.
        item_ids: In durable mode, for each item the id that its job's ``item_id`` gave it, or None; None
            where no item has one, and in memory.
        keys: Each item's idempotency key, or None: in durable mode its own, or its job's with a colon and the
            item's place in the job; over HTTP, also in memory, what stands for the request's key, with a
            colon and the item's place in the request. None where no item can have one.
    """

    __slots__ = (
        "_indices",
        "_run",
        "attempts",
        "contexts",
        "item_ids",
        "job",
        "keys",
        "oldest_wait",
        "partition",
        "reason",
        "size",
    )

    def __init__(self, run: Run, indices: Sequence[int] | None = None) -> None:
        entries = run.entries
        chosen = range(run.size) if indices is None else indices
        self._run = run
        self._indices = indices
        self.size: int = len(chosen)
        self.reason: Reason = run.reason
        self.oldest_wait: float = max(0.0, run.started - run.since)
        self.partition: Hashable = run.lane.partition if run.lane is not None else None
        attempts = run.attempts or [entry.attempts for entry in entries or ()]
        self.attempts: tuple[int, ...] = (
            tuple(attempts[i] for i in chosen) if attempts else (1,) * self.size
        )
        contexts: Any = run.contexts  # where one is kept, all have one
        self.contexts: tuple[Context, ...] | None = (
            None if contexts is None else tuple(contexts[i] for i in chosen)
        )
        self.job: str | None = run.job
        ids = run.item_ids
        self.item_ids: tuple[str | None, ...] | None = (
            None if ids is None else tuple(ids[i] for i in chosen)
        )
        self.keys: tuple[str | None, ...] | None = (
            None if run.keys is None else tuple(run.keys[i] for i in chosen)
        )

    def resolve(self, index: int, result: Any) -> None:
        """Give one item its outcome now, so that its caller goes on before the batch is done.

        What the handler later returns at this index is not used. May be called from the handler's
        worker thread.

        Args:
            index: The item's position in the batch.
            result: Its result, or an exception to raise in its caller alone.

        Raises:
            IndexError: If the batch has no such index.
            TypeError: If the index is no int, or the result can be awaited.
            RuntimeError: If the item has its outcome already, the end of the batch included.
        """
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"index must be an int, got {index!r}")
        if not 0 <= index < self.size:
            raise IndexError(f"index must be from 0 to {self.size - 1}, got {index}")
        checks.refuse_awaitable("result", result)
        position = index if self._indices is None else self._indices[index]
        self._run.owner.resolve(self._run, position, result, index)


def current_batch() -> BatchInfo | None:
    """Return what is known of the batch whose handler is running here, or None outside of one.

    Tasks and threads that the handler starts see it too. After the batch has ended: None.
    """
    run = _run.get()
    if run is None or run.ended:
        return None
    narrowing = _narrowing.get()
    if narrowing is not None and narrowing[0] is run:
        return BatchInfo(run, narrowing[1])
    return BatchInfo(run)


def batch_info() -> BatchInfo:
    """Return what is known of the batch whose handler is running here.

    Like ``current_batch()``, for handlers that always run in a batch: there is no None to rule out.

    Raises:
        RuntimeError: If no batch runs here, or it has ended.
    """
    batch = current_batch()
    if batch is None:
        raise RuntimeError(
            "no batch is running here: batch_info() is for what a Batcher calls; "
            "current_batch() is None outside of a batch"
        )
    return batch


@contextlib.contextmanager
def narrowed(indices: Sequence[int]) -> Iterator[None]:
    """Make ``current_batch()`` a view of some of the batch's items, for what is called inside.

    For layers that pass on a part of their items: within, index i means what ``indices[i]`` meant
    outside. Views nest. Outside a batch it does nothing.
    """
    run = _run.get()
    if run is None:
        yield
        return
    outer = _narrowing.get()
    if outer is not None and outer[0] is run:
        indices = [outer[1][i] for i in indices]
    token = _narrowing.set((run, indices))
    try:
        yield
    finally:
        _narrowing.reset(token)
