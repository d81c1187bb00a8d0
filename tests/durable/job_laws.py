"""What must hold of jobs in a file, whatever was done before: see job_programs.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from job_looks import ENDS, check_open, lives_after

from microbatch.durable._file.records import ENDED, Range, State

if TYPE_CHECKING:
    from session_model import File


class JobLaws:
    """Looks at a file after each transaction, and remembers what may not change any more."""

    file: File

    def start_laws(self) -> None:
        """Begin to remember."""
        self.lives: dict[int, int] = {}
        self.ends: dict[int, tuple[Any, ...]] = {}
        self.changes: dict[int, int] = {}
        self.item_ends: dict[tuple[int, int], int] = {}
        self.told: set[str] = set()
        self.begun: set[tuple[int, int]] = set()
        self.copied: dict[int, tuple[int, list[int]]] = {}

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.file.raw.execute(sql, values).fetchall()

    # What must hold

    def check(self) -> None:
        """Look at everything, as any process may at any time."""
        assert check_open(self.file.raw) == []
        self._check_jobs()
        self._check_items()
        self._check_queues()

    def _check_jobs(self) -> None:
        rows = self.rows(
            f"""SELECT j.id, uid, life, changes, outcome, tell_at, total, kept, errors, {", ".join(ENDS)}
            FROM microbatch_jobs AS j JOIN microbatch_job_details ON job = j.id"""
        )
        lives = {row[0]: row[2] for row in rows}
        for job, before in self.lives.items():
            after = lives.get(job)
            assert after in lives_after(before) or after == before, (job, before, after)
        for job, uid, life, changes, outcome, tell_at, total, _, errors, *ends in rows:
            assert changes >= self.changes.get(job, 0)
            self.changes[job] = changes
            counted = json.loads(errors)
            assert sum(counted.values()) == ends[1] + ends[2]
            if life in (4, 5) and outcome is not None:
                how = (outcome, total, errors, *ends)
                assert self.ends.setdefault(job, how) == how, "it ends once"
            if life == 4:
                assert (tell_at is None) == (uid in self.told), "its end is told of, and once"
        self.lives = lives

    def _check_items(self) -> None:
        ranges = self.file.ranges()
        seen: set[tuple[int, int]] = set()
        ends: dict[tuple[int, int], int] = {}
        for one in ranges:
            if one.job is None:
                continue
            for n in range(one.count):
                place = (one.job, (one.position or 0) + n)
                assert place not in seen
                seen.add(place)
                if one.state in ENDED:
                    ends[place] = one.state
        for place, state in self.item_ends.items():
            assert ends.get(place, state) == state, "an item ends once"
            assert place not in seen or place in ends
        self.item_ends = ends
        content = self.file.values("blobs", "payloads")
        for one in ranges:
            if one.state in (State.DONE, State.SKIPPED):
                continue
            for number in range(one.first, one.first + one.count):
                assert content[number] != b"(dropped)"

    def _check_queues(self) -> None:
        ranges = self.file.ranges()
        for queue, done, dead in self.rows(
            "SELECT id, watched_done, watched_dead FROM microbatch_queues"
        ):
            mine = [one for one in ranges if one.queue == queue and one.job is not None]
            assert done == sum(
                one.count for one in mine if one.state in (State.DONE, State.SKIPPED)
            )
            assert dead == sum(one.count for one in mine if one.state == State.DEAD)
        self._check_counts(ranges)
        for queue, lane, *head in self.rows(
            "SELECT queue, lane, priority, due, first_id FROM microbatch_lanes"
        ):
            ready = [
                one
                for one in ranges
                if one.state == State.READY and (one.queue, one.lane) == (queue, lane)
            ]
            first = min(ready, key=lambda one: (-one.priority, one.due, one.first), default=None)
            assert head == (
                [None] * 3 if first is None else [first.priority, first.due, first.first]
            )

    def _check_counts(self, ranges: list[Range]) -> None:
        names = "ready, scheduled, claimed, done, skipped, cancelled, expired, dead, staged"
        for queue, *counts in self.rows(f"SELECT id, {names} FROM microbatch_queues"):
            mine = [one for one in ranges if one.queue == queue]
            assert counts == [sum(o.count for o in mine if o.state == s) for s in range(9)]

    # Claims

    def _check_claim(
        self, claim: Any, jobs: dict[int, tuple[Any, ...]], held: set[int], size: int
    ) -> None:
        assert sum(one.count for one in claim.ranges) == len(claim.payloads) <= size
        found = {one.job for one in claim.ranges}
        at = 0
        for one in claim.ranges:
            for place in range(one.count):
                payload = claim.payloads[at + place]
                if one.job is None:
                    assert payload == b"single"
                    assert claim.told is None or claim.told.jobs[at + place] is None
                    continue
                assert payload == b"%d.%d" % self._origin(one.job, one.position + place)
                assert claim.told.jobs[at + place] == jobs[one.job][5]
                if jobs[one.job][6]:
                    origin = self._origin(one.job, one.position + place)[1]
                    assert claim.told.ids[at + place] == f"id {origin}"
            at += one.count
        for job in found - {None}:
            life, paused, deadline, batch_size, ordered, *_ = jobs[job]
            assert life in (1, 2), "nothing of a stopped job begins"
            assert not paused
            assert deadline is None or deadline > self.file.now
            assert job not in held
            if batch_size is not None or ordered:
                assert found == {job}
                assert len(claim.payloads) <= (batch_size or size)
            if ordered:
                self._check_order(job, claim)

    def _check_order(self, job: int, claim: Any) -> None:
        """Nothing begins for the first time before all that stands before it has ended, or comes with it."""
        mine = [one.position + n for one in claim.ranges for n in range(one.count)]
        assert mine == sorted(mine) or self.begun.issuperset((job, place) for place in mine)
        fresh = [place for place in mine if (job, place) not in self.begun]
        self.begun.update((job, place) for place in mine)
        ((others,),) = self.rows(
            "SELECT count(*) FROM microbatch_ranges WHERE job = ? AND state = 2 AND claim <> ?",
            job, claim.number,
        )  # fmt: skip
        assert not others, "one batch at a time"
        assert len(fresh) in (0, len(mine)), "what is left of a batch goes alone"
        if fresh:
            ((before,),) = self.rows(
                """SELECT count(*) FROM microbatch_ranges WHERE job = ? AND position < ?
                AND state IN (0, 1, 8)""",
                job, fresh[-1],
            )  # fmt: skip
            assert not before, "in order"

    def _origin(self, job: int, position: int) -> tuple[int, int]:
        """Return where an item came from: its first job, and its place there."""
        while job in self.copied:
            job, positions = self.copied[job]
            position = positions[position] if positions else position
        return job, position
