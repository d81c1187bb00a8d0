"""Keep early outcomes back until a batch that is all or nothing is decided."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from microbatch import batch as batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class _Keeper:
    """Stands where the batcher does, and keeps the outcomes that it is given."""

    def __init__(self) -> None:
        self.early: dict[int, Any] = {}

    def _resolve(self, run: batches.Run, position: int, result: Any, index: int) -> None:
        if run.ended or position in self.early:
            raise RuntimeError(f"item {index} has its outcome already")
        self.early[position] = result


@contextlib.contextmanager
def withheld() -> Iterator[dict[int, Any]]:
    """Within, ``current_batch().resolve`` only fills the dict that this yields.

    Outside a batch it does nothing.

    It runs a batch within the batch, of the same items: what the handler knows of it is the same,
    and so is whom it would wait for.
    """
    outer = batches.running()
    if outer is None:
        yield {}
        return
    narrowing = batches._narrowing.get()  # noqa: SLF001 - no name for it yet
    indices: Sequence[int] = range(outer.size)
    if narrowing is not None and narrowing[0] is outer:
        indices = narrowing[1]
    keeper = _Keeper()
    entries = None if outer.entries is None else [outer.entries[i] for i in indices]
    inner = batches.Run([None] * len(indices), [], outer.reason, entries=entries, lane=outer.lane)
    inner.outer = outer
    inner.owner = keeper
    token = batches.enter(inner)
    try:
        yield keeper.early
    finally:
        inner.ended = True
        batches._run.reset(token)  # noqa: SLF001
