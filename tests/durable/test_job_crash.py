"""kill -9 at random points of what jobs do: see job_crash.py for how."""

from __future__ import annotations

import os

import job_crash
import pytest
from crash_support import crash
from support import scaled

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills")


@pytest.mark.slow
def test_jobs_whose_processes_are_killed_come_whole_and_end_once(tmp_path):
    """Ten rounds: whole or not at all, ended once, told of, counted right, in order, nothing left lying about."""
    counts = crash(tmp_path, 10, 20261128, job_crash)
    assert counts["kills"] >= 5
    assert counts["acknowledged"] > 0
    assert counts["retried"] > 0
    assert counts["told"] > 0


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_many_rounds(tmp_path):
    """The same at length: sixty rounds, times MICROBATCH_SOAK."""
    rounds = scaled(60)
    assert crash(tmp_path, rounds, 1, job_crash)["acknowledged"] > rounds
