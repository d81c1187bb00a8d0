"""benchmarks/telemetry_cost.py runs, and measures what it says: everybody does the work, few record."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import telemetry_cost  # noqa: E402


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_its_figures(tmp_path: Path) -> None:
    """A benchmark that no longer runs is one that nobody believes."""
    script = str(FOLDER / "telemetry_cost.py")
    command = [sys.executable, script, "--tiny", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=50)
    (cell,) = json.loads((tmp_path / "telemetry_cost.json").read_text())["cells"]
    assert set(cell["ratios"]) == {contender.name for contender, _ in telemetry_cost.ALL}
    assert cell["ratios"][telemetry_cost.OFF]["median"] == 1
    assert "SDK recording" in (tmp_path / "telemetry_cost.md").read_text()


def test_every_contender_gives_every_caller_its_result() -> None:
    """Whoever does less is cheaper."""

    async def main() -> None:
        for contender, _ in telemetry_cost.ALL:
            async with contender.open(10) as run:
                assert await run(35) == list(range(35)), contender.name

    asyncio.run(main())
