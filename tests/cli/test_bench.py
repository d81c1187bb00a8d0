"""``bench`` against handlers whose costs are known, on a clock that only they move."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microbatch.cli._bench import _advice, _Measured, _own_cost, _short_text
from microbatch.cli._costs import Costs, best_size, fitted, sizes_up_to

HANDLERS = """
import anyio

now = 0.0
calls = []
gets = []

def spend(items, fixed, item):
    global now
    now += fixed + item * len(items)
    calls.append(len(items))
    gets.append(items[0])

async def query(items):
    spend(items, 0.002, 0.0001)

async def lookup(items):
    spend(items, 0.0, 0.00001)

async def refuses(items):
    spend(items, 0.001, 0.001)
    return [ValueError("no")] * len(items)

async def typed(rows):
    return [row["number"] for row in rows]

async def far(items):
    calls.append(len(items))
    await gate.wait()

def pairs(items):
    yield 0, 1
"""


async def own_cost() -> float:
    """What the batcher costs here."""
    return 3e-6


@pytest.fixture
def backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of handlers, whose clock is the command's."""
    import sys

    (tmp_path / "backends.py").write_text(HANDLERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(
        "microbatch.cli._bench._clock",
        lambda: sys.modules["backends"].now if "backends" in sys.modules else 0.0,
    )
    monkeypatch.setattr("microbatch.cli._bench._own_cost", own_cost)
    yield lambda: sys.modules["backends"]
    sys.modules.pop("backends", None)


def test_costs_are_found_by_regression(microbatch: Any, backends: Any) -> None:
    """2 ms a call and 0.1 ms an item: batches of 200 come within a tenth of what an item must cost."""
    found = microbatch("bench", "--handler", "backends:query", "--json").object
    assert found["fixed"] == pytest.approx(0.002)
    assert found["per_item"] == pytest.approx(0.0001)
    assert found["knee"] == pytest.approx(0.002 / 0.000103)
    assert found["pays"] is True
    assert found["recommended"] == {"max_batch_size": 200, "max_wait": 0.0, "max_concurrency": 1}
    assert [one["size"] for one in found["calls"]] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert found["calls"][-1]["gain"] == pytest.approx(0.0021 / (0.000002 + 0.000103))


def test_the_table_and_the_advice(microbatch: Any, backends: Any) -> None:
    """What people read."""
    out = microbatch("bench", "--handler", "backends:query", "--items", 100).out.splitlines()
    assert out[0].split() == ["BATCH", "CALL", "AN", "ITEM", "ITEMS"]
    assert out[1].split()[:6] == ["1", "2.1", "ms", "2.1", "ms", "476/s"]
    assert out[7].split()[-1] == "#" * 30
    assert "  a call costs    2 ms, whatever is in it" in out
    assert "  an item costs   100 us" in out
    assert "  half the gain   at 19 items a batch" in out
    assert out[-1] == "recommended: max_batch_size=100, max_wait=0.0, max_concurrency=1"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ns"), (9.994e-7, "999 ns"), (9.996e-7, "1 us"), (0.0009997, "1 ms"), (0.00224, "2.24 ms"),
     (0.99951, "1 s"), (12.34, "12.3 s")],
)  # fmt: skip
def test_a_time_is_shown_by_a_unit_that_it_has_less_than_a_thousand_of(
    seconds: float, text: str
) -> None:
    """999.7 us would be 1e+03 us."""
    assert _short_text(seconds) == text


def test_a_handler_without_fixed_cost_is_told_that_batching_does_not_pay(
    microbatch: Any, backends: Any
) -> None:
    """Nothing is recommended for a dictionary in memory."""
    found = microbatch("bench", "--handler", "backends:lookup", "--json").object
    assert (found["pays"], found["recommended"]) == (False, {})
    assert found["per_item"] == pytest.approx(0.00001)
    out = microbatch("bench", "--handler", "backends:lookup", "--items", 10).out
    assert out.splitlines()[-1] == "batching does not pay: a call costs no more than the batcher"


def test_a_slow_handler_is_called_once_for_each_size(microbatch: Any, backends: Any) -> None:
    """Time is up after the first round; the warm-up and the calls together come on top."""
    microbatch("bench", "--handler", "backends:query", "--items", 10, "--seconds", 0)
    assert backends().calls[:5] == [1, 1, 2, 5, 10]
    assert len(backends().calls) == 5 + 1 + 2 + 4 + 8


