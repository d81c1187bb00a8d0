"""``doctor`` on files that were made bad on purpose. Each finding says what it means and what to do."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from cli_support import beside, fill, run_job, settled, sql, work_off

from microbatch.durable import DurableBatcher, DurableQueue, QueueCorrupt

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ["--held", "0", "--interval", "0.01"]


@pytest.fixture(autouse=True)
def good_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine's SQLite has for bugs is the business of one test."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))


def findings(microbatch: Any, path: Path, *arguments: str) -> dict[str, Any]:
    """Return what doctor finds, by check."""
    done = microbatch("doctor", path, "--json", *QUICK, *arguments)
    found = {one["check"]: one for one in done.objects}
    assert len(found) == len(done.objects)
    assert done.code == int(any(one["level"] == "problem" for one in found.values()))
    assert all(one["meaning"] and one["action"] for one in found.values())
    return found


def test_a_healthy_file_has_nothing(path: Path, microbatch: Any) -> None:
    """With done items, keys, jobs and delayed items in it; and nothing of it is changed."""
    work_off(path, [1, 2])
    run_job(path, [3, 4])

    async def more() -> None:
        async with DurableQueue(path, item_type=int, telemetry=False) as queue:
            await queue.enqueue(5, key="k", delay=1000)
            job = await queue.enqueue_job(range(20), delay=1000)
            await job.cancel()

    anyio.run(more)
    before, content = beside(path), path.read_bytes()
    assert microbatch("doctor", path) == (0, "nothing found\n", "")
    assert (beside(path), path.read_bytes()) == (before, content)


def test_counts_that_were_changed_by_hand(path: Path, microbatch: Any) -> None:
    """Of a queue, of a job, and the head of a lane."""
    uid = run_job(path, [1, 2])
    fill(path, [3])
    sql(
        path,
        "UPDATE microbatch_queues SET ready = 7",
        "UPDATE microbatch_jobs SET succeeded = 1",
        "UPDATE microbatch_lanes SET due = 5 WHERE lane = 0",
    )
    message = findings(microbatch, path)["counts"]["message"]
    assert message == (
        "counts do not agree with the items: ready is 7, there are 1; "
        f"job {uid}; the first item of 1 lane"
    )


def test_payloads_and_keys_that_are_gone(path: Path, microbatch: Any) -> None:
    """Rows that somebody deleted."""

    async def make() -> None:
        async with DurableQueue(path, item_type=int, telemetry=False) as queue:
            await queue.enqueue_many(range(10))
            await queue.enqueue(1, key="k")

    anyio.run(make)
    sql(path, "DELETE FROM microbatch_blobs WHERE first_id < 5",
        "UPDATE microbatch_keys SET item = 10000")  # fmt: skip
    found = findings(microbatch, path)
    assert found["payloads"]["message"] == "10 items without a payload"
    assert found["keys"]["message"] == "1 key stands for no item"


def test_a_clock_that_jumped(path: Path, microbatch: Any) -> None:
    """Something was written an hour ahead."""
    fill(path, [1])
    sql(path, f"UPDATE microbatch_ranges SET since = {time.time() + 3600}")
    message = findings(microbatch, path)["clock"]["message"]
    assert re.search(r"written (1 h|5\d min \d+ s) in the future", message)


def test_a_paused_queue(path: Path, microbatch: Any) -> None:
    """A problem if something waits, else a note."""
    fill(path, [1])
    microbatch("pause", path)
    assert findings(microbatch, path)["paused"]["level"] == "problem"
    microbatch("cancel", path, 1, "--yes")
    found = findings(microbatch, path)
    assert found["paused"]["level"] == "note"
    assert "microbatch resume FILE --queue default" in found["paused"]["action"]


def test_dead_letters_by_code(path: Path, microbatch: Any) -> None:
    """Many of one code are one cause."""
    work_off(path, [13, None, 13])
    found = findings(microbatch, path)["dead"]
    assert found["message"] == "3 dead letters: 2 of code unlucky, 1 of code internal_error"
    assert found["action"].endswith("once the cause is mended, requeue or purge")


def test_dead_letters_of_jobs_go_again_with_their_job(path: Path, microbatch: Any) -> None:
    """A requeue leaves them alone: who is told to requeue them is sent the wrong way."""
    job = "retry the job (see microbatch jobs FILE, and job FILE ID --retry)"
    run_job(path, [13, 1, 13])
    assert findings(microbatch, path)["dead"]["action"].endswith(f"once the cause is mended, {job}")
    work_off(path, [13])
    action = findings(microbatch, path)["dead"]["action"]
    assert action.endswith(f"mended, requeue or purge; for the 2 of jobs {job}")


def test_items_that_nobody_works_on(path: Path, microbatch: Any) -> None:
    """The usual reason why nothing happens."""
    fill(path, [1, 2])
    found = findings(microbatch, path)
    assert found["consumers"]["message"] == "2 items are ready, and nobody works on the queue"
    assert found["consumers"]["queue"] == "default"
    assert findings(microbatch, path, "--queue", "default") == found
    assert microbatch("doctor", path, "--queue", "x").code == 2


async def test_a_handler_that_hangs(path: Path, microbatch: Any, anyio_backend: Any) -> None:
    """Seen twice with the same items in its hands, and for long."""
    begun, free = anyio.Event(), anyio.Event()

    async def hangs(items: list[Any]) -> list[Any]:
        begun.set()
        await free.wait()
        return settled(items)

    async with DurableBatcher(path, hangs, item_type=Any, telemetry=False) as batcher:
        await batcher.enqueue_many([1, 2])
        await begun.wait()
        found = findings(microbatch, path)
        patient = microbatch("doctor", path, "--json", "--held", "3600", "--interval", "0.01")
        free.set()
    assert f"process {os.getpid()} holds 2 items, due for" in found["consumers"]["message"]
    assert "handler_timeout" in found["consumers"]["action"]
    assert (patient.code, patient.out) == (0, "")


def test_an_old_sqlite(path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too old, and one with the bug that several processes may meet."""
    fill(path, [1])
    microbatch("cancel", path, 1, "--yes")
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    assert findings(microbatch, path)["sqlite"]["level"] == "note"
    monkeypatch.setattr("microbatch.cli._doctor._pids", lambda _: {1, 2})
    found = findings(microbatch, path)["sqlite"]
    assert (found["level"], "several processes work on it now" in found["meaning"]) == (
        "problem",
        True,
    )
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    assert "is too old: microbatch needs 3.38.0" in findings(microbatch, path)["sqlite"]["message"]
    looked = microbatch("queues", path)
    assert (looked.code, "microbatch needs SQLite 3.38.0" in looked.err) == (3, True)


