"""The laws of holds: a backend that takes nothing is left in peace, then asked once, and not for ever."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from fuzz_record import EPSILON, well_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz_record import Call, Record, Stamp


class Refusal(NamedTuple):
    """One item of a call was refused.

    Attributes:
        after: The seconds that the backend said, within the maximum; None if it did not.
    """

    call: Call
    part: object
    stamp: Stamp
    after: float | None


def refusals(record: Record) -> list[Refusal]:
    """All of a program, in their order; none where they are errors like any other."""
    found = []
    for call in record.calls:
        for index, given in call.given.items():
            if record.refused(given) and not too_late(record, call, given.stamp):
                after: Any = given.error.retry_after  # type: ignore[union-attr]
                if after is not None:
                    after = min(after, record.settings.maximum)
                part = record.part(call.lives[index].item)
                found.append(Refusal(call, part, given.stamp, after))
    return sorted(found, key=lambda one: one.stamp.seq)


def too_late(record: Record, call: Call, stamp: Stamp) -> bool:
    """Whether the call may have been given up by then, so that nobody heard of it."""
    timeout, cut = record.settings.timeout, record.close.cut() if record.close else None
    if timeout and stamp.time >= call.start.time + timeout - EPSILON:
        return True
    return cut is not None and stamp.time >= cut - EPSILON


def left_in_peace(record: Record) -> Iterator[str]:
    """No batch of a partition begins before the time is over that its backend said."""
    for one in refusals(record):
        if one.after is None:
            continue
        for call in calls_of(record, one.part):
            if one.stamp.time + EPSILON < call.start.time < one.stamp.time + one.after - EPSILON:
                yield (
                    f"hold: call {call.number} begins at {call.start.time}, {one.call.number} was refused "
                    f"at {one.stamp.time} for {one.after}"
                )


def asked_once(record: Record) -> Iterator[str]:
    """The first batch after the time goes alone; the others when it has come back without a refusal."""
    for one in refusals(record):
        if one.after is None:
            continue
        over = one.stamp.time + one.after
        calls = [call for call in calls_of(record, one.part) if call.start.time > over - EPSILON]
        if len(calls) < 2 or calls[0].start.time > over + EPSILON:
            continue  # nobody waited when the time was over: then it is forgotten
        probe, second = calls[:2]
        back = probe.over()
        timeout = record.settings.timeout
        late = timeout and second.start.time >= probe.start.time + timeout - EPSILON
        gone = record.settings.abandon
        if not (late or gone) and (back is None or back.seq > second.start.seq):
            yield f"hold: call {second.number} begins beside the probe, call {probe.number}"


def not_given_up_early(record: Record) -> Iterator[str]:
    """Nothing fails by a refusal before there were as many in its partition as ``holds`` says."""
    if record.settings.coalesce:
        return
    for life in record.lives:
        given, end = life.last(), life.end
        if not (record.refused(given) and end and given and given.fits(end)) or life.cancelled:
            continue
        part = record.part(life.item)
        before = {one.call.number for one in refusals(record) if one.part == part}
        if len(before) < record.settings.holds:
            yield f"hold: {life} failed after {len(before)} refusals, holds is {record.settings.holds}"


def first_again(record: Record) -> Iterator[str]:
    """What was refused goes again before whatever of its kind has not gone yet."""
    if record.settings.coalesce:
        return
    for life in record.lives:
        for index, (call, again) in enumerate(itertools.pairwise(life.calls)):
            given = call.of(life)
            if not record.refused(given) or given is None or record.attempt(life, index) > 1:
                continue  # behind a back-off it is among the last
            for other in record.lives:
                if not other.calls or other.priority != life.priority:
                    continue
                first = other.calls[0]
                if record.part(other.item) != record.part(life.item):
                    continue
                if first.number < again.number and well_after(given.stamp, first.start):
                    yield f"hold: {other} goes in call {first.number} before {life}, refused before"


def calls_of(record: Record, part: object) -> list[Call]:
    return [call for call in record.calls if record.part(call.lives[0].item) == part]


def may_be_held(record: Record, part: object, at: float) -> bool:
    """Whether a partition may wait for its backend at that time, or for the batch that goes first."""
    settings = record.settings
    mine = [one for one in refusals(record) if one.part == part and one.stamp.time <= at + EPSILON]
    for number, one in enumerate(mine, 1):
        bound = one.after
        if bound is None:
            bound = min(settings.maximum, settings.initial * 2.0 ** min(number - 1, 99))
        over = one.stamp.time + bound
        if at <= over + EPSILON:
            return True
        since = [
            call for call in calls_of(record, part) if call.start.time > one.stamp.time - EPSILON
        ]
        since = [call for call in since if call.start.seq > one.stamp.seq]
        if (
            since
            and since[0].start.time <= at
            and not ((back := since[0].over()) and back.time <= at + EPSILON)
        ):
            return True
    return False


LAWS_OF_HOLDS = [left_in_peace, asked_once, not_given_up_early, first_again]
