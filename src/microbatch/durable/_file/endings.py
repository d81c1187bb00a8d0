"""What becomes of claimed items: settled by their consumer, or taken back from it."""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from . import payloads as blobs
from . import ranges, sql
from .codec import decode_error, encode_reason
from .job_counts import stopped_among
from .ranges import DONE, ITEMS_MAX, SKIPPED, Ends, ended_well
from .records import ENDED, Range, State

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Sequence

    from microbatch.durable._file.limits import Limits

    from .records import Settlement, Step, Verdict
    from .view import Row, View

#: Runs of ids whose neighbours are looked at at once; the others are for upkeep.
MERGED_RUNS = 16

#: The code of an item whose process died too often with it.
PROCESS_DIED = "process_died"


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
    of_jobs = settlement.verdicts and any(one.job is not None for one in held)
    if of_jobs:
        settlement = yield from _without_retries(view, row, held, settlement)
    old, new, settled = ranges.settle_ranges(held, settlement, ends)
    if not settled:
        return settled
    if of_jobs:
        _count_codes(view, row, held, settlement, settled)
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


def _jobs_of(held: Sequence[Range], verdicts: Iterable[Verdict]) -> Iterator[tuple[int, Verdict]]:
    """Yield those verdicts that are on items of jobs, with the job's number."""
    firsts = [one.first for one in held]
    for verdict in verdicts:
        place = bisect_right(firsts, verdict.id) - 1
        if place >= 0 and verdict.id < firsts[place] + held[place].count:
            job = held[place].job
            if job is not None:
                yield job, verdict


def _without_retries(
    view: View, row: Row, held: Sequence[Range], settlement: Settlement
) -> Generator[Step, Any, Settlement]:
    """Let what would go again fail, in jobs that are stopped: nothing more of those begins."""
    again = [one for one in settlement.verdicts if one.state == State.SCHEDULED and one.counted]
    of_jobs = list(_jobs_of(held, again))
    if not of_jobs:
        return settlement
    stopped = yield from stopped_among({job for job, _ in of_jobs})
    ends = {verdict.id for job, verdict in of_jobs if job in stopped}
    if not ends:
        return settlement
    view.ended_unheard.add(row.id)  # whoever settles this does not know
    return settlement._replace(
        verdicts=[
            one._replace(state=State.DEAD) if one.id in ends else one for one in settlement.verdicts
        ]
    )


def _count_codes(
    view: View, row: Row, held: Sequence[Range], settlement: Settlement, settled: set[int]
) -> None:
    ended = (one for one in settlement.verdicts if one.state in ENDED and one.id in settled)
    for job, verdict in _jobs_of(held, ended):
        view.count_code(row.id, job, verdict.code)


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
            if one.job is not None:
                view.count_code(queue, one.job, PROCESS_DIED)
    yield from view.replace(row, old, new)
    return dead, more


def _bury(one: Range) -> Generator[Step, Any, None]:
    times = "once" if one.deaths == 1 else f"{one.deaths} times"
    reason = f"its process died while it had this item alone, {times}; attempts: {one.attempts}"
    found = yield sql.ERROR_OF, (one.first,), False
    if found:
        last = decode_error(found[0][0], one.first, one.attempts)
        reason += f"; the error before: {last.kind}: {last.message}"
    yield (
        sql.ERROR,
        (one.first, encode_reason("ProcessDied", reason, PROCESS_DIED, retryable=True)),
        False,
    )


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
