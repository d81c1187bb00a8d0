"""How things are shown: on a terminal with rich and without it, and elsewhere."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from cli_support import fill, run_job

from microbatch.cli import _wording as wording
from microbatch.cli._console import Console
from microbatch.cli._jsonable import json_text
from microbatch.cli._live import ProgressBar
from microbatch.durable.inspection import Inspection

if TYPE_CHECKING:
    from pathlib import Path


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let both streams be a terminal; return what tells what was written."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    return lambda: (out.getvalue(), err.getvalue())


def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rich.console", "rich.live", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)


def call(*arguments: object) -> int:
    from microbatch.cli import main

    return main([str(one) for one in arguments])


def test_a_terminal_gets_a_table_and_no_markup_from_payloads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in a payload is text to rich too."""
    terminal = on_terminal(monkeypatch)
    fill(path, ["[red]x[/red] :smile:"])
    assert call("items", path) == 0
    out, err = terminal()
    assert "[red]x[/red] :smile:" in out
    assert "─" in out
    assert err == ""


def test_without_rich_there_is_plain_text_and_one_note(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a terminal only."""
    terminal = on_terminal(monkeypatch)
    fill(path, [1])
    without_rich(monkeypatch)
    assert call("stats", path, "--interval", "0") == 0
    assert call("queues", path) == 0
    out, err = terminal()
    assert out.splitlines()[-1].split()[:2] == ["default", "1"]
    assert err.count("pip install 'microbatch[cli]'") == 1


def test_a_pipe_gets_no_note(path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cron would send it by mail every night."""
    fill(path, [1])
    without_rich(monkeypatch)
    assert microbatch("queues", path).err == ""


def test_a_job_is_watched_in_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The view stays when the job has ended."""
    terminal = on_terminal(monkeypatch)
    uid = run_job(path, [1, 2])
    assert call("job", path, uid, "--watch") == 0
    assert "2 items: 2 succeeded" in terminal()[0]


def test_a_plain_view_separates_its_looks(
    path: Path, microbatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe, a blank line between two looks."""
    fill(path, [1])
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("microbatch.cli._queues.time.sleep", sleep)
    shown = microbatch("stats", path, "--watch", "--interval", "0.5")
    assert shown.code == 130
    assert shown.out.count("QUEUE ") == 2
    assert "\nno consumers\n\nQUEUE " in shown.out
    assert slept == [0.5] * 3


def test_a_bar_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that results can go to a pipe."""
    terminal = on_terminal(monkeypatch)
    with ProgressBar(Console(), "import", 10) as bar:
        bar.show(5, "5 rows [x]")
        bar.show(10, "10 rows [x]", total=10)
    out, err = terminal()
    assert out == ""
    assert "10 rows [x]" in err
    assert "100%" in err


def test_a_closed_stream_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, path: Path, microbatch: Any
) -> None:
    """A daemon has none."""
    fill(path, [1])
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stdin", gone)
    assert microbatch("cancel", path, 1).code == 2
    monkeypatch.setattr(sys, "stdin", None)
    assert microbatch("cancel", path, 1).code == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0 s"), (0.25, "0.25 s"), (12.4, "12 s"), (60, "1 min"), (3_700, "1 h 1 min"),
     (180_000, "2 d 2 h"), (86_400, "1 d")],
)  # fmt: skip
def test_spans_as_people_read_them(seconds: Any, text: str) -> None:
    assert wording.seconds_text(seconds) == text


def test_other_values_as_people_read_them() -> None:
    """Sizes, rates, moments, whatever the file says they are."""
    assert [wording.bytes_text(n) for n in (0, 1023, 1536, 5 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "5.0 TiB",
    ]
    assert [wording.rate_text(n) for n in (None, 0.5, 1234.5)] == ["-", "0.5/s", "1,234/s"]
    assert wording.time_text(0) == "1970-01-01 00:00:00"
    assert wording.time_text(1e20) == "1e+20"
    assert (wording.time_text(None), wording.iso_text(None), wording.iso_text(1e20)) == (
        "-",
        None,
        1e20,
    )
    assert wording.safe_text("a\x1b\n\u202e\U000e0001", 9) == "a\\x1b\\n\\u202e\\U000e0001"
    assert wording.safe_text("abcdef", 3) == "ab…"


def test_every_payload_has_a_form_in_json() -> None:
    """Keys that are no text, depths that no encoder takes, types that have none."""
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    assert json_text({(1, 2): [1], b"k": {3: 4}}) == '{"(1, 2)":[1],"aw==":{"3":4}}'
    assert json_text({1: 2, "n": float("nan"), "b": b"x"}) == '{"1":2,"n":null,"b":"eA=="}'
    assert json_text(deep).count("[") >= 99
    assert json_text({1: 2 + 3j, "s": {1}}) == '{"1":"(2+3j)","s":[1]}'


def test_what_no_encoder_takes_is_shown_by_its_text() -> None:
    """Lone surrogates, within depths."""
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    shown = json_text({"a": "\ud800", 5: (1, deep)})
    assert "ud800" in shown
    assert "..." in shown


def test_the_note_on_rich_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And to a terminal alone."""
    terminal = on_terminal(monkeypatch)
    without_rich(monkeypatch)
    console = Console()
    assert console.rich(sys.stdout) is console.rich(sys.stdout) is None
    assert terminal()[1].count("rich") == 1
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert Console().rich(sys.stdout) is None
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


ORDERS = "\x9b2J\u202e\U000e0001é"


def test_json_gives_no_orders_either(path: Path, microbatch: Any) -> None:
    """The first of these is an escape sequence's beginning to some terminals, and no JSON encoder minds it."""
    fill(path, [ORDERS], queue=ORDERS)
    shown = microbatch("items", path, "--json")
    assert all(c.isprintable() or c == "\n" for c in shown.out)
    assert (shown.object["item"], shown.object["queue"]) == (ORDERS, ORDERS)


def test_outcomes_give_a_terminal_no_orders(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets CSV as it is, a terminal what it may show."""
    uid = run_job(path, ["\x1b[2J\r\n"])
    terminal = on_terminal(monkeypatch)
    assert call("results", path, uid, "--format", "csv") == 0
    out = terminal()[0]
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "\\x1b[2J" in out
    assert out.startswith("index,id,kind,value,code,message\n0,")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert call("results", path, uid, "--format", "csv") == 0
    assert "\x1b[2J\r\n" in sys.stdout.getvalue()  # type: ignore[attr-defined]


def test_a_file_of_an_odd_name_gives_no_orders(path: Path, microbatch: Any) -> None:
    """Somebody calls ``microbatch doctor *`` in a folder of strangers."""
    odd = path.with_name("\x1b[2J\n.db")
    fill(odd, [1])
    run_job(odd, [1])
    shown = microbatch("results", odd, "nope", "--output", path.with_name("\x1b.csv"))
    assert shown.code == 1
    assert microbatch("backup", odd, odd.with_name("\x1bcopy.db")).code == 0
    uid = microbatch("jobs", odd, "--json").object["id"]
    written = microbatch("results", odd, uid, "--output", path.with_name("\x1b.csv"))
    assert written.err.startswith("microbatch: ")
    assert all(c.isprintable() or c == "\n" for c in shown.err + written.err)
    assert written.err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_has_not_is_escaped(
    path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """As JSON in JSON, so that it can still be read."""
    uid = run_job(path, ["日本"])
    fill(path, ["日本"])

    def written(*arguments: object) -> bytes:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert call(*arguments) == 0
        return stream.buffer.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert b"\\u65e5\\u672c" in written("items", path)
    assert json.loads(written("items", path, "--json").splitlines()[-1])["item"] == "日本"
    assert json.loads(written("results", path, uid))["value"] == "日本日本"
    assert b"\\u65e5" in written("results", path, uid, "--format", "csv")


def test_a_terminal_of_another_encoding_gets_plain_text(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich would fall over what that has not."""

    class Old(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    terminal = Old(io.BytesIO(), encoding="iso-8859-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    fill(path, ["日本"])
    assert call("items", path) == 0
    assert b"\\u65e5\\u672c" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_dumb_terminal_is_watched_line_by_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor's shell: rich would show nothing before the end."""
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    fill(path, [1])
    seen: list[str] = []

    def sleep(_: float) -> None:
        seen.append(terminal()[0])
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("microbatch.cli._queues.time.sleep", sleep)
    assert call("stats", path, "--watch") == 130
    assert "no consumers" in seen[1]


def test_a_daemon_has_no_streams(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they would have said is lost; what was asked for is done."""
    fill(path, [1])
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert call("pause", path) == 0
    assert call("show", path, 5) == 1
    assert sys.stdout is None
    monkeypatch.undo()
    with Inspection(path) as inspection:
        assert inspection.stats("default").paused


@pytest.mark.parametrize("failing", ["write", "flush"])
def test_a_full_disk_behind_stdout_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    """In one line, and not with 0."""

    class Full(io.StringIO):
        pass

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    setattr(Full, failing, full)
    fill(path, [1])
    monkeypatch.setattr(sys, "stdout", Full())
    for arguments in (["queues", path], ["queues", path, "--json"]):
        assert call(*arguments) == 2
        err = capsys.readouterr().err
        assert err == "microbatch: stdout cannot be written: No space left on device\n"


def test_a_narrow_terminal_breaks_no_figures(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 40 columns a table of nine would have a digit on each line."""
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    fill(path, list(range(1234)))
    fill(path, [1], queue="other")
    assert call("queues", path) == 0
    lines = terminal()[0].splitlines()
    assert lines[:2] == ["QUEUE      default", "READY      1,234"]
    assert lines.count("") == 1
    assert max(map(len, lines)) <= 40