def test_permissions_that_keep_workers_out_or_let_everybody_in(path: Path, microbatch: Any) -> None:
    """A side file with another mode, a file that all may write, or read."""
    work_off(path, [1])
    path.chmod(0o666)
    path.with_name("shop.db-alive").chmod(0o600)
    shown = microbatch("doctor", path).out
    mine = f"{path.stat().st_uid}:{path.stat().st_gid}"
    assert f"shop.db-alive has owner {mine} and mode 0600, the file {mine} and 0666" in shown
    assert "problem: every user may write the file (mode 0666)" in shown
    assert shown.splitlines()[-1] == "2 problems, 0 notes"
    path.with_name("shop.db-alive").chmod(0o644)
    path.chmod(0o644)
    assert findings(microbatch, path)["permissions"]["level"] == "note"


def test_a_damaged_page(path: Path, microbatch: Any) -> None:
    """What SQLite says of it, and that there is a way to save something."""
    fill(path, [bytes(5000)] * 200)
    size = sql(path, "PRAGMA page_size")[0][0]
    (page,) = sql(path, "SELECT rootpage FROM sqlite_master WHERE name = 'microbatch_blobs'")[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xde\xad\xbe\xef" * 64)
    done = microbatch("doctor", path, "--json", *QUICK)
    found = {one["check"]: one for one in done.objects}
    assert done.code == 1
    assert found["pages"]["message"].startswith("the file is damaged: ")
    assert ".recover" in found["pages"]["action"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microbatch.cli._doctor.page_findings", lambda _: [])
        patch.setattr("microbatch.durable.inspection.checking.lost_payloads", _corrupt)
        assert microbatch("doctor", path, *QUICK).code == 3
        patch.undo()
        patch.setattr("microbatch.durable.inspection.checking.page_faults", _corrupt)
        patch.setattr("microbatch.durable.inspection.checking.lost_payloads", _corrupt)
        assert "the file is damaged: malformed" in microbatch("doctor", path, *QUICK).out


def _corrupt(*_: Any) -> Any:
    raise QueueCorrupt("shop.db", "malformed")


READER = """
import sqlite3, sys
shell = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
shell.execute("BEGIN")
shell.execute("SELECT count(*) FROM microbatch_queues").fetchall()
print("reads", flush=True)
sys.stdin.read()
"""


async def test_a_log_that_cannot_shrink(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch, anyio_backend: Any
) -> None:
    """A shell that somebody left open; the process is named where the system tells of its locks."""
    monkeypatch.setattr("microbatch.cli._findings.LOG_LARGE", 1 << 20)
    async with DurableQueue(path, item_type=bytes, telemetry=False) as queue:
        await queue.enqueue(b"")
        command = [sys.executable, "-c", READER, str(path)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as shell:  # noqa: ASYNC220
            assert shell.stdout is not None
            assert shell.stdout.readline() == b"reads\n"
            await queue.enqueue_many([bytes(50_000)] * 40)
            found = findings(microbatch, path)["log"]
            assert shell.stdin is not None
            shell.stdin.close()
        assert "the write-ahead log has" in found["message"]
        assert f"process {shell.pid} reads an old state of it" in found["message"]


def test_a_log_whose_index_is_not_there_is_still_told(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash may leave a log alone; nobody reads then, and its size says enough."""
    monkeypatch.setattr("microbatch.cli._findings.LOG_LARGE", 0)
    fill(path, [1])
    assert findings(microbatch, path)["log"]["message"].endswith("does not shrink")


WORKER = """
import sys, time
from microbatch.durable import DurableBatcher
import anyio

def held(items):
    print("holds", flush=True)
    time.sleep(100)

async def main():
    async with DurableBatcher(sys.argv[1], held, item_type=int):
        await anyio.sleep(100)

anyio.run(main)
"""


@pytest.mark.slow
def test_a_stopped_worker_and_a_dead_one(path: Path, microbatch: Any) -> None:
    """What SIGSTOP leaves, and what SIGKILL does."""
    fill(path, [1, 2, 3])
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path)], stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"holds\n"
        worker.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)
        found = findings(microbatch, path)["consumers"]
        assert found["message"] == f"process {worker.pid} is stopped, and holds 3 items"
        assert (
            microbatch("stats", path, "--json", "--interval", "0").object["consumers"][0]["stopped"]
            is True
        )
        worker.kill()
    found = findings(microbatch, path)["consumers"]
    assert found["message"] == "3 items held by 1 dead process"


def test_an_old_backlog_beside_a_living_worker_is_a_note(path: Path, microbatch: Any) -> None:
    """Slow is no fault."""
    from microbatch.cli._findings import consumer_findings
    from microbatch.durable import QueueStats
    from microbatch.durable.inspection import ConsumerLook

    stats = QueueStats(5, 0, 0, 0, 0, 0, 400.0, 0, 0, 0, False)
    living = ConsumerLook(1, os.getpid(), True, False, 0, None, None)
    (one,) = consumer_findings("q", stats, {1: [living]}, 60.0, time.time())
    assert (one.level, one.check) == ("note", "age")
    assert one.message == "the oldest item has waited for 6 min 40 s"


def test_a_damaged_schema_is_no_queue(path: Path, microbatch: Any) -> None:
    """Then there is nothing to look at: 3, as from every command."""
    fill(path, [1])
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA user_version = 1")
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 200)
    done = microbatch("doctor", path)
    assert done.code == 3
    assert "malformed" in done.err
