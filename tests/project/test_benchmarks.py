"""The benchmarks: each runs once with tiny numbers, so that none rots; what they compute is checked."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gain, goals, instructions, loader, memory, overhead, telemetry
from benchmarks.__main__ import NAMES, documentation, main
from benchmarks.contenders import FLOOR
from benchmarks.output import README, ROOT, Page, place_of, section_of

needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")


@pytest.fixture(autouse=True)
def _collecting():
    """What is counted runs without the collector: the tests that follow in this process have it back."""
    yield
    gc.enable()


def slow(test):
    """Mark a benchmark's test: it starts processes, which take long where the machine has other things to do."""
    return pytest.mark.slow(pytest.mark.timeout(240)(test))


def tiny(name: str, out: Path, *options: str) -> dict:
    """Run a benchmark by the command that its users give and return its JSON."""
    command = [sys.executable, "-m", "benchmarks", name, "--tiny", "--out", str(out), *options]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = (out / f"{name}.md").read_text(encoding="utf-8")
    assert said.split("\n\n")[1].splitlines()[0] in done.stdout  # what is printed is what is kept
    known = section_of(place_of(name).read_text(encoding="utf-8"), name)
    if known is not None and not options:  # the page has the rows that are printed now
        assert labels(said) <= labels(known)
    return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))


def labels(text: str) -> set[str]:
    """Return what stands first in each row of the tables, but for numbers and headings."""
    rows = re.findall(r"^\| +([^|]*?) +\|", text, re.MULTILINE)
    headings = set(re.findall(r"^\| +([^|]*?) +\|.*\n\| -", text, re.MULTILINE))
    return {row for row in rows if not re.fullmatch(r"[\d,]*|-+", row)} - headings


def test_without_a_name_the_command_lists_all_with_a_line_each(capsys):
    """Nobody should have to read the folder to find one."""
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(maxsplit=1) for line in lines] == [
        [name, documentation(name).splitlines()[0]] for name in NAMES
    ]
    assert all(len(line) <= 110 for line in lines)


def test_every_benchmark_is_in_the_list_and_has_a_tiny_run():
    """One that is not listed is not found, and one that no test runs rots."""
    files = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if re.search(r"^def run\(chosen, page\):", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert files == set(NAMES)
    tried = re.findall(r"= tiny\(\"(\w+)\"", Path(__file__).read_text(encoding="utf-8"))
    assert set(tried) == set(NAMES)


def test_an_unknown_name_is_refused_with_all_that_there_are(capsys):
    """A slip of the pen should cost one look."""
    assert main(["overheads", "--tiny"]) == 2
    said = capsys.readouterr().err
    assert "no benchmark 'overheads'; choose from: goals, overhead, " in said
    assert all(name in said for name in NAMES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "10", "--loop", "trio"], "unrecognized arguments: --loop trio"),
        (["--callers", "-5"], "argument --callers: must be at least 1, got -5"),
        (["--loops", "curio"], "choose from 'asyncio', 'uvloop', 'trio'"),
        (["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (["--tiny", "--page"], "not allowed with argument"),
    ],
)
def test_a_wrong_option_is_refused_with_the_options_that_there_are(options, said, capsys):
    """An option that is not there must not be taken for another one or be ignored."""
    with pytest.raises(SystemExit) as error:
        main(["overhead", *options])
    assert error.value.code == 2
    found = capsys.readouterr().err
    assert re.sub(r"['\s]+", " ", said) in re.sub(r"['\s]+", " ", found)
    assert all(
        option in found for option in ("--loops", "--callers", "--sizes", "--rounds", "--out")
    )


def test_figures_without_a_place_in_the_page_are_refused_before_they_are_taken(capsys):
    """An hour's run should not end with that."""
    assert section_of(README.read_text(encoding="utf-8"), "streams") is None
    with pytest.raises(SystemExit):
        main(["streams", "--page"])
    assert "benchmarks/README.md has no <!-- streams -->" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_explains_its_options(name, capsys):
    """What can be chosen stands in the help, and nothing is run for it."""
    with pytest.raises(SystemExit) as error:
        main([name, "--help"])
    assert error.value.code == 0
    said = capsys.readouterr().out
    assert documentation(name).splitlines()[0] in said
    module = sys.modules[f"benchmarks.{name}"]
    for option in ["tiny", "rounds", "out", "page", *getattr(module, "OPTIONS", ())]:
        assert f"--{option}" in said


