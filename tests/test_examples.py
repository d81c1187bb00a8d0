"""The examples run as a user runs them: by themselves, in an empty folder, and print what they claim."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from examples_support import ENVIRONMENT, EXAMPLES, output_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def postgres_program(name: str) -> str | None:
    """Find a server's program: Debian keeps them out of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(versions[-1]) if versions else None)


def unprivileged() -> dict[str, object]:
    """Whom PostgreSQL runs as: it refuses root."""
    if os.name != "posix" or os.geteuid() != 0:
        return {}
    import pwd

    account = pwd.getpwnam("nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of the test's own, on a free port of loopback, in a folder of its own."""
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL's initdb is not on this machine")
    whom = unprivileged()
    # Not under tmp_path: its parents are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="microbatch-postgres-"))
    try:
        if whom:
            os.chown(folder, whom["user"], whom["group"])
        data = folder / "data"
        subprocess.run(
            [initdb, "-D", data, "-U", "example", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=60, **whom,
        )  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [server, "-D", data, "-k", folder, "-p", str(port), "-c", "listen_addresses=127.0.0.1"],
                cwd=folder, stdout=output, stderr=output, **whom,
            )  # fmt: skip
        try:
            wait_until_ready(process, log)
            yield f"postgresql://example@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # disconnects everybody and stops in order
            process.wait(timeout=20)
    finally:
        shutil.rmtree(folder)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a server in another process; its own log says when."""
    end = time.monotonic() + 30
    while "ready to accept connections" not in (said := log.read_text(errors="replace")):
        assert process.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.05)


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> tuple[Path, str]:
    """The main job, run once: the folder with its file, and what it printed."""
    folder = tmp_path_factory.mktemp("import")
    return folder, output_of("import_airports.py", folder=folder)


def test_the_import_stores_every_row_but_the_broken_ones(imported):
    """The main job, on real data: what it prints and what the file holds must agree."""
    folder, printed = imported
    database = sqlite3.connect(folder / "airports.sqlite")
    stored, intruders = database.execute(
        "SELECT count(*), count(*) FILTER (WHERE icao LIKE 'XX0%') FROM airport"
    ).fetchone()
    database.close()
    assert stored > 28_000
    assert intruders == 0
    assert f"{stored + 5:,} submitted - 5 failed = {stored:,} in airports.sqlite" in printed


def test_the_broken_rows_fail_alone_each_for_its_own_reason(imported):
    """One bad row must not take the rest of its batch with it, and must say what was wrong."""
    reasons = re.findall(r"^  [0-9A-Z]{4}  (.+)$", imported[1], re.MULTILINE)
    assert sorted(reasons) == [
        "CHECK constraint failed: elevation must be a number",
        "CHECK constraint failed: lat must be within 90 degrees",
        "CHECK constraint failed: lon must be within 180 degrees",
        "NOT NULL constraint failed: airport.country",
        "UNIQUE constraint failed: airport.icao",
    ]


def test_the_import_takes_few_transactions_and_says_what_is_extrapolated(imported):
    """The table must not claim what was not measured."""
    lines = imported[1].splitlines()
    batched, sample, extrapolated = (line.replace(",", "").split() for line in lines[1:4])
    assert batched[0] == "batched"
    assert int(batched[2]) < int(batched[1]) / 100
    assert (sample[-8:-6], extrapolated[0]) == (["2000", "2000"], "extrapolated")


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
def test_the_import_shows_its_progress_on_a_terminal(tmp_path):
    """A bar while it runs; the other tests see that a pipe gets none."""
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "import_airports.py")],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while not re.search(rb"\d+%\|.*rows/s", shown):
            shown += os.read(ours, 4096)  # Linux says OSError when the other end is closed
        assert process.poll() is None
    finally:
        process.kill()  # seen is seen: the rest of its work is another test's
        process.wait()
        os.close(ours)


def test_reading_by_id_asks_once_for_many_and_once_for_each_id(postgres, tmp_path):
    """The dataloader case: equal ids share a slot, a missing row fails only who asked for it."""
    printed = output_of("read_by_id.py", postgres, folder=tmp_path)
    alone, batched = printed.splitlines()
    assert alone.split()[3:5] == ["10,000", "queries"]
    assert int(batched.split()[1]) <= 10
    answers = re.findall(r"Counter\((.*)\)", printed)
    assert answers[0] == answers[1]
    assert re.fullmatch(r"{'right': 9\d{3}, 'missing': \d+}", answers[0])


def test_the_web_service_answers_after_the_row_is_written(postgres, tmp_path):
    """Every answered request is a row once the application has been stopped, with and without batching."""
    printed = output_of("serve_inserts.py", postgres, "0.5", folder=tmp_path)
    head, single, batched, counts = printed.splitlines()
    assert head.split() == ["requests/s", "p50", "p99"]
    assert [single.split()[0], batched.split()[0]] == ["/single", "/batched"]
    answered, written = re.fullmatch(
        r"([\d,]+) requests answered, ([\d,]+) rows written", counts
    ).groups()
    assert answered == written


def test_every_example_is_run():
    """An example that nobody runs is soon wrong."""
    tests = "".join(
        path.read_text(encoding="utf-8")
        for path in Path(__file__).parent.rglob("test_examples*.py")
    )
    tested = set(re.findall(r'["/](\w+\.py)"', tests))
    assert {path.name for path in EXAMPLES.glob("*.py")} <= tested
