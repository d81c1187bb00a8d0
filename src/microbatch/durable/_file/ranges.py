"""What happens to ranges of items: every split, change and merge, without SQL, clock or loop.

All of these take ranges as they stand in the file and give ranges for the same ids as they shall stand there;
`change` tells the difference between the two. So nothing can be lost or doubled on the way, and the counts
follow from the ranges.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .records import ENDED, Range, State

N = TypeVar("N", int, float)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from .records import Settlement, Verdict

#: Items in one range at most: what one step of upkeep or one take-back can bear.
ITEMS_MAX = 10_000

#: A claim of a dead process goes again in so many parts: a poison item among 100 is alone after two of them.
PARTS = 10

#: An item that died alone so often is a dead letter, whatever attempts are left.
DEATHS_MAX = 2

#: Ranges that ended are merged if they are kept equally long, but for this part of that time.
SPREAD = 8.0

READY, SCHEDULED, CLAIMED = int(State.READY), int(State.SCHEDULED), int(State.CLAIMED)
DONE, SKIPPED, DEAD = int(State.DONE), int(State.SKIPPED), int(State.DEAD)
CANCELLED, STAGED = int(State.CANCELLED), int(State.STAGED)
_ENDED = frozenset(map(int, ENDED))
_STATES = len(State)


class Change(NamedTuple):
    """The difference between ranges before and after.

    Attributes:
        remove: The first ids of those that are no more.
        write: Those that are new, or not as before.
        moved: How many items more there are, by state.
        jobs: The same for each job that some of them are of; None without any.
    """

    remove: list[int]
    write: list[Range]
    moved: list[int]
    jobs: dict[int, list[int]] | None = None


def change(old: Iterable[Range], new: Iterable[Range]) -> Change:
    """Return what must be removed and written so that the new ranges stand in place of the old ones."""
    moved = [0] * _STATES
    jobs: dict[int, list[int]] | None = None
    before = {}
    for one in old:
        moved[one.state] -= one.count
        before[one.first] = one
        if one.job is not None:
            jobs = _moved_of(jobs, one.job, one.state, -one.count)
    write = []
    for one in new:
        moved[one.state] += one.count
        if before.pop(one.first, None) != one:
            write.append(one)
        if one.job is not None:
            jobs = _moved_of(jobs, one.job, one.state, one.count)
    return Change(list(before), write, moved, jobs)


def _moved_of(
    jobs: dict[int, list[int]] | None, job: int, state: int, count: int
) -> dict[int, list[int]]:
    jobs = {} if jobs is None else jobs
    moved = jobs.get(job)
    if moved is None:
        moved = jobs[job] = [0] * _STATES
    moved[state] += count
    return jobs


def part(one: Range, first: int, count: int) -> Range:
    """Return some of a range's items: so many from an id on."""
    if count == one.count:
        return one
    position = None if one.position is None else one.position + first - one.first
    return one._replace(first=first, count=count, position=position)


def ended_well(one: Range) -> bool:
    """Tell whether nobody needs the payloads any more."""
    return one.state in (DONE, SKIPPED) and one.key is None


# Merging


def joins(left: Range, right: Range) -> bool:
    """Tell whether two ranges can be one."""
    return (
        left.first + left.count == right.first
        and left.count + right.count <= ITEMS_MAX
        and left[2:6] == right[2:6]  # queue, lane, state, priority
        and left[8:10] == right[8:10]  # attempts, deaths
        and left[13:15] == right[13:15]  # ticket, job
        and left.key is None
        and right.key is None
        and left.apart is None
        and right.apart is None
        and (left.position is None) == (right.position is None)
        and (left.position is None or left.position + left.count == right.position)
        and (_end_alike(left, right) if left.state in _ENDED else _wait_alike(left, right))
    )


def _wait_alike(left: Range, right: Range) -> bool:
    return (
        left.due == right.due
        and left.since == right.since
        and left[11:13] == right[11:13]  # consumer, claim
        and left.enqueued == right.enqueued
    )


def _end_alike(left: Range, right: Range) -> bool:
    if left.job is not None and left.state != DEAD:
        return True  # they go with their job, and nobody is shown when each of them ended
    if left.keep_until is None or right.keep_until is None:
        # Dead letters are shown one by one, with their times.
        return left[17:20] == right[17:20]
    assert left.ended_at is not None  # noqa: S101 - they have ended
    assert right.ended_at is not None  # noqa: S101
    # `since` is when the first of them ended. Without this bound a slow trickle would keep its first item
    # until its last one may go.
    spread = max(left.ended_at, right.ended_at) - min(left.since, right.since)
    kept = min(left.keep_until - left.ended_at, right.keep_until - right.ended_at)
    return spread * SPREAD <= kept


