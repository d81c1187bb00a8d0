"""What is read of jobs: a row, a list of rows, a page of outcomes, what is to be copied."""

from __future__ import annotations

import json
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from . import job_sql
from . import payloads as blobs
from .codec import decode_error
from .job_lanes import client_ids
from .job_records import JobItem, JobRow, Leftovers, Page, Recipe
from .payloads import PayloadReader
from .ranges import CANCELLED, DEAD, DONE, part, spans
from .records import Range, State

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Sequence

    from .records import Step
    from .view import View

#: Bytes of results after which a page ends, and items that are read at once on the way there.
PAGE_BYTES = 8 << 20
PAGE_STEP = 250
#: Items that are read first: they tell how large the others may be.
PAGE_FIRST = 4

#: Bytes of items that are copied at once: they are written in one transaction.
COPIED_BYTES = 1 << 20

#: Ranges of a state that are read for a page at first; more if they are short.
RANGES_READ = 3

_place_of = attrgetter("position")
_COUNT = itemgetter(1)


def status(queue: int, uid: str, owner: str | None) -> Generator[Step, Any, JobRow | None]:
    """Return a job's row, if it can be seen, and by this owner."""
    rows = yield job_sql.STATUS, {"uid": uid, "queue": queue, "owner": owner}, False
    return JobRow(*rows[0]) if rows else None


def rows_of(
    queue: int, owner: str | None, lives: Collection[int], before: int, limit: int
) -> Generator[Step, Any, list[JobRow]]:
    """Return the first so many rows of jobs, the newest first."""
    found: list[JobRow] = []
    statement = job_sql.LIST if owner is None else job_sql.LIST_OWNED
    for life in lives:
        values = {"queue": queue, "life": life, "before": before, "limit": limit}
        if owner is not None:
            values["owner"] = owner  # type: ignore[assignment]
        found += [JobRow(*values_of) for values_of in (yield statement, values, False)]
    found.sort(key=attrgetter("number"), reverse=True)
    return found[:limit]


