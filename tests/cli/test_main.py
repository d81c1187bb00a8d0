"""The command as a whole: help, exit codes, pipes, what it may do to a file that it only reads."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli_support import beside, fill, make_shop, sql

from microbatch.cli._main import _part_with_threads, make_parser
from microbatch.cli._table import COMMANDS

READING = ["queues", "stats", "items", "dead", "jobs", "doctor"]
NAMES = [command.name for command in COMMANDS]

#: What the examples of the help find in their folder, beside what the fixture `shop` puts there.
MORE = """
def count(items):
    return [None] * len(items)
"""


def run(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "microbatch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if one.name != "ui"], ids=lambda c: c.name
)
def test_the_example_in_the_help_works(
    command: Any, path: Path, microbatch: Any, shop: Any
) -> None:
    """What a newcomer copies. A job's id is the one that `jobs` lists."""
    job = make_shop(path)
    Path("orders.csv").write_text("number,name\n1,tea\n")
    with Path("shop.py").open("a") as file:
        file.write(MORE)
    shown = microbatch(command.name, "--help")
    assert shown.code == 0
    (line,) = [one.strip() for one in shown.out.splitlines() if one.startswith("  $ ")]
    name, *arguments = shlex.split(line.removeprefix("$ "))
    assert name == "microbatch"
    done = microbatch(*(job if one == "JOB" else one for one in arguments))
    assert done.code == (1 if command.name == "doctor" else 0), done.err
    assert done.out or command.name == "results"


def test_help_lists_every_command(microbatch: Any) -> None:
    """One screen, and the exit codes."""
    out = microbatch("--help").out
    assert all(f"\n    {name} " in out for name in NAMES)
    assert "Exit codes: 0 done; 1 items failed" in out
    assert microbatch("--version").out.startswith("microbatch ")
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nope"],
        ["queues"],
        ["items", "x", "--limit", "0"],
        ["queues", ""],
        ["stats", "x", "--interval", "1e300"],
        ["stats", "x", "--interval", "nan"],
        ["stats", "x", "--watch", "--interval", "0"],
    ],
)
def test_wrong_use_ends_with_2(microbatch: Any, arguments: list[str]) -> None:
    """Before anything is opened."""
    assert microbatch(*arguments).code == 2


@pytest.mark.parametrize("name", [one for one in NAMES if one not in ("import", "bench", "ui")])
def test_a_file_that_is_no_queues_ends_with_3(microbatch: Any, path: Path, name: str) -> None:
    """Missing, empty, no SQLite file, without our tables, a folder, another version's: said in one line, never made."""
    more = {"show": ["1"], "cancel": ["1"], "requeue": ["--all"], "purge": ["--state=done"], "job": ["x"],
            "results": ["x"], "backup": [str(path.with_name("copy.db"))]}.get(name, [])  # fmt: skip
    text, other, newer, older, twice = (path.with_name(f"{one}.db") for one in "tonbx")
    text.write_text("no database, but a text that is long enough to be read as one" * 20)
    for file, version in ((other, None), (newer, 99), (older, 1)):
        with closing(sqlite3.connect(file)) as raw:
            raw.execute("CREATE TABLE notes (x)" if version is None else
                        "CREATE TABLE microbatch_schema (version INTEGER, last_id INTEGER)")  # fmt: skip
            if version:
                raw.execute("INSERT INTO microbatch_schema VALUES (?, 1)", (version,))
            raw.commit()
    fill(twice, [1])
    path.with_name("link.db").hardlink_to(twice)
    wrong = {
        path: "there is no such file", text: "file is not a database", other: "it has no tables of microbatch",
        newer: "upgrade it", older: "let a worker of this version open it once", path.parent: "it is a directory",
        twice: "it has 2 names (hard links)", Path("/dev/null"): "it is no regular file",
    }  # fmt: skip
    before = beside(path)
    for file, reason in wrong.items():
        done = microbatch(name, file, *more)
        assert (done.code, done.out) == (3, "")
        assert reason in done.err
        assert done.err.count("\n") == 1
    assert beside(path) == before


