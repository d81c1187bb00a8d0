"""New items on their way into the file: payloads in bulk, or groups with keys and priorities."""

from __future__ import annotations

import json
from functools import partial
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from microbatch.durable.errors import QueueCorrupt, QueueFull

from . import payloads as blobs
from . import sql
from .claiming import repair
from .ranges import (
    CLAIMED,
    ITEMS_MAX,
    READY,
    SCHEDULED,
    STAGED,
)
from .records import ENDED, Appended, Claim, Clash, NewItem, Range, State, Stored

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from microbatch.durable._file.limits import Limits

    from .records import Demand, Step
    from .view import Row, View


# Of a NewItem, by place: four times as fast as by name.
_PAYLOAD, _KEY, _TRACE = itemgetter(0), itemgetter(1), itemgetter(4)
_STORED: Any = partial(tuple.__new__, Stored)  # without a call of Python's for each
_RANGE: Any = partial(tuple.__new__, Range)
_KIND = itemgetter(1, 2, 3)  # key, priority, delay

#: What new items have that have nothing but a payload.
_PLAIN = NewItem(b"")


def new_range(  # noqa: PLR0917 - made in this file alone
    view: View, queue: int, first: int, count: int, state: int, item: NewItem = _PLAIN
) -> Range:
    """Return a range of new items that are alike."""
    now = view.now
    _, key, priority, delay, _ = item
    delay = max(0.0, delay)
    due, since = (delay, 0.0) if state == STAGED else (now + delay, now)
    made: Range = _RANGE((
        first, count, queue, 0, state, priority, due, since, 0, 0, None, None, None,
        view.ticket, None, None, key, now, None, None, None,
    ))  # fmt: skip
    return made


def append(  # noqa: PLR0917
    view: View,
    queue: int,
    limits: Limits,
    payloads: Sequence[bytes],
    traces: Sequence[bytes | None] | None,
    demand: Demand | None,
) -> Generator[Step, Any, Appended]:
    """Store items that have nothing but a payload, as many as there is room for."""
    row = yield from view.row(queue)
    full = yield from file_is_full(view, limits)
    room = 0 if full else max(0, limits.max_depth - row.depth)
    accepted = min(room, len(payloads))
    limit = "max_file_bytes" if full else "max_depth"
    if not accepted:
        return Appended(0, 0, [], limit)
    if accepted < len(payloads):
        payloads = payloads[:accepted]
    short_way = yield from _is_free(view, row, demand)
    first = yield from view.take_ids(accepted)
    yield from blobs.store(queue, first, payloads, traces)
    claims, at = [], 0
    if demand is not None and short_way:
        for number in range(demand.claim, demand.claim + demand.slots):
            if at == accepted:
                break
            count = _fitting(payloads, at, min(accepted, at + demand.size)) - at
            taken = new_range(view, queue, first + at, count, CLAIMED)
            taken = taken._replace(consumer=demand.consumer, claim=number)
            sent = None if traces is None else list(traces[at : at + count])
            chosen = list(payloads[at : at + count])
            claims.append(Claim(number, [taken], chosen, sent if sent and any(sent) else None))
            at += count
    written = [claim.ranges[0] for claim in claims]
    while at < accepted:
        count = min(accepted - at, ITEMS_MAX)
        written.append(new_range(view, queue, first + at, count, READY))
        at += count
    yield from view.replace(row, (), written)
    return Appended(first, accepted, claims, limit)


def _fitting(payloads: Sequence[bytes], start: int, stop: int) -> int:
    """Return where a claim ends that starts there: before its bytes get too many."""
    size = 0
    for index in range(start, stop):
        size += len(payloads[index])
        if size > blobs.CLAIM_BYTES and index > start:
            return index
    return stop


def _is_free(view: View, row: Row, demand: Demand | None) -> Generator[Step, Any, bool]:
    """Tell whether new items may go straight to who asks: nothing that could be claimed is before them."""
    if demand is None or row.paused or not row.open or row.counts[State.READY]:
        return False
    if row.counts[State.SCHEDULED]:
        yield from repair(view, row)
        if (yield sql.IS_DUE, (row.id, view.now), False):
            return False
    return (yield from view.knows(demand.consumer))


def file_is_full(view: View, limits: Limits) -> Generator[Step, Any, bool]:
    if limits.max_file_bytes is None:
        return False
    ((pages,),) = yield sql.PAGES_IN_USE, (), False
    return bool(pages + view.wal_size() >= limits.max_file_bytes)


# Groups


