"""Programs of everything that happens to jobs, drawn: the counts add up and the lanes are right after each step."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_model import LIMITS, JobFile, shrink_jobs

from microbatch.durable._file.records import State

WAYS = ["done", "done", "done", "dead", "skipped", "later", "back"]


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_jobs(monkeypatch)


class Program:
    """Draws what happens next, and lets it happen."""

    def __init__(self, data: st.DataObject, folder: Path) -> None:
        self.jobs = JobFile(folder / "q.db")
        self._data = data

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self._data.draw(strategy)

    def run(self) -> None:
        names = [name for name in dir(self) if name.startswith("do_")]
        for _ in range(self.draw(st.integers(1, 30))):
            getattr(self, self.draw(st.sampled_from(names)))()
            self.jobs.check()
        for uid in self.jobs.uids:
            self.jobs.check_pages(uid, self.draw(st.integers(1, 5)))
        self.finish()

    def finish(self) -> None:
        """Let everything end, by whatever way is left: every job must."""
        jobs = self.jobs
        for uid in jobs.uids:
            jobs.file.write(lambda s, uid=uid: s.jobs.pause(jobs.queue, uid, None, paused=False))
        jobs.file.write(lambda s: s.pause(jobs.queue, paused=False))
        for claim in list(jobs.held):
            jobs.settle(claim, ["done"])
        jobs.work_off()
        while jobs.step():
            jobs.check()
        assert jobs.pending() == {}
        assert {row["life"] for row in jobs.rows()} <= {4}
        assert all(row["chore"] is None for row in jobs.rows())
        jobs.file.now += 1_000.0
        for _ in range(100):
            more = jobs.file.write(lambda s: s.jobs.keep(jobs.queue, LIMITS))
            if not (jobs.step() or more):
                break
            jobs.check()
        for table in ("jobs", "job_details", "item_ids"):
            left = jobs.file.raw.execute(f"SELECT count(*) FROM microbatch_{table}").fetchall()
            assert left == [(0,)], table
        assert all(one.job is None for one in jobs.file.ranges())

    # What happens

    def do_job(self) -> None:
        sizes = self.draw(st.lists(st.integers(1, 9), max_size=3))
        total = sum(sizes)
        self.jobs.job(
            sizes,
            self.draw(st.sets(st.integers(0, total - 1), max_size=4)) if total else set(),
            named=self.draw(st.booleans()),
            size=self.draw(st.sampled_from([None, None, 1, 3])),
            ordered=self.draw(st.booleans()),
            priority=self.draw(st.sampled_from([0, 0, 1])),
            delay=self.draw(st.sampled_from([0.0, 0.0, 7.0])),
            max_failures=self.draw(st.sampled_from([None, None, 0, 2])),
            lasts=self.draw(st.sampled_from([None, None, 12.0])),
        )

    do_another_job = do_job

    def do_abandoned_job(self) -> None:
        self.jobs.abandoned_job(self.draw(st.integers(1, 9)))

    def do_enqueue(self) -> None:
        self.jobs.enqueue(self.draw(st.integers(1, 5)), self.draw(st.sampled_from([0, 1])))

    def do_claim(self) -> None:
        self.jobs.claim(
            self.draw(st.integers(0, 1)), self.draw(st.integers(1, 3)), self.draw(st.integers(1, 6))
        )

    do_another_claim = do_claim

    def do_settle(self) -> None:
        if self.jobs.held:
            claim = self.draw(st.sampled_from(sorted(self.jobs.held)))
            ways = self.draw(st.lists(st.sampled_from(WAYS), min_size=1, max_size=4))
            self.jobs.settle(claim, ways)

    do_another_settle = do_settle

    def do_time(self) -> None:
        self.jobs.file.now += self.draw(st.sampled_from([0.5, 6.0, 20.0]))

    def do_step(self) -> None:
        self.jobs.step()

    def do_die(self) -> None:
        self.jobs.die(self.draw(st.integers(0, 1)))

    def _some_job(self) -> str | None:
        uids = self.jobs.uids
        return self.draw(st.sampled_from(uids)) if uids else None

    def do_cancel(self) -> None:
        uid = self._some_job()
        if uid is not None:
            self.jobs.file.write(lambda s: s.jobs.cancel(self.jobs.queue, uid, None))

    def do_pause(self) -> None:
        uid, paused = self._some_job(), self.draw(st.booleans())
        if uid is not None:
            self.jobs.file.write(lambda s: s.jobs.pause(self.jobs.queue, uid, None, paused=paused))

    def do_delete(self) -> None:
        uid = self._some_job()
        if uid is not None:
            self.jobs.file.write(lambda s: s.jobs.delete(self.jobs.queue, uid, None))

    def do_keep(self) -> None:
        self.jobs.file.write(lambda s: s.jobs.keep(self.jobs.queue, LIMITS))

    def do_upkeep(self) -> None:
        jobs = self.jobs
        jobs.file.write(lambda s: s.prune(jobs.queue, LIMITS))
        jobs.file.write(lambda s: s.tidy(jobs.queue))

    def do_items(self) -> None:
        """What is done by hand to single items: cancelled, requeued, purged."""
        ranges = self.jobs.file.ranges()
        if not ranges:
            return
        one = self.draw(st.sampled_from(ranges))
        number = one.first + self.draw(st.integers(0, one.count - 1))
        jobs = self.jobs
        what = self.draw(st.sampled_from(["cancel", "requeue", "purge"]))
        if what == "cancel":
            answer = jobs.file.write(lambda s: s.cancel(jobs.queue, LIMITS, number))
            assert (answer is None) == (one.state == State.STAGED)
        elif what == "requeue":
            count = jobs.file.write(lambda s: s.requeue(jobs.queue, [number]))
            assert count == (one.state == State.DEAD and one.job is None)
        else:
            count = jobs.file.write(lambda s: s.purge(jobs.queue, [number]))
            assert not count or one.job is None

    def do_clock(self) -> None:
        """The clock is set back: what was written then counts from now."""
        self.jobs.file.now -= self.draw(st.sampled_from([3.0, 50.0]))


@pytest.mark.parametrize("lasts", [None, 120.0])
def test_an_ordered_job_keeps_its_order_though_the_clock_is_set_back_in_its_midst(
    tmp_path: Path, lasts: float | None
) -> None:
    """While some of it is staged, and the rest waits for its delay: what comes then comes behind that."""
    jobs = JobFile(tmp_path / "q.db")
    jobs.job([2, 5, 1], {0}, ordered=True, delay=7.0, lasts=lasts)
    jobs.file.now -= 50.0
    jobs.claim(0, 1, 1)
    jobs.work_off()
    assert jobs.pending() == {}
    jobs.file.raw.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_counts_and_lanes_are_right_after_each_step(data: st.DataObject) -> None:
    """Whatever happens in whatever order: a count that is off once stays off for ever."""
    with tempfile.TemporaryDirectory() as folder:
        program = Program(data, Path(folder))
        try:
            program.run()
        finally:
            program.jobs.file.raw.close()