def join(left: Range, right: Range) -> Range:
    """Return two ranges as one."""
    count = left.count + right.count
    if left.state not in _ENDED or left.state == DEAD:
        return left._replace(count=count, ended=_greater(left.ended, right.ended))
    return left._replace(
        count=count,
        since=min(left.since, right.since),
        enqueued=min(left.enqueued, right.enqueued),
        ended_at=_greater(left.ended_at, right.ended_at),
        keep_until=_greater(left.keep_until, right.keep_until),
        ended=_greater(left.ended, right.ended),
    )


def _greater(left: N | None, right: N | None) -> N | None:
    return left if right is None else right if left is None else max(left, right)


def merge(found: Iterable[Range]) -> list[Range]:
    """Return the same items in as few ranges as can be, by id."""
    merged: list[Range] = []
    for one in sorted(found):
        if merged and joins(merged[-1], one):
            merged[-1] = join(merged[-1], one)
        else:
            merged.append(one)
    return merged


# Runs of ids


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return ids as first and last ones of consecutive ones, ascending, each once."""
    found: list[tuple[int, int]] = []
    first = last = None
    for number in sorted(set(numbers)):
        if last is None or number != last + 1:
            if first is not None and last is not None:
                found.append((first, last))
            first = number
        last = number
    if first is not None and last is not None:
        found.append((first, last))
    return found


def spans(found: Iterable[Range]) -> list[tuple[int, int]]:
    """Return which ids ranges cover, as first and last ones, ascending."""
    covered: list[tuple[int, int]] = []
    for first, count, *_ in sorted(found):
        if covered and covered[-1][1] + 1 == first:
            covered[-1] = (covered[-1][0], first + count - 1)
        else:
            covered.append((first, first + count - 1))
    return covered


def cut(one: Range, wanted: Sequence[tuple[int, int]]) -> Iterator[tuple[Range, bool]]:
    """Cut a range along runs of ids; yield its parts in order, and whether each is wanted."""
    at, end = one.first, one.first + one.count
    place = bisect_left(wanted, (at, at))
    if place and wanted[place - 1][1] >= at:
        place -= 1
    while at < end:
        first, last = wanted[place] if place < len(wanted) else (end, end)
        if at < first:
            stop = min(first, end)
            yield part(one, at, stop - at), False
        else:
            stop = min(last + 1, end)
            yield part(one, at, stop - at), True
            place += 1
        at = stop


def alter(
    found: Iterable[Range],
    wanted: Sequence[tuple[int, int]],
    altered: Callable[[Range], Range | None],
) -> tuple[list[Range], list[Range], list[Range]]:
    """Do something to the items of some ids.

    Args:
        found: Ranges.
        wanted: Runs of ids.
        altered: Returns what becomes of a part; None if it goes.

    Returns:
        The ranges that are touched; what stands in their place; the parts that were wanted, as they were.
    """
    touched, new, parts = [], [], []
    for one in found:
        pieces = list(cut(one, wanted))
        if not any(inside for _, inside in pieces):
            continue
        touched.append(one)
        for piece, inside in pieces:
            if not inside:
                new.append(piece)
                continue
            parts.append(piece)
            after = altered(piece)
            if after is not None:
                new.append(after)
    return touched, new, parts


# An item's way


def claimed(one: Range, consumer: int, claim: int) -> Range:
    """Return a range in a consumer's hands."""
    return one._replace(state=CLAIMED, consumer=consumer, claim=claim)


def given_back(one: Range) -> Range:
    """Return a claimed range as it was before."""
    return one._replace(state=READY, consumer=None, claim=None)


def ready(one: Range, now: float) -> Range:
    """Return a dead letter with all its attempts."""
    return one._replace(
        state=READY,
        due=now,
        since=now,
        attempts=0,
        deaths=0,
        apart=None,
        ended_at=None,
        keep_until=None,
        ended=None,
    )


def ended(one: Range, state: int, now: float, keep_until: float | None, number: int) -> Range:
    """Return a range that has ended."""
    return one._replace(
        state=state,
        due=0.0,
        since=now,
        apart=None,
        consumer=None,
        claim=None,
        ended_at=now,
        keep_until=keep_until,
        ended=number,
    )


