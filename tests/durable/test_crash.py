"""kill -9 at random points of enqueue, claim, handling and settle: see crash.py for how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import crash as plain
import pytest
from support import scaled

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills")


def crash(folder: Path, rounds: int, seed: int, harness: ModuleType = plain) -> dict[str, int]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = Path(str(harness.__file__))
    result = subprocess.run(
        [sys.executable, str(program), str(folder), str(rounds), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    counts = json.loads(result.stdout)
    none = dict.fromkeys(harness.MUST_BE_NONE, 0)
    assert {name: counts[name] for name in none} == none, counts
    return counts


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
