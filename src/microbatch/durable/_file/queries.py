"""What is asked of the file without changing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import payloads as blobs
from . import sql
from .keeping import ranges_of
from .ranges import DONE, cut, runs
from .records import ConsumerRow, DeadRow, Found, Range, State

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from .records import Queue, Step
    from .view import View


def find_items(queue: int, numbers: Iterable[int]) -> Generator[Step, Any, list[Found]]:
    """Return the items that there are and that can be seen, in any state, by id."""
    wanted = runs(numbers)
    found: list[tuple[int, Range]] = []
    for one in (yield from ranges_of(wanted)):
        if one.queue == queue and one.state != State.STAGED:
            for piece, inside in cut(one, wanted):
                if inside:
                    found += ((n, one) for n in range(piece.first, piece.first + piece.count))
    done = runs(number for number, one in found if one.state == DONE)
    others = runs(number for number, one in found if one.state != DONE)
    results = (yield from blobs.stored_results(done)) if done else {}
    errors = (yield from blobs.errors_of(others)) if others else {}
    return [
        Found(n, State(one.state), one.ticket, one.attempts, results.get(n), errors.get(n))
        for n, one in found
    ]


def dead_letters(
    view: View, queue: int, after: int, limit: int
) -> Generator[Step, Any, list[DeadRow]]:
    """Return the first so many dead letters with greater ids, by id."""
    ((before,),) = yield sql.DEAD_BEFORE, (queue, after), False
    rows = yield sql.DEAD, (queue, before or 0, limit + 1), False
    dead: list[tuple[int, Range]] = []
    for values in rows:
        one = Range(*values)
        numbers = range(max(one.first, after + 1), one.first + one.count)
        dead += ((number, one) for number in numbers[: limit - len(dead)])
    wanted = [number for number, _ in dead]
    errors = (yield from blobs.errors_of(runs(wanted))) if wanted else {}
    reader = blobs.PayloadReader()
    letters = []
    for number, one in dead:
        ((payload,), _) = yield from reader.take([(number, 1)], 0)
        died = one.ended_at or 0.0
        letters.append(
            DeadRow(number, payload, errors.get(number), one.attempts, one.enqueued, died)
        )
    return letters


def stats(view: View, queue: int) -> Generator[Step, Any, tuple[Queue, float | None, int]]:
    """Return a queue's row, since when the oldest item has been due, and the bytes of the pages in use."""
    row = yield from view.row(queue)
    ((ready,),) = yield sql.OLDEST_READY, {"queue": queue}, False
    ((claimed,),) = yield sql.OLDEST_CLAIMED, (queue,), False
    ((file_bytes,),) = yield sql.PAGES_IN_USE, (), False
    oldest = min((due for due in (ready, claimed) if due is not None), default=None)
    return row.queue(), oldest, int(file_bytes)


def ended_since(queue: int, number: int) -> Generator[Step, Any, list[tuple[int, int]]]:
    """Return first ids and counts of all that ended after the transaction of this number, perhaps of more."""
    rows: list[tuple[int, int]] = yield sql.ENDED_SINCE, (queue, number), False
    return rows


def next_due(queue: int) -> Generator[Step, Any, float | None]:
    """Return when the next delayed item is due."""
    ((due,),) = yield sql.NEXT_DUE, (queue,), False
    return due if due is None else float(due)


def consumers() -> Generator[Step, Any, list[ConsumerRow]]:
    """Return all consumers in the file, living or dead."""
    rows = yield sql.CONSUMERS, (), False
    return [ConsumerRow(*values) for values in rows]
