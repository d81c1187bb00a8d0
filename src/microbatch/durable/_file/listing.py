"""What is asked of the file by those who only look: its queues, items in any state, who holds what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from . import look_sql
from . import payloads as blobs
from .ranges import part, spans
from .records import Range

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Sequence

    from .records import Step

#: Bytes of payloads after which a page of items ends: so much of them is in memory at once.
PAGE_ROOM = 8 << 20


class ListedItem(NamedTuple):
    """An item as the disk has it.

    Attributes:
        id: Its id.
        range: What it is, with those of whom the same holds.
        payload: Its bytes; empty where they are no longer kept.
        error: Its encoded error.
    """

    id: int
    range: Range
    payload: bytes
    error: bytes | None


class InHand(NamedTuple):
    """What a consumer has claimed.

    Attributes:
        consumer: Its number.
        items: How many items.
        due: When the first of them was due, in seconds since the epoch.
        claim: The number of its latest claim.
    """

    consumer: int
    items: int
    due: float
    claim: int


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


def items_of(found: Sequence[Range]) -> Generator[Step, Any, list[ListedItem]]:
    """Return the items of ranges, in their order: all, or as many as there is room for in memory."""
    reader = blobs.PayloadReader()
    taken = yield from reader.take([(one.first, one.count) for one in found], PAGE_ROOM)
    errors = (yield from blobs.errors_of(spans(found))) if found else {}
    rows = zip(_each(found), taken.payloads, strict=False)
    return [ListedItem(number, one, payload, errors.get(number)) for (number, one), payload in rows]


def _each(found: Sequence[Range]) -> Iterator[tuple[int, Range]]:
    for one in found:
        for number in range(one.first, one.first + one.count):
            yield number, one


def in_hands(queue: int) -> Generator[Step, Any, dict[int, InHand]]:
    """Return what each consumer of a queue has claimed, by its number."""
    rows = yield look_sql.HELD_BY, (queue,), False
    return {row[0]: InHand(*row) for row in rows}