class _Owner(NamedTuple):
    """Who has a key: an item, the number of its ticket, its payload."""

    id: int
    ticket: int | None
    payload: bytes


class _Group(NamedTuple):
    """A group of items on its way in: what is new of it, and which keys it takes."""

    items: Sequence[NewItem]
    answer: Sequence[Stored | int]
    keys: dict[str, int]


def enqueue(
    view: View,
    queue: int,
    limits: Limits,
    groups: Sequence[Sequence[NewItem]],
    demand: Demand | None,
) -> Generator[Step, Any, tuple[list[list[Stored] | QueueFull | Clash], list[Claim]]]:
    """Store groups of items, each wholly or not at all."""
    row = yield from view.row(queue)
    full = yield from file_is_full(view, limits)
    room = limits.max_depth - row.depth
    reader = blobs.PayloadReader()
    stored: list[NewItem] = []
    answers: list[Sequence[Stored | int] | QueueFull | Clash] = []
    taken: dict[str, int] = {}
    known: dict[str, tuple[int, float]] = {}
    keys = [item.key for items in groups for item in items if item.key is not None]
    if keys:
        for key, number, expires in (yield sql.KEYS, (json.dumps(keys), queue), False):
            known[key] = (number, expires)
    single = len(keys) == len(groups) and set(map(len, groups)) == {1}
    if single and not known and not full and len(set(keys)) == len(keys) <= room:
        # By far the most: items by themselves, each with a key that nobody has.
        stored = [items[0] for items in groups]
        taken = dict(zip(keys, range(len(keys)), strict=True))
        answers += [range(index, index + 1) for index in range(len(keys))]
        groups = ()
    for items in groups:
        group = yield from _admit(view, row, reader, items, stored, taken, known)
        if isinstance(group, Clash):
            answers.append(group)
        elif full and group.items:
            answers.append((yield from refusal(queue, "max_file_bytes", limits.max_file_bytes)))
        elif len(group.items) > room:
            answers.append((yield from refusal(queue, "max_depth", limits.max_depth)))
        else:
            room -= len(group.items)
            stored += group.items
            taken.update(group.keys)
            answers.append(group.answer)
    first = 0
    claims: list[Claim] = []
    if stored:
        short_way = demand if (yield from _is_free(view, row, demand)) else None
        first = yield from view.take_ids(len(stored))
        traces = list(map(_TRACE, stored))
        yield from blobs.store(queue, first, list(map(_PAYLOAD, stored)), traces)
        claims, written = _place(view, queue, first, stored, short_way)
        yield from view.replace(row, (), written)
    if taken:
        expires = view.now + limits.key_ttl
        yield (
            sql.SET_KEY,
            [(queue, key, first + index, expires) for key, index in taken.items()],
            True,
        )
    return [_with_ids(view, answer, first) for answer in answers], claims


def _admit(  # noqa: PLR0917
    view: View,
    row: Row,
    reader: blobs.PayloadReader,
    items: Sequence[NewItem],
    stored: Sequence[NewItem],
    taken: dict[str, int],
    known: dict[str, tuple[int, float]],
) -> Generator[Step, Any, _Group | Clash]:
    """Return what a group brings; its new items are known by their place among all new ones."""
    if not any(map(_KEY, items)):
        return _Group(items, range(len(stored), len(stored) + len(items)), {})
    mine: list[NewItem] = []
    answer: list[Stored | int] = []
    keys: dict[str, int] = {}
    for item in items:
        place = len(stored) + len(mine)
        if item.key is not None:
            index = keys.get(item.key, taken.get(item.key))
            if index is not None:
                local = index - len(stored)
                older = stored[index] if local < 0 else mine[local]
                if older.payload != item.payload:
                    # The older one is not on the disk: nobody but who decodes both can name it.
                    return Clash(item.key, -1 - index, view.ticket, older.payload)
                answer.append(-1 - index)
                continue
            owner = None
            if item.key in known:
                owner = yield from _owner(view, row, reader, known[item.key])
            if owner is not None:
                if owner.payload != item.payload:
                    return Clash(item.key, *owner)
                answer.append(Stored(owner.id, owner.ticket, repeated=True))
                continue
            keys[item.key] = place
        mine.append(item)
        answer.append(place)
    return _Group(mine, answer, keys)


