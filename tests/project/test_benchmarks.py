"""The benchmarks: each runs once with tiny numbers, so that none rots; what they compute is checked."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import trio

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import contenders  # noqa: E402
import floor  # noqa: E402
import goals  # noqa: E402
import instructions  # noqa: E402
import measure  # noqa: E402
import memory  # noqa: E402
import report  # noqa: E402


def slow(test):
    """Mark a script's test: it starts processes of its own, which take long where the machine has other things to do."""
    return pytest.mark.slow(pytest.mark.timeout(240)(test))


def run(script: str, out: Path, *arguments: str) -> dict:
    """Run a benchmark as its users do and return its JSON."""
    command = [
        sys.executable,
        str(FOLDER / f"{script}.py"),
        "--tiny",
        "--out",
        str(out),
        *arguments,
    ]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / f"{script}.json").read_text())


@slow
def test_overhead_compares_every_way_in_on_every_loop(tmp_path):
    """A contender that no longer runs would vanish from the table in silence."""
    (alone,) = run("overhead", tmp_path, "--loops", "trio")["cells"]
    found = run("overhead", tmp_path, "--add")["cells"]
    assert [cell["loop"] for cell in found] == ["asyncio", "uvloop", "trio"]
    assert found[-1] == alone  # what is there is not run anew
    cells = {cell["loop"]: cell["contenders"] for cell in found}
    ours = {"submit", "submit_nowait", "submit_many", "submit_from_thread"}
    assert ours <= cells["asyncio"].keys()
    assert ours <= cells["uvloop"].keys()
    assert cells["trio"].keys() == {"trio.Event floor", "trio submit"}
    assert cells["asyncio"]["floor (a)"]["ratio"]["median"] == 1


@slow
def test_latency_has_a_point_for_every_window(tmp_path):
    """The curve is made of them."""
    found = run("latency", tmp_path)
    assert found["lone"]["submit"]["p50"]["median"] > 0
    assert found["age"]["submit"]["0.01"]["p50"] >= 9.9
    assert found["load"]["microbatch, max_wait 2 ms"][0]["p50"] >= 6.9


@slow
def test_gain_counts_fewer_commits_through_a_batcher(tmp_path):
    """The gain is in the commits, whatever the machine's disk does."""
    databases = run("gain", tmp_path)["databases"]
    assert databases.keys() == {"PostgreSQL", "SQLite"}
    for ways in databases.values():
        commits = {way: row["10"]["commits_per_1000_rows"]["median"] for way, row in ways.items()}
        assert commits["one statement each"] >= 1000
        assert commits["microbatch"] < 500


@slow
def test_break_even_measures_the_overhead_and_a_curve_that_rises(tmp_path):
    """The page on tuning gives both as reasons for its numbers."""
    found = run("break_even", tmp_path)
    assert all(cost["median"] > 0 for cost in found["overhead"].values())
    rates = [rate["median"] for rate in found["curve"].values()]
    assert rates[-1] > 2 * rates[0]  # a batch of 100 against one of 1: about forty times
    assert "a batch of 100 pays above" in (tmp_path / "break_even.md").read_text()


def test_the_page_on_tuning_has_the_stored_break_even_and_a_curve_that_rises():
    """Its figures have a command, and its curve the sizes and the course of the measured one."""
    page = (FOLDER.parent / "docs/how-to/tuning.md").read_text(encoding="utf-8")
    stored = json.loads((FOLDER / "results/break_even.json").read_text())
    costs = [cost["median"] for cost in stored["overhead"].values()]
    many, nowait, task = costs
    text = " ".join(page.split())
    assert (
        f"{many:.2f} us an item by `submit_many`, {nowait:.2f} us by `submit_nowait`, {task:.1f} us"
        in text
    )
    many, nowait, task = (cost * 100 / 99 for cost in costs)
    assert f"costs more than {many:.2f}, {nowait:.2f} or {task:.1f} us by itself" in text
    shown = re.findall(r"^max_batch_size=(\d+) +([\d,]+) rows/s$", page, re.MULTILINE)
    assert [size for size, _ in shown] == list(stored["curve"])
    for rates in (
        [int(rate.replace(",", "")) for _, rate in shown],
        [rate["median"] for rate in stored["curve"].values()],
    ):
        assert rates == sorted(rates), rates
        assert rates[2] > 10 * rates[0], rates


@slow
def test_memory_is_measured_in_fresh_processes(tmp_path):
    """Figures of one process would depend on what ran before."""
    found = run("memory", tmp_path)
    assert found["waiting"]["submit"]["median"] > 100
    assert found["kept"].keys() == memory.KEPT.keys()


@slow
def test_scale_covers_withdrawal_priorities_and_partitions(tmp_path):
    """Each of them has a path of its own that could turn quadratic."""
    cases = run("scale", tmp_path)["cases"]
    assert {"tasks, all cancelled", "ten priorities", "1,000 partitions"} <= cases.keys()


@slow
def test_goals_have_a_line_for_each_promise(tmp_path):
    """A goal without a line is one that nobody looks at."""
    sections = ["task_each", "no_task", "waiting_time", "bytes", "trio", "million"]
    rows = run("goals", tmp_path, "--only", *sections)["rows"]
    assert len(rows) >= 14
    assert all(row["median"] <= row["goal"] for row in rows if row["met"])
    assert all(row["median"] > row["goal"] for row in rows if not row["met"])


