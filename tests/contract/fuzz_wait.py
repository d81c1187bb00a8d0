"""The laws of time: while a slot is free nothing waits that could go, and nobody waits for room that is there."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from fuzz_hold import may_be_held
from fuzz_record import EPSILON

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fuzz_record import Call, Life, Record

NEVER = 1e9


def nothing_waits_in_vain(record: Record) -> Iterator[str]:
    """Nothing that is due, and no full batch, stays beside a free slot for any time at all."""
    settings = record.settings
    lives = [stay for life in record.lives for stay in stays(record, life)]
    for begin, end, running in free_spans(record, (time for _, *stay in lives for time in stay)):
        at = (begin + end) / 2
        count: dict[object, int] = {}
        for life, came, due, left in lives:
            part = record.part(life.item)
            if not came < at < left or may_be_held(record, part, at):
                continue
            if settings.part_slots is not None and running.count(part) >= settings.part_slots:
                continue
            count[part] = count.get(part, 0) + 1
            if due < at:
                yield f"waits: {life} is due at {due}, a slot is free, and it stays from {begin} to {end}"
                return
            if count[part] >= settings.size and not settings.coalesce:
                yield f"waits: {count[part]} items and a free slot, and they stay from {begin} to {end}"
                return


def nobody_waits_beside_room(record: Record) -> Iterator[str]:
    """While a slot is free, who waits for room waits since handler calls and back-off take all of it."""
    settings = record.settings
    if (
        settings.room is None
        or settings.room_weight is not None
        or settings.coalesce
        or settings.part_slots
    ):
        return
    parts = {record.part(life.item) for life in record.lives}
    sent = [life for life in record.lives if life.sent and not refused_in_bulk(record, life)]
    times = [
        (life, life.sent.time, left_at(record, life, 0), left_room(record, life))
        for life in sent
        if life.sent
    ]
    for begin, end, _ in free_spans(record, (time for _, *three in times for time in three)):
        at = (begin + end) / 2
        if any(may_be_held(record, part, at) for part in parts):
            continue  # who is in the buffer takes room, and cannot go
        waiting = [life for life, came, began, _ in times if came < at < began]
        taken = sum(began < at < left for _, _, began, left in times)
        much = bool(waiting) if settings.wait == 0 else len(waiting) + taken > settings.room
        if much and taken < settings.room:
            yield f"waits: {waiting} beside {taken} of {settings.room}, from {begin} to {end}"
            return


def refused_in_bulk(record: Record, life: Life) -> bool:
    """Whether it never waited, though its caller is told later, with all the others."""
    bulk = life.caller.kind in {"many", "report"}
    never = record.settings.reject or record.refuses(life.item) or record.too_heavy(life.item)
    refused = never or life.end is None or life.end.kind == "error"
    return bulk and not life.calls and refused


def free_spans(
    record: Record, times: Iterable[float]
) -> Iterator[tuple[float, float, list[object]]]:
    """The spans in which a slot is surely free: since when, until when, the partitions that run."""
    if record.settings.adaptive:
        return
    calls = [
        (call.start.time, held_until(record, call), record.part(call.lives[0].item))
        for call in record.calls
    ]
    moments = sorted(
        {round(time, 6) for time in (*times, *(t for call in calls for t in call[:2]))}
    )
    for begin, end in itertools.pairwise(moments):
        at = (begin + end) / 2
        running = [part for start, over, part in calls if start < at < over]
        if end - begin > 10 * EPSILON and len(running) < record.settings.slots:
            yield begin, end, running


def stays(record: Record, life: Life) -> Iterator[tuple[Life, float, float, float]]:
    """When it surely was in the buffer: it, since when, due when, until when."""
    if life.sent is None or not (life.certain or life.accepted):
        return
    if record.settings.coalesce and not life.calls:
        return  # a sharer
    came = life.sent.time
    for index in range(len(life.calls) + 1):
        left = left_at(record, life, index)
        due = came + record.settings.wait
        sent = life.sent.seq
        flushed = [
            one.began.time
            for one in record.flushes
            if sent < one.began.seq and one.began.time <= left
        ]
        flushed = [] if index else flushed
        closed = [record.close.began.time] if record.close else []
        yield life, came, min([due, *flushed, *(max(time, came) for time in closed)]), left
        if index == len(life.calls):
            return
        given = life.calls[index].of(life)
        last = index == len(life.calls) - 1
        if given is None or given.error is None or not record.retryable(given.error):
            return
        if last and (
            not record.goes_again(life) or life.cancelled or life.end or record.settings.coalesce
        ):
            return
        if (
            last
            and (life.caller.dropped or life.caller.kind in {"held", "dropped"})
            and record.bounded()
        ):
            return  # it may have failed at once, where back-off holds half the room
        came = given.stamp.time + record.delay(given.error, record.attempt(life, index))


def left_at(record: Record, life: Life, index: int) -> float:
    """When its stay before its call of that index ended."""
    if index < len(life.calls):
        return life.calls[index].start.time
    ends = [stamp.time for stamp in (life.cancelled, life.end.stamp if life.end else None) if stamp]
    cut = record.close.cut() if record.close else None
    ends += [] if cut is None else [cut]
    return min(ends, default=NEVER)


def held_until(record: Record, call: Call) -> float:
    """When its slot is free at the latest."""
    end = call.end.time if call.end else NEVER
    if record.settings.timeout:
        end = min(end, call.start.time + record.settings.timeout)
    return end


def left_room(record: Record, life: Life) -> float:
    """When it has left the room at the latest."""
    if not life.calls:
        return left_at(record, life, 0)
    given = life.last()
    if given is None:
        return held_until(record, life.calls[-1])
    if record.goes_again(life):
        return max(given.stamp.time, left_at(record, life, len(life.calls)))
    return given.stamp.time


LAWS_OF_WAITING = [nothing_waits_in_vain, nobody_waits_beside_room]
