"""Items that are written in many transactions and become visible in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import payloads as blobs
from . import sql
from .ranges import ITEMS_MAX, READY, SCHEDULED, STAGED, change, merge, spans
from .records import Range
from .storing import alike, file_is_full, refusal

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from microbatch.durable._file.limits import Limits
    from microbatch.durable.errors import QueueFull

    from .records import NewItem, Step
    from .view import View


def stage(  # noqa: PLR0917
    view: View,
    queue: int,
    limits: Limits,
    items: Sequence[NewItem],
    consumer: int,
    claim: int,
) -> Generator[Step, Any, QueueFull | None]:
    """Store items that nobody sees yet, all of them or none; return why none."""
    row = yield from view.row(queue)
    if (yield from file_is_full(view, limits)):
        return (yield from refusal(queue, "max_file_bytes", limits.max_file_bytes))
    if row.depth + len(items) > limits.max_depth:
        return (yield from refusal(queue, "max_depth", limits.max_depth))
    first = yield from view.take_ids(len(items))
    traces = [item.trace for item in items]
    yield from blobs.store(queue, first, [item.payload for item in items], traces)
    held = [
        one._replace(consumer=consumer, claim=claim)
        for one in alike(view, queue, first, items, range(len(items)), STAGED)
    ]
    yield from view.replace(row, (), held)
    return None


def show_staged(
    view: View, queue: int, consumer: int, claim: int
) -> Generator[Step, Any, list[tuple[int, int]]]:
    """Make staged items visible; return their first ids and counts, in order."""
    row = yield from view.row(queue)
    rows = yield sql.STAGED, (queue, consumer, claim), False
    staged = [Range(*values) for values in rows]
    now = view.now
    shown = [
        one._replace(
            state=SCHEDULED if one.due > 0 else READY,
            due=now + one.due,
            since=now,
            enqueued=now,
            consumer=None,
            claim=None,
        )
        for one in staged
    ]
    yield from view.replace(row, staged, merge(shown))
    return [(first, last - first + 1) for first, last in spans(staged)]


def drop_staged(
    view: View, queue: int, consumer: int, claim: int | None, step: int
) -> Generator[Step, Any, bool]:
    """Remove some of what a consumer has staged; return whether there is more."""
    row = yield from view.row(queue)
    if claim is None:
        rows = yield sql.STAGED_ALL, (queue, consumer, step), False
    else:
        rows = yield sql.STAGED, (queue, consumer, claim), False
    dropped: list[Range] = []
    total = 0
    for values in rows[:step]:
        dropped.append(Range(*values))
        total += dropped[-1].count
        if total >= ITEMS_MAX:
            break
    yield from view.write(row, change(dropped, ()))
    for first, last in spans(dropped):
        yield from blobs.release(first, last)
    return len(dropped) < len(rows) or len(rows) == step
