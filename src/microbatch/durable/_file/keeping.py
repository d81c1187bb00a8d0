"""What is done to items by hand and by age: cancelled, requeued, removed; and keeping the file small."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

from . import payloads as blobs
from . import ranges, sql
from .ranges import CANCELLED, DEAD, DONE, ITEMS_MAX, READY, SCHEDULED, SKIPPED
from .records import ENDED, Range, State
from .view import CLOCK_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from microbatch.durable._file.limits import Limits

    from .records import Step
    from .view import Row, View

#: Ranges, and at most some 10,000 items in them, that one step of upkeep looks at: some 10 ms, for which
#: writers wait at most.
PRUNE_STEP = 500

#: Stands for any ticket's number: a bare id means the item that has it now.
ANY: Any = object()

_KEPT = (DONE, SKIPPED, CANCELLED, int(State.EXPIRED))


def ranges_of(wanted: Sequence[tuple[int, int]]) -> Generator[Step, Any, list[Range]]:
    """Return the ranges with some ids, each once, ascending."""
    found: dict[int, Range] = {}
    for start in range(0, len(wanted), ITEMS_MAX):
        rows = yield sql.RANGES_OF, (json.dumps(wanted[start : start + ITEMS_MAX]),), False
        found.update((values[0], Range(*values)) for values in rows)
    return [found[first] for first in sorted(found)]


def cancel(
    view: View, queue: int, limits: Limits, number: int, ticket: Any
) -> Generator[Step, Any, bool | None]:
    """Cancel an item that nobody has; return whether that was so, None if there is no such item."""
    row = yield from view.row(queue)
    found = yield from find_one(queue, number, ticket)
    if found is None:
        return None
    if found.state not in (READY, SCHEDULED):
        return False
    until = view.now + limits.result_ttl if found.job is None else None
    ended = row.end_number

    def cancelled(one: Range) -> Range:
        return ranges.ended(one, CANCELLED, view.now, until, ended)._replace(key=None)

    old, new, _ = ranges.alter([found], [(number, number)], cancelled)
    row.end()
    yield from view.replace(row, old, new)
    if found.key is not None:
        yield sql.REMOVE_KEY, (queue, found.key, number), False
    return True


def find_one(queue: int, number: int, ticket: Any) -> Generator[Step, Any, Range | None]:
    """Return the range with an item that can be seen, if a ticket's number is its own."""
    for one in (yield from ranges_of([(number, number)])):
        if one.first <= number < one.first + one.count and _is_visible(one, queue, ticket):
            return one
    return None


def _is_visible(one: Range, queue: int, ticket: Any) -> bool:
    return (
        one.queue == queue and one.state != State.STAGED and (ticket is ANY or ticket == one.ticket)
    )


def requeue(view: View, queue: int, numbers: Iterable[int]) -> Generator[Step, Any, int]:
    """Make dead letters ready again, with all their attempts; return how many were dead letters."""
    row = yield from view.row(queue)
    wanted = ranges.runs(numbers)
    found = ranges.only((yield from ranges_of(wanted)), queue, (DEAD,))
    dead = [one for one in found if one.job is None]
    old, new, parts = ranges.alter(dead, wanted, lambda one: ranges.ready(one, view.now))
    yield from view.replace(row, old, ranges.merge(new))
    return sum(one.count for one in parts)


def purge(view: View, queue: int, numbers: Iterable[int]) -> Generator[Step, Any, int]:
    """Remove items that have ended; return how many were removed."""
    row = yield from view.row(queue)
    wanted = ranges.runs(numbers)
    found = ranges.only((yield from ranges_of(wanted)), queue, ENDED)
    return (yield from _remove(view, row, [one for one in found if one.job is None], wanted))


def pause(view: View, queue: int, paused: bool) -> Generator[Step, Any, None]:
    """Stop or resume claims, for every process."""
    row = yield from view.row(queue)
    if row.paused != paused:
        row.paused = paused
        row.dirty = True


# Retention


def prune(view: View, queue: int, limits: Limits) -> Generator[Step, Any, bool]:
    """Remove some of what is kept too long or beyond its count; return whether there may be more."""
    row = yield from view.row(queue)
    more = False
    for rows in (yield from _expired(view, row)):
        more |= yield from _remove_some(view, row, rows, ITEMS_MAX)
    if limits.keep_done is not None:
        done = row.counts[State.DONE] + row.counts[State.SKIPPED] - row.watched_done
        beyond = done - limits.keep_done
        if beyond > 0:
            found = yield from _oldest_done(view, row, min(beyond, PRUNE_STEP))
            more |= yield from _remove_some(view, row, found, beyond)
    if limits.keep_dead is not None:
        beyond = row.counts[State.DEAD] - row.watched_dead - limits.keep_dead
        if beyond > 0:
            rows = yield sql.DEAD_ALONE, (queue, min(beyond, PRUNE_STEP)), False
            more |= yield from _remove_some(view, row, [Range(*values) for values in rows], beyond)
    return more