def test_rows_of_a_file_are_given_to_it(microbatch: Any, backends: Any) -> None:
    """As import gives them; bad ones are left out."""
    Path("o.csv").write_text("number\n7\n8,9\n" + "9\n" * 10)
    arguments = ["--handler", "backends:query", "--items", 5, "--source", "o.csv", "--seconds", 0]
    assert microbatch("bench", *arguments).code == 0
    assert backends().gets[0] == {"number": "7"}
    Path("o.csv").write_text("number\n")
    assert (
        microbatch("bench", *arguments).err
        == "microbatch: the source has no row that can be read\n"
    )


def test_what_the_handler_does_not_take_is_said(microbatch: Any, backends: Any) -> None:
    """It got whole numbers, and wanted rows; or refuses each of them."""
    failed = microbatch("bench", "--handler", "backends:typed", "--seconds", 0)
    assert failed.code == 1
    assert "the handler failed: TypeError" in failed.err
    assert "give it rows with --source" in failed.err
    refused = microbatch("bench", "--handler", "backends:refuses", "--items", 2, "--seconds", 0)
    assert refused.code == 1
    assert "items failed: the figures are those of failures too" in refused.err
    assert microbatch("bench", "--handler", "backends:pairs").code == 2


def test_what_fails_in_calls_at_the_same_time_alone_is_said(
    microbatch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes one call at a time: its own words, and not those of a group of errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("lone.py").write_text(LONE)
    failed = microbatch("bench", "--handler", "lone:call", "--items", 2, "--seconds", 0)
    assert failed.code == 1
    assert "the handler failed: RuntimeError: another call is under way" in failed.err


LONE = """
import asyncio

busy = False

async def call(items):
    global busy
    if busy:
        raise RuntimeError("another call is under way")
    busy = True
    await asyncio.sleep(0)
    busy = False
    return items
"""


def test_calls_together_that_gain_are_recommended() -> None:
    """A backend that serves four at a time: eight gain nothing over four."""
    rates = {1: 100.0, 2: 200.0, 4: 390.0, 8: 400.0}
    measured = _Measured({1: 1.0, 2: 1.0}, Costs(1.0, 0.1, 0.0), rates, 0)
    assert _advice(measured, 100)["max_concurrency"] == 4


async def test_the_batchers_own_cost_is_measured(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: Any
) -> None:
    """Here the clock stands 2,000 further at the second look: one for each item."""
    times = iter([0.0, 2_000.0])
    monkeypatch.setattr("microbatch.cli._bench._clock", lambda: next(times))
    assert await _own_cost() == 1.0


@pytest.mark.anyio
async def test_an_interrupted_measurement_leaves_nobody_to_complain() -> None:
    """Ctrl-C prints a line, and not one for each of two thousand items that nobody awaits any more."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_own_cost)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    gc.collect()  # what asyncio has to say it says now, and that fails the test


@given(st.floats(0, 10), st.floats(1e-7, 1), st.integers(2, 5_000))
def test_a_line_is_found_whatever_it_is(fixed: float, item: float, most: int) -> None:
    """Of exact points the regression gives back the very costs."""
    points = {size: fixed + item * size for size in sizes_up_to(most)}
    costs = fitted(points, 0.0)
    assert costs.fixed == pytest.approx(fixed, rel=1e-3, abs=1e-3 * item)
    assert costs.item == pytest.approx(item, rel=1e-3)
    size = best_size(costs, most)
    assert size == most or costs.fixed / size <= 0.1001 * item
    assert costs.gain(size) + 1e-9 >= 1


def test_noise_makes_no_negative_cost() -> None:
    """Calls that got faster with more items: no cost is below zero."""
    assert fitted({1: 1.0, 2: 0.5, 10: 0.1}, 1e-6).item >= 0
    assert fitted({1: 0.1, 2: 0.3, 10: 3.0}, 1e-6).fixed == 0
    assert sizes_up_to(2) == [1, 2]
    assert sizes_up_to(100) == [1, 2, 5, 10, 20, 50, 100]


def test_one_slow_large_call_does_not_decide_about_the_fixed_cost() -> None:
    """Its error is the largest in seconds, and of the fixed cost it knows least."""
    points = {1: 0.0021, 10: 0.003, 100: 0.012, 1000: 0.102 * 1.3}
    assert fitted(points, 0.0).fixed == pytest.approx(0.002, rel=0.1)
