"""What is asked of the file by those who only look: its queues, items in any state, who holds what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from . import look_sql
from . import payloads as blobs
from .codec import decode_error, decode_roughly
from .ranges import part, spans
from .records import Range, State

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Sequence

    from microbatch.durable.errors import ItemFailed

    from .records import Step

#: The states that items are listed by, as they are called.
STATE_NAMES: dict[str, State] = {
    state.name.lower(): state for state in State if state != State.STAGED
}

#: Items, outcomes, or runs of items, that are read at once while one goes through all.
READ_AT_ONCE = 1_000

#: Behind every id.
ID_END = 2**63 - 1

#: Bytes of payloads after which a page of items ends: so much of them is in memory at once.
PAGE_ROOM = 8 << 20


class StoredItem(NamedTuple):
    """An item as it stands in the file, in built-in values: whatever its queue's own type is.

    Attributes:
        id: Its id.
        state: One of `STATE_NAMES`.
        key: The idempotency key that it was enqueued with.
        priority: Higher goes first.
        item: The item; its bytes where they are no MessagePack; None where it is no longer kept.
        kept: Whether its payload is still there.
        attempts: Handler calls so far.
        enqueued_at: When it was enqueued, in seconds since the epoch; of merged items, the first one.
        due_at: When it may be handled; None once it has ended.
        ended_at: When it ended; None before.
        error: Its last error; None without one.
        of_job: Whether it is a job's.
        job: The id of that job; None without one, while that is being removed, or in a list.
        result: Its result; None without one, or in a list.
    """

    id: int
    state: str
    key: str | None
    priority: int
    item: Any
    kept: bool
    attempts: int
    enqueued_at: float
    due_at: float | None
    ended_at: float | None
    error: ItemFailed | None
    of_job: bool
    job: str | None = None
    result: Any = None


def queue_names() -> Generator[Step, Any, list[tuple[int, str]]]:
    """Return the numbers and names of all queues, by name."""
    rows = yield look_sql.NAMES, (), False
    return [(int(number), str(name)) for number, name in rows]


def ranges_listed(
    queue: int, states: Collection[int], after: int, limit: int
) -> Generator[Step, Any, list[Range]]:
    """Return ranges of the first so many items in some states, behind an id, by id."""
    values = {"queue": queue, "from": after + 1, "states": json.dumps(list(states))}
    rows = yield look_sql.LISTED, {**values, "limit": limit}, False
    found: list[Range] = []
    for row in rows:
        one = Range(*row)
        skipped = max(0, after + 1 - one.first)
        one = part(one, one.first + skipped, min(one.count - skipped, limit))
        found.append(one)
        limit -= one.count
        if not limit:
            break
    return found


def items_listed(
    queue: int, states: Collection[int], after: int, limit: int
) -> Generator[Step, Any, Iterator[StoredItem]]:
    """Return the first items in some states behind an id, by id: so many, or as many as there is room for."""
    found = yield from ranges_listed(queue, states, after, limit)
    return (yield from items_of(found))


def items_of(found: Sequence[Range]) -> Generator[Step, Any, Iterator[StoredItem]]:
    """Return the items of ranges, in their order: all, or as many as there is room for in memory."""
    reader = blobs.PayloadReader()
    taken = yield from reader.take([(one.first, one.count) for one in found], PAGE_ROOM)
    errors = (yield from blobs.errors_of(spans(found))) if found else {}
    rows = zip(_each(found), taken.payloads, strict=False)
    return (
        _stored_item(number, one, payload, errors.get(number)) for (number, one), payload in rows
    )


def item_at(queue: int, number: int) -> Generator[Step, Any, StoredItem | None]:
    """Return an item, with its result and its job; None if the queue has none with this id."""
    if not 0 < number < ID_END:
        return None
    found = yield from ranges_listed(queue, STATE_NAMES.values(), number - 1, 1)
    if not found or found[0].first != number:
        return None
    (one,) = yield from items_of(found)
    results = yield from blobs.stored_results([(number, number)])
    jobs = yield look_sql.JOB_UID, (found[0].job,), False
    return one._replace(
        job=jobs[0][0] if jobs else None,
        result=decode_roughly(results[number]) if number in results else None,
    )


def _each(found: Sequence[Range]) -> Iterator[tuple[int, Range]]:
    for one in found:
        for number in range(one.first, one.first + one.count):
            yield number, one


def _stored_item(number: int, one: Range, payload: bytes, error: bytes | None) -> StoredItem:
    return StoredItem(
        id=number,
        state=State(one.state).name.lower(),
        key=one.key,
        priority=one.priority,
        item=decode_roughly(payload) if payload else None,
        kept=bool(payload),
        attempts=one.attempts,
        enqueued_at=one.enqueued,
        due_at=None if one.ended_at is not None else one.due,
        ended_at=one.ended_at,
        error=None if error is None else decode_error(error, number, one.attempts),
        of_job=one.job is not None,
    )


def in_hands(queue: int) -> Generator[Step, Any, dict[int, tuple[int, float, int]]]:
    """Return what each consumer of a queue has claimed, by its number.

    That is how many items, when the first of them was due, and the number of its latest claim.
    """
    rows = yield look_sql.HELD_BY, (queue,), False
    return {row[0]: row[1:] for row in rows}
