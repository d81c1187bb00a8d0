"""The laws of order: who goes first, and with whom."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from fuzz_hold import refusals
from fuzz_record import EPSILON, well_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz_record import Call, Life, Record


def first_come(record: Record) -> Iterator[str]:
    """Within a partition and a priority the first to come is the first to go, waiters for room included."""
    if record.settings.coalesce:
        return  # a sharer's priority counts for its slot
    lines: dict[tuple[object, float], list[Life]] = {}
    for life in record.lives:
        bulk = (
            life.caller.kind in {"many", "report"} and not life.certain
        )  # takes turns with others
        if life.sent and life.calls and not (bulk or life.inner):
            lines.setdefault((record.part(life.item), life.priority), []).append(life)
    for line in lines.values():
        line.sort(key=lambda life: life.sent.seq if life.sent else 0)
        for before, after in itertools.pairwise(line):
            if place(before) > place(after):
                yield f"order: {after} came after {before} and went before it"


def place(life: Life) -> tuple[int, int]:
    call = life.calls[0]
    return call.number, call.lives.index(life)


def urgent_first(record: Record) -> Iterator[str]:
    """A batch takes the highest priorities that are buffered, but for one batch in ten."""
    settings = record.settings
    if settings.coalesce or settings.adaptive:
        return
    same = [call for call in record.calls if passes_over(record, call, same=True)]
    if len(same) * 10 > len(record.calls) + 9:
        yield f"order: calls {numbers(same)} left more urgent items behind"
    if settings.wait or settings.part_slots:
        return  # then not every partition is ready
    if refusals(record):
        return  # nor is one that waits for its backend
    others = [call for call in record.calls if passes_over(record, call, same=False)]
    if len(others) * 10 > len(record.calls) + 9:
        yield f"order: calls {numbers(others)} left before more urgent partitions"


def numbers(calls: list[Call]) -> list[int]:
    return [call.number for call in calls]


def passes_over(record: Record, call: Call, *, same: bool) -> bool:
    """Whether something more urgent stays behind, in the call's partition or in another."""
    if any(life.calls[0] is not call for life in call.lives):
        return False  # retried ones come back behind
    priorities = [life.priority for life in call.lives]
    reached = min(priorities) if same else max(priorities)
    part = record.part(call.lives[0].item)
    return any(
        one.priority > reached and (record.part(one.item) == part) is same and behind(one, call)
        for one in record.lives
    )


def behind(life: Life, call: Call) -> bool:
    """Whether it surely stood in the buffer when the call's batch was cut, and was not taken."""
    if life.sent is None or not (life.certain or life.accepted) or life.cancelled:
        return False
    if life.end and not life.calls:
        return False
    began = life.calls[0].start if life.calls else None
    if began and not well_after(call.start, began):
        return False
    return well_after(life.sent, call.start)


def full_batches(record: Record) -> Iterator[str]:
    """What stays behind stays because the batch is full."""
    settings = record.settings
    if settings.coalesce or settings.adaptive:
        return
    if settings.batch_weight is not None and refusals(record):
        return  # what was refused stands before the others, and may be what does not fit
    for call in record.calls:
        if len(call.lives) >= settings.size or call.info.get("reason") == "flush":
            continue
        part = record.part(call.lives[0].item)
        left = [one for one in record.lives if record.part(one.item) == part and behind(one, call)]
        if not left:
            continue
        weight = sum(life.item.weight for life in call.lives)
        later = [one for one in record.lives if not one.calls or one.calls[0].number > call.number]
        heaviest = max(one.item.weight for one in later if record.part(one.item) == part)
        if settings.batch_weight is None or weight + heaviest <= settings.batch_weight - EPSILON:
            yield f"full: call {call.number} has {len(call.lives)} items and leaves {left}"


LAWS_OF_ORDER = [first_come, urgent_first, full_batches]
