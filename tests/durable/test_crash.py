"""kill -9 at random points of enqueue, claim, handling and settle: see crash.py for how."""

from __future__ import annotations

import os

import pytest
from crash_support import crash
from support import scaled

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills")


@pytest.mark.slow
def test_processes_killed_at_random_lose_nothing_and_repeat_nothing(tmp_path):
    """Ten rounds: acknowledged and lost 0, stuck 0, effects exactly once, twice only what who died had in hand."""
    counts = crash(tmp_path, 10, 20261122)
    assert counts["kills"] >= 5
    assert counts["stops"] > 0
    assert counts["acknowledged"] > 0
    assert counts["keyed"] > 0


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2))
def test_many_rounds(tmp_path, seed):
    """The same at length: sixty rounds, times MICROBATCH_SOAK."""
    rounds = scaled(60)
    assert crash(tmp_path, rounds, seed)["acknowledged"] > 10 * rounds
