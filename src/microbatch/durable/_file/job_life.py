"""A job's life and its outcome: one table, and what follows from counts. Decides without acting."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class JobLife(IntEnum):
    """Where a job is; the numbers stand in the file. Nobody sees one that is staged or going."""

    STAGED = 0
    QUEUED = 1
    RUNNING = 2
    CANCELLING = 3
    ENDED = 4
    GOING = 5


class Event(IntEnum):
    """What moves a job on."""

    SHOWN = 0  # all of it is on the disk
    BEGAN = 1  # the first of its items is claimed
    STOPPED = 2  # cancelled, or past its deadline: what has not begun will not
    FINISHED = 3  # the last of its items has ended
    DELETED = 4  # somebody deleted it, or its time is over
    ABANDONED = 5  # it will never be shown: given up, or its process died


#: Every change of a life. Nothing else changes one: the statement that does is made of this.
FOLLOWING: Final[Mapping[tuple[JobLife, Event], JobLife]] = {
    (JobLife.STAGED, Event.SHOWN): JobLife.QUEUED,
    (JobLife.STAGED, Event.ABANDONED): JobLife.GOING,
    (JobLife.QUEUED, Event.BEGAN): JobLife.RUNNING,
    (JobLife.QUEUED, Event.STOPPED): JobLife.CANCELLING,
    (JobLife.QUEUED, Event.FINISHED): JobLife.ENDED,
    (JobLife.RUNNING, Event.STOPPED): JobLife.CANCELLING,
    (JobLife.RUNNING, Event.FINISHED): JobLife.ENDED,
    (JobLife.CANCELLING, Event.FINISHED): JobLife.ENDED,
    (JobLife.ENDED, Event.DELETED): JobLife.GOING,
}

#: The lives that others see, by name.
VISIBLE: Final[Mapping[str, JobLife]] = {
    "queued": JobLife.QUEUED,
    "running": JobLife.RUNNING,
    "cancelling": JobLife.CANCELLING,
    "ended": JobLife.ENDED,
}


def before(event: Event) -> tuple[JobLife, ...]:
    """Return the lives that an event moves on."""
    return tuple(life for life, one in FOLLOWING if one == event)


class Counts(NamedTuple):
    """How many items of a job ended, and how."""

    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0
    expired: int = 0


def job_outcome(tally: Counts) -> str:
    """Return the outcome of a job whose items have all ended, by what became of them and nothing else.

    So a cancel that came too late for any item changes nothing, whatever raced.
    """
    if tally.cancelled:
        return "cancelled"
    if tally.expired:
        return "expired"
    if not tally.failed:
        return "succeeded"
    return "partially_succeeded" if tally.succeeded or tally.skipped else "failed"


#: Error codes that a job counts apart; and under what it counts the rest.
CODES_MAX = 100
OTHER = "other"

#: Characters of a code that are kept.
CODE_CHARACTERS_MAX = 100


def add_codes(counted: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Return counts by code with more of them: at most so many codes, the rest under one name."""
    found = dict(counted)
    for code, count in more.items():
        short = code[:CODE_CHARACTERS_MAX]
        known = short in found or len(found) - (OTHER in found) < CODES_MAX
        name = short if known else OTHER
        found[name] = found.get(name, 0) + count
    return found


#: Seconds of a window over which a rate is taken, at least; and at most twice that.
RATE_WINDOW = 5.0


class Pace(NamedTuple):
    """What is known of how fast a job goes.

    Attributes:
        before_at: When the window began over which the rate is taken.
        before_done: How many items had ended then.
        last_at: When the last one ended.
        done: How many have ended.
    """

    before_at: float
    before_done: int
    last_at: float
    done: int


def rate_of(pace: Pace, now: float) -> float:
    """Return items per second of late: 0 before anything ended, and falling while nothing does."""
    more = pace.done - pace.before_done
    seconds = pace.last_at - pace.before_at
    if more <= 0 or seconds <= 0:
        return 0.0
    # While a batch runs, time goes on and nothing ends: that says nothing before it takes unusually long.
    silent = now - pace.last_at
    if silent > max(RATE_WINDOW, seconds):
        seconds += silent
    return more / seconds


#: Why a lane is closed: bits, so that one reason's end does not open what another one closes.
PAUSED, STOPPED, BUSY = 1, 2, 4