def _expired(view: View, row: Row) -> Generator[Step, Any, list[list[Range]]]:
    """Return what is past its time: unkeyed items go in the order in which they ended."""
    found: list[list[Range]] = []
    if not any(row.counts[state] for state in _KEPT):
        return found
    for state in _KEPT:
        if row.counts[state]:
            some: list[Range] = []
            for limit in (1, PRUNE_STEP):  # where the first one stays, all stay: the usual case
                found_here = yield from _ended(view, row, state, limit)
                some = list(_past(found_here, view.now))
                if not some:
                    break
            found.append(some)
    rows = yield sql.KEYED_EXPIRED, (row.id, view.now, PRUNE_STEP), False
    found.append([Range(*values) for values in rows])
    return found


def _ended(view: View, row: Row, state: int, limit: int) -> Generator[Step, Any, list[Range]]:
    """Return the first so many of those without a key that ended in a state, in that order."""
    now = view.now
    found = [Range(*values) for values in (yield sql.ENDED, (row.id, state, 0, -1, limit), False)]
    if found and (found[0].ended_at or 0.0) > now + CLOCK_TOLERANCE:
        # It ended in a wrong future, and all that ended since would stay behind it.
        yield sql.MEND_ENDED, (now, now, now, row.id, state, now + CLOCK_TOLERANCE), False
        found = [
            Range(*values) for values in (yield sql.ENDED, (row.id, state, 0, -1, limit), False)
        ]
    return found


def _past(found: Iterable[Range], now: float) -> Iterator[Range]:
    for one in found:
        if one.keep_until is None or one.keep_until > now:
            return
        yield one


def _oldest_done(view: View, row: Row, limit: int) -> Generator[Step, Any, list[Range]]:
    """Return done and skipped items in the order in which they ended, but for those whose key lives."""
    found: list[Range] = []
    for state in (DONE, SKIPPED):
        for keyed in (0, 1):
            if row.counts[state]:
                rows = yield (
                    sql.ENDED,
                    (row.id, state, keyed, -1, PRUNE_STEP if keyed else limit),
                    False,
                )
                found += [Range(*values) for values in rows]
    free: list[Range] = []
    for one in sorted(found, key=lambda one: (one.ended, one.first)):
        if one.key is not None:
            owner = yield sql.KEY, (row.id, one.key), False
            if owner and owner[0][0] == one.first and owner[0][1] > view.now:
                continue
        free.append(one)
    return free


def _remove_some(
    view: View, row: Row, found: Sequence[Range], items: int
) -> Generator[Step, Any, bool]:
    """Remove the first so many items, as far as one step goes; return whether there may be more."""
    found = found[:PRUNE_STEP]
    total = sum(one.count for one in found)
    wanted = ranges.oldest(found, min(items, ITEMS_MAX))
    removed = yield from _remove(view, row, found, wanted)
    return bool(removed) and (removed < total or len(found) == PRUNE_STEP) and removed < items


def _remove(
    view: View, row: Row, found: Sequence[Range], wanted: Sequence[tuple[int, int]]
) -> Generator[Step, Any, int]:
    """Remove items with all that belongs to them; return how many there were."""
    old, new, parts = ranges.alter(found, wanted, lambda _: None)
    if not parts:
        return 0
    row.remove()
    yield from view.replace(row, old, new)
    keys = [(row.id, one.key, one.first) for one in parts if one.key is not None]
    if keys:
        yield sql.REMOVE_KEY, keys, True
    removed = ranges.spans(parts)
    yield from blobs.remove_errors(removed)
    for first, last in removed:
        yield from blobs.remove_results(first, last)
        yield from blobs.release(first, last)
        yield from blobs.thin(first)
        yield from blobs.thin(last)
    return sum(one.count for one in parts)


# Upkeep


def tidy(view: View, queue: int) -> Generator[Step, Any, bool]:
    """Mend some of what ended since the last time; return whether there is more.

    Ranges are merged with their neighbours; what is still needed of a blob, if little, is written anew.
    """
    row = yield from view.row(queue)
    after = view.ids.tidied.get(queue, 0) if view.ids is not None else 0
    if row.ended <= after:
        return False
    found: list[Range] = []
    bound = row.ended
    for state, kind in product(_KEPT, (0, 2)):  # without a key, and of jobs
        if row.counts[state]:
            rows = yield sql.ENDED, (queue, state, kind, after, PRUNE_STEP), False
            some = [Range(*values) for values in rows]
            if len(some) == PRUNE_STEP:
                # Others may have ended with the last of these: they are looked at again.
                last = some[-1].ended or 0
                bound = min(bound, max(last - 1, after + 1))
            found += some
    looked = [one for one in found if (one.ended or 0) <= bound]
    for first, last in ranges.spans(looked):
        rows = yield sql.AROUND, (first, last + 1), False
        around = [Range(*values) for values in rows]
        ended = [one for one in around if one.queue == queue and one.ended is not None]
        yield from view.replace(row, ended, ranges.merge(ended))
        yield from blobs.thin(first)
        yield from blobs.thin(last)
    if view.ids is not None:
        view.ids.tidied[queue] = bound
    return bool(bound < row.ended)
