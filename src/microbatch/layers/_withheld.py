"""Keep early outcomes: until an all-or-nothing batch is decided, or where there is no batcher."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from microbatch._core import info
from microbatch._core.run import Reason, Run

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Keeper:
    """Stands where the batcher does, and keeps the outcomes that it is given."""

    def __init__(self) -> None:
        self.early: dict[int, Any] = {}
        self._lock = threading.Lock()

    def resolve(self, run: Run, position: int, result: Any, index: int) -> None:
        with self._lock:  # threads of the handler may resolve too
            if run.ended or position in self.early:
                raise RuntimeError(f"item {index} of the batch has its outcome already")
            self.early[position] = result


@contextlib.contextmanager
def withheld() -> Iterator[dict[int, Any]]:
    """Within, ``current_batch().resolve`` only fills the dict that this yields.

    It runs a batch within the batch, of the same items: what the handler knows of it is the same,
    and so is whom it would wait for. Outside a batch it does nothing.
    """
    outer = info.running()
    if outer is None:
        yield {}
        return
    indices = info.indices_of(outer)
    run = Run([None] * len(indices), [], outer.reason)
    known = info.BatchInfo(outer, indices)
    run.attempts, run.contexts = known.attempts, known.contexts
    run.keys, run.job, run.item_ids = known.keys, known.job, known.item_ids
    run.lane = outer.lane
    run.started, run.since = outer.started, outer.since
    run.outer = outer
    with _running(run) as early:
        yield early


@contextlib.contextmanager
def without_batcher(items: list[Any], reason: Reason) -> Iterator[dict[int, Any]]:
    """Within, the items are a batch of which ``current_batch()`` knows; early outcomes are kept."""
    run = Run(items, [], reason)
    run.outer = info.running()
    with _running(run) as early:
        yield early


@contextlib.contextmanager
def _running(run: Run) -> Iterator[dict[int, Any]]:
    run.owner = keeper = _Keeper()
    token = info.enter(run)
    try:
        yield keeper.early
    finally:
        run.ended = True
        info.leave(token)
