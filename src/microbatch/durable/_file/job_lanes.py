"""Lanes of jobs, as a claim meets them: what it may take of one, and what is told of what it took."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from . import job_counts, job_sql
from .job_life import Event
from .ranges import spans

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from .records import Range, Step
    from .view import Row, View


class LaneOf(NamedTuple):
    """A job's lane, column by column, but for its place.

    Attributes:
        lane: The job's number.
        size: Items in one handler call at most; None if they share calls with everybody's.
        ordered: Whether it goes one batch at a time.
        bound: Where the batch ends that is under way: nothing beyond it may be taken.
        uid: The job's id.
        named: Whether its items have ids of the client's.
        begun: Whether some of its items were claimed before.
        key: The job's idempotency key; None without one.
    """

    lane: int
    size: int | None
    ordered: int
    bound: int | None
    uid: str
    named: int
    begun: int
    key: str | None

    @property
    def is_own(self) -> bool:
        """Tell whether its items go in calls of their own."""
        return self.size is not None or bool(self.ordered)


def take(
    view: View, row: Row, lanes: Iterable[LaneOf], taken: Sequence[Range]
) -> Generator[Step, Any, None]:
    """Note in lanes and jobs that some of their items were claimed."""
    for lane in lanes:
        mine = [one for one in taken if one.lane == lane.lane]
        if not mine:
            continue
        if lane.ordered:
            last = max((one.position or 0) + one.count - 1 for one in mine)
            values = {"bound": last, "queue": row.id, "lane": lane.lane}
            yield job_sql.BEGIN_BATCH, values, False
        if not lane.begun:
            yield from job_counts.move(view, lane.lane, Event.BEGAN)
            yield job_sql.BEGIN_LANE, (row.id, lane.lane), False


class ToldOfJobs(NamedTuple):
    """What a handler is told of its items, beside themselves: a list with an entry for each.

    Attributes:
        jobs: The ids of their jobs.
        ids: The ids that the clients gave them; None without any.
        ordered: Whether they are of a job that goes one batch at a time.
        keys: The idempotency keys of the jobs that have one, by the jobs' numbers.
    """

    jobs: list[str | None]
    ids: list[str | None] | None
    ordered: bool = False
    keys: Mapping[int, str] = MappingProxyType({})

    def some(self, places: Sequence[int]) -> ToldOfJobs | None:
        """Return what is told of those at some places."""
        jobs = [self.jobs[place] for place in places]
        if jobs.count(None) == len(jobs):
            return None
        ids = None if self.ids is None else [self.ids[place] for place in places]
        return ToldOfJobs(jobs, ids, self.ordered, self.keys)


def told(lanes: dict[int, LaneOf], chosen: Sequence[Range]) -> Generator[Step, Any, ToldOfJobs]:
    """Return what is told of claimed items, of which at least one is of a job."""
    jobs: list[str | None] = []
    named: dict[int, list[Range]] = {}
    for one in chosen:
        lane = lanes.get(one.lane)
        jobs += [None if lane is None else lane.uid] * one.count
        if lane is not None and lane.named:
            named.setdefault(one.lane, []).append(one)
    first = lanes.get(chosen[0].lane)
    ordered = first is not None and bool(first.ordered)
    keys = {lane.lane: lane.key for lane in lanes.values() if lane.key is not None}
    if not named:
        return ToldOfJobs(jobs, None, ordered, keys)
    known = {}
    for job, found in named.items():
        known[job] = yield from client_ids(job, found)
    ids: list[str | None] = []
    for one in chosen:
        mine = known.get(one.lane)
        at = one.position or 0
        ids += [None] * one.count if mine is None else [mine.get(at + n) for n in range(one.count)]
    return ToldOfJobs(jobs, ids, ordered, keys)


def client_ids(job: int, found: Sequence[Range]) -> Generator[Step, Any, dict[int, str]]:
    """Return the client's ids of some items of a job, by place."""
    places = spans(one._replace(first=one.position or 0) for one in found)
    known: dict[int, str] = {}
    for first, ids in (yield job_sql.IDS_OF, (json.dumps(places), job), False):
        known.update(enumerate(json.loads(ids), first))
    return known
