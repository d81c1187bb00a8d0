"""A file with jobs in it, what can be done to it, and what must hold of it after each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_model import File, shrink

from microbatch.durable._file import job_incoming, job_steps
from microbatch.durable._file.job_life import BUSY, PAUSED, STOPPED, Counts, JobLife, job_outcome
from microbatch.durable._file.job_records import Chunk, NewJob
from microbatch.durable._file.limits import Limits
from microbatch.durable._file.records import (
    ENDED,
    Demand,
    NewItem,
    Range,
    Settlement,
    State,
    Verdict,
)

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = Limits(result_ttl=100.0, job_ttl=300.0, keep_done=3, keep_dead=2)

_PENDING = (State.READY, State.SCHEDULED, State.CLAIMED, State.STAGED)


def shrink_jobs(monkeypatch: Any) -> None:
    """Make every bound small, so that a drawn program meets all of them."""
    shrink(monkeypatch)
    monkeypatch.setattr(job_steps, "STEP", 3)
    monkeypatch.setattr(job_steps, "IDS_STEP", 2)
    monkeypatch.setattr(job_steps, "ITEMS_MAX", 7)
    monkeypatch.setattr(job_incoming, "ITEMS_MAX", 7)
    monkeypatch.setattr(job_incoming, "IDS_TOGETHER", 3)


class JobFile:
    """One queue with jobs, two consumers, and what they have in hand."""

    def __init__(self, path: Path) -> None:
        self.file = File(path)
        self.queue = self.file.write(lambda s: s.queue("q")).id
        self.consumers = [
            self.file.write(lambda s: s.register(self.queue, 1, None)) for _ in range(2)
        ]
        self.claims = 0
        self.held: dict[int, tuple[int, list[Range]]] = {}  # by claim: whose, and what
        self.uids: list[str] = []

    # What can be done

    def job(
        self,
        sizes: list[int],
        refused: set[int],
        *,
        named: bool = False,
        size: int | None = None,
        ordered: bool = False,
        priority: int = 0,
        delay: float = 0.0,
        max_failures: int | None = None,
        lasts: float | None = None,
    ) -> None:
        """Bring a job, in so many chunks."""
        new = NewJob(
            f"job-{len(self.uids)}", priority=priority, delay=delay, batch_size=size, ordered=ordered,
            named=named, max_failures=max_failures, lasts=lasts,
        )  # fmt: skip
        consumer = self.consumers[0]
        begun = self.file.write(lambda s: s.jobs.begin(self.queue, new, consumer, LIMITS))
        at = 0
        for count in sizes:
            chunk = Chunk(
                at,
                [b"x%d" % number for number in range(at, at + count)],
                {n - at: b"bad" for n in refused if at <= n < at + count},
                [f"id {n}" for n in range(at, at + count)] if named else None,
            )
            refusal = self.file.write(
                lambda s, chunk=chunk: s.jobs.stage(
                    self.queue, LIMITS, begun.number, chunk, consumer
                )
            )
            assert refusal is None
            at += count
            self.check()
        self.file.write(lambda s: s.jobs.show(self.queue, begun.number, at, consumer))
        self.uids.append(new.uid)

    def abandoned_job(self, count: int) -> None:
        """Bring a part of a job, and die."""
        consumer = self.file.write(lambda s: s.register(self.queue, 1, None))
        new = NewJob(f"lost-{consumer}", named=True)
        begun = self.file.write(lambda s: s.jobs.begin(self.queue, new, consumer, LIMITS))
        chunk = Chunk(0, [b"y"] * count, {}, [str(n) for n in range(count)])
        self.file.write(lambda s: s.jobs.stage(self.queue, LIMITS, begun.number, chunk, consumer))
        self.check()
        self.file.write(lambda s: s.jobs.abandon_all(consumer))

    def enqueue(self, count: int, priority: int) -> None:
        """Store single items, too."""
        items = [NewItem(b"z", None, priority)] * count
        self.file.write(lambda s: s.enqueue(self.queue, LIMITS, [items], None))

    def claim(self, whose: int, slots: int, size: int) -> None:
        """Take what is next, for some handler calls."""
        consumer, first = self.consumers[whose], self.claims + 1
        self.claims += slots
        before = self.pending()
        demand = Demand(consumer, first, slots, size)
        claims, _ = self.file.write(lambda s: s.claim(self.queue, demand))
        lanes = self.lanes()
        for claim in claims:
            self.held[claim.number] = (whose, claim.ranges)
            numbers = {one.lane for one in claim.ranges}
            assert sum(one.count for one in claim.ranges) <= size
            for lane in numbers - {0}:
                own, ordered = lanes[lane]["size"], lanes[lane]["ordered"]
                if own is None and not ordered:
                    continue
                assert numbers == {lane}
                assert own is None or sum(one.count for one in claim.ranges) <= own
                if ordered:
                    taken = [one.position + n for one in claim.ranges for n in range(one.count)]
                    assert taken == before[lane][: len(taken)]
                    assert sum(lane in {r.lane for r in c.ranges} for c in claims) == 1
            if claim.told is not None:
                self.check_told(claim)

    def check_told(self, claim: Any) -> None:
        uids = dict(self.file.raw.execute("SELECT id, uid FROM microbatch_jobs"))
        flat = [(one.job, one.position, n) for one in claim.ranges for n in range(one.count)]
        assert claim.told.jobs == [uids.get(job) for job, _, _ in flat]
        for index, (job, position, n) in enumerate(flat):
            if claim.told.ids is not None and claim.told.ids[index] is not None:
                assert claim.told.ids[index] == f"id {position + n}", job

    def settle(self, claim: int, ways: list[str]) -> None:
        """Record what became of a claim: one way for each item, in turn."""
        whose, ranges = self.held.pop(claim)
        done, results, verdicts = [], [], []
        states = {
            "dead": State.DEAD, "skipped": State.SKIPPED, "later": State.SCHEDULED, "back": State.READY,
        }  # fmt: skip
        numbers = sorted(n for one in ranges for n in range(one.first, one.first + one.count))
        for index, number in enumerate(numbers):
            way = ways[index % len(ways)]
            if way == "done":
                done.append(number)
                results.append(b"r")
            else:
                state = states[way]
                error = None if way == "back" else b"e"
                verdicts.append(Verdict(number, state, error, 5.0, counted=way != "back", code=way))
        settlement = Settlement(claim, done, results, verdicts)
        self.file.write(lambda s: s.settle(self.queue, LIMITS, self.consumers[whose], [settlement]))

    def die(self, whose: int) -> None:
        """Let a consumer die, and another one take its place."""
        more = True
        while more:
            _, more = self.file.write(lambda s: s.take_back(self.queue, self.consumers[whose], 3))
        self.held = {c: held for c, held in self.held.items() if held[0] != whose}
        self.consumers[whose] = self.file.write(lambda s: s.register(self.queue, 1, None))

    def step(self) -> bool:
        """Do one step of what is left to do; tell whether there was something."""
        needs = self.file.write(lambda s: s.jobs.needs(self.queue))
        if needs.overdue:
            self.file.write(lambda s: s.jobs.expire(self.queue))
        chore = self.file.write(lambda s: s.jobs.chore())
        if chore is not None:
            assert chore[1] == self.queue
            self.file.write(lambda s: s.jobs.step(chore[0]))
        return needs.overdue or chore is not None

    # What is there

    def rows(self) -> list[dict[str, Any]]:
        cursor = self.file.raw.execute("SELECT * FROM microbatch_jobs")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def lanes(self) -> dict[int, dict[str, Any]]:
        cursor = self.file.raw.execute("SELECT * FROM microbatch_lanes")
        names = [column[0] for column in cursor.description]
        found = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return {lane["lane"]: lane for lane in found}

    def pending(self) -> dict[int, list[int]]:
        """Return the places of each job's items that have not ended, in order."""
        found: dict[int, list[int]] = {}
        for one in self.file.ranges():
            if one.job is not None and one.state in _PENDING:
                found.setdefault(one.job, []).extend(range(one.position, one.position + one.count))
        return {job: sorted(places) for job, places in found.items()}

    def work_off(self) -> None:
        """Let time pass, and handle what may begin, until nothing is left or nothing moves any more."""
        for _ in range(300):
            self.file.now += 10.0
            while self.step():
                self.check()
            self.claim(0, 2, 5)
            for claim in list(self.held):
                self.settle(claim, ["done"])
            self.check()
            if not self.pending():
                break

    # What must hold

    def check(self) -> None:
        """Look at everything."""
        ranges = self.file.ranges()
        lanes = self.lanes()
        jobs = {row["id"]: row for row in self.rows()}
        for row in jobs.values():
            self._check_job(row, [one for one in ranges if one.job == row["id"]], lanes)
        assert {one.job for one in ranges} - {None} <= jobs.keys()
        assert lanes.keys() - {0} <= jobs.keys()
        for number, lane in lanes.items():
            ready = [one for one in ranges if one.lane == number and one.state == State.READY]
            first = min(ready, key=lambda one: (-one.priority, one.due, one.first), default=None)
            head = [lane["priority"], lane["due"], lane["first_id"]]
            wanted = [None] * 3 if first is None else [first.priority, first.due, first.first]
            assert head == wanted, number
        self._check_queue(ranges)

    def _check_job(
        self, row: dict[str, Any], ranges: list[Range], lanes: dict[int, dict[str, Any]]
    ) -> None:
        life = JobLife(row["life"])
        counts = {state: sum(o.count for o in ranges if o.state == state) for state in State}
        names = ("succeeded", "failed", "skipped", "cancelled", "expired")
        tally = Counts(*(row[name] for name in names))
        lane = lanes.get(row["id"])
        assert (lane is not None) == (life in (JobLife.QUEUED, JobLife.RUNNING, JobLife.CANCELLING))
        if life in (JobLife.STAGED, JobLife.GOING):
            assert life == JobLife.GOING or {one.state for one in ranges} <= {State.STAGED}
            return
        assert (life == JobLife.ENDED) == (sum(tally) == row["total"])
        assert row["outcome"] == (job_outcome(tally) if life == JobLife.ENDED else None)
        if not row["kept"]:
            return
        assert tally == Counts(
            counts[State.DONE], counts[State.DEAD], counts[State.SKIPPED], counts[State.CANCELLED],
            counts[State.EXPIRED],
        )  # fmt: skip
        assert sum(counts.values()) == row["total"]
        places = sorted(o.position + n for o in ranges for n in range(o.count))
        assert places == list(range(row["total"]))
        if lane is not None:
            self._check_lane(row, counts, ranges, lane)

    @staticmethod
    def _check_lane(
        row: dict[str, Any], counts: dict[State, int], ranges: list[Range], lane: dict[str, Any]
    ) -> None:
        shut = lane["shut"]
        assert bool(lane["open"]) == (shut == 0)
        assert bool(shut & PAUSED) == bool(row["paused"]) or row["life"] == JobLife.CANCELLING
        assert bool(shut & STOPPED) == (row["life"] == JobLife.CANCELLING)
        assert bool(lane["begun"]) == (row["started_at"] is not None)
        if not lane["ordered"]:
            assert not shut & BUSY
            return
        bound = -1 if lane["bound"] is None else lane["bound"]
        waits = any(one.state == State.SCHEDULED and one.position <= bound for one in ranges)
        if counts[State.CLAIMED]:
            assert shut & BUSY
        elif not waits:
            assert not shut & BUSY

    def _check_queue(self, ranges: list[Range]) -> None:
        names = ", ".join(state.name.lower() for state in State)
        ((done, dead, *kept),) = self.file.raw.execute(
            f"SELECT watched_done, watched_dead, {names} FROM microbatch_queues"
        )
        assert kept == [sum(o.count for o in ranges if o.state == state) for state in State]
        watched = [one for one in ranges if one.job is not None]
        assert done == sum(o.count for o in watched if o.state in (State.DONE, State.SKIPPED))
        assert dead == sum(o.count for o in watched if o.state == State.DEAD)

    def check_pages(self, uid: str, limit: int) -> None:
        """Pages of any length together are all that has ended, each once, in order."""
        row = self.file.write(lambda s: s.jobs.status(self.queue, uid, None))
        if row is None:
            return
        ended = sorted(
            (one.position + n, one.state)
            for one in self.file.ranges()
            if one.job == row.number and one.state in ENDED
            for n in range(one.count)
        )
        found, after = [], -1
        while after is not None:
            page = self.file.write(
                lambda s, after=after: s.jobs.page(
                    row.number, bool(row.named), sorted(map(int, ENDED)), after, limit
                )
            )
            assert len(page.items) <= limit
            found += [(item.position, item.state) for item in page.items]
            for item in page.items:
                assert item.id == (f"id {item.position}" if row.named else None)
                assert (item.result is not None) == (item.state == State.DONE)
            after = page.after
        assert found == ended