def test_a_package_that_is_missing_is_named_with_what_installs_it(capsys, monkeypatch):
    """Not everybody has an SDK."""
    monkeypatch.delitem(sys.modules, "benchmarks.telemetry")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)
    assert main(["telemetry", "--tiny"]) == 2
    assert (
        "opentelemetry.sdk.metrics is not installed: pip install -e '.[dev,bench]'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "nowhere"], "argument --source: there is no microbatch in nowhere"),
        (["--python", "python9"], "argument --python: there is no program python9"),
    ],
)
@pytest.mark.parametrize("name", ["instructions", "memory"])
def test_what_is_not_there_is_not_counted(name, options, said, capsys):
    """Else the installed library would be counted under another's name."""
    with pytest.raises(SystemExit) as error:
        main([name, "--tiny", *options])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


@needs_valgrind
def test_a_choice_without_a_single_count_is_refused(tmp_path):
    """An empty table must not pass for a measurement."""
    with pytest.raises(SystemExit, match="nothing to count"):
        main(["instructions", "--ways", "submit_many", "--sizes", "1", "--out", str(tmp_path)])


@slow
def test_overhead_compares_every_way_in_on_every_loop(tmp_path):
    """A contender that no longer runs would vanish from the table in silence."""
    found = tiny("overhead", tmp_path, "--loops", "asyncio", "uvloop", "trio")["cells"]
    cells = {cell["loop"]: cell["contenders"] for cell in found}
    assert list(cells) == ["asyncio", "uvloop", "trio"]
    ours = {"submit", "submit_nowait", "submit_many"}
    assert ours | {"submit_from_thread"} <= cells["asyncio"].keys()
    assert ours | {"submit_from_thread"} <= cells["uvloop"].keys()
    assert cells["trio"].keys() == {"trio.Event floor"} | ours
    assert cells["asyncio"][FLOOR]["ratio"]["median"] == 1


@slow
def test_latency_has_a_point_for_every_window(tmp_path):
    """The curve is made of them."""
    found = tiny("latency", tmp_path)
    assert found["lone"]["submit"]["p50"]["median"] > 0
    assert found["age"]["submit"]["0.01"]["p50"] >= 9.9
    assert found["load"]["microbatch, max_wait 2 ms"][0]["p50"] >= 6.9


@slow
def test_gain_counts_fewer_commits_through_a_batcher(tmp_path):
    """The gain is in the commits, whatever the machine's disk does."""
    databases = tiny("gain", tmp_path)["databases"]
    assert databases.keys() == {"PostgreSQL", "SQLite"}
    for ways in databases.values():
        commits = {way: row["10"]["commits_per_1000_rows"]["median"] for way, row in ways.items()}
        assert commits["one statement each"] >= 1000
        assert commits["microbatch"] < 500


@slow
def test_break_even_measures_the_overhead_and_a_curve(tmp_path):
    """The page on tuning gives both as reasons for its numbers; that the curve rises is seen there."""
    found = tiny("break_even", tmp_path)
    assert all(cost["median"] > 0 for cost in found["overhead"].values())
    assert list(found["curve"]) == ["1", "10", "100"]
    assert all(rate["median"] > 0 for rate in found["curve"].values())


@slow
def test_memory_is_measured_in_fresh_processes(tmp_path):
    """Figures of one process would depend on what ran before."""
    found = tiny("memory", tmp_path)
    [(heading, waiting)] = found["waiting"].items()
    assert heading == f"CPython {sys.version.split()[0]}"
    assert waiting["submit"]["median"] > 100
    [others] = found["others"].values()
    assert others.keys() == memory.FIGURES.keys()
    new, used = (others[name] for name in list(others)[:2])
    assert 1_000 < new < used < 100_000  # bytes of a batcher


@slow
def test_scale_covers_withdrawal_priorities_and_partitions(tmp_path):
    """Each of them has a path of its own that could turn quadratic."""
    cases = tiny("scale", tmp_path)["cases"]
    assert {"tasks, all cancelled", "ten priorities", "1,000 partitions"} <= cases.keys()


@slow
def test_goals_have_a_line_for_each_promise(tmp_path):
    """A goal without a line is one that nobody looks at."""
    sections = ["task_each", "no_task", "waiting_time", "bytes", "trio", "million"]
    rows = tiny("goals", tmp_path, "--only", *sections)["rows"]
    assert len(rows) >= 14
    assert all(row["median"] <= row["goal"] for row in rows if row["met"])
    assert all(row["median"] > row["goal"] for row in rows if not row["met"])


