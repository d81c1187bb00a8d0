"""Item and result types pass through layers, streams and files, for mypy and pyright alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import microbatch

CASES = Path(__file__).parent / "typing" / "layers_cases.py"
SOURCE = Path(microbatch.__file__).parent.parent

pytestmark = pytest.mark.timeout(120)

WRONG = """
from microbatch import Batcher
from microbatch.layers import bisecting, per_item, rate_limited, validated
from microbatch.streaming import map_batches


async def lengths(items: list[str]) -> list[int]:
    return [len(item) for item in items]


async def single(item: str) -> int:
    return len(item)


def check(item: int) -> None: ...


async def calls() -> None:
    await bisecting(lengths)([1])
    await Batcher(bisecting(lengths)).submit(1)
    bisecting(single)
    per_item(lengths)(["a"])
    rate_limited(lengths, rate="1")
    validated(lengths, check)
    validated(lengths, print, mode="drop")
    map_batches([1], lengths)
    map_batches(["a"], lengths, max_batch_size="1")
"""
#: The lines of WRONG, which begins with an empty one, that are mistakes.
MISTAKES = set(range(19, 28))


def mypy(path: Path, scratch: Path) -> list[int]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file="]
    command += ["--follow-imports=silent"]  # the package has its own check
    command += [f"--cache-dir={scratch}", str(path)]
    environment = {**os.environ, "MYPYPATH": str(SOURCE)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=scratch, check=False
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert all(line.startswith((str(path), path.name)) for line in errors), done.stdout
    assert done.returncode in {0, 1}, done.stderr
    return [
        int(line.removeprefix(str(path)).removeprefix(path.name).split(":")[1]) for line in errors
    ]


def basedpyright(path: Path, scratch: Path) -> list[int]:
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(SOURCE)], "include": [str(path)]}
    (scratch / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(scratch)]
    command += ["--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    return [
        problem["range"]["start"]["line"] + 1
        for problem in report["generalDiagnostics"]
        if problem["severity"] == "error"
    ]


@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_types_pass_through(checker: object, tmp_path: Path) -> None:
    """Every ``assert_type`` of the cases holds."""
    assert checker(CASES, tmp_path) == []  # type: ignore[operator]


@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_mistakes_are_refused(checker: object, tmp_path: Path) -> None:
    """Each of them, and no other line: a checker that takes anything would pass the cases too."""
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    assert set(checker(path, tmp_path)) == MISTAKES  # type: ignore[operator]