@slow
def test_the_durable_mode_stands_beside_plain_sqlite(tmp_path):
    """Its figures are ratios: without the others in the same run they say nothing."""
    found = run("bench_durable", tmp_path)
    for cell in found["enqueue"]:
        assert {"raw", "one transaction each", "enqueue"} <= cell["rates"].keys()
    assert found["claim"]["ratio"]["median"] > 0
    if found["fsyncs"] is not None:  # counted by a shim, where there is a C compiler
        assert found["fsyncs"]["per group of enqueues"] < 1.5
        assert found["fsyncs"]["per handled batch"] < 2


def test_instructions_are_counted_for_contenders_that_run(capsys):
    """The subprocess that callgrind watches is this function."""
    for name in ("floor (a)", "submit", "trio submit"):
        instructions.child(name, 10, 1, 30)
    assert capsys.readouterr().out == ""


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_instructions_tell_what_starting_costs_from_what_an_item_costs(tmp_path):
    """The difference of two runs holds only items."""
    [row] = run("instructions", tmp_path)["rows"]
    assert 5_000 < row["instructions"] < 500_000


def test_without_valgrind_nothing_is_counted_and_that_is_said(tmp_path, monkeypatch):
    """A table without rows must not pass for a measurement."""
    monkeypatch.setenv("PATH", "")
    printed = subprocess.run(
        [sys.executable, str(FOLDER / "instructions.py"), "--out", str(tmp_path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "valgrind is not installed: nothing counted" in printed
    assert json.loads((tmp_path / "instructions.json").read_text())["rows"] == []


@slow
def test_the_overhead_test_runs_under_pytest_benchmark(tmp_path):
    """It is how others put their batcher beside ours."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "submit and 100",
        f"--benchmark-json={tmp_path / 'out.json'}", str(FOLDER / "test_overhead.py"),
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"BENCH_CALLERS": "50", "BENCH_ROUNDS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    benchmarks = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert all(one["extra_info"]["ratio_to_floor"] > 0 for one in benchmarks)


INSTALLED = [name for name, contender in contenders.ALL.items() if contenders.installed(contender)]


@pytest.mark.parametrize("name", INSTALLED)  # CI installs all peers for this test
def test_every_contender_handles_every_item_once(name, monkeypatch):
    """A contender that loses or repeats work would look fast or slow for the wrong reason."""
    seen: Counter = Counter()

    async def counting(items):
        seen.update(items)
        return items

    monkeypatch.setattr(contenders, "echo", counting)
    contender = contenders.ALL[name]

    async def main():
        async with contender.open(10) as run:
            seen.clear()
            return await run(40)

    results = measure.run_on(contender.loops[0], main)
    assert results == (None if name in RETURN_NOTHING else list(range(40)))
    assert seen == SEEN.get(name, dict.fromkeys(range(40), 1))


RETURN_NOTHING = {"bare task + future", "submit_many", "submit_from_thread", "trio.Event floor", "trio submit"}  # fmt: skip
SEEN: dict[str, dict[int, int]] = {
    "bare task + future": {},  # the cost of what each of the others has: it has no handler
    "submit_from_thread": dict.fromkeys(range(5), 8),  # eight threads, each with items of its own
}


@pytest.mark.parametrize("kind", [floor.FloorBatcher, floor.SoonBatcher])
def test_the_floor_gives_each_caller_its_own_result(kind):
    """A floor that does not do the work is no floor."""

    async def doubled(items):
        return [item * 2 for item in items]

    async def main():
        submit = kind(doubled, max_batch_size=4).submit
        return await asyncio.gather(*[submit(i) for i in range(10)])

    assert asyncio.run(main()) == [i * 2 for i in range(10)]


def test_the_floor_for_trio_gives_each_caller_its_own_result():
    """The same for the other event loop."""
    found = {}

    async def doubled(items):
        return [item * 2 for item in items]

    async def main():
        async with trio.open_nursery() as nursery:
            submit = floor.TrioFloorBatcher(doubled, nursery, max_batch_size=4).submit

            async def caller(i):
                found[i] = await submit(i)

            async with trio.open_nursery() as callers:
                for i in range(10):
                    callers.start_soon(caller, i)

    trio.run(main)
    assert found == {i: i * 2 for i in range(10)}


def test_ratios_pair_each_round_with_the_floor_of_that_round():
    """Else a slow minute would be charged to whoever ran in it."""
    figures = {"floor": [(1.0, 0), (2.0, 0), (4.0, 0)], "mine": [(0.5, 0), (1.0, 0), (2.0, 0)]}
    assert measure.ratios(figures, "floor")["mine"] == {
        "median": 0.5, "low": 0.5, "high": 0.5, "rounds": 3,
    }  # fmt: skip


def test_the_order_rotates_from_round_to_round():
    """Who comes first finds other caches than who comes last."""
    order = []

    def note(contender, **_):
        order.append(contender.name)
        return (1.0, 1.0)

    chosen = [contenders.ALL[n] for n in ("submit", "floor (a)", "submit_many")]
    measure.interleaved(chosen, rounds=3, size=1, n=1, measure=note)
    assert order[0::3] == ["submit", "floor (a)", "submit_many"]


def test_the_pages_tables_are_those_of_the_stored_run():
    """A table typed by hand would drift from the JSON beside it."""
    text = report.README.read_text()
    assert report.render(text) == text
    for found in report.PASTED.finditer(text):
        stored = (FOLDER / found[2]).with_suffix(".json")
        assert json.loads(stored.read_text())["about"]["processor"] in found[0]


def test_a_goals_line_says_whether_it_was_met(tmp_path):
    """The table is read by people who look at that column alone."""
    chosen = argparse.Namespace(tiny=True, rounds=1, only=None, out=tmp_path)
    table = goals.Goals(chosen)
    table.add("near", 1.0, 1.01)
    table.add("there", 1.0, 1.0)
    assert [row["met"] for row in table.rows] == [False, True]