def test_a_locked_file_ends_with_3(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has it for himself."""
    monkeypatch.setattr("microbatch.durable._file.looking.LOOK_TIMEOUT", 0.01)
    fill(path, [1])
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("PRAGMA locking_mode = EXCLUSIVE")
        raw.execute("BEGIN EXCLUSIVE")
        done = microbatch("queues", path)
    assert (done.code, "database is locked" in done.err) == (3, True)


@pytest.mark.parametrize("name", READING)
def test_a_reading_command_leaves_the_file_as_it_was(
    path: Path, microbatch: Any, name: str
) -> None:
    """With a log of a process that died, too: it is read, and neither moved into the file nor removed."""
    fill(path, [1, 2])
    copy = path.with_name("copy.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("UPDATE microbatch_queues SET paused = 1")
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    log = copy.with_name("copy.db-wal")
    assert log.stat().st_size > 0
    before, content = beside(path), (copy.read_bytes(), log.read_bytes())
    assert microbatch(name, copy).code in (0, 1)
    assert microbatch("queues", copy, "--json").object["paused"] is True
    assert (beside(path), (copy.read_bytes(), log.read_bytes())) == (before, content)


def test_two_who_look_at_once_leave_nothing_either(path: Path, microbatch: Any) -> None:
    """The first to leave may not take the other's files away."""
    from microbatch.durable.inspection import Inspection

    fill(path, [1])
    before = beside(path)
    with Inspection(path) as first:
        with Inspection(path) as second:
            assert second.queues() == first.queues()
        assert beside(path) > before
        assert first.stats("default").ready == 1
        first.close()
    assert microbatch("queues", path).code == 0
    assert beside(path) == before


#: All is imported before it becomes somebody who may not read where it is installed.
AS_NOBODY = """
import os, sys
import anyio
from microbatch.cli import main

anyio.run(anyio.sleep, 0)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


def run_as_nobody(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", AS_NOBODY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.slow
def test_a_folder_that_cannot_be_written() -> None:
    """A file without a log is read as it stands, with a note; with one it cannot be. Writing is refused."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "shop.db"
        fill(path, [1, 2])
        path.chmod(0o644)
        for one in folder.iterdir():
            one.chmod(0o644)
        before = beside(path)
        looked = run_as_nobody("queues", path, "--json")
        assert looked.returncode == 0
        assert '"ready":2' in looked.stdout
        assert (
            looked.stderr
            == f"microbatch: {path} cannot be written by this user: it is read as it stands\n"
        )
        doctor = run_as_nobody("doctor", path)
        assert "note: this user may not write here" in doctor.stdout
        refused = run_as_nobody("pause", path)
        assert (refused.returncode, refused.stdout) == (3, "")
        assert beside(path) == before
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("UPDATE microbatch_queues SET paused = 1")
            cannot = run_as_nobody("queues", path)
        assert cannot.returncode == 3
        assert "the log beside it (-wal) cannot be read" in cannot.stderr


def test_a_reader_that_leaves_early_is_no_error(path: Path) -> None:
    """`| head` has seen what it wanted."""
    fill(path, [bytes(200)] * 3000)
    command = [sys.executable, "-m", "microbatch", "items", str(path), "--limit", "3000", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"id":1,')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_the_module_is_the_command_and_puts_the_working_folder_first(
    shop: Any, tmp_path: Path
) -> None:
    """`python -m microbatch`, in a folder of the user's."""
    Path("orders.csv").write_text("number\n1\n")
    done = run("import", "orders.csv", "--handler", "shop:save", "--json")
    assert (done.returncode, '"succeeded":1' in done.stdout, done.stderr) == (0, True, "")


@pytest.mark.slow
def test_watching_ends_by_ctrl_c(path: Path) -> None:
    """A view in place on a terminal, lines one after the other in a pipe."""
    fill(path, [1])
    command = [
        sys.executable,
        "-m",
        "microbatch",
        "stats",
        str(path),
        "--watch",
        "--interval",
        "0.05",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline().startswith(b'{"queue":"default"')
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"microbatch: interrupted\n")
    assert not path.with_name("shop.db-wal").exists()


def test_nothing_of_a_file_is_imported_or_unpickled(path: Path, microbatch: Any) -> None:
    """A queue's file may come from anybody."""
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return os._exit, (1,)

    fill(path, [pickle.dumps(Evil())])
    sql(path, "UPDATE microbatch_ranges SET key = 'os:_exit'")
    for name in READING:
        assert microbatch(name, path).code in (0, 1)


def test_the_parser_takes_no_abbreviations(microbatch: Any, path: Path) -> None:
    """A script that says --ye must not purge once there is an option of that name."""
    fill(path, [1])
    assert microbatch("purge", path, "--state", "done", "--ye").code == 2
    assert make_parser().prog == "microbatch"


def test_sigterm_ends_it_as_ctrl_c_does(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a supervisor sends, also where Ctrl-C is ignored; the code says which it was."""
    fill(path, [1])
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.getsignal(signal.SIGINT)
    ignored, usual = signal.SIG_IGN, signal.default_int_handler
    try:
        for number, handler, code in (
            (signal.SIGTERM, ignored, 143),
            (signal.SIGTERM, usual, 143),
            (signal.SIGINT, usual, 130),
        ):
            signal.signal(signal.SIGINT, handler)
            monkeypatch.setattr(
                "microbatch.cli._queues.time.sleep",
                lambda _, number=number: signal.raise_signal(number),
            )
            assert microbatch("stats", path, "--queue", "default").code == code
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_broken_pipe_is_the_end_of_it(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where stdout has no number."""
    fill(path, [1])

    def gone(*_: Any) -> Any:
        raise BrokenPipeError

    monkeypatch.setattr("microbatch.cli._console.Console.line", gone)
    assert microbatch("items", path) == (0, "", "")


def test_a_file_that_cannot_be_written_is_read_with_a_note(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a subprocess of another user shows too."""
    fill(path, [1])
    monkeypatch.setattr("microbatch.durable._file.looking.os.access", lambda *_: False)
    looked = microbatch("queues", path, "--json")
    assert looked.object["ready"] == 1
    assert "it is read as it stands" in looked.err
    assert "this user may not write here" in microbatch("doctor", path).out
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("UPDATE microbatch_queues SET paused = 1")
        refused = microbatch("queues", path)
    assert (refused.code, "(-wal) cannot be read" in refused.err) == (3, True)
    monkeypatch.setattr("microbatch.durable._file.looking.schema.SQLITE_MINIMUM", (99, 0, 0))
    assert microbatch("stats", path, "--interval", "-1").code == 2


def test_a_call_that_does_not_end_is_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain handler's thread cannot be cancelled, and the interpreter would wait for it for ever."""
    codes: list[int] = []
    free = threading.Event()
    monkeypatch.setattr("microbatch.cli._main.os._exit", codes.append)
    monkeypatch.setattr("microbatch.cli._main.LEFT_FOR_CALLS", 0.01)
    before = set(threading.enumerate())
    hangs = threading.Thread(target=free.wait)
    hangs.start()
    _part_with_threads(before | {hangs}, 130)
    assert codes == []
    _part_with_threads(before, 130)
    assert codes == [130]
    assert capsys.readouterr().err == "microbatch: a call of the handler does not end: cut off\n"
    free.set()
    hangs.join()
    _part_with_threads(before, 130)
    assert codes == [130]


@pytest.mark.slow
def test_ctrl_c_ends_a_handler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, while nobody presses it twice."""
    monkeypatch.chdir(tmp_path)
    Path("hangs.py").write_text(
        "import time\n\ndef save(rows):\n    print('held', flush=True)\n    time.sleep(1000)\n"
    )
    Path("o.csv").write_text("a\n1\n")
    command = [sys.executable, "-m", "microbatch", "import", "o.csv", "--handler", "hangs:save"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count(b"Traceback")) == (130, 0)
    assert err.endswith(b"does not end: cut off\n")
