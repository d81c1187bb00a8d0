"""``import --durable``: a job that goes on where a kill left it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from cli_support import fill, sql

pytestmark = pytest.mark.usefixtures("shop")

ARGUMENTS = ["orders.csv", "--handler", "shop:save", "--type", "shop:Order", "--durable", "work.db"]


def orders(numbers: list[Any]) -> None:
    Path("orders.csv").write_text("number,name\n" + "".join(f"{n},tea\n" for n in numbers))


def jobs(microbatch: Any) -> list[Any]:
    found: list[Any] = microbatch("jobs", "work.db", "--queue", "import", "--json").objects
    return found


def test_an_import_through_a_file_is_a_job(microbatch: Any, shop: Any) -> None:
    """Typed items, bad rows in their places, failed rows as they stand in the source."""
    orders([1, 13, "x", 3])
    done = microbatch("import", *ARGUMENTS, "--failed", "f.ndjson", "--json")
    fields = done.object
    assert done.code == 1
    assert (fields["rows"], fields["succeeded"], fields["failed"]) == (4, 2, 2)
    assert fields["errors"] == {"unlucky": 1, "invalid_item": 1}
    rows = [json.loads(line) for line in Path("f.ndjson").read_text().splitlines()]
    assert [(row["number"], row["microbatch_index"], row["microbatch_code"]) for row in rows] == [
        ("13", 1, "unlucky"), ("x", 2, "bad_row"),
    ]  # fmt: skip
    assert rows[0]["microbatch_error"] == "thirteen is refused"
    assert [type(one).__name__ for one in shop().calls[0]] == ["Order"] * 3
    made_by = jobs(microbatch)[0]["metadata"]
    assert len(made_by.pop("content")) == 64
    assert made_by == {"handler": "shop:save", "type": "shop:Order"}


def test_what_was_imported_is_not_imported_again(
    microbatch: Any, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and gives the same exit code; --again makes a new one."""
    monkeypatch.setattr("microbatch.cli._import_durable._JOBS_READ", 1)
    orders([1, 13])
    first = microbatch("import", *ARGUMENTS, "--json")
    calls = len(shop().calls)
    again = microbatch("import", *ARGUMENTS, "--json", "--failed", "f.csv")
    assert (
        (again.code, again.object["job"])
        == (first.code, first.object["job"])
        == (1, first.object["job"])
    )
    assert "has imported this before: --again imports it once more" in again.err
    assert Path("f.csv").read_text().splitlines()[1] == "13,tea,1,unlucky,thirteen is refused"
    assert len(shop().calls) == calls
    for number in (2, 3):
        assert (
            microbatch("import", *ARGUMENTS, "--again", "--json").object["job"]
            != first.object["job"]
        )
        assert len(jobs(microbatch)) == number
    assert microbatch("import", *ARGUMENTS, "--json").object["job"] == jobs(microbatch)[0]["id"]
    orders([1, 2])
    assert microbatch("import", *ARGUMENTS).code == 0
    assert len(jobs(microbatch)) == 4


def test_a_key_stands_for_one_content(microbatch: Any) -> None:
    """Another file under the same key is a mistake."""
    orders([1])
    assert microbatch("import", *ARGUMENTS, "--key", "monday").code == 0
    orders([2])
    refused = microbatch("import", *ARGUMENTS, "--key", "monday")
    assert refused.code == 2
    assert "key 'monday' stands for another content, handler or type" in refused.err
    again = microbatch("import", *ARGUMENTS, "--key", "monday", "--again")
    assert again.code == 0
    assert [one["key"] for one in jobs(microbatch)] == ["monday#2", "monday"]