def page(
    job: int, named: bool, states: Collection[int], after: int, limit: int
) -> Generator[Step, Any, Page]:
    """Return the first so many items behind a place that ended in one of some states, by their places."""
    found, more = yield from _ranges_behind(job, states, after, limit)
    items: list[JobItem] = []
    size, step = 0, PAGE_FIRST
    while found and size < PAGE_BYTES:
        some, found = _parted(found, min(step, PAGE_STEP))
        read = yield from _read_items(job, named, some)
        items += read
        size += sum(len(item.result or b"") + len(item.error or b"") for item in read)
        step = max(1, (PAGE_BYTES - size) * len(items) // max(size, 1))
    return Page(items, items[-1].position if items and (more or found) else None)


def _ranges_behind(
    job: int, states: Collection[int], after: int, limit: int
) -> Generator[Step, Any, tuple[list[Range], bool]]:
    """Return ranges of so many items behind a place, and whether there are more behind them."""
    found: list[Range] = []
    for state in states:
        found += yield from _ranges_in(job, state, after, limit)
    found.sort(key=_place_of)
    chosen: list[Range] = []
    room = limit
    for one in found:
        skipped = max(0, after + 1 - (one.position or 0))
        rest = part(one, one.first + skipped, one.count - skipped)
        if not room:
            return chosen, True
        taken = part(rest, rest.first, min(room, rest.count))
        room -= taken.count
        chosen.append(taken)
        if taken.count < rest.count:
            return chosen, True
    return chosen, False


def _ranges_in(job: int, state: int, after: int, limit: int) -> Generator[Step, Any, list[Range]]:
    """Return ranges in a state, of more than so many items behind a place if there are so many."""
    wanted = RANGES_READ
    while True:
        values = {"job": job, "state": state, "position": after + 1, "limit": wanted}
        rows = yield job_sql.PAGE, values, False
        # The first one may end before that place.
        found = [one for one in (Range(*row) for row in rows) if _end_of(one) > after]
        if len(rows) < wanted or sum(map(_COUNT, found)) - _before(found, after) > limit:
            return found
        wanted *= 8


def _before(found: Sequence[Range], after: int) -> int:
    """Return how many of the first range's items are not behind a place."""
    return max(0, after + 1 - (found[0].position or 0)) if found else 0


def _end_of(one: Range) -> int:
    return (one.position or 0) + one.count - 1


def _parted(found: Sequence[Range], count: int) -> tuple[list[Range], list[Range]]:
    """Return ranges of the first so many items, and of the others."""
    first: list[Range] = []
    for index, one in enumerate(found):
        if one.count > count:
            rest = part(one, one.first + count, one.count - count)
            if count:
                first.append(part(one, one.first, count))
            return first, [rest, *found[index + 1 :]]
        first.append(one)
        count -= one.count
    return first, []


def _read_items(
    job: int, named: bool, found: Sequence[Range]
) -> Generator[Step, Any, list[JobItem]]:
    """Return what the disk has of some items."""
    done = spans(one for one in found if one.state == DONE)
    others = spans(one for one in found if one.state != DONE)
    results = (yield from blobs.stored_results(done)) if done else {}
    errors = (yield from blobs.errors_of(others)) if others else {}
    ids = (yield from client_ids(job, found)) if named else {}
    items: list[JobItem] = []
    for one in found:
        state, start = State(one.state), one.position or 0
        for place in range(one.count):
            number, position = one.first + place, start + place
            items.append(
                JobItem(
                    position,
                    number,
                    state,
                    one.attempts,
                    ids.get(position),
                    results.get(number),
                    errors.get(number),
                )
            )
    return items


# Copies


def recipe(queue: int, uid: str, owner: str | None) -> Generator[Step, Any, Recipe | None]:
    """Return what a job is made of, if it can be seen, and by this owner."""
    values = {"uid": uid, "queue": queue, "owner": owner}
    rows = yield job_sql.RECIPE, values, False
    return Recipe(*rows[0]) if rows else None


def leftovers(  # noqa: PLR0917
    view: View, job: int, named: bool, after: int, limit: int, retryable_only: bool
) -> Generator[Step, Any, Leftovers]:
    """Return some of the items that did not end well and may go again, behind a place."""
    states = (DEAD, CANCELLED, int(State.EXPIRED))
    found, more = yield from _ranges_behind(job, states, after, limit)
    last = _end_of(found[-1]) if found else after
    dead = [one for one in found if one.state == DEAD]
    errors = (yield from blobs.errors_of(spans(dead))) if dead and retryable_only else {}
    chosen: list[Range] = []
    for one in found:
        if one.state != DEAD:
            chosen.append(one)
        elif one.attempts:  # else it never fitted its type
            chosen += [
                part(one, number, 1)
                for number in range(one.first, one.first + one.count)
                if not retryable_only or decode_error(errors.get(number), number, 0).retryable
            ]
    reader = PayloadReader()
    taken: list[Range] = []
    payloads: list[bytes] = []
    room = COPIED_BYTES
    for one in chosen:
        content = yield from reader.take([(one.first, one.count)], room)
        payloads += content.payloads
        room -= sum(map(len, content.payloads))
        taken.append(part(one, one.first, len(content.payloads)))
        if room <= 0 or len(content.payloads) < one.count:
            last, more = _end_of(taken[-1]), True
            break
    ids: list[str | None] | None = None
    if named:
        known = yield from client_ids(job, taken)
        ids = [known[(one.position or 0) + n] for one in taken for n in range(one.count)]
    return Leftovers(payloads, ids, last if more else None)


def ids_from(
    job: int, position: int, limit: int
) -> Generator[Step, Any, list[tuple[int, list[str | None]]]]:
    """Return runs of the client's ids, each with the place where it begins."""
    rows = yield job_sql.IDS_FROM, (job, position, limit), False
    return [(first, json.loads(ids)) for first, ids in rows]
