"""``jobs``, ``job`` and ``results``."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from cli_support import beside, run_job, settled, work_off

from microbatch.cli._jobs import _job_lines
from microbatch.durable import DurableBatcher, DurableQueue, JobStatus

if TYPE_CHECKING:
    from pathlib import Path


def waiting_job(path: Path, items: list[Any]) -> str:
    """Make a job that nobody works on."""

    async def run() -> str:
        async with DurableQueue(path, item_type=Any, telemetry=False) as queue:
            return (await queue.enqueue_job(items)).id

    return anyio.run(run)


def test_jobs_are_listed_the_newest_first(path: Path, microbatch: Any) -> None:
    """With how far they are."""
    first, second = run_job(path, [1, 13]), waiting_job(path, [1, 2, 3])
    newest, oldest = microbatch("jobs", path, "--json").objects
    assert (newest["id"], newest["life"], newest["pending"]) == (second, "queued", 3)
    assert (oldest["id"], oldest["outcome"], oldest["fraction"]) == (
        first,
        "partially_succeeded",
        1.0,
    )
    lines = microbatch("jobs", path).out.splitlines()
    assert lines[1].split()[:5] == [second, "queued", "." * 20, "0", "%"]
    assert lines[2].split()[:5] == [first, "partially_succeeded", "#" * 20, "100", "%"]
    assert (
        microbatch("jobs", path, "--limit", 1).err
        == "microbatch: the newest 1; --limit shows more\n"
    )


def test_a_queue_without_jobs_is_no_error(path: Path, microbatch: Any) -> None:
    """An empty list is an answer."""
    work_off(path, [1])
    assert microbatch("jobs", path) == (0, "no jobs\n", "")


def test_a_job_is_paused_resumed_and_cancelled(path: Path, microbatch: Any) -> None:
    """What administration does, and says."""
    uid = waiting_job(path, [1, 2])
    assert microbatch("job", path, uid, "--pause").out.splitlines()[0].endswith(": paused")
    assert microbatch("job", path, uid, "--resume", "--json").object["paused"] is False
    asked = microbatch("job", path, uid, "--cancel")
    assert asked.code == 2
    assert f"cancel 2 items of job {uid}?" in asked.err
    assert microbatch("job", path, uid).out.splitlines()[0].endswith(": queued")
    assert microbatch("job", path, uid, "--cancel", "--yes").code == 0
    ended = microbatch("job", path, uid, "--watch", "--json", "--interval", "0.05")
    assert (ended.code, ended.objects[-1]["outcome"]) == (1, "cancelled")
    assert "the job had ended: nothing was changed" in microbatch("job", path, uid, "--pause").err


def test_a_retry_makes_a_new_job_of_what_may_do_better(path: Path, microbatch: Any) -> None:
    """How many is told before, and an ended job alone can be retried."""
    uid = waiting_job(path, [1])
    running = microbatch("job", path, uid, "--retry", "--yes")
    assert (running.code, "has not ended" in running.err) == (2, True)
    assert microbatch("job", path, uid, "--cancel", "--yes").code == 0
    assert microbatch("job", path, uid, "--watch", "--json", "--interval", "0.05").code == 1
    assert f"retry 1 item of job {uid}?" in microbatch("job", path, uid, "--retry").err
    again = microbatch("job", path, uid, "--retry", "--yes", "--json").object
    assert (again["retry_of"], again["total"]) == (uid, 1)


async def test_a_job_is_watched_until_it_has_ended(
    path: Path, microbatch: Any, anyio_backend: Any
) -> None:
    """While a worker works in another place, and ends with 0 if all went well."""
    async with DurableBatcher(path, settled, item_type=int, telemetry=False) as batcher:
        job = await batcher.enqueue_job([1, 2, 3])
        watch = anyio.to_thread.run_sync
        shown = await watch(
            lambda: microbatch("job", path, job.id, "--watch", "--interval", "0.05")
        )
    assert shown.code == 0
    assert "3 items: 3 succeeded" in shown.out.splitlines()[-1]


def test_an_unknown_job_is_said_in_one_line(path: Path, microbatch: Any) -> None:
    """Exit code 1, whatever is asked of it."""
    work_off(path, [1])
    for arguments in (["job"], ["job", "--pause"], ["results"]):
        shown = microbatch(arguments[0], path, "nope", *arguments[1:])
        assert (shown.code, shown.out) == (1, "")
        assert "has no job 'nope'" in shown.err


def test_results_in_three_formats(path: Path, microbatch: Any) -> None:
    """One outcome an object, or a row; failed ones with code and message."""
    uid = run_job(path, ["a", 13, {"x": 1}])
    lines = microbatch("results", path, uid).objects
    assert [one["kind"] for one in lines] == ["succeeded", "failed", "failed"]
    assert (lines[0]["index"], lines[0]["value"]) == (0, "aa")
    assert lines[1]["error"]["code"] == "unlucky"
    assert json.loads(microbatch("results", path, uid, "--format", "json").out) == lines
    rows = list(csv.reader(microbatch("results", path, uid, "--format", "csv").out.splitlines()))
    assert rows[0] == ["index", "id", "kind", "value", "code", "message"]
    assert [row[2:5] for row in rows[1:]] == [
        ["succeeded", "aa", ""], ["failed", "", "unlucky"], ["failed", "", "internal_error"],
    ]  # fmt: skip
    assert [
        one["index"] for one in microbatch("results", path, uid, "--kind", "failed").objects
    ] == [1, 2]
    assert (
        json.loads(microbatch("results", path, uid, "--kind", "expired", "--format", "json").out)
        == []
    )


def test_a_spreadsheet_gets_no_formula(path: Path, microbatch: Any) -> None:
    """A value that a stranger sent is opened by a colleague."""
    uid = run_job(path, ["=1+", "-", "@a", 1])
    out = microbatch("results", path, uid, "--spreadsheet").out
    assert [row[3] for row in csv.reader(out.splitlines())][1:] == ["'=1+=1+", "'--", "'@a@a", "2"]
    assert microbatch("results", path, uid, "--spreadsheet", "--format", "json").code == 2


def test_an_output_is_whole_or_not_at_all(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there is all of it; the suffix tells the format."""
    uid = run_job(path, [1, 13, 2])
    target = path.with_name("out.csv")
    done = microbatch("results", path, uid, "--output", target)
    assert (done.code, done.out) == (0, "")
    assert len(target.read_text().splitlines()) == 4
    before = beside(path)
    monkeypatch.setattr("microbatch.cli._outcomes.outcome_fields", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        microbatch("results", path, uid, "--output", path.with_name("half.csv"))
    assert beside(path) == before
    monkeypatch.undo()
    refused = microbatch("results", path, uid, "--output", path.parent)
    assert (refused.code, "cannot be written" in refused.err) == (2, True)


def test_an_output_is_never_the_queues_own_file(path: Path, microbatch: Any) -> None:
    """One wrong word would put a report in its place."""
    uid = run_job(path, [1])
    link = path.with_name("link")
    link.symlink_to(path)
    for target in (path, f"{path}-wal", f"{path}-alive", link):
        refused = microbatch("results", path, uid, "--output", target)
        assert (refused.code, "belongs to the queue's file" in refused.err) == (2, True)
    assert microbatch("queues", path, "--json").object["done"] == 1


def test_results_past_their_time_are_said(path: Path, microbatch: Any) -> None:
    """The row is there, its outcomes are not."""
    from cli_support import sql

    uid = run_job(path, [1])
    sql(path, "UPDATE microbatch_jobs SET kept = 0")
    shown = microbatch("results", path, uid)
    assert (shown.code, "past result_ttl" in shown.err) == (1, True)


def test_a_job_that_runs_is_shown_with_its_rate() -> None:
    """And how long it will take."""
    now = datetime.now(UTC)
    status = JobStatus(
        id="x", queue="q", owner="ann", key=None, metadata=None, retry_of=None, life="running", outcome=None,
        paused=False, total=10, succeeded=5, failed=0, skipped=0, cancelled=0, expired=0, errors={},
        created_at=now, started_at=now, ended_at=None, expires_at=None, rate=2.5, eta=2.0,
    )  # fmt: skip
    assert _job_lines(status)[1:] == [
        "  ##########..........  50 %  10 items: 5 succeeded, 5 pending", "  2.5/s, 2 s left", "  owner ann",
    ]  # fmt: skip