def test_another_handlers_import_is_not_touched(microbatch: Any, shop: Any) -> None:
    """A worker of this handler would take its rows."""
    orders([1, 2])
    stopped = microbatch("import", *ARGUMENTS[:1], "--handler", "shop:stop", "--durable", "work.db",
                         "--chunk-size", 1, "--concurrency", 1)  # fmt: skip
    assert stopped.code == 130
    assert "the same command goes on with job" in stopped.err
    refused = microbatch("import", *ARGUMENTS)
    assert refused.code == 2
    assert "is an import with handler 'shop:stop' that has not ended" in refused.err
    (job,) = jobs(microbatch)
    assert (job["life"], job["total"]) == ("running", 2)
    shop().calls.append(None)
    again = microbatch(
        "import", *ARGUMENTS[:1], "--handler", "shop:stop", "--durable", "work.db", "--again"
    )
    assert (again.code, "has not ended: go on with it without --again" in again.err) == (2, True)
    went_on = microbatch(
        "import", *ARGUMENTS[:1], "--handler", "shop:stop", "--durable", "work.db", "--json"
    )
    assert (went_on.code, went_on.object["succeeded"]) == (0, 2)
    assert f"goes on with job {job['id']}" in went_on.err


def test_a_source_that_breaks_off_leaves_nothing(microbatch: Any) -> None:
    """Whole or not at all."""
    Path("o.json").write_text('[{"number": 1}, {"number": 2')
    done = microbatch("import", "o.json", "--handler", "shop:save", "--durable", "work.db")
    assert done.code == 1
    assert "cannot be read to its end, so nothing was stored" in done.err
    assert jobs(microbatch) == []


def test_items_of_others_are_not_handled(microbatch: Any, shop: Any) -> None:
    """An application may have a queue of this name in its file."""
    fill(Path("work.db"), [1], queue="import")
    orders([2])
    refused = microbatch("import", *ARGUMENTS)
    assert (refused.code, "that are no import's" in refused.err) == (2, True)
    assert shop().calls == []
    assert microbatch("items", "work.db", "--json").object["state"] == "ready"


def test_an_earlier_import_that_goes_on_too_is_said(microbatch: Any, shop: Any) -> None:
    """The file was changed after a kill: it is another import, and the rest of the first one is not forgotten."""
    orders([1, 2])
    arguments = ["orders.csv", "--handler", "shop:stop", "--durable", "work.db", "--chunk-size", 1,
                 "--concurrency", 1]  # fmt: skip
    assert microbatch("import", *arguments).code == 130
    shop().calls.append(None)
    orders([3])
    done = microbatch("import", *arguments, "--json")
    assert (done.code, done.object["rows"]) == (0, 1)
    (first,) = [one for one in jobs(microbatch) if one["total"] == 2]
    assert f"job {first['id']}, an earlier import, has not ended" in done.err
    assert "1 row of it are handled too" in done.err.replace("2 rows", "1 row")