def _owner(
    view: View, row: Row, reader: blobs.PayloadReader, entry: tuple[int, float]
) -> Generator[Step, Any, _Owner | None]:
    """Return the item that has a key: one that has not ended, or that took it less than `key_ttl` ago."""
    number, expires = entry
    rows = yield sql.RANGES_OF, (f"[[{number},{number}]]",), False
    owners = [Range(*values) for values in rows]
    owners = [one for one in owners if one.first == number and one.queue == row.id]
    if not owners or (owners[0].state in ENDED and expires <= view.now):
        return None
    content = yield from reader.take([(number, 1)], 0)
    if content.payloads[0] == blobs.MISSING:
        raise QueueCorrupt(
            str(view.path), f"the payload of item {number}, which has the key, is missing"
        )
    return _Owner(number, owners[0].ticket, content.payloads[0])


def refusal(queue: int, limit: str, allowed: float | None) -> Generator[Step, Any, QueueFull]:
    ((name,),) = yield sql.QUEUE_NAME, (queue,), False
    return QueueFull(name, limit, allowed or 0)


def _place(
    view: View, queue: int, first: int, stored: Sequence[NewItem], demand: Demand | None
) -> tuple[list[Claim], list[Range]]:
    """Return the claims that new items go to, and all their ranges."""
    owners: dict[int, int] = {}
    claims: list[Claim] = []
    if demand is not None:
        due = [index for index, item in enumerate(stored) if item.delay <= 0]
        due.sort(key=lambda index: -stored[index].priority)
        ordered = [stored[index].payload for index in due]
        at = 0
        for number in range(demand.claim, demand.claim + demand.slots):
            if at == len(due):
                break
            stop = _fitting(ordered, at, min(len(due), at + demand.size))
            chosen = due[at:stop]
            owners.update(dict.fromkeys(chosen, number))
            sent = [stored[index].trace for index in chosen]
            ranges = [
                one._replace(consumer=demand.consumer, claim=number)
                for one in alike(view, queue, first, stored, chosen, CLAIMED)
            ]
            claims.append(Claim(number, ranges, ordered[at:stop], sent if any(sent) else None))
            at = stop
    written = [one for claim in claims for one in claim.ranges]
    left: Sequence[int] = range(len(stored))
    if owners:
        left = [index for index in left if index not in owners]
    written += alike(view, queue, first, stored, left, READY)
    return claims, written


def alike(  # noqa: PLR0917
    view: View,
    queue: int,
    first: int,
    stored: Sequence[NewItem],
    chosen: Sequence[int],
    state: int,
) -> Iterator[Range]:
    """Return ranges of items that stand side by side and are alike."""
    for start, stop in _runs(stored, chosen):
        item = stored[chosen[start]]
        into = SCHEDULED if state == READY and item[3] > 0 else state
        if stop - start == 1:
            yield new_range(view, queue, first + chosen[start], 1, into, item)
            continue
        for begin in range(start, stop, ITEMS_MAX):
            count = min(ITEMS_MAX, stop - begin)
            yield new_range(view, queue, first + chosen[begin], count, into, item)


def _runs(stored: Sequence[NewItem], chosen: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield from where to where among those chosen the items stand side by side and are of one kind."""
    total = len(chosen)
    if isinstance(chosen, range) and total:
        like = _KIND(stored[chosen[0]])
        # By far the most of many that come together: no step of Python's for each.
        if like[0] is None and all(map(like.__eq__, map(_KIND, stored))):
            yield 0, total
            return
    start = 0
    while start < total:
        key, priority, delay = _KIND(stored[chosen[start]])
        stop = start + 1
        if key is None:
            like = key, priority, delay
            offset = chosen[start] - start
            while (
                stop < total
                and chosen[stop] == stop + offset
                and _KIND(stored[chosen[stop]]) == like
            ):
                stop += 1
        yield start, stop
        start = stop


def _with_ids(
    view: View, answer: Sequence[Stored | int] | QueueFull | Clash, first: int
) -> list[Stored] | QueueFull | Clash:
    """Return an answer with ids in place of places among the new items; negative ones repeat a key."""
    if isinstance(answer, Clash):
        return answer._replace(id=first - answer.id - 1) if answer.id < 0 else answer
    if isinstance(answer, QueueFull):
        return answer
    if isinstance(answer, range):
        if len(answer) == 1:
            return [Stored(first + answer.start, view.ticket)]
        numbers = range(first + answer.start, first + answer.stop)
        return list(map(_STORED, zip(numbers, repeat(view.ticket), repeat(False))))
    return [
        one
        if isinstance(one, Stored)
        else Stored(first + one, view.ticket)
        if one >= 0
        else Stored(first - one - 1, view.ticket, repeated=True)
        for one in answer
    ]
