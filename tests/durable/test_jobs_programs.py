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
        "ordered": st.sampled_from([False, False, True]),
        "named": st.booleans(),
        "max_failures": st.sampled_from([None, None, None, 0, 2]),
        "lasts": st.sampled_from([None, None, None, 2.0, 20.0]),
    }
)
ways = st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 3, 4, 5, 6]), min_size=1, max_size=5)
OPERATION = st.one_of(
    st.tuples(st.just("begin"), queues, how),
    st.tuples(st.just("stage"), which, st.integers(0, 9), st.lists(st.integers(0, 8), max_size=2)),
    st.tuples(st.just("show"), which, st.booleans()),
    st.tuples(st.just("release")),
    st.tuples(st.just("abandon"), which),
    st.tuples(st.just("append"), queues, st.integers(1, 6), st.booleans()),
    st.tuples(st.just("claim"), queues, st.integers(1, 3), st.integers(1, 8)),
    st.tuples(st.just("claim"), queues, st.just(3), st.just(8)),
    st.tuples(st.just("settle"), queues, which, ways),
    st.tuples(st.just("settle"), queues, which, st.just([0])),
    st.tuples(st.just("give_back"), queues),
    st.tuples(st.just("cancel_item"), st.integers(0, 60)),
    st.tuples(st.just("by_hand"), queues, st.booleans()),
    st.tuples(st.just("cancel"), which),
    st.tuples(st.just("pause"), which, st.booleans()),
    st.tuples(st.just("delete"), which),
    st.tuples(st.just("step"), which),
    st.tuples(st.just("look"), queues),
    st.tuples(st.just("tell"), queues, st.booleans()),
    st.tuples(st.just("clock"), st.sampled_from([0.5, 1.0, 3.0, 3.0, 30.0, 120.0, 300.0])),
)
#: A job that comes in whole, as most do.
NEW = st.tuples(st.just("new"), processes, queues, how, st.lists(st.integers(1, 9), max_size=3))
ALONE = st.one_of(
    st.tuples(st.just("kill"), processes),
    st.tuples(st.just("retry"), processes, which, st.booleans()),
    st.tuples(st.just("page"), processes, which, st.integers(0, 5), st.integers(1, 5)),
    NEW,
    NEW,
)
#: A transaction has one thing in it, or a few, as asks of one moment go together.
PROGRAM = st.one_of(
    st.tuples(st.just("run"), processes, st.lists(OPERATION, min_size=1, max_size=3)),
    st.tuples(st.just("run"), processes, st.lists(OPERATION, min_size=1, max_size=1)),
    ALONE,
)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@given(st.integers(5, 50).flatmap(lambda n: st.lists(PROGRAM, min_size=n, max_size=n)))
@settings(deadline=None)
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