def test_a_pause_is_said(microbatch: Any, shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would happen, and nobody would know why."""
    orders([1, 2])
    arguments = ["orders.csv", "--handler", "shop:stop", "--durable", "work.db", "--chunk-size", 1,
                 "--concurrency", 1]  # fmt: skip
    assert microbatch("import", *arguments).code == 130
    (job,) = jobs(microbatch)
    assert microbatch("job", "work.db", job["id"], "--pause").code == 0
    assert microbatch("pause", "work.db").code == 0

    async def seen(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("microbatch.cli._import_durable.DurableImport._watched", seen)
    shown = microbatch("import", *arguments)
    assert (
        "the queue is paused, and nothing begins until it is resumed: microbatch resume"
        in shown.err
    )
    assert f"microbatch job work.db {job['id']} --queue import --resume" in shown.err


def test_what_goes_wrong_later_does_not_say_that_nothing_was_stored(
    microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it was handled by then."""
    orders([13])

    async def gone(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("microbatch.cli._import_durable.DurableImport._keep_failed", gone)
    with pytest.raises(OSError, match="Input/output"):
        microbatch("import", *ARGUMENTS)
    assert jobs(microbatch)[0]["life"] == "ended"


def test_an_interruption_while_it_reads_says_so(
    microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it was stored."""

    async def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    orders([1])
    monkeypatch.setattr("microbatch.cli._import_durable.DurableImport._stored", interrupted)
    stopped = microbatch("import", *ARGUMENTS)
    assert stopped.code == 130
    assert "interrupted while reading: nothing was stored" in stopped.err


def test_failed_rows_of_a_source_that_has_become_shorter(microbatch: Any) -> None:
    """Those that are there are written; with a key of the user's the summary tells of all, by code."""
    orders([13, 1, 13])
    first = microbatch("import", *ARGUMENTS, "--key", "k")
    assert first.out.splitlines()[1:] == ["  2 rows of code unlucky"]
    sql(Path("work.db"), "UPDATE microbatch_job_details SET metadata = NULL")
    orders([13])
    assert microbatch("import", *ARGUMENTS, "--key", "k", "--failed", "f.csv").code == 1
    assert len(Path("f.csv").read_text().splitlines()) == 2


def test_stdin_is_imported_by_a_key(microbatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be read once, so nothing but the key tells one import from another."""
    orders([1, 2])
    monkeypatch.setattr(
        "microbatch.cli._import_source.Path",
        lambda name: Path("orders.csv" if name == "/dev/stdin" else name),
    )
    arguments = ["-", "--format", "csv", *ARGUMENTS[1:], "--key", "k", "--json"]
    assert microbatch("import", *arguments).object["succeeded"] == 2
    assert "has imported this before" in microbatch("import", *arguments).err


SLOW = """
import os, pathlib, time

def save(rows):
    with open("calls.txt", "a") as file:
        file.write(f"{len(rows)}\\n")
    if pathlib.Path("hold").exists():
        open("held", "w").close()
        time.sleep(60)
"""


def wait_for(process: subprocess.Popen[Any], path: Path) -> None:
    """Wait until a process has made a file."""
    while not path.exists():
        assert process.poll() is None
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue


def started(*arguments: str, stdin: Any = None) -> subprocess.Popen[Any]:
    command = [sys.executable, "-m", "microbatch", "import", *arguments]
    return subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_kill_while_it_reads_and_one_while_it_handles(microbatch: Any) -> None:
    """The first leaves nothing that anybody sees; after the second it goes on where it was."""
    Path("slow.py").write_text(textwrap.dedent(SLOW))
    arguments = ["--format", "ndjson", "--handler", "slow:save", "--durable", "work.db", "--key", "k",
                 "--chunk-size", "10", "--concurrency", "1"]  # fmt: skip
    reads = started("-", *arguments, stdin=subprocess.PIPE)
    assert reads.stdin is not None
    reads.stdin.write('{"a": 1}\n' * 30_000)
    reads.stdin.flush()
    wait_for(reads, Path("work.db-alive"))
    reads.send_signal(signal.SIGKILL)
    reads.communicate()
    assert jobs(microbatch) == []
    Path("rows.ndjson").write_text('{"a": 1}\n' * 100)
    Path("hold").touch()
    handles = started("rows.ndjson", *arguments)
    wait_for(handles, Path("held"))
    handles.send_signal(signal.SIGKILL)
    handles.communicate()
    (job,) = jobs(microbatch)
    assert (job["life"], job["total"], job["pending"]) == ("running", 100, 100)
    Path("hold").unlink()
    goes_on = started("rows.ndjson", *arguments, "--json")
    out, err = goes_on.communicate(timeout=60)
    assert goes_on.returncode == 0
    assert json.loads(out)["job"] == job["id"]
    assert json.loads(out)["succeeded"] == 100
    assert f"goes on with job {job['id']}: 0 of 100 rows are done" in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_process_gives_back_what_it_had(
    microbatch: Any, number: int, code: int
) -> None:
    """Ctrl-C, and what a supervisor sends."""
    Path("slow.py").write_text(textwrap.dedent(SLOW).replace("def save", "async def save").replace(
        "time.sleep(60)", "import anyio; await anyio.sleep(60)"))  # fmt: skip
    Path("rows.ndjson").write_text('{"a": 1}\n' * 5)
    Path("hold").touch()
    process = started("rows.ndjson", "--handler", "slow:save", "--durable", "work.db")
    wait_for(process, Path("held"))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "interrupted: 0 of 5 rows are done; the same command goes on with job" in err
    queue = microbatch("queues", "work.db", "--json").object
    assert (queue["ready"], queue["claimed"]) == (5, 0)