class Ends(NamedTuple):
    """How a transaction's ranges end.

    Attributes:
        now: When.
        number: The number of the transaction among those of the queue that end something.
        keep: Until when they are kept.
        expires: When the keys expire of those that have one, by item.
    """

    now: float
    number: int
    keep: float
    expires: Mapping[int, float]

    def done(self, one: Range, state: int, counted: bool = True) -> Range:
        """Return a range that a handler has dealt with."""
        keep: float | None = None
        if state != DEAD and one.job is None:  # a job's items go with it
            keep = self.keep
            if one.key is not None:  # who comes again with the key gets the result
                keep = max(keep, self.expires.get(one.first, keep))
        return ended(one, state, self.now, keep, self.number)._replace(
            attempts=one.attempts + counted, deaths=one.deaths if state == DEAD else 0
        )


def settle_ranges(
    held: Sequence[Range], settlement: Settlement, ends: Ends
) -> tuple[list[Range], list[Range], set[int]]:
    """Record what became of claimed items.

    Args:
        held: The ranges of the claim, ascending.
        settlement: What became of its items; those that are not held are left out.
        ends: How they end.

    Returns:
        The ranges that are touched, what stands in their place, and the ids that were settled.
    """
    old: list[Range] = []
    new: list[Range] = []
    settled: set[int] = set()
    done = settlement.done
    verdicts = sorted(settlement.verdicts, key=lambda verdict: verdict.id)
    named = [verdict.id for verdict in verdicts]
    for one in held:
        first, last = one.first, one.first + one.count - 1
        succeeded = done[bisect_left(done, first) : bisect_right(done, last)]
        others = verdicts[bisect_left(named, first) : bisect_right(named, last)]
        if not succeeded and not others:
            continue
        old.append(one)
        settled.update(succeeded)
        if len(succeeded) == one.count:
            new.append(ends.done(one, DONE))
            continue
        wanted = runs(succeeded)
        pieces = [ends.done(piece, DONE) if well else piece for piece, well in cut(one, wanted)]
        for verdict in others:
            if verdict.id in settled:
                continue
            place = bisect_right(pieces, verdict.id, key=lambda piece: piece.first) - 1
            piece = pieces[place]
            pieces[place : place + 1] = [
                _judged(bit, verdict, ends) if named else bit
                for bit, named in cut(piece, [(verdict.id, verdict.id)])
            ]
            settled.add(verdict.id)
        new += pieces
    return old, new, settled


def _judged(one: Range, verdict: Verdict, ends: Ends) -> Range:
    state = int(verdict.state)
    if state in _ENDED:
        return ends.done(one, state, verdict.counted)
    one = given_back(one)._replace(attempts=one.attempts + verdict.counted)
    if state == READY:
        return one
    due = ends.now + verdict.delay
    return one._replace(state=SCHEDULED, due=due, since=ends.now, apart=None)


def take_back_ranges(
    held: Iterable[Range], attempts_max: int, now: float, number: int
) -> tuple[list[Range], list[Range]]:
    """Take back one claim of a dead process.

    In company: again in tenths, each to be claimed alone, uncounted. Alone: one attempt and one death more.

    Args:
        held: The claim's ranges.
        attempts_max: Attempts that an item has.
        now: The time.
        number: As in `Ends`.

    Returns:
        What stands in their place, and those of it that are dead letters.
    """
    found = sorted(held, key=lambda one: (-one.priority, one.due, one.first))
    total = sum(one.count for one in found)
    if total == 1:
        one = given_back(found[0])
        one = one._replace(attempts=one.attempts + 1, deaths=one.deaths + 1, apart=one.first)
        if one.deaths >= DEATHS_MAX or one.attempts >= attempts_max:
            one = ended(one, DEAD, now, None, number)
            return [one], [one]
        return [one], []
    size = -(-total // PARTS)
    new: list[Range] = []
    room, apart, lane = 0, 0, None
    for one in found:
        at, end = one.first, one.first + one.count
        while at < end:
            if not room or one.lane != lane:  # a claim apart never reads a second lane
                room, apart, lane = size, at, one.lane
            count = min(room, end - at)
            new.append(given_back(part(one, at, count))._replace(apart=apart))
            at, room = at + count, room - count
    return new, []


def oldest(found: Iterable[Range], count: int) -> list[tuple[int, int]]:
    """Return the ids of the first so many items of ranges, in their order, as runs."""
    wanted = []
    for one in found:
        taken = min(one.count, count)
        if not taken:
            break
        wanted.append((one.first, one.first + taken - 1))
        count -= taken
    return sorted(wanted)


def group_by_claim(held: Iterable[Range]) -> dict[int | None, list[Range]]:
    """Return ranges by the claim that they are in."""
    found: dict[int | None, list[Range]] = {}
    for one in held:
        found.setdefault(one.claim, []).append(one)
    return found


def only(found: Iterable[Range], queue: int, states: Collection[int]) -> list[Range]:
    """Return those of a queue that are in one of some states."""
    return [one for one in found if one.queue == queue and one.state in states]
