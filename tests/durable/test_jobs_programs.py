"""Drawn programs on jobs, by two processes in two queues: whatever is done, every look finds the counts right.

Processes that are really killed are test_job_crash.py's.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_programs import JobProgram
from session_model import shrink

processes = st.integers(0, 1)
queues = st.sampled_from([0, 0, 0, 1])
which = st.integers(0, 5)
how = st.fixed_dictionaries(
    {
        "key": st.sampled_from([None, None, None, "k", "l"]),
        "priority": st.integers(-1, 1),
        "delay": st.sampled_from([0.0, 0.0, 0.0, 3.0]),
        "batch_size": st.sampled_from([None, None, 1, 2, 4]),
        "ordered": st.booleans(),
        "named": st.booleans(),
        "max_failures": st.sampled_from([None, None, None, 0, 2]),
        "lasts": st.sampled_from([None, None, None, None, 2.0, 20.0]),
    }
)
ways = st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 3, 4, 5, 6]), min_size=1, max_size=5)
claim = st.tuples(st.just("claim"), queues, st.integers(1, 3), st.integers(1, 8))
settle = st.tuples(st.just("settle"), queues, which, ways)
clock = st.tuples(st.just("clock"), st.sampled_from([0.5, 1.0, 3.0, 3.0, 30.0, 120.0, 300.0]))
#: What moves items: most of what is done.
USUAL = st.one_of(
    claim,
    claim,
    settle,
    settle,
    st.tuples(st.just("cancel"), which),
    st.tuples(st.just("step"), which),
    st.tuples(st.just("clock"), st.sampled_from([0.5, 3.0])),
)
OTHER = st.one_of(
    st.tuples(st.just("begin"), queues, how),
    st.tuples(st.just("stage"), which, st.integers(0, 9), st.lists(st.integers(0, 8), max_size=2)),
    st.tuples(st.just("show"), which, st.booleans()),
    st.tuples(st.just("release")),
    st.tuples(st.just("abandon"), which),
    st.tuples(st.just("append"), queues, st.integers(1, 6), st.booleans()),
    st.tuples(st.just("give_back"), queues),
    st.tuples(st.just("cancel_item"), st.integers(0, 60)),
    st.tuples(st.just("by_hand"), queues, st.booleans()),
    st.tuples(st.just("pause"), which, st.booleans()),
    st.tuples(st.just("delete"), which),
    st.tuples(st.just("look"), queues),
    st.tuples(st.just("tell"), queues, st.sampled_from([True, False, None])),
    clock,
)
OPERATION = st.one_of(USUAL, USUAL, OTHER)
#: A job that comes in whole, as most do: the sizes of its pieces, and which of its items do not fit.
NEW = st.tuples(
    st.just("new"),
    processes,
    queues,
    how,
    st.lists(st.integers(2, 9), min_size=1, max_size=2),
    st.lists(st.integers(0, 8), max_size=1),
    st.booleans(),
)
ALONE = st.one_of(
    st.tuples(st.just("kill"), processes),
    st.tuples(st.just("retry"), processes, which, st.booleans()),
    st.tuples(st.just("page"), processes, which, st.integers(0, 5), st.integers(1, 5)),
    NEW,
)
#: A transaction has one thing in it, or a few, as asks of one moment go together.
PROGRAM = st.one_of(
    st.tuples(st.just("run"), processes, st.lists(USUAL, min_size=1, max_size=1)),
    st.tuples(st.just("run"), processes, st.lists(OPERATION, min_size=1, max_size=3)),
    st.tuples(st.just("run"), processes, st.lists(OPERATION, min_size=1, max_size=1)),
    ALONE,
)
#: Two jobs are there from the start: else most programs would have none for long.
STEPS = st.tuples(
    NEW, NEW, st.integers(5, 40).flatmap(lambda n: st.lists(PROGRAM, min_size=n, max_size=n))
).map(lambda drawn: [*drawn[:2], *drawn[2]])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@given(STEPS)
@settings(max_examples=max(1, settings.default.max_examples // 2), deadline=None)
def test_jobs_add_up_whatever_is_done(steps: list[Any]) -> None:
    """No item is lost, counted twice or begun when it must not be; and in the end all ends, and all goes."""
    with tempfile.TemporaryDirectory() as folder:
        program = JobProgram(folder)
        try:
            for name, *arguments in steps:
                getattr(program, name)(*arguments)
            program.finish()
        finally:
            program.file.raw.close()