@slow
def test_the_durable_mode_stands_beside_plain_sqlite(tmp_path):
    """Its figures are ratios: without the others in the same run they say nothing."""
    found = tiny("durable", tmp_path)
    for cell in found["enqueue"]:
        assert {"raw", "one transaction each"} <= cell["of"].keys()
        assert cell["of"]["raw"]["cpu"]["median"] > 0
    rows = {row["what"]: row for row in found["rows"]}
    for row in rows.values():
        met = (
            row["median"] >= (row["goal"] or 0)
            if row["least"]
            else row["median"] <= (row["goal"] or 0)
        )
        assert row["met"] is (None if row["goal"] is None else met), row
    ways = (
        "enqueue_many of",
        "claim, handle and settle",
        "submit to",
        "100 queues",
        "idle CPU of 100",
    )
    ways += ("1,000 waiters", "a claim of 10", "a backlog of 10,000 after kill -9", "kill -9 to")
    for way in ways:
        assert any(what.startswith(way) for what in rows), way
    if found["fsyncs"] is not None:  # counted by a shim, where there is a C compiler
        assert rows["fsyncs of a group of 100 enqueues"]["median"] < 1.5
        assert rows["fsyncs of 100 submits to their results"]["median"] < 3


@slow
def test_jobs_are_brought_handled_and_looked_at(tmp_path):
    """Every part has its line, and its goal where there is one."""
    rows = tiny("jobs", tmp_path)["rows"]
    for what in (
        "enqueue_job of",
        "handling it",
        "longest wait",
        "status",
        "first page",
        "memory above",
    ):
        assert any(what in row["what"] for row in rows), what
    assert all(row["median"] >= 0 and row["met"] is not None for row in rows)


@slow
def test_a_queue_is_watched_under_load(tmp_path):
    """A sample that lacks a figure would show in the picture an hour later."""
    found = tiny("soak", tmp_path)
    for sample in found["samples"]:
        assert sample["worker MB"] > 0
        assert sample["kept"] > 0
        assert sample["dead"] == 0


@slow
def test_streams_and_files_stand_beside_loops_by_hand(tmp_path):
    """Every job and every format is in the table, each beside what one writes without the library."""
    found = tiny("streams", tmp_path)
    assert len(found["streams"]) == 3
    assert {name.partition(",")[0] for name in found["files"]} == {"csv", "json", "ndjson"}
    assert all(cell["ratio"]["median"] > 0 for cell in found["streams"].values())


@slow
def test_telemetry_is_measured_against_none(tmp_path):
    """Its figures are ratios to a batcher that nobody watches."""
    (cell,) = tiny("telemetry", tmp_path)["cells"]
    assert list(cell["ratios"]) == [contender.name for contender in telemetry.ALL]
    assert cell["ratios"][telemetry.OFF]["median"] == 1


@slow
def test_loaders_are_measured_beside_one_another(tmp_path):
    """Each way to load, new and cached; the peers take part if they are installed."""
    rows = tiny("loader", tmp_path)["rows"]
    assert len(rows) == 2 * len(loader.SHAPES)
    assert all({loader.OURS, loader.OWN} <= set(row["cpu"]) <= set(loader.NAMES) for row in rows)


@pytest.mark.engines
@pytest.mark.timeout(600)
def test_workers_of_engines_empty_a_queue_with_and_without_a_batcher(tmp_path):
    """Each message reaches the backend, whoever calls it; the batcher's part is the number of calls."""
    names = ["taskiq, NATS JetStream", "FastStream, NATS JetStream"]
    found = tiny("engines", tmp_path, "--backends", "PostgreSQL", "--only", *names)
    for name in names:
        ways = found["emptied"][f"{name}, PostgreSQL"]
        assert ways["each"]["mean"]["median"] == 1
        assert ways["ours"]["mean"]["median"] > 2
        # So few may all be handled before the kill: then its seconds are none.
        assert found["killed"][name]["ours"].keys() == {"seconds", "twice"}
        assert found["killed"][name]["ours"]["twice"]["median"] >= 0


def test_loads_are_counted_for_loaders_that_run(capsys):
    """The process that callgrind watches calls this function."""
    for shape, (_, keys) in loader.SHAPES.items():
        loader.watched(("asyncio", [loader.OWN, shape, False], keys), 1, keys, counted=False)
    assert capsys.readouterr().out == ""


def test_what_on_batch_costs_is_counted_for_one_that_is_called(capsys):
    """The process that callgrind watches calls this function."""
    monitor = telemetry.MONITOR
    before = monitor.succeeded
    telemetry.watched(("asyncio", telemetry.COUNTED.name, 10), 1, 30, counted=False)
    assert monitor.succeeded - before == 60
    telemetry.watched(("asyncio", telemetry.OFF, 10), 1, 30, counted=False)
    assert monitor.succeeded - before == 60
    assert capsys.readouterr().out == ""


