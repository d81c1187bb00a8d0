"""What becomes of claimed items: settled by their consumer, or taken back from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import payloads as blobs
from . import ranges, sql
from .codec import decode_error, encode_reason
from .ranges import DONE, ITEMS_MAX, SKIPPED, Ends, ended_well
from .records import Range

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Sequence

    from microbatch.durable._file.limits import Limits

    from .records import Settlement, Step
    from .view import Row, View

#: Runs of ids whose neighbours are looked at at once; the others are for upkeep.
MERGED_RUNS = 16


def settle(
    view: View, queue: int, limits: Limits, consumer: int, settlements: Sequence[Settlement]
) -> Generator[Step, Any, set[int]]:
    """Record what became of claimed items; return the ids of those that were the consumer's still."""
    row = yield from view.row(queue)
    settled: set[int] = set()
    for settlement in settlements:
        rows = yield sql.HELD, (queue, consumer, settlement.claim), False
        held = [Range(*values) for values in rows]
        if held:
            settled |= yield from _settle(view, row, limits, held, settlement)
    return settled


def _settle(
    view: View, row: Row, limits: Limits, held: Sequence[Range], settlement: Settlement
) -> Generator[Step, Any, set[int]]:
    expires: dict[int, float] = {}
    for one in held:
        if one.key is not None:
            found = yield sql.KEY, (row.id, one.key), False
            if found and found[0][0] == one.first:
                expires[one.first] = found[0][1]
    ends = Ends(view.now, row.end_number, view.now + limits.result_ttl, expires)
    old, new, settled = ranges.settle_ranges(held, settlement, ends)
    if not settled:
        return settled
    new = ranges.merge(new)
    ended = [one for one in new if one.ended is not None]
    if ended:
        row.end()
    well = ranges.spans(one for one in ended if one.state in (DONE, SKIPPED))
    yield from replace_merged(view, row, old, new)
    yield from _store(settlement, settled)
    yield from blobs.remove_errors(well)
    yield from _store_errors(settlement, settled)
    for first, last in ranges.spans(one for one in ended if ended_well(one)):
        yield from blobs.release(first, last)
    return settled


def replace_merged(
    view: View, row: Row, old: Sequence[Range], new: Sequence[Range]
) -> Generator[Step, Any, None]:
    """Put ranges in the place of others, merged with the neighbours of those that have ended."""
    known = {one.first: one for one in old}
    runs = ranges.spans(one for one in new if one.ended is not None and one.key is None)
    before: dict[int, Range] = {}
    for first, last in runs[:MERGED_RUNS]:
        for values in (yield sql.AROUND, (first, last + 1), False):
            one = Range(*values)
            if one.first not in known and one.ended is not None and one.queue == row.id:
                before[one.first] = one
    if before:
        old = [*old, *before.values()]
        new = ranges.merge([*new, *before.values()])
    yield from view.replace(row, old, new)


def _store(settlement: Settlement, settled: set[int]) -> Generator[Step, Any, None]:
    done, results = settlement.done, settlement.results
    if not settled.issuperset(done):
        left = [pair for pair in zip(done, results, strict=True) if pair[0] in settled]
        done, results = [number for number, _ in left], [result for _, result in left]
    yield from blobs.store_results(done, results)


def _store_errors(settlement: Settlement, settled: set[int]) -> Generator[Step, Any, None]:
    rows = [
        (verdict.id, verdict.error)
        for verdict in settlement.verdicts
        if verdict.error is not None and verdict.id in settled
    ]
    if rows:
        yield sql.ERROR, rows, True


# Taken back, given back


def take_back(
    view: View, queue: int, consumer: int, attempts_max: int, claims: Collection[int] | None
) -> Generator[Step, Any, tuple[list[int], bool]]:
    """Take back what a dead process had; return the new dead letters, and whether there is more."""
    row = yield from view.row(queue)
    old, more = yield from _held_by_claim(queue, consumer, claims)
    dead: list[int] = []
    new: list[Range] = []
    for held in ranges.group_by_claim(old).values():
        parts, died = ranges.take_back_ranges(held, attempts_max, view.now, row.end_number)
        new += parts
        for one in died:
            row.end()
            dead.append(one.first)
            yield from _bury(one)
    yield from view.replace(row, old, new)
    return dead, more


def _bury(one: Range) -> Generator[Step, Any, None]:
    times = "once" if one.deaths == 1 else f"{one.deaths} times"
    reason = f"its process died while it had this item alone, {times}; attempts: {one.attempts}"
    found = yield sql.ERROR_OF, (one.first,), False
    if found:
        last = decode_error(found[0][0], one.first, one.attempts)
        reason += f"; the error before: {last.kind}: {last.message}"
    yield sql.ERROR, (one.first, encode_reason("ProcessDied", reason)), False


def give_back(
    view: View, queue: int, consumer: int, claims: Collection[int] | None
) -> Generator[Step, Any, bool]:
    """Make claimed items ready again as they were, uncounted; return whether there is more."""
    row = yield from view.row(queue)
    old, more = yield from _held_by_claim(queue, consumer, claims)
    yield from view.replace(row, old, [ranges.given_back(one) for one in old])
    return more


def _held_by_claim(
    queue: int, consumer: int, claims: Collection[int] | None
) -> Generator[Step, Any, tuple[list[Range], bool]]:
    """Return whole claims of a consumer, up to so many items, and whether there are more."""
    rows: Iterable[tuple[Any, ...]]
    if claims is None:
        rows = yield sql.HELD_ALL, (queue, consumer), False
    else:
        rows = yield sql.HELD_OF, (json.dumps(sorted(claims)), queue, consumer), False
    taken: list[Range] = []
    total = 0
    for values in rows:
        one = Range(*values)
        if total >= ITEMS_MAX and one.claim != taken[-1].claim:
            return taken, True
        taken.append(one)
        total += one.count
    return taken, False


def held(queue: int, consumer: int) -> Generator[Step, Any, list[Range]]:
    """Return what the file says that a consumer has."""
    rows = yield sql.HELD_ALL, (queue, consumer), False
    return [Range(*values) for values in rows]