@slow
@needs_valgrind
def test_instructions_of_the_same_source_are_the_same(tmp_path):
    """Before and after a change stand beside each other: what differs must be the change."""
    same = tmp_path / "same"
    same.symlink_to(ROOT / "src")
    [row] = tiny("instructions", tmp_path, "--source", str(ROOT / "src"), str(same))["rows"]
    first, second = row["instructions"].values()
    assert 20_000 < first < 200_000
    assert abs(second / first - 1) < 0.002
    said = (tmp_path / "instructions.md").read_text(encoding="utf-8")
    assert re.search(rf"{second:,.0f} \([+-]0\.\d\d%\)", said)


def test_instructions_are_counted_for_contenders_that_run(capsys):
    """The process that callgrind watches calls this function."""
    for loop, name in [("asyncio", FLOOR), ("uvloop", "submit"), ("trio", "submit_nowait")]:
        instructions.watched((loop, name, 10), 1, 30, counted=False)
    assert capsys.readouterr().out == ""


def test_every_way_in_is_counted_on_every_loop_by_default():
    """A change of what an item costs shows in one of these."""
    plan = {name: (loops, sizes) for name, loops, sizes in instructions.PLAN}
    assert plan["submit"] == (("asyncio", "uvloop", "trio"), (1, 10, 100))
    assert plan["submit_nowait"][0] == plan["submit_many"][0] == ("asyncio", "uvloop", "trio")


def test_without_valgrind_nothing_is_counted_and_that_is_said(tmp_path, monkeypatch, capsys):
    """A table without rows must not pass for a measurement."""
    monkeypatch.setenv("PATH", "")
    assert main(["instructions", "--out", str(tmp_path)]) == 0
    assert "valgrind is not installed: nothing counted" in capsys.readouterr().out
    assert json.loads((tmp_path / "instructions.json").read_text())["rows"] == []


@slow
def test_the_overhead_test_runs_under_pytest_benchmark(tmp_path):
    """It is how others put their batcher beside ours."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "submit and 100",
        f"--benchmark-json={tmp_path / 'out.json'}", str(ROOT / "benchmarks/test_overhead.py"),
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"BENCH_CALLERS": "50", "BENCH_ROUNDS": "2"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert all(one["extra_info"]["ratio_to_floor"] > 0 for one in figures)


def test_the_rows_of_a_table_of_overhead_are_ordered_by_the_largest_batch(tmp_path):
    """Who is cheapest stands on top; who cannot take a batch of one has a dash there."""
    spread = {"low": 1, "high": 1, "rounds": 1}

    def cell(size, **medians):
        found = {name: {"ratio": {"median": m, **spread}} for name, m in medians.items()}
        found["floor"]["cpu_us"] = {"median": 9.0}
        return {"loop": "asyncio", "callers": 10, "batch": size, "contenders": found}

    page = Page("overhead", tmp_path)
    overhead.show(page, [cell(1, floor=1.0, mine=0.5), cell(10, floor=1.0, mine=2.0, big=0.1)])
    rows = [[one.strip() for one in line.strip("|").split("|")] for line in page.lines[2:-1]]
    assert [row[0] for row in rows] == ["big", "floor", "mine", "an item of floor"]
    assert rows[0][1] == "-"


def test_a_goals_line_says_whether_it_was_met(tmp_path):
    """The table is read by people who look at that column alone."""
    page = Page("goals", tmp_path)
    table = goals.Goals(argparse.Namespace(tiny=True, rounds=1), page)
    table.add("near", 1.0, 1.01)
    table.add("there", 1.0, 1.0)
    assert [row["met"] for row in table.rows] == [False, True]
    goals.show(page, table.rows)
    assert [line.split("|")[4].strip() for line in page.lines[2:-1]] == ["missed", "met"]


@slow
def test_http_stands_beside_what_one_writes_by_hand(tmp_path):
    """Each goal has its line, and every request was answered as it should be: else the run fails."""
    found = tiny("http", tmp_path)
    rows = {row["what"]: row for row in found["rows"]}
    for what in ("a batch of", "import of", "memory above"):
        assert any(name.startswith(what) for name in rows), what
    if gain.postgres_programs() is not None:
        assert sum("by_itself" in name for name in rows) == 3
    assert all(row["median"] >= 0 and row["met"] is not None for row in rows.values())
